"""`convert`: round trips, folding, and everything that it refuses, with the reason."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import elman
from elman.weights import FRAMEWORKS, ConversionError, Converted, convert, to_canonical

D, H = 3, 4
bounded = settings(deadline=None, derandomize=True)


def weights(kind="GRU", layers=1, directions=1, bias=True, dtype="float32", **sizes):
    """Random weights by PyTorch's names; `sizes` may be input_size, hidden_size."""
    size, hidden = sizes.get("input_size", D), sizes.get("hidden_size", H)
    options = {"bias": bias, "bidirectional": directions == 2, "seed": 0}
    return {
        name: w.astype(dtype)
        for name, w in getattr(elman, kind)(size, hidden, layers, **options).state_dict().items()
    }


def cell(of):
    return {name.removesuffix("_l0"): w for name, w in of.items()}


def fit(of, framework):
    """Clear what a framework has no place for."""
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

HOLDS = {  # the most layers and directions, and whether a GRU's, an RNN's
    "torch": (3, 2),
    "oneflow": (3, 2),
    "r-torch": (3, 2),
    "mlx": (1, 1),
    "keras": (1, 2),
    "flax-linen": (3, 2),
    "flax-nnx": (3, 2),
    "equinox": (1, 1),
    "onnx": (3, 2),
    "haiku": (3, 1),
}


@st.composite
def conversions(draw):
    framework = draw(st.sampled_from(sorted(FRAMEWORKS)))
    kind = draw(st.sampled_from(["GRU"] if framework == "equinox" else ["GRU", "RNN"]))
    layers, directions = (draw(st.integers(1, n)) for n in HOLDS[framework])
    always = framework in ("flax-linen", "flax-nnx", "haiku")
    bias = always or draw(st.booleans())
    dtype = draw(st.sampled_from(["float16", "float32", "float64"]))
    sizes = {"input_size": draw(st.integers(1, 5)), "hidden_size": draw(st.integers(1, 5))}
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
@given(conversions(), st.sampled_from(["torch", "oneflow", "r-torch", "onnx"]))
def test_by_way_of_another_framework(conversion, other):
    """Whatever way is taken, the answer is one."""
    framework, of = conversion
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
        if entry.cells:
            there = convert(
                fit({k: w.copy() for k, w in of.items()}, framework), "torch", framework
            )
            assert convert(there, framework, "torch").keys() == of.keys()
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
    assert converted.notes == ["flax-linen's GRU always has biases; they are zero"]
    assert not converted.folded


def test_exact_conversions_have_nothing_to_say():
    for framework in ("torch", "oneflow", "r-torch", "keras"):
        converted = convert(weights(), "torch", framework)
        assert (converted.folded, converted.notes) == (False, [])


def test_what_weights_do_not_tell_is_said():
    (note,) = convert(weights(), "torch", "onnx").notes
    assert "linear_before_reset=1" in note
    (note,) = convert(weights("RNN"), "torch", "haiku").notes
    assert "relu" in note
    (note,) = convert(weights(bias=False), "torch", "keras").notes
    assert "reset_after=True" in note


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
def test_reset_before_is_refused(source, of):
    with pytest.raises(ConversionError, match=r"before the recurrent product.*unless W_hn is diag"):
        convert(of, source, "torch")


def test_into_haiku_only_what_it_computes():
    with pytest.raises(ConversionError, match="b_hn"):
        convert(weights(), "torch", "haiku")
    of = weights()
    of["bias_hh_l0"][2 * H :] = 0
    with pytest.raises(ConversionError, match="haiku GRU: applies its reset gate before"):
        convert(of, "torch", "haiku")


# What a target cannot hold


@pytest.mark.parametrize(
    ("of", "target", "why"),
    [
        (weights(), "flax-nnx", "flax-nnx GRU: has no place for a recurrent bias.*b_hn"),
        (weights(layers=2), "mlx", "mlx GRU: cannot hold num_layers=2, directions=1;"),
        (weights(directions=2), "mlx", "mlx GRU: cannot hold num_layers=1, directions=2;"),
        (weights("RNN", layers=3), "keras", "keras RNN: cannot hold num_layers=3, directions=1;"),
        (weights(layers=2), "equinox", "equinox GRUCell: cannot hold num_layers=2, directions=1;"),
        (
            weights(directions=2),
            "equinox",
            "equinox GRUCell: cannot hold num_layers=1, directions=2;",
        ),
        (weights("RNN"), "equinox", "equinox: has no RNN"),
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
        ({}, "expected the weights of a GRU or an RNN, with one of .*'weight_hh_l0'.*; got \\[\\]"),
        ({"kernel": np.ones((D, H))}, "expected the weights of.*got \\['kernel'\\]"),
        (broken(lambda w: w.pop("bias_hh_l0")), "missing: \\['bias_hh_l0'\\]"),
        (broken(lambda w: w.pop("weight_ih_l0")), "expected the weights of a GRU or an RNN"),
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
            {name: np.repeat(w, 4, 0) for name, w in weights("RNN").items()},  # an LSTM's
            "weight_ih_l0 must have shape",
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
    with pytest.raises(ConversionError, match=r"no framework '\w*'; there are torch, oneflow"):
        convert(weights(), *names)


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
    with pytest.raises(ConversionError, match="'model/gru_1/gru_cell/kernel' is of a second layer"):
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
    with pytest.raises(ConversionError, match="r-torch: expected the weights of a GRU or an RNN"):
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
    half = {name: w.to(torch.bfloat16) for name, w in of.items()}
    with pytest.raises(ConversionError, match="torch: weight_ih_l0 is nothing that NumPy reads"):
        convert(half, "torch", "keras")
