"""Every door as one function from NumPy arrays to NumPy arrays, and the cases drawn for it.

A door that is not installed is not in :data:`DOORS`; a dtype more is an entry more in
:data:`DTYPES`.
"""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np
from hypothesis import strategies as st

import elman
from elman import engine
from elman.spec import CELLS as SPECS
from elman.spec import Spec

CELLS = ("rnn_tanh", "rnn_relu", "gru")
FULL = ("float32", "float64")  # in which the state is of the type of x
DTYPES = (*FULL, "float16")
if find_spec("ml_dtypes"):
    import ml_dtypes

    DTYPES += ("bfloat16",)


@dataclass(frozen=True)
class Case:
    """A layer and a call of it: weights by PyTorch's names, x (L, N, D), h_0 (K, N, H), extents."""

    spec: Spec
    weights: dict
    x: np.ndarray
    h_0: np.ndarray
    d_output: np.ndarray
    d_h_n: np.ndarray
    lengths: np.ndarray | None = None
    reset: np.ndarray | None = None

    @property
    def dtype(self):
        return self.x.dtype.name

    def rows(self, rows):
        """The same with these rows of the batch, in this order."""
        return self.indexed(np.s_[:, rows], np.s_[:, rows], rows)

    def steps(self, steps, h_0):
        """The same with these steps alone, from another state."""
        return replace(self.indexed(steps, np.s_[:], np.s_[:]), h_0=h_0)

    def indexed(self, sequence, state, row):
        return replace(
            self,
            x=self.x[sequence],
            h_0=self.h_0[state],
            d_output=self.d_output[sequence],
            d_h_n=self.d_h_n[state],
            lengths=None if self.lengths is None else self.lengths[row],
            reset=None if self.reset is None else self.reset[sequence],
        )

    def laid_out(self, change):
        """The same values as arrays that lie otherwise, or elsewhere."""
        names = ("x", "h_0", "d_output", "d_h_n", "lengths", "reset")
        arrays = {name: getattr(self, name) for name in names}
        return replace(self, **{k: a if a is None else change(a) for k, a in arrays.items()})


def make(cell, D, H, steps, batch, dtype, *, seed=0, scale=1.0, extents=True, **options):
    """A case of random values. `scale` multiplies x and h_0."""
    rng = np.random.default_rng(seed)
    if dtype == "float16":  # whose values lie closer together
        scale = min(max(scale, 1e-6), 30.0)
    dtype = np.dtype(dtype)
    state_dtype = engine.computed_in(dtype)
    spec = Spec(SPECS[cell], D, H, **options)
    states = spec.num_layers * spec.directions

    def normal(*shape, dtype=dtype):
        return rng.normal(size=shape).astype(dtype)

    shapes = spec.weight_shapes()
    bound = spec.bound()
    weights = {k: rng.uniform(-bound, bound, s).astype(dtype) for k, s in shapes.items()}
    case = Case(
        spec,
        weights,
        normal(steps, batch, D) * dtype.type(scale),
        normal(states, batch, H, dtype=state_dtype) * state_dtype.type(scale),
        normal(steps, batch, spec.directions * H),
        normal(states, batch, H, dtype=state_dtype),
    )
    if not extents:
        return case
    lengths = rng.integers(0, steps + 1, batch)
    lengths[rng.integers(0, batch)] = steps
    return replace(case, lengths=lengths, reset=rng.random((steps, batch)) < 0.2)


def cases(
    steps=(1, 6),
    batch=(1, 21),
    D=(1, 3, 8, 300),
    H=(1, 4, 15, 16, 17, 33, 65),
    dtypes=DTYPES,
    **fixed,
):
    """Cases whose sizes cross the edges of vectors, tiles and blocks of a sum."""
    options = {
        "cell": st.sampled_from(CELLS),
        "D": st.sampled_from(D),
        "H": st.sampled_from(H),
        "steps": st.integers(*steps),
        "batch": st.integers(*batch),
        "dtype": st.sampled_from(dtypes),
        "seed": st.integers(0, 2**32 - 1),
        # Ordinary values, subnormal ones, and those that saturate every gate.
        "scale": st.sampled_from([1.0, 1.0, 1e-39, 1e3]),
        "extents": st.booleans(),
        "num_layers": st.integers(1, 2),
        "bias": st.booleans(),
        "bidirectional": st.booleans(),
    }
    return st.builds(make, **options | {name: st.just(value) for name, value in fixed.items()})


@contextmanager
def threads(n):
    """Let every door use so many threads."""
    settings = [(elman.get_num_threads, elman.set_num_threads)]
    if find_spec("torch"):
        import torch

        settings.append((torch.get_num_threads, torch.set_num_threads))
    before = [get() for get, _ in settings]
    for _, set_to in settings:
        set_to(n)
    try:
        yield
    finally:
        for (_, set_to), was in zip(settings, before, strict=True):
            set_to(was)


# The doors: a case's output and h_n, and as d_x, d_h_0 and d_{weight} the gradients.
#
# In half precision the state is float32, as the NumPy door has it. The torch door takes h_0 in half
# precision too, but hands h_n out rounded then, and chunks would not have the bits of the whole.


def numpy_layer(case):
    spec = case.spec
    options = {
        "num_layers": spec.num_layers,
        "bias": spec.bias,
        "bidirectional": spec.bidirectional,
        "dtype": case.dtype,
    }
    if spec.cell.name == "gru":
        layer = elman.GRU(spec.input_size, spec.hidden_size, **options)
    else:
        options["nonlinearity"] = spec.cell.name.removeprefix("rnn_")
        layer = elman.RNN(spec.input_size, spec.hidden_size, **options)
    layer.load_state_dict(case.weights)
    return layer


def numpy_cell(case):
    spec = case.spec
    options = {"bias": spec.bias, "dtype": case.dtype}
    if spec.cell.name == "gru":
        cell = elman.GRUCell(spec.input_size, spec.hidden_size, **options)
    else:
        options["nonlinearity"] = spec.cell.name.removeprefix("rnn_")
        cell = elman.RNNCell(spec.input_size, spec.hidden_size, **options)
    cell.load_state_dict({k.removesuffix("_l0"): w for k, w in case.weights.items()})
    return cell


def run_numpy(case, layer=None):
    layer = layer or numpy_layer(case)
    output, h_n, vjp = layer.vjp(case.x, case.h_0, case.lengths, case.reset)
    gradients = vjp(case.d_output, case.d_h_n)
    return {"output": output, "h_n": h_n} | {f"d_{name}": d for name, d in gradients.items()}


def run_torch(case):
    import torch

    import elman.torch

    return run_as_torch(case, torch, elman.torch, tensor, array)


def run_oneflow(case):
    """In float32 where the case is in half precision, which the door leaves to OneFlow."""
    import oneflow

    import elman.oneflow

    return run_as_torch(widened(case), oneflow, elman.oneflow, oneflow.tensor, oneflow.Tensor.numpy)


def run_as_torch(case, library, door, tensor, array):
    """In a library that has torch's names, with arrays to its tensors and back."""
    spec = case.spec
    options = {
        "num_layers": spec.num_layers,
        "bias": spec.bias,
        "bidirectional": spec.bidirectional,
        "dtype": getattr(library, case.dtype),
    }
    if spec.cell.name == "gru":
        layer = door.GRU(spec.input_size, spec.hidden_size, **options)
    else:
        options["nonlinearity"] = spec.cell.name.removeprefix("rnn_")
        layer = door.RNN(spec.input_size, spec.hidden_size, **options)
    layer.load_state_dict({name: tensor(w) for name, w in case.weights.items()})
    x, h_0 = tensor(case.x).requires_grad_(), tensor(case.h_0).requires_grad_()
    extents = {
        name: None if a is None else tensor(a)
        for name, a in (("lengths", case.lengths), ("reset", case.reset))
    }
    with door.require("kernel"):
        output, h_n = layer(x, h_0, **extents)
    named = dict(layer.named_parameters())
    inputs = (x, h_0, *(named[name] for name in case.weights))
    # As one number: OneFlow does not begin at two results of one node.
    products = (output * tensor(case.d_output)).sum() + (h_n * tensor(case.d_h_n)).sum()
    gradients = library.autograd.grad(products, inputs)
    names = ("x", "h_0", *case.weights)
    results = {"output": output, "h_n": h_n} | {
        f"d_{name}": d for name, d in zip(names, gradients, strict=True)
    }
    return {name: array(t) for name, t in results.items()}


def widened(case):
    """The same in float32, where it is in half precision."""

    def wide(a):
        return a if a.dtype in FULL else a.astype(np.float32)

    return replace(
        case,
        weights={name: wide(w) for name, w in case.weights.items()},
        x=wide(case.x),
        d_output=wide(case.d_output),
    )


def tensor(a):
    """A tensor on the array's own memory, strides and all, where torch can have it so."""
    import torch

    if not (a.flags.writeable and a.flags.aligned and min(a.strides, default=0) >= 0):
        a = a.copy()
    if a.dtype.name == "bfloat16":
        return torch.from_numpy(a.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(a)


def array(t):
    """The way back."""
    import torch

    if t.dtype == torch.bfloat16:
        return t.detach().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return t.detach().numpy()


MLX_NAMES = {
    "Wx": "weight_ih",
    "Wxh": "weight_ih",
    "Wh": "weight_hh",
    "Whh": "weight_hh",
    "b": "bias_ih",
    "bias": "bias_ih",
    "bhn": "bias_hh",
}


def fit_mlx(case):
    """The same without the recurrent biases that MLX has not: all but a GRU's b_hn.

    And in float32 where it is in half precision, which the door leaves to MLX.
    """
    case = widened(case)
    weights = {name: w.copy() for name, w in case.weights.items()}
    for name, w in weights.items():
        if name.startswith("bias_hh"):
            w[: 2 * case.spec.hidden_size] = 0
    return replace(case, weights=weights)


def run_mlx(case, **options):
    """Of d_bias_hh only what MLX has: a GRU's b_hn."""
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_unflatten

    import elman.mlx

    spec, dtype = case.spec, getattr(mx, case.dtype)
    options |= {"num_layers": spec.num_layers, "bidirectional": spec.bidirectional}
    sizes = (spec.input_size, spec.hidden_size, spec.bias)
    with mx.stream(mx.cpu), elman.mlx.require("kernel"):
        if spec.cell.name == "gru":
            layer = elman.mlx.GRU(*sizes, **options)
        else:
            function = {"rnn_tanh": mx.tanh, "rnn_relu": elman.mlx.nn.relu}[spec.cell.name]
            layer = elman.mlx.RNN(*sizes, function, **options)
        paths = [path for path, _ in tree_flatten(layer.parameters())]
        named = [_torch_name(path) for path in paths]

        def mlx(a, type=dtype):
            return mx.array(np.array(a, order="C"), type)

        parameters = []
        for path, name in zip(paths, named, strict=True):
            w = case.weights[name]
            parameters.append(mlx(w[-spec.hidden_size :] if path.endswith("bhn") else w))
        extents = {
            "lengths": None if case.lengths is None else mlx(case.lengths, mx.int64),
            "reset": None if case.reset is None else mlx(case.reset.T, mx.bool_),
        }

        def f(x, h_0, *parameters):
            layer.update(tree_unflatten(list(zip(paths, parameters, strict=True))))
            return layer(x, h_0, **extents, return_state=True)

        def states(h):
            return mlx(h[0] if len(h) == 1 else h)

        results, gradients = mx.vjp(
            f,
            [mlx(case.x.swapaxes(0, 1)), states(case.h_0), *parameters],
            [mlx(case.d_output.swapaxes(0, 1)), states(case.d_h_n)],
        )
        mx.eval(results, gradients)
    output, h_n, d_x, d_h_0, *d_weights = (np.array(a) for a in (*results, *gradients))
    found = {
        "output": output.swapaxes(0, 1),
        "h_n": h_n.reshape(case.h_0.shape),
        "d_x": d_x.swapaxes(0, 1),
        "d_h_0": d_h_0.reshape(case.h_0.shape),
    }
    return found | {f"d_{name}": d for name, d in zip(named, d_weights, strict=True)}


def _torch_name(path):
    *above, tensor = path.split(".")
    layer = above[1] if above else "0"
    reverse = "_reverse" if above and above[0] == "layers_reverse" else ""
    return f"{MLX_NAMES[tensor]}_l{layer}{reverse}"


DOORS = {"numpy": run_numpy}
if find_spec("torch"):
    DOORS["torch"] = run_torch
if find_spec("mlx"):
    DOORS["mlx"] = lambda case: run_mlx(fit_mlx(case))
if find_spec("oneflow"):
    DOORS["oneflow"] = run_oneflow
