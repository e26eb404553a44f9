"""The PyTorch door in workers of a DataLoader, beside torch's threads, and interrupted."""

import sys

import numpy as np
import pytest
from doors import run_numpy, threads
from reference import assert_all_same_bits, assert_same_bits
from test_exact_threads import at_once, subnormal
from test_faults import LIMIT, count_threads, ctrl_c, in_new_process, only_linux
from test_threads import compute, in_child

import elman
import elman.torch

torch = pytest.importorskip("torch")


def forward_and_gradients(layer, x):
    x = x.clone().requires_grad_()
    output, h_n = layer(x)
    (output.cos().sum() + h_n.sin().sum()).backward()
    gradients = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    return [a.detach() for a in (output, h_n, x.grad, *gradients)]


class Dataset(torch.utils.data.Dataset):
    """Each item is what both doors give for it."""

    def __init__(self):
        torch.manual_seed(0)
        self.layer = elman.torch.GRU(20, 64, bidirectional=True)

    def __len__(self):
        return 4

    def __getitem__(self, i):
        x = torch.full((30, 40, 20), 0.1 * i)
        return forward_and_gradients(self.layer, x), compute()


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(
            "fork",
            marks=[
                pytest.mark.skipif(sys.platform != "linux", reason="unsafe with system libraries"),
                pytest.mark.filterwarnings("ignore:This process .* is multi-threaded"),
            ],
        ),
        "spawn",
    ],
)
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # two on one processor
def test_workers_of_a_data_loader(method):
    dataset = Dataset()
    want = [dataset[i] for i in range(len(dataset))]
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=2, multiprocessing_context=method, timeout=LIMIT
    )
    for _ in range(2):
        for (got, got_numpy), (expected, expected_numpy) in zip(loader, want, strict=True):
            for a, b in zip(got, expected, strict=True):
                assert_same_bits(a, b)
            got_numpy = {name: np.asarray(a) for name, a in got_numpy.items()}
            assert_all_same_bits(got_numpy, expected_numpy)


def test_threads_of_torch_numpy_and_elman_together():
    want = Dataset()[1]
    a = np.random.default_rng(0).normal(size=(300, 300))

    def job(dataset):
        torch.ones(400, 400) @ torch.ones(400, 400)
        a @ a
        return dataset[1]

    datasets = [Dataset() for _ in range(3)]
    with threads(3):
        for results in at_once([lambda d=d: job(d) for d in datasets], 20):
            for got, got_numpy in results:
                for x, y in zip(got, want[0], strict=True):
                    assert_same_bits(x, y)
                assert_all_same_bits(got_numpy, want[1])


def count_threads_of_both_doors():
    layer = elman.torch.GRU(20, 64)
    x, d_output = torch.ones(30, 40, 20, requires_grad=True), torch.ones(30, 40, 64)

    def call():
        output, _ = layer(x)
        torch.autograd.grad(output, (x, *layer.parameters()), d_output)

    torch.set_num_threads(1)
    call()
    before = count_threads()
    call()
    assert count_threads() == before, "torch was told to use one thread"
    torch.set_num_threads(3)
    torch.ones(3000, 3000).exp()
    before = count_threads()
    call()
    assert count_threads() == before, "torch's threads are there to be used"
    elman.set_num_threads(3)
    compute()
    assert count_threads() == before, "the doors share their threads"

    def both():
        call()
        compute()
        return count_threads()

    callers = 6
    counts = at_once([both] * callers, 5)
    # Other threads than the main one share two of Elman's.
    assert max(map(max, counts)) <= before + callers + 2


@only_linux
def test_calls_of_both_doors_share_the_threads_that_torch_allows():
    in_new_process(count_threads_of_both_doors)


def fork_beside_torchs_threads():
    torch.set_num_threads(3)
    elman.set_num_threads(3)
    torch.ones(3000, 3000).exp()
    want = compute()
    assert_all_same_bits(in_child("fork"), want)
    assert_all_same_bits(compute(), want)


@only_linux
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_fork_has_none_of_torchs_threads():
    """OpenMP does not know that, and would wait for them."""
    in_new_process(fork_beside_torchs_threads)


def flush_on_torchs_threads():
    case = subnormal()
    with threads(1):
        want = run_numpy(case)
    torch.set_num_threads(2)
    torch.set_flush_denormal(True)
    torch.ones(3000, 3000).exp()
    with threads(2):
        assert_all_same_bits(run_numpy(case), want)


def test_torchs_threads_keep_subnormal_numbers():
    """Those that it starts in another mode, too."""
    in_new_process(flush_on_torchs_threads)


@pytest.mark.parametrize("backward", [False, True])
def test_ctrl_c(backward):
    layer = elman.torch.GRU(8, 512)
    small = torch.ones(3, 2, 8)
    want = forward_and_gradients(layer, small)
    if backward:
        output, _ = layer(torch.ones(100, 64, 8))
        h = output.sum()
        for _ in range(4):
            output, _ = layer(torch.ones(100, 64, 8), output[-1:].clone())
            h = h + output.sum()
        with ctrl_c(0.05), pytest.raises(KeyboardInterrupt):
            h.backward()
        layer.zero_grad()
    else:
        with torch.no_grad(), ctrl_c(0.05), pytest.raises(KeyboardInterrupt):
            layer(torch.ones(1_000, 64, 8))
    for a, b in zip(forward_and_gradients(layer, small), want, strict=True):
        assert_same_bits(a, b)


def test_a_hook_that_raises():
    layer = elman.torch.GRU(20, 64, num_layers=2)
    x = torch.ones(30, 40, 20)
    want = forward_and_gradients(layer, x)

    class Hook(Exception):
        pass

    def hook(*_):
        raise Hook

    handle = layer.register_forward_hook(hook)
    with pytest.raises(Hook):
        layer(x)
    handle.remove()
    output, _ = layer(x)
    output.register_hook(hook)
    with pytest.raises(Hook):
        output.sum().backward()
    handle = layer.weight_ih_l1.register_hook(hook)
    with pytest.raises(Hook):
        layer(x)[0].sum().backward()
    handle.remove()
    layer.zero_grad()
    for a, b in zip(forward_and_gradients(layer, x), want, strict=True):
        assert_same_bits(a, b)
