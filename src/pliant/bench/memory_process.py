"""One measurement of memory, as a process of its own: see memory.py. The argument is a request in JSON."""

from __future__ import annotations

import json
import sys

import torch

from pliant.bench.memory import needs
from pliant.bench.rows import ConvRow


def main(request: str) -> None:
    asked = json.loads(request)
    torch.set_num_threads(asked["threads"])
    print(json.dumps({"needs": needs(ConvRow(**asked["row"]), asked["name"], asked["what"])}))


if __name__ == "__main__":
    main(sys.argv[1])
