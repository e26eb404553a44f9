"""Who is measured: Elman's doors, and everyone else who computes a GRU or an RNN on a CPU.

Each contender is given its best ordinary use: weights loaded once, models compiled once, arrays in
its own form before the clock starts, no gradient recorded in inference. All start from h_0, and
training goes back from given gradients of output and h_n to those of x, h_0 and every weight.
"""

from importlib import import_module
from typing import Any, Protocol

import numpy as np

from ..grid import Case, Inputs

Arrays = dict[str, np.ndarray]

#: Name in the tables, and where the class is. A framework is imported when its turn comes.
OURS = {
    "elman": "elman_doors.NumpyDoor",
    "elman.torch": "elman_doors.TorchDoor",
    "elman.mlx": "mlx_layers.MlxDoor",
}
OTHERS = {
    "torch": "torch_layers.Padded",
    "torch packed": "torch_layers.Packed",
    "ONNX Runtime": "onnx_models.OnnxRuntime",
    "OpenVINO": "onnx_models.OpenVino",
    "JAX": "jax_scan.JaxScan",
    "MLX": "mlx_layers.MlxLayer",
}
#: The packages whose versions go with the results.
PACKAGES = ("elman", "numpy", "torch", "onnxruntime", "openvino", "jax", "jaxlib", "mlx", "onnx")


class LeftOutError(Exception):
    """Why a contender does not run a case."""


class Contender(Protocol):
    """One way to run a case; ``compiles`` where the first call takes longer than any other.

    Only ``infer`` and ``train`` are timed; what they return is the contender's own, and computed
    when they return. ``answer`` and ``gradients`` make arrays of it, by name: "output" and "h_n";
    "x", "h_0" and the weights by torch's names.
    """

    can_train: bool
    compiles: bool

    def __init__(self, case: Case, inputs: Inputs, threads: int) -> None: ...

    def infer(self) -> Any: ...

    def answer(self, result: Any) -> Arrays: ...

    def train(self) -> Any: ...

    def gradients(self, result: Any) -> Arrays: ...


def make(name: str, case: Case, inputs: Inputs, threads: int, **options: Any) -> Contender:
    """Build a contender; options, which torch's and its door have, go to the layer's constructor.

    Raises LeftOutError where it cannot run the case.
    """
    module, _, kind = (OURS | OTHERS)[name].partition(".")
    try:
        made = getattr(import_module(f"{__name__}.{module}"), kind)
    except ModuleNotFoundError as e:
        raise LeftOutError(f"{e.name} is not installed") from e
    return made(case, inputs, threads, **options)
