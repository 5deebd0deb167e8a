"""Trained networks as ONNX files: write one, compare it with the network, and open it in the network's place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pliant.export import OnnxModule, to_onnx
from pliant.recipes.base import to_fields
from pliant.runs.trained import Trained, described, load_trained
from pliant.tasks.task import Agreement

_KEY = "pliant"


@dataclass(frozen=True)
class Exported(Trained):
    """A trained network in an ONNX file.

    Attributes:
        runtime: The library that runs it.
    """

    runtime: str = "onnxruntime"

    def model(self) -> nn.Module:
        """The program of the file, called as the network is.

        Raises:
            ImportError: If the runtime is not installed.
        """
        return self.task.from_program(OnnxModule(self.path, self.runtime), self.recipe).eval()

    def device(self, asked: str | None) -> torch.device:
        """The CPU, the only device that the runtimes use here.

        Raises:
            ValueError: If another device is asked for.
        """
        if asked not in (None, "cpu"):
            raise ValueError(f"{self.path} runs on the CPU, got --device {asked}; take the run or its weights")
        return torch.device("cpu")


def write_exported(source: Path, out: Path, *, opset: int = 19) -> Trained:
    """Write a trained network as an ONNX file of standard operators, for any batch and image size.

    A detector takes ``images`` float [N, 3, H, W] in 0..1, already scaled and padded at the right and bottom, with
    their unpadded ``sizes`` int64 [N, 2]. It returns ``boxes`` [N, D, 4] in pixels, ``labels`` [N, D] (0 for no
    detection) and ``scores`` [N, D]. A segmenter returns ``scores`` [N, C, H, W] of ``images``, and a classifier
    ``scores`` [N, C]. The file holds the recipe and classes, so ``pliant predict`` and ``eval`` accept it in place of
    the weights.

    Args:
        source: A run folder or a file of weights that `train` wrote.
        out: The ``.onnx`` file.
        opset: The ONNX opset, 19 or 22.

    Raises:
        ImportError: If onnx or onnxscript are not installed.
        FileNotFoundError: If the weights do not exist.
        ValueError: If they cannot be used, the file does not end in ``.onnx``, or the opset is not supported.
    """
    if out.suffix != ".onnx":
        raise ValueError(f"the file must end in .onnx, got {out}")
    trained = load_trained(source)
    program = trained.task.exportable(trained.model())
    description = {
        "recipe": trained.name,
        "kind": trained.recipe.kind,
        "fields": to_fields(trained.recipe),
        "classes": trained.classes,
        "category_ids": trained.category_ids,
        "splits": {"test": trained.test_split},
        "step": trained.step,
    }
    to_onnx(
        program.module.eval(),
        program.inputs,
        out,
        opset=opset,
        input_names=program.input_names,
        output_names=program.output_names,
        metadata={_KEY: json.dumps(description, ensure_ascii=False), "classes": json.dumps(trained.classes)},
    )
    return trained


def load_exported(path: Path, runtime: str = "onnxruntime") -> Exported:
    """Open what `write_exported` wrote.

    Raises:
        ImportError: If the runtime is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: If `write_exported` did not write it.
    """
    metadata = OnnxModule(path, runtime).metadata
    if _KEY not in metadata:
        raise ValueError(f"{path} does not say what it was trained for: use a file that `pliant export` wrote")
    try:
        description: dict[str, Any] = json.loads(metadata[_KEY])
    except ValueError as error:
        raise ValueError(f"{path}: the description of the recipe in it is not JSON: {error}") from error
    fields = described(path, description)
    return Exported(path=path, folder=path.parent, data=None, state={}, runtime=runtime, **fields)


def open_trained(source: Path) -> Trained:
    """Read a run folder, a file of weights or an exported ``.onnx``.

    Raises:
        As `load_trained` and `load_exported`.
    """
    return load_exported(source) if source.suffix == ".onnx" else load_trained(source)


@torch.inference_mode()
def compare(trained: Trained, exported: Exported, images: Mapping[str, Tensor]) -> dict[str, Agreement]:
    """Compare a network with its exported file on images, uint8 [3, H, W], by name."""
    model, other = trained.model(), exported.model()
    return {name: trained.task.agreement(model, other, trained.recipe, image) for name, image in images.items()}
