"""Changes of a run that is resumed: which fields may change, what it means for the learning rate, and the record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pliant.recipes import override
from pliant.recipes.base import Recipe, to_fields
from pliant.runs.files import write_json
from pliant.runs.folder import RunFolder, holding, versions
from pliant.schedule import Schedule

# The fields that may change, and why: they concern the steps to come, or no loss at all.
CHANGEABLE = {
    "max_steps": "the length of the run",
    "lr": "the learning rate of the steps to come",
    "decay_at": "where it falls",
    "decay": "how far it falls",
    "clip": "the limit of the gradients to come",
    "checkpoint_every": "when files are written",
    "validate_every": "when the run is validated",
    "full_checkpoints": "the form of checkpoints",
    "workers": "no loss depends on it",
    "accelerator": "where the steps are computed",
}


def extended(folder: RunFolder, recipe: Recipe, name: str, assignments: Sequence[str], step: int) -> Recipe:
    """The recipe of a run with changes for the steps to come.

    Args:
        folder: The run.
        recipe: Its recipe.
        name: Name of that recipe.
        assignments: The changes, ``field=value``.
        step: Number of steps that are done.

    Raises:
        ValueError: If a field may not change in a run, or the run would end before the steps that are done.
    """
    changed = override(recipe, assignments)
    fields = {text.partition("=")[0].strip() for text in assignments}
    refused = sorted(fields - set(CHANGEABLE))
    if refused:
        allowed = ", ".join(f"{field} ({reason})" for field, reason in CHANGEABLE.items())
        raise ValueError(
            f"a run keeps its {', '.join(refused)}, on which the steps that are done depend. --resume can change "
            f"{allowed}. For anything else, start a new run from these weights: pliant train {name} --data PATH --run "
            f"OTHER --set weights={folder.path}"
        )
    if changed.max_steps < step:
        raise ValueError(f"max_steps must be at least {step}, the steps that are done, got {changed.max_steps}")
    return changed


def schedule_said(before: Schedule, after: Schedule, step: int) -> tuple[str, bool]:
    """The learning rates of the steps to come, and whether the first of them jumps though only `max_steps` changed.

    Args:
        before: The schedule of the steps that are done.
        after: The schedule of the steps to come.
        step: Number of steps that are done.
    """
    falls = [round(at * after.max_steps) for at in after.decay_at]
    edges = [step, *sorted(edge for edge in {after.warmup_steps, *falls} if step < edge < after.max_steps)]
    ends = [*edges[1:], after.max_steps]
    parts = [
        f"{after.lr * after.factor(first):g} in steps {first + 1} to {last}"
        for first, last in zip(edges, ends, strict=True)
        if first < last
    ]
    said = f"learning rate {', '.join(parts)}" if parts else "no steps are left"
    if not step or not parts:
        return said, False
    last, following = before.lr * before.factor(step - 1), after.lr * after.factor(step)
    planned = before.lr * before.factor(step) if step < before.max_steps else last
    chosen = any(getattr(before, field) != getattr(after, field) for field in ("lr", "decay_at", "decay"))
    if chosen or abs(following - planned) <= 1e-9 * planned:
        return said, False
    kept = ",".join(f"{round(at * before.max_steps) / after.max_steps:.6g}" for at in before.decay_at)
    return (
        f"{said}. It was {last:g} in step {step}, and jumps because decay_at are fractions of max_steps; --set "
        f"decay_at={kept} lets it fall at the steps where it fell before",
        True,
    )


def record(folder: RunFolder, description: dict[str, Any], before: Recipe, after: Recipe, step: int) -> None:
    """Write a changed recipe to ``recipe.json``, with an entry in its history.

    Raises:
        ValueError: If another process trains the run.
    """
    old, new = to_fields(before), to_fields(after)
    changes = {field: [old[field], new[field]] for field in new if old[field] != new[field]}
    if not changes:
        return
    entry = {"step": step, "changes": changes, "pliant": versions().get("pliant")}
    description["fields"] = new
    description["history"] = [*description.get("history", []), entry]
    with holding(folder.path):
        write_json(folder.description_path, description)
