"""Pictures of results on small, large, bright, dark and crowded images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pliant.pictures import fonts
from pliant.pictures.colours import class_colours, mask_colours
from pliant.pictures.results import draw_boxes, draw_classes, draw_mask

NAMES = ["RBC", "WBC", "Platelets"]


def grey(height: int, width: int, value: int = 120) -> torch.Tensor:
    return torch.full((3, height, width), value, dtype=torch.uint8)


def pixels(picture: Image.Image, colour: tuple[int, ...]) -> int:
    return int((np.asarray(picture) == colour).all(axis=2).sum())


def boxes(*corners: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)


@pytest.mark.parametrize("value", [0, 120, 255])
def test_a_box_has_its_line_its_edge_and_its_label(value: int) -> None:
    picture = draw_boxes(grey(400, 600, value), boxes((100, 100, 300, 250)), torch.tensor([2]), NAMES, torch.ones(1))
    assert picture.size == (600, 400)
    drawn = np.asarray(picture)
    assert tuple(drawn[101, 200]) == class_colours(3)[1]  # the upper line
    assert tuple(drawn[99, 200]) in ((0, 0, 0), (255, 255, 255))
    label = drawn[80:99, 100:160]
    assert (label == class_colours(3)[1]).all(axis=2).mean() > 0.5
    assert tuple(drawn[180, 200]) == (value,) * 3  # the inside is free


def test_lines_and_text_grow_with_the_image() -> None:
    def filled(side: int) -> float:
        place = boxes((0.3 * side, 0.3 * side, 0.8 * side, 0.8 * side))
        picture = draw_boxes(grey(side, side), place, torch.tensor([1]), NAMES, torch.ones(1))
        return pixels(picture, class_colours(3)[0]) / side**2

    assert filled(3000) == pytest.approx(filled(750), rel=0.15)


def test_a_small_image_is_enlarged_by_a_whole_factor() -> None:
    image = torch.randint(0, 255, (3, 60, 50), dtype=torch.uint8)
    picture = draw_boxes(image, boxes(), torch.zeros(0, dtype=torch.int64), NAMES, torch.zeros(0))
    assert picture.size == (300, 360)
    assert np.array_equal(np.asarray(picture)[3::6, 3::6], image.permute(1, 2, 0).numpy())


def test_labels_of_boxes_at_the_edges_lie_in_the_picture() -> None:
    places = boxes((-5, -5, 80, 60), (550, 0, 600, 70), (0, 360, 60, 400), (530, 330, 620, 410))
    picture = draw_boxes(grey(400, 600), places, torch.tensor([1, 1, 1, 1]), NAMES, torch.ones(4))
    apart = draw_boxes(grey(400, 600), places + 0, torch.tensor([1, 1, 1, 1]), NAMES)
    whole = draw_boxes(grey(400, 600), boxes((200, 200, 300, 300)), torch.tensor([1]), NAMES, torch.ones(1))
    line = draw_boxes(grey(400, 600), boxes((200, 200, 300, 300)), torch.tensor([1]), NAMES)
    assert picture.size == apart.size == (600, 400)
    colour = class_colours(3)[0]
    assert pixels(picture, colour) > 3 * (pixels(whole, colour) - pixels(line, colour))


def test_a_crowd_gets_scores_alone_and_a_legend_with_counts() -> None:
    corner = torch.rand(150, 2, generator=torch.Generator().manual_seed(0)) * 350
    places = torch.cat((corner, corner + 25), dim=1)
    labels = torch.arange(150) % 3 + 1
    picture = draw_boxes(grey(400, 400), places, labels, NAMES, torch.linspace(0.5, 1, 150))
    assert picture.height > 400
    legend = picture.crop((0, 400, picture.width, picture.height))
    for colour in class_colours(3):
        assert pixels(legend, colour) > 50
    assert pixels(picture.crop((0, 0, 400, 400)), (120, 120, 120)) > 0.2 * 400**2  # the image can still be seen


def test_masks_colour_class_0_unless_it_is_the_background() -> None:
    ids = torch.zeros(400, 400, dtype=torch.uint8)
    ids[:, 200:], ids[:50] = 1, 255
    real, background = (draw_mask(grey(400, 400), ids, [name, "leaf"]) for name in ("road", "background"))
    assert tuple(np.asarray(background)[300, 100]) == (120, 120, 120)
    assert tuple(np.asarray(real)[300, 100]) != (120, 120, 120)
    for picture in (real, background):
        assert tuple(np.asarray(picture)[20, 100]) == (120, 120, 120)  # 255 is no class
        assert picture.height > 400
    legend = real.crop((0, 400, 400, real.height))
    assert all(pixels(legend, colour) > 50 for colour in mask_colours(["road", "leaf"]))


def test_the_legend_shows_only_classes_of_the_picture_in_as_many_lines_as_needed() -> None:
    names = [f"a class of number {number}" for number in range(80)]
    few = draw_mask(grey(400, 400), torch.full((400, 400), 7, dtype=torch.uint8), names)
    many = draw_mask(grey(400, 400), (torch.arange(160000) % 80).reshape(400, 400).byte(), names)
    assert few.height < 440
    assert many.height > 800


def test_names_that_are_too_long_are_shortened() -> None:
    picture = draw_boxes(grey(60, 400), boxes((5, 5, 50, 50)), torch.tensor([1]), ["x" * 300], torch.ones(1))
    assert picture.size == (400, 60)
    one, other = (fonts.shortened("Tomato leaves with " + "x" * 300 + end, 12, 100) for end in ("rust", "mould"))
    assert "…" in one
    assert one.startswith("Tomato")
    assert one != other
    assert all(80 < fonts.width(text, 12) <= 100 for text in (one, other))
    assert draw_classes(grey(60, 60), [("x" * 300, 0.5)]).width == 360


def test_a_name_without_a_font_is_shown_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    fonts.font_file.cache_clear()
    monkeypatch.setattr(fonts, "_system_fonts", lambda: ())
    names = ["эритроцит", "白血球", "a\nb"]
    assert fonts.names_to_draw(names) == ["эритроцит", "class 2", "a\\nb"]
    assert fonts.undrawable(names) == ["白血球"]
    picture = draw_boxes(grey(400, 400), boxes((50, 50, 90, 90)), torch.tensor([2]), names, torch.ones(1))
    fonts.font_file.cache_clear()
    assert pixels(picture, class_colours(3)[1]) > 500


def test_a_system_font_is_used_where_the_usual_one_lacks_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    fonts.font_file.cache_clear()
    broken, other = Path("no.ttf"), Path(fonts._USUAL.with_name("DejaVuSansMono.ttf"))
    monkeypatch.setattr(fonts, "_system_fonts", lambda: (broken, other))
    usual = fonts._characters
    lacking = frozenset(usual(fonts._USUAL) - {ord("Ж")})
    monkeypatch.setattr(fonts, "_characters", lambda path: lacking if path == fonts._USUAL else usual(path))
    assert fonts.font_file("Ж") == other
    assert fonts.font_file("Z") == fonts._USUAL
    fonts.font_file.cache_clear()


def test_the_best_classes_have_bars_in_proportion() -> None:
    picture = np.asarray(draw_classes(grey(400, 400), [("a", 0.75), ("b", 0.25)]))
    below = picture[400:]
    first = below[8]
    assert (first[:290] < 255).any(axis=1).all()
    assert (first[310:320] == 255).all()
