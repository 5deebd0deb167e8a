"""Multi-scale deformable attention as a layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pliant import ops
from pliant.ops import _checks
from pliant.ops.ms_deform_attn.levels import shapes_of


class MultiScaleDeformableAttention(nn.Module):
    """Multi-scale deformable attention with its linear layers (Zhu et al., Deformable DETR, 2021, section 4.1).

    Each query attends to `num_points` points of each map with each head. Linear layers predict from the query how far
    these points lie from its reference point, and their weights. Parameters have the names and initial values of the
    released module (`MSDeformAttn`), so the layer loads its state dict.

    Args:
        embed_dim: channels of queries, values and output.
        num_heads: number of heads. It must divide `embed_dim`.
        num_levels: number of maps.
        num_points: number of points of a head in a map.

    Shape:
        - Query: `[N, Q, embed_dim]`, with reference points `[N, Q, L, 2]` or boxes `[N, Q, L, 4]`
        - Value: `[N, S, embed_dim]`
        - Output: `[N, Q, embed_dim]`

    Attributes:
        sampling_offsets: `torch.nn.Linear` to `num_heads * num_levels * num_points * 2` offsets, x before y, in cells.
            Initially its weight is zero, and its bias places the points of each head on a ray.
        attention_weights: `torch.nn.Linear` to `num_heads * num_levels * num_points` logits, initially zero.
        value_proj, output_proj: `torch.nn.Linear`.

    Examples:
        >>> attention = pliant.nn.MultiScaleDeformableAttention(embed_dim=64, num_heads=4, num_levels=2)
        >>> shapes = [(20, 30), (10, 15)]
        >>> cells = torch.rand(2, 20 * 30 + 10 * 15, 64)
        >>> attention(torch.rand(2, 100, 64), torch.rand(2, 100, 2, 2), cells, shapes).shape
        torch.Size([2, 100, 64])
    """

    def __init__(self, embed_dim: int = 256, num_heads: int = 8, num_levels: int = 4, num_points: int = 4) -> None:
        for name, value in (
            ("embed_dim", embed_dim),
            ("num_heads", num_heads),
            ("num_levels", num_levels),
            ("num_points", num_points),
        ):
            _checks.count(name, value)
        if embed_dim % num_heads:
            raise _checks.ArgumentError(f"num_heads must divide embed_dim {embed_dim}, got {num_heads}")
        super().__init__()
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        points = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(embed_dim, 2 * points)
        self.attention_weights = nn.Linear(embed_dim, points)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the parameters as the released module does."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        ray = torch.stack((angle.cos(), angle.sin()), -1)
        ray = ray / ray.abs().amax(-1, keepdim=True)  # the last point of eight heads lies on the sides of a square
        steps = torch.arange(1, self.num_points + 1).view(-1, 1)
        offsets = (ray.view(-1, 1, 1, 2) * steps).expand(-1, self.num_levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Tensor | Sequence[tuple[int, int]],
        level_start_index: Tensor | None = None,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend to `value`.

        Args:
            query: queries `[N, Q, embed_dim]`.
            reference_points: points (x, y) relative to each map `[N, Q, L, 2]`; or boxes (x, y, width, height)
                `[N, Q, L, 4]`, whose sizes then scale the offsets.
            value: cells of all maps `[N, S, embed_dim]`, row by row.
            spatial_shapes, level_start_index: see `pliant.ops.ms_deform_attn`.
            padding_mask: bool `[N, S]`, True for cells of padding, which are read as zero.
        """
        self._check(query, reference_points, value)
        values = self.value_proj(value)
        if padding_mask is not None:
            values = values.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        values = values.unflatten(-1, (self.num_heads, -1))
        points = (self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).unflatten(-1, (*points, 2))
        logits = self.attention_weights(query).unflatten(-1, (self.num_heads, -1))
        weights = logits.softmax(-1).unflatten(-1, points[1:])
        reference = reference_points[:, :, None, :, None]  # [N, Q, 1, L, 1, 2 or 4]
        if reference_points.shape[-1] == 2:
            locations = reference + offsets / self._sides(spatial_shapes, query.device)
        else:
            locations = reference[..., :2] + offsets / self.num_points * reference[..., 2:] * 0.5
        out = ops.ms_deform_attn(values, spatial_shapes, level_start_index, locations, weights)
        return self.output_proj(out)  # type: ignore[no-any-return]

    @staticmethod
    def _sides(spatial_shapes: Tensor | Sequence[tuple[int, int]], device: torch.device) -> Tensor:
        """Width and height of the maps, `[L, 1, 2]`."""
        if not isinstance(spatial_shapes, Tensor):
            spatial_shapes = shapes_of(spatial_shapes, device)
        return spatial_shapes.flip(-1).unsqueeze(1)

    def _check(self, query: Tensor, reference_points: Tensor, value: Tensor) -> None:
        for name, tensor in (("query", query), ("value", value)):
            _checks.tensor(name, tensor, 3)
            if tensor.shape[-1] != self.embed_dim:
                raise _checks.ShapeError(f"{name} must have {self.embed_dim} channels, got shape {list(tensor.shape)}")
        _checks.tensor("reference_points", reference_points, 4)
        levels, coordinates = reference_points.shape[2:]
        if levels != self.num_levels or coordinates not in (2, 4):
            raise _checks.ShapeError(
                f"reference_points must have shape [N, Q, {self.num_levels}, 2 or 4], got "
                f"{list(reference_points.shape)}"
            )

    def extra_repr(self) -> str:
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, num_levels={self.num_levels}, "
            f"num_points={self.num_points}"
        )
