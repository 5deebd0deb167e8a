"""`pliant import`: convert weights of other projects to files that `predict` and `eval` can use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pliant.outputs import Outputs
from pliant.recipes import override
from pliant.recipes.base import Recipe, to_fields
from pliant.runs.foreign import Foreign, read_foreign
from pliant.runs.tensors import require_fit
from pliant.runs.trained import build_within
from pliant.runs.weights import write_weights
from pliant.tasks.splits import Splits
from pliant.tasks.task import task_of


@dataclass(frozen=True)
class Imported:
    """What `import_weights` wrote.

    Attributes:
        path: The file.
        name: Name of the recipe by which the network was trained and is used.
        recipe: The recipe with the changes that the file needs.
        classes: As in `pliant.runs.trained.Trained`.
    """

    path: Path
    name: str
    recipe: Recipe
    classes: tuple[str, ...]


def import_weights(
    source: Path,
    out: Path,
    *,
    classes: Sequence[str] = (),
    assignments: Sequence[str] = (),
    denormalized: bool | None = None,
) -> Imported:
    """Convert weights of another project, and write them with the recipe that reproduces their results.

    The sources are the paper's authors' MXNet files (`.params`) of R-FCN, Faster R-CNN and DeepLab, and mmdetection's
    checkpoints of Faster R-CNN with a feature pyramid on ResNet-50 or 101, all with or without deformation.

    Args:
        source: The file of the other project.
        out: The file to write; only a file that Pliant wrote is replaced.
        classes: Names of the classes: foreground for detection, all for segmentation. If empty, those in the file are
            used, or COCO's, VOC's or Cityscapes' if their number matches.
        assignments: Changes of the recipe's fields, ``field=value``.
        denormalized: Whether the box layer of the authors' detectors is denormalized, so that its outputs are not in
            units of 0.1 and 0.2. None for True exactly if the file has the layer under ``_test`` names.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is none of these, its tensors do not fit the network (the error lists all missing,
            unknown and misshapen ones), or the number of classes differs. Nothing is written in this case.
    """
    outputs = Outputs.file(out, inputs=[source])
    if not source.is_file():
        raise FileNotFoundError(f"{source}: there is no such file of weights")
    found = read_foreign(source, denormalized)
    recipe = override(found.recipe, assignments)
    names = _checked_classes(source, found, recipe, tuple(classes))
    model = build_within(source, recipe, names, found.arrays)
    state = model.state_dict()
    require_fit(source, found.arrays, found.network.shapes(state), f"{found.name} with {len(names)} classes")
    lacking = sorted(set(state) - set(found.network.names().values()))
    if lacking:
        raise ValueError(f"{source} lacks the parameters {', '.join(lacking)}, with {', '.join(assignments)}")
    model.load_state_dict(found.convert())
    description = {
        "recipe": found.name,
        "kind": recipe.kind,
        "fields": to_fields(recipe),
        "classes": names,
        "splits": Splits(recipe.train_split or "", recipe.val_split, recipe.test_split).names(),
        "step": 0,
        "imported_from": source.name,
    }
    with outputs.writing(out.name) as (place,):
        write_weights(place, model, description)
    return Imported(out, found.name, recipe, names)


def _checked_classes(source: Path, found: Foreign, recipe: Recipe, given: tuple[str, ...]) -> tuple[str, ...]:
    names = given or recipe.classes or found.classes
    background = task_of(recipe).background
    expected = found.network.num_classes - (0 if background else 1)
    what = "classes (the background's first, if it has one)" if background else "classes without the background"
    if len(names) != expected:
        came = f"{len(names)}: {', '.join(names)}" if names else "no names"
        raise ValueError(f"{source} has {expected} {what}; name them with --classes a,b,c; got {came}")
    if len(set(names)) != len(names):
        raise ValueError(f"classes must have different names, got {', '.join(names)}")
    return names
