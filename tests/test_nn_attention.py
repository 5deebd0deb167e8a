"""The layer of multi-scale deformable attention against the module that Deformable DETR is released with."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pliant.nn import MultiScaleDeformableAttention

SHAPES = [(5, 7), (3, 4), (2, 2)]
ROWS = sum(height * width for height, width in SHAPES)


class Released(nn.Module):
    """`MSDeformAttn` of Deformable DETR, with its PyTorch implementation in place of the CUDA extension."""

    def __init__(self, d_model: int, n_levels: int, n_heads: int, n_points: int) -> None:
        super().__init__()
        self.d_model, self.n_levels, self.n_heads, self.n_points = d_model, n_levels, n_heads, n_points
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        nn.init.constant_(self.sampling_offsets.weight, 0.0)
        thetas = torch.arange(n_heads, dtype=torch.float32) * (2.0 * math.pi / n_heads)
        grid_init = torch.stack([thetas.cos(), thetas.sin()], -1)
        grid_init = grid_init / grid_init.abs().max(-1, keepdim=True)[0]
        grid_init = grid_init.view(n_heads, 1, 1, 2).repeat(1, n_levels, n_points, 1)
        for i in range(n_points):
            grid_init[:, :, i, :] *= i + 1
        self.sampling_offsets.bias = nn.Parameter(grid_init.reshape(-1))
        nn.init.constant_(self.attention_weights.weight, 0.0)
        nn.init.constant_(self.attention_weights.bias, 0.0)

    def forward(
        self, query: Tensor, reference_points: Tensor, input_flatten: Tensor, input_padding_mask: Tensor | None
    ) -> Tensor:
        n, queries, _ = query.shape
        value = self.value_proj(input_flatten)
        if input_padding_mask is not None:
            value = value.masked_fill(input_padding_mask[..., None], float(0))
        value = value.view(n, -1, self.n_heads, self.d_model // self.n_heads)
        points = (n, queries, self.n_heads, self.n_levels, self.n_points)
        offsets = self.sampling_offsets(query).view(*points, 2)
        weights = self.attention_weights(query).view(*points[:3], self.n_levels * self.n_points)
        weights = weights.softmax(-1).view(points)
        if reference_points.shape[-1] == 2:
            normalizer = torch.tensor([[width, height] for height, width in SHAPES])
            locations = reference_points[:, :, None, :, None, :] + offsets / normalizer[None, None, None, :, None, :]
        else:
            centres, sides = reference_points[:, :, None, :, None, :2], reference_points[:, :, None, :, None, 2:]
            locations = centres + offsets / self.n_points * sides * 0.5
        read, start = 0.0, 0
        for level, (height, width) in enumerate(SHAPES):
            part = (
                value[:, start : start + height * width].permute(0, 2, 3, 1).reshape(-1, value.shape[3], height, width)
            )
            grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
            sampled = nn.functional.grid_sample(part, grid, align_corners=False)
            read = read + (sampled * weights[:, :, :, level].transpose(1, 2).flatten(0, 1).unsqueeze(1)).sum(-1)
            start += height * width
        return self.output_proj(read.reshape(n, self.d_model, queries).transpose(1, 2))


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("padded", [True, False])
def test_loads_the_released_modules_weights_and_gives_its_numbers(coordinates: int, padded: bool) -> None:
    released = Released(12, 3, 4, 2).double()
    for parameter in released.parameters():
        nn.init.normal_(parameter, std=0.4)
    layer = MultiScaleDeformableAttention(12, num_heads=4, num_levels=3, num_points=2).double()
    layer.load_state_dict(released.state_dict())
    query, cells = torch.randn(2, 6, 12).double(), torch.randn(2, ROWS, 12).double()
    references = torch.rand(2, 6, 3, coordinates).double()
    mask = torch.rand(2, ROWS) < 0.3 if padded else None
    want = released(query, references, cells, mask)
    torch.testing.assert_close(layer(query, references, cells, SHAPES, padding_mask=mask), want)
    shapes, starts = torch.tensor(SHAPES), torch.tensor([0, 35, 47])
    torch.testing.assert_close(layer(query, references, cells, shapes, starts, mask), want)


def test_starts_as_the_released_module_does() -> None:
    released, layer = Released(16, 3, 8, 4), MultiScaleDeformableAttention(16, 8, 3, 4)
    for name in ("sampling_offsets", "attention_weights"):
        for kind in ("weight", "bias"):
            torch.testing.assert_close(getattr(getattr(layer, name), kind), getattr(getattr(released, name), kind))
    assert layer.value_proj.weight.std() > 0
    assert layer.output_proj.bias.count_nonzero() == 0


def test_learns_and_runs_under_autocast() -> None:
    layer = MultiScaleDeformableAttention(8, 2, 3, 2)
    query, cells = torch.randn(2, 6, 8), torch.randn(2, ROWS, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(query, torch.rand(2, 6, 3, 2), cells, SHAPES)
    out.float().square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="num_heads must divide embed_dim 10, got 4"):
        MultiScaleDeformableAttention(10, 4)
    layer = MultiScaleDeformableAttention(8, 2, 3, 2)
    query, cells, references = torch.randn(2, 6, 8), torch.randn(2, ROWS, 8), torch.rand(2, 6, 3, 2)
    with pytest.raises(ValueError, match=r"query must have 8 channels, got shape \[2, 6, 4\]"):
        layer(query[..., :4], references, cells, SHAPES)
    with pytest.raises(ValueError, match=r"reference_points must have shape \[N, Q, 3, 2 or 4\], got \[2, 6, 3, 1\]"):
        layer(query, references[..., :1], cells, SHAPES)
