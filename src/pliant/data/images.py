"""Find and read image files and masks."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image
from torchvision import tv_tensors

from pliant.data.files import files_below

# Supported formats and their suffixes. Pillow has others, among them EPS, for which it runs Ghostscript. Of two files
# that differ in their suffixes only, the one whose suffix comes first here is used.
_FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
IMAGE_SUFFIXES = tuple(suffix for suffixes in _FORMATS.values() for suffix in suffixes)  # in lower case
# JPEG changes ids, WebP may, and GIF encoders renumber the palette.
MASK_SUFFIXES = tuple(s for name, suffixes in _FORMATS.items() if name not in ("JPEG", "WEBP", "GIF") for s in suffixes)
# Limit of long over short side. Beyond it little is left of the short side once the long one is scaled to 1000 pixels.
_LONGEST = 100
_FLOATS = "floating-point pixels have no agreed range; store the image with 8 or 16 bits"


class UnreadableFileError(Exception):
    """The file `path` does not contain a usable image or mask. The message says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(reason)
        self.path = path


@dataclass
class FoundImages:
    """The result of `find_images`.

    Attributes:
        images: image files.
        others: other files in the folders, without one of `IMAGE_SUFFIXES`.
    """

    images: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)

    def passed_over(self) -> str | None:
        """A sentence naming the files that were ignored, or None if there are none."""
        if not self.others:
            return None
        endings = Counter(path.suffix.lower() or "without an ending" for path in self.others)
        named = ", ".join(f"{number} {ending}" for ending, number in endings.most_common(6))
        files = "1 file is" if len(self.others) == 1 else f"{len(self.others)} files are"
        return f"{files} ignored for lack of an image suffix ({named}), such as {self.others[0]}"


def find_images(paths: Iterable[Path], *, leave_out: Path | None = None) -> FoundImages:
    """Find image files among paths, and in folders and all folders below them.

    Suffixes are compared case-insensitively. Links are followed, and each folder is visited once. Files and folders
    whose names begin with a dot are ignored.

    Args:
        paths: files and folders. Files given by their own path are taken whatever their suffix.
        leave_out: folder to skip below `paths`, because results are written there.

    Returns:
        Each file once, in the order of `paths`; those of a folder are sorted.

    Raises:
        FileNotFoundError: if a path does not exist, or a folder contains no image.
    """
    found = FoundImages()
    for path in paths:
        if path.is_dir():
            inside = FoundImages(*files_below(path, IMAGE_SUFFIXES, leave_out))
            if not inside.images:
                reason = inside.passed_over() or "it is empty"
                raise FileNotFoundError(f"{path}: there is no image in this folder or below it: {reason}")
            found.images += inside.images
            found.others += inside.others
        elif path.is_file():
            found.images.append(path)
        else:
            raise FileNotFoundError(f"{path}: there is no such image or folder")
    found.images = list(dict.fromkeys(found.images))
    return found


def images_below(folder: Path) -> FoundImages:
    """The image files in a folder and all folders below it, as in `find_images`; possibly none."""
    return FoundImages(*files_below(folder, IMAGE_SUFFIXES))


class ImageHeader(NamedTuple):
    """The header of an image file.

    Attributes:
        size: height and width in pixels, as stored.
        orientation: EXIF orientation, 1 if the image is displayed as stored.
    """

    size: tuple[int, int]
    orientation: int

    def settled(self) -> ImageHeader:
        """The header after an annotation named this size: an orientation that would change the size does not apply."""
        would_change_size = self.orientation >= 5 and self.size[0] != self.size[1]
        return ImageHeader(self.size, 1 if would_change_size else self.orientation)

    def describe(self, other: tuple[float, float]) -> str:
        """The size as text, with the EXIF orientation if it explains the size `other` (height, width)."""
        text = f"{self.size[1]}x{self.size[0]}"
        if self.orientation < 5 or other != self.size[::-1]:
            return text
        return (
            f"{text} as stored: viewers rotate it by its EXIF orientation {self.orientation}, which is not applied "
            "here; store the rotated pixels, for example with PIL.ImageOps.exif_transpose"
        )


def scan_image(path: Path) -> ImageHeader:
    """Check the header and the end of an image file without decoding it.

    A file whose end seems to be missing is decoded completely to be certain.

    Raises:
        UnreadableFileError: if it cannot be used.
    """
    with opened(path) as image:
        if image.mode == "F":
            raise ValueError(_FLOATS)
        if not _has_end(path, image.format):
            image.load()
        return ImageHeader((image.height, image.width), _orientation(image))


def _orientation(image: Image.Image) -> int:
    # Reading EXIF data that comes after the pixels of a PNG would decode the image.
    if "exif" not in image.info and image.format != "TIFF":
        return 1
    with contextlib.suppress(Exception):  # a damaged EXIF block does not affect the pixels
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        if isinstance(orientation, int) and 2 <= orientation <= 8:
            return orientation
    return 1


def read_image(path: Path) -> tv_tensors.Image:
    """Read an image as RGB.

    Grey, palette and CMYK images are converted, 16 bits per channel are scaled to 8, and transparency is dropped. The
    EXIF orientation is **not** applied, since annotations refer to the stored pixels; `scan_image` reports it.

    Returns:
        uint8 `[3, H, W]`.

    Raises:
        UnreadableFileError: if it cannot be decoded, has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, or one side is
            over a hundred times the other.
    """
    with opened(path) as image:
        pixels = _to_rgb(image)  # [H, W, 3]
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())


def read_mask(path: Path) -> np.ndarray:
    """Read a mask of class ids: a palette or 8-bit grey image whose pixel values are the ids.

    Returns:
        uint8 `[H, W]`.

    Raises:
        UnreadableFileError: if it cannot be decoded or contains something other than ids.
    """
    with opened(path) as image:
        if image.mode not in ("P", "L", "1"):
            raise ValueError(f"a mask is a palette or 8-bit grey image of class ids, this one has mode {image.mode}")
        return np.array(image, dtype=np.uint8)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open an image of usable size. Any error in the block becomes an `UnreadableFileError`."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a file")
        with Image.open(path, formats=tuple(_FORMATS)) as image:
            _check_size(image)
            yield image
    except Exception as error:  # Pillow's decoders raise all kinds of errors on damaged files
        reason = " ".join(f"{error}".split()) or type(error).__name__
        raise UnreadableFileError(path, reason) from error


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "F":
        raise ValueError(_FLOATS)
    if image.mode.startswith("I"):
        # Pillow would cut values above 255 instead of scaling them. Mode I is what older releases give
        # a 16-bit grey PNG.
        grey = (np.asarray(image).astype(np.float64) * (255 / 65535)).round().clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _check_size(image: Image.Image) -> None:
    sides = sorted(image.size)
    size = f"{image.width}x{image.height} pixels"
    if sides[0] < 1:
        raise ValueError(f"the image is empty: {size}")
    if sides[1] > _LONGEST * sides[0]:
        raise ValueError(f"the image is too long: {size}, and one side may be at most {_LONGEST} times the other")
    # Pillow itself only warns up to twice its limit.
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and sides[0] * sides[1] > most:
        raise ValueError(f"the image is too large: {size}, more than the {most} of PIL.Image.MAX_IMAGE_PIXELS")


def _has_end(path: Path, image_format: str | None) -> bool:
    marker = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}.get(image_format or "")
    if marker is None:
        return True
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 64))
        return marker in file.read()
