"""`convert`: round trips, folding, and everything that it refuses, with the reason."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import elman
from elman.spec import CELLS, Spec
from elman.weights import FRAMEWORKS, ConversionError, Converted, build, convert, to_canonical

D, H = 3, 4
bounded = settings(deadline=None, derandomize=True)


def weights(kind="GRU", layers=1, directions=1, bias=True, dtype="float32", **sizes):
    """Random weights by PyTorch's names; `sizes` may be input_size, hidden_size, proj_size."""
    sizes = {"input_size": D, "hidden_size": H} | sizes
    options = {"num_layers": layers, "bias": bias, "bidirectional": directions == 2}
    spec = Spec(next(c for c in CELLS.values() if c.kind == kind), **sizes, **options)
    rng = np.random.default_rng(0)
    shapes = spec.weight_shapes()
    return {name: rng.uniform(-0.5, 0.5, shape).astype(dtype) for name, shape in shapes.items()}


def cell(of):
    return {name.removesuffix("_l0"): w for name, w in of.items()}


def fit(of, framework):
    """Clear what a framework has no place for in a GRU."""
    for name, w in of.items():
        hidden = w.shape[0] // 3
        if "bias_hh" in name and framework in ("flax-nnx", "haiku"):
            w[2 * hidden :] = 0
        if "weight_hh" in name and framework == "haiku":
            w[2 * hidden :] *= np.eye(hidden, dtype=w.dtype)
    return of


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name, w in want.items():
        assert got[name].dtype == w.dtype
        np.testing.assert_array_equal(got[name], w, err_msg=name)


# Round trips

HOLDS = {  # the most layers and directions
    "elman": (3, 2),
    "torch": (3, 2),
    "oneflow": (3, 2),
    "r-torch": (3, 2),
    "mlx": (3, 2),
    "keras": (1, 2),
    "flax-linen": (3, 2),
    "flax-nnx": (3, 2),
    "flax-nnx-optimized": (3, 2),
    "equinox": (1, 1),
    "onnx": (3, 2),
    "haiku": (3, 1),
}
LESS = {"equinox": ("GRU", "LSTM"), "flax-nnx-optimized": ("LSTM",)}  # than every kind
PROJECTED = ("elman", "torch", "oneflow")
BEFORE = ("elman", "keras", "onnx", "haiku")  # have the GRU that resets before the product
ALWAYS_BIASED = ("flax-linen", "flax-nnx", "flax-nnx-optimized", "haiku")


@st.composite
def conversions(draw, frameworks=tuple(FRAMEWORKS)):
    framework = draw(st.sampled_from(frameworks))
    kind = draw(st.sampled_from(LESS.get(framework, ("GRU", "RNN", "LSTM"))))
    layers, directions = (draw(st.integers(1, n)) for n in HOLDS[framework])
    bias = framework in ALWAYS_BIASED or draw(st.booleans())
    dtype = draw(st.sampled_from(["float16", "float32", "float64"]))
    sizes = {"input_size": draw(st.integers(1, 5)), "hidden_size": draw(st.integers(1, 5))}
    if kind == "LSTM" and framework in PROJECTED:
        sizes["proj_size"] = draw(st.integers(0, sizes["hidden_size"] - 1))
    of = weights(kind, layers, directions, bias, dtype, **sizes)
    return framework, fit(of, framework) if kind == "GRU" else of


@bounded
@given(conversions())
def test_there_and_back_again(conversion):
    """What a framework holds comes back as it was; what was folded is folded once."""
    framework, of = conversion
    there = convert(of, "torch", framework)
    back = convert(there, framework, "torch", cell=False)
    assert back.keys() == of.keys()
    again = convert(back, "torch", framework)
    assert not again.folded
    assert_same(again, there)
    if not there.folded:
        assert_same(back, of)
    for name, w in of.items():
        assert back[name].dtype == w.dtype
        if "weight" in name:
            np.testing.assert_array_equal(back[name], w, err_msg=name)


@bounded
@given(conversions(), st.sampled_from(["elman", "torch", "oneflow", "r-torch", "onnx"]))
def test_by_way_of_another_framework(conversion, other):
    """Whatever way is taken, the answer is one."""
    framework, of = conversion
    if any("weight_hr" in name for name in of) and other not in PROJECTED:
        with pytest.raises(ConversionError, match=f"{other} LSTM: has no projection"):
            convert(of, "torch", other)
        return
    there = convert(of, "torch", framework)
    around = convert(convert(of, "torch", other), other, framework)
    assert_same(around, there)


@pytest.mark.parametrize("framework", ["torch", "oneflow", "r-torch", "onnx"])
def test_both_biases_are_kept_where_there_is_room(framework):
    converted = convert(weights(layers=2, directions=2), "torch", framework)
    assert not converted.folded
    assert_same(convert(converted, framework, "torch"), weights(layers=2, directions=2))


def test_cells():
    of = cell(weights())
    for framework, entry in FRAMEWORKS.items():
        for kind in LESS.get(framework, ("GRU", "RNN", "LSTM")) if entry.cells else ():
            own = cell(weights(kind))
            there = convert(fit(own, framework) if kind == "GRU" else own, "torch", framework)
            assert convert(there, framework, "torch").keys() == own.keys()
    assert list(convert(of, "torch", "keras")) == ["kernel", "recurrent_kernel", "bias"]
    assert next(iter(convert(of, "torch", "keras", cell=False))) == "gru_cell/kernel"
    assert list(convert(weights(), "torch", "torch", cell=True)) == list(of)
    assert list(convert(of, "torch", "mlx")) == ["Wx", "Wh", "b", "bhn"]


def test_the_canonical_weights_load_into_elmans_layer():
    of = convert(weights(layers=2, directions=2), "torch", "flax-linen")
    canonical = to_canonical(of, "flax-linen")
    layer = elman.GRU(D, H, canonical.spec.num_layers, bidirectional=canonical.spec.bidirectional)
    layer.load_state_dict(canonical.weights)
    assert canonical.dtype == np.float32


def test_the_answer_is_a_dictionary_of_copies():
    of = weights()
    before = {name: w.copy() for name, w in of.items()}
    for target in ("torch", "keras"):
        converted = convert(of, "torch", target)
        assert isinstance(converted, dict)
        assert isinstance(converted, Converted)
        for w in converted.values():
            assert w.flags.c_contiguous
            w[:] = 0
    assert_same(of, before)


# Folding


def test_folding_adds_the_biases_and_keeps_b_hn():
    of = weights()
    converted = convert(of, "torch", "mlx")
    assert converted.folded
    b_ih, b_hh = of["bias_ih_l0"], of["bias_hh_l0"]
    np.testing.assert_array_equal(converted["b"][: 2 * H], (b_ih + b_hh)[: 2 * H])
    np.testing.assert_array_equal(converted["b"][2 * H :], b_ih[2 * H :])
    np.testing.assert_array_equal(converted["bhn"], b_hh[2 * H :])


def test_nothing_is_folded_where_there_is_nothing_to_add():
    of = weights()
    of["bias_hh_l0"][: 2 * H] = 0
    of["bias_ih_l0"][0] = -0.0
    converted = convert(of, "torch", "mlx")
    assert not converted.folded
    assert converted["b"].tobytes() == of["bias_ih_l0"].tobytes()


def test_biases_that_a_framework_always_has_are_zero_and_that_is_said():
    converted = convert(weights(bias=False), "torch", "flax-linen")
    assert not converted["cell.in.bias"].any()
    assert converted.notes == ["flax-linen's GRU always has biases; those it gets have no effect"]
    assert not converted.folded


def test_exact_conversions_have_nothing_to_say():
    for framework in ("elman", "torch", "oneflow", "r-torch", "keras"):
        converted = convert(weights(), "torch", framework)
        assert (converted.folded, converted.notes) == (False, [])


def test_what_weights_do_not_tell_is_said():
    (note,) = convert(weights(), "torch", "onnx").notes
    assert "linear_before_reset=1" in note
    (note,) = convert(weights("RNN"), "torch", "haiku").notes
    assert "relu" in note


@pytest.mark.parametrize(
    ("source", "bias"), [("elman", True), ("onnx", True), ("onnx", False), ("keras", False)]
)
def test_a_gru_that_may_be_either_is_said_to_be_taken_for_one(source, bias):
    of = convert(weights(bias=bias), "torch", source)
    (note,) = convert(of, source, "torch").notes
    assert note == f"{source} GRU: taken for reset_after=True, which its tensors do not tell"
    assert convert(of, source, "torch", reset_after=True).notes == []
    for told in (weights("LSTM"), weights("RNN")):
        assert convert(convert(told, "torch", source), source, "torch").notes == []


# Haiku, and other GRUs whose reset gate comes first


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def reset_before(z, r, a, h):
    """One step as Haiku has it; each gate is (w_i, w_h, b) by columns, for x = 0."""
    z, r = (sigmoid(h @ w + b) for w, b in (z, r))
    w, b = a
    return (1 - z) * h + z * np.tanh((r * h) @ w + b)


def haiku(diagonal, hidden=H):
    rng = np.random.default_rng(0)
    of = {
        "gru/w_i": rng.normal(size=(D, 3 * hidden)),
        "gru/w_h": rng.normal(size=(hidden, 3 * hidden)),
        "gru/b": rng.normal(size=3 * hidden),
    }
    if diagonal:
        of["gru/w_h"][:, 2 * hidden :] *= np.eye(hidden)
    return of


@pytest.mark.parametrize("hidden", [1, H])
def test_haikus_z_is_turned_where_its_reset_gate_may_stand(hidden):
    """A diagonal W_hn, of which one unit is a case, takes r before or after alike."""
    of = haiku(diagonal=hidden > 1, hidden=hidden)
    converted = convert(of, "haiku", "torch")
    h = np.random.default_rng(1).normal(size=(1, hidden))
    gates = [
        (
            of["gru/w_h"][:, k * hidden : (k + 1) * hidden],
            of["gru/b"][k * hidden : (k + 1) * hidden],
        )
        for k in range(3)
    ]
    layer = elman.GRU(D, hidden, dtype="float64")
    layer.load_state_dict(converted)
    _, h_n = layer(np.zeros((1, D)), h)
    np.testing.assert_allclose(h_n, reset_before(*gates, h), rtol=1e-12)
    assert not converted.folded
    assert_same(convert(converted, "torch", "haiku"), of)


@pytest.mark.parametrize(
    ("source", "of"),
    [
        ("haiku", haiku(diagonal=False)),
        (
            "keras",
            {
                "gru_cell/kernel": np.ones((D, 3 * H)),
                "gru_cell/recurrent_kernel": np.ones((H, 3 * H)),
                "gru_cell/bias": np.ones(3 * H),
            },
        ),
    ],
)
def test_reset_before_is_refused_where_there_is_no_such_gru(source, of):
    message = (
        r"GRU: applies its reset gate (after|before).* and this one before.*unless W_hn is diag"
    )
    for target in sorted(FRAMEWORKS.keys() - {*BEFORE, "flax-nnx-optimized"}):
        with pytest.raises(ConversionError, match=rf"^{target} {message}"):
            convert(of, source, target)


@bounded
@given(conversions(BEFORE), st.sampled_from(BEFORE))
def test_the_gru_that_resets_before_between_all_that_have_it(conversion, other):
    """Values are moved, and biases added where there is one; there and back is what it was."""
    framework, of = conversion
    if not any(w.shape[0] == 3 * w.shape[1] for name, w in of.items() if "weight_hh" in name):
        return
    told = {"reset_after": False}
    layers, directions = (
        1 + max(int(name.split("_l")[1][0]) for name in of),
        1 + any("reverse" in name for name in of),
    )
    if layers > HOLDS[other][0] or directions > HOLDS[other][1]:
        return
    there = convert(of, "elman", framework, **told)
    around = convert(convert(there, framework, other, **told), other, framework, **told)
    assert not around.folded
    assert_same(around, there)
    assert there.arguments["reset_after"] is False
    back = convert(there, framework, "elman", cell=False, **told)
    for name, w in of.items():
        if "weight" in name:
            np.testing.assert_array_equal(back[name], w, err_msg=name)
    if not there.folded:
        for name, w in of.items():
            np.testing.assert_array_equal(back[name], w, err_msg=name)


def test_b_hn_is_a_summand_where_the_reset_gate_comes_before():
    """With a diagonal W_hn it joins b_in, which nothing multiplies."""
    of = weights(dtype="float64")
    of["weight_hh_l0"][2 * H :] *= np.eye(H)
    converted = convert(of, "elman", "torch", reset_after=False)
    assert converted.folded
    assert converted.arguments["reset_after"]
    b_ih, b_hh = of["bias_ih_l0"], of["bias_hh_l0"]
    np.testing.assert_array_equal(converted["bias_hh_l0"][: 2 * H], b_hh[: 2 * H])
    np.testing.assert_array_equal(converted["bias_hh_l0"][2 * H :], 0)
    np.testing.assert_array_equal(converted["bias_ih_l0"][: 2 * H], b_ih[: 2 * H])
    mlx = convert(of, "elman", "mlx", reset_after=False)
    np.testing.assert_array_equal(mlx["b"], b_ih + b_hh)
    np.testing.assert_array_equal(mlx["bhn"], 0)
    x = np.random.default_rng(0).normal(size=(5, D))
    before, after = (elman.GRU(D, H, dtype="float64", reset_after=r) for r in (False, True))
    before.load_state_dict(of)
    after.load_state_dict(converted)
    np.testing.assert_allclose(after(x)[0], before(x)[0], rtol=1e-12)


def test_reset_after_that_the_tensors_deny():
    of = {"kernel": np.ones((D, 3 * H)), "recurrent_kernel": np.ones((H, 3 * H))}
    both = of | {"bias": np.ones((2, 3 * H))}
    with pytest.raises(ConversionError, match="keras GRU: there is none of reset_after=False"):
        convert(both, "keras", "elman", reset_after=False)
    with pytest.raises(ConversionError, match="keras GRU: there is none of reset_after=True"):
        convert(of | {"bias": np.ones(3 * H)}, "keras", "elman", reset_after=True)
    with pytest.raises(ConversionError, match="torch GRU: there is none of reset_after=False"):
        convert(weights(), "torch", "elman", reset_after=False)
    with pytest.raises(ConversionError, match="torch LSTM: reset_after is of a GRU"):
        convert(weights("LSTM"), "torch", "elman", reset_after=True)
    for reset_after in (True, False):  # without biases they do not tell
        told = convert(of, "keras", "elman", reset_after=reset_after)
        assert told.arguments["reset_after"] is reset_after


# Elman's own layers


@pytest.mark.parametrize(
    ("made", "tensors"),
    [
        ("GRU(3, 4, num_layers=2, bidirectional=True)", weights(layers=2, directions=2)),
        ("LSTM(3, 4, proj_size=2)", weights("LSTM", proj_size=2)),
        ("RNN(3, 4, bias=False, nonlinearity='relu')", weights("RNN", bias=False)),
        ("LSTMCell(3, 4)", cell(weights("LSTM"))),
    ],
)
def test_build(made, tensors):
    """The layer of these weights, as `arguments` says it."""
    told = {"nonlinearity": "relu"} if "RNN" in made else {}
    layer = build(tensors, "torch", **told)
    assert repr(layer) == made
    assert_same(layer.state_dict(), tensors)
    arguments = convert(tensors, "torch", "elman").arguments
    assert repr(getattr(elman, arguments.pop("class"))(**arguments, **told)) == made


def test_options_of_build():
    of = weights(dtype="float64")
    assert build(of, "torch").dtype == np.float64
    layer = build(of, "torch", dtype="float32", batch_first=True, dropout=0.5)
    assert repr(layer) == "GRU(3, 4, batch_first=True, dropout=0.5)"
    assert_same(layer.state_dict(), {name: w.astype("float32") for name, w in of.items()})
    assert repr(build(of, "elman", reset_after=False)) == "GRU(3, 4, reset_after=False)"
    assert repr(build(of, "torch", cell=True)) == "GRUCell(3, 4)"
    with pytest.raises(ConversionError, match=r"^RNN: nonlinearity, which weights do not tell"):
        build(weights("RNN"), "torch")
    with pytest.raises(
        ConversionError, match=r"^GRU: nonlinearity.* must be in \[''\], got 'relu'"
    ):
        build(of, "torch", nonlinearity="relu")
    haikus = convert(weights("RNN"), "torch", "haiku")
    assert repr(build(haikus, "haiku")) == "RNN(3, 4, nonlinearity='relu')"
    with pytest.raises(ConversionError, match=r"^RNN: nonlinearity.* must be in \['relu'\]"):
        build(haikus, "haiku", nonlinearity="tanh")


def test_into_haiku_only_what_it_computes():
    with pytest.raises(ConversionError, match="b_hn"):
        convert(weights(), "torch", "haiku")
    of = weights()
    of["bias_hh_l0"][2 * H :] = 0
    with pytest.raises(ConversionError, match=r"haiku GRU: applies its reset gate before.* after"):
        convert(of, "torch", "haiku")


# LSTMs


def marked():
    """An LSTM's weights whose value says the gate: i 1, f 2, g 3, o 4; of b_hh ten times that."""
    of = weights("LSTM", dtype="float64")
    for name, w in of.items():
        w.T[:] = np.repeat(np.arange(1.0, 5), H) * (10 if "bias_hh" in name else 1)
    return of


ORDERS = {  # of gates; a layer's tensors of the three, and which axis has the gates
    "mlx": ("ifgo", ("Wx", "Wh", "bias"), 0),
    "keras": ("ifgo", ("lstm_cell/kernel", "lstm_cell/recurrent_kernel", "lstm_cell/bias"), -1),
    "equinox": ("ifgo", ("weight_ih", "weight_hh", "bias"), 0),
    "flax-nnx-optimized": (
        "ifgo",
        ("cell.dense_i.kernel", "cell.dense_h.kernel", "cell.dense_h.bias"),
        -1,
    ),
    "onnx": ("iofg", ("W", "R", "B"), 1),
    "haiku": ("igfo", ("lstm/linear/w", "lstm/linear/w", "lstm/linear/b"), -1),
}


@pytest.mark.parametrize("framework", ORDERS)
def test_the_order_of_an_lstms_gates(framework):
    order, names, axis = ORDERS[framework]
    converted = convert(marked(), "torch", framework)
    each = np.repeat([1.0 + "ifgo".index(gate) for gate in order], H)
    for name in names[:2]:
        first = np.moveaxis(converted[name], axis, 0).reshape(4 * H, -1)
        np.testing.assert_array_equal(first, np.broadcast_to(each[:, None], first.shape))
    bias = converted[names[2]].ravel()
    if framework == "onnx":
        np.testing.assert_array_equal(bias, np.concatenate([each, 10 * each]))
    else:
        added = (np.repeat([*order], H) == "f") if framework == "haiku" else 0
        np.testing.assert_array_equal(bias, 11 * each - added)


@pytest.mark.parametrize(("framework", "forget"), [("flax-linen", "if"), ("flax-nnx", "if_")])
def test_flaxs_gates_have_names(framework, forget):
    converted = convert(marked(), "torch", framework)
    for mark, (i, h) in enumerate([("ii", "hi"), (forget, "hf"), ("ig", "hg"), ("io", "ho")], 1):
        np.testing.assert_array_equal(converted[f"cell.{i}.kernel"], np.full((D, H), mark))
        np.testing.assert_array_equal(converted[f"cell.{h}.kernel"], np.full((H, H), mark))
        np.testing.assert_array_equal(converted[f"cell.{h}.bias"], np.full(H, 11 * mark))
    assert len(converted) == 12
    assert any("(c, h)" in note for note in converted.notes)


def test_both_of_nnxs_layouts_are_read():
    of = weights("LSTM", layers=2, directions=2)
    by_gate, together = (convert(of, "torch", f) for f in ("flax-nnx", "flax-nnx-optimized"))
    assert not by_gate.keys() & together.keys()
    assert_same(convert(together, "flax-nnx", "torch"), convert(by_gate, "flax-nnx", "torch"))
    with pytest.raises(ConversionError, match=r"with one of .*cell\.dense_h\.kernel"):
        convert(by_gate, "flax-nnx-optimized", "torch")


def test_an_lstms_biases_are_added_up():
    of = weights("LSTM")
    converted = convert(of, "torch", "mlx")
    assert converted.folded
    np.testing.assert_array_equal(converted["bias"], of["bias_ih_l0"] + of["bias_hh_l0"])


FORGET = slice(H, 2 * H)  # rows of it, as PyTorch has them


def test_haikus_1_moves_without_a_rounding():
    """It stands in PyTorch's b_hh, since b + 1 would lose the last bits of b."""
    of = convert(weights("LSTM", layers=2), "torch", "haiku")
    for name, a in of.items():
        if name.endswith("/b"):
            a *= 1e-6
    there = convert(of, "haiku", "torch")
    assert not there.folded
    for k, name in enumerate(("lstm", "lstm_1")):
        i, g, f, o = np.split(of[f"{name}/linear/b"], 4)
        np.testing.assert_array_equal(there[f"bias_ih_l{k}"], np.concatenate([i, f, g, o]))
        want = np.zeros(4 * H)
        want[FORGET] = 1
        np.testing.assert_array_equal(there[f"bias_hh_l{k}"], want)
    back = convert(there, "torch", "haiku")
    assert not back.folded
    assert_same(back, of)
    assert back.notes == there.notes
    assert "σ(a + 1)" in back.notes[0]


def test_haikus_1_where_there_is_one_bias():
    of = convert(weights("LSTM"), "torch", "haiku")
    converted = convert(of, "haiku", "mlx")
    i, g, f, o = np.split(of["lstm/linear/b"], 4)
    np.testing.assert_array_equal(converted["bias"], np.concatenate([i, f + 1, g, o]))
    assert converted.folded


def test_an_lstm_without_biases_in_haiku():
    converted = convert(weights("LSTM", bias=False), "torch", "haiku")
    _, _, f, _ = np.split(converted["lstm/linear/b"], 4)
    np.testing.assert_array_equal(f, np.full(H, -1))
    assert "haiku's LSTM always has biases; those it gets have no effect" in converted.notes


def test_peepholes_are_taken_only_where_they_are_none():
    of = convert(weights("LSTM", layers=2, directions=2), "torch", "onnx")
    P = np.zeros((2, 3 * H), "float32")
    assert_same(convert(of | {"P_l0": P, "P_l1": P}, "onnx", "torch"), convert(of, "onnx", "torch"))
    P = P.copy()
    P[1, -1] = 1e-30
    with pytest.raises(ConversionError, match=r"onnx: P_l1 holds peepholes.*not zero"):
        convert(of | {"P_l1": P}, "onnx", "torch")


def test_a_projection_is_recognised():
    of = weights("LSTM", layers=2, directions=2, proj_size=2)
    assert to_canonical(of, "torch").spec.proj_size == 2
    assert list(of) == list(convert(of, "torch", "oneflow"))


@pytest.mark.parametrize("name", ["weight_hr_l0", "weight_hr_l1_reverse", "bias_hh_l1"])
def test_a_projection_that_lacks_something(name):
    of = weights("LSTM", layers=2, directions=2, proj_size=2)
    w = of.pop(name)
    with pytest.raises(ConversionError, match=f"torch LSTM: weights missing: .'{name}'"):
        convert(of, "torch", "torch")
    with pytest.raises(ConversionError, match=f"torch LSTM: {name} must have shape"):
        convert(of | {name: w[..., :-1]}, "torch", "torch")


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_a_projection_where_there_is_none(kind):
    of = weights(kind) | {"weight_hr_l0": np.ones((2, H), "float32")}
    with pytest.raises(ConversionError, match="torch"):
        convert(of, "torch", "torch")


# What a target cannot hold


@pytest.mark.parametrize(
    ("of", "target", "why"),
    [
        (weights(), "flax-nnx", "flax-nnx GRU: has no place for a recurrent bias.*b_hn"),
        (weights("RNN", layers=3), "keras", "keras RNN: cannot hold num_layers=3, directions=1;"),
        (weights(layers=2), "equinox", "equinox GRUCell: cannot hold num_layers=2, directions=1;"),
        (
            weights(directions=2),
            "equinox",
            "equinox GRUCell: cannot hold num_layers=1, directions=2;",
        ),
        (weights("RNN"), "equinox", "equinox: has no RNN"),
        (weights("GRU"), "flax-nnx-optimized", "flax-nnx-optimized: has no GRU"),
        (weights("LSTM", directions=2), "haiku", "haiku LSTM: cannot hold num_layers=1, dire"),
        *[
            (weights("LSTM", proj_size=2), name, f"{name} LSTM\\w*: has no projection.*proj_size=2")
            for name in sorted(FRAMEWORKS.keys() - set(PROJECTED))
        ],
        (
            weights("RNN", directions=2),
            "haiku",
            "haiku RNN: cannot hold num_layers=1, directions=2;",
        ),
    ],
)
def test_what_a_target_cannot_hold(of, target, why):
    with pytest.raises(ConversionError, match=why):
        convert(of, "torch", target)


@pytest.mark.parametrize(
    ("of", "target", "is_cell", "why"),
    [
        (weights(layers=2), "torch", True, "torch GRUCell: cannot hold num_layers=2"),
        (
            weights(directions=2),
            "keras",
            True,
            "keras GRUCell: cannot hold num_layers=1, directions=2",
        ),
        (weights(), "mlx", True, "mlx: has no cells"),
        (weights("LSTM", proj_size=2), "torch", True, "torch LSTMCell: has no projection"),
        (weights(), "r-torch", True, "r-torch: has no cells"),
        (weights(), "equinox", False, "equinox: has no layers, only cells"),
    ],
)
def test_a_cell_or_a_layer_that_there_is_not(of, target, is_cell, why):
    with pytest.raises(ConversionError, match=why):
        convert(of, "torch", target, cell=is_cell)


# What is no such set of weights


def broken(change, **options):
    of = weights(**options)
    change(of)
    return of


@pytest.mark.parametrize(
    ("of", "why"),
    [
        (
            {},
            "expected the weights of a recurrent layer, with one of .*'weight_hh_l0'.*; got \\[\\]",
        ),
        ({"kernel": np.ones((D, H))}, "expected the weights of.*got \\['kernel'\\]"),
        (broken(lambda w: w.pop("bias_hh_l0")), "missing: \\['bias_hh_l0'\\]"),
        (broken(lambda w: w.pop("weight_ih_l0")), "expected the weights of a recurrent layer"),
        (broken(lambda w: w.pop("weight_ih_l1"), layers=3), "missing: \\['weight_ih_l1'\\]"),
        (broken(lambda w: w.update(extra=np.ones(3, "float32"))), "unexpected: \\['extra'\\]"),
        (broken(lambda w: w.update(bias_ih_l2=w["bias_ih_l0"])), "unexpected: \\['bias_ih_l2'\\]"),
        (broken(lambda w: w.pop("bias_ih_l0_reverse"), directions=2), "missing"),
        (
            broken(lambda w: w.update(bias_ih_l0=w["bias_ih_l0"][:-1])),
            r"torch GRU: bias_ih_l0 must have shape \(12,\), got \(11,\)",
        ),
        (
            broken(lambda w: w.update(weight_ih_l1=w["weight_ih_l0"]), layers=2),
            r"torch GRU: weight_ih_l1 must have shape \(12, 4\), got \(12, 3\)",
        ),
        (broken(lambda w: w.update(weight_hh_l0=w["weight_hh_l0"][0])), "expected the weights of"),
        (broken(lambda w: w.update(weight_hh_l0=np.float32(1))), "expected the weights of"),
        (
            {name: np.repeat(w, 5, 0) for name, w in weights("RNN").items()},  # of five gates, or
            "torch LSTM: weights missing: ..weight_hr_l0",  # of four, of which H is 5
        ),
        (
            {name: np.ones((0, *w.shape[1:]), "float32") for name, w in weights().items()},
            "must have shape|expected the weights of",
        ),
        (broken(lambda w: w.update(bias_ih_l0=w["bias_ih_l0"].astype("float64"))), "of one dtype"),
        ({name: w.astype(int) for name, w in weights().items()}, "must be floating-point, got int"),
        ({name: w.astype(complex) for name, w in weights().items()}, "must be floating-point"),
        (broken(lambda w: w.update(weight_ih_l0=[[1.0], [2.0, 3.0]])), "weight_ih_l0 is nothing"),
        (broken(lambda w: w.update(weight_ih_l0=None)), "of one dtype"),
    ],
)
def test_what_is_no_such_set_of_weights(of, why):
    with pytest.raises(ConversionError, match=why) as error:
        convert(of, "torch", "onnx")
    assert isinstance(error.value, ValueError)
    assert str(error.value).startswith("torch")


@pytest.mark.parametrize("names", [("pytorch", "mlx"), ("torch", "tensorflow"), ("", "")])
def test_unknown_frameworks(names):
    with pytest.raises(ConversionError, match=r"no framework '\w*'; there are elman, torch"):
        convert(weights(), *names)


KINDS = ("RNN", "GRU", "LSTM")


@pytest.mark.parametrize("ours", KINDS)
@pytest.mark.parametrize("theirs", KINDS)
def test_weights_of_another_kind(ours, theirs):
    """They are called so, not by a shape alone."""
    for options in ({}, {"layers": 2, "directions": 2, "bias": False}):
        layers, directions = options.get("layers", 1), options.get("directions", 1)
        bias = options.get("bias", True)
        layer = getattr(elman, ours)(D, H, layers, bias=bias, bidirectional=directions == 2)
        of = weights(theirs, **options)
        if ours == theirs:
            layer.load_state_dict(of)
            continue
        why = f"{ours}: {theirs} weights where {ours} weights are expected: weight_ih_l0 must have"
        with pytest.raises(ValueError, match=why):
            layer.load_state_dict(of)


def test_an_lstms_tensors_by_the_names_of_a_gru():
    of = convert(weights("LSTM"), "torch", "mlx")
    of["b"], of["bhn"] = of.pop("bias"), np.ones(H, "float32")
    with pytest.raises(ConversionError, match=r"mlx LSTM: .*unexpected: \['b', 'bhn'\]"):
        convert(of, "mlx", "torch")


@pytest.mark.parametrize("sizes", [(4, 4), (3, 3), (3, 12), (4, 3), (9, 4)])
def test_other_sizes_are_no_other_kind(sizes):
    """A ratio of three to four in one matrix, or in all rows and columns, is none of gates."""
    with pytest.raises(ValueError, match=r"GRU: weight_[ih]h_l0 must have shape"):
        elman.GRU(D, H).load_state_dict(elman.GRU(*sizes).state_dict())


def test_weights_of_huge_sizes_are_only_looked_at():
    """Shapes that would need more memory than there is are refused by their shapes."""
    of = {"weight_ih_l0": np.ones((1, 10**7)), "weight_hh_l0": np.ones((1, 10**7))}
    with pytest.raises(ConversionError, match="must have shape"):
        convert(of, "torch", "mlx")


# Names


@pytest.mark.parametrize(
    ("framework", "kind", "layers", "directions", "first", "last"),
    [
        ("torch", "GRU", 2, 2, "weight_ih_l0", "bias_hh_l1_reverse"),
        ("oneflow", "RNN", 1, 1, "weight_ih_l0", "bias_hh_l0"),
        ("r-torch", "GRU", 2, 2, "weight_ih_l1", "bias_hh_l2_reverse"),
        ("mlx", "RNN", 1, 1, "Wxh", "bias"),
        ("keras", "GRU", 1, 1, "gru_cell/kernel", "gru_cell/bias"),
        (
            "keras",
            "RNN",
            1,
            2,
            "forward_simple_rnn/simple_rnn_cell/kernel",
            "backward_simple_rnn/simple_rnn_cell/bias",
        ),
        ("flax-linen", "GRU", 1, 1, "cell.ir.kernel", "cell.hn.bias"),
        (
            "flax-linen",
            "RNN",
            2,
            2,
            "layers_0.forward_rnn.cell.i.kernel",
            "layers_1.backward_rnn.cell.i.bias",
        ),
        (
            "flax-nnx",
            "RNN",
            2,
            2,
            "layers.0.forward_rnn.cell.dense_i.kernel",
            "layers.1.backward_rnn.cell.dense_i.bias",
        ),
        ("equinox", "GRU", 1, 1, "weight_ih", "bias_n"),
        ("torch", "LSTM", 2, 2, "weight_ih_l0", "bias_hh_l1_reverse"),
        ("r-torch", "LSTM", 2, 2, "weight_ih_l1", "bias_hh_l2_reverse"),
        ("mlx", "LSTM", 1, 1, "Wx", "bias"),
        (
            "keras",
            "LSTM",
            1,
            2,
            "forward_lstm/lstm_cell/kernel",
            "backward_lstm/lstm_cell/bias",
        ),
        ("flax-linen", "LSTM", 1, 1, "cell.ii.kernel", "cell.ho.bias"),
        (
            "flax-nnx",
            "LSTM",
            2,
            2,
            "layers.0.forward_rnn.cell.ii.kernel",
            "layers.1.backward_rnn.cell.ho.bias",
        ),
        ("flax-nnx-optimized", "LSTM", 1, 1, "cell.dense_i.kernel", "cell.dense_h.bias"),
        ("equinox", "LSTM", 1, 1, "weight_ih", "bias"),
        ("onnx", "LSTM", 2, 1, "W_l0", "B_l1"),
        ("haiku", "LSTM", 2, 1, "lstm/linear/w", "lstm_1/linear/b"),
        ("onnx", "GRU", 1, 2, "W", "B"),
        ("onnx", "GRU", 2, 2, "W_l0", "B_l1"),
        ("haiku", "RNN", 2, 1, "vanilla_rnn/linear/w", "vanilla_rnn_1/linear_1/b"),
    ],
)
def test_names(framework, kind, layers, directions, first, last):
    names = list(convert(weights(kind, layers, directions), "torch", framework))
    assert (names[0], names[-1]) == (first, last)


def test_kerass_own_paths():
    of = convert(weights(directions=2), "torch", "keras")
    for before in ("", "bidirectional_1/", "model/bidirectional/"):
        named = {
            before + name.replace("_gru/", "_gru_7/").replace("gru_cell", "gru_cell_3"): a
            for name, a in of.items()
        }
        assert_same(convert(named, "keras", "keras"), of)


def test_two_layers_of_keras_are_refused():
    of = convert(weights(), "torch", "keras")
    two = {f"model/{layer}/{name}": a for layer in ("gru", "gru_1") for name, a in of.items()}
    with pytest.raises(ConversionError, match=r"got those of 2, .*\['model/gru', 'model/gru_1'\]"):
        convert(two, "keras", "torch")


def test_onnxs_first_axis_is_directions():
    of = convert(weights(), "torch", "onnx")
    for wrong in (of["W"][0, 0, 0], np.ones((3, 12, 3), "float32"), np.ones((0, 12, 3), "float32")):
        with pytest.raises(ConversionError, match="onnx: W's first axis must be 1 or 2"):
            convert(of | {"W": wrong}, "onnx", "torch")
    two = {name: np.repeat(a, 2, 0) for name, a in of.items()}
    with pytest.raises(ConversionError, match=r"missing: \['B\[1\]'\]"):
        convert(two | {"B": of["B"]}, "onnx", "torch")


def test_r_counts_from_one():
    names = list(convert(weights(layers=2, bias=False, directions=2), "torch", "r-torch"))
    assert names == [
        f"weight_{kind}_l{layer}{end}"
        for layer in (1, 2)
        for end in ("", "_reverse")
        for kind in ("ih", "hh")
    ]


def test_frameworks_that_count_from_zero_are_not_rs():
    with pytest.raises(ConversionError, match="r-torch: expected the weights of a recurrent"):
        convert(weights(), "r-torch", "torch")


def test_a_vanilla_rnn_of_haiku_with_one_bias():
    of = convert(weights("RNN"), "torch", "haiku")
    del of["vanilla_rnn/linear_1/b"]
    converted = convert(of, "haiku", "torch")
    assert not converted["bias_hh_l0"].any()
    np.testing.assert_array_equal(converted["bias_ih_l0"], of["vanilla_rnn/linear/b"])


def test_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="it gives NumPy bfloat16")
    of = {name: w.astype(ml_dtypes.bfloat16) for name, w in weights().items()}
    there = convert(of, "torch", "keras")
    assert {a.dtype for a in there.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert_same(convert(there, "keras", "torch"), of)


def test_tensors_of_torch():
    torch = pytest.importorskip("torch", reason="its own tensors are given")
    of = torch.nn.GRU(D, H).state_dict()
    converted = convert(of, "torch", "keras")
    assert_same(convert(converted, "keras", "torch"), {name: w.numpy() for name, w in of.items()})
    needing = dict(torch.nn.GRU(D, H, dtype=torch.bfloat16).named_parameters())
    with pytest.raises(ConversionError, match=r"weight_ih_l0 is nothing that NumPy reads.*grad"):
        convert(needing, "torch", "keras")


def half_of_torch(torch, of):
    return {name: torch.from_numpy(w).to(torch.bfloat16) for name, w in of.items()}


def half_of_mlx(mx, of):
    return {name: mx.array(w).astype(mx.bfloat16) for name, w in of.items()}


@pytest.mark.parametrize(
    ("module", "halve"), [("torch", half_of_torch), ("mlx.core", half_of_mlx)], ids=["torch", "mlx"]
)
def test_bfloat16_that_numpy_does_not_read(module, halve):
    """Tensors that lie in order and such as do not; every value by the bits that it has."""
    library = pytest.importorskip(module, reason="its own tensors are given")
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="it gives NumPy bfloat16")
    of = weights()
    of["bias_ih_l0"][:4] = np.inf, -np.inf, -0.0, 1e-39
    want = {name: w.astype(ml_dtypes.bfloat16) for name, w in of.items()}
    turned = halve(library, {name: w.T.copy() for name, w in of.items()})
    turned = {name: w.T if len(w.shape) > 1 else w for name, w in turned.items()}
    for half in (halve(library, of), turned):
        converted = convert(half, "torch", "oneflow")
        layer = elman.GRU(D, H, dtype="bfloat16")
        layer.load_state_dict(half)
        for read in (converted, layer.state_dict()):
            for name, w in want.items():
                assert read[name].dtype == w.dtype
                np.testing.assert_array_equal(read[name].view("u2"), w.view("u2"))
