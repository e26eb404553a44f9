"""The MLX package's classes are mlx.nn's: construction, parameters, files, errors, accelerate."""

import copy
import inspect
import pickle

import numpy as np
import pytest
from reference import parts

mx = pytest.importorskip("mlx.core", reason="MLX is not installed")
nn = pytest.importorskip("mlx.nn")
from mlx.utils import tree_flatten  # noqa: E402

import elman.mlx  # noqa: E402
from elman.mlx import accelerate, paths, require  # noqa: E402

NAMES = {
    "RNN": ["Wxh", "Whh", "bias"],
    "GRU": ["Wx", "Wh", "b", "bhn"],
    "LSTM": ["Wx", "Wh", "bias"],
}
every_kind = pytest.mark.parametrize("kind", NAMES)


def seeded(module, kind, *arguments, **options):
    mx.random.seed(3)
    return getattr(module, kind)(*arguments, **options)


def flat(layer):
    return dict(tree_flatten(layer.parameters()))


def assert_results(got, want, atol=0.0):
    """Equal, or close: an LSTM gives two arrays."""
    for a, b in zip(parts(got), parts(want), strict=True):
        assert np.allclose(a, b, rtol=0, atol=atol)


@every_kind
@pytest.mark.parametrize("bias", [True, False])
def test_one_layer_is_mlx_own(kind, bias):
    ours, stock = (seeded(module, kind, 3, 4, bias) for module in (elman.mlx, nn))
    assert isinstance(ours, type(stock))
    assert repr(ours) == repr(stock)
    assert ours.training == stock.training
    assert ours.hidden_size == stock.hidden_size
    assert list(flat(ours)) == list(flat(stock)) == NAMES[kind][: None if bias else 2]
    for name, want in flat(stock).items():
        assert np.array_equal(flat(ours)[name], want), name
    for name in NAMES[kind][2:]:
        assert (getattr(ours, name) is None) == (not bias)


@every_kind
def test_signature_begins_as_mlx_does(kind):
    ours = inspect.signature(getattr(elman.mlx, kind)).parameters
    stock = inspect.signature(getattr(nn, kind)).parameters
    assert list(ours)[: len(stock)] == list(stock)
    for name, want in stock.items():
        assert (ours[name].default, ours[name].kind) == (want.default, want.kind)
    added = list(ours.values())[len(stock) :]
    assert {p.name: p.default for p in added} == {
        "num_layers": 1,
        "bidirectional": False,
        "dropout": 0.0,
        **({"reset_after": True} if kind == "GRU" else {}),
        "recompute": False,
    }
    assert {p.kind for p in added} == {inspect.Parameter.KEYWORD_ONLY}


@every_kind
def test_parameters_of_layers_and_directions(kind):
    mx.random.seed(0)
    layer = getattr(elman.mlx, kind)(3, 4, num_layers=2, bidirectional=True)
    G = {"RNN": 1, "GRU": 3, "LSTM": 4}[kind]
    shapes = {name: w.shape for name, w in flat(layer).items()}
    one = dict(zip(NAMES[kind], ((4 * G, 3), (4 * G, 4), (4 * G,), (4,)), strict=False))
    above = one | {NAMES[kind][0]: (4 * G, 8)}
    assert shapes == {
        f"{side}.{k}.{name}": shape
        for side in ("layers", "layers_reverse")
        for k, group in enumerate((one, above))
        for name, shape in group.items()
    }
    values = np.concatenate([np.array(w).ravel() for w in flat(layer).values()])
    assert 0.45 < np.abs(values).max() <= 0.5  # 1/sqrt(H)
    assert len(np.unique(values)) == len(values)
    assert "num_layers=2, bidirectional=True, dropout=0.0" in repr(layer)


@every_kind
@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_files_go_both_ways(kind, suffix, tmp_path):
    path = str(tmp_path / f"weights.{suffix}")
    x = mx.random.normal((2, 5, 3))
    ours, stock = getattr(elman.mlx, kind)(3, 4), getattr(nn, kind)(3, 4)
    stock.save_weights(path)
    ours.load_weights(path)
    assert_results(ours(x), stock(x), 1e-6)
    ours = getattr(elman.mlx, kind)(3, 4)
    ours.save_weights(path)
    stock.load_weights(path)
    assert_results(ours(x), stock(x), 1e-6)
    layers = [getattr(elman.mlx, kind)(3, 4, num_layers=2, bidirectional=True) for _ in range(2)]
    layers[0].save_weights(path)
    layers[1].load_weights(path)
    assert_results(layers[0](x), layers[1](x))
    with pytest.raises(ValueError, match="layers"):
        ours.load_weights(path)


@every_kind
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_copies(kind, options):
    layer = getattr(elman.mlx, kind)(3, 4, **options)
    x = mx.random.normal((2, 5, 3))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(twin) is type(layer)
        assert_results(twin(x), layer(x))


def test_train_and_freeze_reach_every_part():
    layer = elman.mlx.GRU(3, 4, num_layers=2, dropout=0.5)
    layer.freeze()
    assert not tree_flatten(layer.trainable_parameters())
    layer.unfreeze()
    assert len(tree_flatten(layer.trainable_parameters())) == 8
    layer.eval()
    assert not any(module.training for module in layer.modules())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_layers": 0}, ValueError, "GRU: num_layers must be at least 1, got 0"),
        ({"num_layers": 2.0}, TypeError, r"GRU: num_layers must be an int, got 2\.0"),
        ({"bidirectional": 1}, TypeError, "GRU: bidirectional must be a bool, got 1"),
        ({"dropout": "a"}, TypeError, "GRU: dropout must be a number, got 'a'"),
        ({"dropout": -0.1}, ValueError, r"GRU: dropout must lie in \[0, 1\], got -0\.1"),
        ({"dropout": 1.0}, ValueError, r"1\.0 is not in \[0, 1\)"),
    ],
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        elman.mlx.GRU(3, 4, **options)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}])
def test_nonlinearity_is_a_function(options):
    with pytest.raises(ValueError, match=r"Nonlinearity must be callable\. Current value: relu"):
        elman.mlx.RNN(3, 4, nonlinearity="relu", **options)
    with pytest.raises(ValueError, match=r"Nonlinearity must be callable\. Current value: relu"):
        nn.RNN(3, 4, nonlinearity="relu")


@every_kind
@pytest.mark.parametrize(
    ("options", "x", "hidden", "message"),
    [
        ({}, (5, 2), None, r"x must be \(..., L, D\), L > 0 and D = 3, got \(5, 2\)"),
        ({}, (3,), None, r"x must be \(..., L, D\), L > 0 and D = 3, got \(3,\)"),
        ({}, (), None, r"got \(\)"),
        ({}, (2, 0, 3), None, r"got \(2, 0, 3\)"),
        ({}, (2, 5, 3), (3, 4), r"hidden must have shape \(2, 4\), got \(3, 4\)"),
        ({}, (2, 5, 3), (2, 5), r"hidden must have shape \(2, 4\), got \(2, 5\)"),
        ({}, (2, 5, 3), (), r"hidden must have shape \(2, 4\), got \(\)"),
        ({"num_layers": 2}, (2, 5, 3), (2, 4), r"shape \(2, 2, 4\), got \(2, 4\)"),
        ({"bidirectional": True}, (5, 3), (4,), r"shape \(2, 4\), got \(4,\)"),
    ],
)
def test_wrong_shapes(kind, options, x, hidden, message):
    layer = getattr(elman.mlx, kind)(3, 4, **options)
    paths.clear()
    with pytest.raises(ValueError, match=f"{kind}: .*{message}"):
        layer(mx.zeros(x), None if hidden is None else mx.zeros(hidden))
    assert not paths


@pytest.mark.parametrize(
    ("options", "cell", "message"),
    [
        ({}, (3, 4), r"cell must have shape \(2, 4\), got \(3, 4\)"),
        ({}, (), r"cell must have shape \(2, 4\), got \(\)"),
        ({"num_layers": 2}, (2, 4), r"cell must have shape \(2, 2, 4\), got \(2, 4\)"),
    ],
)
def test_wrong_shapes_of_c(options, cell, message):
    layer = elman.mlx.LSTM(3, 4, **options)
    hidden = mx.zeros((2, 2, 4) if options else (2, 4))
    for h in (hidden, None):
        with pytest.raises(ValueError, match=f"LSTM: {message}"):
            layer(mx.zeros((2, 5, 3)), h, mx.zeros(cell))
    with pytest.raises(TypeError, match=r"LSTM: cell must be an mx\.array, got ndarray"):
        layer(mx.zeros((2, 5, 3)), hidden, np.zeros((2, 4), "float32"))


@every_kind
def test_wrong_types(kind):
    layer = getattr(elman.mlx, kind)(3, 4)
    with pytest.raises(TypeError, match=f"{kind}: x must be an mx.array, got ndarray"):
        layer(np.zeros((2, 5, 3), "float32"))
    with pytest.raises(TypeError, match=f"{kind}: hidden must be an mx.array, got list"):
        layer(mx.zeros((2, 5, 3)), [0.0] * 4)
    states = [None] * (2 if kind == "LSTM" else 1)
    with pytest.raises(TypeError):
        layer(mx.zeros((2, 5, 3)), *states, [5, 1])  # lengths goes by its name


def test_nan_and_infinity_stay_in_their_row():
    x = np.zeros((3, 5, 3), "float32")
    x[0, 2], x[2, 1] = np.nan, np.inf
    for layer in (elman.mlx.GRU(3, 4), elman.mlx.LSTM(3, 4)):
        for a in map(np.array, parts(layer(mx.array(x)))):
            assert np.isfinite(a[1]).all()
            assert np.isfinite(a[0, :2]).all()
            assert np.isnan(a[0, 2:]).all()


# --- accelerate ----------------------------------------------------------------------------------


class Derived(nn.GRU):
    pass


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(3, 4)
        self.rows = [nn.Linear(4, 4), {"rnn": nn.RNN(4, 4, nonlinearity=nn.relu)}]
        self.lstm = nn.LSTM(4, 4)
        self.derived = Derived(4, 4)
        self.ours = elman.mlx.GRU(4, 4, num_layers=2)

    def __call__(self, x):
        x = self.rows[1]["rnn"](self.rows[0](self.gru(x)))
        x, cells = self.lstm(x)
        return self.ours(self.derived(x + cells))


def test_accelerate():
    model = Model()
    x, before = mx.random.normal((2, 5, 3)), dict(flat(model))
    gru, want = model.gru, model(x)
    names = accelerate(model)
    assert sorted(names) == ["gru", "lstm", "rows.1.rnn"]
    assert names.left == {"derived": "Derived is a class of its own"}
    assert model.gru is gru
    assert type(gru) is elman.mlx.GRU
    assert type(model.lstm) is elman.mlx.LSTM
    assert type(model.rows[1]["rnn"]) is elman.mlx.RNN
    assert type(model.derived) is Derived
    assert accelerate(model) == []
    assert flat(model).keys() == before.keys()
    assert all(w is before[name] for name, w in flat(model).items())
    paths.clear()
    assert np.allclose(model(x), want, atol=1e-6)
    assert paths == {"kernel": 5}
    output, h_n = gru(x, lengths=[5, 2], return_state=True)
    assert np.array_equal(output[1, 1], h_n[1])
    assert sorted(accelerate(model, undo=True)) == ["gru", "lstm", "rows.1.rnn"]
    assert type(gru) is nn.GRU
    assert type(model.lstm) is nn.LSTM
    assert type(model.rows[1]["rnn"]) is nn.RNN
    assert type(model.ours) is elman.mlx.GRU
    assert accelerate(model, undo=True) == []
    paths.clear()
    assert np.array_equal(model(x), want)
    assert paths == {"kernel": 2}


def test_accelerate_a_model_without_any():
    with pytest.warns(UserWarning, match="the model has no recurrent layer") as told:
        assert accelerate(nn.Linear(3, 4)) == []
    assert told[0].filename == __file__


@every_kind
def test_accelerate_a_layer_by_itself(kind):
    layer = getattr(nn, kind)(3, 4)
    text = repr(layer)
    assert accelerate(layer) == [""]
    with require("kernel"):
        layer(mx.zeros((5, 3)))
    assert repr(layer) == text
    assert accelerate(layer, undo=True) == [""]
    assert type(layer) is getattr(nn, kind)


# --- Paths ---------------------------------------------------------------------------------------


def test_paths_count_layers():
    paths.clear()
    elman.mlx.GRU(3, 4, num_layers=3)(mx.zeros((5, 3)))
    assert paths == {"kernel": 3}


def test_require_an_unknown_path():
    with pytest.raises(ValueError, match="'kernel', 'scan', 'mlx', got 'fast'"), require("fast"):
        pass


def test_require_is_over_after_it():
    layer = elman.mlx.GRU(3, 4)
    with require("mlx"):
        with require("kernel"):
            layer(mx.zeros((5, 3)))
        with pytest.raises(RuntimeError, match="GRU: path 'mlx' is required, but this call takes"):
            layer(mx.zeros((5, 3)))
    layer(mx.zeros((5, 3)))
