"""recompute=True: backward computes the gates from the states once more, to the same bits."""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from doors import CELLS, DOORS, build, cases, fit_mlx, make, numpy_layer, run_numpy, threads
from hypothesis import given
from reference import assert_all_same_bits, parts, whole

import elman
from elman import engine
from elman.spec import CELLS as SPECS
from elman.spec import Weights

every_cell = pytest.mark.parametrize("cell", CELLS)
needs_torch = pytest.mark.skipif(not find_spec("torch"), reason="PyTorch is not installed")
if find_spec("torch"):
    import torch
    from torch.func import functional_call
    from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

    import elman.torch
    from elman.torch import require


# NumPy


def recomputed(case):
    layer = numpy_layer(case)
    layer.recompute = True
    return run_numpy(case, layer)


@given(case=cases())
def test_the_same_bits(case):
    assert_all_same_bits(recomputed(case), run_numpy(case))


# (L, N), (D, H): beyond one chunk of 512 rows, in steps that do not divide it, or that exceed it.
SIZES = {
    "chunks of many steps": ((150, 9), (5, 17)),
    "chunks of one step": ((3, 300), (8, 20)),
    "a step beyond a chunk": ((3, 700), (3, 9)),
    "long": ((1500, 1), (4, 33)),
    "wide": ((60, 20), (65, 129)),
}


@every_cell
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n", [1, 3])
def test_beyond_a_chunk(n, size, cell):
    """With lengths and resets, and without; on as many threads as the arithmetic is worth."""
    (steps, batch), (D, H) = SIZES[size]
    for extents in (False, True):
        for P in (0, H // 2) if cell == "lstm" else (0,):
            options = {"extents": extents, "bidirectional": True, "proj_size": P}
            case = make(cell, D, H, steps, batch, "float32", **options)
            with threads(n):
                assert_all_same_bits(recomputed(case), run_numpy(case))


@every_cell
@pytest.mark.parametrize(("steps", "batch"), [(0, 3), (3, 0), (0, 0)])
def test_nothing_to_compute(cell, steps, batch):
    case = make(cell, 3, 5, steps, batch, "float32", extents=False, num_layers=2)
    assert_all_same_bits(recomputed(case), run_numpy(case))
    if batch:
        case = replace(make(cell, 3, 5, 4, batch, "float32"), lengths=np.zeros(batch, int))
        assert_all_same_bits(recomputed(case), run_numpy(case))


@every_cell
def test_what_is_kept(cell, monkeypatch):
    """The states of each row and layer; without it, four values a unit more, but for an RNN."""
    kept = []
    forward = engine.forward

    def note(*arguments):
        results = forward(*arguments)
        kept.append(results[2])
        return results

    monkeypatch.setattr(engine, "forward", note)
    x = np.ones((7, 2, 3), "float32")
    for recompute in (True, False):
        layer = build(elman, cell, 3, 5, 2, bidirectional=True, recompute=recompute)
        layer.vjp(x, lengths=[7, 7])  # layer by layer
        assert len(kept) == 2
        for keep in kept:
            # Of the 2 rows before the first step, and after each.
            assert keep.states.shape == (2, 2 + 7 * 2, 5 * len(layer.spec.cell.states))
            if recompute or cell.startswith("rnn"):
                assert keep.gates is None
            else:
                assert keep.gates.shape == (2, 7 * 2, 4 * 5)
        kept.clear()


# PyTorch


def twins(cell, *sizes, dtype=None, **options):
    """A layer without, and one with recompute, of the same weights."""
    layer, other = (
        build(elman.torch, cell, *sizes, dtype=dtype, recompute=recompute, **options)
        for recompute in (False, True)
    )
    other.load_state_dict(layer.state_dict())
    return layer, other


def random_state(cell, *shape, dtype=None):
    """For layers without a projection."""
    return whole([torch.randn(shape, dtype=dtype) for _ in SPECS[cell].states])


def gradients(layer, call, x, state):
    """Of random cotangents, the same each time, after results: x, states and all weights."""
    x, *state = (t.detach().requires_grad_() for t in (x, *parts(state)))
    output, final = call(x, whole(state))
    results = (output.data if isinstance(output, PackedSequence) else output, *parts(final))
    random = torch.Generator().manual_seed(1)
    d = [torch.randn(t.shape, generator=random).to(t.dtype) for t in results]
    inputs = (x, *state, *layer.parameters())
    return [*results, *torch.autograd.grad(results, inputs, d)]


EXTENTS = {
    "plain": {},
    "lengths": {"lengths": [40, 0, 7, 40, 33]},
    "lengths and reset": {"lengths": [40, 0, 7, 40, 33], "reset": True},
    "packed": {"packed": True},
}


def calls(layers, extent):
    """The layers as functions of x (40, 5, D) and the state."""
    given = dict(EXTENTS[extent])
    if "reset" in given:
        given["reset"] = torch.rand(40, 5, generator=torch.Generator().manual_seed(2)) < 0.2
    if given.pop("packed", False):
        lengths = torch.tensor([40, 1, 7, 40, 33])
        return [
            lambda x, state, layer=layer: layer(
                pack_padded_sequence(x, lengths, enforce_sorted=False), state
            )
            for layer in layers
        ]
    return [lambda x, state, layer=layer: layer(x, state, **given) for layer in layers]


def assert_equal(results):
    got, want = results
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@needs_torch
@every_cell
@pytest.mark.parametrize("extent", EXTENTS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_torch(dtype, extent, cell):
    dtype = getattr(torch, dtype)
    layers = twins(cell, 3, 17, 2, bidirectional=True, dtype=dtype)
    x, state = torch.randn(40, 5, 3).to(dtype), random_state(cell, 4, 5, 17, dtype=dtype)
    with require("kernel"):
        pairs = zip(layers, calls(layers, extent), strict=True)
        assert_equal([gradients(layer, call, x, state) for layer, call in pairs])


@needs_torch
@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("extent", ["plain", "lengths and reset"])
def test_torch_compiled(extent, cell):
    torch.compiler.reset()
    layers = twins(cell, 3, 5, bidirectional=True)
    x, state = torch.randn(40, 5, 3), random_state(cell, 2, 5, 5)
    plain, ours = calls(layers, extent)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    with require("kernel"):
        results = [gradients(layers[1], compiled, x, state), gradients(layers[0], plain, x, state)]
    assert_equal(results)


@needs_torch
@every_cell
def test_torch_operators_check(cell):
    """Schemas, fake tensors and autograd of the operator that keeps no gates."""
    layer = twins(cell, 3, 4)[1]
    x, state = torch.randn(3, 2, 3), torch.cat(parts(random_state(cell, 1, 2, 4)), -1)
    inputs = [t.detach().requires_grad_() for t in (x, state, *layer.parameters())]
    # A projection, the other direction, lengths, reset and batch_sizes are not there.
    arguments = (cell, *inputs, *[None] * (1 + len(Weights._fields) + 3), True, True)
    torch.library.opcheck(torch.ops.elman.layer, arguments)


@needs_torch
@every_cell
def test_torch_double_backward(cell):
    layer = twins(cell, 2, 2, dtype=torch.float64)[1]
    x, *state = (
        t.double().requires_grad_()
        for t in (torch.randn(3, 2, 2), *parts(random_state(cell, 1, 2, 2)))
    )

    def run(x, *state):
        output, final = layer(x, whole(state))
        return output, *parts(final)

    assert torch.autograd.gradcheck(run, (x, *state))
    assert torch.autograd.gradgradcheck(run, (x, *state), fast_mode=True)


@needs_torch
@every_cell
def test_torch_func(cell):
    """grad, and vmap over it: of rows that share weights, and of members with their own."""
    layers = twins(cell, 3, 5)
    x, weights = torch.randn(4, 6, 2, 3), dict(layers[0].named_parameters())
    many = {name: torch.stack([w, w + 0.1, w - 0.1, w]) for name, w in weights.items()}
    results = []
    for layer in layers:

        def loss(weights, x, layer=layer):
            output, final = functional_call(layer, weights, (x,))
            return output.square().sum() + sum(t.sum() for t in parts(final))

        gradient = torch.func.grad(loss, argnums=(0, 1))
        with require("kernel"):
            one = gradient(weights, x[0])
            rows = torch.func.vmap(gradient, (None, 0))(weights, x)
            members = torch.func.vmap(gradient)(many, x)
        results.append([t for d_w, d_x in (one, rows, members) for t in (*d_w.values(), d_x)])
    assert_equal(results)


@needs_torch
@every_cell
def test_torch_func_keeps_no_gates(cell, monkeypatch):
    kept = []
    forward = engine.forward

    def note(*arguments, **options):
        results = forward(*arguments, **options)
        kept.append(results[2].gates)
        return results

    monkeypatch.setattr(engine, "forward", note)
    x = torch.randn(4, 6, 2, 3)
    for layer in twins(cell, 3, 5):
        many = {n: torch.stack([w, w, w, w]) for n, w in layer.named_parameters()}

        def square(weights, x, layer=layer):
            return functional_call(layer, weights, (x,))[0].square().sum()

        torch.func.vmap(torch.func.grad(square))(many, x)
        absent = layer.recompute or not SPECS[cell].kept
        assert [gates is None for gates in kept] == [absent] * 4
        kept.clear()


@needs_torch
@every_cell
@pytest.mark.parametrize("compiled", [False, True])
def test_what_torch_saves(compiled, cell):
    """Beside x and the weights the states of each row; without it, four values a unit more."""
    sizes = []
    for layer in twins(cell, 3, 5):
        saved = {}

        def note(t, saved=saved):
            saved[t.data_ptr()] = t.numel()
            return t

        x = torch.randn(40, 6, 3, requires_grad=True)
        run = layer
        if compiled:
            torch.compiler.reset()
            run = torch.compile(layer, backend="aot_eager", fullgraph=True)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            run(x, whole([torch.zeros(1, 6, 5) for _ in SPECS[cell].states]))
        inputs = {t.data_ptr() for t in (x, *layer.parameters())}
        sizes.append(sum(n for at, n in saved.items() if at not in inputs))
    states = len(SPECS[cell].states)
    first = states * 6 * 5  # which may be saved beside its copy among the states
    assert sizes[1] <= states * 40 * 6 * 5 + 2 * first
    assert sizes[0] <= sizes[1] + SPECS[cell].kept * 40 * 6 * 5
    assert sizes[1] < sizes[0] or not SPECS[cell].kept


@needs_torch
def test_it_is_a_keyword_and_no_state():
    with pytest.raises(TypeError):
        elman.torch.GRU(3, 5, 1, True, False, 0.0, False, None, None, True)
    layer = elman.torch.GRU(3, 5, recompute=True)
    assert list(layer.state_dict()) == list(torch.nn.GRU(3, 5).state_dict())
    assert repr(layer) == "GRU(3, 5)"
    assert elman.torch.GRU(3, 5).recompute is False


def test_it_is_a_keyword():
    with pytest.raises(TypeError):
        elman.GRU(3, 5, 1, True, False, 0.0, False, True)
    assert elman.RNN(3, 5, recompute=True).recompute is True
    assert elman.RNN(3, 5).recompute is False


# MLX


@pytest.mark.skipif("mlx" not in DOORS, reason="MLX is not installed")
@given(case=cases())
def test_mlx(case):
    from doors import run_mlx

    case = fit_mlx(case)
    assert_all_same_bits(run_mlx(case, recompute=True), run_mlx(case))
