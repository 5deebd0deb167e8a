from __future__ import annotations

import pytest
import torch

from pliant.models.anchors import Anchors, assign, fitted_scales

# The authors' nine, by first and last pixel, as their generator prints them for the cell at the origin.
AUTHORS = [
    [-84, -40, 99, 55],
    [-176, -88, 191, 103],
    [-360, -184, 375, 199],
    [-56, -56, 71, 71],
    [-120, -120, 135, 135],
    [-248, -248, 263, 263],
    [-36, -80, 51, 95],
    [-80, -168, 95, 183],
    [-168, -344, 183, 359],
]


def test_the_first_cell_has_the_authors_anchors() -> None:
    expected = torch.tensor(AUTHORS, dtype=torch.float32) + torch.tensor([0, 0, 1, 1])
    torch.testing.assert_close(Anchors((8, 16, 32)).on(torch.zeros(1, 1, 1, 1)), expected)


def test_anchors_go_row_by_row_sixteen_pixels_apart() -> None:
    anchors = Anchors((1, 2)).on(torch.zeros(1, 1, 2, 3)).view(2, 3, 6, 4)
    step = anchors - anchors[:1, :1]
    for row in range(2):
        for column in range(3):
            expected = torch.tensor([16.0 * column, 16 * row, 16 * column, 16 * row])
            torch.testing.assert_close(step[row, column], expected.expand(6, 4))


def test_what_anchors_stand_for() -> None:
    anchors = torch.tensor(
        [
            [0.0, 0, 10, 10],  # the object itself
            [0, 0, 10, 8],  # IoU 0.8
            [0, 0, 10, 5],  # IoU 0.5: neither
            [0, 0, 2, 10],  # IoU 0.2: background
            [-1, 0, 9, 10],  # crosses the border
            [20, 20, 32, 30],  # the best of the second object, IoU 0.4
            [30, 30, 41, 40],  # crosses the border
        ]
    )
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 50, 30]])
    target = {"boxes": boxes, "labels": torch.tensor([3, 7])}
    labels, of = assign(anchors, target, (40, 40))
    assert labels.tolist() == [3, 3, -1, 0, -1, 7, -1]
    torch.testing.assert_close(of[[0, 1, 5]], boxes[[0, 0, 1]])


def test_without_objects_what_lies_inside_is_background() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [35, 0, 45, 10]])
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    assert assign(anchors, target, (40, 40))[0].tolist() == [0, -1]


def test_an_object_that_no_anchor_meets_takes_none() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10]])
    target = {"boxes": torch.tensor([[20.0, 20, 30, 30]]), "labels": torch.tensor([1])}
    assert assign(anchors, target, (40, 40))[0].tolist() == [0]


def squares(*sides: float) -> torch.Tensor:
    corners = torch.tensor(sides)[:, None]
    return torch.cat((torch.full((len(sides), 2), 5.0), (corners + 5).expand(-1, 2)), dim=1)


def test_fitted_scales_cover_rare_classes_as_well_as_frequent_ones() -> None:
    # 100 objects of 64 pixels, and one each of 16 and 256 pixels in classes of their own.
    boxes = squares(*[64.0] * 100, 16.0, 256.0)
    labels = torch.tensor([1] * 100 + [2, 3])
    assert fitted_scales(boxes, labels) == (1.0, 2.0, 4.0, 8.0, 16.0)
    assert fitted_scales(boxes, labels, number=3) == (1.0, 4.0, 16.0)
    # In one class they are outliers.
    assert fitted_scales(boxes, torch.ones(102, dtype=torch.int64))[0] > 2.5


def test_fitted_scales_ignore_shape_and_outliers() -> None:
    wide = torch.tensor([[0.0, 0.0, 128.0, 8.0]])  # the area of a square of 32 pixels
    assert fitted_scales(wide, torch.tensor([1]), number=1) == fitted_scales(squares(32.0), torch.tensor([1]), number=1)
    sides = [32.0] * 49 + [1000.0] + [16.0] * 50
    assert fitted_scales(squares(*sides), torch.ones(100, dtype=torch.int64), number=2) == (1.0, 2.0)


def test_objects_of_one_size_get_anchors_around_it() -> None:
    scales = fitted_scales(squares(*[48.0] * 20), torch.ones(20, dtype=torch.int64))
    assert scales[2] == 3.0
    assert scales[-1] / scales[0] == pytest.approx(2, abs=0.02)
    assert len(set(scales)) == 5


def test_fitted_scales_need_boxes() -> None:
    with pytest.raises(ValueError, match="there are none"):
        fitted_scales(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


def test_scales_may_be_fractions() -> None:
    anchors = Anchors((0.5, 1.25)).on(torch.zeros(1, 1, 1, 1))
    torch.testing.assert_close(anchors[2], torch.tensor([4.0, 4.0, 12.0, 12.0]))
    torch.testing.assert_close(anchors[3], torch.tensor([-2.0, -2.0, 18.0, 18.0]))
