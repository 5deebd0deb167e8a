"""The page in a real browser, against the points that Python computes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from introspect.browser import PROGRAM, Browser
from torch import Tensor, nn

from pliant.introspect import RoIParts, SamplingPoints, Trace, roi_parts
from pliant.introspect.page import PageImage, PageTable, write_page
from pliant.nn import DeformConv2d, DeformPSRoIPool

needs_browser = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here; Debian's package is chromium")
HEIGHT, WIDTH = 60, 84
MOVED, PLAIN = (213, 94, 0), (0, 114, 178)
# The canvas' pixels of a colour, (x, y).
PIXELS = """(() => {
  const {data, width} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height), found = [];
  for (let at = 0; at < data.length; at += 4)
    if (data[at] === %d && data[at + 1] === %d && data[at + 2] === %d && data[at + 3] === 255)
      found.push([at / 4 %% width, Math.floor(at / 4 / width)]);
  return found;
})()"""


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.low = DeformConv2d(4, 4, 3, padding=2, dilation=2, offset_groups=2)
        self.between = nn.AvgPool2d(2, stride=2)
        self.high = DeformConv2d(4, 8, 3, padding=1, offset_groups=2)
        self.pool = DeformPSRoIPool(8, 2, 1 / 4, offset_classes=2)
        for branch in (self.low.offset_conv, self.high.offset_conv, self.pool.offset_conv):
            nn.init.normal_(branch.bias, std=0.8)
            nn.init.normal_(branch.weight, std=0.2)

    def forward(self, images: Tensor) -> Tensor:
        features = self.high(self.between(self.low(self.stem(images))))
        return self.pool(features, features, [torch.tensor([[8.0, 8.0, 40.0, 52.0]])])


@pytest.fixture(scope="module")
def trace_and_parts() -> tuple[Trace, list[RoIParts]]:
    torch.manual_seed(3)
    model, image = Network(), torch.rand(3, HEIGHT, WIDTH)
    return Trace(model, image), roi_parts(model, image, torch.tensor([[8.0, 8, 40, 52], [44, 4, 80, 40]]))


@pytest.fixture(scope="module")
def page(trace_and_parts: tuple[Trace, list[RoIParts]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    trace, parts = trace_and_parts
    picture = torch.randint(0, 256, (3, 2 * HEIGHT, 2 * WIDTH), dtype=torch.uint8)
    image = PageImage(
        "first </script>",
        picture,
        trace,
        boxes=parts[0].rois,
        labels=["cat", "dog <b>"],
        scores=[0.75, 0.5],
        parts=parts,
        part_classes=("background", "cat"),
    )
    overlay = torch.full((4, 20, 28), 99, dtype=torch.uint8)
    bare = PageImage("second", picture, trace, overlay=overlay, colours=[("leaf <b>", (230, 159, 0))])
    path = tmp_path_factory.mktemp("page") / "look.html"
    table = PageTable("What it costs", "a note", ("", "plain", "deformable"), [("parameters", "1", "2")])
    write_page(path, "a network", [image, bare], [table])
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


def stage(browser: Browser) -> dict[str, float]:
    return browser.evaluate(
        "(({left, top, width}) => ({left, top, css: width / now().width, pixels: canvas.width / now().width}))"
        "(stage.getBoundingClientRect())"
    )


def on_screen(place: dict[str, float], at: tuple[float, float]) -> tuple[float, float]:
    return place["left"] + at[1] * place["css"], place["top"] + at[0] * place["css"]


def assert_drawn(browser: Browser, found: SamplingPoints, place: dict[str, float], radius: float) -> None:
    """The points, and nothing else, are there in their colour; the ring of the unit may cover some."""
    drawn = torch.tensor(browser.evaluate(PIXELS % MOVED)).double() + 0.5
    points = found.pixels[found.inside].flip(1) * place["pixels"]  # (x, y) on the canvas
    assert torch.cdist(drawn, points).amin(dim=1).max() <= radius + 1
    size = torch.tensor([WIDTH, HEIGHT]) * place["pixels"]
    seen = ((points > 1) & (points < size - 1)).all(dim=1)
    ratio = place["pixels"] / place["css"]
    seen &= (points - found.unit.flip(0) * place["pixels"]).norm(dim=1) > 14 * ratio
    assert seen.sum() >= 4
    assert torch.cdist(points[seen], drawn).amin(dim=1).max() <= 0.75


@needs_browser
@pytest.mark.parametrize("ratio", [1, 2])
def test_a_click_draws_the_points_that_python_computes(
    browser: Browser, page: Path, trace_and_parts: tuple[Trace, list[RoIParts]], ratio: int
) -> None:
    trace, _ = trace_and_parts
    browser.open(page, 1100, 700, ratio=ratio)
    place = stage(browser)
    assert place["pixels"] == pytest.approx(ratio * place["css"], rel=1e-3)
    at = (33.0, 41.0)
    browser.click(*on_screen(place, at))
    unit = trace.nearest(at)
    assert browser.evaluate("unit()") == list(unit)
    assert_drawn(browser, trace.points(unit, 2), place, 4 * ratio)
    browser.press("g")
    assert_drawn(browser, trace.points(unit, 2, offset_group=1), place, 4 * ratio)
    browser.press("1")
    assert_drawn(browser, trace.points(unit, 1, offset_group=1), place, 6 * ratio)
    plain = torch.tensor(browser.evaluate(PIXELS % PLAIN)).double() + 0.5
    regular = trace.points(unit, 1, regular=True).pixels.flip(1) * place["pixels"]
    assert torch.cdist(plain, regular).amin(dim=1).max() < 10 * ratio
    browser.press("p")
    assert browser.evaluate(PIXELS % PLAIN) == []
    assert browser.errors == []


@needs_browser
def test_pointing_previews_and_keys_move(
    browser: Browser, page: Path, trace_and_parts: tuple[Trace, list[RoIParts]]
) -> None:
    trace, _ = trace_and_parts
    browser.open(page, 1100, 700)
    place = stage(browser)
    row, column = trace.nearest((30.0, 42.0))  # the middle comes first
    assert browser.evaluate("unit()") == [row, column]
    browser.mouse("mouseMoved", *on_screen(place, (10.0, 70.0)))
    assert_drawn(browser, trace.points(trace.nearest((10.0, 70.0)), 2), place, 4)
    browser.mouse("mouseMoved", 3, 3)
    assert_drawn(browser, trace.points((row, column), 2), place, 4)
    for key in ("ArrowRight", "ArrowRight", "ArrowUp"):
        browser.press(key)
    assert_drawn(browser, trace.points((row - 1, column + 2), 2), place, 4)
    browser.press("l")
    lower = trace.nearest(tuple(trace.points((row - 1, column + 2), 1).unit.tolist()), "low")
    assert browser.evaluate("unit()") == list(lower)
    assert_drawn(browser, trace.points(lower, 1, layer="low"), place, 6)
    text = browser.evaluate("byId('where').textContent")
    assert "9 points" in text
    browser.evaluate("document.querySelector('#controls button').focus()")
    browser.press("p")
    assert browser.evaluate("document.activeElement.textContent") == "sampling points"
    browser.press("n")
    assert browser.evaluate("byId('title').textContent") == "a network · second"
    assert browser.evaluate("byId('overlay').hidden") is False
    assert browser.errors == []


@needs_browser
def test_parts_of_a_detection_move_with_the_class(
    browser: Browser, page: Path, trace_and_parts: tuple[Trace, list[RoIParts]]
) -> None:
    _, (parts,) = trace_and_parts
    browser.open(page, 1100, 700)
    place = stage(browser)
    browser.press("r")
    browser.click(*on_screen(place, (20.0, 60.0)))
    assert browser.evaluate("state.detection") == 1
    for kind in (0, 1):  # a dog has no offsets of its own here
        assert browser.evaluate("shownKind(now().pools[0])") == kind
        drawn = torch.tensor(browser.evaluate(PIXELS % MOVED)).double() + 0.5
        boxes = parts.parts[1, kind].reshape(-1, 4) * place["pixels"]
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        assert torch.cdist(centres, drawn).amin(dim=1).max() <= 0.75
        other = parts.parts[1, 1 - kind].reshape(-1, 4) * place["pixels"]
        assert torch.cdist((other[:, :2] + other[:, 2:]) / 2, drawn).amin(dim=1).max() > 2
        browser.press("c")
    browser.press("ArrowLeft")
    assert browser.evaluate("byId('where').textContent") == "cat 0.75: 2 × 2 parts, with the offsets of cat"
    assert browser.errors == []


@needs_browser
def test_on_a_phone_a_tap_chooses_and_nothing_sticks_out(
    browser: Browser, page: Path, trace_and_parts: tuple[Trace, list[RoIParts]]
) -> None:
    trace, _ = trace_and_parts
    browser.open(page, 390, 844, ratio=2, phone=True)
    place = stage(browser)
    at = (22.0, 30.0)
    browser.tap(*on_screen(place, at))
    assert_drawn(browser, trace.points(trace.nearest(at), 2), place, 4 * 2)
    assert browser.evaluate("document.documentElement.scrollWidth") == 390
    assert browser.errors == []


@needs_browser
def test_signs_and_colours_are_explained(browser: Browser, page: Path) -> None:
    browser.open(page, 1100, 700)
    legend, meaning = "byId('legend').textContent", "byId('meaning').textContent"
    for words in ("the unit", "positions that it samples", "detections, with their classes"):
        assert words in browser.evaluate(legend)
    assert "In a new network all offsets are zero" in browser.evaluate(meaning)
    browser.press("r")
    assert "how far a part has moved" in browser.evaluate(legend)
    assert "In a new network no part has moved" in browser.evaluate(meaning)
    browser.press("n")
    assert "leaf <b>" in browser.evaluate(legend)
    assert "#e69f00" in browser.evaluate("byId('legend').innerHTML")
    browser.press("d")
    assert "leaf" not in browser.evaluate(legend)
    assert browser.errors == []


def test_the_page_holds_everything(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "http" not in re.sub(r"data:[^\"]*", "", text)
    assert "first </script>" not in text
    assert "{{" not in text
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    assert "first </script>" in {image["name"] for image in json.loads(found[1])["images"]}


def test_large_layers_are_left_out_from_below(
    trace_and_parts: tuple[Trace, list[RoIParts]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pliant.introspect import page as module

    def names() -> list[Any]:
        return [layer["name"] for layer in module._layers(trace_and_parts[0])]

    assert names() == ["high", "low"]
    monkeypatch.setattr(module, "_OFFSET_BYTES", 40_000)
    assert names() == ["high"]


def test_a_page_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one image"):
        write_page(tmp_path / "look.html", "nothing", [])
    assert not list(tmp_path.iterdir())
