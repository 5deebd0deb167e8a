"""The PASCAL VOC folder layout: images, annotations and splits, and the contents of an annotation."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pliant.data.files import FileFinder, decode_marked, read_lines, relative_path
from pliant.data.images import IMAGE_SUFFIXES, MASK_SUFFIXES
from pliant.data.problems import DataError

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

_XML_LIMIT = 4 * 2**20  # bytes; the parsed tree may take forty times as much memory
_PER_CLASS_SPLIT = re.compile(r".+_(train|val|trainval|test)$")
_LABEL = re.compile(r"\s+(-1|0|1)$")
_PLACES = {
    "JPEGImages": IMAGE_SUFFIXES,
    "Annotations": (".xml",),
    "SegmentationClass": MASK_SUFFIXES,
    "SegmentationClassAug": MASK_SUFFIXES,
}
_ENDINGS = {suffix for suffixes in _PLACES.values() for suffix in suffixes}
_OFFICIAL_ID = re.compile(r"(\d{4}_)?\d{6}$")


@dataclass(frozen=True)
class SplitEntry:
    """A line of a split: the id `name` in `folder`, listed in `line` (from 1) of the file `source`."""

    folder: Path
    name: str
    source: Path
    line: int


def find_folders(root: Path) -> dict[str, Path]:
    """The VOC folders at `root`, by year or name.

    `root` is either such a folder itself, which contains `JPEGImages`, or a development kit, which contains `VOC2007`,
    `VOC2012` and the like, or a `VOCdevkit` that does.

    Raises:
        DataError: if there is none.
    """
    if not root.is_dir():
        raise DataError(root, "there is no such folder")
    if (root / "JPEGImages").is_dir():
        return {root.name.removeprefix("VOC"): root}
    for kit in (root, root / "VOCdevkit"):
        folders = {
            path.name.removeprefix("VOC"): path for path in sorted(kit.glob("VOC*")) if (path / "JPEGImages").is_dir()
        }
        if folders:
            return folders
    found = ", ".join(sorted(path.name for path in root.iterdir())[:10]) or "nothing"
    raise DataError(
        root,
        f"looked for JPEGImages/ (a folder of VOC layout) and for VOC*/JPEGImages/ (a development kit), found {found}",
    )


def read_split(folders: dict[str, Path], task: str, split: str, finder: FileFinder | None = None) -> list[SplitEntry]:
    """The ids of a split, in the order of its files.

    A line is the name of an image without its suffix; it may contain spaces. VOC's lists of single classes have -1, 0
    or 1 after the name, and other lists have the suffix, or the folder and the suffix. These are removed if the
    complete name matches no file and the shortened one does. Empty lines and lines that begin with `#` are ignored.

    Args:
        folders: result of `find_folders`.
        task: folder below `ImageSets`: `"Main"` or `"Segmentation"`.
        split: names joined by `+`. Each is the name of a file without `.txt`, which is read in every folder that has
            it, or such a name after a year and `_`, as in `"2007_trainval+2012_trainval"`.
        finder: finder of files, by default a new one.

    Raises:
        DataError: if a part does not exist, or an id leads outside the folder.
    """
    entries: list[SplitEntry] = []
    finder = FileFinder() if finder is None else finder
    for part in split.split("+"):
        sources = _split_files(folders, task, part)
        if not sources:
            looked = ", ".join(str(folder / "ImageSets" / task) for folder in folders.values())
            there = ", ".join(available_splits(folders, task)) or "none"
            raise DataError(
                next(iter(folders.values())),
                f"no split {part!r}: looked for {part}.txt in {looked}; splits there: {there}",
            )
        for folder, source in sources:
            entries += [SplitEntry(folder, name, source, line) for line, name in _read_ids(folder, source, finder)]
    return entries


def _split_files(folders: dict[str, Path], task: str, part: str) -> list[tuple[Path, Path]]:
    try:
        relative_path(part)
    except ValueError:
        return []
    candidates = [(folder, part) for folder in folders.values()]
    year, _, name = part.partition("_")
    if name and year in folders:
        candidates.append((folders[year], name))
    finder = FileFinder()
    files = [(folder, finder.find(folder / "ImageSets" / task, name, (".txt",))) for folder, name in candidates]
    return [(folder, file) for folder, file in files if file is not None]


def available_splits(folders: dict[str, Path], task: str) -> list[str]:
    """The names of all splits, without VOC's lists of single classes."""
    lists = [path for folder in folders.values() for path in (folder / "ImageSets" / task).glob("*")]
    names = {path.stem for path in lists if path.suffix.lower() == ".txt" and not path.name.startswith(".")}
    return sorted(name for name in names if not _PER_CLASS_SPLIT.match(name))


def _read_ids(folder: Path, source: Path, finder: FileFinder) -> list[tuple[int, str]]:
    """The number and the id of each line."""
    try:
        lines = [(number, line) for number, line in enumerate(read_lines(source), start=1) if line]
    except (OSError, ValueError) as error:
        raise DataError(source, f"the split cannot be read: {error}") from error
    labelled = all(_LABEL.search(line) for _, line in lines)
    ids = []
    for number, line in lines:
        try:
            written = [relative_path(each) for each in dict.fromkeys((line, _LABEL.sub("", line)))]
        except ValueError as error:
            raise DataError(source, f"line {number}: {error}") from error
        names = [str(path) for path in written]
        names += [str(_bare(path)) for path in written if path.suffix.lower() in _ENDINGS]
        name = next((each for each in names if _has_file(folder, each, finder)), None)
        if name is not None:
            ids.append((number, name))
        elif not line.startswith("#"):
            # No file matches; if all lines have a label, this is a list of a single class.
            ids.append((number, str(written[-1 if labelled else 0])))
    return ids


def _bare(path: PurePosixPath) -> PurePosixPath:
    """The id in a path such as `JPEGImages/ID.jpg` or `ID.jpg`."""
    return (path.relative_to(path.parts[0]) if path.parts[0] in _PLACES else path).with_suffix("")


def _has_file(folder: Path, name: str, finder: FileFinder) -> bool:
    return any(finder.find(folder / place, name, suffixes) is not None for place, suffixes in _PLACES.items())


def is_official(folders: dict[str, Path], entries: list[SplitEntry]) -> bool:
    """Whether this is VOC's own data: folders named VOC and a year, and ids as VOC numbers its images."""
    return all(re.fullmatch(r"VOC20\d\d", folder.name) for folder in folders.values()) and all(
        _OFFICIAL_ID.match(entry.name) for entry in entries
    )


def locate_image(folder: Path, name: str, finder: FileFinder, filename: str = "") -> Path | None:
    """The image of an id: the file with that name, otherwise the one that the annotation names."""
    images = folder / "JPEGImages"
    path = finder.find(images, name, IMAGE_SUFFIXES)
    if path is None and filename:
        named = re.split(r"[/\\]", filename)[-1]
        path = finder.find_named(images, named) if named not in ("", ".", "..") else None
    return path


class _NoDoctype(ElementTree.TreeBuilder):
    def doctype(self, name: str, public_id: str | None, system: str | None) -> None:
        raise ValueError("a document type declaration (which could define entities) is not accepted")


@dataclass(frozen=True, slots=True)
class AnnotatedObject:
    """An `object` of an annotation. `coordinates` are xmin, ymin, xmax, ymax as written."""

    name: str
    coordinates: tuple[str, str, str, str]
    difficult: bool
    truncated: bool

    def corners(self) -> tuple[float, float, float, float]:
        """The coordinates as numbers, NaN if they are not numbers."""
        x_min, y_min, x_max, y_max = map(_number, self.coordinates)
        return x_min, y_min, x_max, y_max


@dataclass(frozen=True, slots=True)
class Annotation:
    """The contents of an annotation. `size` is (height, width), NaN if missing."""

    filename: str
    size: tuple[float, float]
    objects: tuple[AnnotatedObject, ...]


def read_annotation(path: Path) -> Annotation:
    """Read an annotation file.

    Raises:
        ValueError: if it is not well-formed XML, is larger than 4 MiB, declares a document type (which allows entity
            bombs), or contains no `annotation`.
        OSError: if it cannot be read.
    """
    if not path.is_file():
        raise ValueError("it is not a file")
    size = path.stat().st_size
    if size > _XML_LIMIT:
        raise ValueError(f"an annotation of {size} bytes is not accepted (limit {_XML_LIMIT})")
    parser = ElementTree.XMLParser(target=_NoDoctype())
    content = decode_marked(path.read_bytes())  # the mark takes precedence over the declaration
    try:
        parser.feed(content)
        element = parser.close()
    except (ElementTree.ParseError, LookupError) as error:
        raise ValueError(f"not well-formed XML: {error}{_foreign(content)}") from error
    if element is None or element.tag != "annotation":
        raise ValueError(f"expected the element 'annotation', got {getattr(element, 'tag', None)!r}")
    return Annotation(
        filename=_text(element, "filename"),
        size=(_number(_text(element, "size/height")), _number(_text(element, "size/width"))),
        objects=tuple(map(_read_object, element.findall("object"))),
    )


def _foreign(content: str | bytes) -> str:
    """A further explanation for XML that cannot be parsed."""
    try:
        _ = content if isinstance(content, str) else content.decode("utf-8")
    except UnicodeDecodeError:
        return "; it is not in UTF-8, so its declaration must name the encoding"
    return ""


def _read_object(element: ElementTree.Element) -> AnnotatedObject:
    return AnnotatedObject(
        name=_text(element, "name"),
        coordinates=(
            _text(element, "bndbox/xmin"),
            _text(element, "bndbox/ymin"),
            _text(element, "bndbox/xmax"),
            _text(element, "bndbox/ymax"),
        ),
        difficult=_text(element, "difficult").lower() in ("1", "true", "yes"),
        truncated=_text(element, "truncated").lower() in ("1", "true", "yes"),
    )


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
