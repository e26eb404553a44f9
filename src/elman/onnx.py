"""ONNX models of layers, found, read and written. See ``weights/onnx.py``."""

from elman.weights.onnx import Layer, Model, find, read, write

__all__ = ["Layer", "Model", "find", "read", "write"]
