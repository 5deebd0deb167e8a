"""mmcv's multi-scale deformable attention: `mmcv.ops.MultiScaleDeformableAttention`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pliant import ops
from pliant.nn import MultiScaleDeformableAttention as _Attention
from pliant.ops import _checks


class MultiScaleDeformableAttention(nn.Module):
    """`mmcv.ops.MultiScaleDeformableAttention`: multi-scale deformable attention with a residual connection.

    Args:
        embed_dims: channels of queries and output.
        num_heads: number of heads. It must divide `embed_dims`.
        num_levels: number of maps.
        num_points: number of points of a head in a map.
        im2col_step: ignored.
        dropout: probability of dropout before the residual is added.
        batch_first: whether tensors are `[N, Q, C]`; otherwise they are `[Q, N, C]`.
        norm_cfg, init_cfg: ignored, as by mmcv.
        value_proj_ratio: channels of the values, as a multiple of `embed_dims`.

    Attributes:
        sampling_offsets, attention_weights, value_proj, output_proj: `torch.nn.Linear`, see
            `pliant.nn.MultiScaleDeformableAttention`.

    Examples:
        >>> attention = pliant.compat.mmcv.MultiScaleDeformableAttention(64, 4, num_levels=1, batch_first=True)
        >>> query, shapes = torch.rand(2, 12, 64), torch.tensor([[3, 4]])
        >>> attention(query, reference_points=torch.rand(2, 12, 1, 2), spatial_shapes=shapes).shape
        torch.Size([2, 12, 64])
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        im2col_step: int = 64,
        dropout: float = 0.1,
        batch_first: bool = False,
        norm_cfg: dict[str, Any] | None = None,
        init_cfg: Any = None,
        value_proj_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        if embed_dims % num_heads:
            raise _checks.ArgumentError(f"num_heads must divide embed_dims {embed_dims}, got {num_heads}")
        self.norm_cfg, self.init_cfg = norm_cfg, init_cfg
        self.dropout = nn.Dropout(dropout)
        self.batch_first = batch_first
        self.im2col_step = im2col_step
        self.embed_dims, self.num_heads, self.num_levels, self.num_points = (
            embed_dims,
            num_heads,
            num_levels,
            num_points,
        )
        points, values = num_heads * num_levels * num_points, int(embed_dims * value_proj_ratio)
        self.sampling_offsets = nn.Linear(embed_dims, 2 * points)
        self.attention_weights = nn.Linear(embed_dims, points)
        self.value_proj = nn.Linear(embed_dims, values)
        self.output_proj = nn.Linear(values, embed_dims)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise the parameters as mmcv does, which is as Deformable DETR does."""
        _Attention.reset_parameters(self)  # type: ignore[arg-type]

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        level_start_index: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Attend to `value`, or to the queries themselves.

        Args:
            query: queries `[Q, N, C]`, or `[N, Q, C]` with `batch_first`; so are value, identity and output.
            key: ignored.
            value: cells of all maps, by default `query`.
            identity: what is added to the output, by default `query`.
            query_pos: positional encoding, which is added to the queries before they predict points.
            key_padding_mask: bool `[N, S]`, True for cells of padding.
            reference_points: points `[N, Q, L, 2]`, or boxes `[N, Q, L, 4]`.
            spatial_shapes: heights and widths of the maps `[L, 2]`.
            level_start_index: rows at which the maps start `[L]`.
            kwargs: `residual`, the former name of `identity`; others are ignored.
        """
        if reference_points is None or spatial_shapes is None:
            raise _checks.ArgumentTypeError("reference_points and spatial_shapes must be tensors, got None")
        if reference_points.shape[-1] not in (2, 4):
            raise _checks.ShapeError(
                f"reference_points must have 2 or 4 numbers in the last axis, got {list(reference_points.shape)}"
            )
        identity = kwargs.get("residual") if identity is None else identity
        identity = query if identity is None else identity
        value = query if value is None else value
        query = query if query_pos is None else query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        values = self.value_proj(value)
        if key_padding_mask is not None:
            values = values.masked_fill(key_padding_mask[..., None].bool(), 0.0)
        points = (self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).unflatten(-1, (*points, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.num_heads, -1)).softmax(-1)
        references = reference_points[:, :, None, :, None]
        if reference_points.shape[-1] == 2:
            locations = references + offsets / spatial_shapes.flip(-1)[:, None]
        else:
            locations = references[..., :2] + offsets / self.num_points * references[..., 2:] * 0.5
        out = ops.ms_deform_attn(
            values.unflatten(-1, (self.num_heads, -1)),
            spatial_shapes,
            level_start_index,
            locations,
            weights.unflatten(-1, points[1:]),
        )
        out = self.output_proj(out)
        return self.dropout(out if self.batch_first else out.transpose(0, 1)) + identity  # type: ignore[no-any-return]
