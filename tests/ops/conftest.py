from __future__ import annotations

from collections.abc import Iterator

import pytest

from pliant.ops import _native


@pytest.fixture(autouse=True, params=[name for name in _native.available() if name != _native.TRITON])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every operator test runs on each implementation that this machine has; Triton's have their own file."""
    with _native.use(request.param):
        yield request.param
