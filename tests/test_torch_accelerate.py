"""``accelerate``: a model's stock layers become Elman's in place, and turn back."""

import copy
import pickle

import pytest
import torch
from test_torch_layers import agree, gradients, leaf, same_bits
from torch import nn

import elman.torch
from elman.torch import accelerate, require


class MyGRU(nn.GRU):
    pass


STOCK = [nn.RNN, nn.GRU, nn.LSTM, nn.RNNCell, nn.GRUCell, nn.LSTMCell]


class Model(nn.Module):
    """Layers and cells at several depths, beside what is to be left alone."""

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


NAMES = ["encoder", "stack.0", "stack.1", "inner.deep.1", "cell", "lstm_cell"]


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
    assert classes(model) == {
        name: getattr(elman.torch, cls.__name__) if cls in STOCK else cls
        for name, cls in before.items()
    }
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
    assert elman.torch.paths == {"kernel": 7}  # two layers of the encoder, one each of the others
    accelerate(model, undo=True)
    elman.torch.paths.clear()
    model(torch.randn(3, 6, 3))
    assert not elman.torch.paths


@pytest.mark.parametrize("stock", STOCK)
def test_model_that_is_a_layer(stock):
    layer = stock(3, 4)
    text = repr(layer)
    assert accelerate(layer) == [""]
    assert type(layer) is getattr(elman.torch, stock.__name__)
    assert repr(layer) == text
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
    assert type(shared) is elman.torch.GRU
    assert accelerate(model, undo=True) == ["a", "c"]
    assert type(shared) is nn.GRU


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
    model[0].register_forward_hook(lambda module, args, out: seen.append(type(module)))
    x = torch.randn(5, 2, 3)
    for undo in (False, True):
        accelerate(model, undo)
        model(x)
    assert seen == [elman.torch.GRU, nn.GRU]


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


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["deepcopy", "pickle"],
)
def test_duplicated(model, duplicate):
    """A copy of an accelerated model is one, and turns back by itself; so does an undone one."""
    before, x = classes(model), torch.randn(3, 6, 3)
    expected = step(model, x)
    accelerate(model)
    accelerated = classes(model)
    other = duplicate(model)
    assert classes(other) == accelerated
    agree(step(other, x), expected)
    assert accelerate(other) == []
    assert accelerate(other, undo=True) == NAMES
    assert classes(other) == before
    assert classes(model) == accelerated
    same_bits(step(other, x), expected)
    accelerate(model, undo=True)
    assert classes(duplicate(model)) == before
    same_bits(step(duplicate(model), x), expected)


def test_moved_while_accelerated(model):
    x = torch.randn(3, 6, 3)
    accelerate(model)
    model.double()
    with require("kernel"):
        actual = step(model, x.double())
    accelerate(model, undo=True)
    agree(actual, step(model, x.double()))


def test_parametrised_layer_is_left_alone():
    """A parametrisation gives its module a class of its own, as a user's subclass is."""
    model = nn.Sequential(nn.GRU(3, 4))
    nn.utils.parametrizations.weight_norm(model[0], "weight_hh_l0")
    x, cls = torch.randn(5, 2, 3), type(model[0])
    expected = model(x)[0]
    accelerate(model)
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
