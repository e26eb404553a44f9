"""What docs/lengths.md says: lengths= in place of packing, reset= in place of a loop over time."""

import pytest
import torch
from reference import each, parts
from test_torch_layers import agree, every_kind, inputs, leaf, run, twins
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

import elman.torch
from examples import packing

D, H, L, N = 3, 4, 9, 5
LENGTHS = torch.tensor([4, 9, 1, 9, 6])


def cotangents(tensors):
    random = torch.Generator().manual_seed(2)
    return [torch.randn(t.shape, generator=random, dtype=t.dtype) for t in tensors]


def differentiate(layer, results, *inputs):
    """The results and the gradients of the inputs and of every weight."""
    layer.zero_grad()
    results, inputs = tree_leaves(results), tree_leaves(inputs)
    torch.autograd.backward(results, cotangents(results))
    named = {**dict(enumerate(inputs)), **dict(layer.named_parameters())}
    return {
        **{f"result {n}": r.detach() for n, r in enumerate(results)},
        **{f"d_{name}": t.grad for name, t in named.items()},
    }


@every_kind
@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}],
    ids=["plain", "two layers, two directions"],
)
def test_lengths_do_what_packing_does(kind, options):
    theirs, ours = twins(kind, D, H, **options, dtype=torch.float64)
    batch_first = theirs.batch_first
    x, hx = inputs(theirs, L, N, torch.float64, "batch" if batch_first else "time")

    a, h = leaf(x), leaf(hx)
    packed = pack_padded_sequence(a, LENGTHS, batch_first, enforce_sorted=False)
    output, h_n = theirs(packed, h)
    output, _ = pad_packed_sequence(output, batch_first, total_length=L)
    want = differentiate(theirs, [output, h_n], a, h)

    past = torch.arange(L)[:, None] >= LENGTHS
    b = x.masked_fill((past.T if batch_first else past)[..., None], torch.nan)
    b, h = leaf(b), leaf(hx)
    got = differentiate(ours, ours(b, h, lengths=LENGTHS), b, h)
    agree(got, want)


@every_kind
def test_reset_does_what_a_loop_over_time_does(kind):
    theirs, ours = twins(kind, D, H, 2, dtype=torch.float64)
    x, hx = inputs(theirs, L, N, torch.float64)
    is_first = torch.rand(L, N) < 0.3
    is_first[:, 0], is_first[:, 1] = False, True  # no new episode, and nothing but

    a, h = leaf(x), leaf(hx)
    state, outputs = h, []
    for t in range(L):
        state = each(lambda s, starts=is_first[t]: s * ~starts[:, None], state)
        output, state = theirs(a[t : t + 1], state)
        outputs.append(output)
    want = differentiate(theirs, [torch.cat(outputs), state], a, h)

    b, h = leaf(x), leaf(hx)
    agree(differentiate(ours, ours(b, h, reset=is_first), b, h), want)


@every_kind
def test_the_reverse_direction_starts_anew_where_an_episode_ends(kind):
    theirs, ours = twins(kind, D, H, bidirectional=True, dtype=torch.float64)
    x = torch.randn(L, 1, D, dtype=torch.float64)
    is_first = torch.zeros(L, 1, dtype=torch.bool)
    is_first[[3, 4, 7]] = True

    a, episodes = leaf(x), []
    for episode in a.tensor_split([3, 4, 7]):
        episodes.append(theirs(episode))
    outputs, states = zip(*episodes, strict=True)
    h_n = each(lambda last, first: torch.stack([last[0], first[1]]), states[-1], states[0])
    want = differentiate(theirs, [torch.cat(outputs), h_n], a)

    b = leaf(x)
    agree(differentiate(ours, ours(b, reset=is_first), b), want)


@every_kind
def test_rollouts_of_unequal_length_with_episodes_in_each(kind):
    _, ours = twins(kind, D, H, dtype=torch.float64)
    x, hx = inputs(ours, L, N, torch.float64)
    is_first = torch.rand(L, N) < 0.3
    output, h_n = ours(x, hx, lengths=LENGTHS, reset=is_first)
    for n, length in enumerate(LENGTHS):
        row = x[:length, n : n + 1], each(lambda s, n=n: s[:, n : n + 1], hx)
        alone, h_alone = ours(*row, reset=is_first[:length, n : n + 1])
        assert torch.equal(output[:length, n], alone[:, 0])
        for a, b in zip(parts(h_n), parts(h_alone), strict=True):
            assert torch.equal(a[:, n], b[:, 0])
        assert not output[length:, n].any()


def test_the_example_has_the_same_losses_both_ways(monkeypatch):
    monkeypatch.setattr(packing, "LONGEST", 30)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    packed, lengths = packing.train(packing.Packing, 4), packing.train(packing.Lengths, 4)
    torch.set_num_threads(threads)
    assert packed == pytest.approx(lengths, rel=1e-5)
    assert packed[-1] < packed[0]


# What torch's own layers cannot do


def test_packing_takes_no_row_without_steps():
    with pytest.raises(RuntimeError, match="greater than 0"):
        pack_padded_sequence(torch.ones(3, 2, D), torch.tensor([3, 0]), enforce_sorted=False)
    layer = elman.torch.GRU(D, H)
    assert run(layer, torch.ones(3, 2, D), lengths=[3, 0])["output"][:, 1].abs().max() == 0


@pytest.mark.parametrize("name", ["lengths", "reset"])
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_torchs_layer_has_no_such_argument(kind, name):
    with pytest.raises(TypeError, match=name):
        kind(D, H)(torch.ones(L, N, D), **{name: None})
