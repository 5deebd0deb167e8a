"""Average precision against other people's code, and against the definition counted out slowly."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch

from pliant.engine import DetectionMetrics, VOCAveragePrecision
from pliant.engine.voc_ap import match_detections

SIDE = 60


def random_boxes(number: int, largest: int = 24) -> torch.Tensor:
    """Boxes with whole corners, [number, 4]."""
    corners = torch.randint(0, SIDE - largest, (number, 2))
    return torch.cat([corners, corners + torch.randint(4, largest, (number, 2))], dim=1).float()


def random_case(images: int, classes: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Detections that hit, miss and come twice, and objects of which some are difficult."""
    found, truth = [], []
    for image_id in range(images):
        number = int(torch.randint(0, 6, ()))
        objects, labels = random_boxes(number), torch.randint(1, classes + 1, (number,))
        truth.append({"boxes": objects, "labels": labels, "difficult": torch.rand(number) < 0.25, "image_id": image_id})
        moved = objects.repeat(2, 1) + torch.randint(-3, 4, (2 * number, 4))
        moved[:, 2:] = torch.maximum(moved[:, 2:], moved[:, :2] + 1)
        boxes = torch.cat([moved, random_boxes(3)])
        guessed = torch.cat([labels.repeat(2), torch.randint(1, classes + 1, (3,))])
        found.append({"boxes": boxes, "labels": guessed, "scores": torch.rand(len(boxes))})
    return found, truth


def pixels(box: list[float]) -> tuple[int, int, int, int]:
    """xmin, ymin, xmax, ymax as VOC writes them: from 1, the last one included."""
    x0, y0, x1, y1 = map(int, box)
    return x0 + 1, y0 + 1, x1, y1


def inclusive_overlap(one: tuple[int, ...], other: tuple[int, ...]) -> Fraction:
    """The pixels in both boxes over those in either, counted by rows and columns."""
    columns = set(range(one[0], one[2] + 1)) & set(range(other[0], other[2] + 1))
    rows = set(range(one[1], one[3] + 1)) & set(range(other[1], other[3] + 1))
    both = len(columns) * len(rows)
    areas = sum((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (one, other))
    return Fraction(both, areas - both)


def counted_ap(found: list[dict], truth: list[dict], label: int, threshold: Fraction) -> tuple[float, float]:
    """11-point and area AP of a class, from the definition, in fractions."""
    objects = [
        [pixels(box) for box, own in zip(t["boxes"].tolist(), t["labels"], strict=True) if own == label] for t in truth
    ]
    difficult = [[bool(d) for d, own in zip(t["difficult"], t["labels"], strict=True) if own == label] for t in truth]
    ranked = sorted(
        (-float(score), image, pixels(box))
        for image, f in enumerate(found)
        for box, own, score in zip(f["boxes"].tolist(), f["labels"], f["scores"], strict=True)
        if own == label
    )
    positives = sum(not hard for of_image in difficult for hard in of_image)
    taken, right, wrong, curve = set(), 0, 0, []
    for _, image, box in ranked:
        overlaps = [inclusive_overlap(box, other) for other in objects[image]]
        best = max(range(len(overlaps)), key=lambda place: overlaps[place], default=None)
        if best is not None and overlaps[best] > threshold:
            if difficult[image][best]:
                continue
            if (image, best) not in taken:
                taken.add((image, best))
                right += 1
            else:
                wrong += 1
        else:
            wrong += 1
        curve.append((Fraction(right, positives), Fraction(right, right + wrong)))

    def best_from(recall: Fraction) -> Fraction:
        return max((precision for reached, precision in curve if reached >= recall), default=Fraction(0))

    eleven = sum(best_from(Fraction(i, 10)) for i in range(11)) / 11
    # Between two recalls the curve is as high as it ever is from the second on.
    area = sum(best_from(Fraction(n, positives)) for n in range(1, positives + 1)) / positives
    return float(eleven), float(area)


@pytest.mark.parametrize("seed", range(4))
def test_voc_ap_against_the_definition(seed: int) -> None:
    torch.manual_seed(seed)
    found, truth = random_case(images=12, classes=2)
    metric = VOCAveragePrecision(2)
    metric.update(found, truth)
    results = metric.compute()
    for name, threshold in (("0.5", Fraction(1, 2)), ("0.7", Fraction(7, 10))):
        for label in (1, 2):
            eleven, area = counted_ap(found, truth, label, threshold)
            assert 0 < area < 1
            assert results[name]["11-point"][label - 1] == pytest.approx(eleven)
            assert results[name]["area"][label - 1] == pytest.approx(area)


def test_continuous_edges_agree_with_inclusive_pixels() -> None:
    """xmin..xmax as the edges xmin - 1..xmax: the same overlaps, and so the same side of every threshold."""
    one, other = random_boxes(100), random_boxes(100)
    exact = [inclusive_overlap(pixels(a), pixels(b)) for a, b in zip(one.tolist(), other.tolist(), strict=True)]
    for threshold in sorted({overlap for overlap in exact if overlap > 0})[::4]:
        hits = [
            bool(match_detections(a[None], b[None], torch.tensor([False]), float(threshold))[0][0])
            for a, b in zip(one, other, strict=True)
        ]
        # An overlap equal to the threshold is no hit.
        assert hits == [overlap > threshold for overlap in exact]


def test_coco_ap_against_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    found, truth = random_case(images=30, classes=3)
    metrics = DetectionMetrics(["a", "b", "c"])
    metrics.with_curves = True
    metrics.update(found, truth)
    mine = metrics.compute()
    data = coco.COCO()
    data.dataset = {
        "images": [{"id": target["image_id"]} for target in truth],
        "categories": [{"id": label} for label in (1, 2, 3)],
        "annotations": [
            {
                "id": 1 + 10 * target["image_id"] + place,
                "image_id": target["image_id"],
                "category_id": int(target["labels"][place]),
                "bbox": [*box[:2], box[2] - box[0], box[3] - box[1]],
                "area": (box[2] - box[0]) * (box[3] - box[1]),
                # Difficult objects are neither required nor punished.
                "iscrowd": int(target["difficult"][place]),
            }
            for target in truth
            for place, box in enumerate(target["boxes"].tolist())
        ],
    }
    data.createIndex()
    rows = [
        [image, box[0], box[1], box[2] - box[0], box[3] - box[1], score, label]
        for image, result in enumerate(found)
        for box, score, label in zip(*(result[key].tolist() for key in ("boxes", "scores", "labels")), strict=True)
    ]
    judged = COCOeval(data, data.loadRes(torch.tensor(rows, dtype=torch.float64).numpy()), "bbox")
    judged.evaluate()
    judged.accumulate()
    judged.summarize()
    assert 0 < judged.stats[0] < 1
    assert [mine[name] for name in ("AP", "AP50", "AP75")] == pytest.approx(judged.stats[:3].tolist())
    precision = torch.from_numpy(judged.eval["precision"][:, :, :, 0, -1])  # [overlap, recall, class]
    for metric, overlaps in (("AP", slice(None)), ("AP50", slice(1)), ("AP75", slice(5, 6))):
        of_class = [mine["per_class"][name][metric] for name in "abc"]
        assert of_class == pytest.approx(precision[overlaps].mean(dim=(0, 1)).tolist()), metric
