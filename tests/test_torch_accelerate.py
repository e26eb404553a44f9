"""``accelerate``: a model's stock layers are served in place, and turn back; and ``install``."""

import copy
import io
import pickle
import subprocess
import sys
from abc import ABC

import pytest
import torch
from test_torch_layers import agree, gradients, leaf, same_bits
from torch import nn
from torch.ao.quantization import quantize_dynamic
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.utils.flop_counter import FlopCounterMode

import elman.torch
from elman.torch import accelerate, install, require, uninstall


class MyGRU(nn.GRU):
    pass


STOCK = [nn.RNN, nn.GRU, nn.LSTM, nn.RNNCell, nn.GRUCell, nn.LSTMCell]


class Model(nn.Module):
    """Layers and cells at several depths, one of a class of its own."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.encoder = nn.GRU(4, 5, 2, bidirectional=True, batch_first=True)
        self.stack = nn.ModuleList(
            [nn.RNN(10, 6, 1, "relu", batch_first=True), nn.LSTM(6, 8, proj_size=6)]
        )
        self.inner = nn.ModuleDict({"deep": nn.Sequential(nn.Identity(), nn.GRUCell(6, 7))})
        self.cell = nn.RNNCell(7, 2)
        self.mine = MyGRU(2, 2)
        self.lstm_cell = nn.LSTMCell(2, 2)

    def forward(self, x):
        x, _ = self.encoder(self.embed(x))
        x, _ = self.stack[0](x)
        x, _ = self.stack[1](x)
        x = self.cell(self.inner["deep"](x[:, -1]))
        return self.lstm_cell(self.mine(x)[0])[0]


NAMES = ["encoder", "stack.0", "stack.1", "inner.deep.1", "cell", "mine", "lstm_cell"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model()


def classes(model):
    return {name: type(module) for name, module in model.named_modules()}


def step(model, x, loss=torch.square):
    x = leaf(x)
    output = model(x)
    return {"output": output, **gradients(model, x, None, loss(output).sum())}


def test_turns_and_undoes(model):
    before, state = classes(model), copy.deepcopy(model.state_dict())
    modules, parameters = dict(model.named_modules()), list(model.parameters())
    expected = step(model, x := torch.randn(3, 6, 3))
    assert expected["d_embed.weight"].any()

    assert accelerate(model) == NAMES
    assert classes(model) == before  # so that isinstance holds, and what looks for the type
    with require("kernel"):
        agree(step(model, x), expected)
    assert accelerate(model) == []

    assert accelerate(model, undo=True) == NAMES
    assert classes(model) == before
    assert accelerate(model, undo=True) == []
    same_bits(step(model, x), expected)

    assert dict(model.named_modules()) == modules
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == list(state)
    same_bits(model.state_dict(), state)


def test_the_engine_runs(model):
    accelerate(model)
    elman.torch.paths.clear()
    with require("kernel"):
        model(torch.randn(3, 6, 3))
    assert elman.torch.paths == {"kernel": 8}  # two layers of the encoder, one each of the others
    accelerate(model, undo=True)
    elman.torch.paths.clear()
    model(torch.randn(3, 6, 3))
    assert not elman.torch.paths


@pytest.mark.parametrize("stock", STOCK)
def test_model_that_is_a_layer(stock):
    layer = stock(3, 4)
    text, x = repr(layer), torch.randn(2, 3)
    assert accelerate(layer) == [""]
    assert type(layer) is stock
    assert repr(layer) == text
    with require("kernel"):
        layer(x)
    assert accelerate(layer, undo=True) == [""]
    assert type(layer) is stock
    assert vars(layer).keys() == vars(stock(3, 4)).keys()


@pytest.mark.parametrize("stock", [nn.GRU, nn.LSTM])
def test_takes_lengths_afterwards(stock):
    layer = stock(3, 4)
    accelerate(layer)
    output, _ = layer(torch.randn(5, 2, 3), lengths=[5, 2])
    assert not output[2:, 1].any()


def test_shared_module():
    """One layer under two names is one layer."""
    shared = nn.GRU(4, 4)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared), "c": nn.GRU(4, 4)})
    assert accelerate(model) == ["a", "c"]
    assert model["b"][0] is model["a"] is shared
    with require("kernel"):
        shared(torch.randn(5, 2, 4))
    assert accelerate(model, undo=True) == ["a", "c"]
    assert vars(shared).keys() == vars(nn.GRU(4, 4)).keys()


def test_elmans_own_layers_are_not_undone():
    model = nn.Sequential(elman.torch.GRU(3, 4), nn.GRU(4, 4), elman.torch.GRUCell(3, 4))
    assert accelerate(model) == ["1"]
    assert accelerate(model, undo=True) == ["1"]
    assert [type(m) for m in model] == [elman.torch.GRU, nn.GRU, elman.torch.GRUCell]


def test_subclass_of_elmans_is_left_alone():
    class Mine(elman.torch.GRU):
        pass

    model = nn.Sequential(Mine(3, 4))
    assert accelerate(model) == accelerate(model, undo=True) == []
    assert type(model[0]) is Mine


def test_training_goes_on_with_the_same_optimiser(model):
    """Half of the steps before the change, with momentum that must carry over."""
    torch.manual_seed(1)
    batches = torch.randn(6, 3, 6, 3)
    results = []
    for change in (False, True):
        trained = copy.deepcopy(model).double()
        optimiser = torch.optim.SGD(trained.parameters(), 0.05, momentum=0.9)
        for n, batch in enumerate(batches.double()):
            if change and n in (2, 5):
                assert accelerate(trained, undo=n == 5) == NAMES
            optimiser.zero_grad()
            trained(batch).square().sum().backward()
            optimiser.step()
        results.append(dict(trained.state_dict()))
    agree(*results[::-1])


def test_hooks_are_kept():
    model = nn.Sequential(nn.GRU(3, 4))
    seen = []
    model[0].register_forward_hook(lambda module, args, out: seen.append(module))
    x = torch.randn(5, 2, 3)
    for undo in (False, True):
        accelerate(model, undo)
        model(x)
    assert seen == [model[0], model[0]]


def test_buffers_attributes_and_modes_are_kept():
    layer = nn.GRU(3, 4, 2, dropout=0.5).eval()
    layer.register_buffer("mean", torch.ones(3))
    layer.weight_hh_l0.requires_grad_(False)
    layer.note = "mine"
    for undo in (False, True):
        accelerate(layer, undo)
        assert not layer.training
        assert not layer.weight_hh_l0.requires_grad
        assert layer.note == "mine"
        assert "mean" in layer.state_dict()


def test_copied(model):
    """A copy of an accelerated model is one, by itself, and turns back by itself."""
    x = torch.randn(3, 6, 3)
    expected = step(model, x)
    accelerate(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.encoder.weight_hh_l0.zero_()
        other.mine.bias_ih_l0.zero_()
    with require("kernel"):
        agree(step(model, x), expected)
    other = copy.deepcopy(model)
    with require("kernel"):
        agree(step(other, x), expected)
    assert accelerate(other) == []
    assert accelerate(other, undo=True) == NAMES
    assert accelerate(model) == []
    same_bits(step(other, x), expected)
    assert accelerate(copy.deepcopy(other)) == NAMES


@pytest.mark.parametrize("cls", [nn.GRU, nn.LSTMCell, MyGRU])
def test_a_shallow_copy_is_stock(cls):
    """As what is loaded from a pickle, which Python does not tell apart; it shares the weights."""
    module = cls(3, 4)
    accelerate(module)
    other = copy.copy(module)
    assert type(other) is cls
    assert vars(other).keys() == vars(cls(3, 4)).keys()
    assert all(a is b for a, b in zip(other.parameters(), module.parameters(), strict=True))
    with require("kernel"):
        module(torch.randn(2, 3))
    assert accelerate(other) == [""]
    assert accelerate(other, undo=True) == accelerate(module, undo=True) == [""]


WITHOUT_ELMAN = """
import io, sys
import torch
sys.modules["elman"] = None  # so that importing it fails
model, x = torch.load(io.BytesIO(sys.stdin.buffer.read()), weights_only=False)
assert all("elman" not in type(m).__module__ for m in model.modules())
file = io.BytesIO()
torch.save([model(x), torch.jit.script(model)(x)], file)
sys.stdout.buffer.write(file.getvalue())
"""


@pytest.mark.filterwarnings("ignore:`torch.jit.script.*is deprecated:DeprecationWarning")
def test_pickles_need_no_elman():
    """A whole model, of a subclass too, loads as a stock one, with its weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.GRU(4, 5, 2)).eval()
    x = torch.randn(6, 2, 3)
    expected = model(x)[0]
    accelerate(model)
    file = io.BytesIO()
    torch.save((model, x), file)
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_ELMAN]
    done = subprocess.run(command, input=file.getvalue(), capture_output=True, check=True)
    for output, _ in torch.load(io.BytesIO(done.stdout)):
        torch.testing.assert_close(output, expected, rtol=0, atol=0)
    wrapped = nn.Sequential(Doubling(3, 4))
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        for turned in (model, wrapped):
            accelerate(turned)
            loaded = pickle.loads(pickle.dumps(turned, protocol))
            assert accelerate(loaded, undo=True) == []
            same_bits(loaded.state_dict(), turned.state_dict())
    assert type(loaded[0]) is Doubling


def test_moved_while_accelerated(model):
    x = torch.randn(3, 6, 3)
    accelerate(model)
    model.double()
    with require("kernel"):
        actual = step(model, x.double())
    accelerate(model, undo=True)
    agree(actual, step(model, x.double()))


def test_parametrised_layer():
    """A parametrisation gives its module a class of its own, which overrides nothing."""
    model = nn.Sequential(nn.GRU(3, 4))
    nn.utils.parametrizations.weight_norm(model[0], "weight_hh_l0")
    x, cls = torch.randn(5, 2, 3), type(model[0])
    expected = model(x)[0]
    assert accelerate(model) == ["0"]
    with require("kernel"):
        agree({"output": model(x)[0]}, {"output": expected})
    accelerate(model, undo=True)
    assert type(model[0]) is cls


def test_parametrised_while_accelerated():
    """Turning back must not lose the parametrisation, nor fail."""
    model = nn.Sequential(nn.GRU(3, 4))
    accelerate(model)
    nn.utils.parametrizations.weight_norm(model[0], "weight_hh_l0")
    x = torch.randn(5, 2, 3)
    expected = model(x)[0]
    names = accelerate(model, undo=True)
    agree({"output": model(x)[0]}, {"output": expected})
    nn.utils.parametrize.remove_parametrizations(model[0], "weight_hh_l0")
    assert names + accelerate(model, undo=True) == ["0"]
    assert type(model[0]) is nn.GRU
    agree({"output": model(x)[0]}, {"output": expected})


# --- Subclasses, and what is left alone ----------------------------------------------------------


class Doubling(nn.GRU):
    """As pytorch-forecasting's, it does something around torch's forward."""

    def forward(self, x, hx=None):
        output, h_n = super().forward(2 * x, hx)
        return output + 1, h_n


class Scaled(ABC):  # noqa: B024
    def forward(self, *args, scale=1):
        output, state = super().forward(*args)
        return scale * output, state


class ScaledLSTM(Scaled, nn.LSTM):
    def __init__(self, *args):
        super().__init__(*args)
        self.note = "mine"


class HalfCell(nn.LSTMCell):
    def forward(self, x, hx=None):
        return super().forward(x / 2, hx)


class Reduced(Doubling):
    """It says itself how it is pickled."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.built_by = "its constructor"

    def __reduce__(self):
        return type(self), (self.input_size, self.hidden_size), {"_parameters": self._parameters}

    def __setstate__(self, state):
        vars(self).update(state)


class OwnGRU(nn.GRU):
    def forward(self, x, hx=None):
        return x, hx


class Lenient(nn.LSTM):
    def check_forward_args(self, *_):
        pass


class Other(nn.RNNBase):
    pass


@pytest.mark.parametrize(
    ("cls", "kwargs"), [(Doubling, {}), (ScaledLSTM, {"scale": 3}), (HalfCell, {})]
)
def test_subclasses_that_wrap_forward(cls, kwargs):
    torch.manual_seed(0)
    module = cls(3, 4)
    x = torch.randn(2, 3) if isinstance(module, nn.RNNCellBase) else torch.randn(5, 2, 3)

    def results(module):
        module.zero_grad()
        given = leaf(x)
        output, state = module(given, **kwargs)
        state = state[0] if isinstance(state, tuple) else state
        (output.square().sum() + state.sum()).backward()
        return {"output": output, "x": given.grad} | {
            n: p.grad for n, p in module.named_parameters()
        }

    expected = results(module)
    assert accelerate(module) == [""]
    assert isinstance(module, cls)
    assert type(module).__qualname__ == cls.__qualname__
    for turned in (module, copy.deepcopy(module)):
        with require("kernel"):
            agree(results(turned), expected)
        assert accelerate(turned) == []
    assert accelerate(module, undo=True) == [""]
    assert type(module) is cls
    same_bits(results(module), expected)


def test_a_subclass_that_says_how_it_is_pickled():
    module = Reduced(3, 4)
    x = torch.randn(5, 2, 3)
    expected = {"output": module(x)[0]}
    accelerate(module)
    copied, loaded = copy.deepcopy(module), pickle.loads(pickle.dumps(module))
    assert accelerate(copied, undo=True) == [""]
    for other in (copied, loaded):
        assert type(other) is Reduced
        assert other.built_by == "its constructor"
        agree({"output": other(x)[0]}, expected)


@pytest.mark.filterwarnings("ignore:`torch.jit.script.*is deprecated:DeprecationWarning")
def test_what_is_left_alone_is_said():
    replaced = nn.GRU(3, 4)
    replaced.forward = lambda x: x
    model = nn.ModuleDict(
        {
            "own": OwnGRU(3, 4),
            "lenient": Lenient(3, 4),
            "other": Other("GRU", 3, 4),
            "replaced": replaced,
            "scripted": torch.jit.script(nn.GRU(3, 4)),
            "elmans": elman.torch.GRU(3, 4),
            "linear": nn.Linear(3, 4),
            "gru": nn.GRU(3, 4),
        }
    )
    x, before = torch.randn(5, 2, 3), classes(model)
    turned = accelerate(model)
    assert turned == ["gru"]
    assert turned.left == {
        "own": "OwnGRU has a forward of its own, which does not call super().forward",
        "lenient": "Lenient has a check_forward_args of its own",
        "other": "Other derives from no RNN, GRU, LSTM or cell of torch.nn's",
        "replaced": "its forward was replaced",
        "scripted": "torch.jit has compiled it",
    }
    assert classes(model) == before
    assert model["own"](x)[0] is model["replaced"](x) is x
    assert accelerate(model, undo=True) == ["gru"]


def test_a_model_without_any_is_told():
    with pytest.warns(UserWarning, match=r"^accelerate: the model has no recurrent layer$") as told:
        assert accelerate(nn.Linear(3, 4)) == []
    assert told[0].filename == __file__
    accelerate(elman.torch.GRU(3, 4))  # which has one


# --- What others ask of torch's layers -----------------------------------------------------------


@pytest.mark.parametrize("stock", [nn.GRU, nn.LSTM, nn.GRUCell, nn.LSTMCell, nn.RNNCell])
@pytest.mark.filterwarnings("ignore:.*(quantize_|deprecated)")
def test_quantised(stock):
    """torch's quantised layer comes of the weights, as of a stock layer."""
    torch.manual_seed(0)
    model = nn.Sequential(stock(8, 8))
    x = torch.randn(3, 8) if issubclass(stock, nn.RNNCellBase) else torch.randn(5, 3, 8)
    expected = quantize_dynamic(model, {stock})
    accelerate(model)
    quantised = quantize_dynamic(model, {stock})
    assert type(quantised[0]) is type(expected[0]) is not stock
    results = [m(x) if stock is not nn.LSTMCell else m(x)[0] for m in (quantised, expected)]
    results = [r[0] if isinstance(r, tuple) else r for r in results]
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize(
    "layer", [nn.GRU(3, 4, 2, bidirectional=True), nn.LSTM(3, 4, proj_size=2), nn.GRUCell(3, 4)]
)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_operations_are_counted(layer):
    """As many as torch's own operators have; backward twice, and torch leaves out what ends."""
    x = torch.randn(2, 3) if isinstance(layer, nn.RNNCellBase) else torch.randn(5, 2, 3)
    counts = []
    for _ in range(2):
        with FlopCounterMode(display=False) as counter:
            output = layer(x.requires_grad_())
            forward = counter.get_total_flops()
            (output[0] if isinstance(output, tuple) else output).sum().backward()
        counts.append((forward, counter.get_total_flops()))
        accelerate(layer)
    (stock, stock_both), (ours, both) = counts
    assert ours == stock > 0
    assert both == 3 * ours > stock_both > 2 * ours


def test_gradients_per_sample_as_torch_has_them():
    torch.manual_seed(0)
    stock = nn.GRU(3, 4, batch_first=True)
    accelerated, own = copy.deepcopy(stock), elman.torch.GRU(3, 4, batch_first=True)
    own.load_state_dict(stock.state_dict())
    accelerate(accelerated)
    x, found = torch.randn(5, 6, 3), []
    for layer in (stock, accelerated, own):
        output, _ = call_for_per_sample_grads(layer, batch_size=5)(x)
        output.square().sum().backward()
        found.append({name: p.grad_sample for name, p in layer.named_parameters()})
    for ours in found[1:]:
        agree(ours, found[0])


def test_functions_that_look_for_the_class(model):
    """``model.apply(init)`` reaches every layer that it reached before."""

    def init(module):
        if isinstance(module, (nn.GRU, nn.LSTM, nn.RNN, nn.GRUCell)):
            for p in module.parameters():
                nn.init.constant_(p, 0.25)

    x, other = torch.randn(3, 6, 3), copy.deepcopy(model)
    accelerate(model)
    agree(step(model.apply(init), x), step(other.apply(init), x))


def test_graphs_of_fx_and_export():
    """Both take the module's forward apart, or let it be."""
    model = nn.Sequential(nn.Linear(3, 4), nn.GRU(4, 5))
    x = torch.randn(6, 2, 3)
    expected = model(x)[0]
    accelerate(model)
    for graph in (torch.fx.symbolic_trace(model), torch.export.export(model, (x,)).module()):
        with require("kernel"):
            agree({"output": graph(x)[0]}, {"output": expected})


def test_replicas():
    """As DataParallel makes them: a copy of the module's attributes, then other parameters."""
    for layer in (nn.GRU(3, 4), nn.LSTMCell(3, 4), Doubling(3, 4)):
        accelerate(layer)
        replica = layer._replicate_for_data_parallel()
        for name, p in layer.named_parameters():
            setattr(replica, name, torch.zeros_like(p))
        x = torch.randn(2, 3) if isinstance(layer, nn.RNNCellBase) else torch.randn(5, 2, 3)
        with require("kernel"):
            output = replica(x)[0]
            assert not output.sub(int(isinstance(layer, Doubling))).any()
            assert layer(x)[0].any()


# --- install -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stock", STOCK)
def test_install(stock):
    """What is built by torch.nn's names is Elman's, and can still do what torch does itself."""
    name, x = stock.__name__, torch.randn(2, 3)
    with install():
        built = getattr(nn, name)(3, 4)
        assert getattr(torch.nn.modules, name) is type(built) is getattr(elman.torch, name)
        with install():  # within another, whose end is not its
            pass
        assert getattr(nn, name) is type(built)
    assert getattr(nn, name) is getattr(torch.nn.modules, name) is stock
    theirs = stock(3, 4)
    theirs.load_state_dict(built.state_dict())
    found, expected = ((r if isinstance(r, tuple) else (r,)) for r in (built(x), theirs(x)))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)


def test_install_until_uninstall():
    install()
    try:
        install()
        assert nn.GRU is elman.torch.GRU
        for module in (nn.GRU(3, 4), nn.GRUCell(3, 4)):
            with require("torch"), pytest.raises(RuntimeError, match="input"):
                module(torch.ones(2, 5))  # of torch's own, and not by itself without end
    finally:
        uninstall()
    assert nn.GRU is STOCK[1]
    uninstall()
    assert nn.GRU is STOCK[1]
