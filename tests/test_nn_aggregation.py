"""DCNv3 and DCNv4 against the modules that they were released as, written again from their mathematics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant.nn import DCNv3, DCNv4

SIZE = (6, 5)


def released_sums(values: Tensor, offset: Tensor, mask: Tensor, kernel: int, pad: int, dilation: int, scale: float,
                  removed: bool) -> Tensor:  # fmt: skip
    """`[N, H, W, C]`, `[N, H, W, G, P, 2]`, `[N, H, W, G, P]` to `[N, H, W, C]`, by `grid_sample` of the padded map."""
    n, height, width, channels = values.shape
    groups, points = mask.shape[3:]
    padded = nn.functional.pad(values, (0, 0, pad, pad, pad, pad))
    sides = torch.tensor([padded.shape[2], padded.shape[1]])
    centre = dilation * (kernel - 1) // 2
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    cell = torch.stack((xs, ys), -1) + centre + 0.5
    steps = dilation * torch.arange(kernel) - centre
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)
    if removed:
        grid = torch.cat((grid[: kernel**2 // 2], grid[kernel**2 // 2 + 1 :]))
    places = 2 * (cell[:, :, None, None] + (grid + offset) * scale) / sides - 1
    places = places.permute(0, 3, 1, 2, 4, 5).reshape(n * groups, height * width, points, 2)
    maps = padded.permute(0, 3, 1, 2).reshape(n * groups, channels // groups, *padded.shape[1:3])
    read = nn.functional.grid_sample(maps, places, align_corners=False)
    factors = mask.permute(0, 3, 1, 2, 4).reshape(n * groups, 1, height * width, points)
    return (read * factors).sum(-1).reshape(n, channels, height, width).permute(0, 2, 3, 1)


def drawn(layer: nn.Module) -> dict[str, Tensor]:
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.4)
    return {name: value.detach() for name, value in layer.state_dict().items()}


def linear(state: dict[str, Tensor], name: str, input: Tensor) -> Tensor:
    return nn.functional.linear(input, state[f"{name}.weight"], state.get(f"{name}.bias"))


def with_centre(state: dict[str, Tensor], out: Tensor, values: Tensor, query: Tensor) -> Tensor:
    if "center_feature_scale_proj_weight" not in state:
        return out
    weight, bias = state["center_feature_scale_proj_weight"], state["center_feature_scale_proj_bias"]
    share = nn.functional.linear(query, weight, bias).sigmoid()
    share = share[..., None].repeat(1, 1, 1, 1, out.shape[-1] // len(weight)).flatten(-2)
    return out * (1 - share) + values * share


V3 = {
    "as published": {},
    "InternImage-H": {"dw_kernel_size": 5, "center_feature_scale": True, "offset_scale": 0.5},
    "without centre": {"remove_center": True, "offset_scale": 2.0},
    "wide": {"kernel_size": 5, "pad": 4, "dilation": 2},
    "batch norm": {"norm_layer": "BN", "act_layer": "ReLU"},
}
V3_STATE = [
    "dw_conv.0.weight",
    "dw_conv.0.bias",
    "dw_conv.1.1.weight",
    "dw_conv.1.1.bias",
    "offset.weight",
    "offset.bias",
    "mask.weight",
    "mask.bias",
    "input_proj.weight",
    "input_proj.bias",
    "output_proj.weight",
    "output_proj.bias",
]
CENTRE_STATE = ["center_feature_scale_proj_weight", "center_feature_scale_proj_bias"]


@pytest.mark.parametrize("name", V3)
def test_dcnv3_gives_the_released_modules_numbers(name: str) -> None:
    given: dict[str, Any] = V3[name]
    layer = DCNv3(12, group=3, **given).double().eval()
    state = drawn(layer)
    input = torch.randn(2, *SIZE, 12).double()
    kernel, pad, dilation = (
        given.get(key, default) for key, default in (("kernel_size", 3), ("pad", 1), ("dilation", 1))
    )
    removed = given.get("remove_center", False)
    points = kernel**2 - removed

    side = state["dw_conv.0.weight"].shape[2]
    x = nn.functional.conv2d(
        input.permute(0, 3, 1, 2), state["dw_conv.0.weight"], state["dw_conv.0.bias"], padding=side // 2, groups=12
    )
    if given.get("norm_layer") == "BN":
        norm = layer.dw_conv[1][0]
        x = nn.functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        x = x.permute(0, 2, 3, 1).relu()
    else:
        weight, bias = state["dw_conv.1.1.weight"], state["dw_conv.1.1.bias"]
        x = nn.functional.gelu(nn.functional.layer_norm(x.permute(0, 2, 3, 1), (12,), weight, bias, eps=1e-6))
    values = linear(state, "input_proj", input)
    offset = linear(state, "offset", x).reshape(2, *SIZE, 3, points, 2)
    mask = linear(state, "mask", x).reshape(2, *SIZE, 3, points).softmax(-1)
    out = released_sums(values, offset, mask, kernel, pad, dilation, given.get("offset_scale", 1.0), removed)
    expected = linear(state, "output_proj", with_centre(state, out, values, x))
    torch.testing.assert_close(layer(input), expected, rtol=0, atol=1e-10)


def test_dcnv3_has_the_released_modules_state_dict() -> None:
    assert sorted(DCNv3(12, group=3).state_dict()) == sorted(V3_STATE)
    centred = DCNv3(12, group=3, center_feature_scale=True).state_dict()
    assert sorted(centred) == sorted(V3_STATE + CENTRE_STATE)
    assert centred["center_feature_scale_proj_weight"].shape == (3, 12)
    normed = {name for name in DCNv3(12, group=3, norm_layer="BN").state_dict() if name.startswith("dw_conv.1")}
    assert normed == {f"dw_conv.1.0.{name}" for name in ("weight", "bias", "running_mean", "running_var",
                                                          "num_batches_tracked")}  # fmt: skip
    assert DCNv3(12, group=3, remove_center=True).offset.out_features == 3 * 8 * 2


V4 = {
    "as published": {},
    "depthwise": {"dw_kernel_size": 3, "output_bias": False},
    "without pointwise": {"without_pointwise": True},
    "without centre": {"remove_center": True, "offset_scale": 0.5, "center_feature_scale": True},
}


@pytest.mark.parametrize("name", V4)
def test_dcnv4_gives_the_released_modules_numbers(name: str) -> None:
    given: dict[str, Any] = V4[name]
    layer = DCNv4(32, group=2, **given).double()
    state = drawn(layer)
    input = torch.randn(2, SIZE[0] * SIZE[1], 32).double()
    removed = given.get("remove_center", False)
    points = 9 - removed
    cells = input.view(2, *SIZE, 32)
    values = cells if given.get("without_pointwise") else linear(state, "value_proj", cells)
    query = cells
    if "dw_kernel_size" in given:
        query = nn.functional.conv2d(
            cells.permute(0, 3, 1, 2),
            state["offset_mask_dw.weight"],
            state["offset_mask_dw.bias"],
            padding=1,
            groups=32,
        ).permute(0, 2, 3, 1)
    packed = linear(state, "offset_mask", query)
    assert packed.shape[-1] == {9: 56, 8: 48}[points]  # 54 and 48 numbers, in multiples of eight
    read = [packed[..., g * 3 * points : (g + 1) * 3 * points] for g in range(2)]
    offset = torch.stack([part[..., : 2 * points].unflatten(-1, (points, 2)) for part in read], 3)
    mask = torch.stack([part[..., 2 * points :] for part in read], 3)
    out = released_sums(values, offset, mask, 3, 1, 1, given.get("offset_scale", 1.0), removed)
    out = with_centre(state, out, values, out).flatten(1, 2)
    expected = out if given.get("without_pointwise") else linear(state, "output_proj", out)
    torch.testing.assert_close(layer(input, SIZE), expected, rtol=0, atol=1e-10)


def test_dcnv4_has_the_released_modules_state_dict() -> None:
    names = ["offset_mask.weight", "offset_mask.bias"]
    pointwise = [f"{name}_proj.{kind}" for name in ("value", "output") for kind in ("weight", "bias")]
    assert sorted(DCNv4(32, group=2).state_dict()) == sorted(names + pointwise)
    assert "output_proj.bias" not in DCNv4(32, group=2, output_bias=False).state_dict()
    assert sorted(DCNv4(32, group=2, without_pointwise=True).state_dict()) == sorted(names)
    every = DCNv4(32, group=2, dw_kernel_size=3, center_feature_scale=True).state_dict()
    assert sorted(every) == sorted([*names, *pointwise, "offset_mask_dw.weight", "offset_mask_dw.bias", *CENTRE_STATE])


def test_dcnv4_takes_a_square_where_no_shape_is_given() -> None:
    layer, cells = DCNv4(16, group=2), torch.randn(1, 25, 16)
    drawn(layer)
    torch.testing.assert_close(layer(cells), layer(cells, (5, 5)))
    with pytest.raises(ValueError, match="shape must be given unless the map is a square: input has 24 cells"):
        layer(cells[:, :24])
    with pytest.raises(ValueError, match="shape must have the cells of the input: input has 25 cells"):
        layer(cells, (5, 4))


@pytest.mark.parametrize("build", [DCNv3, DCNv4])
def test_layers_start_as_released_and_learn_under_autocast(build: type[nn.Module]) -> None:
    layer = build(16, group=2)
    for name, parameter in layer.named_parameters():
        branch = name.split(".")[0] in ("offset", "mask", "offset_mask")
        assert bool(parameter.count_nonzero()) != (branch or name.endswith("proj.bias")) or "dw_conv" in name
    drawn(layer)
    input = torch.randn(2, 25, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(input.view(2, 5, 5, 16) if build is DCNv3 else input)
    out.float().square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("build", [DCNv3, DCNv4])
def test_wrong_arguments_are_named(build: type[nn.Module]) -> None:
    for given, message in (
        ({"group": 3}, "group must divide channels 16, got 3"),
        ({"stride": 2}, "the output must have the size of the input"),
        ({"pad": 0}, "the output must have the size of the input"),
        ({"kernel_size": 2}, "the output must have the size of the input"),
        ({"dw_kernel_size": 4}, "dw_kernel_size must be odd"),
        ({"offset_scale": 0.0}, "offset_scale must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            build(16, **given)
    with pytest.raises(ValueError, match=r"input must have 16 channels, the last axis, got shape"):
        build(16)(torch.randn(1, 4, 4, 8) if build is DCNv3 else torch.randn(1, 16, 8))
