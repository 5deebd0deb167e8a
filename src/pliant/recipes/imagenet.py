"""Training classifiers on ImageNet, and on any folder of images sorted by class.

The paper trains Aligned-Inception-ResNet on ImageNet-1K as He et al. (2016) train ResNet, and gives no other details.
He et al. use 256 images a step, and the learning rate, momentum, weight decay, crops of 224 pixels and flips below.
They divided the rate by ten when the error stopped falling, in up to 600,000 steps, and cropped images scaled to a
short side of 256 to 480. Here, as in later implementations, the rate falls after 30 and 60 of 90 epochs, crops have
random sizes and shapes, and the evaluation uses the central crop, where He et al. average ten. Biases do not decay.

The data are folders ``train/CLASS`` and ``val/CLASS``. ImageNet's ``val`` is validated on during training, and
evaluated at the end.
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
