"""Whole networks under torch.compile, torch.export and autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant.export import to_program
from pliant.models import (
    BatchedDetector,
    class_aware_rpn,
    classifier,
    deeplab,
    faster_rcnn,
    fpn_faster_rcnn,
    rfcn,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
today = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9), reason="torch's compiler before 2.9 stops elsewhere"
)
TINY: dict[str, Any] = {"backbone": "test_resnet", "deform_layers": 2}
DETECTORS: dict[str, Callable[[], nn.Module]] = {
    "faster_rcnn": lambda: faster_rcnn(3, **TINY, min_size=64, max_size=96, anchor_scales=(1, 2)),
    "rfcn": lambda: rfcn(3, **TINY, min_size=64, max_size=96, anchor_scales=(1, 2), bins=3),
    "class_aware_rpn": lambda: class_aware_rpn(3, **TINY, min_size=64, max_size=96, anchor_scales=(1, 2)),
    "fpn_faster_rcnn": lambda: fpn_faster_rcnn(3, backbone="test_resnet", min_size=64, max_size=96),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "deeplab": lambda: deeplab(3, **TINY),
    "classifier": lambda: classifier(3, **TINY),
}


def awake(model: nn.Module) -> nn.Module:
    """Offsets that are not zero, in residual branches that are not either."""
    for name, parameter in model.named_parameters():
        if "offset" in name:
            nn.init.normal_(parameter, std=0.05)
        elif parameter.dim() == 1 and "bn" in name and name.endswith("weight"):
            nn.init.ones_(parameter)
    return model


def out(value: Any) -> Tensor:
    return value["out"] if isinstance(value, dict) else value


@pytest.mark.parametrize("name", OTHERS)
def test_compiles_without_graph_breaks_forward_and_backward(name: str) -> None:
    torch._dynamo.reset()
    model, x = awake(OTHERS[name]()).eval(), torch.rand(2, 3, 64, 80)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected, got = out(model(x)), out(compiled(x))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for left, right in zip(
        torch.autograd.grad(got.square().sum(), parameters),
        torch.autograd.grad(expected.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4 * float(right.abs().max()) + 1e-7)


@today
@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=[pytest.mark.slow] * (each != "rfcn")) for each in DETECTORS]
)
def test_detectors_break_the_graph_nowhere_in_the_operators(name: str) -> None:
    torch._dynamo.reset()
    model = awake(DETECTORS[name]()).eval()
    torch.manual_seed(0)
    images = [torch.rand(3, 64, 96), torch.rand(3, 72, 64)]
    with torch.no_grad():
        found = torch._dynamo.explain(model)(images)
    operators = [node.target for graph in found.graphs for node in graph.graph.nodes if "pliant" in str(node.target)]
    assert operators, "the operators are in the compiled graphs"
    for reason in found.break_reasons:
        frames = [frame.filename for frame in reason.user_stack]
        assert not any("pliant/ops" in frame or "pliant/nn/" in frame for frame in frames), reason


@today
@pytest.mark.parametrize("name", ["rfcn", "class_aware_rpn"])
@torch.no_grad()
def test_batched_detectors_compile_whole(name: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = BatchedDetector(awake(DETECTORS[name]()).eval())
    inputs = torch.rand(2, 3, 80, 96), torch.tensor([[80, 96], [64, 90]])
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        for got, want in zip(compiled(*inputs), model(*inputs), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", OTHERS)
@torch.no_grad()
def test_exports_for_any_batch_and_size(name: str) -> None:
    model = awake(OTHERS[name]()).eval()
    program = to_program(model, torch.rand(2, 3, 64, 96)).module()
    for shape in ((1, 3, 80, 65), (3, 3, 33, 112)):
        x = torch.rand(shape)
        torch.testing.assert_close(out(program(x)), out(model(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*DETECTORS, *OTHERS])
def test_trains_under_autocast(name: str) -> None:
    torch.manual_seed(0)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
        if name in DETECTORS:
            model = awake(DETECTORS[name]()).train()
            targets = [{"boxes": torch.tensor([[4.0, 4, 40, 50]]), "labels": torch.tensor([1])}] * 2
            loss = sum(model([torch.rand(3, 64, 96), torch.rand(3, 72, 64)], targets).values())
        else:
            model = awake(OTHERS[name]()).train()
            loss = out(model(torch.rand(2, 3, 64, 80))).float().square().mean()
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in gradients)
    assert any(
        "offset" in key and parameter.grad is not None and parameter.grad.abs().sum() > 0
        for key, parameter in model.named_parameters()
    )
