"""Models of Hugging Face's transformers on `pliant.patch_transformers()`, with random weights.

pip install transformers && python tools/transformers_models.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import transformers
from third_party import compare
from torch import Tensor, nn

import pliant

STAGES = ["stage2", "stage3", "stage4"]


def deformable_detr() -> nn.Module:
    """Deformable DETR as published: ResNet-50, four maps, six layers of encoder and decoder."""
    config = transformers.DeformableDetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone_config=transformers.ResNetConfig(out_features=STAGES),
    )
    return transformers.DeformableDetrForObjectDetection(config)


def rt_detr() -> nn.Module:
    """RT-DETR as published: ResNet-50, six layers of the decoder."""
    return transformers.RTDetrForObjectDetection(transformers.RTDetrConfig(num_denoising=0))


def mask2former() -> nn.Module:
    """Mask2Former as published, with Swin-T: six layers of its pixel decoder attend to maps."""
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.SwinConfig(out_features=["stage1", *STAGES]), num_labels=80
    )
    return transformers.Mask2FormerForUniversalSegmentation(config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "Deformable DETR": deformable_detr,
    "RT-DETR": rt_detr,
    "Mask2Former": mask2former,
}


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """What the model says of images, as one vector."""
    found = model(images)
    parts = (found.logits, found.pred_boxes) if "logits" in found else (found.class_queries_logits,)
    return torch.cat([part.flatten() for part in parts])


def main(rounds: int = 5) -> None:
    """Print how much faster each model is, forward and in training, after its numbers were compared."""
    torch.set_num_threads(2)
    for name, build in MODELS.items():
        torch.manual_seed(0)
        model = build().eval()
        images = torch.rand(2, 3, 384, 512)
        wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]

        def forward(model: nn.Module = model, images: Tensor = images) -> Tensor:
            with torch.no_grad():
                return outputs(model, images)

        def train(model: nn.Module = model, images: Tensor = images, wanted: list[Tensor] = wanted) -> Tensor:
            gradients = torch.autograd.grad(outputs(model, images).square().mean(), wanted, allow_unused=True)
            return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])

        for what, run in (("forward", forward), ("forward + backward", train)):
            ratio, difference = compare(run, rounds, pliant.patch_transformers)
            print(f"{name}, {what}: {ratio:.2f} of the time, largest difference {difference:.1e} of the largest value")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
