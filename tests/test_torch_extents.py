"""``lengths`` and ``reset`` in the PyTorch package, against torch.nn on one episode at a time."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from reference import each, parts, whole
from test_torch_layers import (
    KINDS,
    agree,
    every_dtype,
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
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves

import elman.torch
from elman.torch import modules


def row_by_row(layer, x, hx, lengths=None, reset=None):
    """What the layer should give: torch's layer on every episode of every row alone.

    x (L, N, D), hx (K, N, H), or the pair of an LSTM.
    """
    directions = 2 if layer.bidirectional else 1
    # Everything takes part in the result, if only with a gradient of zero.
    nothing = 0 * sum(t.sum() for t in (x.nan_to_num(), *layer.parameters()))
    outputs, finals = [], []
    for n in range(x.shape[1]):
        end = x.shape[0] if lengths is None else int(lengths[n])
        starts = [] if reset is None else [t for t in range(end) if reset[t, n]]
        own = each(lambda t, n=n: t[:, n], hx)
        forward, reverse = (each(lambda t, d=d: t[d::directions], own) for d in (0, directions - 1))
        if 0 in starts:
            forward = each(torch.zeros_like, forward)
        cuts = sorted({0, *starts, end})
        episodes = list(pairwise(cuts))
        pieces = []
        for i, (a, b) in enumerate(episodes):
            begin = [forward if i == 0 else each(torch.zeros_like, forward)]
            if directions == 2:
                last = i == len(episodes) - 1
                begin.append(reverse if last else each(torch.zeros_like, reverse))
            output, h_n = layer(x[a:b, n], each(interleave, *begin))
            pieces.append(output)
            if i == len(episodes) - 1:
                last_forward = each(lambda t: t[0::directions], h_n)
            if i == 0:
                last_reverse = each(lambda t: t[directions - 1 :: directions], h_n)
        if not episodes:
            last_forward, last_reverse = each(lambda t: t[0::directions], own), reverse
        features = directions * sizes_of(layer)[0]
        pieces.append(x.new_zeros(x.shape[0] - end, features) + nothing)
        outputs.append(torch.cat(pieces))
        finals.append(each(interleave, last_forward, *[last_reverse][: directions - 1]))
    return torch.stack(outputs, 1), each(lambda *rows: torch.stack(rows, 1), *finals)


def interleave(*directions):
    """(layers, H) of each direction as (K, H)."""
    return torch.stack(directions, 1).flatten(0, 1)


class Reference(torch.nn.Module):
    """torch's layer, row by row, called as Elman's is."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def named_parameters(self, *args, **kwargs):
        return self.layer.named_parameters(*args, **kwargs)

    def forward(self, x, hx=None, lengths=None, reset=None):
        layer, single = self.layer, x.dim() == 2
        if single:
            x, hx = x[:, None], None if hx is None else each(lambda t: t[:, None], hx)
            lengths = None if lengths is None else torch.as_tensor(lengths).reshape(1)
            reset = None if reset is None else reset[:, None]
        elif layer.batch_first:
            x, reset = x.transpose(0, 1), None if reset is None else reset.transpose(0, 1)
        if hx is None:
            states = layer.num_layers * (2 if layer.bidirectional else 1)
            hx = whole([x.new_zeros(states, x.shape[1], size) for size in sizes_of(layer)])
        output, h_n = row_by_row(layer, x, hx, lengths, reset)
        if single:
            return output[:, 0], each(lambda t: t[:, 0], h_n)
        return output.transpose(0, 1) if layer.batch_first else output, h_n


def some_lengths(L, N):
    """Of every kind: none, one step, all of them, and in between, in no order."""
    return torch.tensor([L // 2, 0, L, 1, L - 1, L][:N])


def some_reset(L, N):
    """Of every kind: at the first and the last step, twice running, nowhere, everywhere."""
    reset = torch.zeros(L, N, dtype=torch.bool)
    for n, steps in enumerate([[1, 2], [0], [0, 3, L - 1], [0, 1], [], range(L)][:N]):
        reset[list(steps), n] = True
    return reset


EXTENTS = {
    "lengths": lambda L, N: {"lengths": some_lengths(L, N)},
    "reset": lambda L, N: {"reset": some_reset(L, N)},
    "both": lambda L, N: {"lengths": some_lengths(L, N), "reset": some_reset(L, N)},
}
every_extent = pytest.mark.parametrize("extent", EXTENTS.values(), ids=EXTENTS)


@every_kind
@every_dtype
@every_extent
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("with_hx", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_rows_alone(kind, dtype, extent, num_layers, bidirectional, with_hx, batch_first):
    options = {"bidirectional": bidirectional, "batch_first": batch_first}
    theirs, ours = twins(kind, 3, 5, num_layers, dtype=dtype, **options)
    L, N = 6, 6
    x, hx = inputs(ours, L, N, dtype, "batch" if batch_first else "time")
    given = extent(L, N)
    if batch_first and "reset" in given:
        given["reset"] = given["reset"].T
    hx = hx if with_hx else None
    expected = run(Reference(theirs), x, hx, **given)
    with elman.torch.require("kernel"):
        agree(run(ours, x, hx, **given), expected)


@every_kind
@pytest.mark.parametrize("length", [0, 1, 3, 5])
@pytest.mark.parametrize("with_reset", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched(kind, length, with_reset, batch_first):
    theirs, ours = twins(kind, 3, 5, 2, bidirectional=True, batch_first=batch_first)
    x, hx = inputs(ours, 5, 1, layout="single")
    given = {"lengths": torch.tensor(length)}
    if with_reset:
        given["reset"] = torch.tensor([False, True, False, True, False])
    agree(run(ours, x, hx, **given), run(Reference(theirs), x, hx, **given))
    as_int = run(ours, x, hx, **given | {"lengths": length})
    same_bits(as_int, run(ours, x, hx, **given))


@every_kind
def test_larger_than_any_block(kind):
    """Rows, steps and units enough for every block of the engine to be full and to be cut."""
    theirs, ours = twins(kind, 19, 67, bidirectional=True)
    L, N = 23, 37
    x, hx = inputs(ours, L, N)
    random = torch.Generator().manual_seed(5)
    lengths = torch.randint(0, L + 1, (N,), generator=random)
    reset = torch.rand(L, N, generator=random) < 0.15
    given = {"lengths": lengths, "reset": reset}
    agree(run(ours, x, hx, **given), run(Reference(theirs), x, hx, **given))


@every_kind
@every_extent
@pytest.mark.parametrize("path", ["kernel", "scan"])
def test_padding_is_never_read(kind, extent, path, monkeypatch):
    """NaN in the padding, of the input and of what comes back, changes no bit of anything."""
    monkeypatch.setattr(modules, "needs_loop", lambda: path == "scan")
    _, ours = twins(kind, 3, 5, 2, bidirectional=True)
    x, hx = inputs(ours, 6, 6)
    given = {"lengths": some_lengths(6, 6), **extent(6, 6)}
    clean = run(ours, x, hx, **given)
    padding = torch.arange(6)[:, None] >= given["lengths"]
    spoiled = run(ours, x.masked_fill(padding[..., None], torch.nan), hx, **given)
    same_bits(spoiled, clean)
    assert not clean["output"][padding].any()
    assert not clean["d_x"][padding].any()
    for name, h_0 in zip(("h_n", "c_n"), parts(hx), strict=False):
        assert torch.equal(clean[name][:, 1], h_0[:, 1])  # the row without a step
    leaves = leaf(x), leaf(hx)
    output, h_n = ours(*leaves, **given)
    cotangents = torch.full_like(output, torch.nan).masked_fill(~padding[..., None], 1.0)
    finals = parts(h_n)
    torch.autograd.backward([output, *finals], [cotangents, *map(torch.ones_like, finals)])
    for t in (*tree_leaves(leaves), *ours.parameters()):
        assert t.grad.isfinite().all()


@every_kind
@pytest.mark.parametrize("convert", [list, tuple, np.array, torch.Tensor.int, torch.Tensor.short])
def test_lengths_of_any_integers(kind, convert):
    _, ours = twins(kind, 3, 5, bidirectional=True)
    x, hx = inputs(ours, 6, 6)
    lengths = some_lengths(6, 6)
    given = convert(lengths.tolist() if convert in (list, tuple, np.array) else lengths)
    same_bits(run(ours, x, hx, lengths=given), run(ours, x, hx, lengths=lengths))


def test_reset_of_any_booleans():
    _, ours = twins("gru", 3, 5, bidirectional=True)
    x, hx = inputs(ours, 6, 6)
    reset = some_reset(6, 6)
    expected = run(ours, x, hx, reset=reset)
    for given in (
        reset.tolist(),
        reset.numpy(),
        reset.T.contiguous().T,
        reset.repeat(2, 2)[::2, ::2],
    ):
        if torch.equal(torch.as_tensor(given), reset):
            same_bits(run(ours, x, hx, reset=given), expected)


@every_kind
@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_and_packing_give_the_same_bits(kind, batch_first):
    _, ours = twins(kind, 3, 5, 2, bidirectional=True, batch_first=batch_first)
    lengths = [3, 6, 1, 6]
    x, hx = inputs(ours, 6, 4, layout="batch" if batch_first else "time")

    def packed(t):
        return pack_padded_sequence(t, lengths, batch_first, enforce_sorted=False)

    results = run(ours, x, hx, packed)
    output, h_n = ours(x, hx, lengths=lengths)
    assert torch.equal(packed(output).data, results["output"])
    for name, t in zip(("h_n", "c_n"), parts(h_n), strict=False):
        assert torch.equal(t, results[name])


@every_kind
def test_full_lengths_and_no_reset_change_no_bit(kind):
    _, ours = twins(kind, 3, 5, 2, bidirectional=True)
    x, hx = inputs(ours, 6, 4)
    plain = run(ours, x, hx)
    same_bits(run(ours, x, hx, lengths=[6] * 4), plain)
    same_bits(run(ours, x, hx, reset=torch.zeros(6, 4, dtype=torch.bool)), plain)


@every_kind
def test_rows_and_steps_alone_give_the_same_bits(kind):
    """A row alone, cut to its length, and step by step: the bits that it has in the batch."""
    _, ours = twins(kind, 11, 21, 2)
    x, hx = inputs(ours, 9, 5)
    lengths = [9, 4, 0, 1, 7]
    with torch.no_grad():
        output, h_n = ours(x, hx, lengths=lengths)
        for n, length in enumerate(lengths):
            first, last = (each(lambda t, n=n: t[:, n], state) for state in (hx, h_n))
            if length:
                alone, final = ours(x[:length, n], first)
                assert torch.equal(output[:length, n], alone)
                assert torch.equal(joined(last), joined(final))
            h = first
            for t in range(length):
                step, h = ours(x[t : t + 1, n], h)
                assert torch.equal(output[t, n], step[0])
            assert torch.equal(joined(last), joined(h))


@every_kind
@every_extent
def test_gradients_of_gradients(kind, extent):
    theirs, ours = twins(kind, 2, 3, 2, dtype=torch.float64, bidirectional=True)
    x, hx = inputs(ours, 4, 6, torch.float64)
    given, results = extent(4, 6), []
    for layer in (ours, Reference(theirs)):
        leaves = leaf(x), leaf(hx)
        output, h_n = layer(*leaves, **given)
        loss = output.pow(3).sum() + joined(h_n).square().sum()
        first = torch.autograd.grad(loss, tree_leaves(leaves), create_graph=True)
        results.append(
            {"first": first} | gradients(layer, *leaves, sum(g.square().sum() for g in first))
        )
    agree(*results)


# --- What is refused -----------------------------------------------------------------------------

BAD = {
    "lengths of two axes": ({"lengths": [[3, 1]]}, r"lengths.*\(2,\).*\(1, 2\)"),
    "too many lengths": ({"lengths": [3, 1, 2]}, r"lengths.*\(2,\).*\(3,\)"),
    "one length for all": ({"lengths": 3}, r"lengths.*\(2,\).*\(\)"),
    "fractional lengths": ({"lengths": [3.0, 1.0]}, "lengths.*integers"),
    "boolean lengths": ({"lengths": [True, False]}, "lengths.*integers"),
    "complex lengths": ({"lengths": torch.ones(2, dtype=torch.complex64)}, "lengths.*integers"),
    "negative length": ({"lengths": [3, -1]}, r"lengths.*\b5\b.*-1"),
    "length past the end": ({"lengths": [6, 1]}, r"lengths.*\b5\b.*6"),
    "enormous length": ({"lengths": [2**62, 1]}, r"lengths.*\b5\b.*4611686018427387904"),
    "reset of one axis": ({"reset": [True] * 5}, r"reset.*\(5, 2\).*\(5,\)"),
    "reset transposed": ({"reset": torch.ones(2, 5).bool()}, r"reset.*\(5, 2\).*\(2, 5\)"),
    "reset of integers": ({"reset": torch.ones(5, 2).int()}, "reset.*booleans"),
    "reset of floats": ({"reset": torch.ones(5, 2)}, "reset.*booleans"),
}


@every_kind
@pytest.mark.parametrize(("given", "message"), BAD.values(), ids=BAD)
def test_refused(kind, given, message):
    _, ours = twins(kind, 3, 4, 2)
    x, hx = inputs(ours, 5, 2)
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    expected = run(ours, x, hx)
    with pytest.raises(RuntimeError, match=f"^{KINDS[kind][0]}: {message}"):
        ours(x, hx, **given)
    same_bits(ours.state_dict(), before)
    same_bits(run(ours, x, hx), expected)


def test_refused_beside_a_packed_sequence():
    _, ours = twins("gru", 3, 4)
    packed = pack_padded_sequence(torch.randn(5, 2, 3), [5, 3])
    for given in ({"lengths": [5, 3]}, {"reset": torch.zeros(5, 2, dtype=torch.bool)}):
        with pytest.raises(RuntimeError, match=r"(?i)^GRU: lengths= and reset=.*packed"):
            ours(packed, **given)


def test_refused_on_the_scan_path_too():
    """Out of range is out of range for calls that the engine does not take."""
    _, ours = twins("gru", 3, 4)
    x, _ = inputs(ours, 5, 2)
    with (
        torch.autocast("cpu", torch.bfloat16),
        elman.torch.require("scan"),
        pytest.raises(RuntimeError, match=r"^GRU: lengths.*\b5\b.*6"),
    ):
        ours(x, lengths=[6, 1])


@pytest.mark.parametrize(
    "x",
    [torch.zeros(0, 2, 3), torch.zeros(5, 2, 4), torch.zeros(3), torch.zeros(5, 2, 3).double()],
    ids=["L = 0", "D", "rank", "dtype"],
)
def test_bad_input_is_torchs_error(x):
    theirs, ours = twins("gru", 3, 4)
    with pytest.raises((RuntimeError, ValueError)) as expected:
        theirs(x)
    with pytest.raises(expected.type) as actual:
        ours(x, lengths=[1, 1])
    assert str(actual.value) == str(expected.value)


@pytest.mark.parametrize(
    ("name", "original", "change"),
    [
        ("lengths", np.array([2, 5, 3]), lambda a: np.put(a, [0, 1, 2], [5, 1, 0])),
        ("lengths", np.array([2, 5, 3], np.int32), lambda a: np.put(a, [0, 1, 2], [5, 1, 0])),
        ("reset", some_reset(5, 3).numpy(), lambda a: np.logical_not(a, out=a)),
    ],
    ids=["int64 lengths", "int32 lengths", "reset"],
)
def test_arrays_changed_after_the_call(name, original, change):
    """An array that the caller fills anew for the next batch is the caller's own."""
    _, ours = twins("gru", 3, 4, bidirectional=True)
    x, hx = inputs(ours, 5, 3)
    expected = run(ours, x, hx, **{name: original})
    given = original.copy()

    def overwrite(*_):
        change(given)

    ours.register_forward_hook(overwrite)
    same_bits(run(ours, x, hx, **{name: given}), expected)


def test_tensors_changed_after_the_call_are_noticed():
    """As torch notices it of every other tensor."""
    _, ours = twins("gru", 3, 4, bidirectional=True)
    x, hx = inputs(ours, 5, 3)
    for name, given in (("lengths", torch.tensor([2, 5, 3])), ("reset", some_reset(5, 3))):
        output, _ = ours(x, hx, **{name: given})
        given.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()
