"""Files of weights from strangers: a clear error with the path, bounded memory, and nothing in them is run."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.bounded import memory_limit
from importers.mxnet_file import LAYOUTS, params_bytes
from safetensors.torch import save
from torch import Tensor

from pliant.importers.mmdetection import read_checkpoint
from pliant.importers.mxnet_params import read_params
from pliant.runs.folder import RunFolder, resume_step
from pliant.runs.tensors import read_file, read_tensors
from pliant.runs.weights import read_weights

STATE = {"a": torch.arange(6.0), "b": torch.ones(2, 3, dtype=torch.float16)}
ARRAYS = {"arg:a": np.arange(6, dtype="float32"), "aux:b": np.ones((2, 3), dtype="float64")}


def saved(content: Any, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def rewritten(change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The archive of `STATE` with other contents."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(STATE))) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
    return buffer.getvalue()


def pickled(content: bytes) -> bytes:
    """An archive with this for its pickle."""
    return rewritten(lambda name, old: content if name.endswith("data.pkl") else old)


def safe(header: Any, content: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


class Runs:
    """Makes a file if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def entry(shape: list[Any], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(8),
        struct.pack("<Q", 2**60) + b"{}",
        safe({}, length=2**63),
        safe(b"not json"),
        safe(b"[" * 100_000),
        safe({"a": entry([3], 0, 12)}),
        safe({"a": entry([2**40], 0, 2**42)}, bytes(12)),
        safe({"a": entry([2**40], 0, 12)}, bytes(12)),
        safe({"a": entry([2**32, 2**32], 0, 0)}),
        safe({"a": entry([2**60] * 9, 0, 12)}, bytes(12)),
        safe({"a": entry([-3], 0, 12)}, bytes(12)),
        safe({"a": entry([3], 12, 0)}, bytes(12)),
        safe({"a": entry([3], 0, 12), "b": entry([3], 4, 16)}, bytes(16)),
        safe({"a": entry([3], 0, 12), "b": entry([3], 0, 12)}, bytes(12)),
        safe({"a": entry([3], 4, 16)}, bytes(16)),
        safe({"a": entry([3], 0, 12)}, bytes(13)),
        safe({"a": entry([3], 0, 12, "F31")}, bytes(12)),
        safe({"a": entry(["3"], 0, 12)}, bytes(12)),
        safe({"a": [3]}, bytes(12)),
        safe({"__metadata__": {"a": 3}}),
        saved(STATE),
        save(STATE)[:-1],
        save(STATE) + b"more",
    ],
    ids=lambda content: f"{len(content)} bytes",  # no content, of which zip files hold the time
)
def test_hostile_safetensors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(content)
    for read in (read_tensors, read_weights):
        with memory_limit(64), pytest.raises(ValueError, match=r"hostile\.safetensors is not a complete") as caught:
            read(path)
        assert "allocate" not in str(caught.value)


@pytest.mark.parametrize("description", ["", "{", "[" * 100_000, "9" * 10_000])
def test_hostile_descriptions_in_safetensors(tmp_path: Path, description: str) -> None:
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(save(STATE, metadata={"pliant": description}))
    with pytest.raises(ValueError, match=r"hostile\.safetensors: the header's 'pliant' is not JSON"):
        read_weights(path)
    (tmp_path / "recipe.json").write_text(description)
    with pytest.raises(ValueError, match=r"recipe\.json cannot be read"):
        RunFolder.open(tmp_path).description()


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "last.ckpt"])
def test_no_pickle_is_run(tmp_path: Path, name: str, zipped: bool) -> None:
    path, ran = tmp_path / name, tmp_path / "ran"
    hostile = Runs(ran)
    contents = [saved(content, zipped) for content in (hostile, {**STATE, "c": hostile}, {"meta": [hostile]})]
    for content in [*contents, pickle.dumps(hostile), pickle.dumps({"state_dict": hostile}, protocol=0)]:
        path.write_bytes(content)
        for read in (read_file, read_tensors, read_checkpoint, read_params, resume_step):
            with pytest.raises(ValueError, match=name):
                read(path)
        assert not ran.exists()
    pickle.loads(pickle.dumps(hostile))
    assert ran.exists()  # it would have been seen


def int_argument(function: str, number: int) -> bytes:
    return b"\x80\x02c" + function.encode() + b"\nJ" + struct.pack("<i", number) + b"\x85R."


def changed_size(old: bytes, new: bytes) -> Callable[[str, bytes], bytes]:
    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return content
        assert old in content
        return content.replace(old, new)

    return change


@pytest.mark.parametrize(
    "content",
    [
        pickled(int_argument("builtins\nbytearray", 2**30)),
        pickled(int_argument("__builtin__\nbytearray", 2**30)),
        int_argument("builtins\nbytearray", 2**30),
        rewritten(lambda name, old: bytes(2**26) if name.endswith("data/0") else old, zipfile.ZIP_DEFLATED),
        rewritten(lambda _, old: old, zipfile.ZIP_BZIP2),
        rewritten(changed_size(b"K\x06\x85", b"J" + struct.pack("<i", 2**30) + b"\x85")),
        rewritten(changed_size(b"K\x06\x85", b"J" + struct.pack("<i", -6) + b"\x85")),
        rewritten(changed_size(b"cpuq\x06K\x06", b"cpuq\x06J" + struct.pack("<i", 2**30))),
        saved({"a": torch.zeros(1).expand(2**40)}),
        saved({"state_dict": {"a": torch.zeros(3, 1).expand(3, 2**40)}}),
        saved({"a": torch.zeros(1).expand(2**40)}, zipped=False),
        saved({"a": torch.empty(2**40, device="meta")}),
        saved({"a": torch.ones(3, 5).to_sparse()}),
        saved({3: torch.zeros(1)}),
        saved({"a": 3}),
        saved([torch.zeros(1)]),
        saved(STATE, zipped=False)[:-30],
        saved(STATE)[:-30],
        b"PK\x05\x06" + bytes(18),
        b"PK\x03\x04" + bytes(200),
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    ],
    ids=lambda content: f"{len(content)} bytes",  # no content, of which zip files hold the time
)
def test_hostile_files_of_torch(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hostile.pth"
    path.write_bytes(content)
    for read in (read_tensors, read_checkpoint):
        with memory_limit(48), pytest.raises(ValueError, match=r"hostile\.pth") as caught:
            read(path)
        assert "allocate" not in str(caught.value)


def test_parts_of_an_archive_that_overlap(tmp_path: Path) -> None:
    """Many entries that all point to the same bytes."""
    content = rewritten(lambda name, old: bytes(10_000) if name.endswith("data/0") else old)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        directory = archive.start_dir
    records, end = content[directory:-22], bytearray(content[-22:])
    struct.pack_into("<HHI", end, 8, 5 * 20, 5 * 20, len(records) * 20)
    path = tmp_path / "hostile.pth"
    path.write_bytes(content[:directory] + records * 20 + bytes(end))
    with pytest.raises(ValueError, match=r"hostile\.pth is not a complete file of tensors: .* its parts claim"):
        read_tensors(path)


PARAMS = struct.pack("<QQQ", 0x112, 0, 1)


@pytest.mark.parametrize(
    "content",
    [
        PARAMS[:16] + struct.pack("<Q", 2**60) + bytes(1000),
        PARAMS[:16] + struct.pack("<Q", 2**17) + bytes(2**21),  # 131,072 arrays of no dimensions
        PARAMS + struct.pack("<IIqq", 0xF993FAC8, 2, 2**62, 0) + bytes(100),
        PARAMS + struct.pack("<II32q", 0xF993FAC8, 32, *[2**62] * 31, 0) + bytes(100),
        PARAMS + struct.pack("<IIqq", 0xF993FAC8, 2, -1, -(2**63)) + bytes(100),
        PARAMS + struct.pack("<III", 2, 2**32 - 1, 2**32 - 1) + struct.pack("<iii", 1, 0, 1) + bytes(100),
        save(STATE),
        saved(STATE),
        b"\x12\x01" + bytes(6),
    ],
    ids=lambda content: f"{len(content)} bytes",  # no content, of which zip files hold the time
)
def test_hostile_params(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hostile.params"
    path.write_bytes(content)
    message = r"hostile\.params is damaged or not MXNet's: at byte \d+ expected .*, got "
    with memory_limit(32), pytest.raises(ValueError, match=message):
        read_params(path)


def described(path: Path) -> Mapping[str, Tensor]:
    state, description = read_weights(path)
    assert isinstance(description, dict | list | str | int | float | None)
    return state


KINDS: dict[str, tuple[bytes, Callable[[Path], Mapping[str, Tensor]]]] = {
    **{f"{layout}.params": (params_bytes(ARRAYS, layout), read_params) for layout in LAYOUTS},
    "plain.safetensors": (save(STATE), read_tensors),
    "ours.safetensors": (save(STATE, metadata={"pliant": '{"recipe": "x"}'}), described),
    "zipped.pth": (saved(STATE), read_tensors),
    "old.pth": (saved(STATE, zipped=False), read_tensors),
    "mmdetection.pth": (saved({"meta": {"CLASSES": ("a", "b")}, "state_dict": STATE}), lambda p: read_checkpoint(p)[0]),
}


@pytest.mark.parametrize("name", KINDS)
def test_random_damage_is_loaded_as_tensors_or_refused(tmp_path: Path, name: str) -> None:
    """These files have no checksums: a damaged number is loaded as it stands, but never more than the file holds."""
    whole, read = KINDS[name]
    path = tmp_path / name
    path.write_bytes(whole)
    expected = dict(read(path))
    rng = np.random.default_rng(5)
    refused = loaded = 0
    for _ in range(400):
        damaged = np.frombuffer(whole, dtype=np.uint8).copy()
        damaged[rng.integers(0, len(whole), rng.integers(1, 4))] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
        path.write_bytes(damaged.tobytes())
        with memory_limit(256):
            try:
                found = dict(read(path))
            except ValueError as error:
                refused += name in str(error)
                continue
        loaded += 1
        assert all(isinstance(key, str) for key in found)
        assert sum(value.nbytes for value in found.values()) <= len(whole)
        if np.array_equal(damaged, np.frombuffer(whole, dtype=np.uint8)):
            assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert refused + loaded == 400
    assert min(refused, loaded) > 20
