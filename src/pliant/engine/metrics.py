"""The metrics of detection, segmentation and classification."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
from torchmetrics.detection import MeanAveragePrecision

from pliant import distributed
from pliant.constants import IGNORE
from pliant.engine.voc_ap import VOCAveragePrecision


@dataclass(frozen=True)
class Curves:
    """Precision over recall of a detector, as COCO's evaluation interpolates it.

    Attributes:
        labels: The label of each class that occurs, 1 to C [K].
        precision: At the overlaps 0.5 to 0.95 and the recalls 0 to 1 [10, 101, K]; -1 for a class without objects.
        scores: The lowest score at each of these [10, 101, K].
    """

    labels: list[int]
    precision: np.ndarray
    scores: np.ndarray

    def average_precision(self, overlap: float) -> dict[int, float]:
        """The area under each class's curve at an overlap of 0.5, 0.55, ..., 0.95, by label; -1 without objects."""
        at = round((overlap - 0.5) / 0.05)
        return dict(zip(self.labels, self.precision[at].mean(axis=0).tolist(), strict=True))


@dataclass(frozen=True)
class EvaluatedImage:
    """What was found in an image and what is there, on the CPU.

    Attributes:
        image_id: No other image has it.
        found: ``boxes`` [K, 4], ``scores`` [K] and ``labels`` [K].
        truth: ``boxes`` [L, 4], ``labels`` [L], perhaps ``area``, ``difficult`` and ``iscrowd`` [L].
    """

    image_id: int
    found: dict[str, Tensor]
    truth: dict[str, Tensor]


class DetectionMetrics:
    """COCO's and VOC's average precision together, over the images of all processes.

    COCO's come from torchmetrics' `MeanAveragePrecision` with faster-coco-eval. Difficult objects count as
    crowds there: they are neither required nor punished. Where targets have no ``image_id``, which is optional in
    torchvision's convention, images are counted. Detections of equal score are ranked in the order of the ids.

    Args:
        classes: The C foreground names; labels are 1 to C.

    Attributes:
        with_curves: Whether `compute` also keeps COCO's curves.
        curves: The curves of the last `compute`; None if they were not asked for.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.with_curves = False
        self._evaluated: list[EvaluatedImage] = []
        self._counts = False
        self.coco = MeanAveragePrecision(
            # pycocotools' own: torchmetrics' defaults are rounded to float32, which moves recalls that are met exactly.
            iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
            rec_thresholds=np.linspace(0.0, 1.0, 101).tolist(),
            class_metrics=True,
            backend="faster_coco_eval",
            sync_on_compute=False,
        )
        self.coco.warn_on_many_detections = False
        self.curves: Curves | None = None
        self.voc = VOCAveragePrecision(len(self.classes), sync_on_compute=False)

    def update(self, predictions: Sequence[dict[str, Tensor]], targets: Sequence[dict[str, Any]]) -> None:
        """Add images; see `VOCAveragePrecision.update`. Targets may hold ``area`` (square pixels [L])."""
        for prediction, target in zip(predictions, targets, strict=True):
            found = {key: _cpu(prediction[key]) for key in ("boxes", "scores", "labels")}
            truth: dict[str, Tensor] = {
                key: _cpu(target[key]) for key in ("boxes", "labels", "area", "difficult", "iscrowd") if key in target
            }
            self._evaluated.append(EvaluatedImage(self._id(target), found, truth))

    def _id(self, target: Mapping[str, Any]) -> int:
        """The id in the target; without one, the position of the image in the order that `evaluate` deals out."""
        place = distributed.rank() + len(self._evaluated) * distributed.count()
        if not self._evaluated:
            self._counts = "image_id" not in target
        if self._counts != ("image_id" not in target):
            raise ValueError("image_id must be in the targets of all images or of none")
        return place if self._counts else int(target["image_id"])

    def reset(self) -> None:
        """Forget all images."""
        self._evaluated = []

    def evaluated(self) -> list[EvaluatedImage]:
        """The images of all processes in the order of their ids, which does not depend on the number of processes."""
        evaluated = sorted(chain.from_iterable(distributed.gather(self._evaluated)), key=lambda image: image.image_id)
        for image, other in pairwise(evaluated):
            if image.image_id == other.image_id:
                raise ValueError(f"image_id must be another number for each image; several have {image.image_id}")
        return evaluated

    def compute(self) -> dict[str, Any]:
        """The results, as plain numbers.

        Returns:
            ``AP`` (mean over the overlaps 0.5 to 0.95), ``AP50``, ``AP75``; ``VOC_AP50``, ``VOC_AP70``
            (area) and ``VOC_AP50_11pt``, ``VOC_AP70_11pt``, in 0..1, NaN where no class has an object; and
            ``per_class``: for each name the same numbers, ``AP50`` and ``AP75`` only `with_curves`.
        """
        evaluated = self.evaluated()
        self.coco.reset()
        self.coco.extended_summary = self.with_curves
        self.coco.update([image.found for image in evaluated], [_coco_target(image.truth) for image in evaluated])
        coco = self.coco.compute()
        self.curves = _curves(coco)
        results: dict[str, Any] = {
            name: _absent_to_nan(float(coco[key]))
            for name, key in (("AP", "map"), ("AP50", "map_50"), ("AP75", "map_75"))
        }
        coco_ap: dict[int, float] = {}
        if "map_per_class" in coco:  # not where no image has an object or a detection
            labels, values = coco["classes"].reshape(-1).tolist(), coco["map_per_class"].reshape(-1).tolist()
            coco_ap = dict(zip(labels, values, strict=True))
        of_class = {"AP": coco_ap}
        if self.with_curves:
            for name, overlap in (("AP50", 0.5), ("AP75", 0.75)):
                of_class[name] = self.curves.average_precision(overlap) if self.curves else {}
        per_class: dict[str, dict[str, float]] = {
            class_name: {name: _absent_to_nan(values.get(label, -1.0)) for name, values in of_class.items()}
            for label, class_name in enumerate(self.classes, start=1)
        }
        self.voc.reset()
        self.voc.update(
            [image.found for image in evaluated], [{**image.truth, "image_id": image.image_id} for image in evaluated]
        )
        for threshold, by_kind in self.voc.compute().items():
            for kind, suffix in (("area", ""), ("11-point", "_11pt")):
                name = f"VOC_AP{round(float(threshold) * 100)}{suffix}"
                results[name] = nan_mean(by_kind[kind])
                for class_name, value in zip(self.classes, by_kind[kind], strict=True):
                    per_class[class_name][name] = value
        return {**results, "per_class": per_class}


class SegmentationMetrics:
    """Intersection over union per class and its mean, from one confusion matrix over all pixels.

    The union of a class is truth + prediction - intersection. Pixels whose truth is 255 do not count. Where truth
    and prediction differ in size, both results are given, with nearest neighbours: at the size of the truth, as
    Cityscapes' server has it, and at that of the prediction, as the paper's authors have it on VOC.

    Args:
        classes: The C names, the background's first; ids are 0 to C - 1.

    Attributes:
        last_mean: mIoU of the last image alone, over the classes in its truth or prediction; NaN if no pixel counts.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        if len(self.classes) < 2:
            raise ValueError(f"at least two classes are needed, background included; got {self.classes}")
        number = len(self.classes)
        self.last_mean = math.nan
        self.confusion = MulticlassConfusionMatrix(number, ignore_index=IGNORE, validate_args=False)
        self.scaled_confusion = MulticlassConfusionMatrix(number, ignore_index=IGNORE, validate_args=False)

    def update(self, prediction: Tensor, mask: Tensor) -> None:
        """Add an image.

        Args:
            prediction: Class ids, integer [h, w].
            mask: The truth, integer [H, W].
        """
        ids, truth = _cpu(prediction), _cpu(mask)
        require_ids("mask", truth, len(self.classes), IGNORE)
        before = self.confusion.confmat.clone()
        self.confusion.update(_resize_ids(ids, truth.shape)[None], truth.long()[None])
        self.last_mean = nan_mean(_overlaps((self.confusion.confmat - before).double()))
        self.scaled_confusion.update(ids.long()[None], _resize_ids(truth, ids.shape)[None])

    def reset(self) -> None:
        """Forget all images."""
        self.confusion.reset()
        self.scaled_confusion.reset()

    def compute(self) -> dict[str, Any]:
        """The results, as plain numbers.

        Returns:
            ``mIoU`` at the size of the truth, ``mIoU_scaled`` at that of the prediction, and ``pixel_accuracy``
            at the former, in 0..1, NaN if no pixel counts; and ``per_class``: for each name ``IoU`` and
            ``IoU_scaled``. The means are over all classes, the background's too, but for those that are in neither
            truth nor prediction.
        """
        matrix = self.confusion.compute().double()  # [C, C], rows are the truth
        per_class, scaled = _overlaps(matrix), _overlaps(self.scaled_confusion.compute().double())
        return {
            "mIoU": nan_mean(per_class),
            "mIoU_scaled": nan_mean(scaled),
            "pixel_accuracy": float(matrix.trace() / matrix.sum()),
            "per_class": {
                name: {"IoU": value, "IoU_scaled": at_scale}
                for name, value, at_scale in zip(self.classes, per_class, scaled, strict=True)
            },
        }


class ClassificationMetrics:
    """Top-1 and top-5 accuracy: how often the right class scores highest, or is among the five that do.

    Args:
        classes: The C names; labels are 0 to C - 1.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        if len(self.classes) < 2:
            raise ValueError(f"at least two classes are needed, got {self.classes}")
        number = len(self.classes)
        self.confusion = MulticlassConfusionMatrix(number, validate_args=False)
        self.top5 = MulticlassAccuracy(number, top_k=min(5, number), average="micro", validate_args=False)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add images.

        Args:
            logits: [N, C].
            labels: The truth, integer [N].
        """
        scores, truth = _cpu(logits).float(), _cpu(labels)
        require_ids("labels", truth, len(self.classes))
        self.confusion.update(scores, truth)
        self.top5.update(scores, truth)

    def reset(self) -> None:
        """Forget all images."""
        self.confusion.reset()
        self.top5.reset()

    def compute(self) -> dict[str, Any]:
        """The results, as plain numbers.

        Returns:
            ``top1`` and ``top5`` over all images, in 0..1; and ``per_class``: for each name ``top1``, NaN without
            an image of it.
        """
        matrix = self.confusion.compute().double()  # [C, C], rows are the truth
        per_class = (matrix.diagonal() / matrix.sum(dim=1)).tolist()  # 0 / 0 is NaN
        return {
            "top1": float(matrix.trace() / matrix.sum()),
            "top5": float(self.top5.compute()),
            "per_class": {name: {"top1": value} for name, value in zip(self.classes, per_class, strict=True)},
        }


def nan_mean(values: Sequence[float]) -> float:
    """The mean of the values that are not NaN; NaN if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def require_ids(name: str, ids: Tensor, classes: int, ignored: int | None = None) -> None:
    """Check the ids of a mask or of labels.

    Args:
        name: Their name in the error.
        ids: Integers of any shape.
        classes: C; ids are 0 to C - 1.
        ignored: An id that is allowed as well.

    Raises:
        TypeError: If they are no integers.
        ValueError: If one is out of range.
    """
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {ids.dtype}")
    counted = ids if ignored is None else ids[ids != ignored]
    if counted.numel() and not (counted.min() >= 0 and counted.max() < classes):
        besides = "" if ignored is None else f", or be {ignored}"
        raise ValueError(
            f"{name} must lie between 0 and {classes - 1}{besides}, got {int(counted.min())} to {int(counted.max())}"
        )


def _cpu(values: Tensor) -> Tensor:
    return values.detach().as_subclass(Tensor).cpu()


def _resize_ids(ids: Tensor, size: Sequence[int]) -> Tensor:
    """Integer [h, w] to int64 of another size."""
    if tuple(ids.shape) == tuple(size):
        return ids.long()
    return functional.interpolate(ids[None, None].float(), size=tuple(size), mode="nearest-exact")[0, 0].long()


def _overlaps(matrix: Tensor) -> list[float]:
    """Intersection over union of each class; NaN without a pixel."""
    agreed = matrix.diagonal()
    return (agreed / (matrix.sum(dim=1) + matrix.sum(dim=0) - agreed)).tolist()


def _curves(coco: Mapping[str, Any]) -> Curves | None:
    """The curves at all sizes of objects with at most a hundred detections, from torchmetrics' extended summary."""
    if "precision" not in coco:
        return None
    precision, scores = (np.asarray(coco[key])[:, :, :, 0, -1] for key in ("precision", "scores"))
    return Curves(coco["classes"].reshape(-1).tolist(), precision, scores)


def _coco_target(truth: dict[str, Tensor]) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {key: truth[key] for key in ("boxes", "labels", "area") if key in truth}
    flags = [truth[key].bool() for key in ("difficult", "iscrowd") if key in truth]
    if flags:
        result["iscrowd"] = torch.stack(flags).any(dim=0).int()
    return result


def _absent_to_nan(value: float) -> float:
    return math.nan if value < 0 else value
