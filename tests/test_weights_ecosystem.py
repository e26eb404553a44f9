"""Weights that others trained and published, in Elman's layers: ``make test-ecosystem``.

Of silero-vad, Resemblyzer and g2p-en only the files that pip installs are read, and g2p-en's own
loop over them is run. Where one is not installed, its tests are skipped. With ``-s`` the times of
g2p-en's loop and of Elman's cells are printed.
"""

import importlib
import importlib.util
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from reference import assert_close
from safetensors.numpy import load_file

import elman
from elman import cli
from elman.weights import convert, find, models

pytestmark = pytest.mark.filterwarnings("ignore")  # of these packages


def files(package):
    """The folder of a package, which is not imported for that."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed; make test-ecosystem brings it")
    return Path(spec.submodule_search_locations[0])


# silero-vad: its ONNX models, and what its TorchScript has for both rates


@pytest.fixture(scope="module")
def silero():
    pytest.importorskip("onnx", reason="onnx is not installed; models are read by it")
    return files("silero_vad") / "data"


#: Whose LSTM each model has, in the order of its nodes: in branches for two rates, and for a state
#: or none. One has weights of its own; one is made of other operators, where there is none to find.
SILERO = {
    "silero_vad": ["_model_8k", "_model_8k", "_model", "_model"],
    "silero_vad_16k_op15": ["_model", "_model"],
    "silero_vad_16k_sequence": ["_model"],
    "silero_vad_openvino_16k": ["_model"],
    "silero_vad_half": ["", ""],
    "silero_vad_op18_ifless": [],
}


@pytest.mark.parametrize("name", SILERO)
def test_silero_vads_models(name, silero):
    torch = pytest.importorskip("torch", reason="it reads the TorchScript")
    from elman import onnx

    script = torch.jit.load(silero / "silero_vad.jit").state_dict()
    found = onnx.find(silero / f"{name}.onnx")
    assert len(found) == len(SILERO[name])
    for layer, whose in zip(found, SILERO[name], strict=True):
        weights = convert(layer.read().tensors, "onnx", "torch", cell=True)
        assert weights["weight_hh"].shape == (512, 128)
        for tensor, w in weights.items() if whose else ():
            np.testing.assert_array_equal(w, script[f"{whose}.decoder.rnn.{tensor}"].numpy())


def test_silero_vads_safetensors(silero):
    (cell,) = find(load_file(silero / "silero_vad_16k.safetensors"), "torch")
    assert str(cell).startswith("lstm_cell: LSTMCell, 1 layer, 1 direction, input size 128")


def test_silero_vads_lstm_computes_the_same(silero, tmp_path):
    """The part of its model that is an LSTM, cut out and run by ONNX Runtime."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed; models are read by it")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from elman import onnx as ours

    path = silero / "silero_vad_16k_sequence.onnx"
    (node,) = (node for node in onnx.load(path).graph.node if node.op_type == "LSTM")
    inputs, outputs = [node.input[0], "h", "c"], list(node.output)
    onnx.utils.extract_model(path, tmp_path / "lstm.onnx", inputs, outputs)
    rng = np.random.default_rng(0)
    x, h, c = (rng.normal(size=(n, 1, 128)).astype("float32") for n in (40, 1, 1))
    session = runtime.InferenceSession(tmp_path / "lstm.onnx")
    y, h_n, c_n = session.run(outputs, dict(zip(inputs, (x, h, c), strict=True)))
    layer = elman.LSTM(128, 128)
    layer.load_state_dict(convert(ours.read(path).tensors, "onnx", "torch"))
    output, states = layer(x, (h, c))
    for got, want in zip((output, *states), (y[:, 0], h_n, c_n), strict=True):
        assert_close(got, want)


# Resemblyzer: a checkpoint of PyTorch's with an optimiser's state


def test_resemblyzers_checkpoint(tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="it reads its own checkpoints")
    path = files("resemblyzer") / "pretrained.pt"
    assert cli.main(["convert", str(path), "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "model_state.lstm: LSTM, 3 layers, 1 direction, input size 40, hidden size 256, float32",
        "36 tensors of no recurrent layer",
    ]
    target = str(tmp_path / "b.safetensors")
    assert cli.main(["convert", str(path), target, "--to=torch", "--layer=model_state.lstm"]) == 0
    weights = load_file(target)
    theirs = torch.nn.LSTM(40, 256, 3)
    theirs.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
    state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    for name, w in weights.items():
        np.testing.assert_array_equal(w, state[f"lstm.{name}"].numpy())
    ours = elman.LSTM(40, 256, 3)
    ours.load_state_dict(weights)
    x = np.random.default_rng(0).normal(size=(50, 2, 40)).astype("float32")
    with torch.no_grad():
        assert_close(ours(x)[0], theirs(torch.from_numpy(x))[0].numpy())
    assert len(find(models.read(path), "torch")) == 1


# g2p-en: a GRU encoder and decoder, in NumPy

WORDS = [
    *(
        "activationist",
        "blogosphere",
        "chatbot",
        "cryptocurrency",
        "deepfake",
        "facepalm",
        "selfie",
    ),
    *("gigabyte", "hashtag", "unfriendable", "xylophonist", "zettabyte", "quokka", "mbappe", "wug"),
    *("blicket", "photobomb", "vlogging", "a"),
]


@pytest.fixture(scope="module")
def g2p():
    """Its own class. What it imports to split and tag sentences is not looked at here."""
    files("g2p_en")
    names = ("nltk", "nltk.corpus", "nltk.tokenize", "inflect")
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in names}):
        return importlib.import_module("g2p_en.g2p").G2p()


class Elmans:
    """The same, with Elman's cells for its loops."""

    def __init__(self, g2p):
        self.g2p = g2p
        self.encoder, self.decoder = (self.cell(part) for part in ("enc", "dec"))

    def cell(self, part):
        """The cell of what it calls enc_w_ih and so on, which is in PyTorch's order."""
        names = {"weight_ih": "w_ih", "weight_hh": "w_hh", "bias_ih": "b_ih", "bias_hh": "b_hh"}
        cell = elman.GRUCell(256, 256)
        cell.load_state_dict({n: self.g2p.variables[f"{part}_{own}"] for n, own in names.items()})
        return cell

    def predict(self, word):
        h = np.zeros((1, 256), "float32")
        for x in self.g2p.encode(word)[0]:
            h = self.encoder(x[None], h)
        said, x = [], self.g2p.dec_emb[[2]]
        for _ in range(20):
            h = self.decoder(x, h)
            found = int((h @ self.g2p.fc_w.T + self.g2p.fc_b).argmax())
            if found == 3:
                break
            said.append(self.g2p.idx2p[found])
            x = self.g2p.dec_emb[[found]]
        return said


def test_g2p_ens_pronunciations(g2p):
    ours = Elmans(g2p)
    for word in WORDS:
        assert ours.predict(word) == g2p.predict(word)
    assert ours.predict("chatbot") == ["CH", "AE1", "T", "B", "AA2", "T"]
    seconds = [min(timed(model) for _ in range(5)) for model in (g2p, ours)]
    theirs, elmans = (1e3 * s / len(WORDS) for s in seconds)
    print(f"\nmilliseconds a word: g2p-en {theirs:.2f}, with elman.GRUCell {elmans:.2f}")


def timed(model):
    start = time.perf_counter()
    for word in WORDS:
        model.predict(word)
    return time.perf_counter() - start
