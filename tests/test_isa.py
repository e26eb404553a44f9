"""Every instruction set gives the bits of the one that this process has, and passes tests.

Run as a program, this file prints a digest of what the engine gives, case by case.
"""

import functools
import hashlib
import itertools
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from doors import CELLS, FULL, build
from reference import parts, whole

import elman
from elman import engine

CPUINFO = Path("/proc/cpuinfo")
ISAS = ["portable", "avx2", "avx512"]
SIZES = [(3, 2, 1, 1), (5, 3, 7, 15), (4, 9, 5, 33), (2, 3, 300, 4), (2, 2, 3, 270), (45, 13, 3, 5)]
OPTIONS = [
    dict(zip(("num_layers", "bidirectional", "bias"), values, strict=True))
    for values in itertools.product((1, 3), (False, True), (False, True))
]
TESTS = ("tests/test_engine.py", "tests/test_exact.py", "tests/test_half.py")


def layers():
    """Each cell, and an LSTM with a projection, at every size, and with all options at one."""
    cases = [(size, {"num_layers": 2, "bidirectional": True}) for size in SIZES]
    cases += [((7, 5, 6, 19), options) for options in OPTIONS]
    for cell, dtype, (size, options) in itertools.product([*CELLS, "projected"], FULL, cases):
        D, H = size[2:]
        options = options | {"dtype": dtype, "seed": 0}
        if cell == "projected":
            yield size, elman.LSTM(D, H, proj_size=H // 2, **options)
        else:
            yield size, build(elman, cell, D, H, **options)


def digests():
    """A line for each case: what it is, and a digest of outputs, states and gradients."""
    for size, layer in layers():
        steps, batch, D, _ = size
        rng = np.random.default_rng(0)
        # Values from the smallest to those that saturate every gate.
        scale = 10.0 ** rng.uniform(-30, 3, (steps, batch, 1))
        x = (scale * rng.normal(size=(steps, batch, D))).astype(layer.dtype)
        x[0, 0] = 0
        lengths = rng.integers(0, steps + 1, batch)
        reset = rng.random((steps, batch)) < 0.1
        extents = {"lengths": lengths}, {"reset": reset}, {"lengths": lengths, "reset": reset}
        digest = hashlib.sha256()
        for how in ({}, *extents):
            output, final, vjp = layer.vjp(x, **how)
            d_output, *d_final = (
                rng.normal(size=a.shape).astype(layer.dtype) for a in (output, *parts(final))
            )
            for a in (output, *parts(final), *vjp(d_output, whole(d_final)).values()):
                assert np.isfinite(a).all()
                digest.update(a.tobytes())
        yield f"{size} {layer} {layer.dtype} {digest.hexdigest()}"


def run(isa, *arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"ELMAN_ISA": isa, "HYPOTHESIS_PROFILE": "brief"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=1200,
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
    if request.param == engine.isa:
        pytest.skip("this process has it, and the tests themselves are on it")
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


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not CPUINFO.exists(), reason="only Linux lists what there is"
)
def test_the_widest_that_the_processor_has_is_taken():
    """By what the kernel says, which keeps the registers."""
    flags = set(re.search(r"^flags\s*: (.*)$", CPUINFO.read_text(), re.MULTILINE)[1].split())
    needed = {
        "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
        "avx2": {"avx2", "fma", "f16c"},
        "portable": set(),
    }
    widest = next(isa for isa, names in needed.items() if names <= flags)
    there = {name: value for name, value in os.environ.items() if name != "ELMAN_ISA"}
    code = "from elman import engine; print(engine.isa)"
    found = subprocess.run(
        [sys.executable, "-c", code], env=there, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == widest


if __name__ == "__main__":
    print(*digests(), sep="\n")
