"""The OneFlow package, on OneFlow itself: ``make test-oneflow`` installs it and runs these."""

import copy
import gc
import warnings
import weakref

import numpy as np
import pytest

pytest.importorskip("oneflow", reason="needs OneFlow: make test-oneflow", exc_type=ImportError)

import oneflow as flow
from oneflow import nn
from oneflow.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from reference import (
    assert_all_close,
    assert_all_same_bits,
    assert_close,
    assert_same_bits,
    each,
    named,
    parts,
    whole,
)
from test_oneflow_recorded import CELLS, LAYERS, load

import elman
import elman.oneflow
from elman import engine
from elman.oneflow import accelerate, operators, paths, require

KINDS = {
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "gru": ("GRU", {}),
    "lstm": ("LSTM", {}),
    "lstm_projected": ("LSTM", {"proj_size": 3}),
}
DTYPES = ["float32", "float64"]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_cell = pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])


def leaf(a):
    """The array, or each of a state's, as a tensor that wants its gradient."""
    return None if a is None else each(lambda a: flow.tensor(a, requires_grad=True), a)


def randn(*shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def state_of(module, *batch, dtype="float32"):
    """A state of the module, (K, *batch, P) and for an LSTM's c (K, *batch, H), or of a cell."""
    H = module.hidden_size
    sizes = [getattr(module, "proj_size", 0) or H, H]
    axes = (*([states(module)] if hasattr(module, "num_layers") else []), *batch)
    count = 2 if isinstance(module, (nn.LSTM, nn.LSTMCell)) else 1
    return whole([randn(*axes, sizes[i], seed=1 + i, dtype=dtype) for i in range(count)])


def loss(results, seed=7):
    """A loss with another weight for every value."""
    return sum(
        (t * flow.tensor(randn(*t.shape, seed=seed + i, dtype=t.numpy().dtype))).sum()
        for i, t in enumerate(results)
    )


def gradients(module, x, h):
    leaves = {"x": x, **({} if h is None else named(h, "0")), **dict(module.named_parameters())}
    return {f"d_{name}": t.grad.numpy().copy() for name, t in leaves.items()}


def results_of(output, final):
    return {"output": output.numpy(), **named(each(flow.Tensor.numpy, final), "n")}


def run(layer, x, h=None, **options):
    """Output, final state and every gradient, as NumPy arrays."""
    x, h = leaf(x), leaf(h)
    output, final = layer(x, h, **options)
    layer.zero_grad()
    loss([output, *parts(final)]).backward()
    return {**results_of(output, final), **gradients(layer, x, h)}


def run_packed(layer, x, h, lengths, pack=pack_padded_sequence, **options):
    """The same by way of a PackedSequence, padded back."""
    x, h = leaf(x), leaf(h)
    packed, final = layer(pack(x, lengths, layer.batch_first, **options), h)
    output, _ = pad_packed_sequence(packed, layer.batch_first)
    layer.zero_grad()
    loss([output, *parts(final)]).backward()
    return {**results_of(output, final), **gradients(layer, x, h)}


def twins(name, *sizes, dtype="float32", **options):
    """OneFlow's module and Elman's with the same weights."""
    theirs = getattr(nn, name)(*sizes, **options, dtype=getattr(flow, dtype))
    ours = getattr(elman.oneflow, name)(*sizes, **options, dtype=getattr(flow, dtype))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def numpy_twin(layer, kind, dtype="float32", **options):
    """The NumPy package's layer with a layer's weights."""
    name, extra = KINDS[kind]
    twin = getattr(elman, name)(
        layer.input_size, layer.hidden_size, layer.num_layers, **extra, **options, dtype=dtype
    )
    twin.load_state_dict({k: p.numpy() for k, p in layer.named_parameters()})
    return twin


def states(layer):
    return layer.num_layers * (2 if layer.bidirectional else 1)


# --- What OneFlow recorded -----------------------------------------------------------------------


def restore(case):
    module = getattr(elman.oneflow, case.kind)(**case.arguments, dtype=getattr(flow, case.dtype))
    module.load_state_dict({k: flow.tensor(w) for k, w in case.weights.items()})
    return module.train(case.training)


def assert_gradients(case, module, x, state):
    first = {} if state is None else named(state, "0")
    got = {"x": x, **first, **dict(module.named_parameters())}
    for name, want in case.gradients.items():
        assert_close(got[name].grad.numpy(), want, case.dtype, name)


def weighed(final, d_final):
    pairs = zip(parts(final), parts(d_final), strict=True)
    return sum((t * flow.tensor(d)).sum() for t, d in pairs)


@pytest.mark.parametrize("name", LAYERS)
def test_recorded_layer(name):
    case = load(name)
    layer, x, state = restore(case), leaf(case.x), leaf(case.state)
    with require("kernel"):
        if case.lengths is None:
            output, final = layer(x, state)
        else:
            packed, final = layer(pack_padded_sequence(x, case.lengths, case.batch_first), state)
            output, _ = pad_packed_sequence(packed, case.batch_first)
    assert_close(output.numpy(), case.output, case.dtype, "output")
    assert_close(each(flow.Tensor.numpy, final), case.final, case.dtype, "final state")
    (weighed(output, case.d_output) + weighed(final, case.d_final)).backward()
    assert_gradients(case, layer, x, state)


@pytest.mark.parametrize("name", CELLS)
def test_recorded_cell(name):
    case = load(name)
    cell, x, first = restore(case), leaf(case.x), leaf(case.state)
    state, outputs = first, []
    with require("kernel"):
        for t in range(len(x)) if case.loop else [...]:
            state = cell(x[t], state)
            outputs.append(parts(state)[0])
    assert_close(each(flow.Tensor.numpy, state), case.final, case.dtype, "final state")
    total = weighed(state, case.d_final)
    if case.loop:
        output = flow.stack(outputs)
        assert_close(output.numpy(), case.output, case.dtype, "output")
        total = total + weighed(output, case.d_output)
    total.backward()
    assert_gradients(case, cell, x, first)


# --- Beside OneFlow's own layers -----------------------------------------------------------------


@every_kind
@every_dtype
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", ["time", "batch", "single"])
@pytest.mark.parametrize("with_h", [False, True])
def test_options(kind, dtype, num_layers, bidirectional, bias, layout, with_h):
    name, extra = KINDS[kind]
    options = {"bias": bias, "batch_first": layout == "batch", "bidirectional": bidirectional}
    theirs, ours = twins(name, 5, 7, num_layers, dtype=dtype, **extra, **options)
    x = randn(*{"time": (6, 4), "batch": (4, 6), "single": (6,)}[layout], 5, dtype=dtype)
    h = state_of(ours, *([] if layout == "single" else [4]), dtype=dtype) if with_h else None
    with require("kernel"):
        got = run(ours, x, h)
    assert_all_close(got, run(theirs, x, h))


def test_without_rows_or_features():
    """OneFlow takes both, but what it makes of no features is whatever stood in memory."""
    _, ours = twins("GRU", 0, 7, 2)
    one = elman.oneflow.GRU(1, 7, 2)
    one.load_state_dict({**ours.state_dict(), "weight_ih_l0": one.weight_ih_l0})
    with require("kernel"):
        output, _ = ours(flow.zeros(6, 4, 0))
        nothing, h_n = ours(flow.zeros(6, 0, 0))
    assert_close(output.numpy(), one(flow.zeros(6, 4, 1))[0].numpy())
    assert (nothing.shape, h_n.shape) == ((6, 0, 7), (2, 0, 7))


@every_kind
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("with_h", [False, True])
def test_gradients_without_rows(kind, num_layers, with_h):
    """They are zero. OneFlow's own operators would end the process."""
    name, extra = KINDS[kind]
    _, ours = twins(name, 5, 7, num_layers, bidirectional=True, **extra)
    got = run(ours, randn(6, 0, 5), state_of(ours, 0) if with_h else None)
    for key, weight in ours.named_parameters():
        assert got[f"d_{key}"].shape == weight.shape
        assert not got[f"d_{key}"].any()


@every_kind
@pytest.mark.parametrize("lengths", [[6, 4, 4, 1], [5, 3, 2, 1], [6, 6, 6, 6]])
def test_packed(kind, lengths):
    name, extra = KINDS[kind]
    theirs, ours = twins(name, 5, 7, 2, bidirectional=True, **extra)
    x, h = randn(6, 4, 5), state_of(ours, 4)
    with require("kernel"):
        got = run_packed(ours, x, h, lengths)
        without_h = run_packed(ours, x, None, lengths)
    assert_all_close(got, run_packed(theirs, x, h, lengths))
    assert_all_close(without_h, run_packed(theirs, x, None, lengths))


@every_kind
@pytest.mark.parametrize("batch_first", [False, True])
def test_packed_unsorted(kind, batch_first):
    """OneFlow's documentation promises enforce_sorted=False, its code raises."""
    lengths = [2, 6, 1, 6]
    name, extra = KINDS[kind]
    _, ours = twins(name, 5, 7, 2, bidirectional=True, batch_first=batch_first, **extra)
    x, h = randn(*((4, 6) if batch_first else (6, 4)), 5), state_of(ours, 4)
    pack = elman.oneflow.pack_padded_sequence
    with pytest.raises(AssertionError):
        pack_padded_sequence(flow.tensor(x), lengths, batch_first, enforce_sorted=False)
    with require("kernel"):
        got = run_packed(ours, x, h, lengths, pack, enforce_sorted=False)
    assert_all_same_bits(got, run(ours, x, h, lengths=lengths))
    padded, ends = pad_packed_sequence(pack(flow.tensor(x), lengths, batch_first, False))
    assert ends.tolist() == lengths
    np.testing.assert_array_equal(padded[:2, 0].numpy(), x[0, :2] if batch_first else x[:2, 0])


def test_pack_sorted_is_oneflows():
    with pytest.raises(RuntimeError, match="sorted in decreasing order"):
        elman.oneflow.pack_padded_sequence(flow.ones(3, 2, 1), [1, 3])
    packed = elman.oneflow.pack_padded_sequence(flow.ones(3, 2, 1), [3, 1])
    assert packed.batch_sizes.tolist() == [2, 1, 1]
    assert packed.sorted_indices is None


@every_kind
def test_dropout_draws_oneflows_masks(kind):
    name, extra = KINDS[kind]
    theirs, ours = twins(name, 5, 7, 3, bidirectional=True, dropout=0.4, **extra)
    results = []
    for layer in (ours, theirs):
        flow.manual_seed(3)
        results.append(run(layer, randn(6, 4, 5)))
    assert_all_close(*results)
    assert not np.array_equal(run(ours, randn(6, 4, 5))["output"], results[0]["output"])
    assert_all_close(run(ours.eval(), randn(6, 4, 5)), run(theirs.eval(), randn(6, 4, 5)))


@every_cell
@every_dtype
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch", [(), (4,)])
def test_cells(name, dtype, bias, batch):
    theirs, ours = twins(name, 5, 7, bias=bias, dtype=dtype)
    x, h = randn(*batch, 5, dtype=dtype), state_of(ours, *batch, dtype=dtype)
    results = []
    for cell in (ours, theirs):
        x_leaf, h_leaf = leaf(x), leaf(h)
        with require("kernel"):
            after = cell(x_leaf, h_leaf)
        loss(parts(after)).backward()
        after = named(each(flow.Tensor.numpy, after), "n")
        results.append({**after, **gradients(cell, x_leaf, h_leaf)})
    assert_all_close(*results)


@every_cell
def test_cells_without_rows(name):
    """Gradients are zero; OneFlow's own are whatever stood in memory."""
    _, ours = twins(name, 5, 7)
    after = parts(ours(flow.zeros(0, 5), leaf(state_of(ours, 0))))
    assert {t.shape for t in after} == {(0, 7)}
    loss(after).backward()
    assert not any(p.grad.numpy().any() for p in ours.parameters())


@every_cell
@pytest.mark.parametrize("batch", [(), (4,)])
def test_cells_begin_with_zeros(name, batch):
    """OneFlow's documentation promises it, its code raises."""
    theirs, ours = twins(name, 5, 7)
    x = flow.tensor(randn(*batch, 5))
    with pytest.raises(TypeError):
        theirs(x)
    zeros = each(lambda a: flow.tensor(0 * a), state_of(ours, *batch))
    got, same, want = (
        each(flow.Tensor.numpy, s) for s in (ours(x), ours(x, zeros), theirs(x, zeros))
    )
    assert_same_bits(got, same)
    assert_close(got, want)


def test_relu_cell():
    theirs, ours = twins("RNNCell", 5, 7, nonlinearity="relu")
    x, h = flow.tensor(randn(4, 5)), flow.tensor(randn(4, 7))
    assert_close(ours(x, h).numpy(), theirs(x, h).numpy())


def test_strided_input():
    _, ours = twins("GRU", 5, 7)
    x = flow.tensor(randn(4, 6, 5)).transpose(0, 1)
    features = flow.tensor(randn(5, 4, 6)).permute(2, 1, 0)
    for strided in (x, features):
        want, _ = ours(strided.contiguous())
        np.testing.assert_array_equal(ours(strided)[0].numpy(), want.numpy())


def test_gradients_of_some():
    """Frozen weights get no gradient, and input without one costs none."""
    _, ours = twins("GRU", 5, 7)
    ours.weight_hh_l0.requires_grad_(False)
    x = flow.tensor(randn(6, 4, 5))
    loss(ours(x)).backward()
    assert x.grad is None
    assert ours.weight_hh_l0.grad is None
    some = ours.weight_ih_l0.grad.numpy()
    ours.weight_hh_l0.requires_grad_(True)
    np.testing.assert_array_equal(some, run(ours, randn(6, 4, 5))["d_weight_ih_l0"])


def test_gradients_of_input_alone():
    _, ours = twins("GRU", 5, 7)
    want = run(ours, randn(6, 4, 5))["d_x"]
    for p in ours.parameters():
        p.requires_grad_(False)
    x = leaf(randn(6, 4, 5))
    loss(ours(x)).backward()
    np.testing.assert_array_equal(x.grad.numpy(), want)


def test_no_grad_keeps_nothing():
    _, ours = twins("GRU", 5, 7)
    with flow.no_grad():
        output, h_n = ours(leaf(randn(6, 4, 5)))
    assert not output.requires_grad
    assert not h_n.requires_grad


def test_backward_again():
    _, ours = twins("GRU", 5, 7)
    x = leaf(randn(6, 4, 5))
    total = loss(ours(x))
    total.backward(retain_graph=True)
    once = x.grad.numpy().copy()
    total.backward()
    np.testing.assert_array_equal(x.grad.numpy(), 2 * once)


@every_kind
@every_dtype
@pytest.mark.parametrize("given", ["none", "lengths", "reset"])
def test_recompute(kind, dtype, given):
    """The same bits, beyond a chunk of 512 rows."""
    name, options = KINDS[kind]
    extent = {
        "none": {},
        "lengths": {"lengths": [150, 0, 7, 90]},
        "reset": {"reset": np.random.default_rng(0).random((150, 4)) < 0.2},
    }[given]
    results = []
    for recompute in (False, True):
        flow.manual_seed(0)
        layer = getattr(elman.oneflow, name)(
            3, 5, 2, bidirectional=True, recompute=recompute, **options
        ).to(getattr(flow, dtype))
        x, h = randn(150, 4, 3, dtype=dtype), state_of(layer, 4, dtype=dtype)
        with require("kernel"):
            results.append(run(layer, x, h, **extent))
    assert_all_same_bits(*results)


@every_kind
@pytest.mark.parametrize("layout", ["time", "batch", "single"])
def test_read_at_once_or_one_by_one(kind, layout, monkeypatch):
    """The same bits, and without gradients too."""
    name, extra = KINDS[kind]
    _, ours = twins(name, 5, 7, 2, batch_first=layout == "batch", bidirectional=True, **extra)
    x = randn(*{"time": (6, 4), "batch": (4, 6), "single": (6,)}[layout], 5)
    h = state_of(ours, *([] if layout == "single" else [4]))
    want = run(ours, x, h)
    with flow.no_grad():
        plain = results_of(*ours(leaf(x), leaf(h)))
    assert_all_same_bits(plain, {name: want[name] for name in plain})
    monkeypatch.setattr(operators, "_FEW", 0)
    assert_all_same_bits(run(ours, x, h), want)


@every_cell
def test_cells_read_at_once_or_one_by_one(name, monkeypatch):
    _, ours = twins(name, 5, 7)
    x, h = leaf(randn(4, 5)), leaf(state_of(ours, 4))
    results = []
    for few in (operators._FEW, 0):
        monkeypatch.setattr(operators, "_FEW", few)
        after = ours(x, h)
        for t in (x, *parts(h), *ours.parameters()):
            t.grad = None
        loss(parts(after)).backward()
        results.append({**named(each(flow.Tensor.numpy, after), "n"), **gradients(ours, x, h)})
    assert_all_same_bits(*results)


@pytest.mark.parametrize("few", [0, operators._FEW])
def test_weights_given_other_memory_before_backward(few, monkeypatch):
    """Backward has the values that forward had."""
    monkeypatch.setattr(operators, "_FEW", few)
    _, ours = twins("GRU", 5, 7)
    want = run(ours, randn(6, 4, 5))
    x = leaf(randn(6, 4, 5))
    total = loss(ours(x))
    for p in ours.parameters():
        p.grad = None
        p.data = flow.zeros(*p.shape)
    [flow.ones(21, 7).numpy() for _ in range(50)]  # which may get the memory
    total.backward()
    np.testing.assert_array_equal(x.grad.numpy(), want["d_x"])


@pytest.mark.parametrize("name", ["GRU", "GRUCell"])
def test_backward_frees_what_forward_kept(name, monkeypatch):
    kept, forward = [], engine.forward

    def watched(*arguments):
        results = forward(*arguments)
        kept.extend(weakref.ref(a) for a in results[2])
        return results

    monkeypatch.setattr(engine, "forward", watched)
    _, ours = twins(name, 5, 7)
    results = parts(ours(flow.tensor(randn(4, 5))))
    total = loss(results[:1])
    gc.collect()
    assert all(ref() is not None for ref in kept)
    total.backward()
    gc.collect()
    assert [ref() for ref in kept] == [None, None]


def test_second_derivative_raises():
    theirs, ours = twins("GRU", 5, 7)
    x = leaf(randn(6, 4, 5))
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        flow.autograd.grad([loss(ours(x))], [x], create_graph=True)
    with pytest.raises(Exception, match="gradient function"):
        flow.autograd.grad([loss(theirs(x))], [x], create_graph=True)


def test_trains():
    """Some steps of OneFlow's optimiser, beside its own layer's."""
    theirs, ours = twins("GRU", 5, 7, 2)
    losses = []
    for layer in (ours, theirs):
        optimiser = flow.optim.Adam(layer.parameters(), lr=0.01)
        losses.append([])
        for _ in range(5):
            output, _ = layer(flow.tensor(randn(6, 4, 5)))
            total = ((output - 0.5) ** 2).mean()
            optimiser.zero_grad()
            total.backward()
            optimiser.step()
            losses[-1].append(float(total.numpy()))
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert losses[0][-1] < losses[0][0]


# --- lengths and reset ---------------------------------------------------------------------------


@every_kind
@every_dtype
@pytest.mark.parametrize("layout", ["time", "batch", "single"])
@pytest.mark.parametrize("given", ["lengths", "reset", "both"])
def test_extent(kind, dtype, layout, given):
    """The NumPy package's bits, and its gradients'."""
    name, extra = KINDS[kind]
    batch_first = layout == "batch"
    options = {"bidirectional": True, "batch_first": batch_first}
    _, ours = twins(name, 5, 7, 2, dtype=dtype, **extra, **options)
    twin = numpy_twin(ours, kind, dtype, **options)
    axes = {"time": (6, 4), "batch": (4, 6), "single": (6,)}[layout]
    batch = () if layout == "single" else (4,)
    x, h = randn(*axes, 5, dtype=dtype), state_of(ours, *batch, dtype=dtype)
    extent = {
        "lengths": np.array([6, 0, 3, 5]) if batch else np.array(4),
        "reset": np.random.default_rng(2).random(axes) < 0.3,
    }
    if given != "both":
        extent = {given: extent[given]}
    with require("kernel"):
        got = run(ours, x, h, **extent)
    output, final, vjp = twin.vjp(x, h, **extent)
    d_output, *d_final = (
        randn(*a.shape, seed=7 + i, dtype=dtype) for i, a in enumerate([output, *parts(final)])
    )
    d = {f"d_{name}": a for name, a in vjp(d_output, whole(d_final)).items()}
    assert_all_same_bits(got, {"output": output, **named(final, "n"), **d})


def test_padding_is_never_read():
    _, ours = twins("GRU", 5, 7, 2, bidirectional=True)
    x = randn(6, 3, 5)
    x[4:, 1] = np.nan
    got = run(ours, x, lengths=[6, 4, 6])
    assert all(np.isfinite(a).all() for a in got.values())
    assert not got["output"][4:, 1].any()
    assert not got["d_x"][4:, 1].any()


def test_extent_takes_tensors_and_lists():
    _, ours = twins("RNN", 5, 7)
    x, reset = randn(3, 2, 5), [[False, True], [True, False], [False, False]]
    want = run(ours, x, lengths=np.array([3, 2], "int32"), reset=np.array(reset))
    assert_all_same_bits(run(ours, x, lengths=[3, 2], reset=reset), want)
    tensors = {"lengths": flow.tensor([3, 2]), "reset": flow.tensor(reset)}
    assert_all_same_bits(run(ours, x, **tensors), want)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": [6, 1]}, "GRU: lengths must lie between 0 and L = 5, got 6 for row 0"),
        ({"lengths": [5, -1]}, "GRU: lengths must lie between 0 and L = 5, got -1 for row 1"),
        ({"lengths": [5]}, r"GRU: lengths must be integers of shape \(2,\), got integers of \(1,"),
        ({"lengths": [5.0, 1.0]}, "GRU: lengths must be integers"),
        ({"lengths": [True, True]}, "GRU: lengths must be integers"),
        ({"reset": [True] * 5}, r"GRU: reset must be booleans of shape \(5, 2\), got booleans of"),
        ({"reset": np.zeros((5, 2), int)}, "GRU: reset must be booleans"),
    ],
)
def test_bad_extent(options, message):
    with pytest.raises(RuntimeError, match=message):
        elman.oneflow.GRU(3, 4)(flow.ones(5, 2, 3), **options)


def test_extent_beside_packed():
    packed = pack_padded_sequence(flow.ones(5, 2, 3), [5, 1])
    with pytest.raises(RuntimeError, match="lengths= and reset= go with padded input, not packed"):
        elman.oneflow.GRU(3, 4)(packed, lengths=[5, 1])


# --- Paths ---------------------------------------------------------------------------------------


class Graph(nn.Graph):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def build(self, x, *extent):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # OneFlow's own, of zeros in a graph
            return self.module(x, **dict(zip(("lengths", "reset"), extent, strict=False)))[0]


def counted(call):
    paths.clear()
    result = call()
    return result, dict(paths)


@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_graph_takes_oneflows_layer(name):
    _, ours = twins(name, 5, 7, 2, bidirectional=True)
    x = flow.tensor(randn(6, 4, 5))
    got, took = counted(lambda: Graph(ours)(x))
    assert took == {"oneflow": 2}
    assert_close(got.numpy(), ours(x)[0].numpy())


@pytest.mark.parametrize(
    ("name", "options"),
    [("GRU", {}), ("LSTM", {}), ("LSTM", {"proj_size": 3}), ("LSTM", {"bias": False})],
)
def test_graph_scans_extent(name, options):
    """Lengths and reset go into the graph as inputs, and may differ from call to call."""
    _, ours = twins(name, 5, 7, 2, bidirectional=True, **options)
    x, reset = flow.tensor(randn(6, 4, 5)), flow.tensor(randn(6, 4, seed=3) > 0.5)
    graph = Graph(ours)
    paths.clear()
    for lengths in (flow.tensor([6, 0, 3, 5]), flow.tensor([1, 6, 2, 4])):
        got = graph(x, lengths, reset)
        assert_close(got.numpy(), ours(x, lengths=lengths, reset=reset)[0].numpy())
    assert paths["scan"] == 2


def everywhere(tensor):
    """A global tensor."""
    return tensor.to_global(flow.placement("cpu", ranks=[0]), sbp=flow.sbp.broadcast)


@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_global_tensors(name):
    theirs, ours = twins(name, 5, 7, 2)
    x, lengths = flow.tensor(randn(6, 4, 5)), flow.tensor([6, 0, 3, 5])
    want, _ = ours(x, lengths=lengths)
    plain, _ = theirs(x)
    ours.to_global(flow.placement("cpu", ranks=[0]), sbp=flow.sbp.broadcast)
    (got, _), took = counted(lambda: ours(everywhere(x)))
    assert took == {"oneflow": 2}
    assert_close(got.numpy(), plain.numpy())
    (got, _), took = counted(lambda: ours(everywhere(x), lengths=everywhere(lengths)))
    assert took == {"scan": 2}
    assert_close(got.numpy(), want.numpy())


@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_packed_on_oneflows_layer(name):
    theirs, ours = twins(name, 5, 7)
    theirs, ours = everywhere(theirs), everywhere(ours)
    x = everywhere(flow.tensor(randn(3, 2, 5)))
    data = x.reshape(6, 5)[:5]
    packed = flow.nn.utils.rnn.PackedSequence(data, flow.tensor([2, 2, 1]))
    want, _ = theirs(packed)
    got, took = counted(lambda: ours(packed)[0])
    assert took == {"oneflow": 1}
    assert_close(got.data.numpy(), want.data.numpy())


def test_lengths_that_lie_outside_where_nobody_sees_them():
    """In a graph they count as 0 or L; outside of one they are refused."""
    gru = elman.oneflow.GRU(3, 4, bidirectional=True)
    x, graph = flow.tensor(randn(6, 4, 3)), Graph(gru)
    given, meant = flow.tensor([9, -2, 2, 6]), flow.tensor([6, 0, 2, 6])
    found = graph(x, given).numpy()
    np.testing.assert_array_equal(found, graph(x, meant).numpy())
    assert_close(found, gru(x, lengths=meant)[0].numpy())
    with pytest.raises(RuntimeError, match="GRU: lengths"):
        gru(x, lengths=given)


def test_require():
    gru = elman.oneflow.GRU(3, 4)
    with require("scan"), pytest.raises(RuntimeError, match="'scan' is required"):
        gru(flow.ones(5, 2, 3))
    with require("kernel"), pytest.raises(RuntimeError, match="'kernel' is required"):
        Graph(gru)(flow.ones(5, 2, 3))
    with pytest.raises(ValueError, match="expected one of 'kernel', 'oneflow', 'scan'"):
        require("fast").__enter__()
    _, took = counted(lambda: elman.oneflow.GRUCell(3, 4)(flow.ones(2, 3)))
    assert took == {"kernel": 1}


# --- The class -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"])
def test_is_oneflows(name):
    theirs, ours = twins(name, 5, 7, bias=False)
    assert isinstance(ours, type(theirs))
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    bound = 1 / np.sqrt(7)
    weights = np.concatenate([p.numpy().ravel() for p in ours.parameters()])
    assert bound * 0.9 < np.abs(weights).max() <= bound


def test_saves_and_loads(tmp_path):
    _, ours = twins("GRU", 5, 7, 2)
    flow.save(ours.state_dict(), tmp_path / "gru")
    again = elman.oneflow.GRU(5, 7, 2)
    again.load_state_dict(flow.load(tmp_path / "gru"))
    x = randn(6, 4, 5)
    assert_all_same_bits(run(again, x), run(ours, x))
    assert_all_same_bits(run(copy.deepcopy(ours), x), run(ours, x))


def test_nonlinearity_by_name_only():
    """OneFlow's own oddity: the fourth positional argument is bias."""
    assert elman.oneflow.RNN(3, 4, 1, "relu").nonlinearity == "tanh"
    assert nn.RNN(3, 4, 1, "relu").nonlinearity == "tanh"


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"dropout": 2},
        {"dropout": True},
        {"proj_size": 1},
        {"proj_size": 4},
        {"nonlinearity": "sine"},
        {"sizes": 1},
    ],
)
def test_constructors_errors(name, arguments):
    same_error(lambda package: getattr(package, name)(3, 4, **arguments))


@pytest.mark.parametrize("name", ["RNN", "GRU"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    "shapes",
    [
        [(3,)],
        [(1, 5, 2, 3)],
        [(5, 2, 4)],
        [(0, 2, 3)],
        [(2, 0, 3)],
        [(5, 2, 3), (1, 3, 4)],
        [(5, 2, 3), (2, 2, 4)],
        [(5, 2, 3), (1, 2, 5)],
        [(5, 2, 3), (2, 4)],
        [(5, 3), (1, 1, 4)],
        [(5, 3), (1, 5)],
    ],
)
def test_errors(name, batch_first, shapes):
    def call(package):
        layer = getattr(package, name)(3, 4, batch_first=batch_first)
        return layer(*map(flow.ones, shapes))[0].numpy()

    same_error(call)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.parametrize(
    "shapes",
    [
        [(3,)],
        [(0, 2, 3)],
        [(5, 2, 3), (1, 2, 4)],
        [(5, 2, 3), (1, 2, 2)],
        [(5, 2, 3), (1, 2, 4), (1, 2, 4)],
        [(5, 2, 3), (1, 2, 2), (1, 2, 2)],
        [(5, 2, 3), (1, 5, 2), (1, 2, 4)],
        [(5, 2, 3), (1, 2, 4), (1, 2, 2)],
        [(5, 2, 3), (1, 2, 2), (2, 4)],
        [(5, 2, 3), (2, 4), (2, 4)],
        [(5, 2, 3), (1, 2, 4), (1, 2, 4), (1, 2, 4)],
        [(5, 3), (1, 4), (1, 4)],
        [(5, 3), (1, 2), (1, 5)],
        [(5, 3), (1, 1, 4), (1, 1, 4)],
    ],
)
def test_errors_of_pairs(batch_first, proj_size, shapes):
    def call(package):
        layer = package.LSTM(3, 4, batch_first=batch_first, proj_size=proj_size)
        x, *states = map(flow.ones, shapes)
        return layer(x, tuple(states) or None)[0].numpy()

    same_error(call)


@pytest.mark.parametrize(
    "shapes",
    [[(2, 4)], [(2, 4), (2, 5)], [(3, 4), (2, 4)], [(2, 4), (2, 4), (2, 4)], [(4,), (2, 4)]],
)
def test_errors_of_a_cells_pair(shapes):
    states = tuple(map(flow.ones, shapes))
    same_error(lambda package: package.LSTMCell(3, 4)(flow.ones(2, 3), states)[1].numpy())


def test_a_tensor_in_place_of_a_pair():
    x, both = flow.ones(5, 2, 3), flow.ones(2, 1, 2, 4)
    same_error(lambda package: package.LSTM(3, 4)(x, both)[0].numpy())
    same_error(lambda package: package.LSTM(3, 4)(x, both[0])[0].numpy())


@pytest.mark.parametrize("name", ["RNNCell", "GRUCell"])
@pytest.mark.parametrize(
    "shapes",
    [
        [(2, 2, 3), (2, 4)],
        [(2, 4), (2, 4)],
        [(2, 3), (3, 4)],
        [(2, 3), (2, 5)],
        [(3,), (5,)],
    ],
)
def test_cells_errors(name, shapes):
    same_error(lambda package: getattr(package, name)(3, 4)(*map(flow.ones, shapes)).numpy())


def test_lengths_out_of_range_on_the_scan_path_too():
    ours = elman.oneflow.GRU(3, 4).half()
    with require("scan"), pytest.raises(RuntimeError, match=r"^GRU: lengths.*L = 5, got 6"):
        ours(flow.zeros(5, 2, 3).half(), lengths=[6, 1])


def test_projection_is_refused():
    """But by LSTM. The others' constructors take it in its place, they then do not run."""
    same_error(lambda package: package.GRU(3, 4, 1, True, False, 0.0, False, 2)(flow.ones(5, 2, 3)))
    x, hx = flow.ones(5, 2, 3), flow.ones(1, 2, 2)
    same_error(lambda package: package.GRU(3, 4, 1, True, False, 0.0, False, 2)(x, hx))


def test_dtypes_errors():
    same_error(lambda package: package.GRU(3, 4)(flow.ones(5, 2, 3).double())[0].numpy())
    same_error(lambda package: package.GRU(3, 4)(flow.ones(5, 2, 3), flow.ones(1, 2, 4).double()))
    same_error(lambda package: package.GRUCell(3, 4)(flow.ones(2, 3).double(), flow.ones(2, 4)))
    same_error(lambda package: package.GRU(3, 4).half()(flow.ones(5, 2, 3).half())[0].numpy())
    same_error(lambda package: package.GRU(3, 4)(np.ones((5, 2, 3), "float32")))
    same_error(lambda package: package.GRU(3, 4, 0)(flow.ones(5, 2, 3)))


def test_unknown_nonlinearity_of_a_cell():
    cell = elman.oneflow.RNNCell(3, 4, nonlinearity="sine")
    with pytest.raises(RuntimeError, match="Unknown nonlinearity: sine"):
        cell(flow.ones(2, 3))


def same_error(call):
    """Elman's package does as OneFlow does: the same first line of the same error, or none."""
    results = []
    for package in (elman.oneflow, nn):
        try:
            results.append(call(package).shape)
        except Exception as e:
            message = str(e).splitlines()[0].replace("'elman.oneflow.", "'oneflow.nn.")
            results.append((type(e), "".join(c for c in message if not c.isdigit())))
    assert results[0] == results[1]


# --- accelerate ----------------------------------------------------------------------------------


class Model(nn.Module):
    """Layers and cells at several depths, beside what is to be left alone."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.GRU(4, 5, 2, bidirectional=True)
        self.stack = nn.ModuleList([nn.RNN(10, 6), nn.LSTM(6, 6)])
        self.inner = nn.ModuleDict({"deep": nn.GRUCell(6, 7)})
        self.cell = nn.RNNCell(7, 2)
        self.memory = nn.LSTMCell(2, 2)
        self.mine = MyGRU(2, 2)

    def forward(self, x, h):
        x, _ = self.encoder(x, h)
        x, _ = self.stack[0](x)
        x, _ = self.stack[1](x)
        x = self.inner["deep"](x[-1], flow.zeros(x.shape[1], 7))
        zeros = flow.zeros(x.shape[0], 2)
        h, c = self.memory(self.cell(x, zeros), (zeros, zeros))
        return self.mine((h + c).unsqueeze(0))


class MyGRU(nn.GRU):
    pass


NAMES = ["encoder", "stack.0", "stack.1", "inner.deep", "cell", "memory"]


def classes(model):
    return {name: type(module) for name, module in model.named_modules()}


def test_accelerate():
    model = Model()
    x, h, before = randn(6, 3, 4), randn(4, 3, 5), classes(model)
    parameters = [id(p) for p in model.parameters()]
    want = run(model, x, h)
    names = accelerate(model)
    assert names == NAMES
    assert names.left == {"mine": "MyGRU is a class of its own"}
    assert accelerate(model) == []
    assert [id(p) for p in model.parameters()] == parameters
    assert type(model.encoder) is elman.oneflow.GRU
    assert type(model.mine) is MyGRU
    got, took = counted(lambda: run(model, x, h))
    assert took == {"kernel": 7}
    assert_all_close(got, want)
    assert accelerate(model, undo=True) == NAMES
    assert accelerate(model, undo=True) == []
    assert classes(model) == before
    assert_all_close(run(model, x, h), want)


def test_accelerate_the_model_itself():
    model = nn.GRU(3, 4)
    assert accelerate(model) == [""]
    assert model(flow.ones(5, 2, 3), lengths=[5, 1])[0].shape == (5, 2, 4)


def test_undo_leaves_elmans_own():
    model = nn.Sequential(elman.oneflow.GRU(3, 4), nn.GRU(4, 4))
    assert accelerate(model) == ["1"]
    assert accelerate(model, undo=True) == ["1"]
    assert type(model[0]) is elman.oneflow.GRU


# --- The GRU that OneFlow has not ----------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
@pytest.mark.parametrize("lengths", [None, [6, 4, 4, 1]])
def test_reset_before(options, lengths):
    """Whatever way it goes, it is the NumPy package's; OneFlow's own never is asked."""
    ours = elman.oneflow.GRU(5, 7, reset_after=False, **options)
    twin = elman.GRU(5, 7, reset_after=False, **options)
    twin.load_state_dict({k: p.numpy() for k, p in ours.named_parameters()})
    x, h = randn(6, 4, 5), state_of(ours, 4)
    want, want_h = twin(x, h, lengths=lengths)
    given = {} if lengths is None else {"lengths": flow.tensor(lengths)}
    with require("kernel"):
        output, h_n = ours(flow.tensor(x), flow.tensor(h), **given)
    assert_same_bits(output.numpy(), want)
    assert_same_bits(h_n.numpy(), want_h)
    with pytest.MonkeyPatch.context() as patch, require("scan"):
        patch.setattr(elman.oneflow.layers, "is_served", lambda *_: False)
        output, h_n = ours(flow.tensor(x), flow.tensor(h), **given)
        assert_close(output.numpy(), want)
        assert_close(h_n.numpy(), want_h)
        if lengths is not None:
            packed = pack_padded_sequence(flow.tensor(x), lengths)
            output, h_n = ours(packed, flow.tensor(h))
            assert_close(pad_packed_sequence(output)[0].numpy(), want)
            assert_close(h_n.numpy(), want_h)
    with require("scan"):
        assert_close(Graph(ours)(flow.tensor(x)).numpy(), twin(x)[0])


@pytest.mark.parametrize("rows", [(), (4,)])
def test_a_cell_that_resets_before(rows):
    ours = elman.oneflow.GRUCell(5, 7, reset_after=False)
    twin = elman.GRUCell(5, 7, reset_after=False)
    twin.load_state_dict({k: p.numpy() for k, p in ours.named_parameters()})
    x, h = randn(*rows, 5), randn(*rows, 7, seed=1)
    for given in ((x,), (x, h)):
        tensors = [flow.tensor(a) for a in given]
        with require("kernel"):
            assert_same_bits(ours(*tensors).numpy(), twin(*given))
        with pytest.MonkeyPatch.context() as patch, require("scan"):
            patch.setattr(elman.oneflow.layers, "is_served", lambda *_: False)
            assert_close(ours(*tensors).numpy(), twin(*given))


def test_reset_before_is_kept():
    """In repr; accelerate neither makes it nor takes it for OneFlow's; only bools are taken."""
    model = nn.Sequential(elman.oneflow.GRU(3, 4, reset_after=False), nn.GRU(4, 4))
    assert "reset_after=False" in repr(model[0])
    assert "reset_after=False" in repr(elman.oneflow.GRUCell(3, 4, reset_after=False))
    assert accelerate(model) == ["1"]
    assert model[1].reset_after
    assert accelerate(model, undo=True) == ["1"]
    assert not model[0].reset_after
    for kind in (elman.oneflow.GRU, elman.oneflow.GRUCell):
        with pytest.raises(TypeError, match=f"^{kind.__name__}: reset_after must be a bool, got 0"):
            kind(3, 4, reset_after=0)
