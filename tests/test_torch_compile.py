"""torch.compile, torch.export, other ways to trace, and torch.library's checks of the operators."""

import subprocess
import sys
import warnings

import pytest
import torch
from reference import each, parts, whole
from test_torch_layers import (
    agree,
    every_kind,
    gradients,
    inputs,
    joined,
    leaf,
    run,
    same_bits,
    twins,
)
from torch import nn
from torch._dynamo.exc import Unsupported
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._pytree import tree_leaves, tree_map

import elman.torch
from elman.spec import CELLS, WEIGHTS, Spec

# Most of what can go wrong goes wrong in tracing, which this backend does in full, with forward and
# backward as one graph each; Inductor then only has the operator to call.
traced = {"backend": "aot_eager", "fullgraph": True}


@pytest.fixture(autouse=True)
def _afresh():
    torch.compiler.reset()


def extents(L, N):
    random = torch.Generator().manual_seed(0)
    return {
        "plain": {},
        "lengths": {"lengths": torch.randint(0, L + 1, (N,), generator=random)},
        "reset": {"reset": torch.rand(L, N, generator=random) < 0.3},
    }


def copied(gradients):
    """They are added up anew in the same tensors."""
    return tree_map(lambda t: None if t is None else t.clone(), gradients)


class Compiled(nn.Module):
    """A layer behind torch.compile, with the layer's parameters under their own names."""

    def __init__(self, layer, **options):
        super().__init__()
        self.layer, self.compiled = layer, torch.compile(layer, **{**traced, **options})

    def named_parameters(self, *args, **kwargs):
        return self.layer.named_parameters(*args, **kwargs)

    def forward(self, *args, **kwargs):
        return self.compiled(*args, **kwargs)


@pytest.mark.parametrize(
    ("kind", "options", "extent", "layout"),
    [
        ("rnn_tanh", {}, "plain", "time"),
        ("rnn_relu", {"bias": False}, "plain", "batch"),
        ("rnn_relu", {"bidirectional": True}, "lengths", "time"),
        ("gru", {}, "plain", "single"),
        ("gru", {"num_layers": 2, "bidirectional": True}, "plain", "time"),
        ("gru", {"num_layers": 2, "bidirectional": True}, "lengths", "batch"),
        ("gru", {"bidirectional": True, "bias": False}, "reset", "batch"),
        ("gru", {"bidirectional": True}, "reset", "single"),
        ("gru", {}, "lengths", "single"),
        ("lstm", {}, "plain", "time"),
        ("lstm", {"num_layers": 2, "bidirectional": True}, "lengths", "batch"),
        ("lstm_proj", {"num_layers": 2, "bidirectional": True, "bias": False}, "reset", "time"),
        ("lstm_proj", {}, "plain", "single"),
    ],
)
def test_layers(kind, options, extent, layout):
    """Training and inference, as the layer gives them without."""
    _, ours = twins(kind, 3, 5, **options, batch_first=layout == "batch")
    x, hx = inputs(ours, 6, 4, layout=layout)
    given = extents(6, 4)[extent]
    if layout == "batch" and "reset" in given:
        given["reset"] = given["reset"].T
    if layout == "single":
        given = {k: v[..., 0] for k, v in given.items()}
    compiled = Compiled(ours)
    for state in (hx, None):
        agree(run(compiled, x, state, **given), run(ours, x, state, **given))
        with torch.no_grad():
            agree(
                dict(enumerate(compiled(x, state, **given))),
                dict(enumerate(ours(x, state, **given))),
            )


def test_kernel_runs_in_the_graph():
    theirs, ours = twins("gru", 3, 5, 2)
    x, hx = inputs(ours, 6, 4)
    compiled = Compiled(ours)
    compiled(x, hx)
    elman.torch.paths.clear()
    agree(run(compiled, x, hx), run(theirs, x, hx))
    assert dict(elman.torch.paths) == {"kernel": 2}


@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm", "lstm_proj"])
def test_new_sizes(kind):
    """dynamic=True: one compilation for every L and N, those that it has not seen included."""
    theirs, ours = twins(kind, 3, 5, 2, bidirectional=True)
    compiled = Compiled(ours, dynamic=True)
    run(compiled, *inputs(ours, 6, 7))  # sizes all unlike: the compiler takes equal ones for one
    with torch.compiler.set_stance("fail_on_recompile"):
        for L, N in ((7, 5), (2, 9), (30, 2), (6, 4)):
            x, hx = inputs(ours, L, N)
            agree(run(compiled, x, hx), run(theirs, x, hx))


@pytest.mark.parametrize("kind", ["gru", "lstm_proj"])
def test_new_sizes_with_lengths(kind):
    _, ours = twins(kind, 3, 5, 2, bidirectional=True)
    compiled = Compiled(ours, dynamic=True)
    given = extents(6, 7)
    run(compiled, *inputs(ours, 6, 7), **given["lengths"], **given["reset"])
    with torch.compiler.set_stance("fail_on_recompile"):
        for L, N in ((7, 5), (2, 9), (30, 3)):
            x, hx = inputs(ours, L, N)
            given = extents(L, N)["lengths"] | extents(L, N)["reset"]
            agree(run(compiled, x, hx, **given), run(ours, x, hx, **given))


@pytest.mark.parametrize(
    ("extent", "training", "kind"),  # each pair of values
    [
        ("plain", False, "gru"),
        ("plain", True, "lstm"),
        ("lengths", True, "gru"),
        ("lengths", False, "lstm"),
        ("reset", False, "gru"),
        ("reset", True, "lstm"),
    ],
)
def test_sizes_turn_dynamic_by_themselves(extent, training, kind):
    """The default of torch.compile: fixed sizes first, and one more compilation for all others."""
    _, ours = twins(kind, 3, 5, 2, bidirectional=True)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = Compiled(ours, backend=counter)
    with torch.set_grad_enabled(training):
        for L, N in ((6, 7), (5, 4), (9, 8), (2, 3), (30, 16)):
            x, hx = inputs(ours, L, N)
            given = extents(L, N)[extent]
            if training:
                agree(run(compiled, x, hx, **given), run(ours, x, hx, **given))
            else:
                same_bits(*(dict(enumerate(m(x, hx, **given))) for m in (compiled, ours)))
    assert counter.frame_count == 2


def test_sizes_marked_dynamic():
    theirs, ours = twins("gru", 3, 5)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = Compiled(ours, backend=counter)
    for L, N in ((6, 7), (5, 4), (9, 8)):
        x, _ = inputs(ours, L, N)
        torch._dynamo.mark_dynamic(x, [0, 1])
        agree({"y": compiled(x)[0]}, {"y": theirs(x)[0]})
    assert counter.frame_count == 1


@pytest.mark.parametrize("kind", ["gru", "lstm_proj"])
@pytest.mark.parametrize(("L", "N"), [(1, 1), (1, 4), (6, 1), (6, 0)])
def test_sizes_that_are_special_to_the_compiler(L, N, kind):
    theirs, ours = twins(kind, 3, 5, 2, bidirectional=True)
    compiled = Compiled(ours, dynamic=True)
    x, hx = inputs(ours, L, N)
    agree(run(compiled, x, hx), run(theirs, x, hx))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("RNNCell", {}),
        ("RNNCell", {"nonlinearity": "relu"}),
        ("GRUCell", {}),
        ("GRUCell", {"bias": False}),
        ("LSTMCell", {}),
    ],
)
@pytest.mark.parametrize("batch", [(), (4,)])
def test_cells(name, options, batch):
    cell = getattr(elman.torch, name)(3, 5, **options)
    compiled = Compiled(cell)
    sizes = (5, 5) if name == "LSTMCell" else (5,)
    for with_state in (True, False):
        results = []
        for module in (compiled, cell):
            random = torch.Generator().manual_seed(0)
            x, *states = (leaf(torch.randn(*batch, n, generator=random)) for n in (3, *sizes))
            hx = whole(states)
            after = module(x, hx) if with_state else module(x)
            loss = joined(after).square().sum()
            results.append({"h": after, **copied(gradients(cell, x, hx, loss))})
        agree(*results)


@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_loop_of_cells(name):
    """A user's own loop over time, in one graph."""
    cell, layer = getattr(elman.torch, f"{name}Cell")(3, 5), getattr(elman.torch, name)(3, 5)
    layer.load_state_dict({f"{k}_l0": w for k, w in cell.state_dict().items()})

    @torch.compile(**traced)
    def loop(x, h):
        outputs = []
        for step in x:
            h = cell(step, h)
            outputs.append(h[0] if name == "LSTM" else h)
        return torch.stack(outputs)

    x, hx = inputs(layer, 4, 2)
    agree({"y": loop(x, each(lambda t: t[0], hx))}, {"y": layer(x, hx)[0]})


class Classifier(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(layer.hidden_size, 2)

    def forward(self, x, lengths=None):
        _, h_n = self.layer(x.tanh(), **({} if lengths is None else {"lengths": lengths}))
        return self.head(parts(h_n)[-1][-1]).softmax(-1)


@pytest.mark.parametrize("kind", ["gru", "lstm", "lstm_proj"])
def test_inductor(kind):
    """The default backend, in a model: forward and backward, training and inference."""
    _, layer = twins(kind, 3, 5, 2)
    model = Classifier(layer)
    x, lengths = torch.randn(6, 4, 3), torch.tensor([6, 1, 0, 3])
    compiled = torch.compile(model, fullgraph=True)
    results = []
    for module in (compiled, model):
        given = leaf(x)
        output = module(given, lengths)
        found = gradients(model, given, None, output[:, 0].sum())
        results.append({"output": output, **copied(found)})
    agree(*results)
    with torch.no_grad():
        agree({"output": compiled(x, lengths)}, {"output": model(x, lengths)})


def test_dropout():
    """Masks come from the seed, and are drawn anew at every call."""
    layer = elman.torch.GRU(3, 64, 2, dropout=0.5)
    compiled = Compiled(layer)
    x = torch.randn(6, 4, 3)
    torch.manual_seed(0)
    first, _ = compiled(x)
    torch.manual_seed(0)
    again, _ = compiled(x)
    assert torch.equal(first, again)
    assert not torch.equal(first, compiled(x)[0])
    layer.eval()
    agree({"y": compiled(x)[0]}, {"y": layer(x)[0]})


def test_required_path():
    """require() holds for a compiled call too."""
    layer = elman.torch.GRU(3, 4)
    compiled = torch.compile(layer, **traced)
    x = torch.randn(5, 2, 3)
    with elman.torch.require("kernel"):
        compiled(x)
    with elman.torch.require("scan"), pytest.raises(Exception, match=r"is required|Observed exc"):
        compiled(x)


def test_lengths_out_of_range_in_a_graph():
    compiled = torch.compile(elman.torch.GRU(3, 4), **traced)
    x = torch.randn(5, 2, 3)
    compiled(x, lengths=torch.tensor([5, 1]))
    with pytest.raises(RuntimeError, match=r"lengths.*\b5\b.*6"):
        compiled(x, lengths=torch.tensor([6, 1]))


@pytest.mark.parametrize("name", ["GRU", "LSTM"])
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo's own, where a graph breaks
def test_accelerated_model(name):
    """It breaks the graph at an instance of torch.nn.GRU, which the engine then runs.

    There is one graph if that is allowed, or if the layer was built as Elman's.
    """
    torch.manual_seed(0)
    model = Classifier(getattr(nn, name)(3, 5))
    x = torch.randn(6, 4, 3)
    expected = model(x)
    elman.torch.accelerate(model)
    with elman.torch.require("kernel"):
        agree({"y": torch.compile(model, backend="aot_eager")(x)}, {"y": expected})
    torch.compiler.reset()
    with pytest.raises(Unsupported, match="RNN, GRU, or LSTM"):
        torch.compile(model, **traced)(x)
    torch.compiler.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        agree({"y": torch.compile(model, **traced)(x)}, {"y": expected})
    with elman.torch.install():
        built = Classifier(getattr(nn, name)(3, 5))
    built.load_state_dict(model.state_dict())
    agree({"y": torch.compile(built, **traced)(x)}, {"y": expected})


@pytest.mark.parametrize("kind", ["gru", "lstm_proj"])
def test_vmap_in_a_graph(kind):
    """torch.func.vmap within torch.compile, over inputs and over weights."""
    _, ours = twins(kind, 3, 5, 2)
    many = torch.randn(3, 6, 4, 3)
    weights = torch.func.stack_module_state([ours, ours, ours])[0]

    def over_inputs(many):
        return torch.func.vmap(lambda x: ours(x)[0])(many)

    def over_weights(weights, many):
        return torch.func.vmap(lambda w, x: torch.func.functional_call(ours, w, (x,))[0])(
            weights, many
        )

    expected = {"y": torch.stack([ours(x)[0] for x in many])}
    agree({"y": torch.compile(over_inputs, **traced)(many)}, expected)
    agree({"y": torch.compile(over_weights, **traced)(weights, many)}, expected)


# --- Export --------------------------------------------------------------------------------------


@every_kind
def test_export(kind):
    theirs, ours = twins(kind, 3, 5, 2, bidirectional=True)
    x, hx = inputs(ours, 6, 4)
    steps, batch = torch.export.Dim("steps", min=2), torch.export.Dim("batch", min=2)
    sizes = {0: steps, 1: batch}, each(lambda _: {1: batch}, hx)
    program = torch.export.export(ours.eval(), (x, hx), dynamic_shapes=sizes)
    assert any("elman.layer" in str(node.target) for node in program.graph.nodes)
    for given in ((x, hx), inputs(ours, 9, 2)):
        agree(dict(enumerate(program.module()(*given))), dict(enumerate(theirs(*given))))


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_export_with_lengths(kind):
    _, ours = twins(kind, 3, 5, bidirectional=True)
    x, _ = inputs(ours, 6, 4)
    lengths = torch.tensor([6, 0, 2, 3])
    program = torch.export.export(ours, (x,), {"lengths": lengths})
    for given in (lengths, torch.tensor([1, 6, 6, 4])):
        actual, expected = program.module()(x, lengths=given), ours(x, lengths=given)
        agree(dict(enumerate(actual)), dict(enumerate(expected)))


LOAD_AND_RUN = """
import sys, torch, elman.torch
program, cases = sys.argv[1:]
program = torch.export.load(program).module()
for given, expected in torch.load(cases):
    output, state = program(*given)
    results = [output, *(state if isinstance(state, tuple) else (state,))]
    for a, e in zip(results, expected, strict=True):
        assert torch.equal(a, e)
"""


@pytest.mark.parametrize("kind", ["gru", "lstm_proj"])
def test_export_runs_in_another_process(kind, tmp_path):
    """With any L and N, and lengths; the bits of the layer."""
    _, ours = twins(kind, 3, 5, 2, bidirectional=True)

    class WithLengths(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = ours

        def forward(self, x, lengths):
            return self.layer(x, lengths=lengths)

    steps, batch = torch.export.Dim("steps", min=2), torch.export.Dim("batch", min=2)
    given = inputs(ours, 6, 4)[0], torch.tensor([6, 0, 2, 3])
    program = torch.export.export(
        WithLengths().eval(), given, dynamic_shapes=({0: steps, 1: batch}, {0: batch})
    )
    torch.export.save(program, tmp_path / "program.pt2")
    cases = [given, (torch.randn(9, 2, 3), torch.tensor([1, 9]))]
    results = [tree_leaves(ours(x, lengths=lengths)) for x, lengths in cases]
    cases = [(given, [t.detach() for t in r]) for given, r in zip(cases, results, strict=True)]
    torch.save(cases, tmp_path / "cases.pt")
    files = [str(tmp_path / name) for name in ("program.pt2", "cases.pt")]
    subprocess.run([sys.executable, "-c", LOAD_AND_RUN, *files], check=True)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec:FutureWarning")  # torch's own
@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_ahead_of_time_inductor(kind, tmp_path):
    """A compiled package calls the operator where it is loaded, of this process."""
    _, ours = twins(kind, 3, 5, bidirectional=True)
    steps, batch = (torch.export.Dim(name, min=2, max=1024) for name in ("steps", "batch"))
    program = torch.export.export(
        ours.eval(), (torch.randn(6, 4, 3),), dynamic_shapes=({0: steps, 1: batch},)
    )
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "p.pt2"))
    package = torch._inductor.aoti_load_package(path)
    for L, N in ((6, 4), (9, 2)):
        x = torch.randn(L, N, 3)
        same_bits(dict(enumerate(package(x))), dict(enumerate(ours(x))))


# --- Other ways to trace -------------------------------------------------------------------------


@every_kind
@pytest.mark.filterwarnings("ignore:`torch.jit.trace.*is deprecated:DeprecationWarning")
def test_jit_trace(kind, tmp_path):
    """A trace holds for every L and N, for training and, saved, in this process."""
    theirs, ours = twins(kind, 3, 5, 2, bidirectional=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(ours, inputs(ours, 6, 4))
    for L, N in ((6, 4), (9, 2)):
        x, hx = inputs(ours, L, N)
        actual, expected = (dict(enumerate(m(x, hx))) for m in (traced, theirs))
        agree(actual, expected)
    given = inputs(ours, 6, 4)
    results = []
    for module in (traced, theirs):
        x, hx = map(leaf, given)
        output, h_n = module(x, hx)
        loss = output.square().sum() + joined(h_n).sum()
        results.append(copied(gradients(module, x, hx, loss)))
    agree(*results)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"])
@pytest.mark.filterwarnings("ignore:`torch.jit.script.*is deprecated:DeprecationWarning")
def test_jit_script(name):
    """It says what to do instead, of the module and of a model that has it, which it leaves."""
    accelerated, wrapped = nn.Sequential(getattr(nn, name)(3, 4)), nn.Sequential(Around(3, 4))
    elman.torch.accelerate(accelerated)
    elman.torch.accelerate(wrapped)
    refusal = r"torch.jit.script .* torch.export or .* undo=True"
    for model in (nn.Sequential(getattr(elman.torch, name)(3, 4)), accelerated, wrapped):
        cls = type(model[0])
        for module in (model, model[0]):
            for script in (torch.jit.script, Scripted):
                with pytest.raises(NotImplementedError, match=rf"^{cls.__name__}: {refusal}"):
                    script(module)
        assert type(model[0]) is cls
    elman.torch.accelerate(accelerated, undo=True)
    torch.jit.script(accelerated)


class Around(nn.GRU):
    def forward(self, x, hx=None):
        return super().forward(x, hx)


class Scripted(torch.jit.ScriptModule):
    """The other way to have a module compiled."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    @torch.jit.script_method
    def forward(self, x):
        return self.inner(x)


class Reader(nn.Module):
    def __init__(self, layer, cell):
        super().__init__()
        self.layer, self.cell = layer, cell

    def forward(self, x, lengths):
        output, h_n = self.layer(x.tanh(), lengths=lengths)
        state = (h_n[0][0], h_n[1][0]) if self.layer.mode == "LSTM" else h_n[0]
        return output, self.cell(output[0], state)


@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_fx(name):
    """Layers and cells are leaves of a graph, as torch.nn's are."""
    model = Reader(getattr(elman.torch, name)(3, 4), getattr(elman.torch, f"{name}Cell")(4, 4))
    graph = torch.fx.symbolic_trace(model)
    assert [n.target for n in graph.graph.nodes if n.op == "call_module"] == ["layer", "cell"]
    given = torch.randn(5, 2, 3), torch.tensor([5, 2])
    same_bits(dict(enumerate(graph(*given))), dict(enumerate(model(*given))))


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"])
def test_fx_of_the_module_alone(name):
    with pytest.raises(torch.fx.proxy.TraceError, match=f"{name}: .*Sequential"):
        torch.fx.symbolic_trace(getattr(elman.torch, name)(3, 4))


# --- What torch.nn's layers cannot do ------------------------------------------------------------


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_torchs_own_does_not_compile(name):
    """Red when a later torch can: then the table of what it cannot do is to be mended."""
    layer = getattr(nn, name)(3, 4)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU,"):
        torch.compile(layer, fullgraph=True, backend="eager")(torch.randn(5, 2, 3))


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
@pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights")
def test_torchs_own_exports_one_length(name):
    """Red when a later torch can: then the table of what it cannot do is to be mended."""
    layer, x = getattr(nn, name)(3, 4).eval(), torch.randn(5, 2, 3)
    with pytest.raises(torch._dynamo.exc.UserError, match="constant"):
        torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("steps")},))


# --- The operators themselves --------------------------------------------------------------------

EVERY_CHECK = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)


def arguments(
    cell,
    directions=1,
    bias=True,
    hx=True,
    proj_size=0,
    keep=True,
    recompute=False,
    requires_grad=True,
    members=(),
    **extent,
):
    """Arguments of torch.ops.elman.layer for (L, N, D, H) = (3, 2, 3, 4), or 5 packed rows."""
    spec = Spec(CELLS[cell], 3, 4, bias=bias, proj_size=proj_size)
    random = torch.Generator().manual_seed(0)

    def make(*shape):
        return torch.randn(*members, *shape, generator=random).requires_grad_(requires_grad)

    weights = []
    for _ in range(directions):
        shapes = spec.cell_weight_shapes()
        weights += [make(*shapes[name]) if name in shapes else None for name in WEIGHTS]
    weights += [None] * (2 * len(WEIGHTS) - len(weights))
    x = make(5, 3) if "batch_sizes" in extent else make(3, 2, 3)
    h_0 = make(directions, 2, sum(spec.state_sizes.values())) if hx else None
    extent = [extent.get(name) for name in ("lengths", "reset", "batch_sizes")]
    return [cell, x, h_0, *weights, *extent, keep, recompute]


# Rows of full length: what the operator keeps for backward of steps beyond is nobody's to compare.
LENGTHS = torch.tensor([3, 3])
RESET = torch.tensor([[False, True], [True, False], [False, False]])
PACKED = torch.tensor([2, 2, 1])
CASES = {
    "rnn_tanh": arguments("rnn_tanh"),
    "rnn_relu without bias": arguments("rnn_relu", bias=False),
    "gru": arguments("gru"),
    "gru without h_0": arguments("gru", hx=False),
    "gru without its gates": arguments("gru", recompute=True),
    "gru with lengths": arguments("gru", lengths=LENGTHS),
    "gru with lengths and reset, two directions": arguments("gru", 2, lengths=LENGTHS, reset=RESET),
    "packed": arguments("rnn_tanh", batch_sizes=PACKED),
    "members": arguments("gru", 2, members=(3,)),
    "members, packed": arguments("rnn_tanh", members=(3,), batch_sizes=PACKED),
    "lstm": arguments("lstm"),
    "lstm, projected, two directions": arguments("lstm", 2, proj_size=2, reset=RESET),
    "lstm, projected, without bias, gates and h_0": arguments(
        "lstm", bias=False, hx=False, proj_size=2, recompute=True
    ),
    "lstm, packed": arguments("lstm", batch_sizes=PACKED),
    "members, projected": arguments("lstm", 2, proj_size=2, members=(3,)),
}
every_case = pytest.mark.parametrize("given", CASES.values(), ids=CASES)


@every_case
def test_operator(given):
    result = torch.library.opcheck(torch.ops.elman.layer, given, test_utils=EVERY_CHECK)
    assert set(result.values()) == {"SUCCESS"}


def test_operator_for_inference():
    given = arguments("gru", keep=False, requires_grad=False)
    result = torch.library.opcheck(torch.ops.elman.layer, given, test_utils=EVERY_CHECK)
    assert set(result.values()) == {"SUCCESS"}


def backward_arguments(given, need_x=True, need_weights=True):
    output, h_n, gates, states = (t.detach() for t in torch.ops.elman.layer(*given))
    cotangents = torch.randn_like(output), torch.randn_like(h_n)
    return [*given[:-2], gates, states, *cotangents, need_x, need_weights]


def check_backward(given, checks):
    result = torch.library.opcheck(torch.ops.elman.layer_backward, given, test_utils=checks)
    assert set(result.values()) == {"SUCCESS"}


@every_case
def test_backward_operator(given):
    check_backward(backward_arguments(given), EVERY_CHECK[:-1])


@pytest.mark.parametrize(
    "case",  # each thing that there is at least once: a trace takes long
    [
        "gru without its gates",
        "gru with lengths and reset, two directions",
        "members, packed",
        "lstm, projected, without bias, gates and h_0",
        "lstm, packed",
    ],
)
def test_backward_operator_is_traced(case):
    check_backward(backward_arguments(CASES[case]), EVERY_CHECK[-1:])


@pytest.mark.parametrize(("need_x", "need_weights"), [(False, True), (True, False), (False, False)])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_backward_operator_in_part(need_x, need_weights, requires_grad):
    """A gradient that is not needed comes back empty, and has none of its own."""
    given = arguments("gru", 2, requires_grad=requires_grad)
    given = backward_arguments(given, need_x, need_weights)
    part = torch.ops.elman.layer_backward(*given)
    whole = torch.ops.elman.layer_backward(*given[:-2], True, True)
    for n, (p, w) in enumerate(zip(part, whole, strict=True)):
        needed = n == 1 or (need_x if n == 0 else need_weights)
        assert torch.equal(p, w) if needed else p.numel() == 0
    checks = EVERY_CHECK if requires_grad and (need_x or need_weights) else EVERY_CHECK[:-1]
    check_backward(given, checks)


@every_case
def test_fake_results_are_shaped_as_the_real_ones(given):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.no_grad():
        backward = backward_arguments(given)
        for operator, real in (
            (torch.ops.elman.layer, given),
            (torch.ops.elman.layer_backward, backward),
        ):
            with FakeTensorMode() as mode:
                fake = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in real]
                fake = operator(*fake)
            for r, f in zip(operator(*real), fake, strict=True):
                assert (r.shape, r.dtype, r.stride()) == (f.shape, f.dtype, f.stride())
