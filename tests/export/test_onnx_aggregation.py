"""Deformable aggregation as an ONNX file: one `GridSample`, with the numbers of PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pliant.export import OnnxModule, to_onnx, to_program
from pliant.nn import DCNv3, DCNv4

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
# torch's exporter and onnxscript warn of each other's changes.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


class Both(nn.Module):
    """A map [N, C, H, W] through one layer and then the other."""

    def __init__(self) -> None:
        super().__init__()
        self.third = DCNv3(8, group=2, center_feature_scale=True, remove_center=True)
        self.fourth = DCNv4(8, group=4, offset_scale=0.5)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.third(x.permute(0, 2, 3, 1))
        return self.fourth(x.flatten(1, 2), (x.shape[1], x.shape[2]))


def test_aggregations_are_grid_samples(tmp_path: Path) -> None:
    model = Both().eval()
    to_onnx(model, torch.randn(2, 8, 6, 10), tmp_path / "model.onnx")
    file = onnx.load(tmp_path / "model.onnx")
    assert sum(node.op_type == "GridSample" for node in file.graph.node) == 2
    assert {node.domain for node in file.graph.node} <= {"", "ai.onnx"}
    module = OnnxModule(tmp_path / "model.onnx")
    for shape in ((2, 8, 6, 10), (3, 8, 12, 4)):
        x = torch.randn(shape)
        torch.testing.assert_close(module(x), model(x).detach(), rtol=1e-5, atol=1e-5)


def test_a_program_keeps_the_operator() -> None:
    model = Both().eval()
    program = to_program(model, torch.randn(2, 8, 6, 10))
    assert sum("deform_aggregate" in str(node.target) for node in program.graph.nodes) == 2
    x = torch.randn(3, 8, 12, 4)
    torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=1e-6)
