"""Files of RTNeural and of Neural Amp Modeler, read and written."""

import json

import numpy as np
import pytest
from exported import bits, conv1d, draw, linear

import elman
from elman import cli, export
from elman.cells import sigmoid
from elman.weights import ConversionError


def model_of_all():
    """What RTNeural has."""
    layers = [conv1d(2, 6, 3, 4), export.ReLU(), elman.GRU(6, 9, 2, bias=False, seed=0)]
    layers += [linear(9, 5), export.Tanh(), elman.LSTM(5, 7, seed=1), linear(7, 3)]
    return export.Model([*layers, export.Softmax(), export.Sigmoid()])


def test_rtneural_there_and_back(tmp_path):
    model = model_of_all()
    assert export.write(model, tmp_path / "a.json") == [
        "biases of LSTM(5, 7) are added up, as both sides would"
    ]
    again = export.load(tmp_path / "a.json")
    x = draw(model, 50)
    assert bits(again(x)[0]) == bits(model(x)[0])


def test_rtneurals_file_by_its_equations(tmp_path):
    """A GRU and a dense layer, written out from what RTNeural says of its weights."""
    rng = np.random.default_rng(0)
    H = 4
    W, U, b = (rng.standard_normal(shape, "f") for shape in ((2, 3 * H), (H, 3 * H), (2, 3 * H)))
    dense, bias = rng.standard_normal((H, 1), "f"), rng.standard_normal(1, "f")
    gru = {"type": "gru", "activation": "tanh", "shape": [None, None, H]}
    head = {"type": "time-distributed-dense", "activation": "sigmoid", "shape": [None, None, 1]}
    layers = [
        {**gru, "weights": [w.tolist() for w in (W, U, b)]},
        {**head, "weights": [dense.tolist(), bias.tolist()]},
    ]
    content = {"in_shape": [None, None, 2], "layers": layers}
    (tmp_path / "a.json").write_text(json.dumps(content))
    x, h, expected = rng.standard_normal((20, 2), "f"), np.zeros(H), []
    for x_t in x.astype(float):
        alpha, beta = x_t @ W + b[0], h @ U + b[1]  # z, r and c
        z, r = sigmoid(alpha[:H] + beta[:H], np), sigmoid(alpha[H : 2 * H] + beta[H : 2 * H], np)
        c = np.tanh(alpha[2 * H :] + r * beta[2 * H :])
        h = (1 - z) * c + z * h
        expected.append(sigmoid(h @ dense + bias, np))
    output, _ = export.load(tmp_path / "a.json")(x)
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-6)


def nam(rng, D=1, H=3, K=2):
    """The content of a .nam, and what it computes of an input, as its player does."""
    cells = []
    for k in range(K):
        size = (H if k else D) + H
        shapes = (4 * H, size), (4 * H,), (H,), (H,)
        cells.append([rng.standard_normal(shape, "f") for shape in shapes])
    head, bias = rng.standard_normal(H, "f"), rng.standard_normal(1, "f")
    numbers = np.concatenate([a.ravel() for cell in cells for a in cell] + [head, bias])
    content = {"version": "0.5.4", "architecture": "LSTM", "weights": numbers.tolist()}
    content["config"] = {"input_size": D, "hidden_size": H, "num_layers": K}

    def play(x):
        states, played = [(cell[2].astype(float), cell[3].astype(float)) for cell in cells], []
        for y in x.astype(float):
            for k, (w, b, _, _) in enumerate(cells):
                h, c = states[k]
                i, f, g, o = np.split(w @ np.concatenate([y, h]) + b, 4)
                c = sigmoid(f, np) * c + sigmoid(i, np) * np.tanh(g)
                states[k] = y, c = sigmoid(o, np) * np.tanh(c), c
            played.append([y @ head + bias[0]])
        return np.array(played)

    return content, play


def test_nam_by_its_equations_there_and_back(tmp_path):
    rng = np.random.default_rng(1)
    content, play = nam(rng)
    (tmp_path / "a.nam").write_text(json.dumps(content))
    model = export.load(tmp_path / "a.nam")
    x = rng.standard_normal((30, 1), "f")
    output, _ = model(x)
    np.testing.assert_allclose(output, play(x), rtol=0, atol=1e-5)
    assert export.write(model, tmp_path / "b.nam")
    again = json.loads((tmp_path / "b.nam").read_text())
    assert again["weights"] == content["weights"]
    assert again["config"] == content["config"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "WaveNet"}, "architecture 'WaveNet' is not known"),
        ({"weights": [0.0] * 5}, r"takes \d+ weights, got 5"),
        ({"weights": None}, "weights"),
        ({"config": {}}, "holds no model"),
        ({"config": {"input_size": 1, "hidden_size": 10**9, "num_layers": 1}}, "weights, got"),
    ],
)
def test_nam_that_is_refused(change, said, tmp_path):
    content, _ = nam(np.random.default_rng(2))
    (tmp_path / "a.nam").write_text(json.dumps({**content, **change}))
    with pytest.raises(ConversionError, match=said):
        export.load(tmp_path / "a.nam")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"type": "batchnorm"}, "layer 0: 'batchnorm' is not known"),
        ({"activation": "elu"}, "layer 0: activation 'elu' is not known"),
        ({"type": "gru", "activation": "relu"}, "activation of a gru must be tanh"),
        ({"type": "conv1d", "groups": 2}, "groups must be 1, got 2"),
        ({"weights": [[1.0, 2.0]]}, "holds no model"),
    ],
)
def test_rtneural_that_is_refused(change, said, tmp_path):
    export.write(export.Model([linear(2, 3)]), tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    content["layers"][0].update(change)
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ConversionError, match=said):
        export.load(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("layer", "end", "said"),
    [
        (elman.RNN(1, 2), "json", r"rtneural has no RNN\(1, 2\)"),
        (elman.GRU(1, 2, reset_after=False), "json", "rtneural has no GRU"),
        (elman.LSTM(1, 3, proj_size=2), "json", "rtneural has no LSTM"),
        (elman.GRU(1, 2), "nam", "nam holds LSTMs of one size"),
    ],
)
def test_what_a_format_has_not(layer, end, said, tmp_path):
    with pytest.raises(ConversionError, match=said):
        export.write(export.Model([layer, linear(2, 1)]), tmp_path / f"a.{end}")
    assert not list(tmp_path.iterdir())


def test_the_command_converts(tmp_path, capsys, monkeypatch):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    monkeypatch.chdir(tmp_path)
    lstm = elman.LSTM(1, 4, 2, seed=0)
    model = export.Model([lstm, linear(4, 1)])
    export.write(model, "a.nam")
    assert cli.main(["convert", "a.nam", "a.json"]) == 0
    x = draw(model, 20)
    assert bits(export.load("a.json")(x)[0]) == bits(model(x)[0])
    assert cli.main(["convert", "a.json", "--list"]) == 0
    said = capsys.readouterr().out
    assert "layers.0: LSTM, 1 layer" in said
    assert "2 tensors of no recurrent layer" in said
    assert cli.main(["convert", "a.nam", "lstm.safetensors", "--to=elman", "--layer=layers.0"]) == 0
    assert bits(elman.load("lstm.safetensors")(x)[0]) == bits(lstm(x)[0])
    assert cli.main(["export", "a.nam", "amp.h"]) == 0
    assert (tmp_path / "amp.h").read_text() == export.header(export.load("a.nam"), "amp")
    elman.GRU(1, 4).save("gru.safetensors")
    assert cli.main(["convert", "gru.safetensors", "gru.json", "--from", "elman"]) == 0
    assert repr(export.load("gru.json")) == "Model([GRU(1, 4)])"
