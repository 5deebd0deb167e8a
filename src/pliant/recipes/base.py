"""The fields of recipes, and how the command line changes them."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import formatannotation
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from pliant import ranges
from pliant.schedule import Schedule
from pliant.suggestions import did_you_mean

R = TypeVar("R", bound="Recipe")
TIMM = "timm/"
PRETRAINED = "pretrained"
RANDOM = "random"


@dataclass(frozen=True, kw_only=True)
class Recipe(Schedule):
    """The fields that recipes of all tasks have; the defaults are the paper's for detection and segmentation.

    The type of a field determines its allowed values (`pliant.ranges`); any other value raises `ValueError`.

    Attributes:
        kind: The task, by the name of its module in `pliant.tasks`.
        max_steps: See `Schedule`, also for `momentum`, `weight_decay`, `decay_at`, `decay`, `warmup_steps` and
            `warmup_factor`.
        lr: Learning rate for `lr_batch` images in a step; it is scaled in proportion to `batch_size`.
        lr_batch: Number of images in a step for which `lr` is given.
        batch_size: Number of images in a step.
        clip: Upper limit of the gradient's norm; None for no limit.
        offset_lr_mult: Learning-rate multiplier of the offset branches (beta in the paper).
        bias_lr_mult: Learning-rate multiplier of biases.
        backbone: ``"resnet101"``, ``"resnet50"`` or ``"aligned_inception_resnet"`` as in the paper, or the name of a
            timm model after ``"timm/"``.
        weights: Initial weights: a run folder or a file (docs/weights.md), ``"pretrained"`` for timm's own weights of
            the backbone, or ``"random"``. None is random as well, but is an error if the batch norms are frozen.
        frozen: Whether the batch norms of the backbone are frozen. None freezes them, except in a timm model without
            weights. In detectors and segmenters only those of timm models can be trained.
        deform_layers: Number of deformable 3x3 convolutions, counted from the last one of the backbone.
        dilation: Dilation of the 3x3 convolutions of the last stage.
        padded_pool: Whether the first pooling of the paper's ResNets has padding, as in Keras' port of the weights.
        border: Rule of the deformable convolutions at the border of the map, ``"paper"`` or ``"authors"``.
        offset_groups: Number of groups of input channels with offsets of their own.
        modulated: Whether the deformable convolutions also weight their samples (DCNv2).
        offset_dilation: Dilation of the convolutions that predict offsets; None for that of the deformable layer.
        image_mean: Colour that is subtracted from images, RGB in 0..1; None for that of the backbone.
        freeze_below: The first stage that is trained, ``"conv4"`` or ``"conv5"``; None for ``"conv3"`` as in the paper
            (the paper's networks only).
        framing: How images, boxes and scores lie on the map, ``"paper"`` or ``"authors"``; see `pliant.models.rfcn`
            and `pliant.models.deeplab`.
        short_side: Target length of the short side of images, in pixels.
        max_side: Upper limit of the long side of images, in pixels; takes precedence over `short_side`.
        flip: Probability of a horizontal flip in training.
        aspect_grouping: Whether a training batch holds only upright or only wide images.
        layout: Layout of the data: ``"voc"``, ``"coco"``, ``"yolo"`` or ``"labelme"`` for detection and segmentation,
            ``"csv"`` for detection, ``"cityscapes"`` or ``"masks"`` for segmentation, ``"folders"`` for classification;
            None for the one that is found.
        classes: Names of the classes; empty for those found in the data.
        train_split: Split to train on; several are joined by ``+`` (VOC). If the data lacks it and it was not set
            explicitly, ``trainval`` or ``train`` is used.
        test_split: Split to evaluate on. If the data lacks it and it was not set explicitly, ``test`` or ``val`` is
            used.
        val_split: Split to validate on during training, which chooses the best checkpoint. None for ``val``, unless
            that is trained on or that the recipe evaluates; without one, a part of the training split is held out.
        val_fraction: Fraction of the training split to hold out for validation, if the data has no split for it and
            the recipe names none to train on; 0 for none.
        test_fraction: Fraction to hold out for evaluation, of data that are not split at all; 0 for none.
        split_seed: Seed of the images that are held out.
        seed: Seed of all random numbers.
        workers: Number of processes that load data; the losses do not depend on it.
        precision: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
        accelerator: ``"auto"``, ``"cpu"`` or ``"gpu"``.
        checkpoint_every: Number of steps between checkpoints.
        validate_every: Number of steps between validations.
        full_checkpoints: Whether checkpoints contain the weights as well, so that each is complete in one file; by
            default these are stored once, in the files of weights.
    """

    kind: ClassVar[str]

    max_steps: ranges.Steps = 30_000
    lr: ranges.Rate = 1e-3
    lr_batch: ranges.Images = 8
    batch_size: ranges.Images = 8
    clip: ranges.Norm | None = None
    offset_lr_mult: ranges.Multiplier = 1.0
    bias_lr_mult: ranges.Multiplier = 1.0
    backbone: ranges.Text = "resnet101"
    weights: ranges.Text | None = None
    frozen: bool | None = None
    deform_layers: ranges.Layers = 0
    dilation: ranges.Dilation = 2
    padded_pool: bool = False
    border: Literal["paper", "authors"] = "paper"
    offset_groups: ranges.Groups = 1
    modulated: bool = False
    offset_dilation: ranges.Dilation | None = None
    image_mean: ranges.Colour | None = None
    freeze_below: Literal["conv3", "conv4", "conv5"] | None = None
    framing: Literal["paper", "authors"] = "paper"
    short_side: ranges.Pixels = 600
    max_side: ranges.Pixels = 1000
    flip: ranges.Fraction = 0.5
    aspect_grouping: bool = False
    layout: Literal["voc", "coco", "yolo", "labelme", "csv", "cityscapes", "masks"] | None = None
    classes: ranges.Names = ()
    train_split: ranges.Text | None = None
    test_split: ranges.Text | None = None
    val_split: ranges.Text | None = None
    val_fraction: ranges.HeldOut = 0.15
    test_fraction: ranges.HeldOut = 0.15
    split_seed: ranges.Seed = 0
    seed: ranges.Seed = 0
    workers: ranges.Workers = 0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    checkpoint_every: ranges.Steps = 500
    validate_every: ranges.Steps = 1000
    full_checkpoints: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.short_side > self.max_side:
            raise ValueError(f"short_side must be at most max_side, got {self.short_side} and {self.max_side}")

    @property
    def fixed_norms(self) -> bool:
        """Whether the batch norms of the backbone are frozen."""
        if self.frozen is not None:
            return self.frozen
        return self.weights is not None or not self.backbone.startswith(TIMM)

    @property
    def scaled_lr(self) -> float:
        """The learning rate for `batch_size` images in a step."""
        return self.lr * self.batch_size / self.lr_batch

    @property
    def schedule(self) -> Schedule:
        """The fields of `Schedule` alone, with the learning rate for `batch_size` images in a step."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(Schedule)}
        return Schedule(**{**values, "lr": self.scaled_lr})

    def replaced(self, **changes: Any) -> Self:
        """The recipe with some fields changed."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe(Recipe):
    """A detector.

    Attributes:
        network: The network, by the name of its function in `pliant.models`.
        deform_roi: Whether RoI pooling is deformable.
        deform_stages: Number of stages whose 3x3 convolutions are all deformable, counted from the last one
            (`fpn_faster_rcnn`, which has this in place of `deform_layers` and `deform_roi`).
        sampling: Where the bins of RoI pooling sample, ``"authors"`` or ``"paper"``. The authors' samples are the
            default since they gave more accurate boxes (docs/results.md).
        bins: k of position-sensitive RoI pooling (`rfcn`).
        hardest: Whether to learn from the 128 RoIs with the largest loss, in place of 128 random ones (`rfcn`).
        background_iou: Lower limit of a background RoI's overlap with an object; RoIs below it are not trained on
            (`faster_rcnn`).
        roi_offset_lr_mult: Learning-rate multiplier of the layer that predicts the offsets of bins in deformable RoI
            pooling (beta in the paper; `faster_rcnn`).
        reduce_lr_mult: Learning-rate multiplier of the new 1x1 convolution on conv5.
        anchor_scales: Square roots of the anchors' areas, in multiples of 16 pixels of the scaled image. None:
            determined by the boxes of the training images when a training starts
            (`pliant.models.anchors.fitted_scales`).
        score_threshold: Lower limit of a detection's score.
        nms_threshold: Upper limit of a detection's overlap with a better one of its class.
        max_detections: Upper limit of the number of detections in an image.
    """

    kind = "detection"

    network: Literal["faster_rcnn", "rfcn", "class_aware_rpn", "fpn_faster_rcnn"] = "faster_rcnn"
    deform_roi: bool = False
    deform_stages: ranges.Stages = 0
    sampling: Literal["paper", "authors"] = "authors"
    bins: ranges.Bins = 7
    hardest: bool = True
    background_iou: ranges.BackgroundIoU = 0.1
    roi_offset_lr_mult: ranges.Multiplier = 0.01
    reduce_lr_mult: ranges.Multiplier = 1.0
    anchor_scales: ranges.AnchorScales | None = (8, 16, 32)
    score_threshold: ranges.Score = 1e-3
    nms_threshold: ranges.Fraction = 0.3
    max_detections: ranges.Detections = 300


@dataclass(frozen=True, kw_only=True)
class SegmentationRecipe(Recipe):
    """A semantic segmenter.

    Attributes:
        crop: Height and width of a random crop in training, in pixels, or one number for both; None for whole images.
        mask_values: The class of each value of a mask, such as ``0:background`` and ``255:leaf``, ``#ff0000:leaf``
            for a colour, or ``*:leaf`` for all other values. Empty for class ids; masks of 0 and 255 alone are
            understood without it.
        ignored_ids: Values of a mask that are ignored, besides 255 among ids.
    """

    kind = "segmentation"

    short_side: ranges.Pixels = 360
    max_side: ranges.Pixels = 600
    crop: ranges.Crop | None = None
    mask_values: ranges.MaskValues = ()
    ignored_ids: ranges.MaskIds = ()


@dataclass(frozen=True, kw_only=True)
class ClassificationRecipe(Recipe):
    """An image classifier, whose weights can initialise the backbones of detectors and segmenters.

    It is evaluated on the central crop of images that are scaled by `short_side` and `max_side`.

    Attributes:
        crop: Side of the square that the network sees, in pixels; in training it is a random part of the image.
    """

    kind = "classification"

    frozen: bool = False
    dilation: ranges.Dilation = 1
    short_side: ranges.Pixels = 256
    max_side: ranges.Pixels = 4096
    layout: Literal["folders"] | None = None  # type: ignore[assignment]
    crop: ranges.Pixels = 224

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop > self.short_side:
            raise ValueError(f"crop must be at most short_side, got {self.crop} and {self.short_side}")
        if self.dilation != 1 or self.framing != "paper" or self.freeze_below is not None:
            options = f"dilation={self.dilation}, framing={self.framing} and freeze_below={self.freeze_below}"
            raise ValueError(f"a classifier has no {options}")


def override(recipe: R, assignments: Sequence[str]) -> R:
    """Change fields by assignments ``field=value``.

    Commas separate the items of lists, ``none`` is None, and ``true`` and ``false`` are booleans. ``weights=timm/NAME``
    sets both ``backbone=timm/NAME`` and ``weights=pretrained``.

    Raises:
        ValueError: If a text is not an assignment, there is no such field, or the value is not of its type or range.
    """
    types, plain = ranges.field_types(type(recipe)), typing.get_type_hints(type(recipe))
    values = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name, text = name.strip(), text.strip()
        if not equals:
            raise ValueError(f"expected field=value, got {assignment!r}")
        if name not in types:
            fields = ", ".join(f"{field} ({formatannotation(plain[field])})" for field in types)
            meant = did_you_mean(name, types) or "."
            raise ValueError(f"{type(recipe).__name__} has no field {name!r}{meant} Fields: {fields}")
        options = typing.get_args(plain[name]) or (plain[name],)
        value: Any = text
        if text.lower() == "none" and type(None) in options:
            value = None
        elif any(typing.get_origin(option) is tuple for option in (plain[name], *options)):
            value = [part.strip() for part in text.split(",") if part.strip()]
        values[name] = ranges.read(name, value, types[name], strict=False)
    values |= _timms(values)
    return dataclasses.replace(recipe, **values)


def _timms(values: Mapping[str, Any]) -> dict[str, Any]:
    """The two fields that ``weights=timm/NAME`` stands for."""
    name = str(values.get("weights"))
    if not name.startswith(TIMM) or Path(name).exists():
        return {}
    if values.get("backbone", name) != name:
        raise ValueError(f"weights={name} sets the backbone as well, got backbone={values['backbone']}; leave out one")
    return {"backbone": name, "weights": PRETRAINED}


def to_fields(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe, for JSON."""
    return dataclasses.asdict(recipe)


def from_fields(cls: type[Recipe], fields: Mapping[str, Any]) -> Recipe:
    """A recipe from the fields that `to_fields` returned, after a round trip through JSON.

    Raises:
        ValueError: If a field is unknown, or a value is not allowed.
    """
    unknown = sorted(set(fields) - set(ranges.field_types(cls)))
    if unknown:
        raise ValueError(
            f"unknown fields {', '.join(unknown)} for {cls.kind}; another version of Pliant may have written them"
        )
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return cls(**values)
