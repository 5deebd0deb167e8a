"""What a training reads: each split with its images and objects, and what is left out; as a table and for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pliant.console import Table
from pliant.data import DetectionSet, ImageSet
from pliant.data.discovery import WHOLE
from pliant.data.image_set import some
from pliant.tasks.sources import MadeSplit, Source
from pliant.tasks.splits import Splits

_MOST_CLASSES = 40
_USES = {"train": "train on", "validation": "validate on", "test": "evaluate on"}


def describe_data(source: Source, splits: Splits, sets: Mapping[str, ImageSet]) -> dict[str, Any]:
    """The content of a run's ``data.json``.

    Args:
        source: The data.
        splits: The chosen splits.
        sets: Those that are open, by purpose: ``"train"``, ``"validation"`` or ``"test"``.
    """
    rows: dict[str, dict[str, Any]] = {}
    for purpose, name in splits.names().items():
        if name is None:
            continue
        row = rows.setdefault(name, {"for": []})
        row["for"].append(purpose)
        if purpose in sets:
            row |= _content(sets[purpose])
        elif "images" not in row:
            row["images"] = len(splits.made[name].images) if name in splits.made else _count(source, name)
        if name in splits.made:
            row["made_of"] = splits.made[name].of
    opened = next(iter(sets.values()), None)
    return {
        "folder": str(source.root.resolve()),
        "layout": source.name,
        "found": source.title,
        "classes": [] if opened is None else list(opened.classes),
        "splits": rows,
        "notes": list(source.notes),
        "split_notes": list(splits.notes),
        "made": {name: {"of": made.of, "images": list(made.images)} for name, made in splits.made.items()},
    }


def read_made(report: Mapping[str, Any]) -> dict[str, MadeSplit]:
    """The splits that a run made, from the content of its ``data.json``; none if it made none.

    Raises:
        ValueError: If the content is damaged.
    """
    try:
        made = report.get("made", {})
        return {name: MadeSplit(str(each["of"]), tuple(map(str, each["images"]))) for name, each in made.items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"the splits in data.json cannot be read: {error!r}") from error


def read_splits(names: Mapping[str, str | None], report: Mapping[str, Any]) -> Splits:
    """The splits of a run, from its description and the content of its ``data.json``.

    Raises:
        ValueError: If the content is damaged.
    """
    return Splits(**names, made=read_made(report), notes=tuple(map(str, report.get("split_notes", ()))))  # type: ignore[arg-type]


def data_table(report: Mapping[str, Any]) -> Table:
    """A row for each split, with its number of what the task counts besides images: boxes or pixels."""
    table = Table()
    table.add_column("split")
    table.add_column("used to")
    table.add_column("images", justify="right")
    unit = next((row["unit"] for row in report["splits"].values() if "unit" in row), "image")
    counted = unit != "image"
    if counted:
        table.add_column(plural(unit), justify="right")
    table.add_column("left out or changed")
    for name, row in report["splits"].items():
        origin = f" (made of {row['made_of']})" if "made_of" in row else ""
        uses = ", ".join(_USES[purpose] for purpose in row["for"])
        images = "" if row["images"] is None else f"{row['images']:,}"
        left = "; ".join(f"{number} x {kind}" for kind, number in row.get("left_out", {}).items())
        number = f"{sum(row['per_class'].values()):,}" if "per_class" in row else ""
        table.add_row(name + origin, uses, images, *([number] if counted else []), left)
    return table


def title(report: Mapping[str, Any]) -> str:
    """Where the data is, and what it is."""
    return f"{report['folder']}: {report['found']}"


def data_lines(report: Mapping[str, Any]) -> list[str]:
    """What the table has no room for: the classes with their numbers, notes, and how a split was made."""
    rows = report["splits"]
    lines = [*_class_line(rows, report["classes"]), *report["notes"]]
    if report["made"]:
        parts = ", ".join(f"{name} {len(each['images'])}" for name, each in report["made"].items())
        of = next(iter(report["made"].values()))["of"]
        whole = "The data are not split" if of == WHOLE else f"There is no split to validate on beside {of}"
        lines.append(f"{whole}. Images were chosen by chance: {parts} (val_fraction, test_fraction, split_seed).")
        lines += report["split_notes"]
    if any({"validation", "test"} <= set(row["for"]) for row in rows.values()):
        lines.append("The split that chooses the best weights is evaluated too; its figures are slightly too good.")
    return lines


def _class_line(rows: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """The classes, with their numbers in the training split if it is open."""
    row = next((row for row in rows.values() if "train" in row["for"] and "per_class" in row), None)
    if row is None:
        return [f"classes: {some(classes, _MOST_CLASSES)}"] if classes else []
    total = sum(row["per_class"].values())
    counted = [
        f"{name} {number / max(total, 1):.1%}" if row["unit"] == "pixel" else f"{name} {number:,}"
        for name, number in row["per_class"].items()
    ]
    return [f"classes ({plural(row['unit'])} to train on): {some(counted, _MOST_CLASSES)}"]


def missing_splits(report: Mapping[str, Any]) -> dict[str, str]:
    """What there is no split for, and what that means."""
    used = {purpose for row in report["splits"].values() for purpose in row["for"]}
    missing = {
        "validation": (
            "validate",
            "no split, so the last weights are used (--set val_split=NAME or val_fraction=0.15)",
        ),
        "test": ("evaluate", "no split (pliant eval --split NAME)"),
    }
    return dict(said for purpose, said in missing.items() if purpose not in used)


def plural(unit: str) -> str:
    """The plural of what a data set counts."""
    return f"{unit}es" if unit.endswith("x") else f"{unit}s"


def _content(dataset: ImageSet) -> dict[str, Any]:
    counts = dict(zip(dataset.classes, dataset.class_counts(), strict=True))
    left = dict(dataset.problems.counts())
    if isinstance(dataset, DetectionSet) and dataset.left_out:
        left["image without a box to train on"] = len(dataset.left_out)
    total = sum(counts.values())
    return {
        "images": len(dataset),
        "unit": dataset.unit,
        "objects": f"{total:,} {plural(dataset.unit) if total != 1 else dataset.unit}",
        "per_class": counts,
        "left_out": left,
    }


def _count(source: Source, split: str) -> int | None:
    """The number of images of a split that is not open; None if it is not known without opening it."""
    return len(source.images(split)) or None if split in source.splits() else None
