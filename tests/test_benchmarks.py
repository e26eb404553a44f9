"""The benchmark: who is wrong is found out, and the figures are computed as they are named."""

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import elman
import elman.torch
from benchmarks import calls, compare, markdown, measure, models, page, peaks, results
from benchmarks.check import WrongError, check, reference, tolerance
from benchmarks.contenders import OTHERS, OURS, LeftOutError, make, parts, whole
from benchmarks.contenders.elman_packages import NumpyPackage
from benchmarks.grid import GRID, MODES, Case, draw
from benchmarks.memory import kept
from elman import engine
from elman.spec import weight_names

PLAIN = Case("GRU", 7, 3, 4, 5)
LENGTHS = Case("RNN", 7, 3, 4, 5, lengths=(1, 7))
STACKED = Case("GRU", 7, 3, 4, 5, num_layers=2, bidirectional=True)
LSTM = Case("LSTM", 7, 3, 4, 5)
LSTM_LENGTHS = Case("LSTM", 7, 3, 4, 5, lengths=(1, 7))
LSTM_STACKED = Case("LSTM", 7, 3, 4, 5, num_layers=2, bidirectional=True)
CASES = [PLAIN, LENGTHS, STACKED, LSTM, LSTM_LENGTHS, LSTM_STACKED]
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
@pytest.mark.parametrize("case", CASES, ids=str)
def test_contender_passes_or_is_left_out(name, case):
    both = measure.measure(case, list(MODES), [name], threads=1, pace=ONCE)
    for result in both:
        assert result["wrong"] == {}
        assert (name in result["seconds"]) != (name in result["left_out"])
        if name in ("elman", "elman.torch", "JAX"):
            assert len(result["seconds"][name]) == 1


class Spoilt(NumpyPackage):
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
    "key",
    ["output", "h_n", "c_n", "x", "h_0", "c_0", "weight_ih_l0", "weight_hh_l0", "bias_hh_l0"],
)
def test_wrong_contender_is_caught_and_not_timed(key, monkeypatch):
    def spoilt(name, *arguments):
        return Spoilt(key, *arguments)

    monkeypatch.setattr(measure, "make", spoilt)
    by_mode = {r["mode"]: r for r in measure.measure(LSTM, list(MODES), ["elman"], 1, ONCE)}
    mode = "inference" if key in ("output", "h_n", "c_n") else "training"
    assert key in by_mode[mode]["wrong"]["elman"]
    assert by_mode[mode]["seconds"] == {}
    (other,) = set(MODES) - {mode}
    assert by_mode[other]["wrong"] == {}
    assert results.wrong({"results": list(by_mode.values())}) != []


def test_missing_misshapen_and_nan_are_wrong():
    right = reference(LSTM, draw(LSTM), ["inference"])
    assert check(LSTM, right, right) == 0
    for got in (
        {"output": right["output"], "h_n": right["h_n"]},
        {**right, "h_n": right["h_n"][0]},
        {**right, "output": np.full_like(right["output"], np.nan)},
    ):
        with pytest.raises(WrongError, match=r"c_n|h_n|output"):
            check(LSTM, got, right)


def test_tolerance_is_float32s():
    for case in GRID:
        assert tolerance(case, "output") < 1.5e-5
        assert tolerance(case, "d_weight_hh_l0") < 1e-4


def test_the_reference_is_the_equations():
    """The float64 reference against the NumPy package in float64, which test_engine.py checks."""
    for case in CASES:
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
        x, d_output = inputs.x.astype("float64"), inputs.d_output.astype("float64")
        state, d_final = (
            whole(a.astype("float64") for a in states.values())
            for states in (inputs.states, inputs.d_states)
        )
        output, final, vjp = layer.vjp(x, state, lengths=inputs.lengths)
        got = {"output": output, **dict(zip(("h_n", "c_n"), parts(final), strict=False))}
        got |= {f"d_{name}": a for name, a in vjp(d_output, d_final).items()}
        assert got.keys() == right.keys()
        for name, expected in right.items():
            np.testing.assert_allclose(got[name], expected, rtol=1e-11, atol=1e-12)


def as_held(connection):
    """The processors of every thread, after each framework has worked."""
    measure.hold(peaks.available()[:1])
    inputs = draw(LSTM)
    for name in OTHERS:
        with contextlib.suppress(LeftOutError):
            make(name, LSTM, inputs, 1).infer()
    tasks = os.listdir("/proc/self/task")
    connection.send({tuple(os.sched_getaffinity(int(task))) for task in tasks})


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="nobody can be held to processors")
def test_everyone_is_held_to_as_many_processors_as_threads():
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=as_held, args=(sender,))
    process.start()
    sender.close()
    assert receiver.recv() == {tuple(peaks.available()[:1])}
    process.join()


def test_torchs_lstm_is_onednns():
    """Else an easier opponent would be measured than people have."""
    code = (
        "from benchmarks.contenders import make; from benchmarks.grid import *;"
        "case = Case('LSTM', 7, 3, 4, 5); lstm = make('torch', case, draw(case), 1);"
        "lstm.infer(); lstm.train()"
    )
    environment = os.environ | {"ONEDNN_VERBOSE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    calls = [line.split(",") for line in done.stdout.splitlines() if ",exec,cpu,rnn," in line]
    assert [call[7] for call in calls] == ["forward_inference", "forward_training", "backward"]


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
    best = figure(run, "inference: NumPy package against the best of the others")
    assert best.values == {BATCH.name: 2, ROW.name: 4}
    assert (best.least, best.median, best.least_at) == (2, 3, BATCH.name)


def test_the_packages_are_not_among_the_others():
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
    title = "NumPy package, share of the FMA peak, N >= 16"
    assert figure(run, f"inference: {title}").least == pytest.approx(0.5)
    assert figure(run, f"training: {title}").least == pytest.approx(0.25)
    assert figure(run, "inference: NumPy package, share of the bandwidth, N = 1").values == {
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
    assert figure(run, "inference: NumPy package, one thread over so many", 2).least == 1.5


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


@pytest.mark.parametrize("cell", ["GRU", "LSTM", "RNN"])
def test_bytes_kept_are_the_engines(cell):
    case = Case(cell, 9, 4, 3, 16)
    inputs, row = draw(case), case.spec.cell
    packed = engine.pack(row, [inputs.weights.get(name) for name in weight_names(0, 0)])
    state = np.concatenate(list(inputs.states.values()), -1)
    arguments = (row, packed, inputs.x, state, engine.Extent(), 1)
    *_, arrays = engine.forward(*arguments, keep=True)
    expected = sum(a.nbytes for a in arrays if a is not None)
    assert kept(make("elman.torch", case, inputs, 1)) == expected


def test_bytes_kept_by_torchs_rnn():
    case = Case("RNN", 9, 4, 3, 16)
    assert kept(make("torch", case, draw(case), 1)) == case.rows * 16 * 4  # the states


# Results by processor


def test_the_page_of_results_is_what_the_results_say():
    assert page.PAGE.read_text() == page.text(page.read())
    newest = max(page.read().values(), key=lambda run: run["date"])
    assert "\n".join(markdown.table(newest, "GRU")) in Path("README.md").read_text()
    for name, run in page.read().items():
        assert page.picture(name).exists()
        assert page.file_of(run["machine"]["cpu"]).stem == name


# models


@pytest.mark.parametrize("cell", models.CELLS)
@pytest.mark.parametrize(("model", "modes"), [("tagger", [*MODES]), ("stream", ["inference"])])
def test_models_are_alike_and_the_rest_lacks_their_layers(model, modes, cell):
    made = models.calls(model, cell, 6, 2, 4, 5)
    assert list(made) == modes
    for mode, ways in made.items():
        with elman.torch.require("kernel"):
            again = [ways[who]() for who in (models.OURS, models.STOCK, models.REST)]
        torch.testing.assert_close(*again[:2], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(again[2], again[1])
        elman.torch.paths.clear()
        ways[models.REST]()
        assert not elman.torch.paths, mode
        ways[models.OURS]()
        assert elman.torch.paths, mode


@pytest.mark.parametrize("cell", calls.CELLS)
def test_what_is_timed_of_calls(cell):
    """Of every cell that can be asked for, the same in both; else `calls` raises."""
    made = calls.calls(cell, 2, 3, 4)
    assert [(call.name, call.mode) for call in made] == [
        (name, mode) for name in (f"{cell}Cell", cell) for mode in ("inference", "training")
    ]
    for ways in made.values():
        assert [*ways] == ["torch.nn", "elman.torch"]


def test_training_of_a_model_moves_every_weight(monkeypatch):
    """Of layers that are not there, too."""
    kept = []
    adam = torch.optim.Adam

    def watched(parameters):
        kept.append([(p, p.detach().clone()) for p in parameters])
        return adam([p for p, _ in kept[-1]])

    monkeypatch.setattr(torch.optim, "Adam", watched)
    ways = models.calls("tagger", "GRU", 6, 2, 4, 5)["training"]
    ways[models.REST]()
    assert [len(weights) for weights in kept] == [19] * 3
    assert all(not torch.equal(p, was) for weights in kept for p, was in weights)


@pytest.mark.parametrize("mode", MODES)
def test_a_model_that_computes_something_else_is_not_timed(mode, monkeypatch):
    def spoil(model):
        weight = model.layers.weight_hh_l1_reverse
        if mode == "inference":
            weight.data.add_(0.01)
        else:
            weight.register_hook(lambda d: d * 1.1)

    monkeypatch.setattr(elman.torch, "accelerate", spoil)
    with pytest.raises(AssertionError, match="not close"):
        models.calls("tagger", "LSTM", 6, 2, 4, 5)


def test_the_table_of_models():
    seconds = {"torch.nn": [8e-3, 12e-3], "elman.torch": [4e-3, 4e-3], "the rest": [2e-3, 2e-3]}
    case = {"model": "tagger", "cell": "GRU", "mode": "training", "shape": [6, 2, 4, 5]}
    *_, line = markdown.table_of_models({"models": [case | {"seconds": seconds}]})
    assert line == "| tagger, GRU, training (6, 2, 4, 5) | 2.50 | 10 / 4 | 2 | 79% / 50% |"
