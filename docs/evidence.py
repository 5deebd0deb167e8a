"""Studies on real images, and the tables of docs/results.md from their cells.

    python docs/evidence.py run STUDY --in FOLDER    trains the missing networks; FOLDER has the data and resnet50.pth
    python docs/evidence.py                          writes the tables and plots again

A study is an ablation in docs/results/STUDY, with a small file for each network and seed in its folder `cells`.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pliant.bench.report import Table
from pliant.commands.ablate.report import REPORT, tables, write_report
from pliant.commands.ablate.results import PLAN, metrics_of, read_cells, values_of
from pliant.commands.ablate.run import ablate
from pliant.outputs import Outputs
from pliant.statistics import difference_of, mean_of

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results", HERE / "results.md"
SEEDS = 3
_MARKED = re.compile(r"<!-- (\w+): ([\w-]+) -->\n(.*?)<!-- /\1: \2 -->", re.DOTALL)


@dataclass(frozen=True)
class Study:
    """An ablation.

    Attributes:
        recipe: The recipe.
        data: The name of the data's folder.
        networks: The keys of the networks that it compares.
        settings: Fields that all its networks share.
        curve: How many times each network is evaluated while it trains.
    """

    recipe: str
    data: str
    networks: tuple[str, ...]
    settings: Mapping[str, str]
    curve: int = 6

    @property
    def assignments(self) -> tuple[str, ...]:
        return tuple(f"{field}={value}" for field, value in self.settings.items())


BACKBONE = {"backbone": "resnet50", "weights": "resnet50.pth", "padded_pool": "true", "freeze_below": "conv5"}
SEGMENTER = BACKBONE | {
    "batch_size": "4",
    "lr_batch": "4",
    "lr": "0.005",
    "warmup_steps": "20",
    "max_steps": "300",
    "decay_at": "0.75",
    "clip": "5",
}
DETECTOR = {
    **{key: value for key, value in BACKBONE.items() if key != "freeze_below"},
    "batch_size": "2",
    "lr_batch": "2",
    "lr": "0.004",
    "warmup_steps": "40",
    "max_steps": "600",
    "decay_at": "0.75",
    "clip": "5",
    "background_iou": "0",
    "anchor_scales": "none",
    "short_side": "288",
    "max_side": "480",
}
SEGMENTED = {
    "nuclei": {"short_side": "192", "max_side": "384", "classes": "background,nucleus"},
    "coffee-leaf-seg": {
        "batch_size": "2",
        "lr_batch": "2",
        "lr": "0.004",
        "short_side": "224",  # half of it is a map of 7 cells, in which dilation 8 reads nothing but zeros
        "max_side": "448",
        "classes": "background,leaf,symptom",
    },
}
IN_CONV5 = ("layers-0", "layers-1", "layers-2", "layers-3")
DILATED = ("dilation-4", "dilation-6", "dilation-8")
DETECTORS = {
    "faster-rcnn": ("voc.faster_rcnn", ("layers-0", "layers-3", "roi", "both")),
    "rfcn": ("voc.rfcn", ("layers-0", "layers-3", "roi", "both")),
    "class-aware-rpn": ("voc.class_aware_rpn", ("layers-0", "layers-3")),
}
LONG = {  # studies that are also trained for several times as many steps: some networks, the steps and the curve
    "coffee-leaf-seg-from-conv3": (("layers-0", "layers-3", "layers-6", "dilation-6", "dilation-8"), "1200", 6),
    "bccd-faster-rcnn-authors": (("layers-0", "layers-3", "both"), "1500", 5),
}
CONVOLUTION_OTHERWISE = {
    "offset-rate-0.1": {"offset_lr_mult": "0.1"},
    "offset-rate-10": {"offset_lr_mult": "10"},
    "without-clip": {"clip": "none"},
    "from-dilation-4": {"dilation": "4"},
    "modulated": {"modulated": "true"},
}
ROI_OTHERWISE = {
    "zero-offsets": {"roi_offset_lr_mult": "0"},
    "roi-offset-rate-1": {"roi_offset_lr_mult": "1"},
}
OTHERWISE: dict[str, dict[tuple[str, ...], Mapping[str, Mapping[str, str]]]] = {
    # Networks of a study, and the settings with which they are trained again, each in a study of its own.
    **{key: {("layers-3",): CONVOLUTION_OTHERWISE} for key in SEGMENTED},
    "bccd-faster-rcnn-authors": {("layers-3",): CONVOLUTION_OTHERWISE, ("roi", "both"): ROI_OTHERWISE},
    "bccd-rfcn-authors": {("roi",): ROI_OTHERWISE},
}
COMPARED = ("mIoU", "mAP@0.5", "AP")  # of the metrics


def _studies() -> dict[str, Study]:
    found = {}
    for data, size in SEGMENTED.items():
        found[data] = Study("voc.deeplab", data, (*IN_CONV5, *DILATED), SEGMENTER | size)
        trained = {key: value for key, value in (SEGMENTER | size).items() if key != "freeze_below"}
        networks = (*IN_CONV5, "layers-6", *DILATED)
        found[f"{data}-from-conv3"] = Study("voc.deeplab", data, networks, trained | {"max_steps": "400"}, curve=4)
    for name, (recipe, networks) in DETECTORS.items():
        for sampling in ("paper", "authors") if "roi" in networks else ("paper",):
            settings = DETECTOR | {"sampling": sampling}
            found[f"bccd-{name}-{sampling}" if "roi" in networks else f"bccd-{name}"] = Study(
                recipe, "bccd", networks, settings, curve=4
            )
    dilated = ("layers-0", "layers-3", *DILATED, "roi", "both")
    found["bccd-faster-rcnn-authors"] = replace(found["bccd-faster-rcnn-authors"], networks=dilated)
    for name, (networks, steps, curve) in LONG.items():
        settings = {**found[name].settings, "max_steps": steps}
        found[f"{name}-long"] = replace(found[name], networks=networks, settings=settings, curve=curve)
    for name, ways in OTHERWISE.items():
        base = found[name]
        for networks, changes in ways.items():
            for to, fields in changes.items():
                settings = {**base.settings, **fields}
                found[f"{name}-{to}"] = replace(base, networks=networks, settings=settings)
    return found


STUDIES = _studies()


def run(name: str, material: Path, jobs: int = 1) -> None:
    """Train the cells of a study that are not finished.

    Args:
        name: Its name.
        material: A folder with the data, each set in a folder of its own, and the weights.
        jobs: See `ablate`.
    """
    study = STUDIES[name]
    os.chdir(material)  # the commands of the records name data and weights without a folder
    ablate(
        RESULTS / name,
        Path(study.data),
        name=study.recipe,
        assignments=study.assignments,
        seeds=SEEDS,
        only=study.networks,
        curve=study.curve,
        jobs=jobs,
    )


def started() -> list[str]:
    """The names of the studies that have a finished cell."""
    return [name for name in STUDIES if any((RESULTS / name / "cells").glob("*.json"))]


def study_part(name: str) -> str:
    """The tables and plots of a study."""
    cells, recipe, asked = read_cells(RESULTS / name)
    done = sum(cell.content() is not None for cell in cells)
    text = [table.markdown() for table in tables(cells, recipe)]
    records = f"[commands, commits and machines](results/{name}/{REPORT[0]})"
    said = f"{done} of {len(cells)} cells, {asked['steps']} steps each; {records}."
    return "\n".join([*text, f"![Learning curves](results/{name}/curves.svg)\n", said, ""])


def otherwise_part(name: str) -> str:
    """Networks of a study, trained with other settings: a table for each network and metric that is compared."""
    text = []
    for networks, changes in OTHERWISE[name].items():
        others = [each for to in changes if (each := f"{name}-{to}") in started()]
        for key in networks if others else ():
            text += _otherwise_tables(name, key, others)
    return "\n".join(text)


def _otherwise_tables(name: str, key: str, others: Sequence[str]) -> list[str]:
    read = {each: read_cells(RESULTS / each) for each in (name, *others)}
    text = []
    for metric, result in metrics_of(read[name][1]).items():
        if metric not in COMPARED:
            continue
        lines: list[Sequence[str]] = []
        first: dict[int, float] = {}
        for each, (cells, _, _) in read.items():
            variant = next(cell.variant for cell in cells if cell.variant.key == key)
            values = values_of(cells, variant, result)
            first = first or values
            changed = STUDIES[each].settings.items() - STUDIES[name].settings.items()
            found = difference_of(first, values)
            compared = ("", "") if each == name else (found.points(), found.interval())
            shown = ", ".join(f"`{field}={value}`" for field, value in sorted(changed)) or "as above"
            lines.append((shown, mean_of(list(values.values())).percent(), str(len(values)), *compared))
        columns = ("", metric, "seeds", "difference", "95% interval")
        text.append(Table(f"{metric} of {variant.title}, trained in other ways", columns, lines).markdown())
    return text


def sampling_part(data: str) -> str:
    """The detectors with the paper's whole cells compared with the same ones with the authors' samples."""
    text = []
    for metric in COMPARED[1:]:
        lines: list[Sequence[str]] = []
        for detector in ("faster-rcnn", "rfcn"):
            (whole, recipe, _), (samples, _, _) = (
                read_cells(RESULTS / f"{data}-{detector}-{sampling}") for sampling in ("paper", "authors")
            )
            for variant in {cell.variant.key: cell.variant for cell in whole}.values():
                first, second = (values_of(cells, variant, metrics_of(recipe)[metric]) for cells in (whole, samples))
                found = difference_of(first, second)
                means = (mean_of(list(values.values())).percent() for values in (first, second))
                shown = (f"{recipe.network}, {variant.title}", *means, str(found.number), found.points())
                lines.append((*shown, found.interval()))
        columns = ("", "whole cells", "samples", "seeds of both", "difference", "95% interval")
        text.append(Table(f"{metric} on the two samplings", columns, lines).markdown())
    return "\n".join(text)


def longer_part(name: str) -> str:
    """What the networks of a study gain over its plain one, after its steps and after those of the long study."""
    lengths = [read_cells(RESULTS / each) for each in (name, f"{name}-long")]
    recipe = lengths[0][1]
    text = []
    for metric, result in metrics_of(recipe).items():
        if metric not in COMPARED:
            continue
        plain = lengths[0][0][0].variant
        lines: list[Sequence[str]] = []
        for variant in {cell.variant.key: cell.variant for cell in lengths[1][0]}.values():
            if variant.key == plain.key:
                continue
            found = [
                difference_of(*(values_of(cells, each, result) for each in (plain, variant))) for cells, _, _ in lengths
            ]
            lines.append((variant.title, *(part for each in found for part in (each.points(), each.interval()))))
        after = [f"after {asked['steps']} steps" for _, _, asked in lengths]
        columns = ("", after[0], "95% interval", after[1], "95% interval")
        text.append(Table(f"{metric}, difference to {plain.title}", columns, lines).markdown())
    return "\n".join(text)


PARTS = {"study": study_part, "longer": longer_part, "otherwise": otherwise_part, "sampling": sampling_part}


def rewritten(page: str) -> str:
    """The page with the parts between its markers made from the cells."""
    return _MARKED.sub(
        lambda found: f"<!-- {found[1]}: {found[2]} -->\n{PARTS[found[1]](found[2])}<!-- /{found[1]}: {found[2]} -->",
        page,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    training = commands.add_parser("run")
    training.add_argument("study", choices=STUDIES)
    training.add_argument("--in", dest="material", type=Path, required=True)
    training.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments.study, arguments.material, arguments.jobs)
        return
    for name in started():
        assert (RESULTS / name / PLAN).is_file()
        write_report(Outputs(RESULTS / name, REPORT))
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
