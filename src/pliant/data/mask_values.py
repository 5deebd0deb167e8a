"""What the values of masks mean: class ids, 0 and 255, grey levels or colours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from pliant.constants import IGNORE
from pliant.data.images import UnreadableFileError, opened

COLOUR = 1 << 24  # added to 0xRRGGBB, so that colours and grey levels are different values
FOREGROUND = ("background", "foreground")
_MOST_COLOURS = 64
_NEAR = 40  # how far from 0 and 255 JPEG's noise leaves the pixels of a mask
_LOSSY = ("JPEG", "WEBP", "MPO")


@dataclass(frozen=True)
class MaskValues:
    """The class id of each value of a mask.

    Attributes:
        table: id of each value: a grey level, or `COLOUR` plus 0xRRGGBB. None if values are ids.
        classes: names of the ids, if the values tell them.
        ignored: values that are ignored, besides 255 where values are ids.
        coloured: whether values are colours, also those of grey masks.
        by_palette: whether the values of a palette image are its colours, and not its indices.
        other: id of all values that `table` lacks; None if they have no class.
    """

    table: Mapping[int, int] | None = None
    classes: tuple[str, ...] | None = None
    ignored: frozenset[int] = field(default_factory=frozenset)
    coloured: bool = False
    by_palette: bool = False
    other: int | None = None

    @classmethod
    def given(cls, values: Sequence[str], ignored: Sequence[int] = ()) -> MaskValues:
        """The meaning that a user gives.

        Args:
            values: texts such as `"0:background"`, `"255:leaf"` and `"#ff0000:leaf"`; `"*:cell"` for all other values;
                empty if values are ids. Several values may have the same name.
            ignored: values that are ignored.

        Raises:
            ValueError: if a text is not of this form, a value comes twice, or colours and levels are mixed.
        """
        table: dict[int, int] = {}
        other: int | None = None
        names: list[str] = []
        for text in values:
            match = re.fullmatch(r"\s*(\d{1,5}|#[0-9a-fA-F]{6}|\*)\s*:\s*(\S.*?)\s*", text)
            if match is None:
                raise ValueError(
                    "mask_values are VALUE:CLASS, such as 255:leaf or #ff0000:leaf, or *:leaf for all other values, "
                    f"got {text!r}"
                )
            written, name = match.groups()
            if name not in names:
                names.append(name)
            if written == "*":
                if other is not None:
                    raise ValueError("mask_values names * twice")
                other = names.index(name)
                continue
            value = COLOUR + int(written[1:], 16) if written.startswith("#") else int(written)
            if value in table:
                raise ValueError(f"mask_values names {written} twice")
            table[value] = names.index(name)
        if len({value >= COLOUR for value in table}) > 1:
            raise ValueError(f"mask_values are grey levels or colours, not both: {', '.join(values)}")
        if other is not None and not table:
            raise ValueError(f"mask_values names a value besides *, such as 0:background, got {', '.join(values)}")
        coloured = any(value >= COLOUR for value in table)
        return cls(table or None, tuple(names) or None, frozenset(ignored), coloured, coloured, other)

    def ids(self, raw: np.ndarray) -> np.ndarray:
        """The class ids of values `[...]` of `read_values`, uint8; values without a class are 254, ignored ones 255.

        Raises:
            ValueError: if they are colours, and ids or grey levels were expected.
        """
        values = raw
        if not self.coloured and raw.size and raw.max() >= COLOUR:
            raise ValueError(
                f"it has colours, such as {shown(int(raw.max()))}, where other masks have ids; say what they mean "
                "with --set mask_values=#RRGGBB:CLASS,..."
            )
        if self.coloured:
            values = np.where(raw < COLOUR, COLOUR + raw * 0x010101, raw)
        if self.table is None:
            ids = np.minimum(values, IGNORE - 1).astype(np.uint8)
            ids[values == IGNORE] = IGNORE
        else:
            known = np.array(sorted(self.table), dtype=np.int32)
            mapped = np.array([self.table[value] for value in known.tolist()], dtype=np.uint8)
            place = np.searchsorted(known, values).clip(max=len(known) - 1)
            rest = np.uint8(IGNORE - 1 if self.other is None else self.other)
            ids = np.where(known[place] == values, mapped[place], rest)
        for value in self.ignored:
            ids[raw == value] = IGNORE
        return ids

    def renamed(self, classes: Sequence[str]) -> MaskValues:
        """The same values for other names of the classes: by name where the names are known, else in their order.

        Raises:
            ValueError: if they cannot be assigned.
        """
        names = tuple(classes)
        if self.table is None or self.classes is None or names == self.classes:
            return self
        if set(self.classes) <= set(names):
            order = [names.index(name) for name in self.classes]
        elif len(names) >= len(self.classes):
            order = list(range(len(self.classes)))
        else:
            raise ValueError(
                f"the masks have {len(self.classes)} values ({', '.join(self.classes)}), and {len(names)} classes are "
                f"named: {', '.join(names)}; say what the values mean with --set mask_values=VALUE:CLASS,..."
            )
        table = {value: order[old] for value, old in self.table.items()}
        return replace(self, table=table, classes=names, other=None if self.other is None else order[self.other])


def understand(found: Iterable[Iterable[int]], ignored: Iterable[int] = ()) -> MaskValues:
    """What the values of all masks of a data set mean.

    Small numbers are ids, 255 beside them is ignored; 0 and 255 alone are background and foreground; other grey levels
    and colours are a class each, named after the value.

    Args:
        found: the values of each mask.
        ignored: values that are ignored.

    Raises:
        ValueError: if there are more values than classes can be.
    """
    ignored = frozenset(ignored)
    values = set().union(*found) - ignored
    if any(value >= COLOUR for value in values):
        colours = sorted({value if value >= COLOUR else COLOUR + value * 0x010101 for value in values})
        if len(colours) > _MOST_COLOURS:
            raise ValueError(f"the masks have more than {_MOST_COLOURS} colours, so colours are no classes")
        names = tuple(map(shown, colours))
        return MaskValues({value: i for i, value in enumerate(colours)}, names, ignored, True)
    if values == {0, IGNORE}:
        return MaskValues({0: 0, IGNORE: 1}, FOREGROUND, ignored)
    ids = values - {IGNORE}
    if not ids or max(ids) <= max(20, 4 * len(ids)):
        return MaskValues(ignored=ignored)
    if len(values) > _MOST_COLOURS:
        raise ValueError(f"the masks have {len(values)} grey levels up to {max(values)}, so levels are no classes")
    levels = sorted(values)
    names = tuple(f"value_{value}" for value in levels)
    return MaskValues({value: i for i, value in enumerate(levels)}, names, ignored)


def shown(value: int) -> str:
    """A value as it is written in `mask_values`."""
    return f"#{value - COLOUR:06x}" if value >= COLOUR else str(value)


def read_values(path: Path, *, by_palette: bool = False) -> np.ndarray:
    """The values of a mask, int32 `[H, W]`: class ids or grey levels, or `COLOUR` plus 0xRRGGBB if it has colours.

    A folder of masks of single objects is read as one mask, 255 where any object is. Pixels of a JPEG are 0 or 255,
    whichever is nearer.

    Args:
        path: file or folder.
        by_palette: whether to read the colours of a palette image in place of its indices.

    Raises:
        UnreadableFileError: if it cannot be decoded, or has neither.
    """
    if path.is_dir():
        return _union(path)
    with opened(path) as image:
        return _values(image, by_palette)


def _values(image: Image.Image, by_palette: bool) -> np.ndarray:
    if image.format in _LOSSY:
        grey = np.array(image.convert("L")).astype(np.int32)
        if np.mean((grey > _NEAR) & (grey < 255 - _NEAR)) > 0.02:
            raise ValueError(f"{image.format} changes values, so that only masks of 0 and 255 can be read from it")
        return np.where(grey > 127, 255, 0)
    if image.mode == "P" and (by_palette or image.format == "GIF"):  # GIF encoders renumber the palette
        image = image.convert("RGB")
    if image.mode in ("P", "L", "1") or image.mode.startswith("I"):
        return np.array(image).astype(np.int32).clip(min=0)
    if image.mode == "LA":
        return np.array(image.getchannel(0)).astype(np.int32)
    if image.mode not in ("RGB", "RGBA"):
        raise ValueError(f"a mask has ids, grey levels or colours, this one has mode {image.mode}")
    red, green, blue = np.moveaxis(np.array(image.convert("RGB")).astype(np.int32), 2, 0)
    if np.array_equal(red, green) and np.array_equal(green, blue):
        return red
    return COLOUR + (red << 16) + (green << 8) + blue


def _union(folder: Path) -> np.ndarray:
    joined: np.ndarray | None = None
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file():
            continue
        mask = read_values(path) % COLOUR > 0
        if joined is not None and joined.shape != mask.shape:
            raise UnreadableFileError(path, "the masks of an image have different sizes")
        joined = mask if joined is None else joined | mask
    if joined is None:
        raise UnreadableFileError(folder, "there is no mask in this folder")
    return np.where(joined, 255, 0)
