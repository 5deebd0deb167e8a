"""Imported networks give what the authors' do in MXNet 1.9.1: maps, proposals, scores and boxes.

Set PLIANT_MXNET_PYTHON to the interpreter of an environment that has it; see `tests/ops/mxnet_operators.py`.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pliant.commands.import_weights import import_weights
from pliant.runs.trained import load_trained

MXNET_PYTHON = os.environ.get("PLIANT_MXNET_PYTHON")
if not MXNET_PYTHON:
    pytest.skip("PLIANT_MXNET_PYTHON names no interpreter with MXNet 1.9.1", allow_module_level=True)
SCRIPT = Path(__file__).with_name("mxnet_networks.py")
MEAN = torch.tensor([123.15, 115.90, 103.06]).view(3, 1, 1)
HEIGHT, WIDTH = 101, 150


def close(found: Tensor, expected: Tensor, part: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=part * float(expected.abs().max()))


def run(kind: str, folder: Path) -> tuple[Any, Tensor, dict[str, Tensor]]:
    """Our network with their weights, an image in 0..1, and their results for it."""
    noise = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(5))
    image = torch.nn.functional.interpolate(noise, size=(HEIGHT, WIDTH), mode="bicubic")[0].clamp(0, 1)
    np.save(folder / "image.npy", (image * 255 - MEAN).numpy())
    names = ("image.npy", "a.params", "results.npz")
    command = [str(MXNET_PYTHON), str(SCRIPT), kind, *(str(folder / name) for name in names)]
    subprocess.run(command, check=True, capture_output=True)
    results = {name: torch.from_numpy(value) for name, value in np.load(folder / "results.npz").items()}
    changes = ["short_side=101", "max_side=150"]
    import_weights(folder / "a.params", folder / "a.safetensors", assignments=changes, denormalized=False)
    return load_trained(folder / "a.safetensors").model(), image, results


@torch.no_grad()
@pytest.mark.parametrize("kind", ["rfcn", "faster_rcnn", "faster_rcnn_plain"])
def test_detector(tmp_path: Path, kind: str) -> None:
    model, image, theirs = run(kind, tmp_path)
    images, _ = model.transform([image])
    assert images.tensors.shape == (1, 3, HEIGHT, WIDTH)
    features = model.backbone(images.tensors)
    close(features["conv4"], theirs["conv4"])
    close(features["conv5"], theirs["conv5"])
    ours = model.rpn(images, features)[0][0]
    edges = theirs["rois"][:, 1:] + torch.tensor([0, 0, 1, 1])
    # MXNet's operator goes on with anchors outside the grid, which the authors' own leaves out, and repeats boxes.
    assert len(ours) > 50
    torch.testing.assert_close(ours, edges[: len(ours)], rtol=0, atol=0.02)
    heads = model.roi_heads
    pooled = heads.box_head(heads.box_roi_pool(features, [edges], images.image_sizes))
    scores, boxes = heads.box_predictor(pooled)
    close(scores, theirs["scores"])
    close(boxes, theirs["boxes"])


@torch.no_grad()
def test_segmenter(tmp_path: Path) -> None:
    model, image, theirs = run("deeplab", tmp_path)
    close(model(image[None])["out"], theirs["out"])
