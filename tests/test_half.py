"""Half precision: float16 and bfloat16 weights, input and output; state and sums in float32.

That rows, chunks, threads and packages have the same bits is in ``test_exact*.py``, for every type.
"""

import copy
import pickle
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from doors import CELLS, DTYPES, FULL, layer_of, make, numpy_cell, numpy_layer, run_numpy, tensor
from reference import assert_all_same_bits, assert_same_bits, each, named, parts, run, whole

import elman
from elman import engine
from elman.spec import CELLS as SPECS

HALVES = tuple(dtype for dtype in DTYPES if dtype not in FULL)
EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
every_half = pytest.mark.parametrize("half", HALVES)
every_cell = pytest.mark.parametrize("cell", CELLS)
KINDS = [getattr(elman, kind + end) for kind in ("RNN", "GRU", "LSTM") for end in ("", "Cell")]
every_kind = pytest.mark.parametrize("kind", KINDS)
needs_torch = pytest.mark.skipif(not find_spec("torch"), reason="PyTorch is not installed")
if find_spec("torch"):
    import torch

    import elman.torch
    from elman.torch import require


# Values


def halves(half):
    """Every bit pattern, and the float32 that it means."""
    bits = np.arange(2**16, dtype=np.uint16)
    if half == "float16":
        return bits.view(np.float16), bits.view(np.float16).astype(np.float32)
    return bits, (bits.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.every_isa
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("where", ["w_ih", "b_ih"])
def test_every_value_comes_out_of_the_weights(half, where):
    """Of units that are max(0, ±w): subnormal numbers, infinity and NaN too."""
    given, want = halves(half)
    H = 241  # ends inside a vector
    if where == "b_ih":  # which x does not turn around
        given, want = given[: 2**15], want[: 2**15]
    x = np.array([[[1], [-1]]], np.float32)
    got = []
    for start in range(0, len(given), H):
        w = given[start : start + H]
        zeros = np.zeros_like(w)
        biases = [w, zeros] if where == "b_ih" else [None, None]
        w_ih = zeros if where == "b_ih" else w
        weights = [w_ih[:, None], np.zeros((len(w), len(w)), w.dtype), *biases, None]
        packed = engine.pack(SPECS["rnn_relu"], weights)
        _, h_n, _ = engine.forward(SPECS["rnn_relu"], packed, x, None, engine.Extent(), 1)
        got.append(h_n[0])
    up, down = np.concatenate(got, 1)
    with np.errstate(invalid="ignore"):  # of the NaNs that signal
        positive, negative = np.maximum(want, 0), np.maximum(-want, 0)
    np.testing.assert_array_equal(up, positive)
    np.testing.assert_array_equal(down, positive if where == "b_ih" else negative)


@pytest.mark.every_isa
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_every_value_comes_out_of_the_weights_in_backward(half):
    """d_x = d W_ih, of one unit that lets every gradient through: it is NaN, as 0 * infinity is."""
    given, want = halves(half)
    weights = [given[None], np.zeros((1, 1), given.dtype), None, None, None]
    packed = engine.pack(SPECS["rnn_relu"], weights)
    x, extent = np.zeros((1, 1, len(given)), np.float32), engine.Extent()
    _, _, kept = engine.forward(SPECS["rnn_relu"], packed, x, None, extent, 1, keep=True)
    d_h_n, shapes = np.ones((1, 1, 1), np.float32), [w if w is None else w.shape for w in weights]
    d_x, _, _ = engine.backward(packed, shapes, x, kept, None, d_h_n, extent, 1)
    np.testing.assert_array_equal(d_x[0, 0], want)


def exact(case):
    """The case in float64, by the loop that shares nothing with the engine."""
    output, final, vjp = run(
        case.spec.cell,
        case.weights,
        case.x,
        case.state,
        lengths=case.lengths,
        reset=case.reset,
    )
    gradients = vjp(case.d_output, case.d_final)
    results = {"output": output, **named(final, "n")}
    return results | {f"d_{name}": d for name, d in gradients.items()}


STATES = ("h_n", "c_n", "d_h_0", "d_c_0")


@every_cell
@every_half
@pytest.mark.parametrize("size", [(3, 5, 4, 3), (40, 33, 9, 6), (16, 64, 30, 20)])
def test_a_layer_rounds_once(size, half, cell):
    """All but the state, which is float32, to the nearest value of its type."""
    D, H, steps, batch = size
    projections = (0, H // 2) if cell == "lstm" else (0,)
    for P in projections:
        case = make(cell, D, H, steps, batch, half, bidirectional=True, proj_size=P)
        check_rounded_once(case, half)


def check_rounded_once(case, half):
    results = run_numpy(case)
    for name, want in exact(case).items():
        got = results[name]
        rounded = name not in STATES
        assert got.dtype.name == (half if rounded else "float32")
        error = np.abs(got.astype("float64") - want)
        arithmetic = 1e-5 * np.abs(want).max()
        half_a_unit = EPS[half] / 2 * np.abs(want) if rounded else 0
        assert (error <= half_a_unit + arithmetic).all(), name


# What torch's layers can do too, as their arguments and lengths.
LAYERS = [
    {},
    {"num_layers": 2},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "extents": True},
    {"num_layers": 3, "bias": False},
]


def run_torchs_own(case):
    """torch's layer on tensors of the case, lengths by packing; its state is in half precision."""
    layer = layer_of(case, torch.nn, getattr(torch, case.dtype))
    layer.load_state_dict({name: tensor(w) for name, w in case.weights.items()})
    x = tensor(case.x).requires_grad_()
    state = each(lambda a: tensor(a).to(x.dtype).requires_grad_(), case.state)
    if case.lengths is None:
        output, final = layer(x, state)
    else:
        rnn, lengths = torch.nn.utils.rnn, torch.tensor(case.lengths)
        packed = rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        output, final = layer(packed, state)
        output, _ = rnn.pad_packed_sequence(output, total_length=len(x))
    parameters = dict(layer.named_parameters())
    leaves = {"x": x, **named(state, "0")} | {name: parameters[name] for name in case.weights}
    cotangents = [tensor(d).to(x.dtype) for d in (case.d_output, *parts(case.d_final))]
    gradients = torch.autograd.grad((output, *parts(final)), list(leaves.values()), cotangents)
    results = {"output": output, **named(final, "n")}
    results |= {f"d_{name}": d for name, d in zip(leaves, gradients, strict=True)}
    return {name: t.detach().double().numpy() for name, t in results.items()}


@needs_torch
@every_half
@pytest.mark.parametrize("cell", [cell for cell in CELLS if SPECS[cell].gated is None])
def test_errors_beside_torchs_own(cell, half):
    """In the median no larger, output and all gradients apart; torch rounds its state each step."""
    ratios = {}
    for seed, options in enumerate(LAYERS):
        for D, H, steps, batch in ((8, 16, 12, 5), (33, 40, 20, 8)):
            case = make(cell, D, H, steps, batch, half, seed=seed, **{"extents": False} | options)
            # A state that both can be given; torch knows no resets, and packs no rows of length 0.
            states = {k: a for k, a in case.arrays().items() if k.endswith(("_0", "_n"))}
            case = replace(
                case,
                **{k: a.astype(case.x.dtype).astype("float32") for k, a in states.items()},
                lengths=None if case.lengths is None else np.maximum(case.lengths, 1),
                reset=None,
            )
            ours, theirs = run_numpy(case), run_torchs_own(case)
            for name, want in exact(case).items():
                errors = [np.sqrt(np.mean((a[name] - want) ** 2)) for a in (ours, theirs)]
                kind = name.partition("_l")[0]
                ratios.setdefault(kind, []).append(errors[0] / errors[1])
    medians = {name: np.median(r) for name, r in ratios.items()}
    assert {"output", "d_x", "d_weight_ih", "d_bias_hh"} < medians.keys()
    assert {*named(case.state, "n"), *(f"d_{k}" for k in named(case.state, "0"))} < medians.keys()
    assert max(medians.values()) <= 1, medians


# The NumPy package


@every_half
def test_weights_are_kept_and_given_in_half_precision(half):
    case = make("gru", 3, 5, 2, 2, half)
    layer = numpy_layer(case)
    assert (layer.dtype, layer.state_dtype) == (case.x.dtype, np.float32)
    assert_all_same_bits(layer.state_dict(), case.weights)
    with pytest.raises(TypeError, match=f"^GRU: weight_ih_l0 must be {half}, got float32$"):
        layer.load_state_dict({k: w.astype("float32") for k, w in case.weights.items()})
    assert_all_same_bits(layer.state_dict(), case.weights)


@every_half
@every_kind
def test_dtypes_that_are_wrong(half, kind):
    layer = kind(3, 4, dtype=half)
    title, is_cell = kind.__name__, "Cell" in kind.__name__
    x, h = np.ones((2, 3), layer.dtype), np.zeros((2 if is_cell else 1, 4), "float32")
    states = layer.spec.cell.states
    state = whole([h for _ in states])
    with pytest.raises(TypeError, match=f"^{title}: x must be {half}, got float32$"):
        layer(x.astype("float32"), state)
    if not is_cell:
        _, _, vjp = layer.vjp(x, state)
        with pytest.raises(TypeError, match=f"^{title}: d_output must be {half}, got float32$"):
            vjp(np.ones((2, 4), "float32"), None)
    for k, name in enumerate(states):
        wrong = whole([h.astype(half) if i == k else h for i in range(len(states))])
        given = name if is_cell else f"{name}_0"
        with pytest.raises(TypeError, match=f"^{title}: {given} must be float32, got {half}$"):
            layer(x, wrong)
        if not is_cell:
            message = f"^{title}: d_{name}_n must be float32, got {half}$"
            with pytest.raises(TypeError, match=message):
                vjp(None, wrong)


@pytest.mark.parametrize("dtype", ["float8", ">f2", "float128", "bfloat"])
@every_kind
def test_dtypes_that_are_none(kind, dtype):
    expected = f"{kind.__name__}: dtype must be float16, bfloat16, float32 or float64, got {dtype}"
    with pytest.raises(TypeError, match=f"^{expected}$"):
        kind(3, 4, dtype=dtype)


def test_bfloat16_where_its_package_is_missing(monkeypatch, tmp_path):
    path = tmp_path / "layer.safetensors"
    if "bfloat16" in HALVES:
        elman.GRU(3, 4, dtype="bfloat16").save(path)

    def without(name):
        return None if name == "ml_dtypes" else find_spec(name)

    monkeypatch.setattr(elman.weights.files, "find_spec", without)
    for kind in KINDS:
        with pytest.raises(ModuleNotFoundError, match=rf"^{kind.__name__}: .*elman\[bfloat16\]"):
            kind(3, 4, dtype="bfloat16")
    if path.exists():
        with pytest.raises(ModuleNotFoundError, match=r"^load: .*elman\[bfloat16\]") as error:
            elman.load(path)
        assert error.value.name == "ml_dtypes"


@every_half
@every_cell
def test_saved_and_loaded(cell, half, tmp_path):
    case = make(cell, 3, 5, 4, 2, half, num_layers=2, bidirectional=True)
    layer = numpy_layer(case)
    layer.save(tmp_path / "layer.safetensors")
    loaded = elman.load(tmp_path / "layer.safetensors")
    assert loaded.dtype == layer.dtype
    assert_all_same_bits(loaded.state_dict(), case.weights)
    assert_all_same_bits(run_numpy(case, loaded), run_numpy(case, layer))


@every_half
@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_copied(copied, cell, half):
    case = make(cell, 3, 5, 4, 2, half)
    assert_all_same_bits(run_numpy(case, copied(numpy_layer(case))), run_numpy(case))
    case = make(cell, 3, 5, 4, 2, half, extents=False)
    step = numpy_cell(case)
    x, state = case.x[0], each(lambda a: a[0], case.state)
    assert_same_bits(copied(step)(x, state), step(x, state))


@every_half
def test_weights_as_arrays_of_the_type(half):
    """As np.dtype and as the scalar's type."""
    by_name = elman.GRU(3, 4, dtype=half, seed=0)
    for dtype in (by_name.dtype, by_name.dtype.type):
        again = elman.GRU(3, 4, dtype=dtype, seed=0)
        assert_all_same_bits(again.state_dict(), by_name.state_dict())


# The PyTorch package


def torch_layer(kind, half, **options):
    torch.manual_seed(0)
    return getattr(elman.torch, kind)(3, 5, dtype=getattr(torch, half), **options)


def torch_state(kind, *rows, random=False, dtype=None):
    """A state for (3, 5) without a projection: h, or (h, c)."""
    make = torch.randn if random else torch.zeros
    return whole([make(*rows, 5).to(dtype or torch.float32) for _ in range(1 + ("LSTM" in kind))])


def dtypes(state):
    return {t.dtype for t in parts(state)}


def bits(state):
    return torch.cat(parts(state), -1)


@needs_torch
@every_half
@pytest.mark.parametrize("kind", ["GRU", "RNN", "LSTM"])
def test_h_n_is_of_the_type_of_h_0(kind, half):
    """Chunks carried over in float32 have the bits of the whole; of h_n in half, its rounding."""
    layer = torch_layer(kind, half)
    dtype = getattr(torch, half)
    x = torch.randn(7, 2, 3).to(dtype)
    with require("kernel"):
        output, final = layer(x, torch_state(kind, 1, 2))
        without, rounded = layer(x)
        first, state = layer(x[:4], torch_state(kind, 1, 2))
        second, last = layer(x[4:], state)
        assert dtypes(layer(x, torch_state(kind, 1, 2, dtype=dtype))[1]) == {dtype}
    assert (output.dtype, dtypes(final), dtypes(rounded)) == (dtype, {torch.float32}, {dtype})
    assert torch.equal(output, without)
    assert torch.equal(bits(final).to(dtype), bits(rounded))
    assert torch.equal(torch.cat([first, second]), output)
    assert torch.equal(bits(last), bits(final))
    for a, b in zip(parts(final), parts(rounded), strict=True):
        assert not torch.equal(a, b.float())


@needs_torch
@every_half
@pytest.mark.parametrize("kind", ["GRU", "RNN", "LSTM"])
def test_a_model_that_is_accelerated(kind, half):
    dtype = getattr(torch, half)
    model = torch.nn.Sequential(getattr(torch.nn, kind)(3, 5, dtype=dtype))
    cell = getattr(torch.nn, f"{kind}Cell")(3, 5, dtype=dtype)
    x = torch.randn(4, 2, 3).to(dtype)
    want, want_state = model(x)[0], cell(x[0])
    elman.torch.accelerate(model)
    elman.torch.accelerate(cell)
    with require("kernel"):
        got, state = model(x)[0], cell(x[0])
        wide = cell(x[0], torch_state(kind, 2))
    assert (got.dtype, dtypes(state), dtypes(wide)) == (dtype, {dtype}, {torch.float32})
    assert torch.equal(bits(wide).to(dtype), bits(state))
    for a, b in ((got, want), (bits(state), bits(want_state))):
        assert (a - b).abs().max() <= 8 * EPS[half]


@needs_torch
@every_half
@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_compiled(kind, half):
    """The state is of x's type or float32: each of them with each kind and each type."""
    wide = (kind == "GRU") == (half == "float16")
    layer = torch_layer(kind, half, num_layers=2, bidirectional=True)
    dtype = getattr(torch, half)
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 2, 3).to(dtype).requires_grad_()
    state = torch_state(kind, 4, 2, random=True, dtype=None if wide else dtype)
    states = [t.requires_grad_() for t in parts(state)]
    results = []
    for module in (layer, compiled):
        output, final = module(x, whole(states))
        given = (output, *parts(final))
        inputs = (x, *states, *layer.parameters())
        d = torch.autograd.grad(given, inputs, [*map(torch.ones_like, given)])
        results.append([*given, *d])
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@needs_torch
@pytest.mark.parametrize("kind", ["GRU", "RNN", "LSTM", "GRUCell", "RNNCell", "LSTMCell"])
@pytest.mark.parametrize(
    ("of_weights", "of_x", "of_h"),
    [
        ("bfloat16", "float32", None),
        ("float32", "bfloat16", None),
        ("float16", "bfloat16", None),
        ("bfloat16", "float16", "float16"),
        ("float32", "float32", "bfloat16"),
        ("float32", "float16", "float32"),
    ],
)
def test_types_that_are_mixed_are_torchs_to_refuse(kind, of_weights, of_x, of_h):
    errors = []
    for module in (torch.nn, elman.torch):
        layer = getattr(module, kind)(3, 5, dtype=getattr(torch, of_weights))
        x = torch.ones(2, 3, dtype=getattr(torch, of_x))
        state = None
        if of_h is not None:
            state = torch_state(kind, 2 if "Cell" in kind else 1, dtype=getattr(torch, of_h))
        with pytest.raises((RuntimeError, ValueError)) as error:
            layer(x, state)
        errors.append((error.type, str(error.value)))
    assert errors[0] == errors[1]


@needs_torch
@every_half
@pytest.mark.parametrize("kind", ["LSTM", "LSTMCell"])
@pytest.mark.parametrize("narrow", [0, 1])
def test_states_of_two_types_are_torchs_to_take_or_refuse(kind, half, narrow):
    """float32 beside half precision is no state of the engine's."""
    results = []
    for module in (torch.nn, elman.torch):
        torch.manual_seed(0)
        layer = getattr(module, kind)(3, 5, dtype=getattr(torch, half))
        states = [*torch_state(kind, 2 if "Cell" in kind else 1, random=True)]
        states[narrow] = states[narrow].to(getattr(torch, half))
        try:
            with require("torch"):
                results.append(layer(torch.ones(2, 3, dtype=getattr(torch, half)), tuple(states)))
        except RuntimeError as e:
            results.append(str(e))
    want, got = results
    if isinstance(want, str):
        assert got == want
    else:
        torch.testing.assert_close(got, want, rtol=0, atol=0)
