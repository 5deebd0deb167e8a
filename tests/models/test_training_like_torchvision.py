"""Training with Pliant's operator is training with torchvision's, step by step."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from pliant.engine.segmentation import SegmentationModule, pixel_loss
from pliant.models import DeepLab, deeplab
from pliant.nn import DeformConv2d
from pliant.schedule import Schedule

STEPS = 4


class TorchvisionDeformConv2d(DeformConv2d):
    """The same layer on torchvision's operator."""

    def forward(self, input: Tensor) -> Tensor:
        offset, mask = self.split(self.offset_conv(input))
        return torchvision.ops.deform_conv2d(
            input, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask
        )


def networks(modulated: bool) -> tuple[DeepLab, DeepLab]:
    built = []
    for plain in (True, False):
        torch.manual_seed(0)
        model = deeplab(3, backbone="timm/resnet10t", frozen=False, deform_layers=2, modulated=modulated).double()
        layers = [layer for layer in model.modules() if isinstance(layer, DeformConv2d)]
        assert len(layers) == 2
        for layer in layers if plain else ():
            layer.__class__ = TorchvisionDeformConv2d
        built.append(model)
    return built[0], built[1]


def steps(model: nn.Module) -> list[dict[str, Tensor]]:
    """The loss, and the gradient and value of every parameter, in each step."""
    module = SegmentationModule(model, Schedule(max_steps=STEPS, lr=0.1, warmup_steps=0), ("a", "b", "c"))
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    torch.manual_seed(1)
    images, masks = torch.rand(2, 3, 80, 112, dtype=torch.float64), torch.randint(0, 3, (2, 80, 112))
    found = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = pixel_loss(model(images)["out"], masks)
        loss.backward()
        optimizer.step()
        scheduler.step()
        trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
        found.append(
            {"loss": loss.detach()}
            | {f"{name}.grad": value.grad.clone() for name, value in trained if value.grad is not None}
            | {name: value.detach().clone() for name, value in trained}
        )
    return found


@pytest.mark.parametrize("modulated", [False, True])
def test_losses_gradients_and_weights_are_those_of_torchvisions_operator(modulated: bool) -> None:
    theirs, ours = (steps(model) for model in networks(modulated))
    offsets = [name for name in ours[-1] if "offset_conv.weight" in name and not name.endswith("grad")]
    assert len(offsets) == 2
    assert all(ours[-1][name].any() for name in offsets), "the offset branches are trained"
    for one, other in zip(theirs, ours, strict=True):
        scales = {name: float(value.abs().max()) for name, value in one.items()}
        apart = {name: float((other[name] - value).abs().max()) for name, value in one.items()}
        assert not {name: (apart[name], scales[name]) for name in one if apart[name] > 1e-8 * scales[name]}
