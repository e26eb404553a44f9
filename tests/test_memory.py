"""Memory stays flat, however long one goes on."""

import sys

import numpy as np
import pytest
import soak

import elman
from elman import engine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

STEPS = {
    soak.stream_numpy: 20_000,
    soak.stream_steps: 10_000,
    soak.stream_torch: 5_000,
    soak.train_lstm: 500,
    soak.train_torch: 300,
    soak.refuse: 5_000,
}


@pytest.mark.parametrize("work", STEPS, ids=lambda work: work.__name__)
def test_memory_stays_flat(request, work):
    if "torch" in work.__name__:
        torch = pytest.importorskip("torch")
        threads = torch.get_num_threads()
        request.addfinalizer(lambda: torch.set_num_threads(threads))
    grown, python = soak.growth(work, STEPS[work])
    assert grown < 2 << 20
    assert python < 4 << 10


def test_a_large_result_lies_where_the_last_one_lay():
    layer = elman.GRU(4, 64, seed=0)
    x = np.ones((300, 1, 4), "float32")
    addresses = {layer(x)[0].ctypes.data for _ in range(20)}
    assert len(addresses) <= 2  # scratch may have taken one of them at first


def test_two_results_never_lie_in_one_place():
    layer = elman.GRU(4, 64, seed=0)
    x = np.random.default_rng(0).normal(size=(300, 3, 4)).astype("float32")
    alone = [layer(x[:, n : n + 1])[0].copy() for n in range(3)]
    held = [layer(x[:, n : n + 1])[0] for n in range(3)]
    for one, again in zip(alone, held, strict=True):
        np.testing.assert_array_equal(again, one)


def test_little_of_what_was_freed_is_kept():
    before = soak.resident()
    arrays = [engine._empty((8 << 20,), False) for _ in range(16)]  # 512 MiB
    for a in arrays:
        a.fill(1)
    assert soak.resident() - before > 370 << 20  # 128 MiB may have been kept already
    del a, arrays
    assert soak.resident() - before < 136 << 20
