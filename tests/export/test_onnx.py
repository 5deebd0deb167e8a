"""ONNX files of layers and small networks: the numbers of PyTorch, in any batch and size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from cases import ROIS
from torch import Tensor, nn

import pliant
from pliant import nn as layers
from pliant.export import OnnxModule, to_onnx, to_program

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
# torch's exporter and onnxscript warn of each other's changes.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


class Convolutions(nn.Module):
    """Several geometries one after the other, and torchvision's layer."""

    def __init__(self, border: str = "paper") -> None:
        super().__init__()
        self.first = layers.DeformConv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1), border=border)
        self.second = layers.DeformConv2d(6, 4, 3, padding=1, groups=2, offset_groups=3, modulated=True, bias=False)
        self.offset = nn.Conv2d(4, 18, 3, padding=1)
        self.third = torchvision.ops.DeformConv2d(4, 5, 3, padding=1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        return self.third(x, self.offset(x))


class Pooling(nn.Module):
    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.05)

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        if isinstance(self.pool, layers.DeformPSRoIPool):
            return self.pool(input, input, rois)
        return self.pool(input, rois)


@pytest.mark.parametrize("opset", [19, 22])
def test_convolutions(tmp_path: Path, opset: int) -> None:
    model = Convolutions().eval()
    to_onnx(model, torch.randn(2, 4, 12, 17), tmp_path / "model.onnx", opset=opset, metadata={"made": "here"})
    file = onnx.load(tmp_path / "model.onnx")
    assert [entry.version for entry in file.opset_import if entry.domain == ""] == [opset]
    assert sum(node.op_type == "DeformConv" for node in file.graph.node) == 3
    assert [axis.dim_param or axis.dim_value for axis in file.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        4,
        "height",
        "width",
    ]
    module = OnnxModule(tmp_path / "model.onnx")
    assert module.metadata == {"made": "here"}
    for shape in ((1, 4, 9, 7), (3, 4, 20, 11)):
        x = torch.randn(shape)
        torch.testing.assert_close(module(x), model(x).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9), reason="torch 2.6's exporter cannot clamp by a size"
)
def test_the_authors_border_has_the_same_numbers_without_deformconv(tmp_path: Path) -> None:
    model = Convolutions("authors").eval()
    to_onnx(model, torch.randn(2, 4, 12, 17), tmp_path / "model.onnx")
    x = 3 * torch.randn(3, 4, 9, 14)
    assert sum(node.op_type == "DeformConv" for node in onnx.load(tmp_path / "model.onnx").graph.node) == 2
    torch.testing.assert_close(OnnxModule(tmp_path / "model.onnx")(x), model(x).detach(), rtol=1e-4, atol=1e-3)


POOLS = {
    "roi_pool": lambda: layers.RoIPool(3, 1 / 8),
    "deform_roi_pool": lambda: layers.DeformRoIPool(36, 3, 1 / 8, 0.4),
    "deform_roi_pool, authors": lambda: layers.DeformRoIPool(36, 3, 1 / 8, 0.4, "authors"),
    "ps_roi_pool, authors": lambda: layers.PSRoIPool(3, 1 / 8, "authors"),
    "deform_ps_roi_pool": lambda: layers.DeformPSRoIPool(36, 3, 1 / 8, 2, 0.4),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(each, marks=[pytest.mark.slow] * (each != "deform_ps_roi_pool")) for each in POOLS],
)
def test_poolings(tmp_path: Path, name: str) -> None:
    model = Pooling(POOLS[name]()).eval()
    example = torch.randn(2, 36, 8, 10), torch.tensor(ROIS[:3])
    to_onnx(model, example, tmp_path / "model.onnx", input_names=["input", "rois"])
    input, rois = torch.randn(3, 36, 9, 11), torch.tensor(ROIS)
    rois[3, 0] = 2
    module = OnnxModule(tmp_path / "model.onnx")
    torch.testing.assert_close(module(input, rois), model(input, rois).detach(), rtol=1e-4, atol=1e-5)


def test_a_plain_network_made_deformable(tmp_path: Path) -> None:
    model = pliant.deform(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)), 1)
    for name, parameter in model.named_parameters():
        if "offset" in name:
            nn.init.normal_(parameter, std=0.1)
    model.eval()
    to_onnx(model, torch.randn(2, 3, 16, 20), tmp_path / "model.onnx")
    x = torch.randn(1, 3, 25, 13)
    torch.testing.assert_close(OnnxModule(tmp_path / "model.onnx")(x), model(x).detach(), rtol=0, atol=1e-4)


def test_openvino_runs_the_same_file(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed; the extra bench has it")
    model = Convolutions().eval()
    to_onnx(model, torch.randn(2, 4, 12, 17), tmp_path / "model.onnx", metadata={"made": "here"})
    module = OnnxModule(tmp_path / "model.onnx", "openvino")
    assert module.metadata == {"made": "here"}
    x = torch.randn(3, 4, 9, 14)
    torch.testing.assert_close(module(x), model(x).detach(), rtol=1e-4, atol=1e-4)


def test_a_program_of_fixed_shapes_keeps_the_operators() -> None:
    model = Convolutions().eval()
    x = torch.randn(2, 4, 9, 7)
    program = to_program(model, x, fixed=True)
    assert [node.target for node in program.graph.nodes].count(torch.ops.pliant.deform_conv2d.default) == 2
    torch.testing.assert_close(program.module()(x), model(x))


def test_mistakes_are_named(tmp_path: Path) -> None:
    model = Convolutions()
    with pytest.raises(ValueError, match=r"eval\(\)"):
        to_onnx(model.train(), torch.randn(2, 4, 9, 7), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="got 18"):
        to_onnx(model.eval(), torch.randn(2, 4, 9, 7), tmp_path / "model.onnx", opset=18)
    assert not (tmp_path / "model.onnx").exists()
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match=r"onnxruntime cannot run .*broken\.onnx"):
        OnnxModule(tmp_path / "broken.onnx")
    with pytest.raises(FileNotFoundError, match=r"none\.onnx"):
        OnnxModule(tmp_path / "none.onnx")
    with pytest.raises(ValueError, match="'tensorrt'"):
        OnnxModule(tmp_path / "broken.onnx", "tensorrt")


class Several(nn.Module):
    """Inputs of any number, and options that an export leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = layers.DeformConv2d(4, 3, 3, padding=1)
        nn.init.normal_(self.conv.offset_conv.weight, std=0.3)

    def forward(self, first: Tensor, *others: Tensor, **options: Tensor) -> Tensor:
        for other in others:
            first = first + other
        return self.conv(first)


@pytest.mark.parametrize("count", [1, 3])
def test_a_forward_of_any_number_of_tensors(tmp_path: Path, count: int) -> None:
    model = Several().eval()
    to_onnx(model, tuple(torch.randn(2, 4, 6, 7) for _ in range(count)), tmp_path / "model.onnx")
    inputs = [torch.randn(3, 4, 9, 5) for _ in range(count)]
    torch.testing.assert_close(
        OnnxModule(tmp_path / "model.onnx")(*inputs), model(*inputs).detach(), rtol=1e-4, atol=1e-4
    )


class ByKeyword(nn.Module):
    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        return x * scale


def test_inputs_that_forward_does_not_take_are_refused(tmp_path: Path) -> None:
    x = torch.randn(2, 4, 6, 7)
    with pytest.raises(ValueError, match=r"ByKeyword\.forward.*cannot be called with 1 positional tensors .*'scale'"):
        to_onnx(ByKeyword().eval(), x, tmp_path / "model.onnx")
    with pytest.raises(TypeError, match=r"inputs\[1\] must be a Tensor, got float"):
        to_onnx(Several().eval(), (x, 1.0), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = layers.DeformConv2d(4, 36, 3, padding=1, modulated=True, offset_groups=2, groups=2)
        self.pool = layers.DeformRoIPool(36, 3, 1 / 8)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1)

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        return self.pool(self.first(x), rois)


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8), reason="torch.onnx.ops came with torch 2.8"
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [True, False])
def test_torchs_own_exporter_takes_the_layers(tmp_path: Path, dynamo: bool) -> None:
    model = Everything().eval()
    inputs = torch.randn(2, 4, 9, 11), torch.tensor(ROIS)
    try:
        torch.onnx.export(model, inputs, tmp_path / "model.onnx", dynamo=dynamo, opset_version=20, verbose=False)
    except TypeError:
        pytest.skip("this torch has one exporter")
    file = onnx.load(tmp_path / "model.onnx")
    assert sum(node.op_type == "DeformConv" for node in file.graph.node) == 1
    assert {entry.domain for entry in file.opset_import} <= {"", "pkg.onnxscript.torch_lib.common"}
    torch.testing.assert_close(
        OnnxModule(tmp_path / "model.onnx")(*inputs), model(*inputs).detach(), rtol=1e-4, atol=1e-5
    )
