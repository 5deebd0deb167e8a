"""What a recipe holds, how one is found by name, and how its fields are changed from the command line."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pliant import ranges
from pliant.recipes.field_types import describe, parse, require_type
from pliant.schedule import Schedule

R = TypeVar("R", bound="Recipe")
PRETRAINED = "pretrained"
RANDOM = "random"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What all kinds have in common; the defaults are the paper's for detection and segmentation.

    The range of each field stands beside its type; a value outside is a `ValueError` that shows both.

    Attributes:
        backbone: ``"resnet101"``, ``"resnet50"`` or ``"aligned_inception_resnet"`` as in the paper, or any timm name
            after ``"timm/"``.
        weights: First weights of the backbone: a file, ``"pretrained"`` for timm's own, ``"random"`` for random
            numbers. None is random as well, and refused where the batch norms are fixed.
        frozen: Whether the batch norms are fixed. None: they are, except in a timm model that has no weights; below
            detectors and segmenters, only those of timm models can be trained.
        deform_layers: How many of the last 3x3 convolutions of the backbone are deformable.
        dilation: Of the 3x3 convolutions of the last stage.
        padded_pool: The first pooling of the paper's ResNets with padding, as Keras' port of the weights has it.
        border: The rule of the deformable convolutions at the border, ``"paper"`` or ``"authors"``.
        offset_groups: Groups of input channels that are deformed separately.
        modulated: Whether the deformable convolutions also weigh their samples.
        offset_dilation: Of the convolutions that predict offsets; None for that of the layer.
        image_mean: The colour that is subtracted from images, RGB in 0..1; None for that of the backbone.
        framing: How images, boxes and scores lie on the map, ``"paper"`` or ``"authors"``; see `pliant.models.rfcn`
            and `pliant.models.deeplab`.
        offset_lr_mult: The learning rate of these, times this (beta in the paper).
        bias_lr_mult: The learning rate of biases, times this.
        lr: The learning rate at `lr_batch` images a step; it is used in proportion to `batch_size`.
        lr_batch: See `lr`.
        batch_size: Images a step.
        max_steps: Optimizer steps.
        momentum: Of the gradient.
        weight_decay: Not applied to biases.
        decay_at: After which fractions of `max_steps` the learning rate is multiplied by `decay`.
        decay: See `decay_at`.
        warmup_steps: How many steps use the learning rate times `warmup_factor`.
        warmup_factor: See `warmup_steps`.
        clip: The largest norm of the gradient; None for no limit.
        short_side: Pixels the shorter side of an image is scaled to ...
        max_side: ... unless the longer one would exceed this.
        flip: The probability of a horizontal flip in training.
        aspect_grouping: Whether the images of a training batch are all upright or all wide.
        layout: The layout of the data: ``"voc"``, ``"coco"`` or ``"cityscapes"``; ``"folders"`` for classification.
        classes: Names to use instead of those found in the data; none means those found.
        train_split: To train on; several are joined by ``+`` (VOC). If the data has no such split, and it was
            not asked for explicitly, one is chosen: ``trainval`` or ``train``.
        test_split: To judge on, likewise: ``test`` or ``val``.
        val_split: To validate on while training, and choose the best checkpoint by. None: ``val``, if that
            is neither trained nor tested on.
        seed: Of everything.
        workers: Processes that load data; the losses do not depend on it.
        precision: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
        accelerator: ``"auto"``, ``"cpu"`` or ``"gpu"``.
        checkpoint_every: Steps between checkpoints.
        validate_every: Steps between validations.
    """

    kind: ClassVar[str]

    backbone: Annotated[str, ranges.Text()] = "resnet101"
    weights: Annotated[str | None, ranges.Text()] = None
    frozen: bool | None = None
    deform_layers: Annotated[int, ranges.LAYERS] = 0
    dilation: Annotated[int, ranges.DILATION] = 2
    padded_pool: bool = False
    border: Literal["paper", "authors"] = "paper"
    offset_groups: Annotated[int, ranges.GROUPS] = 1
    modulated: bool = False
    offset_dilation: Annotated[int | None, ranges.DILATION] = None
    image_mean: Annotated[tuple[float, ...] | None, *ranges.COLOUR] = None
    framing: Literal["paper", "authors"] = "paper"
    offset_lr_mult: Annotated[float, ranges.MULTIPLIER] = 1.0
    bias_lr_mult: Annotated[float, ranges.MULTIPLIER] = 1.0
    lr: Annotated[float, ranges.RATE] = 1e-3
    lr_batch: Annotated[int, ranges.IMAGES] = 8
    batch_size: Annotated[int, ranges.IMAGES] = 8
    max_steps: Annotated[int, ranges.STEPS] = 30_000
    momentum: Annotated[float, ranges.MOMENTUM] = 0.9
    weight_decay: Annotated[float, ranges.FRACTION] = 5e-4
    decay_at: Annotated[tuple[float, ...], ranges.Items(rising=True), ranges.BETWEEN] = (2 / 3,)
    decay: Annotated[float, ranges.FACTOR] = 0.1
    warmup_steps: Annotated[int, ranges.WARMUP_STEPS] = 0
    warmup_factor: Annotated[float, ranges.FACTOR] = 0.1
    clip: Annotated[float | None, ranges.NORM] = None
    short_side: Annotated[int, ranges.PIXELS] = 600
    max_side: Annotated[int, ranges.PIXELS] = 1000
    flip: Annotated[float, ranges.FRACTION] = 0.5
    aspect_grouping: bool = False
    layout: Literal["voc", "coco", "cityscapes"] = "voc"
    classes: Annotated[tuple[str, ...], ranges.Items(distinct=True), ranges.Text()] = ()
    train_split: Annotated[str | None, ranges.Text()] = None
    test_split: Annotated[str | None, ranges.Text()] = None
    val_split: Annotated[str | None, ranges.Text()] = None
    seed: Annotated[int, ranges.SEED] = 0
    workers: Annotated[int, ranges.Range(least=0, most=1024)] = 0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    checkpoint_every: Annotated[int, ranges.STEPS] = 500
    validate_every: Annotated[int, ranges.STEPS] = 1000

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            require_type(field.name, getattr(self, field.name), hints[field.name])
        ranges.check_fields(self)
        if self.short_side > self.max_side:
            raise ValueError(f"short_side must be at most max_side, got {self.short_side} and {self.max_side}")

    @property
    def fixed_norms(self) -> bool:
        """Whether the batch norms of the backbone are fixed."""
        if self.frozen is not None:
            return self.frozen
        return self.weights is not None or not self.backbone.startswith("timm/")

    @property
    def scaled_lr(self) -> float:
        """The learning rate for the true batch."""
        return self.lr * self.batch_size / self.lr_batch

    @property
    def schedule(self) -> Schedule:
        """The learning rate over the steps, for the true batch."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(Schedule)}
        return Schedule(**{**fields, "lr": self.scaled_lr})

    def replaced(self, **changes: Any) -> Self:
        """The recipe with other values of some fields."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe(Recipe):
    """A detector.

    Attributes:
        network: Which one.
        deform_roi: Whether RoI pooling is deformable.
        deform_stages: In how many of the last stages all 3x3 convolutions are deformable (`fpn_faster_rcnn`, which
            has this instead of `deform_layers` and `deform_roi`).
        sampling: Where bins of RoI pooling sample, ``"paper"`` or ``"authors"``.
        bins: k of position-sensitive RoI pooling (`rfcn`).
        hardest: Learn from the 128 RoIs with the largest loss, and not from 128 drawn ones (`rfcn`).
        background_iou: RoIs that overlap every object by less are not learned from (`faster_rcnn`).
        roi_offset_lr_mult: The learning rate of the layer that predicts the offsets of bins in deformable RoI
            pooling, times this (beta in the paper; `faster_rcnn`).
        reduce_lr_mult: The learning rate of the new 1x1 convolution on conv5, times this.
        anchor_scales: Square roots of the anchors' areas, in multiples of 16 pixels of the scaled image.
        score_threshold: Detections below are not given.
        nms_threshold: Detections of a class that overlap a better one by more are not given.
        max_detections: The most that are given for an image.
    """

    kind = "detection"
    network: Literal["faster_rcnn", "rfcn", "class_aware_rpn", "fpn_faster_rcnn"] = "faster_rcnn"
    deform_roi: bool = False
    deform_stages: Annotated[int, ranges.STAGES] = 0
    sampling: Literal["paper", "authors"] = "paper"
    bins: Annotated[int, ranges.BINS] = 7
    hardest: bool = True
    background_iou: Annotated[float, ranges.BACKGROUND] = 0.1
    roi_offset_lr_mult: Annotated[float, ranges.MULTIPLIER] = 0.01
    reduce_lr_mult: Annotated[float, ranges.MULTIPLIER] = 1.0
    anchor_scales: Annotated[tuple[int, ...], *ranges.ANCHOR_SCALES] = (8, 16, 32)
    score_threshold: Annotated[float, ranges.SCORE] = 1e-3
    nms_threshold: Annotated[float, ranges.OVERLAP] = 0.3
    max_detections: Annotated[int, ranges.DETECTIONS] = 300


@dataclass(frozen=True, kw_only=True)
class SegmentationRecipe(Recipe):
    """A semantic segmenter.

    Attributes:
        crop: Height and width in pixels of a random crop in training, or one number for both; None for whole images.
    """

    kind = "segmentation"
    short_side: Annotated[int, ranges.PIXELS] = 360
    max_side: Annotated[int, ranges.PIXELS] = 600
    crop: Annotated[tuple[int, ...] | None, ranges.Items(lengths=(1, 2)), ranges.PIXELS] = None


@dataclass(frozen=True, kw_only=True)
class ClassificationRecipe(Recipe):
    """An image classifier, from whose weights the backbones of the other kinds start.

    It is judged on the central crop of images scaled by `short_side` and `max_side`.

    Attributes:
        crop: The side in pixels of the square that the network sees; in training it is a random part of the image.
    """

    kind = "classification"
    frozen: bool = False
    dilation: Annotated[int, ranges.DILATION] = 1
    short_side: Annotated[int, ranges.PIXELS] = 256
    max_side: Annotated[int, ranges.PIXELS] = 4096
    layout: Literal["folders"] = "folders"  # type: ignore[assignment]
    crop: Annotated[int, ranges.PIXELS] = 224

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop > self.short_side:
            raise ValueError(f"crop must be at most short_side, got {self.crop} and {self.short_side}")
        if self.dilation != 1 or self.framing != "paper":
            raise ValueError(f"a classifier has no dilation={self.dilation} and framing={self.framing}")


def override(recipe: R, assignments: Sequence[str]) -> R:
    """Change fields by texts ``field=value``.

    Lists are separated by commas, ``none`` is None, ``true`` and ``false`` are the truth values.

    Raises:
        ValueError: If a text is not an assignment, there is no such field, or the value is not of its type or range.
    """
    hints = typing.get_type_hints(type(recipe))
    names = {field.name for field in dataclasses.fields(recipe)}
    values = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name = name.strip()
        if not equals:
            raise ValueError(f"expected field=value, got {assignment!r}")
        if name not in names:
            raise ValueError(f"{type(recipe).__name__} has no field {name!r}; fields: {_fields(recipe)}")
        try:
            values[name] = parse(text.strip(), hints[name])
        except ValueError:
            raise ValueError(f"{name} must be {describe(hints[name])}, got {text.strip()!r}") from None
    return dataclasses.replace(recipe, **values)


def to_fields(recipe: Recipe) -> dict[str, Any]:
    """The fields as JSON can hold them."""
    return dataclasses.asdict(recipe)


def from_fields(cls: type[Recipe], fields: Mapping[str, Any]) -> Recipe:
    """A recipe of a class from what `to_fields` gave and JSON kept.

    Raises:
        ValueError: If a field is unknown.
        TypeError: If a value is not of its field's type.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ValueError(
            f"unknown fields {', '.join(unknown)} for {cls.kind}; another version of Pliant may have written them"
        )
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return cls(**values)


def _fields(recipe: Recipe) -> str:
    hints = typing.get_type_hints(type(recipe))
    return ", ".join(f"{field.name} ({describe(hints[field.name])})" for field in dataclasses.fields(recipe))
