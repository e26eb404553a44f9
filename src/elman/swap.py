"""What ``accelerate`` does in every package: turn a model's modules into Elman's, and back."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

#: Whether it turned a module, or why it left one alone; None of a module that is not recurrent.
Turn = Callable[[Any], bool | str | None]


class Names(list[str]):
    """The names of modules that were turned.

    Attributes
    ----------
    left : the names of recurrent modules that were left alone, each with the reason.
    """

    def __init__(self) -> None:
        super().__init__()
        self.left: dict[str, str] = {}


def turn_each(modules: Iterable[tuple[str, Any]], turn: Turn) -> Names:
    """Turn a model's modules. Warns whoever called the caller if none of them is recurrent."""
    names, results = Names(), [(name, turn(module)) for name, module in modules]
    for name, result in results:  # not all names differ, of Keras's layers
        if isinstance(result, str):
            names.left[name] = result
        elif result:
            names.append(name)
    if all(result is None for _, result in results):
        warnings.warn("accelerate: the model has no recurrent layer", UserWarning, stacklevel=3)
    return names


def swap(ours: Mapping[Any, Any], undo: bool) -> Turn:
    """Turn by class: a key of `ours` into its value, or with `undo` back again."""
    stock = {turned: original for original, turned in ours.items()}

    def turn(module: Any) -> bool | str | None:
        if not isinstance(module, (*ours, *stock)):
            return None
        if undo:
            turned = type(module) in stock and module.__dict__.pop("_accelerated", False)
            if turned:
                module.__class__ = stock[type(module)]
            return turned
        if type(module) in ours:
            module.__class__ = ours[type(module)]
            module._accelerated = True
            return True
        if isinstance(module, tuple(stock)):
            return False
        return f"{type(module).__name__} is a class of its own"

    return turn
