"""Running the cells of an ablation: one after the other, or several at a time in processes of their own."""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from functools import partial
from typing import Any

import torch

from pliant.commands.ablate.cell import Plan, run_cell
from pliant.commands.ablate.grid import Cell
from pliant.commands.ablate.view import AblationView
from pliant.tasks.splits import TrainingData, open_training_data

_HEARTBEAT = 0.5  # seconds between two looks at the steps that the processes report

_worker: dict[str, Any] = {}  # what a process keeps between cells


def run_cells(plan: Plan, todo: Sequence[Cell], opened: TrainingData, jobs: int, view: AblationView) -> None:
    """Train and evaluate cells, and show them as they finish.

    With several at a time, each process has its share of the threads: small networks use two cores better as two
    trainings of one thread than as one of two.
    """
    if jobs == 1:
        for cell in todo:
            run_cell(plan, cell, opened, partial(view.stepped, cell))
            view.finished(cell)
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit the threads of torch in any state
    threads = max(1, torch.get_num_threads() // jobs)
    with context.Manager() as manager:
        steps = manager.Queue()
        with ProcessPoolExecutor(jobs, context, _begin, (plan, threads, steps)) as processes:
            waiting = {processes.submit(_run, index, cell): cell for index, cell in enumerate(todo)}
            try:
                while waiting:
                    done, _ = wait(waiting, _HEARTBEAT, FIRST_COMPLETED)
                    _show(view, todo, steps)
                    for future in done:
                        future.result()
                        view.finished(waiting.pop(future))
            except BaseException:
                processes.shutdown(cancel_futures=True)
                raise


def _show(view: AblationView, todo: Sequence[Cell], steps: Any) -> None:
    while True:
        try:
            index, step = steps.get_nowait()
        except queue.Empty:
            return
        view.stepped(todo[index], step)


def _begin(plan: Plan, threads: int, steps: Any) -> None:
    """Prepare a process: it opens the data once."""
    torch.set_num_threads(threads)
    _worker.update(plan=plan, opened=open_training_data(plan.recipe, plan.data, plan.splits), steps=steps)


def _run(index: int, cell: Cell) -> None:
    run_cell(_worker["plan"], cell, _worker["opened"], lambda step: _worker["steps"].put((index, step)))
