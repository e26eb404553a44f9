"""Work that goes on for long, and the memory it takes: `make soak`.

tests/test_memory.py runs a short version.
"""

import contextlib
import gc
import itertools
import resource
import sys
import time
import tracemalloc

import numpy as np

import elman


def resident():
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def stream_numpy():
    """A step at a time."""
    layer = elman.GRU(16, 64, num_layers=2, seed=0)
    x = np.ones((1, 1, 16), "float32")
    h = None

    def step():
        nonlocal h
        _, h = layer(x, h)

    return step


def stream_steps():
    """The same through a stream, a block now and then."""
    stream = elman.LSTM(16, 64, num_layers=2, seed=0).stream(2)
    x, block = np.ones((2, 16), "float32"), np.ones((3, 2, 16), "float32")
    out = np.empty((2, 64), "float32")

    def step():
        stream.step(x, out)
        stream.run(block)
        stream.reset([True, False])

    return step


def stream_torch():
    """A step at a time through the PyTorch package."""
    import torch

    import elman.torch

    layer = elman.torch.GRU(16, 64)
    x, h = torch.ones(1, 1, 16), None

    @torch.no_grad()
    def step():
        nonlocal h
        _, h = layer(x, h)

    return step


def train_numpy():
    """Forward and backward on several threads, batches of many shapes."""
    return train(elman.GRU(8, 32, bidirectional=True, seed=0))


def train_lstm():
    """The same with two states and a projection."""
    return train(elman.LSTM(8, 32, bidirectional=True, proj_size=20, seed=0))


def train(layer):
    elman.set_num_threads(3)
    rng = np.random.default_rng(0)

    def step():
        steps, batch = rng.integers(1, 40, 2)
        x = rng.normal(size=(steps, batch, 8)).astype("float32")
        output, final, vjp = layer.vjp(x, lengths=rng.integers(0, steps + 1, batch))
        gradients = vjp(output, final)
        state = layer.state_dict()
        layer.load_state_dict({name: w - 0.01 * gradients[name] for name, w in state.items()})

    return step


def train_torch():
    """The same with torch's optimiser."""
    import torch

    import elman.torch

    torch.set_num_threads(1)  # torch's own wait for one another
    layer = elman.torch.GRU(8, 32, bidirectional=True)
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.01)
    rng = np.random.default_rng(0)

    def step():
        steps, batch = map(int, rng.integers(1, 40, 2))
        lengths = torch.as_tensor(rng.integers(0, steps + 1, batch))
        output, h_n = layer(torch.randn(steps, batch, 8), lengths=lengths)
        optimiser.zero_grad()
        (output.square().mean() + h_n.mean()).backward()
        optimiser.step()

    return step


def refuse():
    """Calls that end in an error of the engine's."""
    layer = elman.GRU(8, 32, seed=0)
    x = np.ones((5, 2, 8), "float32")

    def step():
        with contextlib.suppress(ValueError):
            layer(x, lengths=[5, 6])

    return step


def repeat(step, times):
    for _ in range(times):
        step()


WARM_UP = 800  # steps until allocators have seen most shapes
TRACED = 200
PARTS = 3


def growth(work, steps):
    """How much memory grew over so many steps, and Python's part over TRACED more.

    What leaks does so every time; caches fill. So of several times the least counts.
    """
    step = work()
    repeat(step, max(steps // 10, WARM_UP))
    grown = []
    for _ in range(PARTS):
        before = resident()
        repeat(step, steps // PARTS)
        grown.append(resident() - before)
    tracemalloc.start()
    traced = []
    for _ in range(5):
        repeat(step, TRACED)
        gc.collect()  # Python's free lists too, which count as memory in use
        traced.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    python = min(after - before for before, after in itertools.pairwise(traced))
    return PARTS * min(grown), python


SOAK = {
    stream_numpy: 1_000_000,
    stream_steps: 1_000_000,
    stream_torch: 200_000,
    train_numpy: 10_000,
    train_lstm: 10_000,
    train_torch: 10_000,
    refuse: 200_000,
}

if __name__ == "__main__":
    flat = True
    for work, steps in SOAK.items():
        start = time.perf_counter()
        grown, python = growth(work, steps)
        seconds = time.perf_counter() - start
        flat = flat and grown < 8 << 20 and python < 4 << 10
        print(
            f"{work.__name__:13} {steps:8} steps {seconds:6.0f} s: {grown:9} bytes more, "
            f"{python:6} of them Python's in {TRACED} steps",
            flush=True,
        )
    sys.exit(0 if flat else "memory grows")
