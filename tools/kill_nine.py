"""Kills trainings with SIGKILL at random moments, and compares what they end as with one that was never killed.

tools/kill_nine.py [--kills 50] [--seed 0] [--recipe voc.deeplab_deform] [--workers 1]

A small network learns a few drawn scenes and writes a checkpoint after every step. Each run is killed once: at a random
moment, or, every second time, at the first write to a file after that moment. What is left must be whole: the recipe,
the checkpoints, the weights, the rows up to the checkpoint. The run is then resumed to its end, where its train.csv
and val.csv must be those of the uninterrupted one byte for byte, and its weights bit for bit.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from pliant.commands.train import resume, train
from pliant.data.glyphs_folder import write_glyphs
from pliant.runs.folder import RunFolder, resume_step
from pliant.runs.weights import read_weights

STEPS = 20
TINY = (
    "backbone=timm/test_resnet",
    "frozen=false",
    "weights=none",
    "deform_layers=1",
    f"max_steps={STEPS}",
    "batch_size=2",
    "lr_batch=2",
    "warmup_steps=0",
    "checkpoint_every=1",
    "validate_every=2",
    "short_side=48",
    "max_side=48",
    "accelerator=cpu",
    "lr=1",
    "val_split=test",
)
TABLES = ("train.csv", "val.csv")
WEIGHTS = ("last.safetensors", "best.safetensors")


def work(recipe: str, data: Path, run: Path, workers: int) -> None:
    """Train to the end, from the start or from where a killed process left off."""
    torch.set_num_threads(1)
    if (run / "recipe.json").is_file():
        resume(run)
    else:
        train(recipe, data, run=run, assignments=(*TINY, f"workers={workers}"))


def work_aside(recipe: str, data: Path, run: Path, workers: int) -> None:
    """The same in a process of its own, which prints to a file."""
    os.dup2(os.open(run.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    work(recipe, data, run, workers)


def start(*arguments: object) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=work_aside, args=arguments)
    process.start()
    return process


def finish(process: BaseProcess, run: Path) -> None:
    process.join()
    if process.exitcode:
        raise AssertionError(f"the training ended with {process.exitcode}: {run.with_suffix('.log').read_text()}")


def unfinished(run: Path) -> list[Path]:
    return list(run.rglob(".*.part"))


def kill_after(process: BaseProcess, run: Path, seconds: float, in_a_write: bool) -> bool:
    """Whether the process was still there to be killed."""
    process.join(seconds)
    while in_a_write and process.is_alive() and not unfinished(run):
        time.sleep(0.0005)
    process.kill()
    process.join()
    return process.exitcode != 0


def check_what_is_left(run: Path, whole: Path) -> str:
    """Raise unless all that is there is whole; in a word, where the kill struck."""
    if not (run / "recipe.json").is_file():
        shutil.rmtree(run, ignore_errors=True)  # it never was a run
        return "before the run's description was written"
    folder = RunFolder.open(run)
    folder.description()
    for path in run.glob("checkpoints/*.ckpt"):
        assert resume_step(path) > 0, path
        torch.load(path, weights_only=True)
    for path in run.glob("checkpoints/*.safetensors"):
        read_weights(path)
    done = resume_step(folder.last)
    for name, steps in (("train.csv", done), ("val.csv", done // 2)):
        expected = (whole / name).read_text().splitlines()[: 1 + steps if steps else 0]
        rows = (run / name).read_text().splitlines() if (run / name).is_file() else []
        assert rows[: len(expected)] == expected, f"{run / name}: {rows}"
    if unfinished(run):
        return "while a file was written"
    return "between writes" if done else "before the first checkpoint"


def check_the_end(run: Path, whole: Path) -> None:
    """Raise unless the run is the same as one that was never killed."""
    for name in TABLES:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), f"{run / name} differs"
    for name in WEIGHTS:
        one, other = (read_weights(folder / "checkpoints" / name) for folder in (run, whole))
        assert one[1] == other[1]
        assert all(torch.equal(one[0][key], value) for key, value in other[0].items()), f"{run / name} differs"
    assert not unfinished(run)


def rehearse(recipe: str, data: Path, whole: Path, workers: int) -> float:
    """The uninterrupted run, and how long it takes."""
    # The first run imports all there is to import, here, so that kills land in the training.
    work(recipe, data, whole.with_name("first"), workers)
    begun = time.perf_counter()
    finish(start(recipe, data, whole, workers), whole)
    return time.perf_counter() - begun


def main(kills: int, seed: int, recipe: str, workers: int) -> None:
    rng = random.Random(seed)
    struck: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_glyphs(folder / "data", {"train": 7, "test": 3}, size=48, sides=(24, 40))
        whole = folder / "whole"
        seconds = rehearse(recipe, data, whole, workers)
        print(f"{recipe}: {STEPS} steps in {seconds:.1f} s when nothing is killed", flush=True)
        while struck.total() < kills:
            number = struck.total() + 1
            run = folder / f"run{number}"
            moment, in_a_write = rng.uniform(0, 0.95 * seconds), number % 2 == 0
            if not kill_after(start(recipe, data, run, workers), run, moment, in_a_write):
                shutil.rmtree(run)  # it was done before its time
                continue
            where = check_what_is_left(run, whole)
            step = resume_step(run / "checkpoints" / "last.ckpt")
            print(f"kill {number}: after {moment:.2f} s, step {step} is kept, {where}", flush=True)
            struck[where] += 1
            finish(start(recipe, data, run, workers), run)
            check_the_end(run, whole)
            shutil.rmtree(run)
    print(f"{kills} kills, {kills} runs end as the uninterrupted one: ", end="")
    print(", ".join(f"{number} {where}" for where, number in struck.most_common()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", default="voc.deeplab_deform")
    parser.add_argument("--workers", type=int, default=1)
    main(**vars(parser.parse_args()))
