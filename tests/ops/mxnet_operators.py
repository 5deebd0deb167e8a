"""The authors' operators in MXNet 1.9.1, as a process of its own: reads an .npz of cases, writes an .npz of results.

MXNet needs an environment of its own (Python 3.10 or older, numpy < 1.24)::

    python3.10 -m venv mxnet && mxnet/bin/pip install mxnet==1.9.1 "numpy<1.24"
    mxnet/bin/python tests/ops/mxnet_operators.py cases.npz results.npz

A case is a group of arrays `NAME/operator`, `NAME/options` (JSON) and `NAME/input0` ...; its results are
`NAME/output`, and `NAME/grad0` ... for the output gradient `NAME/grad`.
"""

import json
import sys

import mxnet
import numpy


def run(operator, options, inputs, grad):
    arrays = [mxnet.nd.array(value) for value in inputs]
    for array in arrays:
        array.attach_grad()
    with mxnet.autograd.record():
        output = getattr(mxnet.nd.contrib, operator)(*arrays, **options)
        if isinstance(output, list):
            output = output[0]
    output.backward(mxnet.nd.array(grad))
    return output.asnumpy(), [array.grad.asnumpy() for array in arrays]


def main(source, target):
    cases = numpy.load(source)
    results = {}
    for name in sorted({key.split("/")[0] for key in cases.files}):
        count = sum(key.startswith(f"{name}/input") for key in cases.files)
        output, grads = run(
            str(cases[f"{name}/operator"]),
            json.loads(str(cases[f"{name}/options"])),
            [cases[f"{name}/input{i}"] for i in range(count)],
            cases[f"{name}/grad"],
        )
        results[f"{name}/output"] = output
        for i, grad in enumerate(grads):
            results[f"{name}/grad{i}"] = grad
    numpy.savez(target, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
