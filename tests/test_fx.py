"""torch.fx: the operators are recorded by their names, so what traces, fuses and quantizes by it works."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse
from torchvision.models.feature_extraction import create_feature_extractor

import pliant
from pliant import ops
from pliant.nn import DeformConv2d, DeformPSRoIPool, DeformRoIPool, PSRoIPool, RoIPool

ROIS = torch.tensor([[0.0, 0, 0, 40, 30], [0, 8, 8, 64, 64]])
LAYERS = {
    "plain": (lambda: DeformConv2d(4, 6, 3, padding=1), ((1, 4, 9, 7),)),
    "modulated": (lambda: DeformConv2d(4, 6, 3, modulated=True, border="authors"), ((1, 4, 9, 7),)),
    "roi": (lambda: RoIPool(3, 1 / 8), ((1, 4, 9, 7), ROIS)),
    "ps": (lambda: PSRoIPool(2, 1 / 8, "authors"), ((1, 4, 9, 7), ROIS)),
    "deform_roi": (lambda: DeformRoIPool(4, 3, 1 / 8), ((1, 4, 9, 7), ROIS)),
    "deform_ps": (lambda: DeformPSRoIPool(5, 2, 1 / 8), ((1, 8, 9, 7), (1, 5, 9, 7), ROIS)),
}


def randomised(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_traced_copied_and_saved(name: str) -> None:
    build, shapes = LAYERS[name]
    layer = randomised(build())
    inputs = [torch.randn(shape) if isinstance(shape, tuple) else shape for shape in shapes]
    traced = fx.symbolic_trace(layer)
    file = io.BytesIO()
    torch.save(copy.deepcopy(traced), file)
    file.seek(0)
    for module in (traced, torch.load(file, weights_only=False)):
        assert torch.equal(module(*inputs), layer(*inputs))


def test_functions_are_traced_however_they_are_called() -> None:
    def run(x: Tensor, offset: Tensor, weight: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        return (
            ops.deform_conv2d(x, offset, weight, padding=1),
            ops.roi_pool(input=x, rois=[boxes], output_size=2, spatial_scale=1 / 8),
            ops.ps_roi_pool(x, [boxes], 2, 1 / 8, sampling="authors"),
            ops.deform_roi_pool(x, [boxes], None, (2, 3), 1 / 8, sampling="authors", sample_per_part=2),
            ops.deform_ps_roi_pool(x, [boxes], None, 2, 1 / 8, group_size=1),
        )

    inputs = torch.randn(1, 4, 5, 6), torch.randn(1, 18, 5, 6), torch.randn(2, 4, 3, 3), ROIS[:, 1:]
    traced = fx.symbolic_trace(run)
    recorded = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert recorded == [
        ops.deform_conv2d,
        ops.roi_pool,
        ops.ps_roi_pool,
        ops.deform_roi_pool,
        ops.deform_ps_roi_pool,
    ]
    for got, want in zip(traced(*inputs), run(*inputs), strict=True):
        assert torch.equal(got, want)


def deformed_resnet() -> nn.Module:
    """Random offsets too, and batch norms whose statistics are not those of the start."""
    model = pliant.deform(torchvision.models.resnet18().eval(), "layer4.*.conv2", modulated=True)
    for name, tensor in model.state_dict().items():
        if "offset_conv" in name:
            nn.init.normal_(tensor, std=0.02)
        elif name.endswith(("bn2.running_mean", "bn2.bias")):
            nn.init.normal_(tensor, std=0.5)
        elif name.endswith(("bn2.running_var", "bn2.weight")):
            nn.init.uniform_(tensor, 0.5, 2.0)
    return model


@torch.no_grad()
def test_a_deformed_network_gives_its_features_and_can_be_fused() -> None:
    model, x = deformed_resnet(), torch.rand(1, 3, 64, 64)
    found = create_feature_extractor(model, {"layer3": "before", "layer4.0.conv2": "conv", "fc": "out"})(x)
    conv = {}
    model.layer4[0].conv2.register_forward_hook(lambda module, inputs, output: conv.update(out=output))
    torch.testing.assert_close(found["out"], model(x))
    torch.testing.assert_close(found["conv"], conv["out"])
    assert found["before"].shape == (1, 256, 4, 4)
    fused = fuse(model)
    left = [name for name, module in fused.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert left == ["layer4.0.bn2", "layer4.1.bn2"], "a batch norm after a deformable convolution is left alone"
    torch.testing.assert_close(fused(x), model(x), rtol=1e-3, atol=1e-3)


class DeformedPair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.relu = nn.ReLU()
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.second(self.relu(self.first(x))))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@torch.no_grad()
def test_a_deformed_network_can_be_quantized() -> None:
    quantize_fx = pytest.importorskip("torch.ao.quantization.quantize_fx")
    from torch.ao.quantization import get_default_qconfig_mapping

    model, x = pliant.deform(DeformedPair(), "second", modulated=True).eval(), torch.rand(2, 3, 12, 10)
    nn.init.normal_(model.second.offset_conv.weight, std=0.05)
    prepared = quantize_fx.prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping("x86"), (x,))
    prepared(x)
    quantized = quantize_fx.convert_fx(prepared)
    assert type(quantized.second.offset_conv).__module__.startswith("torch.ao.nn.quantized")
    want = model(x)
    assert (quantized(x) - want).abs().max() < 0.05 * (want.max() - want.min())
