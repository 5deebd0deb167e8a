"""Writes `.params` files, in this process by the layouts' description, or as MXNet itself in a process of its own.

    mxnet/bin/python tests/weights/mxnet_file.py arrays.npz out.params

MXNet needs an environment of its own; `tests/ops/mxnet_operators.py` says how to make one.
"""

import struct
import sys

import numpy

CODES = {"float32": 0, "float64": 1, "float16": 2, "uint8": 3, "int32": 4, "int8": 5, "int64": 6}
LAYOUTS = ("V0", "V1", "V2")


def array_bytes(value, layout):
    """One array; None is an empty one."""
    shape = () if value is None else value.shape
    if layout == "V0":
        header = struct.pack(f"<I{len(shape)}I", len(shape), *shape)
    elif layout == "V1":
        header = struct.pack(f"<II{len(shape)}q", 0xF993FAC8, len(shape), *shape)
    else:
        header = struct.pack(f"<IiI{len(shape)}q", 0xF993FAC9, 0, len(shape), *shape)
    if not shape:
        return header
    return header + struct.pack("<iii", 2, 1, CODES[str(value.dtype)]) + value.tobytes()


def params_bytes(arrays, layout="V2"):
    """A whole file of a dict of arrays."""
    names = [name.encode() for name in arrays]
    parts = [struct.pack("<QQQ", 0x112, 0, len(arrays))]
    parts += [array_bytes(value, layout) for value in arrays.values()]
    parts.append(struct.pack("<Q", len(names)))
    parts += [struct.pack("<Q", len(name)) + name for name in names]
    return b"".join(parts)


def main(source, target):
    import mxnet

    arrays = numpy.load(source)
    mxnet.nd.save(target, {name: mxnet.nd.array(arrays[name], dtype=arrays[name].dtype) for name in arrays.files})


if __name__ == "__main__":
    main(*sys.argv[1:])
