"""Export trained weights, and say how far the file is from the network."""

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
        out: The file, ``.onnx``; one that Pliant wrote is replaced, and no other.
        opset: 19 or 22.
        images: Files, or folders of them; one of noise if there are none.
        openvino: Whether OpenVINO runs the file as well.

    Returns:
        Whether the results were the same; True where ONNX Runtime is not installed, which is said.

    Raises:
        ImportError: If onnx, onnxscript or (for `openvino`) openvino are not installed.
        FileNotFoundError: If there are no such weights or images.
        ValueError: If they cannot be used, the name or opset is not possible, or another file is there.
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
