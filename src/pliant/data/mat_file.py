"""Read one array of bytes from a struct in a MATLAB 5 file, without trusting the file.

SciPy's `loadmat` reads such files too, but damaged files can crash the process, and its documentation advises against
files from untrusted sources. The format is MathWorks' "MAT-File Format", chapter 1: elements of a type, a length
and contents.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_HEADER = 128  # bytes before the first element
_MOST_BYTES = 2**27  # of a compressed element
_UINT8, _MATRIX, _COMPRESSED = 2, 14, 15  # types of elements
_STRUCT_CLASS, _UINT8_CLASS = 2, 9  # classes of arrays


def read_bytes_field(path: Path, variable: str, field: str) -> np.ndarray:
    """The two-dimensional uint8 array `field` of the struct `variable`.

    Returns:
        uint8 `[H, W]`.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it has no such array, is damaged, or decompresses to more than 128 MiB.
    """
    if not path.is_file():
        raise ValueError("it is not a file")
    content = path.read_bytes()
    if content[126:_HEADER] != b"IM":
        raise ValueError("expected a little-endian file of MATLAB 5 to 7.2")
    for kind, value in _elements(memoryview(content)[_HEADER:]):
        if kind == _COMPRESSED:
            kind, value = next(_elements(memoryview(_decompressed(value))), (0, value))
        if kind == _MATRIX:
            code, _, name, parts = _matrix(value)
            if name == variable and code == _STRUCT_CLASS:
                return _field(parts, field)
    raise ValueError(f"there is no struct {variable}")


def _field(parts: Iterator[tuple[int, memoryview]], field: str) -> np.ndarray:
    length = int.from_bytes(_next(parts), "little", signed=True)
    if length < 1:
        raise ValueError(f"names of fields cannot have {length} bytes")
    names = _next(parts).tobytes()
    for start in range(0, len(names), length):
        code, shape, _, contents = _matrix(_next(parts))
        if names[start : start + length].rstrip(b"\0") != field.encode():
            continue
        kind, values = next(contents, (0, memoryview(b"")))
        if (code, kind, len(shape)) != (_UINT8_CLASS, _UINT8, 2) or math.prod(shape) != len(values) or min(shape) < 1:
            raise ValueError(f"expected uint8 [H, W] in {field}, got class {code} of shape {list(shape)}")
        return np.frombuffer(values, np.uint8).reshape(shape, order="F").copy(order="C")
    raise ValueError(f"there is no field {field}")


def _matrix(value: memoryview) -> tuple[int, tuple[int, ...], str, Iterator[tuple[int, memoryview]]]:
    """The class, shape and name of an array, and the elements that follow."""
    parts = _elements(value)
    flags, sides, name = _next(parts), _next(parts), _next(parts)
    if not len(flags) or len(sides) % 4:
        raise ValueError("an array has no class or shape")
    return flags[0], struct.unpack(f"<{len(sides) // 4}i", sides), name.tobytes().decode("latin-1"), parts


def _next(parts: Iterator[tuple[int, memoryview]]) -> memoryview:
    try:
        return next(parts)[1]
    except StopIteration:
        raise ValueError("an array ends too early") from None


def _elements(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The type and contents of each element."""
    position = 0
    while position + 8 <= len(content):
        kind, size = struct.unpack_from("<II", content, position)
        start, end = position + 8, position + 8 + size
        if kind >> 16:  # up to four bytes of contents in place of the length
            kind, size = kind & 0xFFFF, kind >> 16
            start, end = position + 4, position + 4 + size
            position += 8
        else:
            position = end if kind == _COMPRESSED else start + (size + 7) // 8 * 8
        if end > len(content):
            raise ValueError(f"an element of {size} bytes is cut off")
        yield kind, content[start:end]


def _decompressed(value: memoryview) -> bytes:
    content = zlib.decompressobj().decompress(value, _MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"an element decompresses to more than {_MOST_BYTES} bytes")
    return content
