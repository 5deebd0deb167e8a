"""Miniature data sets for the tests of recipes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def miniature() -> ModuleType:
    spec = importlib.util.spec_from_file_location("miniature", Path(__file__).with_name("miniature.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
