"""A reader of MXNet's `.params` files that does not need MXNet."""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

LIST_MAGIC = 0x112
_V1, _V2 = 0xF993FAC8, 0xF993FAC9
_DTYPES = {0: "f4", 1: "f8", 2: "f2", 3: "u1", 4: "i4", 5: "i1", 6: "i8"}
_MOST_DIMENSIONS = 32
_MOST_ARRAYS = 2**16  # the paper's networks have some 700


def is_params(path: str | Path) -> bool:
    """Whether a file begins with the mark of a list of MXNet arrays."""
    with Path(path).open("rb") as file:
        return file.read(8) == struct.pack("<Q", LIST_MAGIC)


def read_params(path: str | Path) -> dict[str, Tensor]:
    """The arrays of a `.params` file by name, such as `arg:conv1_weight` and `aux:bn_conv1_moving_mean`.

    MXNet has written dense arrays in three layouts, all of which are read: that of its first years, that of version
    0.11, and that since 1.0 (`NDArray::Load` in its `src/ndarray/ndarray.cc`). An array without dimensions is empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is incomplete or has another format; the message gives the position in bytes.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no .params file at {path}")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty, expected MXNet's .params")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _Reader(path, content).arrays()


class _Reader:
    """Reads from front to back; before it allocates memory, it checks that the file has as many bytes left."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path = path
        self.content = content
        self.position = 0

    def arrays(self) -> dict[str, Tensor]:
        magic, _ = self.numbers("QQ", "the mark of a list of arrays")
        if magic != LIST_MAGIC:
            raise self.error(0, f"a list of arrays ({LIST_MAGIC:#x})", f"{magic:#x}")
        count = self.count("arrays", least=4)
        values = [self.array(number) for number in range(count)]
        at = self.position
        named = self.count("names", least=8)
        if named != count:
            raise self.error(at, f"{count} names for as many arrays", named)
        arrays: dict[str, Tensor] = {}
        for value in values:
            at = self.position
            name = self.name()
            if name in arrays:
                raise self.error(at, "different names", f"{name!r} twice")
            arrays[name] = value
        if self.position != len(self.content):
            raise self.error(self.position, "the end of the file", f"{self.left} more bytes")
        return arrays

    def array(self, number: int) -> Tensor:
        start = self.position
        (magic,) = self.numbers("I", f"array {number}")
        if magic == _V2:
            at = self.position
            (storage,) = self.numbers("i", f"the storage of array {number}")
            if storage != 0:
                raise self.error(at, f"array {number} dense (storage 0)", f"storage {storage}")
        if magic in (_V1, _V2):
            (dimensions,) = self.numbers("I", f"the number of dimensions of array {number}")
            kind = "q"
        else:
            dimensions, kind = magic, "I"
        if dimensions > _MOST_DIMENSIONS:
            raise self.error(
                start,
                f"array {number} in a known layout with at most {_MOST_DIMENSIONS} dimensions",
                f"{dimensions:#x}",
            )
        if not dimensions:
            return torch.empty(0)
        at = self.position
        shape = self.numbers(f"{dimensions}{kind}", f"the shape of array {number}")
        # NumPy refuses a shape whose other sides are too large even if one side is zero.
        if min(shape) < 0 or (0 in shape and math.prod(max(side, 1) for side in shape) >= 2**60):
            raise self.error(at, f"a shape for array {number}", list(shape))
        return self.data(number, shape)

    def data(self, number: int, shape: tuple[int, ...]) -> Tensor:
        self.numbers("ii", f"the device of array {number}")
        at = self.position
        (code,) = self.numbers("i", f"the type of array {number}")
        if code not in _DTYPES:
            raise self.error(at, f"a type from 0 to {max(_DTYPES)} for array {number}", code)
        dtype = np.dtype(f"<{_DTYPES[code]}")
        size = math.prod(shape)
        self.require(size * dtype.itemsize, f"array {number} of shape {list(shape)}")
        values = np.frombuffer(self.content, dtype, size, self.position).astype(dtype.newbyteorder("="))
        self.position += size * dtype.itemsize
        return torch.from_numpy(values.reshape(shape))

    def name(self) -> str:
        (length,) = self.numbers("Q", "the length of a name")
        self.require(length, "a name")
        at, self.position = self.position, self.position + length
        text = self.content[at : self.position]
        try:
            return text.decode()
        except UnicodeDecodeError:
            raise self.error(at, "a name in UTF-8", text[:40]) from None

    def count(self, what: str, least: int) -> int:
        at = self.position
        (count,) = self.numbers("Q", f"the number of {what}")
        most = min(self.left // least, _MOST_ARRAYS)
        if count > most:
            raise self.error(at, f"at most {most} {what} in {self.left} bytes", count)
        return int(count)

    def numbers(self, layout: str, what: str) -> tuple[int, ...]:
        layout = f"<{layout}"
        self.require(struct.calcsize(layout), what)
        values = struct.unpack_from(layout, self.content, self.position)
        self.position += struct.calcsize(layout)
        return values

    @property
    def left(self) -> int:
        return len(self.content) - self.position

    def require(self, size: int, what: str) -> None:
        if size > self.left:
            raise self.error(self.position, f"{size} bytes for {what}", f"only {self.left}")

    def error(self, position: int, expected: str, got: Any) -> ValueError:
        return ValueError(f"{self.path} is damaged or not MXNet's: at byte {position} expected {expected}, got {got}")
