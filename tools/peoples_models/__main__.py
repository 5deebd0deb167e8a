"""Models of other people on Pliant, unchanged and with random weights: differences and times in one run.

    python tools/peoples_models                       # all of them; a package that is not installed is named
    python tools/peoples_models EDVR "RT-DETR" --threads 1 --json models.json

The packages, without what would replace torch:

    pip install --no-deps basicsr==1.4.2 nobg python-doctr rfdetr libreyolo transformers mmcv-lite==2.1.0 mmdet==3.3.0

Outputs and gradients are compared in float32, and in float64 where the model runs in it. The difference is the largest
one, as a fraction of the largest value. Calls with and without Pliant are interleaved, and the least time of each
counts: seconds of the process on one thread, of the clock on several. A training step is a loss and the gradients of
all parameters.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from pathlib import Path

import attention
import convolutions
import measure
import mmdet_models
import torch

ENTRIES = {entry.name: entry for entry in (*convolutions.ENTRIES, *attention.ENTRIES, *mmdet_models.ENTRIES)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure models of other people on Pliant.")
    parser.add_argument("names", nargs="*", help="rows, by default all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2, help="calls of which the fastest counts")
    parser.add_argument("--json", type=Path, help="write the rows there; rows of other models in the file are kept")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - set(ENTRIES)):
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(ENTRIES)}")
    warnings.simplefilter("ignore")  # those of other people's packages
    logging.disable(logging.WARNING)
    torch.set_num_threads(arguments.threads)
    rows = {}
    if arguments.json and arguments.json.exists():
        rows = {row["name"]: row for row in json.loads(arguments.json.read_text())}
    for name in arguments.names or ENTRIES:
        rows[name] = measure.measure(ENTRIES[name], arguments.rounds)
        print(measure.markdown([rows[name]]).splitlines()[-1], flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(list(rows.values()), indent=1) + "\n")
    print("\n" + measure.markdown([rows[name] for name in ENTRIES if name in rows]))


if __name__ == "__main__":
    main()
