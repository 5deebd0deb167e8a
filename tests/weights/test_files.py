"""Files of tensors that are none, or are damaged."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from pliant.weights.files import read_tensors, require_fit


def saved(old: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(6.0), "b": torch.ones(2, 3)}, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


@pytest.mark.parametrize("old", [False, True])
def test_a_file_of_tensors_is_read(tmp_path: Path, old: bool) -> None:
    (tmp_path / "a.pth").write_bytes(saved(old))
    assert read_tensors(tmp_path / "a.pth")["a"].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_junk_and_cut_files_are_value_errors(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    wholes = [save({"a": torch.ones(3)}), saved(False), saved(True)]
    junk = [b"", b"junk\n", b"\x80\x02", b"version https://git-lfs", *(rng.bytes(200) for _ in range(60))]
    junk += [whole[: len(whole) * part // 8] for whole in wholes for part in range(1, 8)]
    for content in junk:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            read_tensors(tmp_path / name)


def test_what_does_not_fit_is_listed() -> None:
    found = {"a": torch.zeros(2), "c": torch.zeros(1)}
    with pytest.raises(
        ValueError, match=r"x does not fit Net: missing b \[3\]; unknown c \[1\]; a has shape \[2\], exp"
    ):
        require_fit("x", found, {"a": [4], "b": [3]}, "Net")
    require_fit("x", found, {"a": torch.Size([2]), "c": [1]}, "Net")
