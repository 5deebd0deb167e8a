"""`.params` files: every layout and type, a file of MXNet's own, and files that want to do harm."""

from __future__ import annotations

import os
import struct
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from importers.mxnet_file import CODES, LAYOUTS, params_bytes

from pliant.importers.mxnet_params import is_params, read_params

MXNET_PYTHON = os.environ.get("PLIANT_MXNET_PYTHON")


def sample() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {f"arg:{name}": (rng.standard_normal((2, 3, 1)) * 50).astype(name) for name in CODES}
    return {**arrays, "aux:bn_moving_mean": rng.standard_normal(5).astype("float32")}


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_type(tmp_path: Path, layout: str) -> None:
    arrays = sample()
    path = written(tmp_path / "a.params", params_bytes(arrays, layout))
    assert is_params(path)
    found = read_params(path)
    assert list(found) == list(arrays)
    for name, value in arrays.items():
        assert torch.equal(found[name], torch.from_numpy(value)), name
        assert found[name].dtype == torch.from_numpy(value).dtype


@pytest.mark.parametrize("layout", LAYOUTS)
def test_array_without_dimensions_is_empty(tmp_path: Path, layout: str) -> None:
    arrays = {"arg:none": None, "arg:after": np.arange(3, dtype="int64")}
    found = read_params(written(tmp_path / "a.params", params_bytes(arrays, layout)))
    assert found["arg:none"].shape == (0,)
    assert found["arg:after"].tolist() == [0, 1, 2]


def test_file_without_arrays(tmp_path: Path) -> None:
    assert read_params(written(tmp_path / "none.params", params_bytes({}))) == {}


@pytest.mark.skipif(not MXNET_PYTHON, reason="PLIANT_MXNET_PYTHON names no interpreter with MXNet 1.9.1")
def test_file_that_mxnet_wrote(tmp_path: Path) -> None:
    arrays = sample()
    np.savez(tmp_path / "arrays.npz", **arrays)
    script = Path(__file__).with_name("mxnet_file.py")
    command = [str(MXNET_PYTHON), str(script), str(tmp_path / "arrays.npz"), str(tmp_path / "a.params")]
    subprocess.run(command, check=True, capture_output=True)
    found = read_params(tmp_path / "a.params")
    assert set(found) == set(arrays)
    for name, value in arrays.items():
        assert torch.equal(found[name], torch.from_numpy(value)), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_cut_anywhere_is_an_error_that_says_where(tmp_path: Path, layout: str) -> None:
    whole = params_bytes({"arg:a": np.ones((2, 3), "float32"), "aux:b": np.zeros(1, "float64")}, layout)
    for length in range(1, len(whole)):
        path = written(tmp_path / "cut.params", whole[:length])
        with pytest.raises(ValueError, match=r"cut.params .* at byte \d+ expected .*, got "):
            read_params(path)


HEADER = struct.pack("<QQ", 0x112, 0)
ONE = HEADER + struct.pack("<Q", 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04" + bytes(20), r"byte 0 expected a list of arrays \(0x112\), got 0x4034b50"),
        (HEADER + struct.pack("<Q", 2**63) + bytes(40), "byte 16 expected at most 10 arrays in 40 bytes, got 9223372"),
        (
            ONE + struct.pack("<I", 0xF993FACA) + bytes(40),
            "byte 24 expected array 0 in a known layout .* got 0xf993faca",
        ),
        (ONE + struct.pack("<IiI", 0xF993FAC9, 1, 1) + bytes(40), "byte 28 expected array 0 dense .*, got storage 1"),
        (ONE + struct.pack("<II", 0xF993FAC8, 2**31) + bytes(40), "byte 24 expected array 0 in a known .* 0x80000000"),
        (ONE + struct.pack("<IIq", 0xF993FAC8, 1, -4) + bytes(40), r"byte 32 expected a shape for array 0, got \[-4\]"),
        (
            ONE + struct.pack("<IIqq", 0xF993FAC8, 2, 2**62, 2**62) + struct.pack("<iii", 1, 0, 0) + bytes(40),
            r"byte 60 expected \d{38} bytes for array 0 of shape \[4611686018427387904, .*\], got only 40",
        ),
        (
            ONE + struct.pack("<IIq", 0xF993FAC8, 1, 1) + struct.pack("<iii", 1, 0, 9) + bytes(40),
            "byte 48 expected a type from 0 to 6 for array 0, got 9",
        ),
        (
            ONE + struct.pack("<I", 0) + struct.pack("<Q", 0) + bytes(8),
            "byte 28 expected 1 names for as many arrays, got 0",
        ),
        (
            ONE + struct.pack("<I", 0) + struct.pack("<QQ", 1, 2**60) + bytes(8),
            "byte 44 expected 1152921504606846976 bytes for a name, got only 8",
        ),
        (ONE + struct.pack("<I", 0) + struct.pack("<QQ", 1, 2) + b"\xff\xfe", "byte 44 expected a name in UTF-8"),
        (params_bytes({"arg:a": np.ones(2, "float32")}) + b"more", "expected the end of the file, got 4 more bytes"),
    ],
)
def test_hostile_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = written(tmp_path / "hostile.params", content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message):
        read_params(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_name_that_comes_twice(tmp_path: Path) -> None:
    content = params_bytes({"arg:a": np.ones(2, "float32"), "arg:b": np.ones(2, "float32")}).replace(b"arg:b", b"arg:a")
    with pytest.raises(ValueError, match="expected different names, got 'arg:a' twice"):
        read_params(written(tmp_path / "twice.params", content))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no .params file at .*none.params"):
        read_params(tmp_path / "none.params")
    with pytest.raises(ValueError, match="is empty"):
        read_params(written(tmp_path / "empty.params", b""))
