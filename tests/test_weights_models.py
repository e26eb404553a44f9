"""Files and models as frameworks write them: what is found in them computes what they do.

Nothing here is by Elman's own names: each framework names and stores its own layers.
"""

import os
import pickle
import re
import zipfile

import numpy as np
import pytest
from reference import assert_close
from safetensors.numpy import load_file

import elman
from elman import cli
from elman.weights import ConversionError, build, convert, find, models, to_canonical

D, H, L, N = 3, 4, 6, 2
pytestmark = pytest.mark.filterwarnings("ignore")  # the frameworks' own


def needs(name):
    return pytest.importorskip(name, reason=f"{name} is not installed; its own files are read")


def x():
    return np.random.default_rng(1).normal(size=(L, N, D)).astype("float32")


def layer_of(canonical):
    """Elman's layer of these weights; a cell's are those of a layer of one."""
    spec = canonical.spec
    layer = getattr(elman, spec.cell.kind)(
        spec.input_size,
        spec.hidden_size,
        spec.num_layers,
        bias=spec.bias,
        bidirectional=spec.bidirectional,
        dtype=canonical.dtype,
    )
    weights = canonical.weights
    layer.load_state_dict({f"{n}_l0": w for n, w in weights.items()} if canonical.cell else weights)
    return layer


def converted(tensors, source):
    return layer_of(to_canonical(tensors, source))


# elman.mlx: layers and directions under names of its own


@pytest.mark.parametrize(("layers", "directions"), [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("kind", ["GRU", "RNN", "LSTM"])
def test_elmans_own_layers_of_mlx(kind, layers, directions):
    mx, utils = needs("mlx.core"), needs("mlx.utils")
    import elman.mlx

    theirs = getattr(elman.mlx, kind)(D, H, num_layers=layers, bidirectional=directions == 2)
    ours = getattr(elman, kind)(D, H, layers, bidirectional=directions == 2, seed=3)
    tensors = convert(ours.state_dict(), "torch", "mlx")
    own = dict(utils.tree_flatten(theirs.parameters()))
    assert {n: a.shape for n, a in own.items()} == {n: a.shape for n, a in tensors.items()}
    theirs.load_weights([(name, mx.array(a)) for name, a in tensors.items()])
    output = theirs(mx.array(x().swapaxes(0, 1)))
    output = np.array(output[0] if kind == "LSTM" else output).swapaxes(0, 1)
    assert_close(output, ours(x())[0])
    own = dict(utils.tree_flatten(theirs.parameters()))
    assert_close(converted(own, "mlx")(x())[0], output)


def test_what_elman_mlx_saves(tmp_path, capsys):
    needs("mlx.core")
    import mlx.nn as nn

    import elman.mlx

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = elman.mlx.GRU(D, H, num_layers=2, bidirectional=True)
            self.blocks = nn.Sequential(nn.LSTM(2 * H, H), nn.Linear(H, H))
            self.head = nn.Linear(H, 2)

    path = tmp_path / "mlx.safetensors"
    Model().save_weights(str(path))
    found = {f.prefix: f.spec for f in find(load_file(path), "mlx")}
    assert {prefix: spec.title for prefix, spec in found.items()} == {
        "encoder": "GRU",
        "blocks.layers.0": "LSTM",
    }
    assert (found["encoder"].num_layers, found["encoder"].directions) == (2, 2)


# PyTorch's checkpoints


def checkpoint(torch):
    model = torch.nn.ModuleDict(
        {
            "gru": torch.nn.GRU(D, H, 2, bidirectional=True),
            "cell": torch.nn.LSTMCell(H, H),
            "linear": torch.nn.Linear(H, 2),
        }
    )
    optimiser = torch.optim.Adam(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    optimiser.step()
    return model, {
        "step": 3,
        "model": model.state_dict(),
        "parameters": dict(model.half().named_parameters()),
        "optimiser": optimiser.state_dict(),
        "more": [(torch.ones(2),), None, "text"],
    }


@pytest.mark.parametrize("end", [".pt", ".pth"])
@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints(end, zipped, tmp_path, monkeypatch, capsys):
    torch = needs("torch")
    monkeypatch.chdir(tmp_path)
    model, saved = checkpoint(torch)
    torch.save(saved, f"model{end}", _use_new_zipfile_serialization=zipped)
    tensors = models.read(f"model{end}")
    assert "optimiser.state.0.exp_avg" in tensors
    assert tensors["more.0.0"].tolist() == [1, 1]
    found = find(tensors, "torch")
    assert [(f.prefix, f.dtype) for f in found] == [
        ("model.gru", "float32"),
        ("model.cell", "float32"),
        ("parameters.gru", "float16"),
        ("parameters.cell", "float16"),
    ]
    with torch.no_grad():
        want = model.float()["gru"](torch.from_numpy(x()))[0].numpy()
    got = converted(found[0].tensors, "torch")(x())[0]
    np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-2)  # model.half() rounded theirs
    assert cli.main(["convert", f"model{end}", "--list"]) == 0
    out = capsys.readouterr().out
    assert "model.gru: GRU, 2 layers, 2 directions, input size 3, hidden size 4, float32\n" in out
    asked = ["convert", f"model{end}", "b.safetensors", "--to=torch", "--layer=model.cell"]
    assert cli.main(asked) == 0
    assert load_file("b.safetensors").keys() == model["cell"].state_dict().keys()


class Runs:
    """What unpickles it runs a command."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("how", ["a pickle", "torch's", "a module", "a script", "nothing", "text"])
def test_what_is_no_checkpoint_of_tensors_alone(how, tmp_path, monkeypatch, capsys):
    torch = needs("torch")
    monkeypatch.chdir(tmp_path)
    gru = torch.nn.GRU(D, H)
    if how == "a script":
        torch.jit.script(gru).save("a.pt")
    elif how in ("torch's", "a module"):
        torch.save(Runs() if how == "torch's" else gru, "a.pt")
    else:
        data = {"a pickle": pickle.dumps(Runs()), "nothing": b"", "text": b"hello, world"}[how]
        (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(ConversionError, match=r"^torch: 'a.pt' is no checkpoint of tensors alone"):
        models.read("a.pt")
    assert cli.main(["convert", "a.pt", "b.safetensors", "--to=mlx"]) == 1
    assert os.listdir() == ["a.pt"]
    assert capsys.readouterr().err.count("\n") == 1


def test_a_checkpoint_that_holds_itself(tmp_path):
    torch = needs("torch")
    saved = {"w": torch.ones(2), "deep": []}
    saved["deep"].append(saved)
    torch.save(saved, tmp_path / "a.pt")
    assert list(models.read(tmp_path / "a.pt")) == ["w"]


def test_half_a_checkpoint(tmp_path):
    torch = needs("torch")
    torch.save(torch.nn.GRU(D, H).state_dict(), tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    for size in range(0, len(data), 97):
        (tmp_path / "a.pt").write_bytes(data[:size])
        with pytest.raises(ConversionError, match="is no checkpoint"):
            models.read(tmp_path / "a.pt")


# Keras's files


@pytest.fixture(scope="module")
def keras():
    os.environ.setdefault("KERAS_BACKEND", "torch")
    needs("h5py")
    return needs("keras")


def sequential(keras):
    """Layers under names of a user's and of Keras's, and numbers that Keras makes up."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((L, D)),
            layers.GRU(H, return_sequences=True, name="c"),
            layers.GRU(H, return_sequences=True),
            layers.Bidirectional(layers.LSTM(H, return_sequences=True)),
            layers.RNN(
                layers.StackedRNNCells([layers.SimpleRNNCell(H), layers.SimpleRNNCell(H)]),
                return_sequences=True,
            ),
            layers.Dense(2),
        ]
    )
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.5, w.shape).astype("float32") for w in model.weights])
    return model


@pytest.mark.parametrize("end", [".weights.h5", ".keras", ".h5"])
def test_files_of_keras(keras, end, tmp_path, capsys):
    model = sequential(keras)
    path = str(tmp_path / f"model{end}")
    model.save_weights(path) if end == ".weights.h5" else model.save(path)
    tensors = models.read(path)
    found = {f.prefix: f for f in find(tensors, "keras")}
    assert len(found) == 5
    names = {
        ".h5": [r"/c", r"/gru(_\d+)?", r"/bidirectional(_\d+)?"],
    }.get(end, ["/gru", "/gru_1", "/bidirectional"])
    ours = [
        converted(one.tensors, "keras")
        for name in names
        for prefix, one in found.items()
        if re.fullmatch(f".*{name}", prefix)
    ]
    assert len(ours) == 3
    value = x().swapaxes(0, 1)
    for layer, one in zip(model.layers[:3], ours, strict=True):
        want = keras.ops.convert_to_numpy(keras.ops.stop_gradient(layer(value)))
        assert_close(one(value.swapaxes(0, 1))[0].swapaxes(0, 1), want)
        value = want
    stacked = {n: a for f in found.values() if "rnn" in f.prefix for n, a in f.tensors.items()}
    cells = converted(stacked, "keras")
    want = keras.ops.convert_to_numpy(keras.ops.stop_gradient(model.layers[3](value)))
    assert cells.spec.num_layers == 2
    assert_close(cells(value.swapaxes(0, 1))[0].swapaxes(0, 1), want)
    assert cli.main(["convert", path, str(tmp_path / "b.safetensors"), "--to=torch"]) == 0
    out = capsys.readouterr().out
    assert "GRU, 2 layers, 1 direction" in out or end == ".h5"  # which has names, not numbers
    assert "skip" in out


@pytest.mark.parametrize("end", [".weights.h5", ".keras", ".h5"])
def test_stacks_in_files_of_keras(keras, end, tmp_path, monkeypatch):
    """Three layers of two directions that reset before, with a name of the model's around them."""
    monkeypatch.chdir(tmp_path)
    layers = [
        keras.layers.Bidirectional(keras.layers.GRU(H, reset_after=False, return_sequences=True))
        for _ in range(3)
    ]
    model = keras.Sequential([keras.Input((L, D)), *layers, keras.layers.Dense(2)])
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.5, w.shape).astype("float32") for w in model.weights])
    value = x().swapaxes(0, 1)
    want = value
    for layer in layers:
        want = keras.ops.convert_to_numpy(keras.ops.stop_gradient(layer(want)))
    model.save_weights(f"a{end}") if end == ".weights.h5" else model.save(f"a{end}")
    prefixes = [f.prefix.replace("/", ".") for f in find(models.read(f"a{end}"), "keras")]
    assert len(prefixes) == 3
    assert cli.main(["convert", f"a{end}", "b.safetensors", "--to=elman"]) == 0
    (layer,) = find(load_file("b.safetensors"), "elman")
    assert layer.prefix in prefixes
    ours = build(layer.tensors, "elman", reset_after=False, batch_first=True)
    assert ours.spec.num_layers == 3
    assert_close(ours(value)[0], want)


def test_a_subclass_of_kerass_model(keras, tmp_path):
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder = keras.layers.GRU(H, return_state=True)
            self.decoder = keras.layers.LSTMCell(H, name="mine")
            self.head = keras.layers.Dense(2)

        def call(self, x):
            _, h = self.encoder(x)
            return self.head(self.decoder(h, [h, h])[0])

    model = Model()
    model(x().swapaxes(0, 1))
    path = str(tmp_path / "a.weights.h5")
    model.save_weights(path)
    found = find(models.read(path), "keras")
    assert {f.prefix: str(f.spec) for f in found} == {"encoder": "GRU", "decoder": "LSTM"}
    by_path = {w.path: w.numpy() for w in model.weights}
    found = find(by_path, "keras")
    assert [str(f.spec) for f in found] == ["GRU", "LSTM"]
    assert found[1].prefix.endswith("/mine")


def test_bfloat16_in_kerass_files(keras, tmp_path):
    h5py, ml_dtypes = needs("h5py"), needs("ml_dtypes")
    want = convert(elman.GRU(D, H, seed=0, dtype="bfloat16").state_dict(), "torch", "keras")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, a in want.items():
            file.create_dataset(name, data=a).attrs["dtype"] = "bfloat16"  # as Keras does
    got = convert(models.read(tmp_path / "a.h5"), "keras", "keras")
    for name, a in want.items():
        assert got[name].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(got[name].view("u2"), a.view("u2"))


def hdf5(path, **datasets):
    with needs("h5py").File(path, "w") as file:
        for name, options in datasets.items():
            file.create_dataset(name, **options)


def test_hdf5_that_lies(tmp_path):
    h5py = needs("h5py")
    path = tmp_path / "a.h5"
    for data in (b"", b"hello", b"\x89HDF\r\n\x1a\n" + bytes(100)):
        path.write_bytes(data)
        with pytest.raises(ConversionError, match=r"^keras: '.*a.h5' cannot be read as HDF5"):
            models.read(path)
    hdf5(path, kernel={"shape": (2**20, 2**20), "dtype": "f4", "chunks": (2, 2)})
    with pytest.raises(ConversionError, match=r"kernel has shape \(1048576, 1048576\), of more b"):
        models.read(path)
    (tmp_path / "secret").write_bytes(bytes(64))
    outside = [(str(tmp_path / "secret"), 0, 64)]
    hdf5(path, kernel={"shape": (16,), "dtype": "f4", "external": outside})
    with pytest.raises(ConversionError, match="kernel lies in another file"):
        models.read(path)
    layout = h5py.VirtualLayout((16,), "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "w", (16,))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("kernel", layout)
        file["link"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "w")
    with pytest.raises(ConversionError, match="kernel lies in another file"):
        models.read(path)


@pytest.mark.parametrize("how", ["no zip", "no weights", "compressed", "no hdf5"])
def test_what_is_no_keras_file(how, tmp_path):
    needs("h5py")
    path = tmp_path / "a.keras"
    if how == "no zip":
        path.write_bytes(b"PK\x03\x04 hello")
    else:
        packed = zipfile.ZIP_DEFLATED if how == "compressed" else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", packed) as archive:
            name = "config.json" if how == "no weights" else "model.weights.h5"
            archive.writestr(name, bytes(1000))
    with pytest.raises(ConversionError, match=r"^keras: '.*a.keras' (is no .keras|cannot be read)"):
        models.read(path)


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("elman.weights.files.find_spec", lambda name: None)
    for name, package, extra in (("a.h5", "h5py", "h5py"), ("a.pt", "torch", "torch")):
        (tmp_path / name).write_bytes(b"")
        assert cli.main(["convert", name, "--list"]) == 1
        why = f"needs the package {package}, which the extra elman[{extra}] brings: pip install"
        assert why in capsys.readouterr().err


# Flax's modules as their users write them


def test_a_compact_module_of_flax():
    linen, jax, traverse = needs("flax.linen"), needs("jax"), needs("flax.traverse_util")

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            carry = np.zeros((N, H), "float32")
            carry, _ = linen.GRUCell(H)(carry, x[:, 0])
            x = linen.Dense(D)(linen.RNN(linen.GRUCell(H))(x))
            return carry, linen.RNN(linen.OptimizedLSTMCell(H))(x)

    params = Model().init(jax.random.key(0), x().swapaxes(0, 1))["params"]
    tensors = traverse.flatten_dict(params, sep=".")
    assert "GRUCell_0.ir.kernel" in tensors
    found = {f.prefix: f for f in find(tensors, "flax-linen")}
    assert found.keys() == {"GRUCell_0", "GRUCell_1", "OptimizedLSTMCell_0"}
    ours = converted(found["GRUCell_1"].tensors, "flax-linen")
    variables = {"params": params["GRUCell_1"]}
    h = np.zeros((N, H), "float32")
    for x_t in x():
        h, _ = linen.GRUCell(H).apply(variables, h, x_t)
    assert_close(ours(x())[1][0], np.asarray(h))


def test_a_sequential_of_flax(tmp_path, monkeypatch, capsys):
    nnx, rngs = needs("flax.nnx"), needs("flax.nnx").Rngs(0)
    from safetensors.numpy import save_file

    class Model(nnx.Module):
        def __init__(self):
            sizes = [D, H]
            cells = [nnx.RNN(nnx.SimpleCell(size, H, rngs=rngs)) for size in sizes]
            self.encoder, self.head = nnx.Sequential(*cells), nnx.Linear(H, 2, rngs=rngs)

    model = Model()
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    tensors = {".".join(map(str, path)): np.array(w.get_value()) for path, w in state}
    assert [f.spec.num_layers for f in find(tensors, "flax-nnx")] == [1, 1]
    monkeypatch.chdir(tmp_path)
    save_file(tensors, "a.safetensors")
    assert (
        cli.main(["convert", "a.safetensors", "b.safetensors", "--from=flax-nnx", "--to=torch"])
        == 0
    )
    out = capsys.readouterr().out
    assert "encoder: flax-nnx RNN, 2 layers" in out
    assert "skip   a.safetensors: 2 tensors of no recurrent layer" in out
    weights = load_file("b.safetensors")
    ours = elman.RNN(D, H, 2)
    ours.load_state_dict({n.removeprefix("encoder."): w for n, w in weights.items()})
    want = np.array(model.encoder(x().swapaxes(0, 1))).swapaxes(0, 1)
    assert_close(ours(x())[0], want)
