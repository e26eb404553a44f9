"""What holds for every test: memory that nobody has written is NaN, and settings are put back."""

import types

import numpy as np
import pytest

import elman
from elman import _engine, engine


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
def threads_put_back():
    threads = elman.get_num_threads()
    yield
    elman.set_num_threads(threads)
