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


@pytest.mark.parametrize("name", POOLS)
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
