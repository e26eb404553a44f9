"""Every instruction set gives the same bits, and passes tests of the engine.

Run as a program, this file prints a digest of what the engine gives, case by case.
"""

import functools
import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import elman

ISAS = ["portable", "avx2", "avx512"]
SIZES = [(3, 2, 1, 1), (5, 3, 7, 15), (4, 9, 5, 33), (2, 3, 300, 4), (2, 2, 3, 270), (45, 13, 3, 5)]


TESTS = ("tests/test_engine.py", "tests/test_exact.py", "tests/test_half.py")


def digests():
    """A line for each case: its name and a digest of outputs, states and gradients."""
    for cell, dtype, size in itertools.product(
        ["rnn_tanh", "rnn_relu", "gru"], ["float32", "float64"], SIZES
    ):
        steps, batch, D, H = size
        rng = np.random.default_rng(0)
        options = {"num_layers": 2, "bidirectional": True, "dtype": dtype, "seed": 0}
        if cell == "gru":
            layer = elman.GRU(D, H, **options)
        else:
            layer = elman.RNN(D, H, nonlinearity=cell.removeprefix("rnn_"), **options)
        # Values from the smallest to those that saturate every gate.
        scale = 10.0 ** rng.uniform(-30, 3, (steps, batch, 1))
        x = (scale * rng.normal(size=(steps, batch, D))).astype(dtype)
        x[0, 0] = 0
        lengths = rng.integers(0, steps + 1, batch)
        reset = rng.random((steps, batch)) < 0.1
        digest = hashlib.sha256()
        for how in ({}, {"lengths": lengths, "reset": reset}):
            output, h_n, vjp = layer.vjp(x, **how)
            d_output = rng.normal(size=output.shape).astype(dtype)
            d_h_n = rng.normal(size=h_n.shape).astype(dtype)
            for a in (output, h_n, *vjp(d_output, d_h_n).values()):
                assert np.isfinite(a).all()
                digest.update(a.tobytes())
        yield f"{cell} {dtype} {size} {digest.hexdigest()}"


def run(isa, *arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"ELMAN_ISA": isa, "HYPOTHESIS_PROFILE": "brief"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )


@functools.cache
def missing(isa):
    """Why this instruction set cannot run here, as the engine says it, or nothing."""
    done = run(isa, "-c", "import elman.engine; print(elman.engine.isa)")
    if done.returncode == 0:
        assert done.stdout.strip() == isa
        return ""
    message = done.stderr.strip().splitlines()[-1]
    assert message in (
        f"ImportError: ELMAN_ISA: this processor does not have {isa}",
        "ImportError: ELMAN_ISA: expected portable, avx2 or avx512 on x86-64, portable elsewhere; "
        f"got {isa}",
    )
    return message


@pytest.fixture(params=ISAS)
def isa(request):
    if missing(request.param):
        assert request.param != "portable"
        pytest.skip(missing(request.param))
    return request.param


def test_every_instruction_set_gives_the_same_bits(isa):
    done = run(isa, __file__)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == list(digests())


def test_every_instruction_set_passes_tests_of_the_engine(isa):
    done = run(isa, "-m", "pytest", "-q", "-m", "every_isa", *TESTS)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.mark.parametrize("unknown", ["sse9", "AVX2", "avx"])
def test_an_unknown_instruction_set_is_an_error_at_import(unknown):
    done = run(unknown, "-c", "import elman")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "ImportError: ELMAN_ISA: expected portable, avx2 or avx512 on x86-64, portable elsewhere; "
        f"got {unknown}"
    )


if __name__ == "__main__":
    print(*digests(), sep="\n")
