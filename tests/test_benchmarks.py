"""The benchmark: who is wrong is found out, and the figures are computed as they are named."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import elman
from benchmarks import compare, measure, peaks, results
from benchmarks.check import WrongError, check, reference, tolerance
from benchmarks.contenders import OTHERS, OURS, make
from benchmarks.contenders.elman_doors import NumpyDoor
from benchmarks.grid import GRID, MODES, Case, draw
from benchmarks.memory import kept
from elman import engine
from elman.spec import CELLS

PLAIN = Case("GRU", 7, 3, 4, 5)
LENGTHS = Case("RNN", 7, 3, 4, 5, lengths=(1, 7))
STACKED = Case("GRU", 7, 3, 4, 5, num_layers=2, bidirectional=True)
ONCE = measure.Pace(turns=1, fewest=1, budget=0, turns_if_slow=1, patience=1)


@pytest.fixture(autouse=True)
def threads():
    """Contenders set them, for the whole process."""
    before = torch.get_num_threads(), elman.get_num_threads()
    yield
    torch.set_num_threads(before[0])
    elman.set_num_threads(before[1])


# Who is right


@pytest.mark.parametrize("name", OURS | OTHERS)
@pytest.mark.parametrize("case", [PLAIN, LENGTHS, STACKED], ids=str)
def test_contender_passes_or_is_left_out(name, case):
    both = measure.measure(case, list(MODES), [name], threads=1, pace=ONCE)
    for result in both:
        assert result["wrong"] == {}
        assert (name in result["seconds"]) != (name in result["left_out"])
        if name in ("elman", "elman.torch", "JAX"):
            assert len(result["seconds"][name]) == 1


class Spoilt(NumpyDoor):
    """Elman with one value of one array slightly off."""

    def __init__(self, key, *arguments):
        super().__init__(*arguments)
        self.key = key

    def spoil(self, arrays):
        if self.key in arrays:
            arrays[self.key] = arrays[self.key].copy()
            arrays[self.key].flat[-1] += 1e-4
        return arrays

    def answer(self, result):
        return self.spoil(super().answer(result))

    def gradients(self, result):
        return self.spoil(super().gradients(result))


@pytest.mark.parametrize(
    "key", ["output", "h_n", "x", "h_0", "weight_ih_l0", "weight_hh_l0", "bias_hh_l0"]
)
def test_wrong_contender_is_caught_and_not_timed(key, monkeypatch):
    def spoilt(name, *arguments):
        return Spoilt(key, *arguments)

    monkeypatch.setattr(measure, "make", spoilt)
    by_mode = {r["mode"]: r for r in measure.measure(PLAIN, list(MODES), ["elman"], 1, ONCE)}
    mode = "inference" if key in ("output", "h_n") else "training"
    assert key in by_mode[mode]["wrong"]["elman"]
    assert by_mode[mode]["seconds"] == {}
    (other,) = set(MODES) - {mode}
    assert by_mode[other]["wrong"] == {}
    assert results.wrong({"results": list(by_mode.values())}) != []


def test_missing_misshapen_and_nan_are_wrong():
    right = reference(PLAIN, draw(PLAIN), ["inference"])
    assert check(PLAIN, right, right) == 0
    for got in (
        {"output": right["output"]},
        {**right, "h_n": right["h_n"][0]},
        {**right, "output": np.full_like(right["output"], np.nan)},
    ):
        with pytest.raises(WrongError, match=r"h_n|output"):
            check(PLAIN, got, right)


def test_tolerance_is_float32s():
    for case in GRID:
        assert tolerance(case, "output") < 1.5e-5
        assert tolerance(case, "d_weight_hh_l0") < 1e-4


def test_gru_of_the_reference_is_the_equations():
    """The float64 reference against the NumPy door in float64, which test_engine.py checks."""
    for case in (PLAIN, LENGTHS, STACKED):
        inputs = draw(case)
        right = reference(case, inputs, list(MODES))
        layer = getattr(elman, case.cell)(
            case.D,
            case.H,
            num_layers=case.num_layers,
            bidirectional=case.bidirectional,
            dtype="float64",
        )
        layer.load_state_dict({name: w.astype("float64") for name, w in inputs.weights.items()})
        x, h_0, d_output, d_h_n = (
            a.astype("float64") for a in (inputs.x, inputs.h_0, inputs.d_output, inputs.d_h_n)
        )
        output, h_n, vjp = layer.vjp(x, h_0, lengths=inputs.lengths)
        got = {"output": output, "h_n": h_n}
        got |= {f"d_{name}": a for name, a in vjp(d_output, d_h_n).items()}
        assert got.keys() == right.keys()
        for name, expected in right.items():
            np.testing.assert_allclose(got[name], expected, rtol=1e-11, atol=1e-12)


# What the figures are

CACHES = {"L1": 48 << 10, "L2": 1 << 20, "L3": 32 << 20}
PEAK = {"gflops": 100.0, "gbytes": {"L1": 400.0, "L2": 200.0, "L3": 100.0, "DRAM": 10.0}}
BATCH, ROW = Case("GRU", 10, 16, 32, 64), Case("GRU", 10, 1, 32, 64)


def result(case, mode, threads, **seconds):
    made = measure.new_result(case, mode, threads)
    made["seconds"] = {name.replace("_", "."): times for name, times in seconds.items()}
    return made


def made_up(*found, threads=(1,)):
    return {
        "machine": {"caches": CACHES},
        "options": {"threads": list(threads)},
        "peaks": {str(n): [PEAK, {**PEAK, "gflops": 90.0}] for n in threads},
        "results": list(found),
        "memory": {},
    }


def figure(run, title, threads=1):
    (found,) = (f for f in results.summary(run) if f.title == title and f.threads == threads)
    return found


def test_ratios_are_turn_by_turn_to_the_best_of_the_others():
    run = made_up(
        result(BATCH, "inference", 1, elman=[1.0, 2.0, 4.0], torch=[9, 9, 9], JAX=[2, 8, 4]),
        result(ROW, "inference", 1, elman=[1.0, 1.0, 1.0], torch=[3, 5, 4], JAX=[9, 9, 9]),
    )
    ratio = results.best_ratio(run["results"][0], "elman")
    assert ratio == ("JAX", 1.5, 2.0, 3.0)  # of 2, 4 and 1
    best = figure(run, "inference: NumPy door against the best of the others")
    assert best.values == {BATCH.name: 2, ROW.name: 4}
    assert (best.least, best.median, best.least_at) == (2, 3, BATCH.name)


def test_the_doors_are_not_among_the_others():
    made = result(BATCH, "inference", 1, elman=[1.0], elman_torch=[0.5], torch=[3.0])
    assert results.best_other(made) == "torch"
    assert results.best_ratio(made, "elman.torch").median == 6


def test_shares_are_of_arithmetic_for_a_batch_and_of_reading_for_a_row():
    flops = 2 * 160 * 192 * (32 + 64)
    assert BATCH.flops("inference") == flops
    assert BATCH.flops("training") == 3 * flops
    assert ROW.recurrent_bytes == 4 * 192 * 64  # 48 KiB, which leaves no room in L1
    run = made_up(
        result(BATCH, "inference", 1, elman=[flops / 50e9]),
        result(BATCH, "training", 1, elman=[3 * flops / 25e9]),
        result(ROW, "inference", 1, elman=[4 * ROW.recurrent_bytes * 10 / 200e9]),
    )
    title = "NumPy door, share of the FMA peak, N >= 16"
    assert figure(run, f"inference: {title}").least == pytest.approx(0.5)
    assert figure(run, f"training: {title}").least == pytest.approx(0.25)
    assert figure(run, "inference: NumPy door, share of the bandwidth, N = 1").values == {
        ROW.name: pytest.approx(0.25)
    }


def test_level_that_holds_the_weights():
    sizes = {16: "L1", 64: "L2", 512: "L3", 2048: "DRAM"}
    for H, level in sizes.items():
        assert peaks.level_of(Case("GRU", 1, 1, 1, H), 1, CACHES) == level
    assert peaks.level_of(ROW, 2, CACHES) == "L1"  # each holds a half


def test_flops_count_layers_directions_and_lengths():
    below, above = 5 * (4 + 5), 5 * (10 + 5)
    assert STACKED.flops("inference") == 2 * 21 * 3 * 2 * (below + above)
    rows = int(draw(LENGTHS).lengths.sum())
    assert LENGTHS.flops("inference") == 2 * rows * below
    assert rows < 21


def test_threads_over_one():
    run = made_up(
        result(BATCH, "inference", 1, elman=[3.0]),
        result(BATCH, "training", 1, elman=[9.0]),
        result(BATCH, "inference", 2, elman=[2.0]),
        threads=(1, 2),
    )
    assert figure(run, "inference: NumPy door, one thread over so many", 2).least == 1.5


def test_best_of_the_others_near_the_peak_is_named():
    seconds = BATCH.flops("inference") / 100e9
    run = made_up(result(BATCH, "inference", 1, elman=[seconds], OpenVINO=[seconds / 0.95]))
    (line,) = results.near_the_peak(run)
    assert "OpenVINO at 0.95" in line


# compare


@pytest.mark.parametrize(
    ("elman", "torch", "code"),
    [
        (1.0, 2.0, 0),  # as it was
        (5.0, 10.0, 0),  # a slower machine
        (1.05, 2.0, 0),  # within the tolerance
        (1.3, 2.0, 1),  # Elman is slower
        (1.0, 1.5, 1),  # the others are faster
    ],
)
def test_compare_by_ratio(elman, torch, code, tmp_path):
    old = made_up(result(BATCH, "training", 1, elman=[1.0] * 3, torch=[2.0] * 3))
    new = made_up(
        result(BATCH, "training", 1, elman=[elman] * 3, torch=[torch] * 3, JAX=[0.1] * 3),
        result(ROW, "training", 1, elman=[9.0], torch=[1.0]),  # in one of them only
    )
    for name, run in (("old", old), ("new", new)):
        (tmp_path / f"{name}.json").write_text(json.dumps(run))
    command = [sys.executable, "-m", "benchmarks.compare", tmp_path / "old.json"]
    done = subprocess.run([*command, tmp_path / "new.json"], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert f"{code} of 1 worse by more than 10%" in done.stdout
    (change,) = compare.compare(old, new)
    assert change.factor == pytest.approx(torch / elman / 2)


# memory


@pytest.mark.parametrize("cell", ["gru", "rnn_tanh"])
def test_bytes_kept_are_the_engines(cell):
    case = Case("GRU" if cell == "gru" else "RNN", 9, 4, 3, 16)
    inputs = draw(case)
    packed = engine.pack(CELLS[cell], list(inputs.weights.values()))
    arguments = (CELLS[cell], packed, inputs.x, inputs.h_0, engine.Extent(), 1)
    *_, arrays = engine.forward(*arguments, keep=True)
    expected = sum(a.nbytes for a in arrays if a is not None)
    assert kept(make("elman.torch", case, inputs, 1)) == expected


def test_bytes_kept_by_torchs_rnn():
    case = Case("RNN", 9, 4, 3, 16)
    assert kept(make("torch", case, draw(case), 1)) == case.rows * 16 * 4  # the states
