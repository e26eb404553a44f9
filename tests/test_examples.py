"""The pieces of the examples: what they compare, and that nothing is seen that lies ahead."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.text import manual
from examples.text.train import Writer, chunks
from examples.text.train import train as train_writer
from examples.text.write import Pen

ROOT = Path(__file__).parents[1]
ALPHABET = "abc "


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Text


def test_the_manual_has_no_paragraph_twice_and_is_split_by_place():
    text = manual.read()
    learnt, held_out = manual.split(text)
    assert len(text) > 200_000
    assert learnt + held_out == text
    assert len(held_out) == len(text) // 10
    paragraphs = text.split("\n\n")
    assert len(set(paragraphs)) > 0.99 * len(paragraphs)  # but for what is not ASCII


def test_a_table_of_one_character_by_hand():
    # a twice and b once: of 3 characters and 2 kinds
    chances = [(2 + 2 / 3) / 5, (1 + 2 / 3) / 5, (0 + 2 / 3) / 5]
    assert manual.table_bits("aab", "abc", 1) == pytest.approx(-np.log2(chances).mean())


@pytest.mark.parametrize("order", [2, 3, 4])
def test_a_tables_chances_of_all_that_may_follow_add_up(order):
    learnt = "abc a bca cab baca abab ca"

    def chance(text):
        return 2 ** (-manual.table_bits(learnt, text, order) * len(text))

    for before in ("ab", "cc", "a a"):
        total = sum(chance(before + c) for c in ALPHABET)
        assert total == pytest.approx(chance(before))


def test_pieces_of_the_text_follow_one_another():
    text = np.arange(32 * 150 + 17)
    parts = chunks(text)
    characters, following = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    assert torch.equal(characters + 1, following)
    assert torch.equal(characters.T.flatten(), torch.arange(characters.numel()))
    assert characters.shape == ((len(text) - 1) // 32, 32)


def test_an_lstm_learns_and_writes_with_the_same_bits():
    text = manual.numbers("abc cab " * 700, ALPHABET)
    model, losses, bits = train_writer(text[:5000], text[5000:], len(ALPHABET), 2, lambda: None)
    assert bits[1] < bits[0] < 2
    assert losses[1] < losses[0]
    pen = Pen({name: w.numpy() for name, w in model.state_dict().items()})
    written, outputs = pen.write(text[:3], 200, temperature=0.6, seed=0)
    assert (written[:3] == text[:3]).all()
    with torch.no_grad():
        theirs, _ = model.lstm(model.embedding(torch.from_numpy(written[:-1])))
    np.testing.assert_array_equal(outputs, theirs.numpy())
    np.testing.assert_array_equal(outputs, pen.read(written[:-1]))


def test_a_pen_draws_as_often_as_the_model_says():
    torch.manual_seed(0)
    model = Writer(len(ALPHABET))
    model.head.weight.data *= 10  # far from even chances
    pen = Pen({name: w.detach().numpy() for name, w in model.state_dict().items()})
    drawn = [pen.write(np.array([2]), 1, 0.5, seed)[0][-1] for seed in range(2000)]
    with torch.no_grad():
        scores, _ = model(torch.tensor([[2]]))
    expected = torch.softmax(scores[0, 0] / 0.5, 0).numpy()
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 2000, expected, atol=0.05)


# Forecasting


@pytest.fixture(scope="module")
def demand():
    pytest.importorskip("pmdarima", reason="the series of examples/forecasting is shipped with it")
    from examples.forecasting import demand

    return demand


def made_up(weeks=12):
    """Weeks that are alike, but for a slow wave."""
    hours = np.arange(weeks * 336)
    wave = 800 * np.sin(hours / 200) + 200 * np.random.default_rng(0).normal(size=len(hours))
    return 30000 + 6000 * np.sin(2 * np.pi * hours / 48) + wave


def test_the_series(demand):
    series = demand.load()
    assert series.shape == (12 * demand.WEEK,)
    assert 18000 < series.min() < series.max() < 40000


def test_features_and_targets_by_hand(demand):
    values = made_up()
    series = demand.prepare(values)
    for t, h in [(336, 0), (1000, 5), (3000, 47)]:
        excess = values[t + 1 + h] - values[t + 1 + h - 336]
        assert series.wanted[t, h] * series.scale == pytest.approx(excess, rel=1e-5)
        assert series.seen[t, 0] * series.scale == pytest.approx(
            values[t] - values[t - 336], rel=1e-5
        )
    at = demand.origins(demand.TEST, len(values))
    assert at.start + 1 == demand.TEST  # the first half hour that is forecast
    assert np.isfinite(series.wanted[at]).all()
    assert np.isnan(series.wanted[at.stop]).any()  # where the series has ended
    off = demand.absolute_errors(series, series.wanted + 1, at)
    np.testing.assert_allclose(off, series.scale, rtol=1e-5)


def test_nothing_is_seen_that_lies_ahead(demand):
    from examples.forecasting.train import Forecaster, forecast

    values, t = made_up(), 10 * 336 + 100
    other = values.copy()
    other[t + 1 :] += 5000
    before, after = demand.prepare(values), demand.prepare(other)
    assert before.scale == after.scale
    torch.manual_seed(0)
    model = Forecaster(before.seen.shape[1])
    one, two = forecast(model, before), forecast(model, after)
    np.testing.assert_array_equal(one[: t + 1], two[: t + 1])
    assert (one[t + 1] != two[t + 1]).any()


def test_a_forecaster_learns_and_the_best_is_kept(demand, monkeypatch):
    from examples.forecasting import train

    monkeypatch.setattr(train, "ROWS", 4)
    monkeypatch.setattr(train, "STEPS", 96)
    series = demand.prepare(made_up())
    model, curve = train.train(series, 50, lambda: None)
    assert [update for update, _ in curve] == [10, 20, 30, 40, 50]
    at = demand.origins(demand.VALIDATION, demand.TEST)
    error = demand.absolute_errors(series, train.forecast(model, series), at).mean()
    assert error == pytest.approx(min(each for _, each in curve), rel=1e-6)
    assert error < demand.absolute_errors(series, 0 * series.wanted, at).mean()


# A Keras model


@pytest.fixture(scope="module")
def vowels():
    from examples.japanese_vowels.data import load

    data, test = load()
    return type(data)(*(a[:30] for a in data)), test


def test_a_keras_model_served_without_keras_and_its_training(vowels, tmp_path):
    pytest.importorskip("keras", reason="examples/keras_model is about a Keras model")
    import keras

    from examples.keras_model import serve
    from examples.keras_model.train import EPOCHS_OF_KERAS, build, train

    data, test = vowels
    model = build(test.frames.shape[1])
    seconds = train(model, data, EPOCHS_OF_KERAS + 1, lambda: None)
    assert [len(each) for each in seconds.values()] == [EPOCHS_OF_KERAS, 1]
    assert int(model.optimizer.iterations) == EPOCHS_OF_KERAS + 1
    kinds = [type(layer) for layer in model.layers]
    assert keras.layers.LSTM in kinds
    (both,) = (layer for layer in model.layers if isinstance(layer, keras.layers.Bidirectional))
    assert type(both.forward_layer) is keras.layers.GRU

    model.save(tmp_path / "model.keras")
    serve.convert(tmp_path / "model.keras", tmp_path)
    answers = serve.Served(tmp_path)(test.frames, test.lengths)
    np.testing.assert_allclose(answers, model.predict_on_batch(test.frames), atol=1e-6)
    padded = test.frames.copy()
    padded[np.arange(29) >= test.lengths[:, None]] = np.nan  # what is never read
    np.testing.assert_array_equal(serve.Served(tmp_path)(padded, test.lengths), answers)


def test_serving_imports_no_keras():
    code = "import sys, examples.keras_model.serve; print({'keras', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# The notebook


def test_the_notebook_says_what_it_said():
    nbclient = pytest.importorskip("nbclient", reason="the notebook is executed by it")
    import nbformat

    notebook = nbformat.read(ROOT / "examples/memory.ipynb", as_version=4)
    expected = printed(notebook)
    assert len(expected) == 3
    run = nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3")
    run.execute()
    assert printed(notebook) == expected


def printed(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    return [o.text for o in outputs if o.output_type == "stream" and o.name == "stdout"]
