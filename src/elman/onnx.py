"""ONNX models of layers, read and written: :func:`read`, :func:`write`. See ``weights/onnx.py``."""

from elman.weights.onnx import Model, read, write

__all__ = ["Model", "read", "write"]
