"""ONNX models, read and written; run by ONNX Runtime where it is installed."""

import json
from pathlib import Path

import numpy as np
import pytest
from reference import assert_close, named, parts, state_of

import elman
from elman.weights import ConversionError, convert

onnx = pytest.importorskip(
    "onnx", reason="onnx is not installed; models are read and written by it"
)
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from elman import onnx as models  # noqa: E402

D, H, L, N = 3, 4, 6, 5
CASES = sorted((Path(__file__).parent / "fixtures" / "onnx").glob("*.npz"))
pytestmark = pytest.mark.filterwarnings("ignore")  # of the runtime and of onnx


def layer(kind="GRU", layers=1, directions=1, bias=True, dtype="float32", **options):
    options |= {"bias": bias, "bidirectional": directions == 2, "dtype": dtype, "seed": 0}
    return getattr(elman, kind)(D, H, layers, **options)


def nonlinearity_of(of):
    return of.spec.cell.name.partition("_")[2] if of.spec.cell.kind == "RNN" else ""


def write(of, path):
    told = {"reset_after": of.spec.cell.gated is None} if of.spec.cell.kind == "GRU" else {}
    models.write(path, convert(of.state_dict(), "elman", "onnx", **told), nonlinearity_of(of))


SIZES = [(1, 1), (1, 2), (3, 1), (2, 2)]
LAYERS = [
    *[{"kind": kind, "layers": n, "directions": d} for kind in ("GRU", "LSTM") for n, d in SIZES],
    *[
        {"kind": "RNN", "layers": n, "directions": d, "nonlinearity": nonlinearity}
        for n, d in SIZES
        for nonlinearity in ("tanh", "relu")
    ],
    *[{"layers": n, "directions": d, "reset_after": False} for n, d in SIZES],
    {"layers": 2, "directions": 2, "bias": False},
    {"reset_after": False, "bias": False},
    {"kind": "RNN", "bias": False},
    {"kind": "LSTM", "layers": 2, "bias": False},
    {"dtype": "float64"},
    {"kind": "LSTM", "dtype": "float64"},
]


@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_a_model_is_read_as_it_was_written(options, tmp_path):
    of = layer(**options)
    write(of, tmp_path / "m.onnx")
    model = models.read(tmp_path / "m.onnx")
    assert model.nonlinearity == nonlinearity_of(of)
    assert model.notes == []
    back = convert(model.tensors, "onnx", "elman", reset_after=model.reset_after)
    loaded = models.load(tmp_path / "m.onnx")
    assert repr(loaded) == repr(of)
    assert loaded.state_dict().keys() == of.state_dict().keys()
    for name, w in of.state_dict().items():
        np.testing.assert_array_equal(loaded.state_dict()[name], w)
    assert back.keys() == of.state_dict().keys()
    for name, w in of.state_dict().items():
        np.testing.assert_array_equal(back[name], w)
        assert back[name].dtype == w.dtype


@pytest.mark.parametrize("options", [o for o in LAYERS if "dtype" not in o], ids=str)
def test_a_model_computes_what_the_layer_does(options, tmp_path):
    of = layer(**options)
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    write(of, tmp_path / "m.onnx")
    session = runtime.InferenceSession(tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    names = [value.name for value in session.get_outputs()]
    assert names == ["output", *(f"{state}_n" for state in of.spec.cell.states)]
    for steps, rows in ((L, N), (1, 1), (9, 2)):  # as many steps and rows as one likes
        x = rng.normal(size=(steps, rows, D)).astype("float32")
        state = state_of(of.spec, (rows,), lambda shape: rng.normal(size=shape).astype("float32"))
        lengths = np.arange(rows, dtype=np.int32) % (steps + 1)
        lengths[-1] = steps
        assert rows < 2 or lengths[0] == 0  # such a row ends as it began
        for first in (None, state):
            for extent in ({}, {"lengths": lengths}):
                given = extent if first is None else extent | named(first, "0")
                got = session.run(names, {"x": x, **given})
                output, last = of(x, first, **extent)
                for name, a, want in zip(names, got, (output, *parts(last)), strict=True):
                    assert_close(a, want, "float32", f"{name} of {given.keys()}")


def test_one_of_two_states(tmp_path):
    """The other is zeros."""
    of = layer("LSTM", 2)
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    write(of, tmp_path / "m.onnx")
    session = runtime.InferenceSession(tmp_path / "m.onnx")
    x, c_0 = (np.random.default_rng(0).normal(size=s).astype("f4") for s in ((L, N, D), (2, N, H)))
    got = session.run(None, {"x": x, "c_0": c_0})
    output, last = of(x, (np.zeros_like(c_0), c_0))
    for a, want in zip(got, (output, *last), strict=True):
        assert_close(a, want)


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_a_model_of_float64_computes_what_the_layer_does(kind, tmp_path):
    """In onnx's own evaluator; ONNX Runtime has neither node in float64."""
    of = layer(kind, dtype="float64")
    write(of, tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(L, N, D))
    session = ReferenceEvaluator(str(tmp_path / "m.onnx"))
    output, last = of(x)
    for a, want in zip(session.run(None, {"x": x}), (output, *parts(last)), strict=True):
        assert_close(a, want, "float64")


# Models that others wrote


def model(kind="GRU", weights=None, nodes=None, **attributes):
    """A model of one node with these attributes, or of these nodes."""
    weights = convert(layer(kind).state_dict(), "torch", "onnx") if weights is None else weights
    if kind == "GRU":
        attributes.setdefault("linear_before_reset", 1)
    inputs = ["x", *(name if name in weights else "" for name in ("W", "R", "B"))]
    inputs += ["", "", "", "P"] if "P" in weights else []
    own = helper.make_node(kind, inputs, ["Y", "Y_h"], name="own", hidden_size=H, **attributes)
    element = helper.np_dtype_to_tensor_dtype(weights["W"].dtype)
    graph = helper.make_graph(
        [own] if nodes is None else nodes,
        "graph",
        [helper.make_tensor_value_info("x", element, ["L", "N", weights["W"].shape[2]])],
        [helper.make_tensor_value_info("Y", element, ["L", "directions", "N", H])],
        [numpy_helper.from_array(w, name) for name, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def read(of, tmp_path, node=None):
    (tmp_path / "m.onnx").write_bytes(of.SerializeToString())
    return models.read(tmp_path / "m.onnx", node)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_recorded_nodes(path, tmp_path):
    """Each recorded node as a model: read, or refused for what no other framework has."""
    with np.load(path) as file:
        arrays = dict(file)
    meta = json.loads(str(arrays["meta"]))
    attributes, kind = dict(meta["args"]), meta["class"].removeprefix("onnx.")
    attributes.pop("hidden_size")
    weights = {name[7:]: a for name, a in arrays.items() if name.startswith("weight.")}
    node = helper.make_node(
        kind, ["x", *weights], ["Y", "Y_h"], name="own", hidden_size=20, **attributes
    )
    of = model(kind, weights, nodes=[node])
    if "clip" in attributes:
        why = "clip"
    elif "relu" in path.stem and kind == "GRU":
        why = "activations"
    else:
        found = read(of, tmp_path)
        assert found.tensors.keys() == weights.keys()
        for name, a in weights.items():
            np.testing.assert_array_equal(found.tensors[name], a)
        assert found.nonlinearity == (path.stem.split("_")[1] if kind == "RNN" else "")
        assert bool(found.notes) == found.reverse == (attributes["direction"] == "reverse")
        assert found.reset_after == ("lbr1" in path.stem if kind == "GRU" else None)
        return
    with pytest.raises(ConversionError, match=why):
        read(of, tmp_path)


def test_onnxs_default_resets_before(tmp_path):
    assert read(model(), tmp_path).reset_after
    assert read(model(linear_before_reset=0), tmp_path).reset_after is False
    graph = model()
    del graph.graph.node[0].attribute[:]
    assert read(graph, tmp_path).reset_after is False


def test_a_reverse_node_is_read_and_that_is_said(tmp_path):
    (note,) = read(model(direction="reverse"), tmp_path).notes
    assert "from the last step to the first" in note
    with pytest.raises(ConversionError, match=r"^onnx: GRU of .*m\.onnx' runs from the last step"):
        models.load(tmp_path / "m.onnx")


def test_which_gru_is_written(tmp_path):
    """What `convert` was told; tensors alone are of the one that PyTorch has."""
    of = layer(reset_after=False)
    tensors = convert(of.state_dict(), "elman", "onnx", reset_after=False)
    told = {"as converted": {}, "asked for": {"reset_after": True}}
    for how, given in told.items():
        models.write(tmp_path / "m.onnx", tensors, **given)
        assert models.read(tmp_path / "m.onnx").reset_after == (how == "asked for")
    models.write(tmp_path / "m.onnx", dict(tensors))
    assert models.read(tmp_path / "m.onnx").reset_after
    rnns = convert(layer("RNN").state_dict(), "torch", "onnx")
    with pytest.raises(ConversionError, match="onnx RNN: reset_after is of a GRU"):
        models.write(tmp_path / "m.onnx", rnns, "tanh", reset_after=True)


def test_a_node_whose_rows_come_first_is_said_to(tmp_path):
    found = read(model(layout=1), tmp_path)
    assert found.notes == [
        "the node has layout=1: rows come before steps, as with batch_first=True"
    ]
    assert read(model(layout=0), tmp_path).notes == []


def test_options_of_load(tmp_path):
    write(layer(reset_after=False), tmp_path / "m.onnx")
    of = models.load(tmp_path / "m.onnx", batch_first=True, dtype="float64")
    assert repr(of) == "GRU(3, 4, batch_first=True, reset_after=False)"
    assert of.dtype == np.float64


@pytest.mark.parametrize(
    ("kind", "attributes", "why"),
    [
        ("GRU", {"clip": 1.0}, "has clip"),
        ("GRU", {"activations": ["Sigmoid", "Relu"]}, "has activations"),
        ("RNN", {"activations": ["Elu"]}, "has activations"),
        ("RNN", {"direction": "bidirectional", "activations": ["Tanh", "Relu"]}, "has activations"),
        ("LSTM", {"clip": 1.0}, "LSTM node 'own': has clip"),
        ("LSTM", {"input_forget": 1}, "has input_forget=1, so that its forget gate is 1 - i"),
        ("LSTM", {"activations": ["Sigmoid", "Tanh", "Relu"]}, "has activations"),
        ("LSTM", {"activations": ["HardSigmoid", "Tanh", "Tanh"]}, "has activations"),
        ("LSTM", {"activations": ["Sigmoid", "Tanh"]}, "has activations"),
        ("LSTM", {"direction": "bidirectional", "activations": ["Sigmoid", "Tanh", "Tanh"]}, "act"),
    ],
)
def test_what_no_other_framework_has(kind, attributes, why, tmp_path):
    with pytest.raises(ConversionError, match=why):
        read(model(kind, **attributes), tmp_path)


def test_an_lstms_defaults_may_be_said(tmp_path):
    weights = convert(layer("LSTM").state_dict(), "torch", "onnx")
    usual = {"activations": ["Sigmoid", "Tanh", "tanh"], "input_forget": 0}
    for attributes in ({}, usual):
        found = read(model("LSTM", **attributes), tmp_path)
        assert (found.nonlinearity, found.notes) == ("", [])
        assert found.tensors.keys() == weights.keys()
        for name, a in weights.items():
            np.testing.assert_array_equal(found.tensors[name], a)


@pytest.mark.parametrize("biased", [True, False])
def test_peepholes(biased, tmp_path):
    weights = convert(layer("LSTM", bias=biased).state_dict(), "torch", "onnx")
    P = np.zeros((1, 3 * H), "float32")
    assert read(model("LSTM", weights | {"P": P}), tmp_path).tensors.keys() == weights.keys()
    P[0, 2 * H] = np.nan
    with pytest.raises(ConversionError, match="LSTM node 'own': has peepholes"):
        read(model("LSTM", weights | {"P": P}), tmp_path)
    computed = model("LSTM", weights | {"P": P})
    del computed.graph.initializer[-1]
    computed.graph.input.append(helper.make_tensor_value_info("P", TensorProto.FLOAT, P.shape))
    with pytest.raises(ConversionError, match="LSTM node 'own': P is 'P', which the model does no"):
        read(computed, tmp_path)


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_what_torch_itself_exports(kind, tmp_path):
    torch = pytest.importorskip("torch", reason="its own exporter is asked")
    of = getattr(torch.nn, kind)(D, H, 2, bidirectional=True)
    torch.onnx.export(of, (torch.zeros(L, N, D),), tmp_path / "m.onnx", dynamo=False)
    weights = convert(models.read(tmp_path / "m.onnx").tensors, "onnx", "torch")
    assert list(weights) == list(of.state_dict())
    for name, w in of.state_dict().items():
        np.testing.assert_array_equal(weights[name], w.numpy())


def two_nodes(second_input, between=()):
    first = helper.make_node(
        "GRU", ["x", "W", "R"], ["Y_1"], name="a", hidden_size=H, linear_before_reset=1
    )
    second = helper.make_node(
        "GRU", [second_input, "W", "R"], ["Y"], name="b", hidden_size=H, linear_before_reset=1
    )
    weights = {"W": np.ones((1, 3 * H, H), "float32"), "R": np.ones((1, 3 * H, H), "float32")}
    return model(weights=weights, nodes=[first, *between, second])


def test_nodes_that_feed_one_another_are_layers(tmp_path):
    squeeze = helper.make_node("Squeeze", ["Y_1"], ["flat"])
    found = read(two_nodes("flat", [squeeze]), tmp_path)
    assert list(found.tensors) == ["W_l0", "R_l0", "W_l1", "R_l1"]


def test_nodes_that_do_not_are_read_by_name(tmp_path):
    apart = two_nodes("x")
    with pytest.raises(ConversionError, match=r"nodes \['a', 'b'\] are not layers.*name one"):
        read(apart, tmp_path)
    assert list(read(apart, tmp_path, "b").tensors) == ["W", "R"]
    with pytest.raises(ConversionError, match="no RNN or GRU or LSTM node named 'c'"):
        read(apart, tmp_path, "c")
    computed = two_nodes("changed", [helper.make_node("Tanh", ["Y_1"], ["changed"])])
    with pytest.raises(ConversionError, match="are not layers"):
        read(computed, tmp_path)


def test_layers_that_differ_are_refused(tmp_path):
    of = two_nodes("Y_1")
    of.graph.node[1].attribute.append(helper.make_attribute("direction", "reverse"))
    with pytest.raises(ConversionError, match="must be alike"):
        read(of, tmp_path)


def test_a_model_without_such_nodes(tmp_path):
    of = model(nodes=[helper.make_node("Tanh", ["x"], ["Y"])])
    with pytest.raises(ConversionError, match=r"the model has no RNN or GRU or LSTM node$"):
        read(of, tmp_path)


def test_weights_that_the_model_does_not_store(tmp_path):
    of = model()
    del of.graph.initializer[:]
    of.graph.input.append(helper.make_tensor_value_info("W", TensorProto.FLOAT, [1, 3 * H, D]))
    of.graph.input.append(helper.make_tensor_value_info("R", TensorProto.FLOAT, [1, 3 * H, H]))
    of.graph.input.append(helper.make_tensor_value_info("B", TensorProto.FLOAT, [1, 6 * H]))
    with pytest.raises(ConversionError, match="GRU node 'own': W is 'W', which the model does not"):
        read(of, tmp_path)


# Weights that a model has otherwise than in its initialisers


def constant(name, a):
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(a))


def numbers(name, *values):
    return constant(name, np.array(values))


def by_gates(name, a):
    """As torch's exporter puts the gates in order: slices are joined, and have one more axis."""
    rows = a.shape[1] // 2
    return [
        constant("stored", np.concatenate([a[0, rows:], a[0, :rows]])),
        *(numbers(n, v) for n, v in (("0", 0), ("n", rows), ("end", 2 * rows))),
        helper.make_node("Slice", ["stored", "n", "end", "0"], ["first"]),
        helper.make_node("Slice", ["stored", "0", "n", "0"], ["second"]),
        helper.make_node("Concat", ["first", "second"], ["joined"], axis=0),
        helper.make_node("Unsqueeze", ["joined", "0"], [name]),
    ]


def by_halves(name, a):
    halves = np.split(a, 2, 1)
    return [
        constant("stored", np.concatenate(halves[::-1], 1)),
        helper.make_node("Split", ["stored"], ["second", "first"], axis=1),
        helper.make_node("Concat", ["first", "second"], [name], axis=1),
    ]


def in_numbers(name, a):
    """A scale of 1/64 and whole numbers."""
    return [
        constant("stored", (a * 64).astype("int8")),
        constant("scale", np.float32(1 / 64)),
        helper.make_node("DequantizeLinear", ["stored", "scale"], [name]),
    ]


WAYS = {
    "Constant": lambda name, a: [constant(name, a)],
    "Identity": lambda name, a: [
        constant("stored", a),
        helper.make_node("Identity", ["stored"], ["same"]),
        helper.make_node("Identity", ["same"], [name]),
    ],
    "Transpose": lambda name, a: [
        constant("stored", a.T),
        helper.make_node("Transpose", ["stored"], [name]),
    ],
    "Reshape": lambda name, a: [
        helper.make_node("Constant", [], ["stored"], value_floats=a.ravel().tolist()),
        numbers("shape", *a.shape),
        helper.make_node("Reshape", ["stored", "shape"], [name]),
    ],
    "Squeeze": lambda name, a: [
        constant("stored", a[None]),
        numbers("0", 0),
        helper.make_node("Squeeze", ["stored", "0"], [name]),
    ],
    "Cast": lambda name, a: [
        constant("stored", a.astype("float64")),
        helper.make_node("Cast", ["stored"], [name], to=TensorProto.FLOAT),
    ],
    "DequantizeLinear": in_numbers,
    "CastLike": lambda name, a: [
        constant("stored", a.astype("float16")),
        constant("like", np.float32(0)),
        helper.make_node("CastLike", ["stored", "like"], [name]),
    ],
    "Flatten": lambda name, a: [
        constant("stored", a.ravel()),
        helper.make_node("Flatten", ["stored"], ["flat"], axis=0),
        numbers("shape", *a.shape),
        helper.make_node("Reshape", ["flat", "shape"], [name]),
    ],
    "Gather": lambda name, a: [
        constant("stored", a[:, ::-1]),
        numbers("backwards", *range(a.shape[1])[::-1]),
        helper.make_node("Gather", ["stored", "backwards"], [name], axis=1),
    ],
    "Concat": by_gates,
    "Split": by_halves,
}


def rounded(kind, directions=1):
    """A layer whose weights are whole multiples of 1/64, which every way of storing them keeps."""
    of = layer(kind, directions=directions)
    of.load_state_dict({n: np.round(w * 64) / np.float32(64) for n, w in of.state_dict().items()})
    return of


def otherwise(of, way, name, **attributes):
    """A model of the layer that has one of its weights in nodes, which bring no names twice."""
    kind = type(of).__name__
    proto = model(kind, convert(of.state_dict(), "torch", "onnx"), **attributes)
    (stored,) = (t for t in proto.graph.initializer if t.name == name)
    nodes = [*way(name, numpy_helper.to_array(stored)), *proto.graph.node]
    proto.graph.initializer.remove(stored)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def check_read_and_run(proto, of, tmp_path):
    """The weights are the layer's, and ONNX Runtime, which runs the model, agrees."""
    back = convert(read(proto, tmp_path).tensors, "onnx", "torch")
    assert back.keys() == of.state_dict().keys()
    for name, w in of.state_dict().items():
        np.testing.assert_array_equal(back[name], w)
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    session = runtime.InferenceSession(tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(L, N, D)).astype("float32")
    (got,) = session.run(None, {"x": x})
    want = of(x)[0].reshape(L, N, of.spec.directions, H).swapaxes(1, 2)
    assert_close(got, want)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["W", "R", "B"])
def test_weights_that_nodes_lay_out(way, name, tmp_path):
    for kind in ("GRU", "LSTM"):
        of = rounded(kind)
        proto = otherwise(of, WAYS[way], name)
        check_read_and_run(proto, of, tmp_path)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 21])
def test_nodes_mean_what_they_did_in_the_models_version(opset, tmp_path):
    """Axes are an attribute before 13, and an input since."""
    of = rounded("LSTM")

    def way(name, a):
        old = opset < 13
        axes = {"axes": [0]} if old else {}
        yield constant("stored", a[0])
        yield numbers("0", 0)
        yield helper.make_node("Unsqueeze", ["stored"] if old else ["stored", "0"], [name], **axes)

    proto = otherwise(of, way, "R")
    proto.opset_import[0].version = opset
    check_read_and_run(proto, of, tmp_path)


ZEROS = {
    "ConstantOfShape": lambda name, shape: [
        constant("like", np.ones(shape, "float32")),
        helper.make_node("Shape", ["like"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], [name]),
    ],
    "Expand": lambda name, shape: [
        constant("zero", np.zeros((1, 1), "float32")),
        numbers("shape", *shape),
        helper.make_node("Expand", ["zero", "shape"], [name]),
    ],
}


@pytest.mark.parametrize("way", ZEROS)
def test_biases_of_zeros_that_nodes_make(way, tmp_path):
    of = rounded("GRU")
    biases = {n: np.zeros_like(w) for n, w in of.state_dict().items() if "bias" in n}
    of.load_state_dict(of.state_dict() | biases)
    proto = otherwise(of, lambda name, a: ZEROS[way](name, a.shape), "B")
    check_read_and_run(proto, of, tmp_path)


def test_weights_of_two_directions_that_nodes_lay_out(tmp_path):
    of = rounded("LSTM", directions=2)
    proto = otherwise(of, WAYS["Transpose"], "R", direction="bidirectional")
    check_read_and_run(proto, of, tmp_path)


def within_a_branch(proto, of):
    """The node in both of an If's branches, its W in the branch and the others outside."""
    graph = proto.graph
    (node,) = (n for n in graph.node if n.op_type in ("GRU", "LSTM"))
    weights = convert(of.state_dict(), "torch", "onnx")
    branches = []
    for k, name in enumerate(("then", "else")):
        inner = onnx.NodeProto()
        inner.CopyFrom(node)
        inner.name, inner.input[1] = f"{name} own", "inner W"
        inner.output[:] = [f"Y {name}", f"Y_h {name}"]
        value = helper.make_tensor_value_info(f"Y {name}", TensorProto.FLOAT, None)
        nodes = [constant("inner W", weights["W"] + np.float32(k)), inner]
        branches.append(helper.make_graph(nodes, name, [], [value]))
    both = dict(zip(("then_branch", "else_branch"), branches, strict=True))
    choice = helper.make_node("If", ["yes"], ["Y"], **both)
    others = [n for n in graph.node if n is not node]
    del graph.node[:]
    graph.node.extend([*others, constant("yes", np.array(True)), choice])


def test_a_layer_within_a_branch(tmp_path):
    of = rounded("GRU")
    proto = otherwise(of, WAYS["Concat"], "R")
    within_a_branch(proto, of)
    with pytest.raises(ConversionError, match=r"nodes \['else own', 'then own'\] are not layers"):
        read(proto, tmp_path)
    second, first = models.find(tmp_path / "m.onnx")
    assert (first.name, second.name) == ("then own", "else own")
    assert_same_weights(first.read(), of)
    np.testing.assert_array_equal(second.read().tensors["W"], first.read().tensors["W"] + 1)
    assert_same_weights(models.read(tmp_path / "m.onnx", "then own"), of)
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    x = np.random.default_rng(0).normal(size=(L, N, D)).astype("float32")
    (got,) = runtime.InferenceSession(tmp_path / "m.onnx").run(None, {"x": x})
    assert_close(got[:, 0], of(x)[0])


def assert_same_weights(model, of):
    back = convert(model.tensors, "onnx", "torch")
    for name, w in of.state_dict().items():
        np.testing.assert_array_equal(back[name], w)


def test_a_layer_within_a_function(tmp_path):
    """As torch's newer exporter may write modules."""
    of = rounded("LSTM")
    proto = model("LSTM", convert(of.state_dict(), "torch", "onnx"))
    inputs, body = ["x", "W", "R", "B"], list(proto.graph.node)
    opsets = [helper.make_opsetid("", 17)]
    proto.functions.append(helper.make_function("mine", "layer", inputs, ["Y"], body, opsets))
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    proto.graph.node[0].CopyFrom(helper.make_node("layer", inputs, ["Y"], domain="mine"))
    check_read_and_run(proto, of, tmp_path)


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ([helper.make_node("Tanh", ["stored"], ["W"])], "'W' is computed, by Tanh"),
        ([helper.make_node("Concat", ["stored", "x"], ["W"], axis=1)], "'x' is an input"),
        (
            [helper.make_node("Identity", ["stored"], ["W"], domain="mine")],
            "'W' is computed, by Ide",
        ),
        ([helper.make_node("Concat", ["stored"] * 99, ["W"], axis=1)], "makes .* values of few"),
        (ZEROS["Expand"]("W", (1, 2**20, 2**20)), "makes 1099511627776 values of few"),
        (
            [numbers("s", 2**20, 2**20), helper.make_node("ConstantOfShape", ["s"], ["W"])],
            "makes 1099511627776 values of few",
        ),
        (
            [
                constant("i", np.zeros(99, int)),
                helper.make_node("Gather", ["stored", "i"], ["W"], axis=0),
            ],
            "makes .* values of few",
        ),
        (
            [numbers("s", 5), helper.make_node("Reshape", ["stored", "s"], ["W"])],
            "cannot be read: .*Reshape node .* fails",
        ),
    ],
)
def test_weights_that_are_computed(nodes, why, tmp_path):
    proto = otherwise(layer(), lambda name, a: [constant("stored", a), *nodes], "W")
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    with pytest.raises(ConversionError, match=f"GRU node 'own': W .*{why}"):
        read(proto, tmp_path)


def test_sizes_that_double_again_and_again(tmp_path):
    """What a few nodes would make of little is more than any memory."""

    def way(name, a):
        yield constant("d0", a)
        for k in range(60):
            yield helper.make_node("Concat", [f"d{k}", f"d{k}"], [f"d{k + 1}"], axis=1)
        yield helper.make_node("Identity", ["d60"], [name])

    with pytest.raises(ConversionError, match=r"makes .* values of few"):
        read(otherwise(layer(), way, "W"), tmp_path)


def test_a_chain_of_nodes_without_end(tmp_path):
    def way(name, a):
        yield constant("i0", a)
        for k in range(5000):
            yield helper.make_node("Identity", [f"i{k}"], [f"i{k + 1}"])
        yield helper.make_node("Identity", ["i5000"], [name])

    with pytest.raises(ConversionError, match="W cannot be read: RecursionError"):
        read(otherwise(layer(), way, "W"), tmp_path)


@pytest.mark.parametrize(("kind", "theirs"), [("GRU", "LSTM"), ("LSTM", "GRU"), ("LSTM", "RNN")])
def test_weights_of_another_kind(kind, theirs, tmp_path):
    weights = convert(layer(theirs).state_dict(), "torch", "onnx")
    with pytest.raises(ConversionError, match=f"{kind} node 'own': has {theirs} weights, R of sh"):
        read(model(kind, weights), tmp_path)


# Whole models


def test_every_layer_of_a_model(tmp_path):
    """By names that nodes may lack or share."""
    proto = two_nodes("x")
    for node in proto.graph.node:
        node.name = ""
    read_nothing = tmp_path / "m.onnx"
    read_nothing.write_bytes(proto.SerializeToString())
    assert [found.name for found in models.find(read_nothing)] == ["Y_1", "Y"]
    for node in proto.graph.node:
        node.name = "gru"
    proto.graph.node[1].attribute.append(helper.make_attribute("clip", 1.0))
    read_nothing.write_bytes(proto.SerializeToString())
    first, second = models.find(read_nothing)
    assert (first.name, second.name) == ("gru", "gru#2")
    assert list(first.read().tensors) == ["W", "R"]
    with pytest.raises(ConversionError, match="has clip"):
        second.read()
    write(layer(layers=3), read_nothing)
    assert [found.name for found in models.find(read_nothing)] == ["layer_0"]


# Files that are no models


@pytest.mark.parametrize(
    "data", [b"", b"\x80\x04garbage", bytes(100), b"\xff" * 100, b"hello, world, this is none"]
)
def test_a_file_that_is_no_model(data, tmp_path):
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(ConversionError, match=r"^onnx: '.*m.onnx' is not an ONNX model"):
        models.read(tmp_path / "m.onnx")


def test_part_of_a_model(tmp_path):
    write(layer(), tmp_path / "m.onnx")
    data = (tmp_path / "m.onnx").read_bytes()
    for size in range(0, len(data), 7):
        (tmp_path / "m.onnx").write_bytes(data[:size])
        with pytest.raises(ConversionError):
            models.read(tmp_path / "m.onnx")


def test_tensors_that_lie_about_their_size(tmp_path):
    of = model()
    of.graph.initializer[0].dims[1] = 10**9
    with pytest.raises(ConversionError):
        read(of, tmp_path)


def test_attributes_of_the_wrong_type(tmp_path):
    of = model()
    of.graph.node[0].attribute.append(helper.make_attribute("direction", 3))
    with pytest.raises(ConversionError, match="is not an ONNX model"):
        read(of, tmp_path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        models.read(tmp_path / "m.onnx")


# What is not written


@pytest.mark.parametrize(
    ("kind", "nonlinearity"),
    [("GRU", "tanh"), ("LSTM", "tanh"), ("RNN", ""), ("RNN", "sigmoid"), ("RNN", "Tanh")],
)
def test_a_nonlinearity_that_is_none(kind, nonlinearity, tmp_path):
    tensors = convert(layer(kind).state_dict(), "torch", "onnx")
    with pytest.raises(ConversionError, match=f"onnx {kind}: nonlinearity.*got '{nonlinearity}'"):
        models.write(tmp_path / "m.onnx", tensors, nonlinearity)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["longdouble", "bfloat16"])
def test_a_dtype_that_nodes_do_not_take(dtype, tmp_path):
    dtype = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
    tensors = convert(layer().state_dict(), "torch", "onnx")
    with pytest.raises(ConversionError, match="onnx GRU: has no weights of "):
        models.write(tmp_path / "m.onnx", {k: a.astype(dtype) for k, a in tensors.items()})
    assert list(tmp_path.iterdir()) == []


def test_the_other_byte_order(tmp_path):
    tensors = convert(layer().state_dict(), "torch", "onnx")
    swapped = {k: a.astype(a.dtype.newbyteorder()) for k, a in tensors.items()}
    models.write(tmp_path / "m.onnx", swapped)
    for name, a in models.read(tmp_path / "m.onnx").tensors.items():
        np.testing.assert_array_equal(a, tensors[name])


def test_tensors_that_are_no_layers(tmp_path):
    with pytest.raises(ConversionError, match="onnx"):
        models.write(tmp_path / "m.onnx", layer().state_dict())
    assert list(tmp_path.iterdir()) == []
