import math

import pytest

from pliant.data.box_checks import clip, degenerate, normalised


@pytest.mark.parametrize(
    ("corners", "kind"),
    [
        ((1, 2, 3, 4), None),
        ((1, 2, 1, 4), "zero-area box"),
        ((1, 2, 3, 2), "zero-area box"),
        ((3, 2, 1, 4), "inverted box"),
        ((1, 4, 3, 2), "inverted box"),
        ((math.nan, 2, 3, 4), "non-numeric box"),
        ((1, 2, math.inf, 4), "non-numeric box"),
    ],
)
def test_degenerate(corners, kind):
    assert degenerate(corners) == kind


@pytest.mark.parametrize(
    ("numbers", "is_one"),
    [((0.1, 0.2, 0.5, 1), True), ((0, 0, 1, 1), True), ((0, 0, 1, 1.5), False), ((-0.1, 0, 1, 1), False)],
)
def test_normalised(numbers, is_one):
    assert (normalised(numbers) is not None) == is_one


@pytest.mark.parametrize(
    ("corners", "expected"),
    [
        ((0, 0, 40, 30), ((0, 0, 40, 30), None)),
        ((-1, 0, 41, 30), ((0, 0, 40, 30), None)),
        ((-1.5, 0, 20, 30), ((0, 0, 20, 30), "box partly outside")),
        ((10, 5, 50, 31), ((10, 5, 40, 30), "box partly outside")),
        ((40, 0, 50, 30), (None, "box outside")),
        ((0, -9, 40, 0), (None, "box outside")),
        ((1e300, 0, 2e300, 5), (None, "box outside")),
        ((40 - 1e-9, 0, 40, 30), (None, "box outside")),
    ],
)
def test_clip(corners, expected):
    assert clip(corners, height=30, width=40) == expected
