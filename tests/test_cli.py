"""The command: what it shows, what it writes, and what it leaves alone."""

import importlib.metadata
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from reference import assert_all_same_bits
from safetensors.numpy import load_file, save_file

import elman
from elman import cli
from elman.weights import FRAMEWORKS, convert


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def gru(**options):
    return elman.GRU(3, 4, seed=0, **options)


def run(capsys, *arguments):
    """The status, standard output and standard error."""
    try:
        status = cli.main(arguments)
    except SystemExit as e:
        status = e.code
    return status, *capsys.readouterr()


def test_converting(folder, capsys):
    gru().save("a.safetensors")
    arguments = ("convert", "a.safetensors", "b.safetensors", "--from", "torch", "--to", "mlx")
    assert run(capsys, *arguments) == (
        0,
        "read   a.safetensors: torch GRU, 1 layer, 1 direction, input size 3, hidden size 4, "
        "float32\n"
        "wrote  b.safetensors: mlx, 4 tensors; biases added up, else exact\n",
        "",
    )
    got, want = load_file("b.safetensors"), convert(gru().state_dict(), "torch", "mlx")
    assert got.keys() == want.keys()
    for name, a in want.items():
        np.testing.assert_array_equal(got[name], a)
    assert sorted(os.listdir()) == ["a.safetensors", "b.safetensors"]


def test_what_it_found_and_did(folder, capsys):
    gru(num_layers=2, bidirectional=True, bias=False, dtype="float64").save("a.safetensors")
    _, out, _ = run(
        capsys, "convert", "a.safetensors", "b.safetensors", "--from=torch", "--to=flax-linen"
    )
    assert out == (
        "read   a.safetensors: torch GRU, 2 layers, 2 directions, input size 3, hidden size 4, "
        "no biases, float64\n"
        "wrote  b.safetensors: flax-linen, 40 tensors; exact\n"
        "note   flax-linen's GRU always has biases; those it gets have no effect\n"
    )
    save_file(elman.GRUCell(3, 4).state_dict(), "c.safetensors")
    _, out, _ = run(
        capsys, "convert", "c.safetensors", "d.safetensors", "--from=torch", "--to=keras"
    )
    assert "torch GRUCell, 1 layer" in out
    assert list(load_file("d.safetensors")) == ["bias", "kernel", "recurrent_kernel"]
    _, out, _ = run(
        capsys,
        "convert",
        "d.safetensors",
        "e.safetensors",
        "--from=keras",
        "--to=torch",
        "--no-cell",
    )
    assert "weight_ih_l0" in load_file("e.safetensors")


def test_models(folder, capsys):
    pytest.importorskip("onnx", reason="onnx is not installed; models are read and written by it")
    elman.RNN(3, 4, 2, seed=0).save("a.safetensors")
    asked = ("convert", "a.safetensors", "b.onnx", "--from=torch")
    status, _, err = run(capsys, *asked)
    assert (status, os.listdir()) == (1, ["a.safetensors"])
    assert "nonlinearity, which weights do not tell" in err
    status, out, _ = run(capsys, *asked, "--nonlinearity=relu")
    assert status == 0
    assert "wrote  b.onnx: onnx, 6 tensors; exact\n" in out
    status, out, _ = run(capsys, "convert", "b.onnx", "c.safetensors", "--to=haiku")
    assert status == 0
    assert out.startswith("read   b.onnx: onnx RNN, relu, 2 layers, 1 direction")
    status, out, _ = run(capsys, "convert", "c.safetensors", "d.onnx", "--from=haiku")
    assert status == 0
    status, _, err = run(
        capsys, "convert", "b.onnx", "e.safetensors", "--to=torch", "--nonlinearity=tanh"
    )
    assert (status, err) == (1, "elman: --nonlinearity tanh: the source is relu\n")


def lstm(**options):
    return elman.LSTM(3, 4, seed=0, **options)


def test_lstms(folder, capsys):
    lstm().save("a.safetensors")
    asked = ("convert", "a.safetensors", "b.safetensors", "--from=torch", "--to=flax-nnx")
    assert run(capsys, *asked) == (
        0,
        "read   a.safetensors: torch LSTM, 1 layer, 1 direction, input size 3, hidden size 4, "
        "float32\n"
        "wrote  b.safetensors: flax-nnx, 12 tensors; biases added up, else exact\n"
        "note   Flax carries an LSTM's state as (c, h), where others have (h, c)\n",
        "",
    )
    got, want = load_file("b.safetensors"), convert(lstm().state_dict(), "torch", "flax-nnx")
    assert got.keys() == want.keys()
    for name, a in want.items():
        np.testing.assert_array_equal(got[name], a)


def test_lstms_there_and_back_again(folder, capsys):
    """By way of every framework; only where biases are added up do values change."""
    lstm().save("a.safetensors")
    for framework in FRAMEWORKS:
        names = ("a.safetensors", "b.safetensors"), ("b.safetensors", "c.safetensors")
        there = ("--from=torch", f"--to={framework}", "--force")
        back = (f"--from={framework}", "--to=torch", "--no-cell", "--force")
        status, out, _ = run(capsys, "convert", *names[0], *there)
        assert status == 0
        assert run(capsys, "convert", *names[1], *back)[0] == 0
        for name, a in lstm().state_dict().items():
            got = load_file("c.safetensors")[name]
            if "biases added up" in out and "bias" in name:
                assert framework not in ("torch", "oneflow", "r-torch", "onnx")
            else:
                np.testing.assert_array_equal(got, a)


def test_a_projection(folder, capsys):
    lstm(proj_size=2).save("a.safetensors")
    asked = ("convert", "a.safetensors", "b.safetensors", "--from=torch")
    _, out, _ = run(capsys, *asked, "--to=oneflow")
    assert "hidden size 4, projection size 2, float32\n" in out
    status, _, err = run(capsys, *asked, "--to=keras", "--force")
    assert status == 1
    assert err.startswith("elman: keras LSTM: has no projection")


def test_models_of_lstms(folder, capsys):
    pytest.importorskip("onnx", reason="onnx is not installed; models are read and written by it")
    lstm(num_layers=2, bidirectional=True).save("a.safetensors")
    asked = ("convert", "a.safetensors", "b.onnx", "--from=torch")
    status, _, err = run(capsys, *asked, "--nonlinearity=tanh")
    assert (status, err) == (1, "elman: --nonlinearity tanh: the source is of kind LSTM\n")
    assert run(capsys, *asked)[0] == 0
    status, out, _ = run(capsys, "convert", "b.onnx", "c.safetensors", "--to=torch")
    assert status == 0
    assert out.startswith("read   b.onnx: onnx LSTM, 2 layers, 2 directions")
    for name, a in lstm(num_layers=2, bidirectional=True).state_dict().items():
        np.testing.assert_array_equal(load_file("c.safetensors")[name], a)


def test_a_node_that_runs_in_reverse_is_said_to(folder, capsys):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed; models are read by it")
    gru().save("a.safetensors")
    run(capsys, "convert", "a.safetensors", "b.onnx", "--from=torch")
    model = onnx.load("b.onnx")
    (node,) = (node for node in model.graph.node if node.op_type == "GRU")
    (direction,) = (a for a in node.attribute if a.name == "direction")
    direction.s = b"reverse"
    onnx.save(model, "b.onnx")
    _, out, _ = run(capsys, "convert", "b.onnx", "c.safetensors", "--to=torch")
    assert "note   the node runs from the last step to the first" in out


def test_haiku_takes_no_tanh(folder, capsys):
    elman.RNN(3, 4).save("a.safetensors")
    asked = ("convert", "a.safetensors", "b.safetensors", "--from=torch", "--to=haiku")
    status, _, err = run(capsys, *asked, "--nonlinearity=tanh")
    assert (status, err) == (1, "elman: haiku RNN: always applies relu, and this one tanh\n")
    assert run(capsys, *asked)[0] == 0


def test_the_gru_that_resets_before(folder, capsys):
    """Its files say so: Elman's, and a model; a target without it is refused."""
    layer = elman.GRU(3, 4, 2, bidirectional=True, reset_after=False, seed=0)
    layer.save("saved.safetensors")
    assert cli.main(["convert", "saved.safetensors", "m.onnx", "--from=elman"]) == 0
    assert cli.main(["convert", "m.onnx", "--list"]) == 0
    assert "GRU, reset before the product, 2 layers, 2 directions" in capsys.readouterr().out
    assert cli.main(["convert", "m.onnx", "back.safetensors", "--to=elman"]) == 0
    back = elman.load("back.safetensors")
    assert repr(back) == repr(layer)
    assert_all_same_bits(back.state_dict(), layer.state_dict())
    assert cli.main(["convert", "m.onnx", "torch.safetensors", "--to=torch"]) == 1
    assert "and this one before the recurrent product" in capsys.readouterr().err
    assert not os.path.exists("torch.safetensors")


def before(framework, **options):
    """A GRU that resets before, and its tensors in another framework."""
    layer = elman.GRU(3, 4, reset_after=False, seed=0, **options)
    return layer, convert(layer.state_dict(), "elman", framework, reset_after=False)


def test_a_gru_whose_file_does_not_tell_where_it_resets(folder, capsys):
    """It is taken for one kind, with a note, and for the other where that is said."""
    layer, tensors = before("onnx")
    others = convert(lstm().state_dict(), "torch", "onnx")
    save_file(under("a", tensors) | under("b", others), "a.safetensors")
    asked = ("convert", "a.safetensors", "b.safetensors", "--from=onnx", "--to=elman", "--layer=a")
    _, out, _ = run(capsys, *asked)
    assert "note   onnx GRU: taken for reset_after=True, which its tensors do not tell\n" in out
    status, out, _ = run(capsys, *asked, "--no-reset-after", "--force")
    assert (status, "note   onnx" in out) == (0, False)
    back = elman.load("b.safetensors")
    assert repr(back) == repr(layer)
    assert_all_same_bits(back.state_dict(), layer.state_dict())
    _, out, _ = run(capsys, "convert", "a.safetensors", "--from=onnx", "--list", "--no-reset-after")
    assert out.startswith("a: GRU, reset before the product, 1 layer")
    assert "b: LSTM, 1 layer" in out


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--reset-after"], "the file says reset_after=False, the option True"),
        (
            ["--from=torch"],
            "'a.safetensors' has Elman's GRU of reset_after=False: say --from elman",
        ),
    ],
)
def test_what_the_file_itself_says_of_its_gru_holds(options, why, folder, capsys):
    before("elman")[0].save("a.safetensors")
    asked = ("convert", "a.safetensors", "b.safetensors", "--to=onnx", *options)
    assert run(capsys, *asked) == (1, "", f"elman: {why}\n")
    assert os.listdir() == ["a.safetensors"]


def test_a_file_of_several_layers_of_elmans_says_their_kinds(folder, capsys):
    """Each under its prefix, so that all of it is read again as it was."""
    _, tensors = before("keras", bidirectional=True)
    lstms = convert(lstm().state_dict(), "torch", "keras")
    named = under("m/gru", tensors, "/") | under("m/lstm", lstms, "/")
    save_file(named, "a.safetensors")
    assert (
        cli.main(["convert", "a.safetensors", "b.safetensors", "--from=keras", "--to=elman"]) == 0
    )
    status, _, err = run(capsys, "convert", "b.safetensors", "--list", "--from=torch")
    assert (status, "of reset_after=False: say --from elman" in err) == (1, True)
    _, out, _ = run(capsys, "convert", "b.safetensors", "--list")
    first, second = out.splitlines()[-2:]
    assert first.startswith("m.gru: GRU, reset before the product, 1 layer, 2 directions")
    assert second.startswith("m.lstm: LSTM")
    assert cli.main(["convert", "b.safetensors", "c.safetensors", "--to=keras"]) == 0
    back = load_file("c.safetensors")
    assert back.keys() == named.keys()
    assert_all_same_bits({name: back[name] for name in named}, named)


def test_a_file_of_elmans_says_the_kind_of_cells_and_nonlinearities(folder, capsys):
    save_file(under("a", elman.RNN(3, 4).state_dict()), "a.safetensors")
    asked = ("convert", "a.safetensors", "b.safetensors", "--from=torch", "--to=elman")
    assert cli.main([*asked, "--nonlinearity=relu"]) == 0
    assert cli.main(["convert", "b.safetensors", "c.onnx"]) == 0
    _, out, _ = run(capsys, "convert", "c.onnx", "--list")
    assert out.splitlines()[-1].startswith("layer_0: RNN, relu")
    before("elman")[0].save("d.safetensors")
    assert cli.main(["convert", "d.safetensors", "e.safetensors", "--to=elman", "--cell"]) == 0
    _, out, _ = run(capsys, "convert", "e.safetensors", "--list")
    assert out.splitlines()[-1].startswith("GRUCell, reset before the product")


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a": 3}', "[" * 100_000, "null", '{"a": {"nonlinearity": 3}}']
)
def test_a_file_that_does_not_describe_its_layers(text, folder, capsys):
    save_file(under("a", gru().state_dict()), "a.safetensors", {"elman.layers": text})
    status, _, err = run(capsys, "convert", "a.safetensors", "--list")
    assert status == 1
    assert err.startswith("elman: elman: elman.layers does not describe layers of Elman's: ")


def test_into_a_file_of_elmans(folder, capsys):
    """With its nonlinearity, which weights do not tell; cells are tensors by their names."""
    save_file(elman.RNN(3, 4, seed=0).state_dict(), "rnn.safetensors")
    convert = ["convert", "rnn.safetensors", "out.safetensors", "--from=torch", "--to=elman"]
    assert cli.main(convert) == 1
    assert "nonlinearity, which weights do not tell" in capsys.readouterr().err
    assert cli.main([*convert, "--nonlinearity=relu"]) == 0
    assert repr(elman.load("out.safetensors")) == "RNN(3, 4, nonlinearity='relu')"
    assert cli.main([*convert, "--cell", "--force"]) == 0
    assert load_file("out.safetensors").keys() == elman.RNNCell(3, 4).state_dict().keys()


def test_one_node_of_a_model(folder, capsys):
    pytest.importorskip("onnx", reason="onnx is not installed; models are read and written by it")
    gru().save("a.safetensors")
    run(capsys, "convert", "a.safetensors", "b.onnx", "--from=torch")
    asked = ("convert", "b.onnx", "c.safetensors", "--to=torch", "--layer")
    assert run(capsys, *asked, "layer_0")[0] == 0
    assert load_file("c.safetensors").keys() == gru().state_dict().keys()
    status, _, err = run(capsys, *asked, "other", "--force")
    assert (status, err) == (1, "elman: 'b.onnx' has no layer 'other', but ['layer_0']\n")


# Whole models


def under(prefix, weights, separator="."):
    return {f"{prefix}{separator}{name}": w for name, w in weights.items()}


def whole():
    """A model of three layers, and what it has beside them."""
    others = {"linear.weight": np.ones((2, 4), "float32"), "steps": np.array([7])}
    layers = under("encoder.gru", gru(num_layers=2).state_dict())
    layers |= under("decoder", lstm(dtype="float64").state_dict())
    cell = elman.RNNCell(3, 4, seed=1).state_dict()
    return layers | others | {f"decoder.cell.{name}": w for name, w in cell.items()}


LISTED = """\
decoder: LSTM, 1 layer, 1 direction, input size 3, hidden size 4, float64
decoder.cell: RNNCell, 1 layer, 1 direction, input size 3, hidden size 4, float32
encoder.gru: GRU, 2 layers, 1 direction, input size 3, hidden size 4, float32
2 tensors of no recurrent layer
"""


def test_a_list_of_layers(folder, capsys):
    save_file(whole(), "a.safetensors")
    status, out, err = run(capsys, "convert", "a.safetensors", "--list", "--from=torch")
    assert (status, sorted(out.splitlines()), err) == (0, sorted(LISTED.splitlines()), "")
    assert os.listdir() == ["a.safetensors"]
    status, out, _ = run(capsys, "convert", "a.safetensors", "--list", "--from=keras")
    assert (status, out) == (0, "18 tensors of no recurrent layer\n")


def test_every_layer_under_its_prefix(folder, capsys):
    save_file(whole(), "a.safetensors")
    asked = ("convert", "a.safetensors", "b.safetensors", "--from=torch", "--to=keras")
    status, _, err = run(capsys, *asked)
    why = "elman: encoder.gru: keras GRU: cannot hold num_layers=2"
    assert (status, err[: len(why)], os.listdir()) == (1, why, ["a.safetensors"])
    status, out, _ = run(capsys, *asked[:-1], "--to=mlx")
    assert status == 0
    lines = sorted(line for line in out.splitlines() if not line.startswith("read"))
    assert lines == [
        "skip   a.safetensors: 2 tensors of no recurrent layer",
        "wrote  b.safetensors: mlx, 14 tensors; biases added up, else exact",
    ]
    assert "read   a.safetensors: decoder.cell: torch RNNCell, 1 layer" in out
    got, want = load_file("b.safetensors"), {}
    for prefix, layer in (("encoder.gru", gru(num_layers=2)), ("decoder", lstm(dtype="float64"))):
        one = convert(layer.state_dict(), "torch", "mlx")
        want |= {f"{prefix}.{name}": w for name, w in one.items()}
    cell = convert(elman.RNNCell(3, 4, seed=1).state_dict(), "torch", "mlx")
    want |= {f"decoder.cell.{name}": w for name, w in cell.items()}
    assert got.keys() == want.keys()
    for name, a in want.items():
        np.testing.assert_array_equal(got[name], a)


def test_one_layer_of_many(folder, capsys):
    """It has the names of one alone, and what there is of others is not looked at."""
    broken = {"other.weight_hh_l0": np.ones((12, 4)), "encoder.gru.bias_hh_l7": np.ones(3)}
    save_file(whole() | broken, "a.safetensors")
    asked = ("convert", "a.safetensors", "b.safetensors", "--from=torch", "--to=haiku", "--layer")
    status, out, _ = run(capsys, *asked, "decoder")
    assert status == 0
    assert "skip" not in out
    assert load_file("b.safetensors").keys() == {"lstm/linear/w", "lstm/linear/b"}
    status, _, err = run(capsys, *asked, "encoder", "--force")
    why = "elman: 'a.safetensors' has no layer 'encoder', but ['encoder.gru']\n"
    assert (status, err) == (1, why)
    status, _, err = run(capsys, *asked[:-1], "--force")
    assert (status, "'other.weight_hh_l0'] are called as a recurrent layer's" in err) == (1, True)
    save_file(whole(), "a.safetensors")
    status, _, err = run(capsys, *asked, "none", "--force")
    why = "has no layer 'none', but ['decoder', 'decoder.cell', 'encoder.gru']\n"
    assert (status, err) == (1, f"elman: 'a.safetensors' {why}")
    pytest.importorskip("onnx", reason="onnx is not installed; models are written by it")
    status, _, err = run(capsys, "convert", "a.safetensors", "b.onnx", "--from=torch")
    assert (status, err.startswith("elman: a model holds one layer; --layer says")) == (1, 1)
    asked = ("convert", "a.safetensors", "b.onnx", "--from=torch", "--layer", "encoder.gru")
    assert run(capsys, *asked)[0] == 0
    assert run(capsys, "convert", "b.onnx", "c.safetensors", "--to=torch")[0] == 0
    assert load_file("c.safetensors").keys() == gru(num_layers=2).state_dict().keys()


def test_prefixes_have_the_targets_separators(folder, capsys):
    save_file(
        under("encoder.gru", gru().state_dict()) | under("decoder", gru().state_dict()),
        "a.safetensors",
    )
    asked = ("convert", "a.safetensors", "b.safetensors", "--from=torch", "--to=keras")
    assert run(capsys, *asked)[0] == 0
    assert {name.rpartition("/")[0] for name in load_file("b.safetensors")} == {
        "encoder/gru/gru_cell",
        "decoder/gru_cell",
    }
    asked = ("convert", "b.safetensors", "c.safetensors", "--from=keras", "--to=torch")
    assert run(capsys, *asked)[0] == 0
    assert load_file("c.safetensors").keys() == load_file("a.safetensors").keys()
    twice = load_file("b.safetensors")
    twice |= {n.replace("encoder/gru/", "encoder.gru/"): w for n, w in twice.items()}
    save_file(twice, "b.safetensors")
    status, _, err = run(capsys, *asked, "--force")
    assert status == 1
    assert "encoder.gru.weight_ih_l0 would be there twice" in err


def test_stacks_are_joined_where_the_target_has_such(folder, capsys):
    of = convert(gru(num_layers=2, bidirectional=True).state_dict(), "torch", "torch")
    parts = [{n.replace("_l1", "_l0"): w for n, w in of.items() if f"_l{k}" in n} for k in range(2)]
    model = {}
    for part, name in zip(parts, ("m/bidirectional", "m/bidirectional_1"), strict=True):
        layer = convert(part, "torch", "keras")
        model |= {f"{name}/{n}": w for n, w in layer.items()}
    save_file(model, "a.safetensors")
    asked = ("convert", "a.safetensors", "b.safetensors", "--from=keras")
    status, out, _ = run(capsys, *asked, "--to=torch")
    assert status == 0
    assert "m/bidirectional: keras GRU, 2 layers, 2 directions" in out
    assert "note   taken for layers of one another" in out
    got = load_file("b.safetensors")
    assert len(got) == len(of)
    for name, w in of.items():
        np.testing.assert_array_equal(got[f"m.bidirectional.{name}"], w)
    status, out, _ = run(capsys, *asked, "--to=keras", "--force")
    assert status == 0
    assert load_file("b.safetensors").keys() == model.keys()
    asked = (*asked, "--to=torch", "--force", "--layer", "m/bidirectional_1")
    assert run(capsys, *asked)[0] == 0
    for name, w in parts[1].items():
        np.testing.assert_array_equal(load_file("b.safetensors")[name], w)


def test_layers_of_a_model(folder, capsys):
    """Their names are paths, and one that cannot be read does not hide the others."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed; models are read by it")
    gru().save("a.safetensors")
    run(capsys, "convert", "a.safetensors", "b.onnx", "--from=torch")
    model = onnx.load("b.onnx")
    (node,) = (node for node in model.graph.node if node.op_type == "GRU")
    for name in ("/decoder/gru", "clipped"):
        other = model.graph.node.add()
        other.CopyFrom(node)
        other.name, other.input[0] = name, "x"
        other.output[:] = [f"{name} Y", f"{name} Y_h"]
    other.attribute.append(onnx.helper.make_attribute("clip", 1.0))
    onnx.save(model, "b.onnx")
    status, out, _ = run(capsys, "convert", "b.onnx", "--list")
    assert (status, out) == (
        0,
        "layer_0: GRU, 1 layer, 1 direction, input size 3, hidden size 4, float32\n"
        "/decoder/gru: GRU, 1 layer, 1 direction, input size 3, hidden size 4, float32\n"
        "clipped: cannot be read: onnx: GRU node 'clipped': has clip, which no other framework "
        "has\n",
    )
    asked = ("convert", "b.onnx", "c.safetensors", "--to=torch")
    status, _, err = run(capsys, *asked)
    assert (status, "GRU node 'clipped': has clip" in err) == (1, True)
    assert run(capsys, *asked, "--layer=/decoder/gru")[0] == 0
    assert load_file("c.safetensors").keys() == gru().state_dict().keys()
    del model.graph.node[-1]
    onnx.save(model, "b.onnx")
    assert run(capsys, *asked, "--force")[0] == 0
    prefixes = {name.rpartition(".")[0] for name in load_file("c.safetensors")}
    assert prefixes == {"layer_0", "decoder.gru"}


def test_notes_of_a_target_alone(folder, capsys):
    """What a GRU's node must have does not concern whoever reads one."""
    pytest.importorskip("onnx", reason="onnx is not installed; models are read and written by it")
    gru().save("a.safetensors")
    _, out, _ = run(capsys, "convert", "a.safetensors", "b.onnx", "--from=torch")
    assert "note   the GRU node has linear_before_reset=1\n" in out
    _, out, _ = run(capsys, "convert", "b.onnx", "c.safetensors", "--to=keras")
    assert "note" not in out


# Files that stay as they are


def test_nothing_is_overwritten_without_force(folder, capsys):
    gru().save("a.safetensors")
    (folder / "b.safetensors").write_bytes(b"mine")
    asked = ("convert", "a.safetensors", "b.safetensors", "--from=torch", "--to=mlx")
    assert run(capsys, *asked) == (
        1,
        "",
        "elman: 'b.safetensors' is there already; --force overwrites it\n",
    )
    assert (folder / "b.safetensors").read_bytes() == b"mine"
    assert run(capsys, *asked, "--force")[0] == 0
    assert load_file("b.safetensors").keys() == {"Wx", "Wh", "b", "bhn"}


def test_a_link_that_leads_nowhere_is_there_already(folder, capsys):
    gru().save("a.safetensors")
    os.symlink("nowhere", "b.safetensors")
    asked = ("convert", "a.safetensors", "b.safetensors", "--from=torch", "--to=mlx")
    assert run(capsys, *asked)[0] == 1
    assert os.path.islink("b.safetensors")


def test_a_file_may_be_converted_in_place(folder, capsys):
    gru().save("a.safetensors")
    asked = ("convert", "a.safetensors", "a.safetensors", "--from=torch", "--to=keras")
    assert run(capsys, *asked)[0] == 1
    assert run(capsys, *asked, "--force")[0] == 0
    assert "gru_cell/kernel" in load_file("a.safetensors")


@pytest.mark.parametrize("target", ["b.safetensors", "b.onnx"])
@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_write_that_fails_leaves_all_as_it_was(
    target, there, function, folder, capsys, monkeypatch
):
    if target.endswith(".onnx"):
        pytest.importorskip("onnx", reason="onnx is not installed; models are written by it")
    gru().save("a.safetensors")
    if there:
        (folder / target).write_bytes(b"mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_, **__):
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(os, function, fail)
        asked = ("convert", "a.safetensors", target, "--from=torch", "--to=onnx", "--force")
        status, _, err = run(capsys, *asked)
    assert (status, err) == (1, "elman: disk full\n")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def hostile():
    """Files that are no weights, and a safetensors file cut and changed in many places."""
    header = b'{"w":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}'
    yield from (b"", b"garbage", b"\x80\x04\x95", bytes(100), b"\xff" * 100)
    yield len(header).to_bytes(8, "little") + header + bytes(8)
    yield (2**62).to_bytes(8, "little") + header
    path = "whole.safetensors"
    gru().save(path)
    with open(path, "rb") as file:
        data = file.read()
    os.unlink(path)
    yield from (data[:size] for size in (1, 8, 100, len(data) // 2, len(data) - 1))
    yield data.replace(b'"F32"', b'"F64"')
    yield data.replace(b'"F32"', b'"BF1"')
    yield data.replace(b"[12,4]", b"[-1,4]")
    yield data.replace(b"[12,4]", b"[4,12]")


def test_hostile_files(folder, capsys):
    for data in hostile():
        (folder / "a.safetensors").write_bytes(data)
        status, out, err = run(
            capsys, "convert", "a.safetensors", "b.safetensors", "--from=torch", "--to=mlx"
        )
        assert (status, out) == (1, "")
        assert err.startswith("elman: ")
        assert err.count("\n") == 1
        assert os.listdir() == ["a.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("missing.safetensors", "b.safetensors", "--from=torch", "--to=mlx"), "missing.safetens"),
        (
            ("a.safetensors", "no/b.safetensors", "--from=torch", "--to=mlx"),
            "No such file or directory: 'no/b.safetensors'",
        ),
        (("a.safetensors", "b.safetensors", "--from=keras", "--to=mlx"), "keras: expected the"),
        (("a.safetensors", "b.safetensors", "--from=torch", "--to=flax-nnx"), "b_hn"),
        (("a.safetensors", "b.safetensors", "--from=torch", "--to=mlx", "--cell"), "no cells"),
        (
            ("a.safetensors", "b.safetensors", "--from=torch", "--to=mlx", "--nonlinearity=relu"),
            "--nonlinearity relu: the source is of kind GRU",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(arguments, why, folder, capsys):
    gru().save("a.safetensors")
    status, _, err = run(capsys, "convert", *arguments)
    assert status == 1
    assert err.startswith("elman: ")
    assert why in err
    assert err.count("\n") == 1
    assert os.listdir() == ["a.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "required: command"),
        (("invert",), "invalid choice"),
        (("convert", "a.safetensors"), "required: target"),
        (("convert", "a.safetensors", "b.safetensors", "--to=mlx"), "--from is needed"),
        (("convert", "a.safetensors", "b.safetensors", "--from=mlx"), "--to is needed"),
        (("convert", "a.safetensors", "b.safetensors", "--from=jax", "--to=mlx"), "invalid choice"),
        (("convert", "a.npz", "b.safetensors", "--from=torch", "--to=mlx"), "'a.npz' must end in"),
        (
            ("convert", "a.pt", "b.pt", "--from=torch", "--to=mlx"),
            "'b.pt' must end in .safetensors",
        ),
        (("convert", "a.onnx", "b.safetensors", "--from=torch", "--to=mlx"), "is of onnx, not of"),
        (("convert", "a.pt", "b.safetensors", "--from=mlx", "--to=mlx"), "is of torch, not of mlx"),
        (("convert", "a.h5", "b.onnx", "--from=mlx"), "is of keras, not of mlx"),
        (("convert", "a.safetensors", "--list"), "--from is needed"),
        (("convert", "a.pt", "b.onnx", "--list"), "--list writes nothing"),
    ],
)
def test_a_command_that_is_none(arguments, why, folder, capsys):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert why in err


def test_a_type_that_numpy_does_not_have(folder, capsys):
    header = b'{"w":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}'
    data = len(header).to_bytes(8, "little") + header + bytes(4)
    (folder / "a.safetensors").write_bytes(data)
    status, _, err = run(
        capsys, "convert", "a.safetensors", "b.safetensors", "--from=torch", "--to=mlx"
    )
    assert status == 1
    assert err.startswith("elman: convert: 'a.safetensors' holds a type that NumPy does not have")


def test_an_error_is_one_line_whatever_is_in_it(folder, capsys):
    names = ("no\nsuch.safetensors", "b.safetensors")
    status, _, err = run(capsys, "convert", *names, "--from=torch", "--to=mlx")
    assert (status, err.count("\n")) == (1, 1)


@pytest.mark.skipif(os.name != "posix", reason="names of any bytes are POSIX's")
def test_names_that_cannot_be_printed(folder):
    """On a terminal that takes only what it can, and does what it is told by an escape."""
    gru().save("a.safetensors")
    target = os.fsdecode(b"\xff\x1b[2J.safetensors")
    code = "import sys; from elman.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["convert", "a.safetensors", target, "--from=torch", "--to=mlx"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\udcff\\x1b[2J.safetensors" in done.stdout
    assert b"\x1b" not in done.stdout
    assert os.path.exists(target)


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_others_may_read_the_file_as_they_may_any_other(folder, capsys):
    gru().save("a.safetensors")
    run(capsys, "convert", "a.safetensors", "b.safetensors", "--from=torch", "--to=mlx")
    (folder / "other").touch()
    assert (folder / "b.safetensors").stat().st_mode == (folder / "other").stat().st_mode


def test_a_package_that_is_missing_is_named(folder, capsys, monkeypatch):
    gru().save("a.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    status, _, err = run(
        capsys, "convert", "a.safetensors", "b.safetensors", "--from=torch", "--to=mlx"
    )
    assert status == 1
    assert err.endswith("pip install safetensors\n")


def test_help_has_an_example_and_every_framework(capsys):
    status, out, _ = run(capsys, "convert", "--help")
    assert status == 0
    assert "elman convert gru.safetensors mlx.safetensors --from torch --to mlx" in out
    assert "elman convert lstm.safetensors lstm.onnx --from keras" in out
    assert ", ".join(FRAMEWORKS) in out
    assert "elman convert model.pt --list" in out
    status, out, _ = run(capsys, "--help")
    assert status == 0
    assert "elman convert gru.safetensors mlx.safetensors --from torch --to mlx" in out
    assert run(capsys, "--version") == (0, f"elman {elman.__version__}\n", "")


def test_info(capsys):
    status, out, _ = run(capsys, "info")
    rows = dict(line.split("  ", 1) for line in out.splitlines())
    rows = {name: value.strip() for name, value in rows.items()}
    assert status == 0
    assert rows["elman"] == elman.__version__
    assert rows["threads"] == str(elman.get_num_threads())
    assert rows["instruction set"] in ("portable", "avx2", "avx512", "neon")
    assert rows["package for numpy"] == np.__version__
    assert rows["processor"]
    assert re.match(r"[1-9]\d* GFLOP/s on 1(, |$)", rows["measured"])
    for name in ("torch", "jax", "keras", "mlx", "oneflow"):
        try:
            want = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            want = "not installed"
        assert rows[f"package for {name}"] == want


def test_by_the_module():
    command = [sys.executable, "-m", "elman", "--version"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == f"elman {elman.__version__}\n"


def test_the_command_imports_no_framework():
    code = "import sys; from elman.cli import main; main(['info']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    imported = set(done.stdout.splitlines()[-1].split())
    assert "elman.cli" in imported
    assert not imported & {"torch", "mlx", "oneflow", "safetensors", "onnx"}
