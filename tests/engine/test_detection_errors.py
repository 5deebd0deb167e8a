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
    far = [((80.0, 9.0 * place, 90.0, 9.0 * place + 8), 1 + place % 2, 0.3) for place in range(9)]
    scene = image([(A, 1, 0.8), (B, 2, 0.43), (C, 1, 0.4), *far], [(A, 1), (B, 2)])
    chosen = best_threshold([scene, scene], 2)
    assert chosen == 0.41
    assert f1(confusion(scene, 2, chosen)) == 1


def test_the_threshold_is_the_best_of_all_by_counting() -> None:
    generator = torch.Generator().manual_seed(0)
    scenes = []
    for _ in range(20):
        corner = torch.rand(8, 2, generator=generator) * 60
        truth = torch.cat((corner, corner + 20), dim=1)
        found = truth + torch.randn(8, 4, generator=generator) * 4
        labels = torch.randint(1, 3, (8,), generator=generator)
        confused = torch.where(torch.rand(8, generator=generator) < 0.7, labels, 3 - labels)
        scores = torch.rand(8, generator=generator)
        flags = torch.rand(8, generator=generator) < 0.2
        scenes.append(
            EvaluatedImage(
                0,
                {"boxes": found, "labels": confused, "scores": scores},
                {"boxes": truth, "labels": labels, "difficult": flags},
            )
        )

    def mean_f1(threshold: float) -> float:
        counts = total([confusion(scene, 2, threshold) for scene in scenes], 2).double()
        return float((2 * counts.diagonal()[:2] / (counts.sum(dim=0) + counts.sum(dim=1))[:2]).mean())

    best = max(mean_f1(step / 100) for step in range(1, 100))
    assert mean_f1(best_threshold(scenes, 2)) == pytest.approx(best, abs=0.02)


def test_without_a_right_detection_the_threshold_is_one_half() -> None:
    assert best_threshold([image([(C, 1, 0.9)], [(A, 1)])], 1) == 0.5
    assert best_threshold([], 1) == 0.5


def test_curves_are_kept_when_they_are_asked_for() -> None:
    metrics = DetectionMetrics(("a", "b"))
    scene = image([(A, 1, 0.8), (B, 2, 0.6)], [(A, 1), (B, 2)])
    metrics.update([scene.found], [scene.truth])
    metrics.compute()
    assert metrics.curves is None
    metrics.with_curves = True
    metrics.compute()
    assert metrics.curves is not None
    assert metrics.curves.labels == [1, 2]
    assert metrics.curves.precision.shape == (10, 101, 2)
    assert np.allclose(metrics.curves.precision[0], 1)
