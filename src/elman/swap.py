"""What ``accelerate`` does in every package: give modules another class, and take it back."""

from collections.abc import Iterable, Mapping
from typing import Any


def swap(modules: Iterable[tuple[str, Any]], ours: Mapping[Any, Any], undo: bool) -> list[str]:
    """Turn each module whose class is a key of `ours` into that key's value, in place.

    With `undo`, turn back those that were turned. Returns the names of the modules it turned.
    """
    stock = {turned: original for original, turned in ours.items()}
    names: list[str] = []
    for name, module in modules:
        if not undo and type(module) in ours:
            module.__class__ = ours[type(module)]
            module._accelerated = True
            names.append(name)
        elif undo and type(module) in stock and module.__dict__.pop("_accelerated", False):
            module.__class__ = stock[type(module)]
            names.append(name)
    return names
