"""Models with the PyTorch package's layers, exported by torch.onnx and run by ONNX Runtime."""

import io
from collections import Counter

import pytest
import torch
from reference import each, parts, whole
from test_torch_layers import agree, sizes_of, twins
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

import elman.onnx
import elman.torch
from elman.weights import convert

onnx = pytest.importorskip("onnx", reason="onnx is not installed; models are checked by it")
runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed; torch exports with it")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporter, about itself
if not hasattr(torch.onnx, "ops"):
    pytest.skip("torch exports layers from 2.8 on", allow_module_level=True)

D, H = 3, 4
SIZES = [(5, 2), (9, 4), (1, 1)]  # L and N; the first are those of the example


class Model(nn.Module):
    """A layer, called with what is given."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, hx=None, lengths=None):
        return self.layer(x, hx) if lengths is None else self.layer(x, hx, lengths=lengths)


def export(model, args, dynamic=None, **options):
    program = torch.onnx.export(
        model.eval(), args, dynamic_shapes=dynamic, verbose=False, **options
    )
    onnx.checker.check_model(program.model_proto, full_check=True)
    return program


def session(program):
    return runtime.InferenceSession(program.model_proto.SerializeToString())


def run(program, *args):
    """The model's outputs in ONNX Runtime."""
    opened = session(program)
    names = [i.name for i in opened.get_inputs()]
    given = [a.numpy() for a in tree_leaves(args) if a is not None]
    return [torch.from_numpy(a) for a in opened.run(None, dict(zip(names, given, strict=True)))]


def operators(program):
    return Counter(node.op_type for node in program.model_proto.graph.node)


def nodes(program, kind):
    """The attributes and the inputs of the model's nodes of a kind."""
    found = [node for node in program.model_proto.graph.node if node.op_type == kind]
    return [
        ({a.name: onnx.helper.get_attribute_value(a) for a in n.attribute}, list(n.input))
        for n in found
    ]


def arguments(layer, L, N, given):
    random = torch.Generator().manual_seed(L)
    states = layer.num_layers * (2 if layer.bidirectional else 1)
    shape = (N, L, D) if layer.batch_first else (L, N, D)
    x = torch.randn(shape, generator=random)
    hx = None
    if "hx" in given:
        sizes = sizes_of(layer)
        hx = whole([torch.randn(states, N, size, generator=random) for size in sizes])
    lengths = torch.randint(0, L + 1, (N,), generator=random) if "lengths" in given else None
    if lengths is not None:
        lengths[0], lengths[-1] = 0, L  # a row without steps, and one with all
    return x, hx, lengths


def compare(program, model, args):
    with torch.no_grad():
        want = tree_leaves(model(*args))
    got = run(program, *args)
    assert len(got) == len(want)
    agree(dict(enumerate(got)), dict(enumerate(want)))


CASES = [
    ("gru", {"bias": False}, ("hx",)),
    ("gru", {"num_layers": 2, "dropout": 0.5}, ("hx", "lengths")),
    ("gru", {"num_layers": 2, "bidirectional": True, "batch_first": True}, ("hx", "lengths")),
    ("gru_reset_before", {}, ("hx",)),
    ("gru_reset_before", {"num_layers": 2, "bidirectional": True}, ("hx", "lengths")),
    ("rnn_tanh", {"num_layers": 2, "bidirectional": True}, ("hx", "lengths")),
    ("rnn_relu", {"bidirectional": True, "bias": False}, ()),
    ("rnn_relu", {"num_layers": 2}, ("hx",)),
    ("lstm", {"bias": False, "batch_first": True}, ("hx",)),
    ("lstm", {"bidirectional": True}, ("lengths",)),
    ("lstm", {"num_layers": 2, "bidirectional": True}, ("hx", "lengths")),
]


@pytest.mark.parametrize(("kind", "options", "given"), CASES)
def test_the_model_computes_what_the_layer_does_at_any_size(kind, options, given):
    _, layer = twins(kind, D, H, **options)
    model, (time, batch) = Model(layer), (1, 0) if layer.batch_first else (0, 1)
    example = arguments(layer, *SIZES[0], given)
    states = None if example[1] is None else each(lambda _: {1: "N"}, example[1])
    axes = ({time: "L", batch: "N"}, states, {0: "N"})
    dynamic = tuple(None if a is None else d for a, d in zip(example, axes, strict=True))
    program = export(model, example, dynamic)
    for L, N in SIZES:
        compare(program, model, arguments(layer, L, N, given))

    stored = {initialiser.name for initialiser in program.model_proto.graph.initializer}
    name = kind.partition("_")[0].upper()
    assert not {"Scan", "Loop", "If"} & operators(program).keys()
    assert len(nodes(program, name)) == layer.num_layers
    for attributes, inputs in nodes(program, name):
        assert attributes["hidden_size"] == H
        directions = b"bidirectional" if layer.bidirectional else b"forward"
        assert attributes["direction"] == directions
        if name == "GRU":
            assert attributes["linear_before_reset"] == (kind == "gru")
        _, W, R, B, sequence_lens, *initial = [*inputs, *[""] * 4][: 5 + len(sizes_of(layer))]
        assert {W, R} <= stored
        assert (B in stored) == layer.bias
        assert bool(sequence_lens) == ("lengths" in given)
        assert {*map(bool, initial)} == {"hx" in given}


@pytest.mark.parametrize("kind", ["gru", "rnn_tanh", "lstm"])
def test_the_model_computes_what_torchs_own_packed_layer_does(kind):
    theirs, ours = twins(kind, D, H, 2, bidirectional=True)
    x, _, _ = arguments(ours, 9, 3, ())
    lengths = torch.tensor([4, 9, 1])
    axes = ({0: "L", 1: "N"}, None, {0: "N"})
    program = export(Model(ours), (x[:7, :2], None, torch.tensor([7, 3])), axes)
    with torch.no_grad():
        output, h_n = theirs(pack_padded_sequence(x, lengths, enforce_sorted=False))
    got = run(program, x, lengths)
    agree(dict(enumerate(got)), dict(enumerate([pad_packed_sequence(output)[0], *parts(h_n)])))


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_input_without_a_batch(kind):
    _, layer = twins(kind, D, H, bidirectional=True)
    model, x = Model(layer), torch.randn(9, D)
    program = export(model, (x[:5], None, torch.tensor(3)), ({0: "L"}, None, {}))
    for length in (0, 6, 9):
        compare(program, model, (x, None, torch.tensor(length)))
    compare(export(model, (x[:5],), ({0: "L"},)), model, (x,))


class Tagger(nn.Module):
    """A whole model: embedding, accelerated layers, and a mean over the steps that are there."""

    def __init__(self, name):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.layer = getattr(nn, name)(8, 16, 2, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(32, 5)
        elman.torch.accelerate(self)

    def forward(self, tokens, lengths):
        output, _ = self.layer(self.embedding(tokens), lengths=lengths)
        return (self.linear(output.sum(1) / lengths[:, None]),)


@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_a_whole_model_and_the_exporters_own_verification(name, caplog):
    from torch.onnx.verification import verify_onnx_program

    torch.manual_seed(0)
    model, axes = Tagger(name), ({0: "N", 1: "L"}, {0: "N"})
    example = torch.randint(11, (2, 6)), torch.tensor([6, 2])
    program = export(model, example, axes, verify=True)
    assert "difference" not in caplog.text
    worst = verify_onnx_program(program)
    assert max(info.max_abs_diff for info in worst) < 1e-6
    compare(program, model, (torch.randint(11, (5, 13)), torch.tensor([13, 1, 7, 12, 2])))
    assert operators(program)[name] == 2


@pytest.mark.parametrize(
    ("kind", "options"), [("gru", {"num_layers": 2}), ("rnn_tanh", {}), ("lstm", {})]
)
def test_weights_are_stored_as_they_are_however_large(kind, options, tmp_path):
    """The exporter leaves what it computes of more than 8192 values to the runtime."""
    _, layer = twins(kind, 40, 100, bidirectional=True, **options)
    export(Model(layer), (torch.randn(3, 2, 40),)).save(tmp_path / "m.onnx")
    found = elman.onnx.read(tmp_path / "m.onnx")
    assert found.nonlinearity == kind.partition("_")[2]
    back = convert(found.tensors, "onnx", "torch")
    assert back.keys() == layer.state_dict().keys()
    assert all(torch.equal(torch.from_numpy(back[n]), w) for n, w in layer.state_dict().items())


class Replaced(Model):
    """Calls its layer with other weights than the layer's own."""

    def forward(self, x):
        weights = {name: 2 * w for name, w in self.layer.named_parameters()}
        return torch.func.functional_call(self.layer, weights, (x,))


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: Model(nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")),
        Replaced,
    ],
    ids=["weight_norm", "functional_call"],
)
@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_weights_that_are_computed(kind, change):
    _, layer = twins(kind, D, H)
    model, x = change(layer), torch.randn(9, 3, D)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    program = export(model, (x[:5, :2],), ({0: "L", 1: "N"},))
    compare(program, model, (x,))
    assert operators(program)[kind.upper()] == 1


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_float16(kind):
    _, layer = twins(kind, D, H, bidirectional=True)
    x = torch.randn(9, 3, D)
    with torch.no_grad():
        want = tree_leaves(layer(x))
    program = export(Model(layer.half()), (x[:5, :2].half(),), ({0: "L", 1: "N"},))
    for got, w in zip(run(program, x.half()), want, strict=True):
        assert got.dtype == torch.float16
        torch.testing.assert_close(got.float(), w, rtol=0, atol=5e-3)  # a few of its 2**-11


def test_float64_in_onnxs_own_evaluator():
    """ONNX Runtime has neither a GRU nor an RNN of float64."""
    _, layer = twins("gru", D, H, dtype=torch.float64)
    x = torch.randn(5, 2, D, dtype=torch.float64)
    program = export(Model(layer), (x,))
    evaluator = onnx.reference.ReferenceEvaluator(program.model_proto)
    got = [torch.from_numpy(a) for a in evaluator.run(None, {"x": x.numpy()})]
    with torch.no_grad():
        agree(dict(enumerate(got)), dict(enumerate(layer(x))))


class Cell(Model):
    def forward(self, x, hx=None):
        return (self.layer(x, hx),)


@pytest.mark.parametrize("name", ["GRUCell", "RNNCell", "LSTMCell"])
def test_cells_are_plain_operators(name):
    torch.manual_seed(0)
    model = Cell(getattr(elman.torch, name)(D, H))
    x, hx = torch.randn(5, D), whole([*torch.randn(2 if name == "LSTMCell" else 1, 5, H)])
    few, axes = each(lambda t: t[:2], hx), each(lambda _: {0: "N"}, hx)
    program = export(model, (x[:2], few), ({0: "N"}, axes))
    compare(program, model, (x, hx))
    compare(export(model, (x[:2],), ({0: "N"},)), model, (x,))
    assert {"Gemm", "Tanh"} <= operators(program).keys()


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_what_lies_past_a_length_is_not_read_and_a_length_past_the_end_is_refused(kind):
    _, layer = twins(kind, D, H)
    x, lengths = torch.randn(5, 2, D), torch.tensor([2, 5])
    x[2:, 0] = float("nan")
    axes = ({0: "L", 1: "N"}, None, {0: "N"})
    program = export(Model(layer), (x, None, lengths), axes)
    output, *states = run(program, x, lengths)
    assert not any(t.isnan().any() for t in (output, *states))
    assert (output[2:, 0] == 0).all()
    with pytest.raises(Exception, match=r"sequence_lens. All values must be >= 0 and <= seq_"):
        run(program, x, torch.tensor([2, 6]))


class Episodes(Model):
    def forward(self, x, reset):
        return self.layer(x, reset=reset)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_reset_is_refused(kind):
    _, layer = twins(kind, D, H)
    name = kind.upper()
    with pytest.raises(
        Exception, match=rf"{name}: reset= cannot be exported; ONNX's {name} has no"
    ):
        export(Episodes(layer), (torch.randn(5, 2, D), torch.zeros(5, 2, dtype=torch.bool)))


def test_a_projection_is_refused():
    _, layer = twins("lstm_proj", D, H)
    with pytest.raises(Exception, match=r"LSTM: proj_size= cannot be exported; ONNX's LSTM has no"):
        export(Model(layer), (torch.randn(5, 2, D),))


# What torch's own layers cannot do, so that the table in docs/pytorch.md stays true


class Packed(Model):
    def forward(self, x, lengths):
        output, h_n = self.layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return pad_packed_sequence(output)[0], h_n


@pytest.mark.parametrize("kind", ["gru", "rnn_tanh", "lstm"])
def test_torchs_own_layer_is_exported_for_one_number_of_steps(kind):
    """What it does depends on what was exported before: it refuses, or its model fails later."""
    theirs, _ = twins(kind, D, H)
    model, x = Model(theirs), torch.randn(9, 2, D)
    with pytest.raises(Exception, match=r"static shape of 5|requested shape:\{5,"):
        compare(export(model, (x[:5],), ({0: "L", 1: "N"},)), model, (x,))


def test_torchs_own_rnn_is_unrolled():
    theirs, _ = twins("rnn_tanh", D, H)
    assert operators(export(Model(theirs), (torch.randn(5, 2, D),)))["Tanh"] == 5


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_torchs_own_layer_is_not_exported_with_packing(kind):
    theirs, _ = twins(kind, D, H)
    with pytest.raises(Exception, match="Failed to export the model"):
        export(Packed(theirs), (torch.randn(5, 2, D), torch.tensor([5, 2])))


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_torchs_own_large_weights_are_computed_in_the_model(kind):
    theirs, _ = twins(kind, 40, 100)
    program = export(Model(theirs), (torch.randn(3, 2, 40),))
    stored = {initialiser.name for initialiser in program.model_proto.graph.initializer}
    ((_, (_, W, *_)),) = nodes(program, kind.upper())
    assert W not in stored


class WithLengths(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, lengths):
        return self.layer(x, lengths=lengths)[0]


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM", "GRUCell"])
@pytest.mark.parametrize("accelerated", [True, False])
def test_the_older_exporter_takes_torchs_own(name, accelerated):
    """Tracing for ``dynamo=False``, which knows torch's operators; or it says what to use."""
    torch.manual_seed(0)
    layer = getattr(nn if accelerated else elman.torch, name)(D, H).eval()
    if accelerated:
        elman.torch.accelerate(layer)
    x = torch.randn(2, D) if name == "GRUCell" else torch.randn(5, 2, D)
    expected = layer(x)
    expected = expected[0] if isinstance(expected, tuple) else expected
    for model in (nn.Sequential(layer), layer):  # whose own keywords are handed on by position
        file = io.BytesIO()
        torch.onnx.export(model, (x,), file, dynamo=False)
        session = runtime.InferenceSession(file.getvalue())
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        agree({"output": torch.from_numpy(found)}, {"output": expected})
    if name != "GRUCell":
        args = (x, torch.tensor([5, 2]))
        with pytest.raises(RuntimeError, match=rf"^{name}: .*dynamo=False.*use dynamo=True"):
            torch.onnx.export(WithLengths(layer), args, io.BytesIO(), dynamo=False)
        with pytest.raises(RuntimeError, match=rf"^{name}: .*dynamo=False.*use dynamo=True"):
            torch.onnx.export(layer, (x, {"lengths": args[1]}), io.BytesIO(), dynamo=False)
