"""Multi-scale deformable attention as an ONNX file: `GridSample` in every map, with the numbers of PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pliant.export import OnnxModule, to_onnx, to_program
from pliant.nn import MultiScaleDeformableAttention

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
# torch's exporter and onnxscript warn of each other's changes.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


class Pyramid(nn.Module):
    """Every cell of an image and of its half attends to points in both."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = MultiScaleDeformableAttention(8, num_heads=2, num_levels=2, num_points=3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x, nn.functional.avg_pool2d(x, 2)]
        shapes = [(level.shape[2], level.shape[3]) for level in maps]
        cells = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], 1)
        references = cells[..., :2].sigmoid()[:, :, None].expand(-1, -1, 2, -1)
        return self.attention(cells, references, cells, shapes)


@pytest.mark.parametrize("opset", [19, 22])
def test_attention_is_grid_samples(tmp_path: Path, opset: int) -> None:
    model = Pyramid().eval()
    to_onnx(model, torch.randn(2, 8, 6, 10), tmp_path / "model.onnx", opset=opset)
    file = onnx.load(tmp_path / "model.onnx")
    assert sum(node.op_type == "GridSample" for node in file.graph.node) == 2
    module = OnnxModule(tmp_path / "model.onnx")
    for shape in ((2, 8, 6, 10), (3, 8, 12, 4)):
        x = torch.randn(shape)
        torch.testing.assert_close(module(x), model(x).detach(), rtol=1e-5, atol=1e-5)


def test_a_program_keeps_the_operator() -> None:
    model = Pyramid().eval()
    program = to_program(model, torch.randn(2, 8, 6, 10))
    assert sum("ms_deform_attn" in str(node.target) for node in program.graph.nodes) == 1
    x = torch.randn(3, 8, 12, 4)
    torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=1e-6)


def test_sizes_that_are_values_cannot_be_captured_for_onnx(tmp_path: Path) -> None:
    class OfTensor(Pyramid):
        def forward(self, x: Tensor) -> Tensor:
            cells = x.flatten(2).transpose(1, 2).repeat(1, 2, 1)
            references = cells[..., :2].sigmoid()[:, :, None].expand(-1, -1, 2, -1)
            return self.attention(cells, references, cells, torch.tensor([[6, 10], [6, 10]]))

    with pytest.raises(Exception, match="spatial_shapes must be a sequence of pairs"):
        to_onnx(OfTensor().eval(), torch.randn(2, 8, 6, 10), tmp_path / "model.onnx", fixed=True)
