"""Calls that wait until a module is imported, so that importing Pliant does not import it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

_waiting: dict[str, _Waiting] = {}


def after_import(name: str, call: Callable[[], None]) -> None:
    """Call now if the module has been imported, otherwise when its import ends."""
    module = sys.modules.get(name)
    if module is not None and not getattr(module.__spec__, "_initializing", False):
        call()
        return
    if name not in _waiting:
        _waiting[name] = _Waiting(name)
        sys.meta_path.insert(0, _waiting[name])
    _waiting[name].calls.append(call)


class _Waiting(MetaPathFinder):
    """Finds a module as the other finders do, and makes the calls after it has been executed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._asking_others = False
        self.calls: list[Callable[[], None]] = []

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self._name or self._asking_others:
            return None
        self._asking_others = True
        try:
            spec = find_spec(name)
        finally:
            self._asking_others = False
        if spec is not None and spec.loader is not None:
            self._watch(spec.loader)
        return spec

    def _watch(self, loader: object) -> None:
        execute = loader.exec_module  # type: ignore[attr-defined]

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module  # type: ignore[attr-defined]  # which is the class's method again
            execute(module)
            sys.meta_path.remove(self)
            del _waiting[self._name]
            for call in self.calls:
                call()

        loader.exec_module = exec_module  # type: ignore[attr-defined]
