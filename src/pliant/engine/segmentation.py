"""Training and evaluation of a semantic segmenter of torchvision's convention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pliant import distributed
from pliant.constants import IGNORE
from pliant.engine.metrics import SegmentationMetrics, require_ids
from pliant.engine.training import TrainingModule
from pliant.schedule import Schedule

# ImageNet's mean colour: close to zero once a network has normalised the image.
_PADDING = (0.485, 0.456, 0.406)


class SegmentationModule(TrainingModule):
    """A segmenter in training.

    A training batch is images, float [N, 3, H, W] in 0..1, and masks, integer [N, H, W], 255 to ignore; a
    validation batch is a list of images [3, h, w] and a list of masks [H, W] of their own sizes.

    Args:
        model: Maps images [N, 3, H, W] to ``{"out": logits [N, C, H, W]}``.
        schedule: The learning rate over the steps.
        classes: The C names, the background's first.
        seed: Seed of the run.
        lr_mult: See `pliant.param_groups`.
    """

    monitor = "mIoU"
    metrics: SegmentationMetrics

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        classes: Sequence[str],
        *,
        seed: int = 0,
        lr_mult: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(model, schedule, SegmentationMetrics(classes), seed=seed, lr_mult=lr_mult)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, masks = batch
        # With the mean count as the divisor, DDP's mean of the gradients is that over all pixels of all processes.
        pixels = distributed.mean((masks != IGNORE).sum())
        return self.total_loss({"loss_pixel": pixel_loss(self.model(images)["out"], masks, pixels)})

    def validation_step(self, batch: tuple[list[Tensor], list[Tensor]], batch_idx: int) -> None:
        for image, mask in zip(*batch, strict=True):
            self.metrics.update(self._classes_of(image), mask)

    def test_step(self, batch: tuple[list[Tensor], list[Tensor]], batch_idx: int) -> None:
        for image, mask in zip(*batch, strict=True):
            ids = self._classes_of(image)
            self.metrics.update(ids, mask)
            self.extremes.add(self.metrics.last_mean, ids.to(torch.uint8).cpu())

    def _classes_of(self, image: Tensor) -> Tensor:
        """The class of each pixel of an image [3, H, W], int64 [H, W]."""
        return self.model(image[None])["out"][0].argmax(dim=0)


def pixel_loss(logits: Tensor, masks: Tensor, pixels: Tensor | None = None) -> Tensor:
    """Cross entropy, the mean over the pixels that are not 255; 0 if all are.

    Args:
        logits: [N, C, H, W].
        masks: Integer [N, H, W].
        pixels: What to divide the sum by; None for the number of pixels that are not 255.

    Raises:
        TypeError: If masks are no integers.
        ValueError: If an id of the masks is neither 0 to C - 1 nor 255, or shapes differ.
    """
    if masks.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(f"masks must have shape {[logits.shape[0], *logits.shape[2:]]}, got {list(masks.shape)}")
    require_ids("masks", masks, logits.shape[1], IGNORE)
    if pixels is None:
        pixels = (masks != IGNORE).sum()
    total = functional.cross_entropy(logits.float(), masks.long(), ignore_index=IGNORE, reduction="sum")
    return total / torch.where(pixels > 0, pixels, 1)


def collate_training(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Samples as one batch, padded at the right and bottom to the largest height and width.

    Images are padded with ImageNet's mean colour, masks with 255.

    Returns:
        Images [N, 3, H, W] and int64 masks [N, H, W].
    """
    height = max(image.shape[-2] for image, _ in samples)
    width = max(image.shape[-1] for image, _ in samples)
    images = torch.empty(len(samples), 3, height, width)
    images[:] = torch.tensor(_PADDING)[:, None, None]
    masks = torch.full((len(samples), height, width), IGNORE, dtype=torch.int64)
    for place, (image, mask) in enumerate(samples):
        h, w = mask.shape
        images[place, :, :h, :w] = image
        masks[place, :h, :w] = mask
    return images, masks


def collate_evaluation(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """Samples as lists; images and masks keep their sizes."""
    return [image for image, _ in samples], [mask for _, mask in samples]
