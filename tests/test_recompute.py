"""recompute=True: backward computes the gates from the states once more, to the same bits."""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from doors import CELLS, DOORS, cases, fit_mlx, make, numpy_layer, run_numpy, threads
from hypothesis import given
from reference import assert_all_same_bits

import elman
from elman import engine

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
        case = make(cell, D, H, steps, batch, "float32", extents=extents, bidirectional=True)
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


@pytest.mark.parametrize(("kind", "without"), [(elman.RNN, 2), (elman.GRU, 5)], ids=["RNN", "GRU"])
def test_what_is_kept(kind, without, monkeypatch):
    """H values a row and layer; without, `without` times as many at most."""
    kept = []
    forward = engine.forward

    def note(*arguments):
        results = forward(*arguments)
        kept.append(results[2])
        return results

    monkeypatch.setattr(engine, "forward", note)
    x = np.ones((7, 2, 3), "float32")
    for recompute, values in ((True, 1), (False, without)):
        layer = kind(3, 5, 2, bidirectional=True, recompute=recompute)
        layer.vjp(x)
        assert len(kept) == 2
        for keep in kept:
            assert keep.states.shape == (2, 7 * 2, 5)
            assert (keep.gates is None) == recompute
            size = sum(a.size for a in keep if a is not None)
            assert size <= values * 2 * 7 * 2 * 5
        kept.clear()


# PyTorch


def twins(cell, *sizes, dtype=None, **options):
    """A layer without, and one with recompute, of the same weights."""
    kind, options = elman.torch.GRU, {"dtype": dtype, **options}
    if cell != "gru":
        kind, options["nonlinearity"] = elman.torch.RNN, cell.removeprefix("rnn_")
    layer, other = kind(*sizes, **options), kind(*sizes, **options, recompute=True)
    other.load_state_dict(layer.state_dict())
    return layer, other


def gradients(layer, call, x, h_0):
    """Of random cotangents, the same each time, after results: x, h_0 and all weights."""
    x, h_0 = x.detach().requires_grad_(), h_0.detach().requires_grad_()
    output, h_n = call(x, h_0)
    output = output.data if isinstance(output, PackedSequence) else output
    random = torch.Generator().manual_seed(1)
    d = [torch.randn(t.shape, generator=random).to(t.dtype) for t in (output, h_n)]
    inputs = (x, h_0, *layer.parameters())
    return [output, h_n, *torch.autograd.grad((output, h_n), inputs, d)]


EXTENTS = {
    "plain": {},
    "lengths": {"lengths": [40, 0, 7, 40, 33]},
    "lengths and reset": {"lengths": [40, 0, 7, 40, 33], "reset": True},
    "packed": {"packed": True},
}


def calls(layers, extent):
    """The layers as functions of x (40, 5, D) and h_0."""
    given = dict(EXTENTS[extent])
    if "reset" in given:
        given["reset"] = torch.rand(40, 5, generator=torch.Generator().manual_seed(2)) < 0.2
    if given.pop("packed", False):
        lengths = torch.tensor([40, 1, 7, 40, 33])
        return [
            lambda x, h_0, layer=layer: layer(
                pack_padded_sequence(x, lengths, enforce_sorted=False), h_0
            )
            for layer in layers
        ]
    return [lambda x, h_0, layer=layer: layer(x, h_0, **given) for layer in layers]


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
    x, h_0 = torch.randn(40, 5, 3).to(dtype), torch.randn(4, 5, 17).to(dtype)
    with require("kernel"):
        pairs = zip(layers, calls(layers, extent), strict=True)
        assert_equal([gradients(layer, call, x, h_0) for layer, call in pairs])


@needs_torch
@pytest.mark.parametrize("extent", ["plain", "lengths and reset"])
def test_torch_compiled(extent):
    torch.compiler.reset()
    layers = twins("gru", 3, 5, bidirectional=True)
    x, h_0 = torch.randn(40, 5, 3), torch.randn(2, 5, 5)
    plain, ours = calls(layers, extent)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    with require("kernel"):
        results = [gradients(layers[1], compiled, x, h_0), gradients(layers[0], plain, x, h_0)]
    assert_equal(results)


@needs_torch
@every_cell
def test_torch_operators_check(cell):
    """Schemas, fake tensors and autograd of the operator that keeps no gates."""
    layer = twins(cell, 3, 4)[1]
    x, h_0 = torch.randn(3, 2, 3), torch.randn(1, 2, 4)
    inputs = [t.detach().requires_grad_() for t in (x, h_0, *layer.parameters())]
    arguments = (cell, *inputs, *[None] * 7, True, True)
    torch.library.opcheck(torch.ops.elman.layer, arguments)


@needs_torch
@every_cell
def test_torch_double_backward(cell):
    layer = twins(cell, 2, 2, dtype=torch.float64)[1]
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    h_0 = torch.randn(1, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x, h_0))
    assert torch.autograd.gradgradcheck(layer, (x, h_0), fast_mode=True)


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
            output, h_n = functional_call(layer, weights, (x,))
            return output.square().sum() + h_n.sum()

        gradient = torch.func.grad(loss, argnums=(0, 1))
        with require("kernel"):
            one = gradient(weights, x[0])
            rows = torch.func.vmap(gradient, (None, 0))(weights, x)
            members = torch.func.vmap(gradient)(many, x)
        results.append([t for d_w, d_x in (one, rows, members) for t in (*d_w.values(), d_x)])
    assert_equal(results)


@needs_torch
@pytest.mark.parametrize(("cell", "without"), [("rnn_relu", 2), ("gru", 5)])
@pytest.mark.parametrize("compiled", [False, True])
def test_what_torch_saves(compiled, cell, without):
    """Beside x, h_0 and the weights H values a row; without, `without` times as many at most."""
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
            run(x, torch.zeros(1, 6, 5))
        inputs = {t.data_ptr() for t in (x, *layer.parameters())}
        sizes.append(sum(n for at, n in saved.items() if at not in inputs))
    h_0 = 6 * 5
    assert sizes[1] <= 40 * 6 * 5 + h_0
    assert sizes[1] < sizes[0] <= without * 40 * 6 * 5 + h_0


@needs_torch
def test_it_is_a_keyword_and_no_state():
    with pytest.raises(TypeError):
        elman.torch.GRU(3, 5, 1, True, False, 0.0, False, None, None, True)
    layer = elman.torch.GRU(3, 5, recompute=True)
    assert list(layer.state_dict()) == list(torch.nn.GRU(3, 5).state_dict())
    assert repr(layer) == "GRU(3, 5)"
    stock = torch.nn.GRU(3, 5)
    elman.torch.accelerate(stock)
    assert stock.recompute is False


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
