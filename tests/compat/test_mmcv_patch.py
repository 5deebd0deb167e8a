"""mmcv's own layers on `patch_mmcv()`, if mmcv is installed: `pip install mmcv-lite mmengine`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import pliant
from pliant._patch import lasts
from pliant.compat import mmcv as names
from pliant.compat.mmcv import patch

mmcv = pytest.importorskip("mmcv", reason="mmcv-lite is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # mmcv's own, of other packages


@pytest.fixture
def patched() -> Iterator[Any]:
    with pliant.patch_mmcv():
        import mmcv.ops

        yield mmcv.ops
    assert not lasts("mmcv.ops")
    assert not patch._replaced


LAYERS = {
    "DeformConv2d": (4, 6, 3, 1, 1, 1, 2, 2),
    "DeformConv2dPack": (4, 6, 3, 1, 1, 1, 2, 2),
    "ModulatedDeformConv2d": (4, 6, 3, 1, 1),
    "ModulatedDeformConv2dPack": (4, 6, 3, 1, 1),
    "DeformRoIPool": (3, 0.5),
    "DeformRoIPoolPack": (3, 4, 8, 0.5),
    "ModulatedDeformRoIPoolPack": (3, 4, 8, 0.5),
    "MultiScaleDeformableAttention": (12, 3, 2, 2),
}


def inputs(name: str) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    if "Attention" in name:
        shapes, starts = torch.tensor([[3, 4], [2, 3]]), torch.tensor([0, 12])
        more = {"reference_points": torch.rand(2, 18, 2, 2), "spatial_shapes": shapes, "level_start_index": starts}
        return (torch.randn(18, 2, 12),), more
    x = torch.randn(2, 4, 6, 7)
    if "RoI" in name:
        return (x, torch.tensor([[0, 1.0, 2, 9, 8], [1, 0, 0, 14, 12]])), {}
    groups = 2 if name.startswith("Deform") else 1
    places = (torch.randn(2, 18 * groups, 6, 7), torch.rand(2, 9, 6, 7))
    return (x, *places[: 0 if name.endswith("Pack") else 1 if name == "DeformConv2d" else 2]), {}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_both_load_each_others_state_dicts_and_agree(name: str, patched: Any) -> None:
    theirs, ours = getattr(patched, name)(*LAYERS[name]).eval(), getattr(names, name)(*LAYERS[name]).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert list(theirs.state_dict()) == list(ours.state_dict())
    given, more = inputs(name)
    torch.testing.assert_close(ours(*given, **more), theirs(*given, **more))


def test_mmcvs_registry_builds_layers_that_run_and_learn(patched: Any) -> None:
    from mmcv.cnn import build_conv_layer

    for kind in ("DCN", "DCNv2"):
        layer = build_conv_layer({"type": kind, "deform_groups": 2}, 4, 6, 3, padding=1, bias=False)
        nn.init.normal_(layer.conv_offset.weight)
        x = torch.randn(2, 4, 6, 7, requires_grad=True)
        (slope,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
        slope.square().sum().backward()  # which mmcv's extension refuses
        assert layer.conv_offset.weight.grad is not None


def test_what_torchvision_has_is_torchvisions(patched: Any) -> None:
    x = torch.randn(2, 4, 12, 12, requires_grad=True)
    rois = torch.tensor([[0, 1.0, 2, 9, 8], [1, 0, 0, 14, 12]])
    got = patched.RoIAlign(3, 0.5, 2)(x, rois)
    want = torchvision.ops.roi_align(x, rois, 3, 0.5, 2, aligned=True)
    assert torch.equal(got, want)
    (ours,) = torch.autograd.grad(got.square().sum(), x)
    assert torch.equal(ours, torch.autograd.grad(want.square().sum(), x)[0])
    boxes = torch.tensor([[0.0, 0, 9, 9], [1, 1, 10, 10], [30, 30, 40, 40], [0, 0, 10, 9]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.95])
    kept = patched.nms(boxes, scores, 0.5)[1]
    assert kept.tolist() == torchvision.ops.nms(boxes, scores, 0.5).tolist() == [3, 2]
    # Rows of ten pixels of which five are shared: 1/3 of the union; 4/14 between the edges 0..9 and 5..14.
    pixels = torch.tensor([[0.0, 0, 9, 9], [5, 0, 14, 9]])
    assert patched.nms(pixels, scores[:2], 0.3, offset=0)[1].tolist() == [0, 1]
    assert patched.nms(pixels, scores[:2], 0.3, offset=1)[1].tolist() == [0]


def test_what_is_missing_says_so_when_it_is_called(patched: Any) -> None:
    if not isinstance(sys.modules["mmcv._ext"], patch._Extension):
        pytest.skip("mmcv's extension is installed")
    with pytest.raises(NotImplementedError, match="mmcv's compiled operator softnms is not installed"):
        patched.soft_nms(torch.rand(2, 4), torch.rand(2))
    with pytest.raises(NotImplementedError, match="pool_mode='max'"):
        patched.RoIAlign(3, pool_mode="max")(torch.rand(1, 1, 4, 4), torch.tensor([[0, 0.0, 0, 3, 3]]))


def test_patches_nest_and_are_undone() -> None:
    first = pliant.patch_mmcv()
    import mmcv.ops.deform_conv as module

    with pliant.patch_mmcv():
        assert module.deform_conv2d is names.deform_conv2d
        assert mmcv.ops.deform_conv2d is names.deform_conv2d
    assert module.deform_conv2d is names.deform_conv2d
    first.undo()
    first.undo()
    assert module.deform_conv2d is not names.deform_conv2d
    assert mmcv.ops.deform_conv2d is module.deform_conv2d
