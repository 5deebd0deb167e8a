"""The `authors` options against the authors' own operators, run by MXNet 1.9.1 in an environment of its own.

Set PLIANT_MXNET_PYTHON to that environment's interpreter; `mxnet_operators.py` beside it says how to make one.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor

from pliant import ops

MXNET_PYTHON = os.environ.get("PLIANT_MXNET_PYTHON")
if not MXNET_PYTHON:
    pytest.skip("PLIANT_MXNET_PYTHON names no interpreter with MXNet 1.9.1", allow_module_level=True)
SCRIPT = Path(__file__).with_name("mxnet_operators.py")


def convolution(seed: int) -> tuple[str, dict, list[Tensor], Callable[..., Tensor]]:
    kernel = [(3, 3), (3, 2), (2, 5), (1, 1)][seed % 4]
    stride, dilation, padding = (
        [(1, 1), (2, 1)][seed % 2],
        [(1, 2), (2, 1), (1, 1)][seed % 3],
        [(1, 1), (2, 3)][seed % 2],
    )
    groups, offset_groups = [(1, 1), (2, 3), (1, 4), (3, 2)][seed % 4]
    channels, out_channels, size = 12, 6, (10 + seed, 13 - seed % 3)
    out = [(size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]
    options = {
        "kernel": kernel,
        "stride": stride,
        "dilate": dilation,
        "pad": padding,
        "num_filter": out_channels,
        "num_group": groups,
        "num_deformable_group": offset_groups,
    }
    inputs = [
        torch.randn(2, channels, *size),
        torch.randn(2, 2 * offset_groups * kernel[0] * kernel[1], *out) * (0.5 + 2 * seed),
        torch.randn(out_channels, channels // groups, *kernel),
        torch.randn(out_channels),
    ]

    def ours(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.deform_conv2d(x, offset, weight, bias, stride, padding, dilation, border="authors")

    return "DeformableConvolution", options, inputs, ours


def rois(seed: int, count: int, images: int) -> Tensor:
    corner = torch.rand(count, 2) * 120 - 15
    far = corner + torch.rand(count, 2) * 90
    far[0] = corner[0]
    return torch.cat((torch.randint(0, images, (count, 1)).float(), corner, far), dim=1)


def deformable_pooling(seed: int) -> tuple[str, dict, list[Tensor], Callable[..., Tensor]]:
    pooled, group, part = [(7, 7, 7), (7, 1, 7), (3, 3, 3), (4, 2, 2)][seed % 4]
    classes, per_class, samples = [(1, 3), (3, 1), (2, 2)][seed % 3] + ([4, 2][seed % 2],)
    output_dim = classes * per_class
    boxes = rois(seed, 9, 2)
    inputs = [
        torch.randn(2, output_dim * group**2, 11, 14),
        boxes,
        torch.randn(9, 2 * classes, part, part) * (1 + seed % 3),
    ]
    options = {
        "spatial_scale": 0.125,
        "output_dim": output_dim,
        "group_size": group,
        "pooled_size": pooled,
        "part_size": part,
        "sample_per_part": samples,
        "trans_std": 0.1,
        "no_trans": False,
    }

    def ours(x: Tensor, boxes: Tensor, offset: Tensor) -> Tensor:
        return ops.deform_ps_roi_pool(
            x, boxes, offset, pooled, 0.125, 0.1, sampling="authors", group_size=group, sample_per_part=samples
        )

    return "DeformablePSROIPooling", options, inputs, ours


def plain_pooling(seed: int) -> tuple[str, dict, list[Tensor], Callable[..., Tensor]]:
    pooled, group = [(7, 7), (3, 3), (6, 2), (5, 1)][seed % 4]
    inputs = [torch.randn(2, 4 * group**2, 11, 14), rois(seed, 9, 2)]
    options = {"spatial_scale": 0.125, "output_dim": 4, "pooled_size": pooled, "group_size": group}

    def ours(x: Tensor, boxes: Tensor) -> Tensor:
        return ops.ps_roi_pool(x, boxes, pooled, 0.125, sampling="authors", group_size=group)

    return "PSROIPooling", options, inputs, ours


CASES = {
    f"{make.__name__}{seed}": (make, seed)
    for make in (convolution, deformable_pooling, plain_pooling)
    for seed in range(12)
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Every case through one MXNet process: inputs, their output there and the gradients."""
    folder = tmp_path_factory.mktemp("mxnet")
    arrays, prepared = {}, {}
    for name, (make, seed) in CASES.items():
        torch.manual_seed(seed)
        operator, options, inputs, ours = make(seed)
        values = [value.double().requires_grad_() for value in inputs]
        grad = torch.randn_like(ours(*values))
        arrays |= {f"{name}/operator": operator, f"{name}/options": json.dumps(options), f"{name}/grad": grad.float()}
        arrays |= {f"{name}/input{i}": value for i, value in enumerate(inputs)}
        prepared[name] = (values, grad, ours)
    numpy.savez(folder / "cases.npz", **arrays)
    command = [str(MXNET_PYTHON), str(SCRIPT), str(folder / "cases.npz"), str(folder / "results.npz")]
    subprocess.run(command, check=True, capture_output=True)
    return {"prepared": prepared, "theirs": dict(numpy.load(folder / "results.npz"))}


@pytest.mark.parametrize("name", CASES)
def test_same_output_and_gradients(name: str, results: dict) -> None:
    values, grad, ours = results["prepared"][name]
    output = ours(*values)
    theirs = {key: torch.from_numpy(value).double() for key, value in results["theirs"].items()}
    torch.testing.assert_close(output, theirs[f"{name}/output"], rtol=1e-4, atol=1e-4)
    for i, value in enumerate(values):
        if name.startswith("conv") or i != 1:  # RoIs have no gradient
            (got,) = torch.autograd.grad(output, value, grad, retain_graph=True)
            torch.testing.assert_close(got, theirs[f"{name}/grad{i}"], rtol=1e-4, atol=2e-4)
