"""What holds for every test: memory that nobody has written is NaN, threads are waited for, and
settings are put back."""

import os
import types
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import elman
from elman import _engine, engine

# The same examples every time, unless `make fuzz` asks for others, and more of them. However slow
# the machine is at that moment, nothing fails.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", patient, max_examples=50, derandomize=True)
settings.register_profile("brief", settings.get_profile("quick"), max_examples=15)
settings.register_profile("long", patient, max_examples=1000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_configure(config):
    config.addinivalue_line("markers", "every_isa: run again under each instruction set")


class PoisonedNumPy(types.ModuleType):
    """NumPy, but for `empty`, whose floating-point arrays are full of NaN."""

    def __getattr__(self, name):
        return getattr(np, name)

    @staticmethod
    def empty(shape, dtype=np.float64):
        array = np.empty(shape, dtype)
        if array.dtype.kind == "f":
            array.fill(np.nan)
        return array


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Arrays that the engine's callers allocate, and its own scratch, begin as NaN."""
    monkeypatch.setattr(engine, "np", PoisonedNumPy("numpy"))
    _engine.poison_buffers(True)
    yield
    _engine.poison_buffers(False)


@pytest.fixture(autouse=True)
def _threads_are_waited_for():
    """Else a test that others crowd out would compare one thread with itself."""
    _engine.always_wait(True)
    yield
    _engine.always_wait(False)


@pytest.fixture(scope="module")
def jax_compiles_quickly():
    """Without most of XLA's optimisations: what is compiled there runs once, on little."""
    if find_spec("jax") is None:
        yield
        return
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True)
def threads_put_back():
    threads = elman.get_num_threads()
    yield
    elman.set_num_threads(threads)
