"""Half precision, checkpointing, deterministic mode, and weights that are views or frozen."""

import pytest
import torch
from test_torch_layers import agree, every_kind, gradients, inputs, leaf, run, same_bits, twins
from test_torch_paths import cells
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import elman.torch

HALVES = [torch.bfloat16, torch.float16]
every_half = pytest.mark.parametrize("half", HALVES, ids=["bfloat16", "float16"])

# --- Half precision ------------------------------------------------------------------------------


def as_good(actual, theirs, truth, half):
    """No further from the truth than twice what torch is, but for a few roundings."""
    assert actual.keys() == theirs.keys() == truth.keys()
    for name, t in truth.items():
        a, own = actual[name].detach().double(), theirs[name].detach().double()
        t = t.detach().double()
        size = t.abs().max()
        assert (a - t).abs().max() <= 2 * (own - t).abs().max() + 4 * torch.finfo(half).eps * size


@every_kind
@every_half
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_half_modules(kind, half, options):
    theirs, ours = twins(kind, 8, 16, dtype=half, **options)
    x, hx = inputs(ours, 6, 3, half)
    actual, expected = run(ours, x, hx), run(theirs, x, hx)
    assert {k: t.dtype for k, t in actual.items()} == dict.fromkeys(actual, half)
    truth = run(theirs.double(), x.double(), hx.double())
    as_good(actual, expected, truth, half)


@every_kind
@every_half
def test_half_modules_with_lengths(kind, half):
    """torch's by packing."""
    lengths = [6, 4, 1]
    theirs, ours = twins(kind, 8, 16, 2, dtype=half, bidirectional=True)
    x, hx = inputs(ours, 6, 3, half)

    def padded(module, x, hx):
        x = leaf(x)
        packed, h_n = module(pack_padded_sequence(x, lengths), hx)
        output, _ = pad_packed_sequence(packed)
        loss = output.square().sum() + h_n.sum()
        return {"output": output, "h_n": h_n, **gradients(module, x, None, loss)}

    given = leaf(x)
    output, h_n = ours(given, hx, lengths=lengths)
    actual = {"output": output, "h_n": h_n}
    actual |= gradients(ours, given, None, output.square().sum() + h_n.sum())
    expected = padded(theirs, x, hx)
    truth = padded(theirs.double(), x.double(), hx.double())
    for results in (actual, expected, truth):
        results.pop("d_hx")
    as_good(actual, expected, truth, half)


@every_kind
@every_half
def test_half_cells(kind, half):
    theirs, ours = cells(kind, 8, 16, dtype=half)
    x, h = torch.randn(3, 8, dtype=half), torch.randn(3, 16, dtype=half)

    def results_of(cell, x, h):
        x, h = leaf(x), leaf(h)
        after = cell(x, h)
        return {"h": after, **gradients(cell, x, h, after.square().sum())}

    actual, expected = results_of(ours, x, h), results_of(theirs, x, h)
    assert actual["h"].dtype == half
    as_good(actual, expected, results_of(theirs.double(), x.double(), h.double()), half)


@every_kind
@every_half
def test_autocast(kind, half):
    """A model trained under autocast: results, and gradients in the weights' own dtype."""
    theirs, ours = twins(kind, 8, 16, 2, bidirectional=True)
    x, hx = inputs(ours, 6, 3)
    head = nn.Linear(32, 2)

    def results_of(layer, enabled):
        given = leaf(x)
        with torch.autocast("cpu", half, enabled=enabled):
            output, h_n = layer(given, hx)
            scores = head(output)
        loss = scores.float().square().mean() + h_n.float().mean()
        found = {"output": output, "h_n": h_n, **gradients(layer, given, None, loss)}
        found.pop("d_hx")
        return {k: t.clone() for k, t in found.items()}

    actual, expected = results_of(ours, True), results_of(theirs, True)
    assert {k: t.dtype for k, t in actual.items()} == {k: t.dtype for k, t in expected.items()}
    as_good(actual, expected, results_of(theirs, False), half)
    with torch.autocast("cpu", half), torch.autocast("cpu", enabled=False):
        agree({"y": ours(x, hx)[0]}, {"y": theirs(x, hx)[0]})


@every_kind
@every_half
def test_autocast_of_cells_and_with_lengths(kind, half):
    their_cell, our_cell = cells(kind, 8, 16)
    theirs, ours = twins(kind, 8, 16)
    x, hx = inputs(ours, 6, 3)
    results = []
    for enabled in (True, False):
        with torch.autocast("cpu", half, enabled=enabled):
            packed, last = theirs(pack_padded_sequence(x, [6, 4, 1]), hx)
            output, h_n = ours(x, hx, lengths=[6, 4, 1])
        results.append({"output": pad_packed_sequence(packed)[0], "h_n": last})
    as_good({"output": output, "h_n": h_n}, *results, half)
    with torch.autocast("cpu", half):
        actual, expected = our_cell(x[0]), their_cell(x[0])
    assert actual.dtype == expected.dtype
    as_good({"h": actual}, {"h": expected}, {"h": their_cell(x[0])}, half)


# --- Weights -------------------------------------------------------------------------------------


@every_kind
def test_weights_that_are_views(kind):
    """Every weight a slice of one vector, as flattened parameters are; gradients reach it."""
    theirs, ours = twins(kind, 3, 4, 2, bidirectional=True)
    shapes = {name: p.shape for name, p in ours.named_parameters()}
    flat = nn.utils.parameters_to_vector(ours.parameters()).detach()
    x, hx = inputs(ours, 5, 2)
    results = []
    for layer in (ours, theirs):
        vector = leaf(flat)
        slices = vector.split([shape.numel() for shape in shapes.values()])
        weights = {n: s.view(shape) for s, (n, shape) in zip(slices, shapes.items(), strict=True)}
        output, h_n = torch.func.functional_call(layer, weights, (x, hx))
        (output.square().sum() + h_n.sum()).backward()
        results.append({"output": output, "d_vector": vector.grad})
    agree(*results)


@every_kind
@pytest.mark.parametrize("strides", ["transposed", "every other", "expanded"])
def test_weights_that_do_not_lie_together(kind, strides):
    theirs, ours = twins(kind, 4, 4)
    rows = theirs.weight_hh_l0.shape[0]
    storage = {
        "transposed": lambda: torch.randn(4, rows).T,
        "every other": lambda: torch.randn(rows, 8)[:, ::2],
        "expanded": lambda: torch.randn(1, 4).expand(rows, 4),
    }[strides]()
    for layer in (ours, theirs):
        layer.weight_hh_l0 = nn.Parameter(storage)
    x, hx = inputs(ours, 5, 2)
    agree(run(ours, x, hx), run(theirs, x, hx))


# --- Memory and determinism ----------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("given", [{}, {"lengths": [5, 2]}])
def test_checkpoint(kind, use_reentrant, given):
    """What is computed again is what was computed, masks of dropout included."""
    _, ours = twins(kind, 3, 4, 2, dropout=0.5)
    x, _ = inputs(ours, 5, 2)

    def layer(x):
        return ours(x, **given)

    def checkpointed(x):
        return checkpoint(layer, x, use_reentrant=use_reentrant)

    results = []
    for call in (checkpointed, layer):
        torch.manual_seed(3)
        leaf_x = leaf(x)
        output, h_n = call(leaf_x)
        results.append(gradients(ours, leaf_x, None, output.square().sum() + h_n.sum()))
        results[-1] = {k: None if t is None else t.clone() for k, t in results[-1].items()}
    same_bits(*results)


@pytest.fixture
def _deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@every_kind
@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("path", ["kernel", "scan"])
def test_deterministic_mode(kind, path, monkeypatch):
    """The same bits as without, twice; the loop, which has index operations, goes through too."""
    monkeypatch.setattr(elman.torch, "_needs_loop", lambda: path == "scan")
    _, ours = twins(kind, 3, 4, 2, bidirectional=True)
    x, hx = inputs(ours, 5, 3)
    reset = torch.rand(5, 3) < 0.3
    calls = [
        {},
        {"lengths": [5, 2, 0], "reset": reset},
        {"pack": lambda x: pack_padded_sequence(x, [5, 3, 3])},
    ]
    for call in calls:
        with elman.torch.require(path):
            first, again = run(ours, x, hx, **call), run(ours, x, hx, **call)
            torch.use_deterministic_algorithms(False)
            without = run(ours, x, hx, **call)
            torch.use_deterministic_algorithms(True)
        same_bits(first, again)
        same_bits(first, without)
