"""An HTML page that works offline and shows where the units of a network sample."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from pliant.introspect.recording import Step, Window
from pliant.introspect.roi_parts import RoIParts
from pliant.introspect.sampling_points import Trace

_OFFSET_BYTES = 2_500_000  # per image
_LONGEST_SIDE = 1600  # of the embedded picture, in pixels


@dataclass(frozen=True)
class PageImage:
    """What the page shows of one image.

    Attributes:
        name: name of the image, such as its file name.
        picture: the area that the network saw, uint8 `[3, h, w]` in any resolution.
        trace: trace of the network on the image. All coordinates are pixels of the image that was traced.
        start: position (y, x) that is shown first, by default the centre.
        boxes, labels, scores: the detections.
        parts: parts of the detections, for each layer of deformable RoI pooling.
        part_classes: names of the classes that may have their own offsets, the background first.
        overlay: picture to lay over the image, uint8 `[4, h, w]` (red, green, blue, opacity).
        colours: the name and colour (red, green, blue in 0..255) of each class in `overlay`.
    """

    name: str
    picture: Tensor
    trace: Trace
    start: tuple[float, float] | None = None
    boxes: Tensor = field(default_factory=lambda: torch.zeros(0, 4))
    labels: Sequence[str] = ()
    scores: Sequence[float] = ()
    parts: Sequence[RoIParts] = ()
    part_classes: Sequence[str] = ()
    overlay: Tensor | None = None
    colours: Sequence[tuple[str, tuple[int, int, int]]] = ()


@dataclass(frozen=True)
class PageTable:
    """A table below the images.

    Attributes:
        title: heading above the table.
        note: text below the table.
        columns: headings of the columns.
        rows: cells as text.
    """

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_page(path: Path, title: str, images: Sequence[PageImage], tables: Sequence[PageTable] = ()) -> None:
    """Write an HTML file that contains everything it shows and needs no server, other file or network connection.

    The page composes sampling points from offsets exactly as `Trace.points` does. Offsets are stored as 16-bit integers
    relative to the largest of the layer. Of the main branch to the last deformable layer, the page contains as many
    layers from the top as fit in 2.5 MB per image, and at least one.

    Args:
        path: the file to write.
        title: title of the page.
        images: at least one image.
        tables: tables below the images.

    Raises:
        ValueError: if there is no image.
    """
    if not images:
        raise ValueError("a page needs at least one image")
    data = {
        "title": title,
        "images": [_image(image) for image in images],
        "tables": [vars(table) for table in tables],
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
    page = environment.from_string(_part("look.html")).render(data=data, part=_part)
    path.write_text(page, encoding="utf-8")


def _part(name: str) -> Markup:
    return Markup(files("pliant.introspect").joinpath(name).read_text(encoding="utf-8"))


def _image(image: PageImage) -> dict[str, Any]:
    height, width = image.trace.image_size
    detections = [
        {"box": [round(value, 1) for value in box], "label": label, "score": round(score, 4)}
        for box, label, score in zip(image.boxes.tolist(), image.labels, image.scores, strict=True)
    ]
    return {
        "name": image.name,
        "width": width,
        "height": height,
        "picture": _embedded(image.picture, "JPEG", quality=88),
        "overlay": None if image.overlay is None else _embedded(image.overlay, "PNG", optimize=True),
        "colours": [[name, "#{:02x}{:02x}{:02x}".format(*colour)] for name, colour in image.colours],
        "start": image.start or (height / 2, width / 2),
        "layers": _layers(image.trace),
        "detections": detections,
        "pools": [_pool(parts, image.part_classes) for parts in image.parts],
    }


def _layers(trace: Trace) -> list[dict[str, Any]]:
    """The deformable layers of the main branch from the top, each with the plain windows down to the next one."""
    layers: list[dict[str, Any]] = []
    room = _OFFSET_BYTES
    for step in trace.step().chain() if trace.layers else ():
        if step.window is None or step.below is None:
            break
        offset = step.window.offset
        if offset is not None:
            room -= 2 * offset.numel()
            if layers and room < 0:
                break
            below = _scale_and_shift(trace, step.below)
            head = {"name": step.name, "size": step.size, "groups": len(offset), "windows": []}
            layers.append(head | {"output": _scale_and_shift(trace, step), "input": below})
        layers[-1]["windows"].append(_window(step.window, step.below))
    return layers


def _window(window: Window, below: Step) -> dict[str, Any]:
    numbers = {name: getattr(window, name) for name in ("kernel", "stride", "padding", "dilation")}
    offset = {} if window.offset is None else {"offset": _packed(window.offset)}
    return numbers | {"map": below.size} | offset


def _scale_and_shift(trace: Trace, step: Step) -> list[float]:
    return torch.cat(trace.centring(step)).tolist()


def _pool(parts: RoIParts, classes: Sequence[str]) -> dict[str, Any]:
    kinds = parts.parts.shape[1]
    names = list(classes) if len(classes) == kinds else [f"{kind}" for kind in range(kinds)]
    return {
        "name": parts.layer,
        "classes": names if kinds > 1 else ["all"],
        "regular": _packed(parts.regular),
        "parts": _packed(parts.parts),
    }


def _packed(values: Tensor) -> dict[str, Any]:
    """Numbers as little-endian 16-bit integers times a step; values that are not finite become 0."""
    numbers = values.double().nan_to_num(0, 0, 0)
    step = max(float(numbers.abs().max()) if numbers.numel() else 0.0, 1e-6) / 32767
    integers = np.asarray((numbers / step).round(), dtype="<i2")
    return {"shape": list(values.shape), "step": step, "data": base64.b64encode(integers.tobytes()).decode()}


def _embedded(picture: Tensor, form: str, **options: Any) -> str:
    """A picture `[C, h, w]` as a data URI."""
    image = Image.fromarray(np.asarray(picture.permute(1, 2, 0).contiguous()))
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
