"""Who is measured: Elman's packages, and everyone else who computes these layers on a CPU.

Each contender is given its best ordinary use: weights loaded once, models compiled once, arrays in
its own form before the clock starts, no gradient recorded in inference. All start from a state, h_0
or an LSTM's h_0 and c_0, and training goes back from given gradients of output and the final state
to those of x, the first state and every weight.
"""

from collections.abc import Iterable
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from ..grid import Case, Inputs

Arrays = dict[str, np.ndarray]

#: Name in the tables, and where the class is. A framework is imported when its turn comes.
OURS = {
    "elman": "elman_packages.NumpyPackage",
    "elman.torch": "elman_packages.TorchPackage",
    "elman.mlx": "mlx_layers.MlxPackage",
    "elman.jax": "jax_scan.JaxPackage",
}
OTHERS = {
    "torch": "torch_layers.Padded",
    "torch packed": "torch_layers.Packed",
    "ONNX Runtime": "onnx_models.OnnxRuntime",
    "OpenVINO": "onnx_models.OpenVino",
    "JAX": "jax_scan.JaxScan",
    "MLX": "mlx_layers.MlxLayer",
    "Keras on JAX": "keras_layers.KerasOnJax",
}
#: The packages whose versions go with the results.
PACKAGES = (
    "elman",
    "numpy",
    "torch",
    "onnxruntime",
    "openvino",
    "jax",
    "jaxlib",
    "keras",
    "mlx",
    "onnx",
)


class LeftOutError(Exception):
    """Why a contender does not run a case."""


class Contender(Protocol):
    """One way to run a case; ``compiles`` where the first call takes longer than any other.

    Only ``infer`` and ``train`` are timed; what they return is the contender's own, and computed
    when they return. ``answer`` and ``gradients`` make arrays of it, by name: "output", "h_n" and
    "c_n"; "x", "h_0", "c_0" and the weights by torch's names.
    """

    can_train: bool
    compiles: bool

    def __init__(self, case: Case, inputs: Inputs, threads: int) -> None: ...

    def infer(self) -> Any: ...

    def answer(self, result: Any) -> Arrays: ...

    def train(self) -> Any: ...

    def gradients(self, result: Any) -> Arrays: ...


def whole(states: Iterable[Any]) -> Any:
    """A state as torch's layers have it: h, or (h, c)."""
    states = tuple(states)
    return states[0] if len(states) == 1 else states


def parts(state: Any) -> tuple[Any, ...]:
    """The way back."""
    return state if isinstance(state, tuple) else (state,)


def answer(output: np.ndarray, finals: Iterable[np.ndarray]) -> Arrays:
    """What ``answer`` gives, of arrays."""
    return {"output": output, **dict(zip(("h_n", "c_n"), finals, strict=False))}


def make(name: str, case: Case, inputs: Inputs, threads: int, **options: Any) -> Contender:
    """Build a contender; options, which torch's and ours for torch have, go to the layer.

    Raises LeftOutError where it cannot run the case.
    """
    module, _, kind = (OURS | OTHERS)[name].partition(".")
    try:
        made = getattr(import_module(f"{__name__}.{module}"), kind)
    except ModuleNotFoundError as e:
        raise LeftOutError(f"{e.name} is not installed") from e
    return made(case, inputs, threads, **options)
