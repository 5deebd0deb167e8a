"""Writing detections in the formats of the COCO and VOC evaluation servers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor


def coco_results(found: Mapping[str, Tensor], image_id: int, category_ids: Mapping[int, int]) -> list[dict[str, Any]]:
    """The detections of an image in COCO's results format.

    Args:
        found: ``boxes`` [K, 4] (x0, y0, x1, y1), ``labels`` [K] and ``scores`` [K].
        image_id: The image's id in the data set.
        category_ids: The category id of each label. Labels without one are left out.

    Returns:
        For each box ``image_id``, ``category_id``, ``bbox`` (x, y, width, height) and ``score``.
    """
    columns = (found[key].tolist() for key in ("boxes", "labels", "scores"))
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": score,
        }
        for (x0, y0, x1, y1), label, score in zip(*columns, strict=True)
        if label in category_ids
    ]


def write_coco_results(
    path: Path, found: Iterable[tuple[int, Mapping[str, Tensor]]], category_ids: Mapping[int, int]
) -> None:
    """Write the results of all images as one JSON list; see `coco_results`.

    Args:
        path: The file.
        found: The id and detections of each image.
        category_ids: The category id of each label.
    """
    results = [item for image_id, of_image in found for item in coco_results(of_image, image_id, category_ids)]
    path.write_text(json.dumps(results), encoding="utf-8")


def write_voc_results(
    folder: Path, found: Iterable[tuple[int, Mapping[str, Tensor]]], names: Mapping[int, str], classes: Sequence[str]
) -> list[Path]:
    """Write ``comp4_det_test_CLASS.txt`` for each class: lines of image, score, xmin, ymin, xmax, ymax.

    As in VOC, pixels are counted from 1, and xmax and ymax are inclusive. A slash in a class becomes %2F.

    Args:
        folder: The folder to write to.
        found: For each image, its id, and ``boxes`` [K, 4] (x0, y0, x1, y1), ``labels`` [K] and ``scores`` [K].
        names: VOC's name of each image.
        classes: Names of the foreground classes.

    Returns:
        The paths of the files.
    """
    lines: dict[int, list[str]] = {label: [] for label in range(1, len(classes) + 1)}
    for image_id, result in found:
        columns = (result[key].tolist() for key in ("boxes", "labels", "scores"))
        for (x0, y0, x1, y1), label, score in zip(*columns, strict=True):
            lines[label].append(f"{names[image_id]} {score:.3f} {x0 + 1:.1f} {y0 + 1:.1f} {x1:.1f} {y1:.1f}\n")
    paths = [folder / name for name in voc_result_names(classes)]
    for label, path in enumerate(paths, start=1):
        path.write_text("".join(lines[label]), encoding="utf-8")
    return paths


def voc_result_names(classes: Sequence[str]) -> list[str]:
    """The files of `write_voc_results`."""
    return [f"comp4_det_test_{name.replace('/', '%2F')}.txt" for name in classes]
