"""Weights that move between frameworks.

There is one canonical set, PyTorch's: its names, shapes, order of gates and pair of biases.
Every framework's weights are read into it and written from it, by the framework's entry in
``frameworks.py``, so that no two frameworks need to know of each other. Values are moved, at most
negated; only where a framework has fewer biases than PyTorch are two added up, and that is said.
"""

from elman.weights.build import build
from elman.weights.convert import (
    Canonical,
    Converted,
    convert,
    from_canonical,
    to_canonical,
)
from elman.weights.find import Found, find
from elman.weights.frameworks import FRAMEWORKS, ConversionError

__all__ = [
    "FRAMEWORKS",
    "Canonical",
    "ConversionError",
    "Converted",
    "Found",
    "build",
    "convert",
    "find",
    "from_canonical",
    "to_canonical",
]
