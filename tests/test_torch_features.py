"""Half precision, checkpointing, deterministic mode, and weights that are views or frozen."""

import pytest
import torch
from reference import each, parts
from test_torch_layers import (
    agree,
    every_kind,
    gradients,
    inputs,
    joined,
    leaf,
    run,
    same_bits,
    sizes_of,
    twins,
)
from test_torch_paths import cells, every_cell, state_for
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import elman.torch
from elman.torch import modules

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
    assert {t.dtype for t in tree_leaves(actual)} == {half}
    truth = run(theirs.double(), x.double(), each(torch.Tensor.double, hx))
    for results in (actual, expected, truth):
        results["d_hx"] = joined(results["d_hx"])
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
        loss = output.square().sum() + joined(h_n).sum()
        return {"output": output, "h_n": joined(h_n), **gradients(module, x, None, loss)}

    given = leaf(x)
    output, h_n = ours(given, hx, lengths=lengths)
    actual = {"output": output, "h_n": joined(h_n)}
    actual |= gradients(ours, given, None, output.square().sum() + joined(h_n).sum())
    expected = padded(theirs, x, hx)
    truth = padded(theirs.double(), x.double(), each(torch.Tensor.double, hx))
    for results in (actual, expected, truth):
        results.pop("d_hx")
    as_good(actual, expected, truth, half)


@every_cell
@every_half
def test_half_cells(kind, half):
    theirs, ours = cells(kind, 8, 16, dtype=half)
    x, h = torch.randn(3, 8, dtype=half), state_for(kind, 3, 16, dtype=half)

    def results_of(cell, x, h):
        x, h = leaf(x), leaf(h)
        after = joined(cell(x, h))
        results = {"h": after, **gradients(cell, x, h, after.square().sum())}
        return results | {"d_hx": joined(results["d_hx"])}

    actual, expected = results_of(ours, x, h), results_of(theirs, x, h)
    assert actual["h"].dtype == half
    truth = results_of(theirs.double(), x.double(), each(torch.Tensor.double, h))
    as_good(actual, expected, truth, half)


@every_kind
@every_half
@pytest.mark.filterwarnings(
    "ignore:TF32 acceleration on top of oneDNN"
)  # of flags, whatever they set
def test_autocast(kind, half):
    """A model trained under autocast: results, and gradients in the weights' own dtype."""
    theirs, ours = twins(kind, 8, 16, 2, bidirectional=True)
    x, hx = inputs(ours, 6, 3)
    head = nn.Linear(2 * sizes_of(ours)[0], 2)

    def results_of(layer, enabled):
        given = leaf(x)
        onednn = torch.backends.mkldnn.flags(enabled=half not in modules._LACKING)
        with onednn, torch.autocast("cpu", half, enabled=enabled):
            output, h_n = layer(given, hx)
            scores = head(output)
        h_n = joined(h_n)
        loss = scores.float().square().mean() + h_n.float().mean()
        found = {"output": output, "h_n": h_n, **gradients(layer, given, None, loss)}
        found.pop("d_hx")
        return {k: t.clone() for k, t in found.items()}

    actual, expected = results_of(ours, True), results_of(theirs, True)
    assert {k: t.dtype for k, t in actual.items()} == {k: t.dtype for k, t in expected.items()}
    as_good(actual, expected, results_of(theirs, False), half)
    with torch.autocast("cpu", half), torch.autocast("cpu", enabled=False):
        agree({"y": ours(x, hx)[0]}, {"y": theirs(x, hx)[0]})


@every_half
def test_an_lstm_under_autocast_on_a_processor_without_the_type(half):
    """torch's own fails: red when a later torch does not, and then the loop may go."""
    if half not in modules._LACKING:
        pytest.skip("this processor has the type")
    theirs, ours = twins("lstm", 8, 16, 2)
    x, hx = inputs(ours, 6, 3)
    with torch.autocast("cpu", half):
        with pytest.raises(RuntimeError, match="could not create a primitive descriptor"):
            theirs(x, hx)
        with elman.torch.require("scan"):
            ours(x, hx)
        packed = pack_padded_sequence(x, [6, 4, 1])
        with elman.torch.require("torch"):
            (actual, *_), (expected, *_) = ours(packed, hx)[0], theirs(packed, hx)[0]
    assert torch.equal(actual, expected)


@every_kind
@every_half
def test_autocast_of_cells_and_with_lengths(kind, half):
    their_cell, our_cell = cells(kind.removesuffix("_proj"), 8, 16)
    theirs, ours = twins(kind, 8, 16)
    x, hx = inputs(ours, 6, 3)
    results = []
    for enabled in (True, False):
        with torch.autocast("cpu", half, enabled=enabled):
            packed, last = theirs(pack_padded_sequence(x, [6, 4, 1]), hx)
            output, h_n = ours(x, hx, lengths=[6, 4, 1])
        results.append({"output": pad_packed_sequence(packed)[0], "h_n": joined(last)})
    as_good({"output": output, "h_n": joined(h_n)}, *results, half)
    with torch.autocast("cpu", half):
        actual, expected = our_cell(x[0]), their_cell(x[0])
    assert [t.dtype for t in parts(actual)] == [t.dtype for t in parts(expected)]
    actual, expected, truth = map(joined, (actual, expected, their_cell(x[0])))
    as_good({"h": actual}, {"h": expected}, {"h": truth}, half)


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
        (output.square().sum() + joined(h_n).sum()).backward()
        results.append({"output": output, "d_vector": vector.grad})
    agree(*results)


@every_kind
@pytest.mark.parametrize("strides", ["transposed", "every other", "expanded"])
def test_weights_that_do_not_lie_together(kind, strides):
    theirs, ours = twins(kind, 4, 4)
    rows, size = theirs.weight_hh_l0.shape
    storage = {
        "transposed": lambda: torch.randn(size, rows).T,
        "every other": lambda: torch.randn(rows, 2 * size)[:, ::2],
        "expanded": lambda: torch.randn(1, size).expand(rows, size),
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
        output, h_n = ours(x, **given)
        return output, joined(h_n)  # a reentrant checkpoint sees no pairs in what it is given

    def checkpointed(x):
        return checkpoint(layer, x, use_reentrant=use_reentrant)

    results = []
    for call in (checkpointed, layer):
        torch.manual_seed(3)
        leaf_x = leaf(x)
        output, h_n = call(leaf_x)
        loss = output.square().sum() + h_n.sum()
        results.append(gradients(ours, leaf_x, None, loss))
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
    monkeypatch.setattr(modules, "needs_loop", lambda: path == "scan")
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
