"""Trains a small network for a thousand steps and prints how much memory it holds (Linux).

tools/soak.py [--steps 1000] [--recipe voc.rfcn_deform] [--workers 2] [--out soak.csv]

Scenes are drawn once; augmentation, logs, checkpoints and validations are those of a real run. After every step the
resident memory of this process is noted, and of those that load its data (pages they share count in each). Freed memory
goes back to the system now and then, so the highest value of each tenth of the steps is looked at; the slope is that of
a line through those of the second half.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import tempfile
from pathlib import Path

import lightning
import numpy as np
import torch

from pliant.data.glyphs_folder import write_glyphs
from pliant.engine.fitting import fit
from pliant.recipes import find_recipe, override
from pliant.runs.folder import RunFolder
from pliant.runs.training import batch_groups, build_module, describe, fit_settings
from pliant.tasks.splits import choose_splits, open_training_data

MEBIBYTE = 2**20


def resident(process: int) -> float:
    """The memory that a process has in RAM, in MiB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MEBIBYTE


def train(folder: Path, name: str, steps: int, workers: int) -> np.ndarray:
    """The memory after each step: of this process, and of the workers together."""
    data = write_glyphs(folder / "data", {"train": 60, "test": 6}, size=96, sides=(24, 60))
    changes = {
        "backbone": "timm/test_resnet",
        "frozen": "false",
        "weights": "none",
        "max_steps": steps,
        "batch_size": 2,
        "short_side": 96,
        "max_side": 96,
        "checkpoint_every": 50,
        "validate_every": 100,
        "val_split": "test",
        "accelerator": "cpu",
        "workers": workers,
    }
    assignments = [f"{key}={value}" for key, value in changes.items()]
    recipe = override(find_recipe(name), assignments)
    splits = choose_splits(recipe, data, set(changes))
    opened = open_training_data(recipe, data, splits)
    lightning.seed_everything(recipe.seed, verbose=False)
    module = build_module(recipe, opened.classes)
    description = describe(name, assignments, recipe, opened.classes, splits, data)
    run = RunFolder.create(folder / "run", description)
    held = []

    def note(step: int) -> None:
        loaders = [process.pid for process in multiprocessing.active_children()]
        held.append([resident(os.getpid()), sum(resident(process) for process in loaders)])

    fit(module, opened, run, fit_settings(recipe), description, batch_groups(recipe, opened.train), note)
    return np.array(held)


def say(held: np.ndarray, recipe: str) -> None:
    tenth = len(held) // 10
    highest = held[: 10 * tenth].reshape(10, tenth, 2).max(axis=1)
    for values, who in zip(highest.T, ("the training process", "the processes that load data"), strict=True):
        slope = 1000 * np.polyfit(np.arange(5), values[5:], 1)[0] / tenth
        print(f"{recipe}, {who}: {' '.join(f'{value:.1f}' for value in values)} MiB at most in each tenth of the steps")
        print(f"  second half: {slope:+.2f} MiB per 1000 steps")


def main(steps: int, recipe: str, workers: int, out: Path | None) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        held = train(Path(name), recipe, steps, workers)
    say(held, recipe)
    if out is not None:
        with out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["step", "process_mib", "workers_mib"])
            writer.writerows([step + 1, *row] for step, row in enumerate(held.round(2).tolist()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--recipe", default="voc.rfcn_deform")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    main(**vars(parser.parse_args()))
