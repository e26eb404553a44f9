"""The PyTorch door in workers of a DataLoader, beside torch's threads, and interrupted."""

import os
import sys
import threading

import numpy as np
import pytest
from reference import assert_all_same_bits, assert_same_bits
from test_faults import LIMIT, compute, ctrl_c, in_new_process

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
    dataset = Dataset()
    want = dataset[1]
    a = np.random.default_rng(0).normal(size=(300, 300))
    wrong = []

    def work():
        for _ in range(5):
            torch.ones(400, 400) @ torch.ones(400, 400)
            a @ a
            got = dataset_of_thread[threading.current_thread()][1]
            for x, y in zip(got[0], want[0], strict=True):
                if not torch.equal(x, y):
                    wrong.append(x)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
    dataset_of_thread = {thread: Dataset() for thread in threads}
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive(), "a thread hangs"
    assert not wrong


def work_on_torchs_threads():
    torch.set_num_threads(2)
    torch.ones(1000, 1000) @ torch.ones(1000, 1000)
    before = len(os.listdir("/proc/self/task"))
    layer = elman.torch.GRU(64, 256)
    x = torch.randn(20, 16, 64)
    on_two = forward_and_gradients(layer, x)
    assert len(os.listdir("/proc/self/task")) == before
    torch.set_num_threads(1)
    for a, b in zip(on_two, forward_and_gradients(layer, x), strict=True):
        assert_same_bits(a, b)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_calls_run_on_torchs_threads():
    in_new_process(work_on_torchs_threads)


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
