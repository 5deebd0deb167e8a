"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pliant.engine.test_time_augmentation import Procedure

Scales = Annotated[
    str | None, typer.Option(metavar="480,576,...", help="Test at these short sides and merge the detections.")
]
MultiScale = Annotated[
    bool,
    typer.Option(
        "--multi-scale",
        help="Test at the paper's six scales: 480 to 1400 for a short_side of 600, in proportion for others.",
    ),
]
Flip = Annotated[bool, typer.Option("--flip", help="Test on mirrored images as well.")]
BoxAveraging = Annotated[bool, typer.Option("--box-averaging", help="Refine boxes in a second pass, and average them.")]
SoftNMS = Annotated[bool, typer.Option("--soft-nms", help="Lower the scores of overlapping boxes, and remove none.")]

Devices = Annotated[
    int | None, typer.Option(min=1, help="GPUs, or processes on the CPU, that share the work.", show_default=False)
]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the recipe.")
]
Device = Annotated[
    str | None, typer.Option(metavar="cpu|cuda|cuda:N", help="Where the network runs; a GPU if there is one.")
]
Source = Annotated[Path, typer.Argument(metavar="RUN_OR_WEIGHTS", help="A run folder, or a .safetensors file of one.")]


def procedure_of(scales: str | None, multi_scale: bool, flip: bool, box_averaging: bool, soft_nms: bool) -> Procedure:
    from pliant.engine.test_time_augmentation import Procedure

    if scales is not None and multi_scale:
        raise ValueError("--multi-scale sets the paper's scales; leave out --scales")
    try:
        sides = tuple(int(side) for side in scales.split(",")) if scales is not None else ()
    except ValueError as error:
        raise ValueError(f"--scales takes whole numbers of pixels such as 480,576, got {scales!r}") from error
    return Procedure(sides, flip, box_averaging, soft_nms, multi_scale)
