"""Test by execution whether an operator works position by position, for those torch does not tag as pointwise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


def keeps_places(func: Any, args: Any, kwargs: Any, map: Tensor, size: tuple[int, int], which: int) -> bool:
    """Whether every position of an output depends on that position of a map alone.

    The operator runs on copies of its arguments, with random numbers in the map. Two positions in opposite corners are
    then changed one at a time, and only they may change in the output.

    Args:
        func: an operator as a dispatch mode receives it.
        args, kwargs: the arguments that it was called with.
        map: the map among the arguments. If its last dimensions are not `size`, every number is a position of its own.
        size: `(H, W)`.
        which: index of the output tensor to test.
    """
    if not map.is_floating_point() or map.dim() < 2:
        return False
    framed = tuple(map.shape[-2:]) == size
    lead: tuple[Any, ...] = (...,) if framed else (0,) * (map.dim() - 2)
    numbers = torch.rand_like(map)
    try:
        before = _run(func, args, kwargs, map, numbers, which)
        if before.shape != map.shape and not (framed and tuple(before.shape[-2:]) == size):
            return False
        for corner in ((0, -1), (-1, 0)):
            moved = numbers.clone()
            moved[(*lead, *corner)] += 1
            changed = before != _run(func, args, kwargs, map, moved, which)
            if not changed[(*lead, *corner)].any():
                return False
            changed[(*lead, *corner)] = False
            if changed.any():
                return False
    except Exception:  # operators may refuse the random numbers in any way
        return False
    return True


def _run(func: Any, args: Any, kwargs: Any, map: Tensor, numbers: Tensor, which: int) -> Tensor:
    def copied(leaf: Any) -> Any:
        return (numbers if leaf is map else leaf).clone() if isinstance(leaf, Tensor) else leaf

    with torch.random.fork_rng(devices=[map.device] if map.is_cuda else []):
        torch.manual_seed(0)
        out = func(*tree_map(copied, args), **tree_map(copied, kwargs or {}))
    return [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)][which]
