"""What `patch_torchvision`, `patch_attention` and `patch_mmcv` share: patches are counted, and the last one undoes."""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import Self

_active: Counter[str] = Counter()  # patches that have not been undone, by what they replace


class Patch:
    """A replacement that lasts until the last of its patches is undone.

    Args:
        target: what is replaced. Patches of the same target are counted together.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._undone = False
        _active[target] += 1
        try:
            self._install()
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Undo this patch. A second call does nothing."""
        if self._undone:
            return
        self._undone = True
        _active[self._target] -= 1
        if not _active[self._target]:
            self._remove()

    def _install(self) -> None:
        """Replace what is not replaced yet."""
        raise NotImplementedError

    def _remove(self) -> None:
        """Restore what was replaced, if anything."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def lasts(target: str) -> bool:
    """Whether a patch of this target has not been undone."""
    return _active[target] > 0
