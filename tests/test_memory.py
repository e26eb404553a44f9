"""Memory stays flat, however long one goes on."""

import sys

import pytest
import soak

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

STEPS = {
    soak.stream_numpy: 20_000,
    soak.stream_torch: 5_000,
    soak.train_numpy: 500,
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
