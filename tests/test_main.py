"""The package as a program."""

from __future__ import annotations

import runpy
import sys

import pytest


def test_python_m_pliant_is_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pliant", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("pliant", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip()
