"""Files that lie: read as what they are, or refused with a clear error, in little memory.

And files that are written: whole, or not at all. ``make fuzz`` searches further from the same
functions, in ``fuzz/readers.py``.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import hostile
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from reference import assert_all_same_bits

import elman
from elman import cli
from elman.weights import convert, files
from fuzz import readers

onnx = pytest.importorskip("onnx", reason="onnx is not installed; models are read by it")
from elman import onnx as models  # noqa: E402

SEEDS = list(readers.seeds())
READERS = {reader.__name__: reader for reader, _ in SEEDS}
posix = pytest.mark.skipif(os.name != "posix", reason="such files are POSIX's")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A file to be written again and again."""
    return tmp_path_factory.mktemp("files") / "file"


@pytest.fixture(autouse=True, scope="module")
def _bounded_memory():
    """More than a call takes, and far less than these files claim."""
    with hostile.bounded_memory(2**29):
        yield


# Bytes


@pytest.mark.parametrize(("reader", "data"), SEEDS, ids=lambda part: getattr(part, "__name__", ""))
def test_a_file_cut_short_at_every_byte(reader, data, path):
    assert reader(data, path)
    for size in range(len(data)):
        whole = reader(data[:size], path)
        # Protocol buffers may end between two fields: what is read is a smaller model.
        assert not whole or reader.__name__ == "onnx"


def splice(data, place, other):
    place = place % (len(data) + 1)
    return data[:place] + other + data[place + len(other) :]


mangled = st.builds(
    splice,
    st.sampled_from([data for _, data in SEEDS]),
    st.integers(0, 4000),
    st.one_of(st.binary(max_size=4), st.sampled_from([b"\xff" * 8, b"\0" * 8, b'"', b"{", b"99"])),
)


@pytest.mark.parametrize("name", READERS)
@given(data=st.one_of(st.binary(max_size=200), mangled))
def test_any_bytes(name, data, path):
    READERS[name](data, path)


# Headers of safetensors files

GRU = elman.GRU(2, 3, seed=0)
ARGUMENTS = {"cell": "gru", "input_size": 2, "hidden_size": 3, "dtype": "float32"}
numbers = st.one_of(st.integers(-2, 40), hostile.HUGE, st.integers())
scalars = st.one_of(st.none(), st.booleans(), numbers, st.floats(), st.text(max_size=5))
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F64", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "Z9"]),
        "shape": st.lists(numbers, max_size=4),
        "data_offsets": st.lists(numbers, min_size=1, max_size=3),
    }
)
names = st.one_of(st.sampled_from([*GRU.state_dict(), "Wx", "kernel", ""]), st.text(max_size=8))


def honest():
    """The header of a good file."""
    header, end = {}, 0
    for name, w in GRU.state_dict().items():
        header[name] = {"dtype": "F32", "shape": w.shape, "data_offsets": [end, end + w.nbytes]}
        end += w.nbytes
    return header | {"__metadata__": {"elman": json.dumps(ARGUMENTS)}}


DATA = b"".join(w.tobytes() for w in GRU.state_dict().values())


def written(header, size=None, data=DATA):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if size is None else size
    return (size % 2**64).to_bytes(8, "little") + text + data


def test_the_honest_header_is_read(path):
    assert readers.safetensors(written(honest()), path)
    assert_all_same_bits(elman.load(path).state_dict(), GRU.state_dict())


@given(
    entries=st.dictionaries(names, st.one_of(entries, scalars), max_size=3),
    arguments=st.dictionaries(
        st.sampled_from([*ARGUMENTS, "num_layers", "bias", "dropout", "bidirectional", "colour"]),
        scalars,
        max_size=2,
    ),
    metadata=st.one_of(st.just({}), st.dictionaries(names, scalars, max_size=2), scalars),
    size=st.one_of(st.none(), st.none(), numbers),
)
@example(entries={}, arguments={"hidden_size": 2**28}, metadata={}, size=None)
@example(entries={}, arguments={"num_layers": 2**16}, metadata={}, size=None)
@example(entries={}, arguments={}, metadata={}, size=2**63)
def test_a_header_that_lies(entries, arguments, metadata, size, path):
    header = honest() | entries
    header["__metadata__"]["elman"] = json.dumps(ARGUMENTS | arguments)
    if metadata != {}:
        header["__metadata__"] = metadata
    readers.safetensors(written(header, size), path)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' * 2,
        b'{"\xff\xfe":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"__metadata__":{"elman":"' + b"[" * 100_000 + b'"}}',
        b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
        b"null",
        b"NaN",
    ],
    ids=lambda header: header[:40].decode(errors="replace"),
)
def test_headers_of_malice(header, path):
    assert not readers.safetensors(written(header, data=bytes(4)), path)


@pytest.mark.parametrize("shape", [[0, 2**62], [0, 2**63], [0] * 70], ids=lambda s: f"{s[:2]}")
def test_shapes_of_nothing_that_no_array_has(shape, path):
    """They take no bytes, and so the file is a good one; the error still names it."""
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
    path.write_bytes(written({"a": entry}, data=b""))
    with pytest.raises(ValueError, match=r"^load: '.*file' holds a shape that NumPy does not have"):
        elman.load(path)


# Models


MODELS = [data for reader, data in SEEDS if reader is readers.onnx]


def model(data=MODELS[0]):
    proto = onnx.ModelProto()
    proto.ParseFromString(data)
    return proto


def change_tensor(proto, data):
    tensors = list(proto.graph.initializer)
    tensor = data.draw(st.sampled_from(tensors)) if tensors else proto.graph.initializer.add()
    what = data.draw(st.sampled_from(["dims", "type", "raw", "name", "external", "values"]))
    if what == "dims":
        tensor.dims[:] = data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4))
    elif what == "type":
        tensor.data_type = data.draw(st.integers(0, 40))
    elif what == "raw":
        tensor.raw_data = tensor.raw_data[: data.draw(st.integers(0, 200))]
    elif what == "name":
        tensor.name = data.draw(st.text(max_size=4))
    elif what == "external":
        tensor.ClearField("raw_data")
        tensor.data_location = 1
        for key, value in (("location", "../file"), ("length", "9" * 15), ("offset", "-1")):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, data.draw(st.sampled_from([value, "file", "0", "x", ""]))
    else:
        tensor.ClearField("raw_data")
        tensor.float_data[:] = [0.5] * data.draw(st.integers(0, 50))


def change_node(proto, data):
    nodes = list(proto.graph.node)
    node = data.draw(st.sampled_from(nodes)) if nodes else proto.graph.node.add()
    what = data.draw(st.sampled_from(["op", "domain", "input", "output", "attribute", "remove"]))
    if what == "op":
        node.op_type = data.draw(st.sampled_from(["GRU", "RNN", "LSTM", "Identity", "Dropout", ""]))
    elif what == "domain":
        node.domain = data.draw(st.sampled_from(["com.example", "ai.onnx", "ai.onnx.ml"]))
        if data.draw(st.booleans()):
            del node.input[data.draw(st.integers(0, 2)) :]
    elif what in ("input", "output"):
        names = getattr(node, what)
        known = [name for n in proto.graph.node for name in (*n.input, *n.output)]
        if names:
            place = data.draw(st.integers(0, len(names) - 1))
            names[place] = data.draw(st.sampled_from([*known, "", "x"]))
    elif what == "attribute" and node.attribute:
        attribute = data.draw(st.sampled_from(list(node.attribute)))
        name = data.draw(st.sampled_from([attribute.name, attribute.name, "input_forget"]))
        value = data.draw(
            st.sampled_from([0, -1, 2**62, 1.5, b"\xff", "both", [b"\xff"], [1], ["Relu"], [1.5]])
        )
        attribute.CopyFrom(onnx.helper.make_attribute(name, value))
    elif node.attribute:
        del node.attribute[data.draw(st.integers(0, len(node.attribute) - 1))]


def change_model(proto, data):
    what = data.draw(st.sampled_from(["opset", "ir", "twice", "drop"]))
    if what == "opset" and proto.opset_import:
        proto.opset_import[0].version = data.draw(st.integers(-1, 99))
    elif what == "ir":
        proto.ir_version = data.draw(st.integers(-1, 99))
    elif what == "twice":
        proto.graph.node.extend(list(proto.graph.node))
    else:
        proto.graph.ClearField(data.draw(st.sampled_from(["node", "initializer", "input"])))


@given(data=st.data())
def test_a_model_that_lies(data, path):
    proto = model(data.draw(st.sampled_from(MODELS)))
    for _ in range(data.draw(st.integers(1, 3))):
        data.draw(st.sampled_from([change_tensor, change_node, change_model]))(proto, data)
    readers.onnx(proto.SerializeToString(), path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("direction", b"\xff"), ("direction", "up"), ("activations", [b"\xff", b"Tanh"])],
)
def test_attributes_that_are_no_words(name, value, path):
    proto = model()
    (node,) = (node for node in proto.graph.node if node.op_type == "GRU")
    for attribute in [a for a in node.attribute if a.name == name]:
        node.attribute.remove(attribute)
    node.attribute.append(onnx.helper.make_attribute(name, value))
    assert not readers.onnx(proto.SerializeToString(), path)


def test_a_node_of_the_same_name_that_is_not_onnxs(path):
    """Whatever com.example means by a GRU, it is not ours to read."""
    proto = model()
    for node in proto.graph.node:
        if node.op_type == "GRU":
            node.domain = "com.example"
    proto.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    assert not readers.onnx(proto.SerializeToString(), path)


FEATURES = 9 * 2 * 4  # bytes of the model's W


@pytest.fixture
def beside(tmp_path):
    """Writes a model whose W is in a file of its own, of as many bytes as is said."""

    def write(size, **entries):
        proto = model()
        (tensor,) = (t for t in proto.graph.initializer if t.name == "W")
        data = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in ({"location": "w"} | entries).items():
            tensor.external_data.add(key=key, value=str(value))
        (tmp_path / "model").write_bytes(proto.SerializeToString())
        with open(tmp_path / "w", "wb") as file:
            file.write(data)
            file.truncate(size)
        return tmp_path / "model"

    return write


@pytest.mark.parametrize("entries", [{}, {"length": FEATURES}, {"offset": 0}])
@pytest.mark.parametrize("size", [FEATURES, 2**40])
def test_weights_in_a_file_of_their_own(entries, size, beside):
    """Only what the shape takes is read of it, however large it is."""
    tensors = models.read(beside(size, **entries)).tensors
    assert_all_same_bits(convert(tensors, "onnx", "torch"), GRU.state_dict())


LYING = {
    "too short": (FEATURES - 1, {}),
    "longer than the shape": (2**40, {"length": 2**39}),
    "no length": (FEATURES, {"length": "x"}),
    "before the beginning": (FEATURES, {"offset": -1}),
    "outside": (FEATURES, {"location": "../w"}),
    "a device": (FEATURES, {"location": "/dev/zero"}),
    "no name": (FEATURES, {"location": "a" * 5000}),
    "no file": (FEATURES, {"location": "none"}),
}


@pytest.mark.parametrize("size_and_entries", LYING.values(), ids=LYING)
def test_a_file_of_weights_that_lies(size_and_entries, beside):
    size, entries = size_and_entries
    with pytest.raises(readers.weights.ConversionError, match=r"^onnx: "):
        models.read(beside(size, **entries))


@pytest.mark.parametrize("size", [-1, 0, 2, 2**62])
def test_a_hidden_size_that_is_not_the_weights(size, path):
    proto = model()
    (node,) = (node for node in proto.graph.node if node.op_type == "GRU")
    (attribute,) = (a for a in node.attribute if a.name == "hidden_size")
    attribute.i = size
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(readers.weights.ConversionError, match=f"has hidden_size {size}, but R"):
        models.read(path)


# Weights in memory, and the command

KINDS = ("ih", "hh")


def test_more_layers_or_features_than_any_layer_has():
    """Broadcast, since no memory would hold them."""
    many = {
        f"weight_{kind}_l{k}": np.ones((3, 1), "f4") for k in range(2**16 + 1) for kind in KINDS
    }
    with pytest.raises(readers.weights.ConversionError, match=r"torch: \w+: num_layers must be at"):
        convert(many, "torch", "torch")
    wide = np.broadcast_to(np.float32(1), (3, 2**31))
    with pytest.raises(readers.weights.ConversionError, match=r"torch: \w+: input_size must be at"):
        convert({"weight_ih_l0": wide, "weight_hh_l0": np.ones((3, 1), "f4")}, "torch", "mlx")


LSTMS = {
    name: dict(convert(elman.LSTM(2, 3, seed=0).state_dict(), "torch", name))
    for name in readers.weights.FRAMEWORKS
}
PROJECTED = elman.LSTM(2, 3, 2, proj_size=2, seed=0).state_dict()


@given(
    source=st.sampled_from(list(LSTMS)),
    target=st.sampled_from(list(LSTMS)),
    data=st.data(),
)
def test_an_lstm_of_which_something_is_changed(source, target, data):
    """Answered with ConversionError, or with arrays."""
    projected = source in ("torch", "oneflow") and data.draw(st.booleans())
    tensors = dict(PROJECTED if projected else LSTMS[source])
    name = data.draw(st.sampled_from(list(tensors)))
    what = data.draw(st.sampled_from(["change", "remove", "rename"]))
    a = tensors.pop(name)
    if what != "remove":
        others = st.sampled_from([name + "_", "P", "weight_hr_l0", "weight_hr", "B", ""])
        name = name if what == "change" else data.draw(others)
        tensors[name] = data.draw(hostile.changed(a))
    with contextlib.suppress(readers.weights.ConversionError, MemoryError):
        convert(tensors, source, target)


@given(
    tensors=st.one_of(
        hostile.NOTHING,
        st.dictionaries(
            st.one_of(names, st.integers(), st.none()),
            hostile.changed(np.ones((6, 2), "float32")),
            max_size=4,
        ),
    ),
    source=st.one_of(st.sampled_from(list(readers.weights.FRAMEWORKS)), hostile.NOTHING),
    target=st.one_of(st.sampled_from(list(readers.weights.FRAMEWORKS)), hostile.NOTHING),
)
@example(tensors={1: np.ones((6, 2), "float32")}, source="keras", target="torch")
@example(tensors={}, source=[], target="torch")
@example(tensors=None, source="torch", target="mlx")
def test_weights_that_are_none(tensors, source, target):
    with contextlib.suppress(readers.weights.ConversionError, MemoryError):
        convert(tensors, source, target)
    with contextlib.suppress(readers.weights.ConversionError, MemoryError):
        for layer in readers.weights.find(tensors, source):
            assert str(layer)


COMMAND = ["convert", "a.safetensors", "b.onnx", "--from", "torch", "--to", "onnx", "--force"]
words = st.one_of(
    st.sampled_from(
        [*COMMAND, "--cell", "--no-cell", "--layer", "--list", "info", "--from=mlx", "-h", "\0"]
    ),
    st.text(max_size=5),
    st.sampled_from(["a\n.safetensors", "\udcff.onnx", "../x/y.onnx", "a" * 300 + ".onnx"]),
)


@given(data=st.data())
def test_any_command_line(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    here = os.getcwd()
    os.chdir(folder)
    try:
        GRU.save("a.safetensors")
        arguments = list(COMMAND)
        for _ in range(data.draw(st.integers(1, 2))):
            arguments[data.draw(st.integers(0, len(arguments) - 1))] = data.draw(words)
        try:
            status = cli.main(arguments)
        except SystemExit as e:  # usage
            status = e.code
        assert status in (0, 1, 2)
        found = set(os.listdir())
        assert len(found) <= 2, "something is left over"
        if status != 0:
            assert found == {"a.safetensors"}, "a target is there though the command failed"
    finally:
        os.chdir(here)


# Writing


def contents():
    """Of every file in the working directory."""
    return {path.name: path.read_bytes() for path in Path().iterdir()}


def savers():
    tensors = convert(GRU.state_dict(), "torch", "onnx")
    return {
        "save": lambda path: GRU.save(path),
        "onnx": lambda path: models.write(path, tensors),
        "convert": lambda path: cli.main(["convert", "given.safetensors", path, *COMMAND[3:]]),
    }


@posix
@pytest.mark.parametrize("how", savers())
@pytest.mark.parametrize("there", [False, True])
def test_a_disk_that_is_full(how, there, tmp_path, monkeypatch, capsys):
    """At every byte of the file: the old one stays, and nothing else."""
    import resource

    monkeypatch.chdir(tmp_path)
    GRU.save("given.safetensors")
    save = savers()[how]
    target = "target.onnx"
    save(target)
    size = os.path.getsize(target)
    if there:
        with open(target, "wb") as file:
            file.write(b"old")
    else:
        os.unlink(target)
    before = contents()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in {0, 1, 7, 8, 9, size // 2, size - 1}:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            if how == "convert":
                assert save(target) == 1
            else:
                with pytest.raises(OSError, match="File too large"):
                    save(target)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert contents() == before
    assert save(target) in (None, 0)
    assert os.path.getsize(target) == size
    capsys.readouterr()


KILLED = """
import os, signal, sys
import elman
from elman.weights import files
def end(*_):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, sys.argv[1], end)
elman.GRU(2, 3).save("layer.safetensors")
"""


@posix
@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_process_that_is_killed_while_it_writes(moment, tmp_path):
    GRU.save(tmp_path / "layer.safetensors")
    done = subprocess.run([sys.executable, "-c", KILLED, moment], cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL
    assert_all_same_bits(elman.load(tmp_path / "layer.safetensors").state_dict(), GRU.state_dict())


@posix
def test_what_is_no_regular_file(tmp_path):
    """A pipe would be waited for, and a device replaced by a file."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for use in (elman.load, models.read, GRU.save):
        with pytest.raises(OSError, match="not a regular file"):
            use(pipe)
        with pytest.raises(IsADirectoryError):
            use(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]
    assert pipe.is_fifo()


@posix
def test_a_link_stays_one(tmp_path):
    (tmp_path / "folder").mkdir()
    link, file = tmp_path / "link", tmp_path / "folder" / "file"
    link.symlink_to("folder/file")
    for _ in range(2):  # to nothing yet, then to the file
        GRU.save(link)
        assert link.is_symlink()
        assert_all_same_bits(elman.load(file).state_dict(), GRU.state_dict())
    assert os.listdir(file.parent) == ["file"]


def test_every_kind_of_path(tmp_path):
    long = tmp_path / ("a" * 250)
    for path in (str(long), long, os.fsencode(long)):
        GRU.save(path)
        assert_all_same_bits(elman.load(path).state_dict(), GRU.state_dict())
        os.unlink(path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path, monkeypatch):
    """What is mapped and then cut short ends the process; what is read does not."""
    path = tmp_path / "file"
    GRU.save(path)
    read = files.read_whole

    def cut_short(given):
        data = read(given)
        os.truncate(given, 10)
        return data

    monkeypatch.setattr(files, "read_whole", cut_short)
    assert_all_same_bits(elman.load(path).state_dict(), GRU.state_dict())
