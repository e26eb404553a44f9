"""Whole models: which recurrent layers are found, by names as frameworks and their users make them.

Names are written out here as the frameworks have them; ``test_weights_models.py`` asks them.
"""

import numpy as np
import pytest
from test_weights import D, H, assert_same, fit, weights

import elman.weights
from elman.weights import FRAMEWORKS, ConversionError, convert, find, to_canonical
from elman.weights.find import join


def under(prefix, of, separator="."):
    return {f"{prefix}{separator}{name}": w for name, w in of.items()}


def summary(found):
    return [(f.prefix, str(f.spec), f.spec.num_layers, f.spec.directions, f.cell) for f in found]


OTHERS = {  # what a model has beside recurrent layers
    "embedding.weight": np.ones((5, 3), "float16"),
    "linear.bias": np.ones(4),
    "attention.in_proj_weight": np.ones((12, 4)),
    "norm.num_batches_tracked": np.array(3),
    "steps": 7,
    "nothing": None,
}


# What is found


def test_every_layer_with_its_prefix():
    gru, lstm = weights(layers=2, directions=2), weights("LSTM", dtype="float64", proj_size=2)
    one = {name.removesuffix("_l0"): w for name, w in weights("RNN", bias=False).items()}
    model = OTHERS | under("encoder.gru", gru) | under("decoder", lstm) | under("decoder.cell", one)
    found = find(model, "torch")
    assert summary(found) == [
        ("encoder.gru", "GRU", 2, 2, False),
        ("decoder", "LSTM", 1, 1, False),
        ("decoder.cell", "RNN", 1, 1, True),
    ]
    assert [f.dtype for f in found] == ["float32", "float64", "float32"]
    assert [f.spec.input_size for f in found] == [D] * 3
    assert [f.spec.proj_size for f in found] == [0, 2, 0]
    assert [str(f) for f in found] == [
        "encoder.gru: GRU, 2 layers, 2 directions, input size 3, hidden size 4, float32",
        "decoder: LSTM, 1 layer, 1 direction, input size 3, hidden size 4, projection size 2, "
        "float64",
        "decoder.cell: RNNCell, 1 layer, 1 direction, input size 3, hidden size 4, no biases, "
        "float32",
    ]
    for layer, of in zip(found, (gru, lstm, one), strict=True):
        assert_same(convert(layer.tensors, "torch", "oneflow"), of)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_framework(framework):
    """Two layers of different kinds, under prefixes of a user's own."""
    kinds = {"equinox": ("GRU", "LSTM"), "flax-nnx-optimized": ("LSTM",)}
    separator = FRAMEWORKS[framework].separator
    model, wanted = dict(OTHERS), {}
    for kind in kinds.get(framework, ("GRU", "LSTM", "RNN")):
        of = fit(weights(kind), framework) if kind == "GRU" else weights(kind)
        of = convert(of, "torch", framework)
        wanted[separator.join(["model", f"the {kind}"])] = of
        model |= under(separator.join(["model", f"the {kind}"]), of, separator)
    found = find(model, framework)
    assert len(found) == len(wanted)
    for layer, (prefix, of) in zip(found, wanted.items(), strict=True):
        assert layer.prefix.startswith(prefix)
        assert (layer.spec.input_size, layer.spec.hidden_size) == (D, H)
        assert_same(convert(layer.tensors, framework, framework), of)


def test_nothing_is_found():
    assert find(OTHERS, "torch") == []
    assert find({}, "keras") == []


def test_tensors_are_those_given():
    """Of ONNX, whose directions are cut apart to be read, too."""
    of = convert(weights(layers=2, directions=2), "torch", "onnx")
    (layer,) = find(under("a.b", of) | OTHERS, "onnx")
    assert (layer.prefix, layer.spec.num_layers, layer.spec.directions) == ("a.b", 2, 2)
    assert_same(layer.tensors, under("a.b", of))


def test_peepholes_in_a_whole_model():
    of = under("a", convert(weights("LSTM"), "torch", "onnx"))
    assert len(find(of | {"a.P": np.zeros((1, 3 * H), "float32")}, "onnx")) == 1
    with pytest.raises(ConversionError, match=r"onnx: a\.P holds peepholes"):
        find(of | {"a.P": np.ones((1, 3 * H), "float32")}, "onnx")


# What is nearly a layer


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"a.bias_ih_l0": None}, r"torch GRU: weights missing: \['a.bias_ih_l0'\]"),
        ({"a.weight_ih_l1": np.ones((12, 3), "float32")}, r"GRU: a.weight_ih_l1 must have shape"),
        ({"a.weight_hh_l1": np.ones((12, 4))}, r"of one dtype, got \['float32', 'float64'\]"),
        ({"a.weight_hh_l3": np.ones((12, 4), "float32")}, r"'a.weight_hh_l3'\] are called as a re"),
        ({"a.weight_ih_l0": None, "a.weight_ih_l1": None}, r"'a.weight_hh_l0'.*none's by their"),
        ({f"a.{name}": w.astype(int) for name, w in weights().items()}, "of one dtype"),
        ({"a.bias_hh_l0": [[1], [2, 3]]}, "a.bias_hh_l0 is nothing that NumPy reads"),
    ],
)
def test_what_is_nearly_a_layer(change, why):
    of = {n: w for n, w in (under("a", weights(layers=2)) | change).items() if w is not None}
    with pytest.raises(ConversionError, match=why):
        find(of, "torch")


def test_names_like_a_layers_with_other_axes_are_passed_over():
    """Keras's ConvLSTM has a recurrent_kernel too."""
    of = {"c/kernel": np.ones((3, 3, 2, 16)), "c/recurrent_kernel": np.ones((3, 3, 4, 16))}
    assert find(of | {"c/bias": np.ones(16)}, "keras") == []


def test_what_find_does_not_take():
    with pytest.raises(ConversionError, match="expected arrays by name"):
        find([1], "torch")
    with pytest.raises(ConversionError, match="names must be strings, got 1"):
        find({1: np.ones(3)}, "torch")
    with pytest.raises(ConversionError, match="no framework 'jax'"):
        find({}, "jax")


# One prefix is taken, two are not


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_one_prefix_is_taken(framework):
    of = weights("LSTM") if framework == "flax-nnx-optimized" else fit(weights(), framework)
    of = convert(of, "torch", framework)
    separator = FRAMEWORKS[framework].separator
    named = under("my model", of, separator)
    assert_same(convert(named, framework, framework), of)


def test_two_prefixes_are_not():
    two = under("a", weights()) | under("b", weights("LSTM"))
    with pytest.raises(ConversionError, match=r"got those of 2, .*\['a', 'b'\]; elman.weights.fi"):
        convert(two, "torch", "mlx")
    with pytest.raises(ConversionError, match=r"torch GRU: .*unexpected: \['steps'\]"):
        convert(under("a", weights()) | {"steps": np.float32(7)}, "torch", "mlx")


# MLX: its own names, and those of elman.mlx's layers


def test_layers_and_directions_of_mlx():
    of = convert(weights(layers=2, directions=2), "torch", "mlx")
    parts = [f"layers{end}.{k}." for k in range(2) for end in ("", "_reverse")]
    assert list(of) == [f"{part}{t}" for part in parts for t in ("Wx", "Wh", "b", "bhn")]
    (layer,) = find(under("encoder", of), "mlx")
    assert summary([layer]) == [("encoder", "GRU", 2, 2, False)]
    one = convert(weights(directions=2), "torch", "mlx")
    assert list(one) == [f"{part}{t}" for part in parts[:2] for t in ("Wx", "Wh", "b", "bhn")]
    assert list(convert(weights(layers=2, bias=False), "torch", "mlx")) == [
        f"layers.{k}.{t}" for k in range(2) for t in ("Wx", "Wh")
    ]


def test_a_list_of_mlxs_layers_is_no_one_layer():
    """Such as a Sequential's, of other kinds or sizes, or with others between."""
    gru, lstm = (convert(weights(kind), "torch", "mlx") for kind in ("GRU", "LSTM"))
    for second, number in ((lstm, 1), (gru, 1), (gru, 2)):
        model = under("layers.0", gru) | under(f"layers.{number}", second)
        assert [f.prefix for f in find(model, "mlx")] == ["layers.0", f"layers.{number}"]
    above = convert(weights(input_size=H), "torch", "mlx")
    (layer,) = find(under("layers.0", gru) | under("layers.1", above), "mlx")
    assert layer.spec.num_layers == 2


# Keras, of any age


def keras_names(before, cell, end=""):
    return {t: f"{before}{cell}{t}{end}" for t in ("kernel", "recurrent_kernel", "bias")}


def keras(kind="GRU", **sizes):
    of = convert(weights(kind, **sizes), "torch", "keras")
    return {name.rpartition("/")[2]: w for name, w in of.items()}


@pytest.mark.parametrize("end", ["", ":0"])
@pytest.mark.parametrize("cell", ["gru_cell/", "gru_cell_3/", "cell/", ""])
@pytest.mark.parametrize("layer", ["gru/", "c/", "gru_1/", "gru_cell_of_mine/", "model/a b/gru/"])
@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
def test_layers_of_any_name(kind, layer, cell, end):
    """The shapes alone tell the kind."""
    names, of = keras_names(layer, cell, end), keras(kind)
    given = {names[tensor]: w for tensor, w in of.items()}
    assert_same(convert(given, "keras", "torch"), convert(of, "keras", "torch", cell=False))
    assert [f.prefix for f in find(given, "keras")] == [layer[:-1]]
    given[names["bias"]] = given[names["bias"]][..., :-1]
    with pytest.raises(ConversionError) as error:
        convert(given, "keras", "torch")
    assert f": {names['bias']} must have shape" in str(error.value)
    kernel = given.pop(names["kernel"])
    with pytest.raises(ConversionError, match="keras: expected the weights of a recurrent layer"):
        convert(given, "keras", "torch")
    given |= {names["kernel"]: kernel, f"{layer}other{end}": kernel}
    with pytest.raises(ConversionError) as error:
        convert(given, "keras", "torch")
    assert f"unexpected: ['{layer}other{end}']" in str(error.value)


@pytest.mark.parametrize(
    ("outer", "inner", "end"),
    [
        ("bidirectional", "{}_gru/gru_cell", ""),
        ("bidirectional_1", "{}_gru_7/gru_cell_3", ":0"),
        ("bidirectional", "{}_c", ":0"),
        ("model/layers/bidirectional", "{}_layer/cell", ""),
        ("", "{}_gru/gru_cell", ""),
    ],
)
def test_two_directions_of_any_name(outer, inner, end):
    of = convert(weights(directions=2), "torch", "keras")
    given = {}
    for name, w in of.items():
        way = name.partition("_")[0]
        given["/".join(filter(None, [outer, inner.format(way), name.rpartition("/")[2]])) + end] = w
    assert_same(convert(given, "keras", "keras"), of)
    (layer,) = find(given, "keras")
    assert (layer.prefix, layer.spec.directions) == (outer, 2)
    missing = next(name for name in given if "backward" in name and "bias" in name)
    del given[missing]
    with pytest.raises(ConversionError) as error:
        convert(given, "keras", "torch")
    assert f"missing: ['{missing}']" in str(error.value)


def test_an_optimisers_averages_are_no_layer():
    """As a file of Keras 2 has them beside the model's."""
    of = keras()
    names = keras_names("gru/", "gru_cell/", ":0")
    model = {f"model_weights/gru/{names[t]}": w for t, w in of.items()}
    adams = {f"optimizer_weights/Adam/{a}/{names[t]}": w for a in "mv" for t, w in of.items()}
    (layer,) = find(model | adams, "keras")
    assert layer.prefix == "model_weights/gru/gru"
    assert find(adams, "keras") == []


def test_one_of_two_directions():
    """As ``bidirectional.forward_layer`` has it, or a layer of such a name."""
    of = {f"forward_gru/gru_cell/{t}": w for t, w in keras().items()}
    assert convert(of, "keras", "torch")["weight_ih_l0"].shape == (3 * H, D)
    assert [f.prefix for f in find(of, "keras")] == ["forward_gru"]


def as_cudnn(w, gates):
    """Keras's kernel (D, G) as CuDNNGRU has it: what cuDNN reads in order are (H, D) matrices."""
    rows, units = w.shape[0], w.shape[1] // gates
    flat = [w[:, k * units : (k + 1) * units].T.ravel() for k in range(gates)]
    return np.concatenate([a.reshape(rows, units) for a in flat], axis=1)


@pytest.mark.parametrize(("kind", "gates"), [("GRU", 3), ("LSTM", 4)])
@pytest.mark.parametrize("sizes", [(D, H), (H, H), (1, 1), (5, 2)])
def test_layers_that_cudnn_computes(kind, gates, sizes):
    """Their biases (6H,) or (8H,) are the input's, then the recurrent ones."""
    of = weights(kind, input_size=sizes[0], hidden_size=sizes[1])
    plain = convert(of, "torch", "keras")
    order = np.concatenate([np.split(np.arange(gates * sizes[1]), gates)[k] for k in (1, 0, 2)])
    order = order if kind == "GRU" else slice(None)
    name = f"{kind.lower()}_cell"
    given = {
        "c/kernel:0": as_cudnn(plain[f"{name}/kernel"], gates),
        "c/recurrent_kernel:0": as_cudnn(plain[f"{name}/recurrent_kernel"], gates),
        "c/bias:0": np.concatenate([of["bias_ih_l0"][order], of["bias_hh_l0"][order]]),
    }
    converted = convert(given, "keras", "torch")
    assert not converted.folded
    assert_same(converted, of)
    assert convert(given, "keras", "keras").keys() == plain.keys()


# Flax


def test_cells_of_a_compact_module():
    of = convert(fit(weights(), "flax-linen"), "torch", "flax-linen", cell=True)
    given = under("GRUCell_0", of)
    assert_same(convert(given, "flax-linen", "flax-linen"), of)
    assert "weight_ih" in convert(given, "flax-linen", "torch")
    assert "weight_ih_l0" in convert(given, "flax-linen", "torch", cell=False)
    with pytest.raises(ConversionError, match=r"missing: \['GRUCell_0.hn.bias'\]"):
        convert({n: w for n, w in given.items() if n != "GRUCell_0.hn.bias"}, "flax-linen", "torch")


# Stacks of layers that are numbered


def keras_layer(name, **options):
    of = convert(weights(**options), "torch", "keras")
    return under(name, of, "/")


def linen_layer(name, **options):
    return under(name, convert(weights(**options), "torch", "flax-linen"))


def haiku_layer(name, **options):
    of = convert(weights("LSTM", **options), "torch", "haiku")
    return {f"{name}/{n.partition('/')[2]}": w for n, w in of.items()}


STACKS = {
    "keras": ("keras", keras_layer, ["model/gru", "model/gru_1", "model/gru_2"]),
    "an older file": (
        "keras",
        keras_layer,
        ["w/gru/m_1/gru", "w/gru_1/m_1/gru_1", "w/gru_2/m_1/gru_2"],
    ),
    "from one": ("keras", keras_layer, ["gru_1", "gru_2", "gru_3"]),
    "a stacked cell": ("keras", keras_layer, ["rnn/gru_cell", "rnn/gru_cell_1", "rnn/gru_cell_2"]),
    "flax": ("flax-linen", linen_layer, ["a.layers_0", "a.layers_1", "a.layers_2"]),
    "compact": ("flax-linen", linen_layer, ["RNN_0", "RNN_1", "RNN_2"]),
}


@pytest.mark.parametrize("name", STACKS)
def test_layers_of_a_stack(name):
    """Layers of their own to find, in any order, and one to convert."""
    source, layer, names = STACKS[name]
    of = [layer(n, input_size=H if k else D) for k, n in enumerate(names)]
    model = {n: w for k in (1, 0, 2) for n, w in of[k].items()}
    assert [f.spec.num_layers for f in find(model, source)] == [1, 1, 1]
    together = convert(model, source, "torch")
    for k, one in enumerate(of):
        for tensor, w in convert(one, source, "torch").items():
            np.testing.assert_array_equal(together[tensor.replace("_l0", f"_l{k}")], w)
    assert len(together) == 12
    joined = [note for note in together.notes if "taken for layers of one another" in note]
    assert bool(joined) == ("layers" not in names[0])
    if joined:
        assert f"'{names[1]}'" in joined[0]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("gru", {}), ("gru_1", {})),  # reads what the first does not give
        (("gru", {}), ("gru_2", {"input_size": H})),
        (("a/gru", {}), ("a_1/gru_1", {"input_size": H})),
        (("m_1/gru", {}), ("m_1/m_1", {"input_size": H})),
        (("encoder", {}), ("decoder", {"input_size": H})),
        (("gru", {}), ("gru_1", {"input_size": H, "bias": False})),
        (("gru", {"dtype": "float64"}), ("gru_1", {"input_size": H})),
        (("gru", {"directions": 2}), ("gru_1", {"input_size": 2 * H})),
        (("gru", {}), ("gru_1", {"input_size": H, "kind": "LSTM"})),
        (("gru", {}), ("gru_1", {"input_size": H, "hidden_size": 5})),
        (("a/gru", {}), ("b/gru_1", {"input_size": H})),
    ],
)
def test_layers_that_are_of_no_stack(first, second):
    model = keras_layer(first[0], **first[1]) | keras_layer(second[0], **second[1])
    found = find(model, "keras")
    assert [f.prefix for f in found] == [first[0], second[0]]
    assert join(found) == found
    with pytest.raises(ConversionError, match=r"got those of 2|of one dtype"):
        convert(model, "keras", "torch")


def test_haikus_layers_are_numbered_under_one_name():
    of = [haiku_layer(f"a/lstm{end}", input_size=size) for end, size in (("", D), ("_1", H))]
    (layer,) = find(of[0] | of[1], "haiku")
    assert (layer.prefix, layer.spec.num_layers) == ("a", 2)
    gru = under("a/gru", {"w_i": np.ones((D, 3)), "w_h": np.ones((1, 3)), "b": np.ones(3)}, "/")
    for model, prefixes in [
        (of[0] | of[1] | gru, ["a/lstm", "a/lstm_1", "a/gru"]),
        (of[0] | haiku_layer("a/lstm_2", input_size=H), ["a/lstm", "a/lstm_2"]),
        (of[1], ["a/lstm_1"]),
        (of[0] | haiku_layer("a/lstm_1", input_size=5), ["a/lstm", "a/lstm_1"]),
        (haiku_layer("lstm"), [""]),
    ]:
        assert [f.prefix for f in find(model, "haiku")] == prefixes


@pytest.mark.parametrize("name", ["encoder", "a/~/b", "gru_of_mine", "lstms/gru"])
def test_haikus_gru_of_any_name(name):
    """Beside Linears, which under such names are nothing else."""
    of = convert(weights(), "torch", "onnx")
    of = convert(of, "onnx", "haiku", reset_after=False)
    named = {f"{name}/{tensor.partition('/')[2]}": w for tensor, w in of.items()}
    assert_same(convert(named, "haiku", "haiku"), of)
    mlp = {"mlp/linear/w": np.ones((D, 4)), "mlp/linear_1/w": np.ones((4, 4))}
    (layer,) = find(named | mlp | {"linear/w": np.ones((D, 4))}, "haiku")
    assert layer.prefix == name.removesuffix("/gru")
    del named[f"{name}/b"]
    with pytest.raises(ConversionError, match=rf"missing: \['{name}/b'\]"):
        convert(named, "haiku", "elman")


def test_two_stacks():
    model = {}
    for k, size in enumerate([D, H, D, H]):
        model |= keras_layer(f"gru_{k}", input_size=size)
    with pytest.raises(ConversionError, match=r"got those of 2, .*\['gru_0', 'gru_2'\]"):
        convert(model, "keras", "torch")


def test_a_stack_where_there_is_none():
    model = keras_layer("gru") | keras_layer("gru_1", input_size=H)
    with pytest.raises(ConversionError, match="equinox GRUCell: cannot hold num_layers=2"):
        convert(model, "keras", "equinox")


def test_the_public_names():
    assert {"find", "Found"} <= set(elman.weights.__all__)
    assert to_canonical(under("a", weights()), "torch").spec.hidden_size == H
