"""`pliant look`: pictures and a page of where trained units sample, where the parts of RoIs move, and what it costs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pliant.console import Console, Progress
from pliant.data import DetectionSet
from pliant.data.images import UnreadableFileError, find_images, read_image
from pliant.introspect import EffectiveDilation, RoIParts, Spread, Trace, compare_with_plain, draw, roi_parts
from pliant.introspect.effective_dilation import GROUPS
from pliant.introspect.page import PageImage, PageTable, write_page
from pliant.nn import DeformConv2d
from pliant.outputs import Outputs, unique_names, without_own
from pliant.runs.files import write_json
from pliant.runs.trained import Trained, load_trained
from pliant.tasks.task import View

_PAGE, _COST, _DILATION = "look.html", "complexity.json", "effective_dilation"
_FORMATS = ("png", "pdf", "svg")
_MOST_ROIS = 6  # in the picture of parts


@dataclass
class Looked:
    """What `look` wrote.

    Attributes:
        page: The file to open in a browser.
        outputs: The files that may be written.
        pictures: All pictures, in every format.
        failed: The reason for each image that could not be read.
    """

    page: Path
    outputs: Outputs
    pictures: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def drawing(self, name: str) -> Iterator[list[Path]]:
        """Yield the paths to draw a picture to, one for each format."""
        files = [f"{name}.{ending}" for ending in _FORMATS]
        with self.outputs.writing(*files) as places:
            yield places
        self.pictures += [self.page.with_name(file) for file in files]

    def write(self, name: str, content: Any) -> None:
        """Write numbers as JSON."""
        with self.outputs.writing(name) as (place,):
            write_json(place, content)


def look(
    source: Path,
    images: Sequence[Path],
    out: Path | None = None,
    *,
    threshold: float = 0.5,
    cost: bool = True,
    data: Path | None = None,
    split: str | None = None,
    device: str | None = None,
) -> Looked:
    """Show where a trained network samples (figures 5 to 7 of the paper), and what that costs (tables 2 and 4).

    For each image, ``NAME.sampling`` shows units on the background, on the smallest and on the largest object with the
    points that they read, beside those of the plain network. Where RoI pooling is deformable, ``NAME.parts`` shows how
    the parts of RoIs move. Each picture is written as PNG, PDF and SVG. ``look.html`` shows all images, and the points
    of any unit under the mouse.

    Args:
        source: A run folder or a file of weights that `train` wrote.
        images: Image files, or folders that are searched for image files with all their subfolders.
        out: The folder to write to; if None, ``look`` in the run folder or beside the weights.
        threshold: Lower limit of the score of the detections that are shown, at most 50 for each image.
        cost: Whether to measure the network and the plain one on the first image, for ``complexity.json`` and a table.
        data: A folder of detection data to measure the effective dilation on, for ``effective_dilation.json``, a
            picture and a table.
        split: Split of `data`; None for the one that the training left for evaluation.
        device: The device, such as ``"cuda"``; None for a GPU if there is one.

    Returns:
        What was written. An image that cannot be read is listed there and left out.

    Raises:
        FileNotFoundError: If the weights or an image do not exist.
        ValueError: If the weights cannot be used, nothing in the network is deformable, `data` does not fit it, no
            image can be read, or a file that Pliant did not write is in the way.
    """
    found_images = find_images(images, leave_out=out)
    files, own = without_own(found_images.images, images)
    trained = load_trained(source)
    if trained.task.without_deformation(trained.recipe) == trained.recipe:
        raise ValueError(f"{trained.path}: nothing in this network is deformable")
    chosen = trained.device(device)
    model = trained.model().to(chosen)
    measured = _open(trained, model, data, split)
    names, views = unique_names(files, ("",)), dict[str, View]()
    outputs = Outputs(trained.folder / "look" if out is None else out, _planned(names.values()), inputs=files)
    looked = Looked(outputs.folder / _PAGE, outputs)
    for sentence in (found_images.passed_over(), own):
        if sentence is not None:
            Console(stderr=True).print(sentence, style="yellow")
    with Progress() as progress:
        for path in progress.track(files, "what it finds"):
            try:
                picture = read_image(path)
            except UnreadableFileError as error:
                looked.failed[path] = str(error)
                progress.console.print(f"{path} cannot be read and is left out: {error}", style="red")
                continue
            views[names[path]] = trained.task.view(
                model, trained.recipe, trained.classes, picture, threshold=threshold, device=chosen
            )
        if not views:
            raise ValueError("no image can be read")
        classes = ("background", *trained.classes)
        pages = [
            _look_at(model, name, each, classes, looked)
            for name, each in progress.track(list(views.items()), "where it reads")
        ]
        tables = []
        if cost:
            with progress.task("what it costs"):
                tables.append(_cost(model, trained, next(iter(views.values())), looked))
        if measured is not None:
            tables.append(_dilation(model, measured, chosen, looked, progress))
    with outputs.writing(_PAGE) as (place,):
        write_page(place, f"{trained.name} after {trained.step} steps", pages, tables)
    return looked


def _planned(names: Iterable[str]) -> list[str]:
    """The names of all files that may be written."""
    drawn = [f"{name}.{what}" for name in names for what in ("sampling", "parts")]
    pictures = [f"{name}.{ending}" for name in (*drawn, _DILATION) for ending in _FORMATS]
    return [_PAGE, _COST, f"{_DILATION}.json", *pictures]


def _open(trained: Trained, model: nn.Module, data: Path | None, split: str | None) -> DetectionSet | None:
    """Open the data to measure the effective dilation on; None if none is given."""
    if data is None:
        if split is not None:
            raise ValueError("--split names a split of --data, which is missing")
        return None
    if not trained.task.has_boxes or not any(isinstance(layer, DeformConv2d) for layer in model.modules()):
        raise ValueError("--data is for the effective dilation of detectors with deformable convolutions")
    root, name = trained.data_and_split(data, split)
    dataset = trained.open(root, name)
    assert isinstance(dataset, DetectionSet)
    dataset.skip_damaged()
    return dataset


def _look_at(model: nn.Module, name: str, view: View, classes: Sequence[str], looked: Looked) -> PageImage:
    """Draw the pictures of an image, and collect what the page shows of it."""
    trace = Trace(model, view.image)
    shown = (view.image * 255).round().byte().cpu()
    if trace.layers:
        depth = min(3, trace.step().deformable)
        rows = [
            (
                place,
                shown,
                [trace.points(trace.nearest(at), depth, regular=regular) for regular in (True, False)],
            )
            for place, at in view.places
        ]
        columns = ("plain network", f"{depth} deformable layer{'s' if depth > 1 else ''}")
        with looked.drawing(f"{name}.sampling") as places:
            draw.sampling(places, rows, columns)
    parts = roi_parts(model, view.image, view.boxes) if trace.pools and len(view.boxes) else []
    if parts:
        with looked.drawing(f"{name}.parts") as places:
            draw.roi_parts(places, _panels(view, shown, parts[0], classes))
    return PageImage(
        name,
        view.picture,
        trace,
        start=view.places[-1][1] if view.places else None,
        boxes=view.boxes,
        labels=view.labels,
        scores=view.scores,
        parts=parts,
        part_classes=classes,
        overlay=view.overlay,
        colours=view.colours,
    )


def _panels(
    view: View, shown: Tensor, parts: RoIParts, classes: Sequence[str]
) -> list[tuple[str, Tensor, Tensor, Tensor, Tensor]]:
    """The best detections, taken from each class in turn, with the parts as they move for that class."""
    rank = dict.fromkeys(view.labels, 0)
    order = []
    for index, label in enumerate(view.labels):  # sorted by score
        order.append((rank[label], index))
        rank[label] += 1
    panels = []
    for _, index in sorted(order)[:_MOST_ROIS]:
        label = view.labels[index]
        kind = classes.index(label) if parts.parts.shape[1] > 1 else 0
        boxes = parts.rois[index], parts.regular[index], parts.parts[index, kind]
        panels.append((f"{label} {view.scores[index]:.2f}", shown, *boxes))
    return panels


def _cost(model: nn.Module, trained: Trained, view: View, looked: Looked) -> PageTable:
    task = trained.task
    plain = task.build(task.without_deformation(trained.recipe), trained.classes, pretrained=False).eval()
    own = plain.state_dict()
    plain.load_state_dict({name: value for name, value in trained.state.items() if name in own})
    found = compare_with_plain(model, task.as_input(view.image), plain=plain.to(view.image.device))
    looked.write(
        _COST,
        {"plain": found.plain._asdict(), "deformable": found.deformable._asdict(), "time_ratio": found.time_ratio},
    )
    sides = found.plain, found.deformable
    rows = [
        ("parameters", *(f"{each.parameters / 1e6:.1f} M" for each in sides)),
        ("multiply-adds", *(f"{each.multiply_adds / 1e9:.1f} G" for each in sides)),
        ("time, forward", *(f"{each.seconds * 1e3:.0f} ms" for each in sides)),
        ("memory, forward", *(f"{each.peak_bytes / 2**20:.0f} MiB" for each in sides)),
    ]
    size = " × ".join(map(str, view.image.shape[:0:-1]))
    where = f"{view.image.device.type.upper()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    note = f"One image of {size} pixels; {found.time_ratio:.2f} times as long. {where}"
    return PageTable("What it costs", note, ("", "plain", "deformable"), rows)


def _dilation(
    model: nn.Module, dataset: DetectionSet, device: torch.device, looked: Looked, progress: Progress
) -> PageTable:
    measure = EffectiveDilation(model)
    images = 0
    for index in progress.track(range(len(dataset)), "effective dilation"):
        sample = dataset[index]
        if sample is not None:
            image, target = sample
            measure.update(image.as_subclass(Tensor).to(device), target["boxes"].as_subclass(Tensor))
            images += 1
    found = measure.compute()
    numbers = {layer: {group: spread._asdict() for group, spread in each.items()} for layer, each in found.items()}
    looked.write(f"{_DILATION}.json", {"images": images, "layers": numbers})
    with looked.drawing(_DILATION) as places:
        draw.effective_dilation(places, found)
    rows = [(layer, *(_cell(each[group]) for group in GROUPS)) for layer, each in found.items()]
    note = (
        f"Mean and standard deviation over all places of {images} images, in cells. Small: below 96²; large: above 224²"
    )
    return PageTable("Effective dilation", note, ("layer", *GROUPS), rows)


def _cell(spread: Spread) -> str:
    return f"{spread.mean:.1f} ± {spread.std:.1f}" if spread.number else "–"
