"""Is it right? Every contender's answers and gradients are held against float64."""

import numpy as np

from .contenders import Arrays
from .contenders.torch_layers import Loop, Packed, Padded
from .grid import Case, Inputs


class WrongError(Exception):
    """A contender's answer is not the case's."""


def reference(case: Case, inputs: Inputs, modes: list[str]) -> Arrays:
    """What is right: torch's layer in float64, rows with lengths packed, or else a loop.

    Names are those of Contender's ``answer`` and ``gradients``, the latter after "d_".
    """
    torchs = Packed if case.lengths else Padded
    layer = (Loop if case.resets_before else torchs)(case, inputs, 1, np.float64)
    right = layer.answer(layer.infer())
    if "training" in modes:
        gradients = layer.gradients(layer.train())
        right |= {f"d_{name}": a for name, a in gradients.items()}
    return right


def tolerance(case: Case, name: str) -> float:
    """How far off float32 may be, in terms of the largest value.

    Rounding errors of a sum grow as the square root of its terms: products have D + H, gradients
    of weights as many as there are rows, those of states all later steps, each with all gates.
    """
    terms = case.D + case.H
    if name.startswith("d_"):
        terms += case.rows + case.gates * case.H
    return 2 * float(np.finfo(np.float32).eps) * terms**0.5


def check(case: Case, got: Arrays, right: Arrays) -> float:
    """The largest error, in tolerances, of a contender's answer or of its gradients.

    Raises WrongError where it exceeds one, and where an array is missing or misshapen.
    """
    training = any(name.startswith("d_") for name in got)
    worst = 0.0
    for name, expected in right.items():
        if name.startswith("d_") != training:
            continue
        if name not in got or got[name].shape != expected.shape:
            shape = got[name].shape if name in got else "nothing"
            raise WrongError(f"{name}: expected shape {expected.shape}, got {shape}")
        scale = np.abs(expected).max()
        if not name.startswith("d_"):
            scale = max(scale, 1)  # states are sums of values up to 1, which may cancel
        error = np.abs(got[name] - expected).max() / scale
        allowed = tolerance(case, name)
        if not error <= allowed:  # nor NaN
            raise WrongError(f"{name}: relative error {error:.1e}, allowed are {allowed:.1e}")
        worst = max(worst, float(error / allowed))
    return worst
