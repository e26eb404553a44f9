"""Every package as one function from NumPy arrays to NumPy arrays, and the cases drawn for it.

A package whose framework is not installed is not in :data:`DOORS`; a dtype more is an entry more in
:data:`DTYPES`.
"""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st
from reference import named, parts, state_of, whole

import elman
from elman import engine
from elman.spec import CELLS as SPECS
from elman.spec import Spec

CELLS = tuple(SPECS)
FULL = ("float32", "float64")  # in which the state is of the type of x
DTYPES = (*FULL, "float16")
if find_spec("ml_dtypes"):
    import ml_dtypes

    DTYPES += ("bfloat16",)


@dataclass(frozen=True)
class Case:
    """A layer and a call of it: weights by PyTorch's names, x (L, N, D), states, extents.

    h_0 is (K, N, P), and an LSTM's c_0 (K, N, H).
    """

    spec: Spec
    weights: dict
    x: np.ndarray
    h_0: np.ndarray
    d_output: np.ndarray
    d_h_n: np.ndarray
    c_0: np.ndarray | None = None
    d_c_n: np.ndarray | None = None
    lengths: np.ndarray | None = None
    reset: np.ndarray | None = None

    @property
    def dtype(self):
        return self.x.dtype.name

    @property
    def state(self):
        """What the layer is given: h_0, or (h_0, c_0)."""
        return whole([a for a in (self.h_0, self.c_0) if a is not None])

    @property
    def d_final(self):
        """The gradient of the state that comes out."""
        return whole([d for d in (self.d_h_n, self.d_c_n) if d is not None])

    def arrays(self):
        """What a call takes, gradients too, by name; what is not there is left out."""
        names = ("x", "h_0", "c_0", "d_output", "d_h_n", "d_c_n", "lengths", "reset")
        pairs = ((name, getattr(self, name)) for name in names)
        return {name: a for name, a in pairs if a is not None}

    def rows(self, rows):
        """The same with these rows of the batch, in this order."""
        return self.indexed(np.s_[:, rows], np.s_[:, rows], rows)

    def steps(self, steps, state):
        """The same with these steps alone, from another state."""
        return replace(self.indexed(steps, np.s_[:], np.s_[:]), **named(state, "0"))

    def indexed(self, sequence, state, row):
        where = dict.fromkeys(("x", "d_output", "reset"), sequence) | {"lengths": row}
        arrays = self.arrays()
        return replace(self, **{k: a[where.get(k, state)] for k, a in arrays.items()})

    def laid_out(self, change):
        """The same values as arrays that lie otherwise, or elsewhere."""
        return replace(self, **{name: change(a) for name, a in self.arrays().items()})


def final_of(results):
    """The state that came out: h_n, or (h_n, c_n)."""
    return whole([results[name] for name in ("h_n", "c_n") if name in results])


def make(cell, D, H, steps, batch, dtype, *, seed=0, scale=1.0, extents=True, **options):
    """A case of random values. `scale` multiplies x and the state."""
    rng = np.random.default_rng(seed)
    if dtype == "float16":  # whose values lie closer together
        scale = min(max(scale, 1e-6), 30.0)
    dtype = np.dtype(dtype)
    state_dtype = engine.computed_in(dtype)
    spec = Spec(SPECS[cell], D, H, **options)

    def normal(shape, dtype=dtype):
        return rng.normal(size=shape).astype(dtype)

    def state():
        return state_of(spec, (batch,), lambda shape: normal(shape, state_dtype))

    shapes = spec.weight_shapes()
    bound = spec.bound()
    weights = {k: rng.uniform(-bound, bound, s).astype(dtype) for k, s in shapes.items()}
    x = normal((steps, batch, D)) * dtype.type(scale)
    first = {name: a * state_dtype.type(scale) for name, a in named(state(), "0").items()}
    d_output = normal((steps, batch, spec.directions * spec.output_size))
    d_final = {f"d_{name}": d for name, d in named(state(), "n").items()}
    case = Case(spec, weights, x, d_output=d_output, **first, **d_final)
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
        "proj_size": st.sampled_from([0, 0, 1, 5, 16, 33]),
    }
    return st.builds(
        make_fitting, **options | {name: st.just(value) for name, value in fixed.items()}
    )


def make_fitting(cell, D, H, *sizes, proj_size, **options):
    """The same, without a projection where there can be none."""
    fits = cell == "lstm" and proj_size < H
    return make(cell, D, H, *sizes, proj_size=proj_size if fits else 0, **options)


@contextmanager
def threads(n):
    """Let every package use so many threads."""
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


def build(package, cell, *sizes, step=False, **options):
    """A layer in a package that has torch's arguments, or one step of it."""
    kind = SPECS[cell].kind
    if kind == "RNN":
        options["nonlinearity"] = cell.removeprefix("rnn_")
    if cell == "gru_reset_before":
        options["reset_after"] = False
    return getattr(package, f"{kind}Cell" if step else kind)(*sizes, **options)


def layer_of(case, package, dtype):
    """The case's layer, without its weights."""
    spec = case.spec
    options = {"proj_size": spec.proj_size} if spec.proj_size else {}
    return build(
        package,
        spec.cell.name,
        spec.input_size,
        spec.hidden_size,
        num_layers=spec.num_layers,
        bias=spec.bias,
        bidirectional=spec.bidirectional,
        dtype=dtype,
        **options,
    )


def cell_of(case, package, dtype):
    """One step of it."""
    spec = case.spec
    sizes = (spec.input_size, spec.hidden_size)
    return build(package, spec.cell.name, *sizes, step=True, bias=spec.bias, dtype=dtype)


# The packages: a case's output, h_n and c_n, and as d_x, d_h_0, d_c_0 and d_{weight} the gradients.
#
# In half precision the state is float32, as the NumPy package has it. The torch package takes h_0
# in half precision too, but hands h_n out rounded then, and chunks would not have the bits of the
# whole.


def numpy_layer(case):
    layer = layer_of(case, elman, case.dtype)
    layer.load_state_dict(case.weights)
    return layer


def numpy_cell(case):
    cell = cell_of(case, elman, case.dtype)
    cell.load_state_dict({k.removesuffix("_l0"): w for k, w in case.weights.items()})
    return cell


def run_numpy(case, layer=None):
    layer = layer or numpy_layer(case)
    output, final, vjp = layer.vjp(case.x, case.state, case.lengths, case.reset)
    gradients = vjp(case.d_output, case.d_final)
    results = {"output": output, **named(final, "n")}
    return results | {f"d_{name}": d for name, d in gradients.items()}


def run_torch(case):
    import torch

    import elman.torch

    return run_as_torch(case, torch, elman.torch, tensor, array)


def run_oneflow(case):
    """In float32 where the case is in half precision, which the package leaves to OneFlow."""
    import oneflow

    import elman.oneflow

    return run_as_torch(widened(case), oneflow, elman.oneflow, oneflow.tensor, oneflow.Tensor.numpy)


def run_as_torch(case, library, package, tensor, array):
    """In a library that has torch's names, with arrays to its tensors and back."""
    layer = layer_of(case, package, getattr(library, case.dtype))
    layer.load_state_dict({name: tensor(w) for name, w in case.weights.items()})
    x = tensor(case.x).requires_grad_()
    first = [tensor(a).requires_grad_() for a in parts(case.state)]
    extents = {
        name: None if a is None else tensor(a)
        for name, a in (("lengths", case.lengths), ("reset", case.reset))
    }
    with package.require("kernel"):
        output, final = layer(x, whole(first), **extents)
    parameters = dict(layer.named_parameters())
    leaves = {"x": x, **named(whole(first), "0")} | {k: parameters[k] for k in case.weights}
    # As one number: OneFlow does not begin at two results of one node.
    pairs = zip(parts(final), parts(case.d_final), strict=True)
    products = (output * tensor(case.d_output)).sum() + sum((a * tensor(d)).sum() for a, d in pairs)
    gradients = library.autograd.grad(products, list(leaves.values()))
    results = {"output": output, **named(final, "n")} | {
        f"d_{name}": d for name, d in zip(leaves, gradients, strict=True)
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

    And in float32 where it is in half precision, which the package leaves to MLX. There is no
    projection.
    """
    if case.spec.proj_size:  # or hypothesis would mind where a case is not of its drawing
        assume(False)
    case = widened(case)
    weights = {name: w.copy() for name, w in case.weights.items()}
    for name, w in weights.items():
        if name.startswith("bias_hh"):
            w[: 2 * case.spec.hidden_size if case.spec.cell.kind == "GRU" else None] = 0
    return replace(case, weights=weights)


def run_mlx(case, **options):
    """Of d_bias_hh only what MLX has: a GRU's b_hn."""
    import mlx.core as mx
    import mlx.nn
    from mlx.utils import tree_flatten, tree_unflatten

    import elman.mlx

    spec, dtype = case.spec, getattr(mx, case.dtype)
    options |= {"num_layers": spec.num_layers, "bidirectional": spec.bidirectional}
    functions = {"rnn_tanh": mx.tanh, "rnn_relu": mlx.nn.relu}
    if spec.cell.name in functions:
        options["nonlinearity"] = functions[spec.cell.name]
    if spec.cell.gated:
        options["reset_after"] = False
    with mx.stream(mx.cpu), elman.mlx.require("kernel"):
        kind = getattr(elman.mlx, spec.cell.kind)
        layer = kind(spec.input_size, spec.hidden_size, spec.bias, **options)
        paths = [path for path, _ in tree_flatten(layer.parameters())]
        names = [_torch_name(path) for path in paths]

        def tensor(a, type=dtype):
            return mx.array(np.array(a, order="C"), type)

        parameters = []
        for path, name in zip(paths, names, strict=True):
            w = case.weights[name]
            parameters.append(tensor(w[-spec.hidden_size :] if path.endswith("bhn") else w))
        extents = {
            "lengths": None if case.lengths is None else tensor(case.lengths, mx.int64),
            "reset": None if case.reset is None else tensor(case.reset.T, mx.bool_),
        }

        def f(x, *rest):
            states, parameters = rest[: -len(paths)], rest[-len(paths) :]
            layer.update(tree_unflatten(list(zip(paths, parameters, strict=True))))
            # An LSTM gives c at every step too.
            output, *_, final = layer(x, *states, **extents, return_state=True)
            return [output, *parts(final)]

        def states(state):
            return [tensor(a[0] if len(a) == 1 else a) for a in parts(state)]

        results, gradients = mx.vjp(
            f,
            [tensor(case.x.swapaxes(0, 1)), *states(case.state), *parameters],
            [tensor(case.d_output.swapaxes(0, 1)), *states(case.d_final)],
        )
        mx.eval(results, gradients)
    results, gradients = ([np.array(a) for a in arrays] for arrays in (results, gradients))
    final = [a.reshape(case.h_0.shape) for a in results[1:]]
    d_first = [d.reshape(case.h_0.shape) for d in gradients[1 : len(results)]]
    leaves = {"x": gradients[0].swapaxes(0, 1), **named(whole(d_first), "0")}
    leaves |= dict(zip(names, gradients[len(results) :], strict=True))
    found = {"output": results[0].swapaxes(0, 1), **named(whole(final), "n")}
    return found | {f"d_{name}": d for name, d in leaves.items()}


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
