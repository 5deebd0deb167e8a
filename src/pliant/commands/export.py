"""`pliant export`: write trained weights as an ONNX file, and compare its results with the network's."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torchvision import tv_tensors

from pliant.console import Console, Progress, Table, styled
from pliant.data.images import find_images, read_image
from pliant.outputs import Outputs
from pliant.runs.exported import compare, load_exported, write_exported
from pliant.tasks.task import Agreement


def export(source: Path, out: Path, *, opset: int = 19, images: Sequence[Path] = (), openvino: bool = False) -> bool:
    """Write a trained network as an ONNX file, run both on images, and print what differs.

    Args:
        source: A run folder or a file of weights that `train` wrote.
        out: The ``.onnx`` file; only a file that Pliant wrote is replaced.
        opset: The ONNX opset, 19 or 22.
        images: Image files or folders of them to compare on; if empty, one image of noise.
        openvino: Whether to run the file with OpenVINO as well.

    Returns:
        Whether all results agreed; True if ONNX Runtime is not installed, which is reported.

    Raises:
        ImportError: If onnx, onnxscript or (for `openvino`) openvino are not installed.
        FileNotFoundError: If the weights or an image do not exist.
        ValueError: If they cannot be used, the file does not end in ``.onnx``, the opset is not supported, or a file
            that Pliant did not write is in the way.
    """
    console = Console(stderr=True)
    outputs = Outputs.file(out, inputs=[source])
    pictures: dict[str, torch.Tensor] = {str(path): read_image(path) for path in find_images(images).images}
    with outputs.writing(out.name) as (place,), Progress() as progress, progress.task(f"writing {out.name}"):
        trained = write_exported(source, place, opset=opset)
    console.print(f"{out}: {trained.name}, opset {opset}, {out.stat().st_size / 2**20:.0f} MiB")
    if not pictures:
        noise = torch.randint(256, (3, 240, 320), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        pictures = {"noise": tv_tensors.Image(noise)}
    runtimes = ["onnxruntime"] * (importlib.util.find_spec("onnxruntime") is not None) + ["openvino"] * openvino
    if "onnxruntime" not in runtimes:
        console.print("not compared with the network: onnxruntime is not installed", style="yellow")
    with Progress() as progress:
        found = {
            name: compare(trained, load_exported(out, name), pictures)
            for name in progress.track(runtimes, "comparing with the network")
        }
    if found:
        console.print(_table(found))
    return all(each.same for agreements in found.values() for each in agreements.values())


def _table(found: dict[str, dict[str, Agreement]]) -> Table:
    table = Table(title="Against PyTorch")
    for heading in ("runtime", "image", "detections", "same", "scores differ by", "edges, pixels"):
        table.add_column(heading)
    for runtime, agreements in found.items():
        for image, each in agreements.items():
            table.add_row(
                runtime,
                image,
                "" if each.detections is None else str(each.detections),
                "yes" if each.same else styled("no", "red"),
                f"{each.scores:.1e}",
                "" if each.pixels is None else f"{each.pixels:.3f}",
            )
    return table
