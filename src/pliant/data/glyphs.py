"""Glyphs: scenes of handwritten digits with boxes and masks, from embedded digits without a download."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torch.utils.data import Dataset
from torchvision import tv_tensors

from pliant.data.detection_set import Boxes, detection_target
from pliant.data.image_set import Transforms

DIGITS = tuple("0123456789")

_GLYPH = 80  # pixels of a source digit, enlarged from 8 and an empty border of 1
_TRAIN_SHARE = 0.8
_LOWEST_VISIBLE = 0.75  # fraction of a digit's pixels
_ATTEMPTS = 20


@dataclass(frozen=True)
class Scene:
    """One scene of `Glyphs`.

    Attributes:
        image: uint8 `[3, S, S]`.
        mask: uint8 `[S, S]`; 0 is the background, 1 to 10 are the digits 0 to 9.
        instances: uint8 `[S, S]`; 0 is the background, i + 1 is box i.
        boxes: float32 `[L, 4]`, (x0, y0, x1, y1), pixel edges of the visible part of each digit.
        labels: int64 `[L]`, 1 to 10.
    """

    image: np.ndarray
    mask: np.ndarray
    instances: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


class Glyphs(Dataset[tuple[Any, Any]]):
    """Scenes of handwritten digits with large changes of scale, aspect ratio and shape.

    The digits are scikit-learn's `load_digits` (1,797 digits of 8 x 8 pixels, from UCI's Optical Recognition of
    Handwritten Digits). Each is enlarged, scaled, stretched, sheared, rotated and deformed elastically, and placed on a
    textured background. Where digits overlap, the later one covers the earlier, of which at least 75 % stays visible.
    The splits use different digits: the first four fifths of the collection for training, the rest for testing.

    A scene depends only on (seed, split, index) and the other arguments, not on the order of access or the number of
    workers. The last bit may differ between machines and versions of the libraries.

    Args:
        length: number of scenes.
        split: `"train"` or `"test"`.
        seed: non-negative seed.
        size: side S of a scene, in pixels.
        digits: minimum and maximum number of digits; fewer if there is no room for another.
        sides: minimum and maximum length of a digit's long side in pixels, before the elastic deformation; drawn
            uniformly on a logarithmic scale.
        warp: strength of rotation, stretching, shear and deformation, from 0 (none) to 1.
        task: `"segmentation"` for samples (image, mask), `"detection"` for (image, target), see `DetectionSet`.
        transforms: called with the two parts of a sample.

    Raises:
        ValueError: if an argument is out of its range.

    Attributes:
        classes: the ten digits; for segmentation with `"background"` first.
    """

    def __init__(
        self,
        length: int,
        *,
        split: Literal["train", "test"] = "train",
        seed: int = 0,
        size: int = 112,
        digits: tuple[int, int] = (2, 4),
        sides: tuple[float, float] = (14, 80),
        warp: float = 1.0,
        task: Literal["segmentation", "detection"] = "segmentation",
        transforms: Transforms | None = None,
    ) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        if task not in ("segmentation", "detection"):
            raise ValueError(f"task must be 'segmentation' or 'detection', got {task!r}")
        if length < 1 or seed < 0:
            raise ValueError(f"length must be positive and seed not negative, got {length} and {seed}")
        if not 0 <= digits[0] <= digits[1] <= 254 or digits[1] < 1:
            raise ValueError(f"digits must be (least, largest) from 0 to 254, got {digits}")
        if not 8 <= sides[0] <= sides[1] <= size:
            raise ValueError(f"8 <= sides[0] <= sides[1] <= size is needed, got {sides} and size {size}")
        if not 0 <= warp <= 1:
            raise ValueError(f"warp must be from 0 to 1, got {warp}")
        self.length = length
        self.split = split
        self.seed = seed
        self.size = size
        self.digits = digits
        self.sides = sides
        self.warp = warp
        self.task = task
        self.transforms = transforms
        self.classes = ("background", *DIGITS) if task == "segmentation" else DIGITS

    def __len__(self) -> int:
        return self.length

    def scene(self, index: int) -> Scene:
        """Draw a scene."""
        if not -self.length <= index < self.length:
            raise IndexError(f"index {index} is out of range for {self.length} scenes")
        return self._draw(index % self.length)

    def stack(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All scenes as two tensors: images uint8 `[N, 3, S, S]` and masks uint8 `[N, S, S]`."""
        scenes = [self.scene(index) for index in range(self.length)]
        images = torch.from_numpy(np.stack([scene.image for scene in scenes]))
        return images, torch.from_numpy(np.stack([scene.mask for scene in scenes]))

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        scene = self.scene(index)
        image = tv_tensors.Image(torch.from_numpy(scene.image.copy()))
        target: Any
        if self.task == "segmentation":
            target = tv_tensors.Mask(torch.from_numpy(scene.mask.copy()))
        else:
            visible = np.bincount(scene.instances.ravel(), minlength=len(scene.labels) + 1)[1:]
            boxes = Boxes()
            for corners, label, area in zip(scene.boxes, scene.labels, visible, strict=True):
                boxes.add(tuple(corners.tolist()), int(label), float(area))
            target = detection_target(boxes, (self.size, self.size), index % self.length)
        return (image, target) if self.transforms is None else self.transforms(image, target)

    def _draw(self, index: int) -> Scene:
        rng = np.random.default_rng((self.seed, int(self.split == "test"), index))
        glyphs, values = source_digits(self.split)
        canvas = _background(rng, self.size)  # [3, S, S]
        instances = np.zeros((self.size, self.size), dtype=np.uint8)
        labels: list[int] = []
        whole: list[int] = []  # pixels of each digit if nothing hid it
        for _ in range(int(rng.integers(self.digits[0], self.digits[1] + 1))):
            source = int(rng.integers(len(values)))
            for _ in range(_ATTEMPTS):
                side = math.exp(rng.uniform(*np.log(self.sides)))
                ink = _warp(rng, glyphs[source], side, self.warp)  # [h, w]
                place = _place(rng, ink > 0.5, instances, whole)
                if place is not None:
                    break
            else:
                continue
            rows, columns = place
            _paint(rng, canvas[:, rows, columns], ink)
            labels.append(int(values[source]) + 1)
            whole.append(int((ink > 0.5).sum()))
            instances[rows, columns][ink > 0.5] = len(labels)
        canvas += np.float32(rng.uniform(2, 10)) * rng.standard_normal(canvas.shape, dtype=np.float32)
        classes = np.array([0, *labels], dtype=np.uint8)
        return Scene(
            image=canvas.clip(0, 255).astype(np.uint8),
            mask=classes[instances],
            instances=instances,
            boxes=_extents(instances, len(labels)),
            labels=np.array(labels, dtype=np.int64),
        )


@functools.cache
def source_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The digits of a split: float32 `[N, 80, 80]` in 0..1, enlarged from 8 x 8, and int64 `[N]`."""
    from sklearn.datasets import load_digits  # slow to import, and not needed for other data

    images, values = load_digits(return_X_y=True)
    border = round(_TRAIN_SHARE * len(values))
    part = slice(0, border) if split == "train" else slice(border, None)
    small = (images[part].reshape(-1, 8, 8) / 16).astype(np.float32)
    small = np.pad(small, ((0, 0), (1, 1), (1, 1)))
    large = [Image.fromarray(digit).resize((_GLYPH, _GLYPH), Image.Resampling.BICUBIC) for digit in small]
    return np.stack([np.asarray(digit) for digit in large]), values[part]


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A coloured cloud of four grain sizes: float32 `[3, S, S]`, about 0..255."""
    canvas = np.empty((3, size, size), dtype=np.float32)
    canvas[:] = rng.uniform(50, 205) + rng.normal(0, 28, (3, 1, 1))
    for cells, strength in ((3, 28), (8, 18), (20, 13), (48, 8)):
        enlarge = _enlargement(cells, size)  # [S, cells]
        grain = rng.standard_normal((3, cells, cells), dtype=np.float32)
        canvas += np.float32(strength * rng.uniform(0.3, 1.3)) * (enlarge @ grain @ enlarge.T)
    return canvas


@functools.cache
def _enlargement(cells: int, size: int) -> np.ndarray:
    """The matrix that interpolates `cells` values to `size` along one axis, bicubic."""
    identity = torch.eye(cells)[None, None]
    return functional.interpolate(identity, (size, cells), mode="bicubic", align_corners=True)[0, 0].numpy()


def _warp(rng: np.random.Generator, glyph: np.ndarray, side: float, warp: float) -> np.ndarray:
    """Rotate, stretch, shear and deform a digit so that its long side is about `side` pixels.

    Returns:
        Coverage of each pixel, float32 `[h, w]` in 0..1, cropped to the rows and columns with more than a half.
    """
    angle = warp * rng.uniform(-0.7, 0.7)
    stretch = math.exp(warp * rng.uniform(-0.45, 0.45))
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    linear = rotation @ np.array([[stretch, warp * rng.uniform(-0.3, 0.3)], [0.0, 1 / stretch]])
    rows, columns = np.nonzero(glyph > 0.5)
    outline = linear @ (np.stack([columns, rows]) * (2 / (_GLYPH - 1)) - 1)  # [2 (x, y), points]
    low, high = outline.min(axis=1), outline.max(axis=1)
    scale = side / float((high - low).max())  # pixels for a unit of the warped frame
    reach = (high - low) * scale * 0.5 * 1.5 + 2
    width, height = (2 * np.ceil(reach)).astype(int)
    # The centre of the window, in pixels, is the centre of the warped outline.
    x = (np.arange(width) + 0.5 - width / 2) / scale + (low[0] + high[0]) / 2
    y = (np.arange(height) + 0.5 - height / 2) / scale + (low[1] + high[1]) / 2
    inverse = np.linalg.inv(linear)
    points = np.einsum("ij,jhw->ihw", inverse, np.stack(np.meshgrid(x, y))).astype(np.float32)
    points += warp * _bend(rng, points)  # [2, h, w], -1..1 in the source
    grid = torch.from_numpy(points.transpose(1, 2, 0)[None])
    value = functional.grid_sample(torch.from_numpy(glyph)[None, None], grid, align_corners=True)[0, 0]
    # A stroke's edge fades over about a pixel and a half of the 8 x 8 original; sharpen it to one here.
    ink = ((value.numpy() - 0.5) * max(1.5, side / 6) + 0.5).clip(0, 1)
    rows, columns = (np.flatnonzero((ink > 0.5).any(axis=axis)) for axis in (1, 0))
    if len(rows) == 0:
        return ink[:0, :0]
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _bend(rng: np.random.Generator, points: np.ndarray) -> np.ndarray:
    """A smooth random displacement at `points` `[2, h, w]`: a sum of three waves in each direction."""
    waves = rng.normal(0, 2.2, (2, 3, 2)).astype(np.float32)  # radians for a unit of x and of y
    phases = rng.uniform(0, 2 * math.pi, (2, 3)).astype(np.float32)
    heights = rng.normal(0, 0.07, (2, 3)).clip(-0.12, 0.12).astype(np.float32)
    angles = np.einsum("awj,jhx->awhx", waves, points) + phases[..., None, None]
    return np.einsum("aw,awhx->ahx", heights, np.sin(angles))


def _place(
    rng: np.random.Generator, solid: np.ndarray, instances: np.ndarray, whole: list[int]
) -> tuple[slice, slice] | None:
    """A random place for a digit where enough of the others stays visible; None if this attempt fails."""
    height, width = solid.shape
    free = instances.shape[0] - np.array([height, width])
    if height == 0 or free.min() < 0:
        return None
    top, left = rng.integers(free + 1)
    place = slice(top, top + height), slice(left, left + width)
    covered = np.bincount(instances[place][solid], minlength=len(whole) + 1)[1:]
    before = np.bincount(instances.ravel(), minlength=len(whole) + 1)[1:]
    enough = (before - covered) >= _LOWEST_VISIBLE * np.array(whole)
    return place if enough.all() else None


def _paint(rng: np.random.Generator, canvas: np.ndarray, ink: np.ndarray) -> None:
    """Blend a digit of one colour with light shading into `canvas` `[3, h, w]`, in place."""
    behind = canvas[:, ink > 0.5]
    behind = behind[:, :: 1 + behind.shape[1] // 100]  # [3, pixels], enough for an estimate
    colours = [_colour(rng, behind) for _ in range(3)]
    colour = max(colours, key=lambda candidate: _contrast(candidate, behind))
    height, width = ink.shape
    slope = rng.normal(0, 14, 2)
    rows = np.linspace(-1, 1, height)[:, None]
    shading = slope[0] * rows + slope[1] * np.linspace(-1, 1, width)  # [h, w]
    canvas += ink * (colour[:, None, None] + shading - canvas)


def _colour(rng: np.random.Generator, behind: np.ndarray) -> np.ndarray:
    """A colour `[3]` lighter or darker than the mean of the pixels `behind` `[3, pixels]`."""
    mean = behind.mean(axis=1)
    step = rng.uniform(45, 130) * (1 if mean.mean() < rng.uniform(80, 175) else -1)
    return (mean + step + rng.normal(0, 25, 3)).clip(0, 255)


def _contrast(colour: np.ndarray, behind: np.ndarray) -> float:
    """The distance of `colour` `[3]` from the nearest tenth of the pixels `behind` `[3, pixels]`."""
    distance = ((behind - colour[:, None]) ** 2).sum(axis=0)
    tenth = len(distance) // 10
    return float(np.partition(distance, tenth)[tenth])


def _extents(instances: np.ndarray, count: int) -> np.ndarray:
    boxes = np.zeros((count, 4), dtype=np.float32)
    for index in range(count):
        rows, columns = np.nonzero(instances == index + 1)
        boxes[index] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return boxes
