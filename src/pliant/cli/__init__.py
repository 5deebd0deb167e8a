"""The command line of Pliant: what each command is called, and which procedure it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import pliant
from pliant.cli.application import app, command
from pliant.cli.options import (
    Assignments,
    BoxAveraging,
    Device,
    Devices,
    Flip,
    MultiScale,
    Scales,
    SoftNMS,
    Source,
    procedure_of,
)
from pliant.console import Console


def _listed(values: Sequence[str] | None) -> list[str]:
    """Names that are separated by commas, of an option that may be given several times."""
    return [name.strip() for value in values or () for name in value.split(",") if name.strip()]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pliant {pliant.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Deformable ConvNets for PyTorch."""


@command()
def train(
    context: typer.Context,
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="Such as voc.faster_rcnn_deform.")] = None,
    data: Annotated[Path | None, typer.Option(help="The folder of the data.")] = None,
    assignments: Assignments = None,
    run: Annotated[Path | None, typer.Option(help="The run folder to make; runs/RECIPE by default.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Continue this run where it stopped; --set max_steps=N extends it."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first problem in the data.")] = False,
    devices: Devices = None,
    device: Device = None,
) -> None:
    """Train a recipe on your data, or continue or extend a run with --resume."""
    if resume is not None:
        given = {"RECIPE": recipe, "--run": run, "--strict": strict}
        if any(given.values()):
            names = ", ".join(name for name, value in given.items() if value)
            raise ValueError(f"--resume continues a run as it was started; leave out {names}")
        from pliant.commands.train import resume as resume_training
        from pliant.launch import Launch

        resume_training(
            resume, data=data, assignments=assignments or (), launch=Launch(devices, context.obj), device=device
        )
        return
    if recipe is None:
        from pliant.recipes import recipe_names

        raise ValueError(f"name a recipe, or a run with --resume; recipes: {', '.join(recipe_names())}")
    if data is None:
        raise ValueError("say where the data is with --data PATH")
    from pliant.commands.train import train as start_training
    from pliant.launch import Launch

    start_training(
        recipe,
        data,
        assignments=assignments or (),
        run=run,
        strict=strict,
        launch=Launch(devices, context.obj),
        device=device,
    )


@command()
def check(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE|PATH]", help="Such as voc.rfcn_deform; or a folder of data alone.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The folder of the data.")] = None,
    assignments: Assignments = None,
    deep: Annotated[bool, typer.Option("--deep", help="Decode every image.")] = False,
) -> None:
    """Say what a folder of data is and which recipes fit; with a recipe, check its data and list their defects."""
    from pliant.commands.check import check as run_check
    from pliant.commands.check import identify

    if data is None and recipe is not None and Path(recipe).is_dir():
        data, recipe = Path(recipe), None
    if data is None:
        raise ValueError("say where the data is: pliant check PATH, or pliant check RECIPE --data PATH")
    if recipe is None:
        if assignments or deep:
            raise ValueError("--set and --deep need a recipe: pliant check RECIPE --data PATH")
        if not identify(data):
            raise typer.Exit(2)
    elif not run_check(recipe, data, assignments=assignments or (), deep=deep):
        raise typer.Exit(2)


@command("eval")
def evaluate(
    context: typer.Context,
    source: Source,
    data: Annotated[Path | None, typer.Option(help="The folder of the data; by default that of the training.")] = None,
    split: Annotated[str | None, typer.Option(help="The split; by default the recipe's test split.")] = None,
    out: Annotated[Path | None, typer.Option(help="The JSON file; eval-SPLIT.json by default.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first problem in the data.")] = False,
    scales: Scales = None,
    multi_scale: MultiScale = False,
    flip: Flip = False,
    box_averaging: BoxAveraging = False,
    soft_nms: SoftNMS = False,
    voc_results: Annotated[bool, typer.Option("--voc-results", help="Write VOC's comp4_det_test_CLASS.txt.")] = False,
    devices: Devices = None,
    device: Device = None,
) -> None:
    """Evaluate a run or its weights: COCO and VOC average precision, mIoU, or top-1 and top-5 accuracy."""
    from pliant.commands.evaluate import evaluate as run_evaluation
    from pliant.launch import Launch

    procedure = procedure_of(scales, multi_scale, flip, box_averaging, soft_nms)
    run_evaluation(
        source,
        data,
        split=split,
        strict=strict,
        out=out,
        procedure=procedure,
        voc_results=voc_results,
        launch=Launch(devices, context.obj),
        device=device,
    )


@command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders; the first is the baseline.")],
    split: Annotated[str | None, typer.Option(help="The split of the evaluation, if there are several.")] = None,
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", metavar="NAME", help="A metric to compare; all by default.")
    ] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Compare the metrics of each class too.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write every number to this file.")] = None,
) -> None:
    """Compare runs: means over seeds, and differences with their confidence intervals."""
    from pliant.commands.compare import compare as run_comparison

    run_comparison(runs, split=split, metrics=metrics or (), per_class=per_class, markdown=markdown, out=out)


@command()
def predict(
    source: Source,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or folders of them.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write to.")],
    threshold: Annotated[float, typer.Option(min=0.0, max=1.0, help="The score from which boxes are drawn.")] = 0.5,
    scales: Scales = None,
    multi_scale: MultiScale = False,
    flip: Flip = False,
    box_averaging: BoxAveraging = False,
    soft_nms: SoftNMS = False,
    device: Device = None,
) -> None:
    """Write pictures with boxes, masks or names, and files to work with."""
    from pliant.commands.predict import predict as run_prediction

    procedure = procedure_of(scales, multi_scale, flip, box_averaging, soft_nms)
    done = run_prediction(source, images, out, threshold=threshold, procedure=procedure, device=device)
    pictures = "1 picture" if len(done.pictures) == 1 else f"{len(done.pictures)} pictures"
    Console(stderr=True).print(f"{pictures} in {out}")
    if done.failed:
        raise typer.Exit(1)


@command()
def look(
    source: Source,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or folders of them.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder to write to; look in the run folder by default.")
    ] = None,
    threshold: Annotated[float, typer.Option(min=0.0, max=1.0, help="The score from which detections show.")] = 0.5,
    cost: Annotated[bool, typer.Option(help="Measure the network and the plain one.")] = True,
    data: Annotated[
        Path | None, typer.Option(help="A folder of data to measure the effective dilation on, by object size.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="The split of that data; by default the recipe's test split."),
    ] = None,
    device: Device = None,
) -> None:
    """Show where the units of a network sample: pictures, and a page to explore."""
    from pliant.commands.look import look as run_look

    looked = run_look(source, images, out, threshold=threshold, cost=cost, data=data, split=split, device=device)
    Console(stderr=True).print(f"Open {looked.page}")
    if looked.failed:
        raise typer.Exit(1)


@command()
def export(
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The file to write.")],
    opset: Annotated[int, typer.Option(help="Of ONNX: 19 or 22.")] = 19,
    images: Annotated[
        list[Path] | None, typer.Option("--check", metavar="IMAGE", help="Compare with the network on this image.")
    ] = None,
    openvino: Annotated[bool, typer.Option("--openvino", help="Compare OpenVINO's run of the file as well.")] = False,
) -> None:
    """Write a trained network as an ONNX file, and compare it with the network."""
    from pliant.commands.export import export as run_export

    if not run_export(source, out, opset=opset, images=images or (), openvino=openvino):
        raise typer.Exit(1)


@command("import-weights")
def import_weights(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="The authors' .params, or mmdetection's .pth.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The file to write.")],
    classes: Annotated[
        list[str] | None, typer.Option(metavar="A,B,C", help="Their names; known data sets need none.")
    ] = None,
    assignments: Assignments = None,
    denormalized: Annotated[
        bool | None,
        typer.Option(
            "--denormalized/--normalized",
            help="How the authors' layer of the boxes is stored; by default denormalized under _test names alone.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Turn weights that others trained into a file for predict and eval."""
    from pliant.commands.import_weights import import_weights as run_import

    done = run_import(source, out, classes=_listed(classes), assignments=assignments or (), denormalized=denormalized)
    Console(stderr=True).print(f"{done.path}: {done.name}, {len(done.classes)} classes")


@command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("pliant-demo"),
    steps: Annotated[int | None, typer.Option(min=1, help="Steps for each network.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The seed of the data and the networks.")] = 0,
    device: Device = None,
) -> None:
    """Train a plain, a dilated and a deformable network side by side; no data needed."""
    from pliant.commands.demo.run import run

    run(out, steps=steps, seed=seed, device=device)


@command()
def ablate(
    data: Annotated[Path, typer.Option(help="The folder of the data.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write to.")] = Path("pliant-ablation"),
    recipe: Annotated[str, typer.Option(help="DeepLab, class-aware RPN, Faster R-CNN or R-FCN.")] = "voc.deeplab",
    assignments: Assignments = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many times each network is trained.")] = 3,
    budget: Annotated[
        str | None, typer.Option(metavar="20m", help="The time for all; sets the number of steps.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="A,B", help="Networks to compare, such as layers-0,layers-3.")
    ] = None,
    curve: Annotated[int, typer.Option(min=0, help="How many times to evaluate each network while it trains.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="How many networks to train at a time.")] = 1,
    device: Device = None,
) -> None:
    """Train every network of the paper's tables 1 and 3 alike: deformable layers, dilations, RoI pooling."""
    from pliant.commands.ablate.run import ablate as run_ablation

    done = run_ablation(
        out,
        data,
        name=recipe,
        assignments=assignments or (),
        seeds=seeds,
        budget=budget,
        only=_listed(only),
        curve=curve,
        jobs=jobs,
        device=device,
    )
    Console(stderr=True).print(f"Written to {done}")


@command()
def bench(
    threads: Annotated[int | None, typer.Option(min=1, help="For everyone; torch's number by default.")] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="For each row; three rounds at least.")] = 30.0,
    only: Annotated[str | None, typer.Option(metavar="TEXT", help="Rows whose names contain this: 38x63.")] = None,
    operators: Annotated[bool, typer.Option(help="Time the operators.")] = True,
    memory: Annotated[bool, typer.Option("--memory", help="Measure memory beyond the tensors (Linux).")] = False,
    network: Annotated[bool, typer.Option("--network", help="Time a training step of Faster R-CNN.")] = False,
    scaling: Annotated[Path | None, typer.Option(metavar="OUT.png", help="Draw how the cost grows.")] = None,
    chart: Annotated[
        Path | None, typer.Option(metavar="OUT.png", help="Draw the peers' comparison; its numbers go to OUT.json.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write every number to this file.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
) -> None:
    """Time the operators against plain convolution and their peers, each result checked first."""
    from pliant.bench.run import run

    right = run(
        threads=threads,
        seconds=seconds,
        only=only,
        operators=operators,
        memory=memory,
        network=network,
        scaling=scaling,
        chart=chart,
        out=out,
        markdown=markdown,
    )
    if not right:
        raise typer.Exit(1)


def main() -> None:
    """Run the command line."""
    app()
