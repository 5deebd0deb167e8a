"""Colours of classes differ, and text on them can be read."""

from __future__ import annotations

import numpy as np

from pliant.pictures.colours import class_colours, has_background, mask_colours, oklab, text_colour


def nearest(number: int) -> float:
    """The smallest distance between two of the colours in OKLab, in which 0.02 can just be seen."""
    lab = oklab(np.array(class_colours(number)))
    return float((np.linalg.norm(lab[:, None] - lab, axis=2) + 9 * np.eye(number)).min())


def test_colours_differ_for_eight_twenty_and_eighty_classes() -> None:
    assert nearest(8) > 0.15
    assert nearest(20) > 0.14
    assert nearest(80) > 0.07


def test_more_classes_keep_the_colours_of_fewer() -> None:
    assert class_colours(30)[:12] == class_colours(12)
    assert len(class_colours(5000)) == 5000
    assert class_colours(0) == []


def test_only_a_first_class_that_is_called_background_is_black() -> None:
    assert mask_colours(["background", "leaf"])[0] == (0, 0, 0)
    assert mask_colours(["__Background__", "leaf"])[1] == class_colours(1)[0]
    assert mask_colours(["road", "background"]) == class_colours(2)
    assert not has_background([])


def test_text_contrasts_with_every_colour() -> None:
    for colour in class_colours(80):
        contrast = np.linalg.norm(oklab(np.array(colour)) - oklab(np.array(text_colour(colour))))
        assert contrast > 0.35
