"""Files of the NumPy package, and what importing Elman brings with it."""

import json
import math
import os
import stat
import subprocess
import sys

import numpy as np
import pytest
from reference import assert_all_same_bits, assert_same_bits
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import elman

LAYERS = {
    "tanh": lambda: elman.RNN(3, 4, seed=0),
    "relu": lambda: elman.RNN(3, 4, 2, "relu", bidirectional=True, seed=0),
    "gru": lambda: elman.GRU(3, 4, 2, False, True, 0.25, True, dtype="float64", seed=0),
    "lstm": lambda: elman.LSTM(3, 4, 2, bidirectional=True, seed=0),
    "projected lstm": lambda: elman.LSTM(3, 4, 2, False, True, 0.25, True, 2, seed=0),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_comes_back_as_it_was_saved(name, tmp_path):
    layer = LAYERS[name]()
    layer.save(tmp_path / "layer.safetensors")
    loaded = elman.load(str(tmp_path / "layer.safetensors"))
    assert type(loaded) is type(layer)
    assert loaded.spec == layer.spec
    assert loaded.dtype == layer.dtype
    assert loaded.training is False
    assert_all_same_bits(loaded.state_dict(), layer.state_dict())
    x = np.ones((5, 3), layer.dtype)
    for got, want in zip(loaded(x), layer(x), strict=True):
        assert_same_bits(got, want)


@pytest.mark.parametrize("name", LAYERS)
def test_the_file_is_an_ordinary_one(name, tmp_path):
    layer, path = LAYERS[name](), tmp_path / "layer.safetensors"
    layer.save(path)
    weights = layer.state_dict()
    read = load_file(path)
    assert read.keys() == weights.keys()
    assert_all_same_bits({k: read[k] for k in weights}, weights)
    with safe_open(path, framework="np") as file:
        arguments = json.loads(file.metadata()["elman"])
    assert arguments == {
        "cell": layer.spec.cell.name,
        "input_size": 3,
        "hidden_size": 4,
        "num_layers": layer.spec.num_layers,
        "bias": layer.spec.bias,
        "batch_first": layer.spec.batch_first,
        "dropout": layer.spec.dropout,
        "bidirectional": layer.spec.bidirectional,
        "proj_size": layer.spec.proj_size,
        "dtype": layer.dtype.name,
    }


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_others_may_read_the_file_as_they_may_any_other(tmp_path):
    LAYERS["gru"]().save(tmp_path / "layer.safetensors")
    (tmp_path / "other").touch()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes["layer.safetensors"] == modes["other"]


def test_saving_again_replaces_the_file(tmp_path):
    path = tmp_path / "layer.safetensors"
    LAYERS["tanh"]().save(path)
    LAYERS["gru"]().save(path)
    assert_all_same_bits(elman.load(path).state_dict(), LAYERS["gru"]().state_dict())
    assert os.listdir(tmp_path) == ["layer.safetensors"]


def test_saving_beside_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    LAYERS["tanh"]().save("layer.safetensors")
    assert elman.load("layer.safetensors").spec == LAYERS["tanh"]().spec


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("there", [False, True])
def test_a_write_that_fails_leaves_all_as_it_was(function, there, tmp_path, monkeypatch):
    path = tmp_path / "layer.safetensors"
    if there:
        LAYERS["gru"]().save(path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fail(*_, **__):
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(os, function, fail)
        with pytest.raises(OSError, match="disk full"):
            LAYERS["tanh"]().save(path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_saving_into_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        LAYERS["tanh"]().save(tmp_path / "missing" / "layer.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_loading_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        elman.load(tmp_path / "layer.safetensors")


def test_loading_part_of_a_file(tmp_path):
    whole = tmp_path / "whole"
    LAYERS["gru"]().save(whole)
    data = whole.read_bytes()
    part = tmp_path / "part"
    for size in (0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1):
        part.write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"^load: '.*part' is not a safetensors file"):
            elman.load(part)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x95garbage",  # as a pickle begins
        b"PK\x03\x04" + bytes(100),  # as a zip begins
        bytes(100),
        b"\xff" * 100,
        b"hello, world, this is no file of weights",
    ],
)
def test_loading_what_is_no_safetensors_file(data, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"^load: '.*file' is not a safetensors file"):
        elman.load(path)


GOOD = {"cell": "gru", "input_size": 3, "hidden_size": 4, "dtype": "float32"}


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"format": "pt"},
        {"elman": ""},
        {"elman": "not json"},
        {"elman": "[" * 100_000},
        {"elman": "null"},
        {"elman": "[]"},
        {"elman": "3"},
        {"elman": json.dumps({"input_size": 3, "hidden_size": 4})},
        {"elman": json.dumps(GOOD | {"cell": "peephole"})},
        {"elman": json.dumps(GOOD | {"proj_size": 2})},  # of a GRU
        {"elman": json.dumps(GOOD | {"cell": "rnn_sigmoid"})},
        {"elman": json.dumps(GOOD | {"cell": 5})},
        {"elman": json.dumps(GOOD | {"hidden_size": "4"})},
        {"elman": json.dumps(GOOD | {"hidden_size": 0})},
        {"elman": json.dumps(GOOD | {"dtype": "int8"})},
        {"elman": json.dumps(GOOD | {"colour": "red"})},
    ],
    ids=lambda metadata: str(metadata)[:80],
)
def test_loading_a_file_that_describes_no_layer(metadata, tmp_path):
    path = tmp_path / "file"
    save_file(elman.GRU(3, 4).state_dict(), path, metadata)
    with pytest.raises(ValueError, match=r"^load: '.*file' does not describe an Elman layer"):
        elman.load(path)


@pytest.mark.parametrize(
    "arguments",
    [
        {"hidden_size": 5},
        {"num_layers": 2},
        {"bias": False},
        {"dtype": "float64"},
        {"cell": "rnn_tanh"},
        {"cell": "lstm"},
        {"cell": "lstm", "proj_size": 2},
        {"hidden_size": 10**7},  # more than memory holds
    ],
    ids=str,
)
def test_loading_a_file_whose_weights_are_others_than_it_says(arguments, tmp_path):
    path = tmp_path / "file"
    metadata = {"elman": json.dumps(GOOD | arguments)}
    save_file(elman.GRU(3, 4).state_dict(), path, metadata)
    with pytest.raises(ValueError, match=r"file|GRU|LSTM|RNN"):
        elman.load(path)


def test_loading_a_file_that_says_nothing_of_a_projection(tmp_path):
    """As it was written before there were any."""
    layer, path = elman.GRU(3, 4), tmp_path / "file"
    save_file(layer.state_dict(), path, {"elman": json.dumps(GOOD)})
    assert_all_same_bits(elman.load(path).state_dict(), layer.state_dict())


def test_loading_weights_of_a_type_that_numpy_does_not_have(tmp_path):
    shapes = {name: w.shape for name, w in elman.GRU(3, 4).state_dict().items()}
    header, end = {"__metadata__": {"elman": json.dumps(GOOD)}}, 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape)
        header[name] = {"dtype": "F8_E5M2", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path = tmp_path / "file"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))
    with pytest.raises(ValueError, match=r"^load: '.*file'"):
        elman.load(path)


# Imports

IMPORT = "import sys; before = set(sys.modules); import elman; print(*set(sys.modules) - before)"
NUMPY = IMPORT.replace("elman", "numpy")


def test_importing_elman_brings_numpy_and_nothing_else():
    brought = []
    for code in (IMPORT, NUMPY):
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        )
        brought.append({name.partition(".")[0] for name in done.stdout.split()})
    with_elman, with_numpy = brought
    assert with_elman - with_numpy - set(sys.stdlib_module_names) == {"elman"}


def test_the_numpy_package_works_where_no_framework_can_be_imported():
    code = """
import sys
for name in ("torch", "safetensors", "mlx", "oneflow"):
    sys.modules[name] = None  # importing it raises
import elman, numpy
layer = elman.GRU(3, 4, 2, bidirectional=True)
output, h_n, vjp = layer.vjp(numpy.ones((5, 2, 3), "float32"))
vjp(output, h_n)
try:
    layer.save("layer.safetensors")
except ImportError as e:
    print("safetensors" in str(e))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "True\n"
