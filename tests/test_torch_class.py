"""The PyTorch package's classes are torch.nn's: construction, state, errors, hooks, surgery."""

import copy
import inspect
import io
import pickle
import warnings

import pytest
import torch
from reference import each, parts, whole
from test_torch_layers import (
    agree,
    every_dtype,
    every_kind,
    inputs,
    leaf,
    run,
    same_bits,
    twins,
)
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._pytree import tree_leaves

import elman.torch

LAYERS = ["RNN", "GRU", "LSTM"]
CELLS = ["RNNCell", "GRUCell", "LSTMCell"]
every_class = pytest.mark.parametrize("name", LAYERS + CELLS)
every_layer = pytest.mark.parametrize("name", LAYERS)
every_cell = pytest.mark.parametrize("name", CELLS)


def both(name):
    return getattr(elman.torch, name), getattr(nn, name)


def pair(name, *arguments, **options):
    """Elman's and torch's, of one seed."""
    made = []
    for cls in both(name):
        torch.manual_seed(0)
        made.append(cls(*arguments, **options))
    return made


def outcome(function, *arguments, **options):
    """What a call comes to: its error or the shapes of its results, and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = function(*arguments, **options)
        except Exception as e:
            result = type(e), str(e)
        else:
            result = [getattr(t, "data", t).shape for t in tree_leaves(result)]
    return result, [(w.category, str(w.message)) for w in caught]


def build(cls, arguments, options):
    """The text, parameters and state of the module that is built."""
    module = cls(*arguments, **options)
    parameters = [(k, p.shape, p.dtype, p.device) for k, p in module.named_parameters()]
    return repr(module), parameters, module.training


def built(cls, arguments, options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = build(cls, arguments, options)
        except Exception as e:
            result = type(e), str(e)
    return result, [(w.category, str(w.message)) for w in caught]


# --- Construction --------------------------------------------------------------------------------

CONSTRUCTIONS = [
    ((), {}),
    ((3,), {}),
    ((3, 4), {}),
    ((), {"input_size": 3, "hidden_size": 4}),
    ((3, 4, 2), {}),
    ((3, 4), {"num_layers": 3, "bidirectional": True}),
    ((3, 4), {"bias": False, "batch_first": True}),
    ((3, 4), {"num_layers": 2, "dropout": 0.5}),
    ((3, 4), {"num_layers": 2, "dropout": 1}),
    ((3, 4), {"dropout": 0.5}),  # which warns
    ((3, 4), {"dropout": -0.1}),
    ((3, 4), {"dropout": 1.5}),
    ((3, 4), {"dropout": True}),
    ((3, 4), {"dropout": "0.5"}),
    ((3, 4), {"dropout": "half"}),
    ((3, 4), {"bias": 1}),
    ((3, 4), {"batch_first": None}),
    ((3, 4), {"bidirectional": 1}),
    ((0, 4), {}),
    ((-1, 4), {}),
    ((3, 0), {}),
    ((3, 4, 0), {}),
    ((3, 4, -1), {}),
    ((3, 4, 1.5), {}),
    ((3.0, 4), {}),
    ((3, "4"), {}),
    ((None, 4), {}),
    ((3, 4), {"proj_size": 2}),
    ((3, 4), {"proj_size": 0}),
    ((3, 4), {"proj_size": 4}),
    ((3, 4), {"proj_size": -1}),
    ((3, 4), {"proj_size": 1.5}),
    ((3, 4), {"proj_size": "2"}),
    ((3, 4, 2, True, False, 0.0, True, 3), {}),
    ((3, 4), {"mode": "GRU"}),
    ((3, 4), {"lengths": [1]}),
    ((3, 4), {"unknown": 1}),
    ((3, 4), {"dtype": torch.float64}),
    ((3, 4), {"dtype": torch.bfloat16}),
    ((3, 4), {"dtype": torch.int64}),
    ((3, 4), {"dtype": "float32"}),
    ((3, 4), {"device": "meta"}),
    ((3, 4), {"device": "nowhere"}),
    ((3, 4), {"nonlinearity": "relu"}),
    ((3, 4), {"nonlinearity": "tanh"}),
    ((3, 4), {"nonlinearity": "sigmoid"}),
    ((3, 4, 2, "relu"), {}),
    ((3, 4, 2, "relu", False, True, 0.5, True), {}),
    ((3, 4, 2, "sigmoid"), {}),
    ((3, 4, 2, False, True, 0.5, True), {}),
    ((3, 4, False), {}),
    ((3, 4, True, "relu"), {}),
    ((3, 4, 1, True, False, 0.0, False, 0, "cpu", torch.float64, 1), {}),
]


@every_class
@pytest.mark.parametrize(("arguments", "options"), CONSTRUCTIONS)
def test_constructor(name, arguments, options):
    ours, theirs = both(name)
    assert built(ours, arguments, options) == built(theirs, arguments, options)


@every_class
def test_signature(name):
    def parameters(function):
        return [
            (p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()
        ]

    ours, theirs = both(name)
    expected = parameters(theirs)
    if name in LAYERS:  # torch's shows *args and **kwargs, which it hands on
        expected = parameters(nn.RNNBase)[1:]
        if name == "RNN":
            kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
            expected.insert(3, ("nonlinearity", kind, "tanh"))
        if name != "LSTM":
            expected = [p for p in expected if p[0] != "proj_size"]
    own = {"reset_after": True} if "GRU" in name else {}
    own |= {"recompute": False} if name in LAYERS else {}
    expected += [(k, inspect.Parameter.KEYWORD_ONLY, v) for k, v in own.items()]
    assert parameters(ours) == expected
    extra = [(k, inspect.Parameter.KEYWORD_ONLY, None) for k in ("lengths", "reset")]
    expected = parameters(theirs.forward) + (extra if name in LAYERS else [])
    assert parameters(ours.forward) == expected


@every_class
def test_base(name):
    ours, theirs = both(name)
    assert issubclass(ours, theirs if name in CELLS else nn.RNNBase)
    assert ours.__name__ == name
    assert ours.__module__ == "elman.torch.layers"


@every_class
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_same_seed_same_weights(name, dtype):
    options = {"num_layers": 2, "bidirectional": True} if name in LAYERS else {}
    ours, theirs = pair(name, 3, 4, **options, dtype=dtype)
    same_bits(dict(ours.named_parameters()), dict(theirs.named_parameters()))
    for module in (ours, theirs):
        torch.manual_seed(7)
        module.reset_parameters()
    same_bits(dict(ours.named_parameters()), dict(theirs.named_parameters()))


# --- State ---------------------------------------------------------------------------------------

OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 3, "bias": False},
    {"bias": False, "bidirectional": True, "batch_first": True},
    {"proj_size": 2},
    {"proj_size": 3, "num_layers": 2, "bias": False, "bidirectional": True},
]


@every_layer
@pytest.mark.parametrize("options", OPTIONS)
def test_state(name, options):
    if "proj_size" in options and name != "LSTM":
        pytest.skip("only an LSTM has a projection")
    ours, theirs = pair(name, 3, 4, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    assert [k for k, _ in ours.named_parameters()] == [k for k, _ in theirs.named_parameters()]
    assert [[id(w) for w in ws] for ws in ours.all_weights] == [
        [id(getattr(ours, k)) for k in names] for names in theirs._all_weights
    ]
    assert repr(ours) == repr(theirs)
    assert ours.extra_repr() == theirs.extra_repr()
    assert ours.flatten_parameters() is None


@every_class
def test_state_loads_both_ways(name):
    for cls_from, cls_to in (both(name), both(name)[::-1]):
        source, target = cls_from(3, 4), cls_to(3, 4)
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        assert str(target.load_state_dict(torch.load(file))) == "<All keys matched successfully>"
        same_bits(target.state_dict(), source.state_dict())
        x = torch.randn(5, 3)
        agree(*({"y": module(x)[0]} for module in (target, source)))


@every_class
@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop(next(iter(state))),
        lambda state: state.update(extra=torch.zeros(1)),
        lambda state: state.update({next(iter(state)): torch.zeros(2, 2)}),
    ],
    ids=["missing", "unexpected", "misshapen"],
)
def test_bad_state(name, change):
    ours, theirs = pair(name, 3, 4)
    before = copy.deepcopy(ours.state_dict())
    state = dict(theirs.state_dict())
    change(state)
    assert outcome(ours.load_state_dict, state) == outcome(theirs.load_state_dict, state)
    assert outcome(ours.load_state_dict, state)[0][0] is RuntimeError
    if "extra" not in state:
        same_bits(ours.state_dict(), before)


@every_class
def test_load_by_assigning(name):
    ours, theirs = pair(name, 3, 4)
    state = {k: (v + 1).requires_grad_() for k, v in theirs.state_dict().items()}
    for module in (ours, theirs):
        module.load_state_dict(state, assign=True)
    x = torch.randn(5, 3)
    agree({"y": ours(x)[0]}, {"y": theirs(x)[0]})


@every_class
@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, copy.copy, lambda module: pickle.loads(pickle.dumps(module))],
    ids=["deepcopy", "copy", "pickle"],
)
def test_duplicates(name, duplicate):
    module = both(name)[0](3, 4)
    x = torch.randn(5, 3)
    expected = module(x)[0]
    module(x)[0].sum().backward()
    other = duplicate(module)
    assert type(other) is type(module)
    assert repr(other) == repr(module)
    same_bits(other.state_dict(), module.state_dict())
    assert torch.equal(other(x)[0], expected)
    if duplicate is not copy.copy:
        with torch.no_grad():
            other.get_parameter(next(iter(module.state_dict()))).zero_()
        assert not torch.equal(other(x)[0], expected)
        assert torch.equal(module(x)[0], expected)


@every_class
def test_whole_module_saved(name):
    module = both(name)[0](3, 4)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    x = torch.randn(5, 3)
    assert torch.equal(torch.load(file, weights_only=False)(x)[0], module(x)[0])


@every_class
def test_moved(name):
    """.to() converts the weights, and what runs next are the converted ones."""
    ours, theirs = pair(name, 3, 4)
    x = torch.randn(5, 3)
    for convert in ("double", "half", "bfloat16", "float"):
        dtype = (
            next(getattr(m, convert)() for m in (ours, theirs)).weight_ih_l0.dtype
            if (name in LAYERS)
            else ours.to(getattr(torch, convert)).weight_ih.dtype
        )
        theirs.to(dtype)
        same_bits(ours.state_dict(), theirs.state_dict())
        agree({"y": ours(x.to(dtype))[0]}, {"y": theirs(x.to(dtype))[0]})
    for module in (ours, theirs):
        module.to("meta")
    assert outcome(ours, x.to("meta")) == outcome(theirs, x.to("meta"))
    assert outcome(ours, x) == outcome(theirs, x)
    for module in (ours, theirs):
        module.to_empty(device="cpu")
        torch.manual_seed(0)
        module.reset_parameters()
    agree({"y": ours(x)[0]}, {"y": theirs(x)[0]})


def test_subclass():
    class Mine(elman.torch.GRU):
        def forward(self, input, hx=None):
            output, h_n = super().forward(input, hx)
            return output * 2, h_n

    mine = Mine(3, 4)
    theirs = nn.GRU(3, 4)
    theirs.load_state_dict(mine.state_dict())
    x = torch.randn(5, 3)
    agree({"y": mine(x)[0]}, {"y": theirs(x)[0] * 2})


def test_replaced_weight_is_used():
    """Weights are read by name at every call, however they came to change."""
    ours, theirs = pair("GRU", 3, 4)
    x = torch.randn(5, 2, 3)
    new = torch.randn(12, 4)
    for change in (
        lambda m: setattr(m, "weight_hh_l0", nn.Parameter(new.clone())),
        lambda m: m.weight_hh_l0.data.mul_(2),
        lambda m: setattr(m.weight_hh_l0, "data", new * 3),
        lambda m: nn.init.orthogonal_(m.weight_hh_l0, generator=torch.Generator().manual_seed(1)),
    ):
        change(ours)
        change(theirs)
        agree(run(ours, x), run(theirs, x))


def test_shared_weight():
    """One parameter under two names: gradients add up."""
    results = []
    for module in pair("GRU", 4, 4, 2):
        module.weight_ih_l1 = module.weight_hh_l0
        x = torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(1))
        results.append(run(module, x))
    agree(*results)


# --- Errors --------------------------------------------------------------------------------------

X, HX = torch.randn(5, 3, 4), torch.randn(2, 3, 6)


def ordered(indices):
    """Three packed rows in an order, which is its own inverse as far as it is one."""
    packed, indices = pack_padded_sequence(X, [5, 4, 1]), torch.tensor(indices)
    return PackedSequence(packed.data, packed.batch_sizes, indices, indices)


LAYER_CALLS = {
    "one axis": (X[0, 0],),
    "no axis": (torch.tensor(1.0),),
    "four axes": (X[None],),
    "input size": (X[..., :3],),
    "input size 0": (X[..., :0],),
    "input size, unbatched": (X[:, 0, :3],),
    "another float": (X.double(),),
    "bfloat16": (X.bfloat16(),),
    "integers": (X.long(),),
    "booleans": (X.bool(),),
    "complex": (X.to(torch.complex64),),
    "no steps": (X[:0],),
    "no steps, unbatched": (X[:0, 0],),
    "no steps, no rows": (X[:0, :0],),
    "empty batch": (X[:, :0],),
    "empty batch with hx": (X[:, :0], HX[:, :0]),
    "sparse": (X.to_sparse(),),
    "on meta": (X.to("meta"),),
    "hx on meta": (X, HX.to("meta")),
    "hx of two axes": (X, HX[:, 0]),
    "hx of four axes": (X, HX[None]),
    "hx of another batch": (X, HX[:, :2]),
    "hx of another size": (X, HX[..., :5]),
    "hx of another layer count": (X, HX[:1]),
    "hx of another float": (X, HX.double()),
    "hx of integers": (X, HX.long()),
    "hx batch first": (X, HX.transpose(0, 1)),
    "unbatched, hx batched": (X[:, 0], HX[:, :1]),
    "unbatched, hx of another size": (X[:, 0], HX[:, 0, :5]),
    "unbatched, hx of another layer count": (X[:, 0], HX[:1, 0]),
    "batched, hx unbatched": (X[:, :1], HX[:, 0]),
    "hx a pair": (X, (HX, HX)),
    "hx a list": (X, [HX]),
    "hx a number": (X, 0.0),
    "list": ([[1.0]],),
    "None": (None,),
    "array": (X.numpy(),),
    "packed, input size": (pack_padded_sequence(X[..., :3], [5, 4, 1]),),
    "packed, another float": (pack_padded_sequence(X.double(), [5, 4, 1]),),
    "packed, an order of fewer rows": (ordered([1, 0]), HX),
    "packed, an order of more rows": (ordered([1, 0, 2, 1]), HX),
    "packed, an order of other rows": (ordered([2, 0, 7]), HX),
    "packed, hx of another batch": (pack_padded_sequence(X, [5, 4, 1]), HX[:, :2]),
    "packed, hx of another size": (pack_padded_sequence(X, [5, 4, 1]), HX[..., :5]),
    "packed, hx of another layer count": (pack_padded_sequence(X, [5, 4, 1]), HX[:1]),
    "packed, hx of another float": (pack_padded_sequence(X, [5, 4, 1]), HX.double()),
    "packed, hx of two axes": (pack_padded_sequence(X, [5, 4, 1]), HX[:, 0]),
    "unsorted, hx of another batch": (
        pack_padded_sequence(X, [1, 5, 4], enforce_sorted=False),
        HX[:, :2],
    ),
    "packed, data of three axes": (PackedSequence(X, torch.tensor([3, 2])),),
}


@every_layer
@pytest.mark.parametrize("call", LAYER_CALLS.values(), ids=LAYER_CALLS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_calls_of_layers(name, call, batch_first):
    ours, theirs = pair(name, 4, 6, 2, batch_first=batch_first)
    before = copy.deepcopy(ours.state_dict())
    assert outcome(ours, *call) == outcome(theirs, *call)
    same_bits(ours.state_dict(), before)


C = torch.randn(2, 3, 6)
PAIRS = {
    "as it should be": lambda h, c: (h, c),
    "a list": lambda h, c: [h, c],
    "batch first": lambda h, c: (h.transpose(0, 1), c.transpose(0, 1)),
    "h of another size": lambda h, c: (torch.cat([h, h], -1), c),
    "c of another size": lambda h, c: (h, c[..., :2]),
    "the other way round": lambda h, c: (c, h),
    "h of another batch": lambda h, c: (h[:, :2], c),
    "c of another batch": lambda h, c: (h, c[:, :2]),
    "h of another layer count": lambda h, c: (h[:1], c),
    "c of another layer count": lambda h, c: (h, c[:1]),
    "h of two axes": lambda h, c: (h[:, 0], c),
    "c of two axes": lambda h, c: (h, c[:, 0]),
    "h of another float": lambda h, c: (h.double(), c),
    "c of another float": lambda h, c: (h, c.double()),
    "both of another float": lambda h, c: (h.double(), c.double()),
    "c of integers": lambda h, c: (h, c.long()),
    "c on meta": lambda h, c: (h, c.to("meta")),
    "c sparse": lambda h, c: (h, c.to_sparse()),
    "h alone": lambda h, c: h,
    "h alone in a tuple": lambda h, c: (h,),
    "both stacked": lambda h, c: torch.stack([h, h]),
    "three": lambda h, c: (h, c, c),
    "none": lambda h, c: (),
    "h without c": lambda h, c: (h, None),
    "numbers": lambda h, c: (0.0, 0.0),
}


every_pair = pytest.mark.parametrize("change", PAIRS.values(), ids=PAIRS)


@every_pair
@pytest.mark.parametrize("proj_size", [0, 4])
@pytest.mark.parametrize("batched", [False, True])
def test_pairs_of_states(change, proj_size, batched):
    ours, theirs = pair("LSTM", 4, 6, 2, proj_size=proj_size)
    given = X, HX[..., : proj_size or 6], C
    x, h, c = given if batched else (t[:, 0] for t in given)
    assert outcome(ours, x, change(h, c)) == outcome(theirs, x, change(h, c))


@every_pair
@pytest.mark.parametrize("proj_size", [0, 4])
@pytest.mark.parametrize("lengths", [[5, 4, 1], [1, 5, 4]])
def test_pairs_of_states_beside_packed_input(change, proj_size, lengths):
    """Sizes are off or not as for padded input: torch's LSTM does not look, and may crash."""
    ours, theirs = pair("LSTM", 4, 6, 2, proj_size=proj_size)
    state = change(HX[..., : proj_size or 6], C)
    padded, _ = outcome(theirs, X, state)
    packed = pack_padded_sequence(X, lengths, enforce_sorted=False)
    if type(state) is tuple and ("Expected hidden[" in padded[1] or "also be 3-D" in padded[1]):
        with pytest.raises(
            (RuntimeError, IndexError), match=r"Expected hidden\[|out of (DATA bounds|range)"
        ):
            ours(packed, state)
    else:
        assert outcome(ours, packed, state) == outcome(theirs, packed, state)


@every_pair
@pytest.mark.parametrize("batch", [(), (3,)])
def test_pairs_of_states_of_a_cell(change, batch):
    ours, theirs = pair("LSTMCell", 4, 6)
    rows = slice(None) if batch else 0
    x, h, c = X[0, rows], HX[0, rows], C[0, rows]
    actual, expected = (outcome(lambda cell=m: cell(x, change(h, c))) for m in (ours, theirs))
    assert actual == expected


@every_layer
@pytest.mark.parametrize("bidirectional", [False, True])
def test_packing_that_ends_in_steps_of_no_row(name, bidirectional):
    """torch takes it, and so is it taken, with the same results and gradients."""
    results = []
    for module in pair(name, 4, 6, bidirectional=bidirectional):
        data = X.reshape(-1, 4)[:5].clone().requires_grad_()
        output, states = module(PackedSequence(data, torch.tensor([3, 2, 0, 0])))
        found = [output.data, *tree_leaves(states)]
        sum((f * torch.arange(f.numel()).view_as(f)).sum() for f in found).backward()
        results.append(
            [output.batch_sizes, *found, data.grad, *(w.grad for w in module.parameters())]
        )
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


@every_layer
@pytest.mark.parametrize(
    "batch_sizes", [[3, 3], [3, 1], [1, 4], [4, 0], [0, 5], [-1, 6], [6, -1], [2**40, 0], []]
)
def test_inconsistent_packing(name, batch_sizes):
    """A PackedSequence made by hand, whose parts do not belong together, is refused."""
    module = both(name)[0](4, 6)
    packed = PackedSequence(X.reshape(-1, 4)[:5], torch.tensor(batch_sizes, dtype=torch.int64))
    with pytest.raises((RuntimeError, IndexError)):
        module(packed)


x, hx = torch.randn(3, 4), torch.randn(3, 6)
CELL_CALLS = {
    "nothing": (),
    "batched": (x, hx),
    "batched, no hx": (x,),
    "unbatched": (x[0], hx[0]),
    "unbatched, no hx": (x[0],),
    "no axis": (torch.tensor(1.0),),
    "three axes": (x[None],),
    "input size": (x[:, :3],),
    "input size, unbatched": (x[0, :3],),
    "another float": (x.double(),),
    "integers": (x.long(),),
    "empty batch": (x[:0],),
    "empty batch with hx": (x[:0], hx[:0]),
    "on meta": (x.to("meta"),),
    "hx on meta": (x, hx.to("meta")),
    "hx of one axis": (x, hx[0]),
    "hx of three axes": (x, hx[None]),
    "hx of another batch": (x, hx[:2]),
    "hx of another size": (x, hx[:, :5]),
    "hx of another float": (x, hx.double()),
    "unbatched, hx batched": (x[0], hx[:1]),
    "unbatched, hx of another size": (x[0], hx[0, :5]),
    "unbatched, hx of three axes": (x[0], hx[:1, None]),
    "hx a pair": (x, (hx, hx)),
    "hx a number": (x, 0.0),
    "list": ([1.0],),
    "None": (None,),
    "three arguments": (x, hx, hx),
}


@every_cell
@pytest.mark.parametrize("call", CELL_CALLS.values(), ids=CELL_CALLS)
@pytest.mark.parametrize("bias", [False, True])
def test_calls_of_cells(name, call, bias):
    ours, theirs = pair(name, 4, 6, bias)
    assert outcome(ours, *call) == outcome(theirs, *call)


def test_unknown_nonlinearity_of_a_cell():
    ours, theirs = pair("RNNCell", 4, 6, nonlinearity="sigmoid")
    expected = outcome(theirs, x)
    assert expected[0] == (RuntimeError, "Unknown nonlinearity: sigmoid")
    assert outcome(ours, x) == expected


@every_layer
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors(name, layout):
    nested = torch.nested.nested_tensor([torch.ones(4, 3), torch.ones(2, 3)], layout=layout)
    ours, theirs = pair(name, 3, 4, batch_first=True)
    expected = outcome(theirs, nested)
    assert issubclass(expected[0][0], Exception)
    assert outcome(ours, nested) == expected


# --- Memory --------------------------------------------------------------------------------------

FREED = r"^{}: the memory of a tensor of \(.*\) has been freed$"


def free(t):
    t.untyped_storage().resize_(0)


@every_layer
@pytest.mark.parametrize("victim", ["x", "weight_ih_l0", "weight_hh_l0", "bias_hh_l0"])
def test_memory_that_was_freed_before_a_call(name, victim):
    """As FSDP frees a parameter's, whose shape stays what it was."""
    layer, x = both(name)[0](3, 4), torch.ones(5, 2, 3)
    free(x if victim == "x" else getattr(layer, victim))
    with pytest.raises(RuntimeError, match=FREED.format(name)):
        layer(x)


@every_layer
def test_memory_that_was_freed_with_what_lies_before_it(name):
    """A view into a longer storage, as FSDP's weights are, does not lie at 0 then."""
    layer = both(name)[0](3, 4)
    together = torch.randn(1000)
    shape = layer.weight_hh_l0.shape
    layer.weight_hh_l0.data = together[100 : 100 + shape.numel()].view(shape)
    free(together)
    with pytest.raises(RuntimeError, match=FREED.format(name)):
        layer(torch.ones(5, 2, 3))


@every_cell
def test_memory_of_a_cell_that_was_freed(name):
    cell = both(name)[0](3, 4)
    free(cell.weight_hh)
    with pytest.raises(RuntimeError, match=FREED.format(name.removesuffix("Cell"))):
        cell(torch.ones(2, 3))


@every_layer
def test_memory_that_was_freed_before_the_way_back(name):
    layer = both(name)[0](3, 4)
    output, _ = layer(torch.ones(5, 2, 3))
    free(layer.weight_hh_l0)
    with pytest.raises(RuntimeError, match=FREED.format(name)):
        output.sum().backward()


@every_layer
@pytest.mark.parametrize("victim", ["input", "hx", "weight_hh_l0"])
def test_zeros_that_take_no_memory(name, victim):
    """torch makes such where it differentiates."""
    layer = both(name)[0](3, 4)
    hx = whole([torch.ones(1, 2, 4)] * (2 if name == "LSTM" else 1))
    given = {"input": torch.ones(5, 2, 3), "hx": hx, **layer.state_dict()}
    results = []
    for zeros in (torch._efficientzerotensor, torch.zeros):
        values = given | {victim: each(lambda t, zeros=zeros: zeros(t.shape), given[victim])}
        call = {k: values.pop(k) for k in ("input", "hx")}
        output, h_n = torch.func.functional_call(layer, values, (), call)
        results.append({"output": output, "h_n": h_n})
    same_bits(*results)


# --- Cells ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("RNNCell", {}),
        ("RNNCell", {"nonlinearity": "relu"}),
        ("GRUCell", {}),
        ("LSTMCell", {}),
    ],
    ids=["rnn_tanh", "rnn_relu", "gru", "lstm"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch", [(), (0,), (1,), (5,), (33,)])
@pytest.mark.parametrize("with_hx", [False, True])
def test_cells(name, options, dtype, bias, batch, with_hx):
    """Three steps, so that gradients come through the state as well as to it."""
    ours, theirs = pair(name, 7, 9, bias=bias, dtype=dtype, **options)
    states = 2 if name == "LSTMCell" else 1
    steps = torch.randn(3, *batch, 7, dtype=dtype)
    start, cotangent = torch.randn(2, states, *batch, 9, dtype=dtype)
    results = []
    for cell in (ours, theirs):
        given, h_0 = leaf(steps), leaf(whole([*start]))
        h = h_0 if with_hx else None
        for step in given:
            h = cell(step, h)
        (torch.stack(parts(h)) * cotangent).sum().backward()
        weights = {k: p.grad for k, p in cell.named_parameters()}
        d_h_0 = each(lambda t: t.grad, h_0)
        results.append({"h": h, "d_x": given.grad, "d_hx": d_h_0, **weights})
    agree(*results)


@every_cell
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("sizes", [(0, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize("grad", [False, True])
def test_a_cell_without_features_or_units(name, sizes, grad):
    ours, theirs = pair(name, *sizes)
    with torch.set_grad_enabled(grad):
        agree({"h": ours(torch.ones(5, sizes[0]))}, {"h": theirs(torch.ones(5, sizes[0]))})


@every_cell
def test_cell_on_strided_tensors(name):
    ours, theirs = pair(name, 4, 6)
    states = [torch.randn(6, 1).expand(-1, 4).T for _ in range(2 if name == "LSTMCell" else 1)]
    given = torch.randn(4, 9)[:, 1:9:2].T, whole(states)
    agree({"h": ours(*given)}, {"h": theirs(*given)})


@every_cell
def test_finite_differences_of_a_cell(name):
    cell = both(name)[0](2, 3, dtype=torch.float64)
    states = [torch.randn(4, 3, dtype=torch.float64) for _ in range(2 if name == "LSTMCell" else 1)]
    leaves = leaf(torch.randn(4, 2, dtype=torch.float64)), *map(leaf, states)

    def function(x, *states):
        return cell(x, whole(states))

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


# --- Hooks and surgery ---------------------------------------------------------------------------


@every_class
def test_hooks(name):
    ours, theirs = pair(name, 3, 4)
    results = []
    for module in (ours, theirs):
        seen = []
        module.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
        module.register_forward_hook(
            lambda m, args, out: (out[0] + 1, *out[1:]) if isinstance(out, tuple) else out + 1
        )
        module.register_full_backward_pre_hook(lambda m, d, seen=seen: seen.append(d[0]))
        module.register_full_backward_hook(lambda m, d_in, d_out, seen=seen: seen.append(d_in[0]))
        for parameter in module.parameters():
            parameter.register_hook(lambda d: d * 3)
        given = leaf(torch.ones(5, 3))
        result = module(given)
        y = result[0] if isinstance(result, tuple) else result
        y.pow(2).sum().backward()
        weights = {k: p.grad for k, p in module.named_parameters()}
        results.append({"y": y, "d_x": given.grad, **dict(zip("ab", seen, strict=True)), **weights})
    agree(*results)


@every_layer
def test_hooks_see_lengths(name):
    module = both(name)[0](3, 4)
    seen = []
    module.register_forward_pre_hook(
        lambda m, args, kwargs: (args, {"lengths": [1, 2]}), with_kwargs=True
    )
    module.register_forward_hook(lambda m, a, kwargs, out: seen.append(kwargs), with_kwargs=True)
    output, _ = module(torch.ones(3, 2, 3))
    assert seen == [{"lengths": [1, 2]}]
    assert not output[1, 0].any()
    assert output[1, 1].any()


class Doubled(nn.Module):
    def forward(self, weight):
        return weight * 2


SURGERY = {
    "parametrize": lambda m, k: parametrize.register_parametrization(m, k, Doubled()),
    "weight_norm": lambda m, k: parametrizations.weight_norm(m, k),
    "spectral_norm": lambda m, k: parametrizations.spectral_norm(m, k),
    "orthogonal": lambda m, k: parametrizations.orthogonal(m, k),
    "prune": lambda m, k: prune.l1_unstructured(m, k, 0.5),
    "old weight_norm": lambda m, k: nn.utils.weight_norm(m, k),
    "old spectral_norm": lambda m, k: nn.utils.spectral_norm(m, k),
}


@every_class
@pytest.mark.parametrize("operation", SURGERY.values(), ids=SURGERY)
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_surgery(name, operation):
    """Weights that are computed, as torch's own utilities make them, take their gradients."""
    suffix = "_l0" if name in LAYERS else ""
    results = []
    for module in pair(name, 3, 4):
        torch.manual_seed(1)
        for weight in ("weight_hh", "weight_ih"):
            operation(module, weight + suffix)
        # In training, spectral_norm moves whenever a weight is read, and torch's layers read theirs
        # several times a call.
        module.eval()
        result = module(torch.randn(5, 3))
        result = result[0] if isinstance(result, tuple) else result
        result.pow(2).sum().backward()
        grads = {k: p.grad for k, p in module.named_parameters()}
        results.append({"y": result, **grads, **module.state_dict()})
    assert list(results[0]) == list(results[1])
    agree(*results)


@every_class
def test_surgery_undone(name):
    suffix = "_l0" if name in LAYERS else ""
    ours = both(name)[0](3, 4)
    expected = list(ours.state_dict())
    given = torch.randn(5, 3)
    parametrize.register_parametrization(ours, "weight_hh" + suffix, Doubled())
    doubled = ours(given)[0]
    parametrize.remove_parametrizations(ours, "weight_hh" + suffix)
    assert sorted(ours.state_dict()) == sorted(expected)
    assert torch.equal(ours(given)[0], doubled)


class Counted(nn.Module):
    calls = 0

    def forward(self, weight):
        self.calls += 1
        return weight


@every_class
def test_computed_weight_is_computed_once_a_call(name):
    module = both(name)[0](3, 4)
    weight = "weight_hh_l0" if name in LAYERS else "weight_hh"
    counted = Counted()
    parametrize.register_parametrization(module, weight, counted)
    counted.calls = 0
    module(torch.randn(5, 3))
    assert counted.calls == 1


@every_kind
@every_dtype
def test_functional_call(kind, dtype):
    """Weights that are lent for one call, of another dtype than the layer's own at that."""
    theirs, ours = twins(kind, 3, 4, 2)
    given = inputs(ours, 5, 2, dtype)
    weights = {k: torch.randn_like(v, dtype=dtype) for k, v in ours.state_dict().items()}
    actual, expected = (torch.func.functional_call(m, weights, given) for m in (ours, theirs))
    agree(dict(enumerate(actual)), dict(enumerate(expected)))
    output, _ = torch.func.functional_call(ours, weights, given, {"lengths": [5, 5]})
    assert torch.equal(output, actual[0])
    given = inputs(ours, 5, 2)
    agree(run(ours, *given), run(theirs, *given))
