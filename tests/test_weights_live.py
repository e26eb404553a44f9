"""Converted weights in the frameworks' own layers: the same output as Elman's, both ways.

An adapter builds a framework's model and returns its weights, by the names that the framework
itself has for them, and a function that runs it with others: (L, N, D) to (L, N, directions*H).
One LSTM starts from an h and a c that differ, all else from zeros.
"""

import os
import re

import numpy as np
import pytest
from reference import assert_close

import elman
from elman.weights import build, convert

D, H, L, N = 3, 4, 6, 2
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # the frameworks' own
    pytest.mark.usefixtures("jax_compiles_quickly"),
]


def needs(name):
    return pytest.importorskip(name, reason=f"{name} is not installed; its live tests need it")


@pytest.fixture
def double():
    """JAX computes in float64 only where it is told to."""
    jax = needs("jax")
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def start(kind, dtype):
    """The state (N, H) that one layer or a cell starts from: [h], or of an LSTM [h, c]."""
    values = (0.3, -0.7) if "LSTM" in kind else (0,)
    return [np.full((N, H), value, dtype) for value in values]


def run_cell(step, state, x):
    """Every h of a cell; `step` takes x_t and the state, and gives h and the next one."""
    outputs = []
    for x_t in x:
        h, state = step(x_t, state)
        outputs.append(np.asarray(h))
    return np.stack(outputs)


def torch_layer(kind, layers, directions, bias, dtype):
    torch = needs("torch")
    if kind.endswith("Cell"):
        model = getattr(torch.nn, kind)(D, H, bias).to(getattr(torch, dtype))
    else:
        options = {"bias": bias, "bidirectional": directions == 2}
        model = getattr(torch.nn, kind)(D, H, layers, **options).to(getattr(torch, dtype))

    @torch.no_grad()
    def run(tensors, x):
        model.load_state_dict({name: torch.from_numpy(a) for name, a in tensors.items()})
        state = [torch.from_numpy(a) for a in start(kind, dtype)]
        if kind.endswith("Cell"):
            return run_cell(step, state, torch.from_numpy(x))
        hx = [a[None] for a in state] if kind == "LSTM" and layers * directions == 1 else None
        return model(torch.from_numpy(x), hx)[0].numpy()

    def step(x_t, state):
        after = model(x_t, state if len(state) > 1 else state[0])
        after = after if isinstance(after, tuple) else (after,)
        return after[0], after

    return model.state_dict(), run


def mlx_layer(kind, layers, directions, bias, dtype):
    mx, nn, utils = needs("mlx.core"), needs("mlx.nn"), needs("mlx.utils")
    model = getattr(nn, kind)(D, H, bias)

    def run(tensors, x):
        model.load_weights([(name, mx.array(a)) for name, a in tensors.items()])
        output = model(mx.array(x.swapaxes(0, 1)), *map(mx.array, start(kind, dtype)))
        return np.array(output[0] if kind == "LSTM" else output).swapaxes(0, 1)

    return dict(utils.tree_flatten(model.parameters())), run


def keras_layer(kind, layers, directions, bias, dtype, **own):
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = needs("keras")
    name = {"RNN": "SimpleRNN", "RNNCell": "SimpleRNNCell"}.get(kind, kind)
    options = {"use_bias": bias, "dtype": dtype, **own}
    if kind.endswith("Cell"):
        cell = getattr(keras.layers, name)(H, **options)
        cell.build((N, D))
        model = keras.layers.RNN(cell, return_sequences=True, dtype=dtype)
        weights = {w.name: w for w in cell.weights}
    else:
        model = getattr(keras.layers, name)(H, return_sequences=True, **options)
        if directions == 2:
            model = keras.layers.Bidirectional(model, dtype=dtype)
        model(np.zeros((N, L, D), dtype))
        weights = {w.path: w for w in model.weights}

    def run(tensors, x):
        for path, weight in weights.items():
            weight.assign(tensors[path] if path in tensors else tensors[below_layer(path)])
        state = {} if directions == 2 else {"initial_state": start(kind, dtype)}
        output = keras.ops.stop_gradient(model(x.swapaxes(0, 1), **state))
        return keras.ops.convert_to_numpy(output).swapaxes(0, 1)

    return {path: w.numpy() for path, w in weights.items()}, run


def below_layer(path):
    """A weight's name without the layer's own before it, and without the numbers Keras makes up."""
    return re.sub(r"_\d+/", "/", path).partition("/")[2]


def flax_cell(kind):
    return {"RNN": "SimpleCell"}.get(kind.removesuffix("Cell"), kind.removesuffix("Cell") + "Cell")


def flax_carry(kind, dtype):
    """As Flax has it: h, or (c, h)."""
    h, *c = start(kind, dtype)
    return (*c, h) if c else h


def linen_layer(kind, layers, directions, bias, dtype):
    linen, jax, traverse = needs("flax.linen"), needs("jax"), needs("flax.traverse_util")

    def cell():
        return getattr(linen, flax_cell(kind))(H, param_dtype=dtype)

    def layer():
        if directions == 2:
            return linen.Bidirectional(linen.RNN(cell()), linen.RNN(cell()))
        return linen.RNN(cell())

    only_cell = kind.endswith("Cell")
    model = linen.Sequential([layer() for _ in range(layers)]) if layers > 1 else layer()
    if only_cell:
        model = cell()
        inputs = [flax_carry(kind, dtype), np.zeros((N, D), dtype)]
    else:
        inputs = [np.zeros((N, L, D), dtype)]
    params = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    apply = jax.jit(model.apply)

    def run(tensors, x):
        variables = {"params": traverse.unflatten_dict(tensors, sep=".")}
        if only_cell:
            return run_cell(
                lambda x_t, carry: apply(variables, carry, x_t)[::-1], flax_carry(kind, dtype), x
            )
        one = {"initial_carry": flax_carry(kind, dtype)} if layers * directions == 1 else {}
        return np.array(apply(variables, x.swapaxes(0, 1), **one)).swapaxes(0, 1)

    return traverse.flatten_dict(params, sep="."), run


def nnx_optimized_layer(*model):
    return nnx_layer(*model, prefix="Optimized")


def nnx_layer(kind, layers, directions, bias, dtype, prefix=""):
    nnx, rngs = needs("flax.nnx"), needs("flax.nnx").Rngs(0)

    def cell(size):
        return getattr(nnx, prefix + flax_cell(kind))(
            size, H, dtype=dtype, param_dtype=dtype, rngs=rngs
        )

    def layer(size):
        if directions == 2:
            return nnx.Bidirectional(nnx.RNN(cell(size)), nnx.RNN(cell(size)))
        return nnx.RNN(cell(size))

    sizes = [D] + [directions * H] * (layers - 1)
    model = nnx.Sequential(*map(layer, sizes)) if layers > 1 else layer(D)
    if kind.endswith("Cell"):
        model = cell(D)
    parameters = {
        ".".join(map(str, p)): w for p, w in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }

    def run(tensors, x):
        state = nnx.state(model, nnx.Param)
        for path, weight in nnx.to_flat_state(state):
            weight.set_value(np.asarray(tensors[".".join(map(str, path))]))
        nnx.update(model, state)
        if kind.endswith("Cell"):
            return run_cell(lambda x_t, carry: model(carry, x_t)[::-1], flax_carry(kind, dtype), x)
        one = {"initial_carry": flax_carry(kind, dtype)} if layers * directions == 1 else {}
        return np.array(model(x.swapaxes(0, 1), **one)).swapaxes(0, 1)

    return {name: np.array(w.get_value()) for name, w in parameters.items()}, run


def equinox_layer(kind, layers, directions, bias, dtype):
    equinox, jax = needs("equinox"), needs("jax")
    biases = {"GRUCell": ["bias", "bias_n"], "LSTMCell": ["bias"]}[kind]
    names = ["weight_ih", "weight_hh", *(biases if bias else [])]
    cell = getattr(equinox.nn, kind)(D, H, use_bias=bias, dtype=dtype, key=jax.random.key(0))

    def run(tensors, x):
        values = [jax.numpy.asarray(tensors[name]) for name in names]
        own = equinox.tree_at(lambda c: [getattr(c, name) for name in names], cell, values)

        def step(x_t, state):
            after = jax.vmap(own)(x_t, state)
            return (after[0] if kind == "LSTMCell" else after), after

        h, *c = start(kind, dtype)
        return run_cell(step, (h, *c) if c else h, x)

    return {name: getattr(cell, name) for name in names}, run


def haiku_layer(kind, layers, directions, bias, dtype):
    haiku, jax = needs("haiku"), needs("jax")

    def unroll(x):
        core = {"RNN": haiku.VanillaRNN}.get(kind) or getattr(haiku, kind)
        cores = haiku.DeepRNN([core(H) for _ in range(layers)])
        state = jax.tree.map(lambda a: a.astype(dtype), cores.initial_state(N))
        if kind == "LSTM" and layers == 1:
            hidden, cell = start(kind, dtype)
            state = (haiku.LSTMState(hidden=hidden, cell=cell),)
        return haiku.dynamic_unroll(cores, x, state)[0]

    model = haiku.without_apply_rng(haiku.transform(unroll))
    params = jax.eval_shape(model.init, jax.random.key(0), np.zeros((L, N, D), dtype))

    def run(tensors, x):
        own = {m: {n: tensors[f"{m}/{n}"] for n in of} for m, of in params.items()}
        return np.array(jax.jit(model.apply)(own, x))

    return {f"{m}/{n}": a for m, of in params.items() for n, a in of.items()}, run


ADAPTERS = {
    "torch": torch_layer,
    "mlx": mlx_layer,
    "keras": keras_layer,
    "flax-linen": linen_layer,
    "flax-nnx": nnx_layer,
    "flax-nnx-optimized": nnx_optimized_layer,
    "equinox": equinox_layer,
    "haiku": haiku_layer,
}

#: framework, kind, layers, directions, bias: what each framework has.
KINDS = ("GRU", "RNN", "LSTM")
MODELS = [
    *[("torch", kind, n, d, b) for kind in KINDS for n, d, b in ((1, 1, False), (2, 2, True))],
    *[("torch", f"{kind}Cell", 1, 1, True) for kind in KINDS],
    *[("mlx", kind, 1, 1, bias) for kind in KINDS for bias in (True, False)],
    *[("keras", kind, 1, d, b) for kind in KINDS for d, b in ((1, True), (2, True), (1, False))],
    *[("keras", f"{kind}Cell", 1, 1, True) for kind in KINDS],
    *[
        (flax, kind, *sizes, True)
        for flax, kinds in (
            ("flax-linen", KINDS),
            ("flax-nnx", KINDS),
            ("flax-nnx-optimized", ("LSTM",)),
        )
        for kind in kinds
        for sizes in ((1, 1), (1, 2), (2, 2))
    ],
    *[(flax, f"{kind}Cell", 1, 1, True) for flax in ("flax-linen", "flax-nnx") for kind in KINDS],
    ("flax-linen", "OptimizedLSTMCell", 1, 1, True),
    ("flax-nnx-optimized", "LSTMCell", 1, 1, True),
    *[("equinox", kind, 1, 1, bias) for kind in ("GRUCell", "LSTMCell") for bias in (True, False)],
    *[("haiku", kind, layers, 1, True) for kind in KINDS for layers in (1, 2)],
]


#: The GRU that resets before the recurrent product, whole; Haiku's has no other.
BEFORE = [
    *[("keras", "GRU", 1, d, b) for d, b in ((1, True), (2, True), (1, False))],
    ("keras", "GRUCell", 1, 1, True),
    *[("haiku", "GRU", layers, 1, True) for layers in (1, 2)],
]


def name(model):
    framework, kind, layers, directions, bias = model
    return f"{framework}-{kind}-{layers}x{directions}{'' if bias else '-nobias'}"


def random(tensors, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return {k: rng.normal(0, 0.5, np.shape(a)).astype(dtype) for k, a in tensors.items()}


def make_diagonal(w_hh, first, axis):
    """Clear what is beside the diagonal of the new gate's block."""
    block = w_hh[first:] if axis == 0 else w_hh[:, first:]
    block *= np.eye(H, dtype=block.dtype)


def elmans(kind, layers, directions, bias, dtype, **options):
    """Elman's layer of the same sizes."""
    options |= {"bias": bias, "bidirectional": directions == 2, "dtype": dtype}
    kind = kind.removeprefix("Optimized").removesuffix("Cell")
    return getattr(elman, kind)(D, H, layers, **options)


def output(weights, x, framework, kind, layers, directions, bias, dtype):
    """Elman's output for weights by PyTorch's names."""
    if "weight_ih" in weights:
        weights = {f"{key}_l0": w for key, w in weights.items()}
    bias = "bias_ih_l0" in weights
    relu = {"nonlinearity": "relu"} if (framework, kind) == ("haiku", "RNN") else {}
    layer = elmans(kind, layers, directions, bias, dtype, **relu)
    layer.load_state_dict(weights)
    if "LSTM" in kind and layers * directions == 1:
        return layer(x, tuple(a[None] for a in start(kind, dtype)))[0]
    return layer(x)[0]


#: MLX's σ is not of float64, nor are Keras's steps on these backends; its recorded cases are.
DTYPES = [(model, "float32") for model in MODELS] + [
    (model, "float64")
    for model in MODELS
    if model[0] not in ("mlx", "keras") and model[2:4] != (1, 2)
]


@pytest.mark.parametrize(
    ("model", "dtype"), DTYPES, ids=lambda v: v if isinstance(v, str) else name(v)
)
class TestLive:
    @pytest.fixture
    def adapter(self, model, dtype, request):
        framework = model[0]
        if dtype == "float64" and framework != "torch":
            request.getfixturevalue("double")
        return ADAPTERS[framework](*model[1:], dtype)

    def test_theirs_in_ours(self, model, dtype, adapter):
        own, run = adapter
        tensors = random(own, dtype)
        if model[:2] == ("haiku", "GRU"):
            for key in (key for key in tensors if key.endswith("w_h")):
                make_diagonal(tensors[key], 2 * H, 1)
        x = random({"x": np.empty((L, N, D))}, dtype, 1)["x"]
        weights = convert(tensors, source=model[0], target="torch")
        assert not weights.folded
        assert all(a.dtype == dtype for a in weights.values())
        want = run(tensors, x)
        assert_close(output(weights, x, *model, dtype), want, dtype)

    def test_ours_in_theirs(self, model, dtype, adapter):
        framework, kind, layers, directions, bias = model
        own, run = adapter
        layer = elmans(kind, layers, directions, bias, dtype)
        weights = random(layer.state_dict(), dtype)
        for key, a in weights.items():
            if framework in ("flax-nnx", "haiku") and kind.startswith("GRU") and "bias_hh" in key:
                a[2 * H :] = 0
            if framework == "haiku" and kind == "GRU" and "weight_hh" in key:
                make_diagonal(a, 2 * H, 0)
        tensors = convert(weights, "torch", framework, cell=kind.endswith("Cell"))
        if framework == "keras" and not kind.endswith("Cell"):
            own = {below_layer(path): a for path, a in own.items()}
        assert {k: a.shape for k, a in tensors.items()} == {k: np.shape(a) for k, a in own.items()}
        assert all(a.dtype == dtype and a.flags.c_contiguous for a in tensors.values())
        x = random({"x": np.empty((L, N, D))}, dtype, 1)["x"]
        assert_close(run(tensors, x), output(weights, x, *model, dtype), dtype)


@pytest.mark.parametrize("model", BEFORE, ids=name)
class TestResetBefore:
    @pytest.fixture
    def adapter(self, model):
        own = {"reset_after": False} if model[0] == "keras" else {}
        return ADAPTERS[model[0]](*model[1:], "float32", **own)

    def test_theirs_in_ours(self, model, adapter):
        (framework, _, _, _, bias), (own, run) = model, adapter
        tensors = random(own, "float32")
        told = {} if bias else {"reset_after": False}  # Keras's biases tell
        layer = build(tensors, framework, cell=False, **told)
        assert "reset_after=False" in repr(layer)
        x = random({"x": np.empty((L, N, D))}, "float32", 1)["x"]
        assert_close(layer(x)[0], run(tensors, x), "float32")

    def test_ours_in_theirs(self, model, adapter):
        (framework, kind, layers, directions, bias), (own, run) = model, adapter
        layer = elmans(kind, layers, directions, bias, "float32", reset_after=False)
        layer.load_state_dict(random(layer.state_dict(), "float32"))
        cell = kind.endswith("Cell")
        tensors = convert(layer.state_dict(), "elman", framework, cell=cell, reset_after=False)
        assert tensors.folded == bias  # both have one bias
        if framework == "keras" and not cell:
            own = {below_layer(path): a for path, a in own.items()}
        assert {k: a.shape for k, a in tensors.items()} == {k: np.shape(a) for k, a in own.items()}
        x = random({"x": np.empty((L, N, D))}, "float32", 1)["x"]
        assert_close(run(tensors, x), layer(x)[0], "float32")
