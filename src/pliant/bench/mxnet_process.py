"""An operator of MXNet 1.9.1, in a process of its own: answers requests on standard input, one JSON line each.

MXNet needs an environment of its own (Python 3.10 or older, numpy < 1.24)::

    python3.10 -m venv mxnet && mxnet/bin/pip install mxnet==1.9.1 "numpy<1.24"
    PLIANT_MXNET_PYTHON=mxnet/bin/python pliant bench

The argument is an .npz of `operator`, `options` (JSON), `input0`, `input1`, ... and `grad`. Requests:
`{"results": PATH, "grad": PATH}` writes the output and the inputs' gradients for the gradient in that .npy, and
`{"training": BOOL, "calls": N}` is answered with the seconds that so many calls took here.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import mxnet
import numpy


class Operator:
    def __init__(self, source: str) -> None:
        case = numpy.load(source)
        self.function = getattr(mxnet.nd.contrib, str(case["operator"]))
        self.options = json.loads(str(case["options"]))
        count = sum(name.startswith("input") for name in case.files)
        self.inputs = [mxnet.nd.array(case[f"input{i}"]) for i in range(count)]
        self.grad = mxnet.nd.array(case["grad"])
        for array in self.inputs:
            array.attach_grad()

    def forward(self) -> Any:
        output = self.function(*self.inputs, **self.options)
        return output[0] if isinstance(output, list) else output

    def train(self, grad: Any) -> Any:
        with mxnet.autograd.record():
            output = self.forward()
        output.backward(grad)
        return output

    def seconds(self, training: bool, calls: int) -> float:
        mxnet.nd.waitall()
        start = time.perf_counter()
        for _ in range(calls):
            if training:
                self.train(self.grad)
            else:
                self.forward()
            mxnet.nd.waitall()
        return time.perf_counter() - start

    def results(self, target: str, grad: str) -> None:
        output = self.train(mxnet.nd.array(numpy.load(grad)))
        arrays = {f"grad{i}": array.grad.asnumpy() for i, array in enumerate(self.inputs)}
        numpy.savez(target, output=output.asnumpy(), **arrays)


def main(source: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what MXNet prints is no answer
    operator = Operator(source)
    print(json.dumps({"ready": mxnet.__version__}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "results" in request:
            operator.results(request["results"], request["grad"])
            print("{}", file=answers, flush=True)
        else:
            taken = operator.seconds(request["training"], request["calls"])
            print(json.dumps({"seconds": taken}), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
