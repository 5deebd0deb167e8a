from __future__ import annotations

from collections.abc import Iterator

import pytest

from pliant.ops import _native


@pytest.fixture(autouse=True, params=_native.available())
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every operator test runs on each implementation that this machine has."""
    with _native.use(request.param):
        yield request.param
