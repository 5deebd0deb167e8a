"""VOC average precision on cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pliant import distributed
from pliant.engine import DetectionMetrics, VOCAveragePrecision
from pliant.engine.voc_ap import average_precision, match_detections

BOX = [0.0, 0.0, 10.0, 10.0]
FAR = [50.0, 50.0, 60.0, 60.0]


def boxes(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def judge(predictions: list[dict], targets: list[dict], classes: int = 1) -> dict:
    metric = VOCAveragePrecision(classes)
    for prediction, target in zip(predictions, targets, strict=True):
        metric.update([prediction], [target])
    return metric.compute()


def found(*rows: tuple[list[float], float], label: int = 1) -> dict:
    return {
        "boxes": boxes(*(row for row, _ in rows)),
        "scores": torch.tensor([score for _, score in rows]),
        "labels": torch.full((len(rows),), label),
    }


def truth(image_id: int, *rows: list[float], difficult: list[bool] | None = None, label: int = 1) -> dict:
    return {
        "boxes": boxes(*rows),
        "labels": torch.full((len(rows),), label),
        "difficult": torch.tensor(difficult or [False] * len(rows), dtype=torch.bool),
        "image_id": image_id,
    }


def test_false_positive_between_true_positives() -> None:
    # Precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.
    hits = np.array([True, False, True])
    assert average_precision(hits, 2, "area") == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # 1 at the recalls 0 to 0.5 (six points), 2/3 at 0.6 to 1 (five).
    assert average_precision(hits, 2, "11-point") == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def test_eleven_points_include_a_recall_reached_exactly() -> None:
    # Three of ten: recall 0.3 is reached, so four points (0, 0.1, 0.2, 0.3) have precision 1.
    assert average_precision(np.array([True] * 3), 10, "11-point") == pytest.approx(4 / 11)
    assert average_precision(np.array([True] * 3), 10, "area") == pytest.approx(0.3)


def test_nothing_found_is_zero_and_nothing_to_find_is_nan() -> None:
    nothing = np.zeros(0, dtype=bool)
    assert average_precision(nothing, 3, "area") == 0.0
    assert average_precision(nothing, 3, "11-point") == 0.0
    assert math.isnan(average_precision(np.array([False]), 0, "area"))


def test_overlap_must_exceed_the_threshold() -> None:
    # [0, 0, 10, 10] and [0, 0, 10, 5] overlap by exactly one half.
    hit, counts = match_detections(boxes([0, 0, 10, 5]), boxes(BOX), torch.tensor([False]), threshold=0.5)
    assert not hit[0]
    assert counts[0]
    hit, _ = match_detections(boxes([0, 0, 10, 5.1]), boxes(BOX), torch.tensor([False]), threshold=0.5)
    assert hit[0]


def test_second_detection_of_an_object_is_false() -> None:
    result = judge([found((BOX, 0.9), (BOX, 0.8), (FAR, 0.7))], [truth(0, BOX, FAR)])["0.5"]
    # True, false, true, as in the first case.
    assert result["area"] == [pytest.approx(0.5 + 0.5 * 2 / 3)]
    assert result["11-point"] == [pytest.approx((6 + 5 * 2 / 3) / 11)]


def test_duplicate_stays_false_even_if_a_neighbour_is_free() -> None:
    # Both detections overlap the first object most; the second object, also above the threshold, stays free.
    objects = boxes([0, 0, 10, 10], [0, 2, 10, 12])
    hit, _ = match_detections(boxes(BOX, [0, 0.5, 10, 10.5]), objects, torch.tensor([False, False]), 0.5)
    assert hit.tolist() == [True, False]


def test_difficult_objects_are_neither_required_nor_punished() -> None:
    prediction = found((FAR, 0.95), (FAR, 0.93), (BOX, 0.9))
    result = judge([prediction], [truth(0, BOX, FAR, difficult=[False, True])])
    assert result["0.5"]["area"] == [1.0]
    # Were it not difficult, the second detection of it would be a duplicate: 1/1, 1/2, 2/3.
    plain = judge([prediction], [truth(0, BOX, FAR)])
    assert plain["0.5"]["area"] == [pytest.approx(0.5 + 0.5 * 2 / 3)]


def test_ranking_runs_over_all_images() -> None:
    # The false positive of the second image ranks between the true ones.
    predictions = [found((BOX, 0.9)), found((FAR, 0.8), (BOX, 0.7))]
    result = judge(predictions, [truth(4, BOX), truth(9, BOX)])["0.5"]
    assert result["area"] == [pytest.approx(0.5 + 0.5 * 2 / 3)]


def test_classes_and_thresholds_are_apart() -> None:
    # 8 of 10 rows: overlap 0.8 for class 1; 6 of 10 for class 2, above 0.5 but not above 0.7; none of class 3.
    one, two = found(([0, 0, 10, 8], 0.9)), found(([0, 0, 10, 6], 0.9), label=2)
    prediction = {key: torch.cat([one[key], two[key]]) for key in one}
    first, second = truth(0, BOX), truth(0, BOX, label=2)
    target = {
        **{key: torch.cat([first[key], second[key]]) for key in ("boxes", "labels", "difficult")},
        "image_id": 0,
    }
    result = judge([prediction], [target], classes=3)
    assert result["0.5"]["area"][:2] == [1.0, 1.0]
    assert result["0.7"]["area"][:2] == [1.0, 0.0]
    assert math.isnan(result["0.5"]["area"][2])


def test_unequal_numbers_of_images_are_refused() -> None:
    with pytest.raises(ValueError, match="predictions of 1 images and targets of 0"):
        VOCAveragePrecision(1).update([found((BOX, 0.5))], [])


def kit(detections: list[tuple[int, float, list[float]]], truth: dict[int, list[list[float]]]) -> float:
    """The development kit's count, line by line of its file, with numbers and loops alone; area under the curve."""
    lines = sorted(range(len(detections)), key=lambda line: -detections[line][1])  # stable, as MATLAB's sort
    taken = {image: [False] * len(rows) for image, rows in truth.items()}
    hits = []
    for line in lines:
        image, _, box = detections[line]
        best, which = -1.0, -1
        for number, other in enumerate(truth[image]):
            width = min(box[2], other[2]) - max(box[0], other[0])
            height = min(box[3], other[3]) - max(box[1], other[1])
            if width <= 0 or height <= 0:
                continue
            both = width * height
            areas = [(each[2] - each[0]) * (each[3] - each[1]) for each in (box, other)]
            overlap = both / (sum(areas) - both)
            if overlap > best:
                best, which = overlap, number
        hit = best > 0.5 and not taken[image][which]
        if hit:
            taken[image][which] = True
        hits.append(hit)
    positives = sum(map(len, truth.values()))
    points = [(sum(hits[: end + 1]) / positives, sum(hits[: end + 1]) / (end + 1)) for end in range(len(hits))]
    area, reached = 0.0, 0.0
    for recall, _ in points:
        area += (recall - reached) * max(precision for other, precision in points if other >= recall)
        reached = recall
    return area


@pytest.mark.parametrize("ids", ["counted", "given"])
def test_equal_scores_rank_in_the_order_of_the_kits_file(ids: str) -> None:
    # Scores in steps of a fifth: most detections share theirs with others of their image and of other images.
    random = np.random.default_rng(0)
    changed = 0
    for _ in range(60):
        predictions, targets, lines, objects = [], [], [], {}
        for image in range(6):
            corners = random.integers(0, 30, size=(random.integers(1, 4), 2))
            objects[image] = [[*map(float, corner), float(corner[0] + 10), float(corner[1] + 10)] for corner in corners]
            near = [objects[image][random.integers(len(corners))] for _ in range(random.integers(0, 8))]
            rows = [
                ([x + dx, y + dy, x1 + dx, y1 + dy], int(random.integers(1, 6)) / 5)
                for (x, y, x1, y1), (dx, dy) in zip(near, random.integers(-6, 7, size=(len(near), 2)), strict=True)
            ]
            lines += [(image, score, row) for row, score in rows]
            predictions.append(found(*rows))
            target = truth(10 + image, *objects[image])
            if ids == "counted":
                del target["image_id"]
            targets.append(target)
        if not lines:
            continue
        expected = kit(lines, objects)
        metrics = DetectionMetrics(["thing"])
        metrics.update(predictions, targets)
        assert metrics.compute()["VOC_AP50"] == pytest.approx(expected, abs=1e-12)
        by_image = kit(sorted(lines, key=lambda line: -line[0]), objects)
        changed += abs(by_image - expected) > 1e-9
    assert changed > 20  # the order of the images matters in these sets


def test_images_are_counted_where_targets_have_no_id(monkeypatch: pytest.MonkeyPatch) -> None:
    def parts(count: int) -> list[tuple[int, dict, dict]]:
        """What each of some processes adds, in turns as `judge` shares samples."""
        every = [found((BOX, 0.8)), found((FAR, 0.8)), found((FAR, 0.8)), found((BOX, 0.8), (FAR, 0.8))]
        target = {key: value for key, value in truth(0, BOX).items() if key != "image_id"}
        return [(place % count, prediction, target) for place, prediction in enumerate(every)]

    results = []
    for count in (1, 2, 3):
        monkeypatch.setattr(distributed, "count", lambda count=count: count)
        held = []
        for rank in range(count):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            metrics = DetectionMetrics(["thing"])
            for process, prediction, target in parts(count):
                if process == rank:
                    metrics.update([prediction], [target])
            held.append(metrics.evaluated())
        monkeypatch.setattr(distributed, "gather", lambda _, held=held: held)
        results.append(metrics.compute())
        monkeypatch.undo()
    assert results[0]["VOC_AP50"] == results[1]["VOC_AP50"] == results[2]["VOC_AP50"]
    assert results[0]["AP"] == results[1]["AP"] == results[2]["AP"]


def test_ids_are_of_all_images_or_of_none_and_differ() -> None:
    metrics = DetectionMetrics(["thing"])
    without = {key: value for key, value in truth(0, BOX).items() if key != "image_id"}
    with pytest.raises(ValueError, match="image_id must be in the targets of all images or of none"):
        metrics.update([found((BOX, 0.5))] * 2, [truth(0, BOX), without])
    metrics.reset()
    metrics.update([found((BOX, 0.5))] * 2, [truth(3, BOX), truth(3, FAR)])
    with pytest.raises(ValueError, match="image_id must be another number for each image; several have 3"):
        metrics.compute()
    with pytest.raises(ValueError, match="targets need image_id"):
        VOCAveragePrecision(1).update([found((BOX, 0.5))], [without])
