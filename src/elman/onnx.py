"""ONNX models of layers, found, read, loaded and written. See ``weights/onnx.py``."""

from elman.weights.onnx import Layer, Model, find, load, read, write

__all__ = ["Layer", "Model", "find", "load", "read", "write"]
