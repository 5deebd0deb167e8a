"""A RoI that reads nothing of the map is background: in lists, in batches, and in exported programs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant.export import to_program
from pliant.models import faster_rcnn, fpn_faster_rcnn, rfcn
from pliant.models.batched import BatchedDetector
from pliant.nn import DeformPSRoIPool, DeformRoIPool

# Of torch 2.6's exporter.
pytestmark = pytest.mark.filterwarnings("ignore:.*get_attr:UserWarning")
SMALL: dict[str, Any] = {
    "backbone": "timm/test_resnet",
    "deform_layers": 0,
    "anchor_scales": (1, 2, 4),
    "score_thresh": 0.0,
}
AUTHORS: dict[str, Any] = {"framing": "authors", "sampling": "authors"}
DEFORMABLE: dict[str, Any] = {
    "faster_rcnn": lambda: faster_rcnn(2, **SMALL),
    "faster_rcnn, authors": lambda: faster_rcnn(2, **SMALL, **AUTHORS),
    "rfcn": lambda: rfcn(2, **SMALL, bins=3),
    "rfcn, authors": lambda: rfcn(2, **SMALL, bins=3, **AUTHORS),
}
BUILDS: dict[str, Any] = {
    **DEFORMABLE,
    "faster_rcnn, plain": lambda: faster_rcnn(2, **SMALL, deform_roi=False),
    "faster_rcnn, authors, plain": lambda: faster_rcnn(2, **SMALL, **AUTHORS, deform_roi=False),
    "rfcn, plain": lambda: rfcn(2, **SMALL, bins=3, deform_roi=False),
    "fpn_faster_rcnn": lambda: fpn_faster_rcnn(2, backbone="timm/test_resnet", deform_stages=0, score_thresh=0.0),
}
SIZE = (64, 96)
INSIDE, OUTSIDE = [8.0, 8, 60, 50], [-90.0, -70, -40, -30]


def detector(build: Any) -> nn.Module:
    """Random weights; what the heads make of zeros is an object."""
    torch.manual_seed(3)
    model = build().eval()
    for name, parameter in model.named_parameters():
        if name.startswith(("rpn", "roi_heads")) and "offset" not in name and parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.04)
    predictor = model.roi_heads.box_predictor
    if hasattr(predictor, "cls_score"):
        with torch.no_grad():
            predictor.cls_score.bias.copy_(torch.tensor([0.0, 3.0]))
    return model


def scatter_bins(model: nn.Module) -> None:
    """Let every bin of every RoI move outside the map."""
    for module in model.modules():
        if isinstance(module, DeformRoIPool | DeformPSRoIPool):
            module.gamma = 1e6
            branch = module.offset_fc if isinstance(module, DeformRoIPool) else module.offset_conv
            nn.init.constant_(branch.bias, 1.0)


@pytest.mark.parametrize("name", BUILDS)
@torch.no_grad()
def test_a_roi_outside_the_map_is_no_object(name: str) -> None:
    model = detector(BUILDS[name])
    features = model.backbone(torch.rand(1, 3, *SIZE))
    for boxes, found_any in (([OUTSIDE], False), ([INSIDE], True), ([INSIDE, OUTSIDE], True)):
        found = model.roi_heads(features, [torch.tensor(boxes)], [SIZE])[0][0]
        assert sorted(found) == ["boxes", "labels", "scores"]
        assert len(found["scores"]) == (1 if found_any else 0)
    both = [torch.tensor([OUTSIDE, INSIDE])]
    scores, _ = model.roi_heads.outputs(features, both, [SIZE])
    heads = model.roi_heads
    plain, _ = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, both, [SIZE])))
    assert scores.softmax(dim=1)[0].tolist() == [1.0, 0.0]
    assert torch.equal(scores[1], plain[1])
    assert plain[0].softmax(dim=0)[1] >= 0.5  # what it was about


class Scores(nn.Module):
    """The heads as a function of tensors."""

    def __init__(self, heads: Any) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, conv5: Tensor, rois: Tensor) -> Tensor:
        return self.heads.outputs({"conv5": conv5}, rois, [])[0].softmax(dim=1)


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=[pytest.mark.slow] * (each != "rfcn")) for each in DEFORMABLE]
)
@torch.no_grad()
def test_rois_whose_bins_all_moved_outside_are_no_objects(name: str) -> None:
    model = detector(DEFORMABLE[name])
    images, sizes = torch.rand(2, 3, *SIZE), torch.tensor([SIZE, SIZE])
    batched, single = BatchedDetector(model), Scores(model.roi_heads).eval()
    conv5, rois = torch.rand(2, model.backbone.conv5_channels, 4, 6), torch.tensor([[0, *INSIDE], [1, *INSIDE]])
    assert (single(conv5, rois)[:, 1] > 0).all()
    assert (batched(images, sizes)[2] > 0).any()
    scatter_bins(model)
    assert single(conv5, rois)[:, 1].tolist() == [0, 0]
    assert not (batched(images, sizes)[2] > 0).any()
    program = to_program(single, (conv5, rois), fixed=True, standard=True)
    assert not any("pliant" in str(node.target) for node in program.graph.nodes)
    exported = program.module()
    assert exported(conv5, rois)[:, 1].tolist() == [0, 0]


@torch.no_grad()
def test_a_class_whose_own_bins_moved_outside_is_none() -> None:
    model = detector(lambda: rfcn(4, **SMALL, bins=3))
    pool = model.roi_heads.box_roi_pool.score_pool
    pool.gamma = 1e6
    pool.offset_conv.bias.view(4, -1)[2] = 1.0  # offsets of the second object
    features = model.backbone(torch.rand(1, 3, *SIZE))
    scores, _ = model.roi_heads.outputs(features, [torch.tensor([INSIDE])], [SIZE])
    assert scores.isfinite().tolist() == [[True, True, False, True]]


def test_training_keeps_finite_losses_where_a_roi_reads_nothing() -> None:
    for build in (BUILDS["rfcn"], BUILDS["faster_rcnn"], BUILDS["fpn_faster_rcnn"]):
        heads = (model := detector(build)).train().roi_heads
        targets = [{"boxes": torch.tensor([OUTSIDE]), "labels": torch.tensor([1])}]
        features = model.backbone(torch.rand(1, 3, *SIZE))
        _, losses = heads(features, [torch.tensor([OUTSIDE, INSIDE])], [SIZE], targets)
        assert all(loss.isfinite() for loss in losses.values())
