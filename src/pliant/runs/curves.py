"""The page with the curves of a training, from the tables of its run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np

from pliant.console import Console
from pliant.engine.csv_log import read_columns
from pliant.launch import is_first
from pliant.pictures import charts
from pliant.pictures.report import Chart, write_report
from pliant.runs.files import replacing
from pliant.runs.folder import RunFolder
from pliant.runs.weights import read_description

PAGE = "curves.html"


@contextlib.contextmanager
def curves_at_end(run: RunFolder) -> Iterator[None]:
    """Write the curves of a run when the block ends, also by an error or an interruption."""
    try:
        yield
    finally:
        if is_first() and (run.path / "train.csv").is_file():
            try:
                write_curves(run)
            except (OSError, ValueError) as error:  # the training itself is what counts
                Console(stderr=True).print(f"The curves cannot be written: {error}", style="yellow")


def write_curves(run: RunFolder) -> None:
    """Write ``curves.html``: losses, learning rate, mean offset and metrics of the validation, over the steps.

    Raises:
        OSError: If it cannot be written.
        ValueError: If a file of the run is damaged.
    """
    training, validation = (read_columns(run.path / f"{name}.csv") for name in ("train", "val"))
    description = run.description()
    best = run.best.with_suffix(".safetensors")
    step = int(read_description(best)["step"]) if best.is_file() and validation else None
    panels = [
        (unit, {name: (columns["step"], columns[name]) for name in names})
        for unit, columns, names in (
            ("loss", training, _losses(training)),
            ("learning rate", training, [name for name in training if name == "lr"]),
            ("mean offset (cells)", training, [name for name in training if name == "mean_offset"]),
            ("validation", validation, [name for name in validation if name != "step"]),
        )
        if names
    ]
    if not panels:
        return
    note = "Each line is the mean over a few steps, and the band behind it goes from the lowest to the highest value."
    best_note = "" if step is None else f" The dotted line marks step {step}, which the best weights are of."
    facts = {
        "recipe": description["recipe"],
        "changes": " ".join(description.get("overrides", ())) or "none",
        "data": description["data"],
        "steps": f"{training['step'][-1]:,.0f} of {description['fields']['max_steps']:,}",
        **_best(validation, step),
    }
    with replacing(run.path / PAGE) as place:
        chart = Chart("Curves", note + best_note, charts.training(panels, step))
        write_report(place, f"Training of {run.path.name}", facts, [chart])


def _losses(training: Mapping[str, np.ndarray]) -> list[str]:
    """The total and its parts; the total alone where there is one part, whose line would cover it."""
    parts = [name for name in training if name.startswith("loss") and name != "loss"]
    return ["loss", *(parts if len(parts) > 1 else [])] if "loss" in training else parts


def _best(validation: Mapping[str, np.ndarray], step: int | None) -> dict[str, str]:
    """The metrics of the best weights."""
    if step is None or step not in validation["step"]:
        return {}
    row = int(np.flatnonzero(validation["step"] == step)[-1])
    values = [f"{name} {100 * values[row]:.1f}" for name, values in validation.items() if name != "step"]
    return {"best, in percent": ", ".join(values)}
