"""Export of networks with deformable layers to standard operators, and runtimes for the exported files."""

from pliant.export.onnx import to_onnx
from pliant.export.program import to_program
from pliant.export.runtime import OnnxModule

__all__ = ["OnnxModule", "to_onnx", "to_program"]
