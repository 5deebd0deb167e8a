"""Training classifiers on ImageNet, and on any folder of images sorted by class.

The paper trains Aligned-Inception-ResNet on ImageNet-1K as He et al. (2016) train ResNet, and says no more. Theirs are
256 images a step, the learning rate, momentum, weight decay, crops of 224 pixels and flips. They let the rate fall to a
tenth when the error stood still, in up to 600,000 steps, and took crops of images scaled to a short side of 256 to 480.
Here, as in the implementations that followed them, it falls after 30 and 60 of 90 epochs, crops have random sizes and
shapes, and the central crop is judged, where they average ten. Biases do not decay.

The data are folders ``train/CLASS`` and ``val/CLASS``. ImageNet's ``val`` is what is judged at the end, so none is left
to validate on while training: ``--set val_split=val`` looks at it all the same.
"""

from __future__ import annotations

from dataclasses import replace

from pliant.recipes.base import ClassificationRecipe

_IMAGES = 1_281_167


def resnet101() -> ClassificationRecipe:
    """ResNet-101 in the form of He et al.'s Caffe model: 90 epochs, 256 images a step."""
    return ClassificationRecipe(
        lr=0.1,
        lr_batch=256,
        batch_size=256,
        weight_decay=1e-4,
        max_steps=round(90 * _IMAGES / 256),
        decay_at=(30 / 90, 60 / 90),
        checkpoint_every=1000,
        validate_every=5000,
    )


def aligned_inception_resnet() -> ClassificationRecipe:
    """Aligned-Inception-ResNet."""
    return replace(resnet101(), backbone="aligned_inception_resnet")


def aligned_inception_resnet_deform() -> ClassificationRecipe:
    """All nine 3x3 convolutions of the last stage deformable. The paper has none in a classifier."""
    return replace(aligned_inception_resnet(), deform_layers=9)
