"""Labels stay in the picture, and avoid each other where there is room."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pliant.pictures.labels import Labels

PICTURE = (200, 150)
box = st.tuples(st.floats(-50, 250), st.floats(-50, 200), st.floats(0, 300), st.floats(0, 300))


@given(st.lists(box, min_size=1, max_size=12), st.integers(1, 200), st.integers(1, 150))
def test_every_label_lies_in_the_picture(boxes: list[tuple[float, ...]], width: int, height: int) -> None:
    corners = np.array([(x, y, x + w, y + h) for x, y, w, h in boxes])
    labels = Labels(corners, PICTURE)
    for each in corners.tolist():
        (x, y), hidden = labels.best(each, width, height)
        assert 0 <= x <= PICTURE[0] - width
        assert 0 <= y <= PICTURE[1] - height
        assert hidden >= 0
        labels.add((x, y), width, height)


def test_two_boxes_with_the_same_corner_get_labels_beside_each_other() -> None:
    boxes = np.array([[50.0, 50.0, 120.0, 120.0], [50.0, 50.0, 110.0, 110.0]])
    labels = Labels(boxes, PICTURE)
    first, _ = labels.best(boxes[0].tolist(), 40, 12)
    assert first == (50, 38)  # above the upper left corner, where people look for it
    labels.add(first, 40, 12)
    second, hidden = labels.best(boxes[1].tolist(), 40, 12)
    assert hidden == 0
    assert second != first


def test_a_label_does_not_cover_a_small_object_beside_its_box() -> None:
    boxes = np.array([[50.0, 50.0, 120.0, 120.0], [52.0, 40.0, 60.0, 48.0]])
    (x, y), _ = Labels(boxes, PICTURE).best(boxes[0].tolist(), 40, 12)
    assert (x, y) == (80, 38)  # above the other corner
