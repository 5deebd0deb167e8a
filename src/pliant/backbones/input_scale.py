"""The scale of the images on which a ResNet was trained, inferred from its first layer."""

from __future__ import annotations

from torch import Tensor

# He et al.'s ResNet-50 has 69, and would have 1.2 for images of unit standard deviation.
_SPREAD = 9.0


def trained_on_levels(filters: Tensor | None, variance: Tensor | None) -> bool | None:
    """Whether images were 0..255 minus a mean, as in Caffe, rather than divided by their standard deviation.

    In that case the standard deviation of the first convolution's outputs, in units of its filters' norms, is about 60
    times as large.

    Args:
        filters: weight of the first convolution, `[C, 3, k, k]`.
        variance: running variance of its batch norm, `[C]`.

    Returns:
        None if it cannot be inferred: one of them is missing or has the wrong shape, or the statistics are initial
            ones.
    """
    if filters is None or variance is None or filters.dim() != 4 or variance.shape != filters.shape[:1]:
        return None
    if bool((variance == 1).all()):
        return None
    return float((variance.float().sqrt() / filters.float().flatten(1).norm(dim=1)).median()) > _SPREAD
