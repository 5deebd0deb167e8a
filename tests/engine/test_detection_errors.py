"""Confusions of a detector on scenes whose counts are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pliant.engine.detection_errors import best_threshold, confusion, f1, total
from pliant.engine.metrics import DetectionMetrics, EvaluatedImage

A, B, C = (0.0, 0.0, 10.0, 10.0), (20.0, 20.0, 40.0, 40.0), (60.0, 60.0, 70.0, 70.0)


def image(
    found: list[tuple[tuple[float, ...], int, float]], truth: list[tuple[tuple[float, ...], int]], **flags: list[bool]
) -> EvaluatedImage:
    return EvaluatedImage(
        0,
        {
            "boxes": torch.tensor([box for box, _, _ in found]).reshape(-1, 4),
            "labels": torch.tensor([label for _, label, _ in found], dtype=torch.int64),
            "scores": torch.tensor([score for _, _, score in found]),
        },
        {
            "boxes": torch.tensor([box for box, _ in truth]).reshape(-1, 4),
            "labels": torch.tensor([label for _, label in truth], dtype=torch.int64),
            **{name: torch.tensor(values) for name, values in flags.items()},
        },
    )


def test_right_confused_missed_and_false() -> None:
    scene = image([(A, 1, 0.9), (B, 1, 0.8), ((80.0, 0.0, 90.0, 9.0), 2, 0.7)], [(A, 1), (B, 2), (C, 2)])
    counts = confusion(scene, 2, 0.5)
    assert counts.tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]
    assert f1(counts) == pytest.approx(2 / 6)
    assert total([counts, counts], 2).tolist() == (2 * counts).tolist()
    assert total([], 2).tolist() == [[0] * 3] * 3


def test_scores_below_the_threshold_do_not_count_and_those_equal_to_it_do() -> None:
    scene = image([(A, 1, 0.5), (B, 1, 0.49)], [(A, 1)])
    assert confusion(scene, 1, 0.5).tolist() == [[1, 0], [0, 0]]


def test_the_own_class_goes_first_and_an_object_is_found_once() -> None:
    near = (0.0, 0.0, 10.0, 9.0)
    scene = image([(A, 2, 0.9), (near, 1, 0.6), (near, 1, 0.5)], [(A, 1)])
    assert confusion(scene, 2, 0.1).tolist() == [[1, 0, 0], [0, 0, 0], [1, 1, 0]]


@pytest.mark.parametrize("flag", ["difficult", "iscrowd"])
def test_ignored_objects_are_neither_missed_nor_make_detections_false(flag: str) -> None:
    scene = image([(A, 1, 0.9), (A, 1, 0.8)], [(A, 1), (B, 1)], **{flag: [True, True]})
    assert confusion(scene, 1, 0.5).sum() == 0
    assert f1(confusion(scene, 1, 0.5)) == 1


def test_an_overlap_below_one_half_finds_nothing() -> None:
    assert confusion(image([((0.0, 0.0, 10.0, 4.9), 1, 0.9)], [(A, 1)]), 1, 0.5).tolist() == [[0, 1], [1, 0]]
    assert confusion(image([((0.0, 0.0, 10.0, 5.0), 1, 0.9)], [(A, 1)]), 1, 0.5).tolist() == [[1, 0], [0, 0]]


def test_the_threshold_parts_right_detections_from_false_ones() -> None:
    metrics = DetectionMetrics(("a", "b"))
    metrics.with_curves = True
    scene = image(
        [(A, 1, 0.8), (B, 2, 0.63), (C, 1, 0.4), ((80.0, 0.0, 90.0, 9.0), 2, 0.3), ((80.0, 40.0, 90.0, 49.0), 2, 0.3)],
        [(A, 1), (B, 2)],
    )
    metrics.update([scene.found], [{**scene.truth, "image_id": 0}])
    metrics.compute()
    assert metrics.curves is not None
    assert metrics.curves.labels == [1, 2]
    assert metrics.curves.precision.shape == (10, 101, 2)
    assert np.allclose(metrics.curves.precision[0], 1)
    chosen = best_threshold(metrics.curves)
    assert f1(confusion(scene, 2, 0.41)) == 1
    assert f1(confusion(scene, 2, chosen)) >= f1(confusion(scene, 2, 0.3))
    metrics.with_curves = False
    metrics.compute()
    assert metrics.curves is None


def test_without_a_right_detection_the_threshold_is_one_half() -> None:
    metrics = DetectionMetrics(("a",))
    metrics.with_curves = True
    scene = image([(C, 1, 0.9)], [(A, 1)])
    metrics.update([scene.found], [scene.truth])
    metrics.compute()
    assert metrics.curves is not None
    assert best_threshold(metrics.curves) == 0.5
