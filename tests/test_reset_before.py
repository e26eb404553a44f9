"""The option reset_after of the GRU, in every package: what it is, what it refuses, who sees it.

Values, gradients and bits are those of all cells: test_engine.py, test_exact.py, test_torch_*.py.
"""

import copy
import pickle
from importlib.util import find_spec

import numpy as np
import pytest
from reference import assert_all_same_bits, assert_close, assert_same_bits

import elman

needs_torch = pytest.mark.skipif(not find_spec("torch"), reason="PyTorch is not installed")
needs_mlx = pytest.mark.skipif(not find_spec("mlx"), reason="MLX is not installed")


def normal(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def step(weights, x, h):
    """One step, from the equations of the docstring, by hand."""
    w_ih, w_hh, b_ih, b_hh = (np.split(w.astype("float64"), 3) for w in weights.values())

    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    r, z = (sigmoid(w_ih[g] @ x + b_ih[g] + w_hh[g] @ h + b_hh[g]) for g in (0, 1))
    n = np.tanh(w_ih[2] @ x + b_ih[2] + w_hh[2] @ (r * h) + b_hh[2])
    return (1 - z) * n + z * h


def test_the_equations():
    before = elman.GRU(3, 5, reset_after=False, seed=0)
    x, h = normal(4, 3), np.zeros(5)
    output, _ = before(x)
    for got, x_t in zip(output, x, strict=True):
        h = step(before.state_dict(), x_t, h)
        assert_close(got, h, "float32")
    after = elman.GRU(3, 5, seed=0)
    assert_all_same_bits(after.state_dict(), before.state_dict())  # the same numbers
    assert np.abs(after(x)[0] - output).max() > 1e-3  # of another layer


@pytest.mark.parametrize("rows", [(), (2,)])
def test_a_cell_is_a_step_of_the_layer(rows):
    layer, cell = (kind(3, 5, reset_after=False, seed=0) for kind in (elman.GRU, elman.GRUCell))
    x, h = normal(*rows, 3), normal(*rows, 5)
    want, _ = layer(x[None], h[None])
    assert_same_bits(cell(x, h), want[0])


@pytest.mark.parametrize("kind", [elman.GRU, elman.GRUCell])
@pytest.mark.parametrize("value", [None, 0, 1, "False", np.False_])
def test_what_is_no_bool(kind, value):
    message = rf"^{kind.__name__}: reset_after must be a bool, got "
    with pytest.raises(TypeError, match=message):
        kind(3, 5, reset_after=value)


@pytest.mark.parametrize("kind", [elman.GRU, elman.GRUCell])
def test_copied_pickled_and_shown(kind):
    layer, x = kind(3, 5, reset_after=False, seed=0), normal(2, 3)
    want = layer(x)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_same_bits(tuple(again(x)), tuple(want))
    assert repr(layer) == f"{kind.__name__}(3, 5, reset_after=False)"
    assert "reset_after" not in repr(kind(3, 5))


def test_a_file_says_which(tmp_path):
    x = normal(4, 3)
    for reset_after in (True, False):
        layer = elman.GRU(3, 5, 2, reset_after=reset_after, seed=0)
        layer.save(tmp_path / "layer.safetensors")
        again = elman.load(tmp_path / "layer.safetensors")
        assert repr(again) == repr(layer)
        assert_same_bits(again(x), layer(x))


# --- PyTorch -------------------------------------------------------------------------------------


@needs_torch
def test_pytorch_never_takes_its_own_layer():
    """Where the engine does not serve, the loop does: forward mode, autocast, another device."""
    import torch

    import elman.torch
    from elman.torch import paths

    torch.manual_seed(0)
    layer = elman.torch.GRU(3, 5, 2, bidirectional=True, reset_after=False)
    cell = elman.torch.GRUCell(3, 5, reset_after=False)
    x = torch.randn(4, 2, 3)
    for module, given in ((layer, x), (cell, x[0])):
        (want, *_), many = module(given), torch.stack([given] * 3)
        paths.clear()
        got, tangent = torch.func.jvp(lambda x, m=module: m(x)[0], (given,), (many[0],))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
        step = 1e-3 * given
        quotient = (module(given + step)[0] - module(given - step)[0]) / 2e-3
        torch.testing.assert_close(tangent, quotient, rtol=1e-2, atol=1e-3)
        assert paths.pop("scan") > 0
        paths.clear()
        with torch.autocast("cpu", torch.bfloat16):
            got, *_ = module(given)
        torch.testing.assert_close(got.float(), want, rtol=3e-2, atol=3e-2)
        got, *_ = copy.deepcopy(module).to("meta")(given.to("meta"))
        assert got.shape == want.shape
        assert paths["scan"] > 0
        assert "torch" not in paths


@needs_torch
def test_pytorch_refuses_what_torchs_layer_would_take():
    import torch

    import elman.torch

    cell = elman.torch.GRUCell(3, 5, reset_after=False)
    cell.bias_hh = None
    with pytest.raises(RuntimeError, match=r"^GRUCell\(3, 5, reset_after=False\): with"):
        cell(torch.ones(2, 3))
    for kind in (elman.torch.GRU, elman.torch.GRUCell):
        with pytest.raises(TypeError, match=rf"^{kind.__name__}: reset_after must be a bool"):
            kind(3, 5, reset_after=0)
    layer = elman.torch.GRU(3, 5, reset_after=False)
    for x in (torch.ones(4, 2, 4), torch.ones(3), torch.ones(0, 2, 3)):
        with pytest.raises((RuntimeError, ValueError)):  # torch's own
            layer(x)


@needs_torch
def test_pytorch_lays_nothing_out_for_cudnn(monkeypatch):
    """Which knows no such mode: a move to a GPU would end in its error."""
    from torch import nn

    import elman.torch

    flattened = []
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", lambda self: flattened.append(self))
    for reset_after in (True, False):
        layer = elman.torch.GRU(3, 5, reset_after=reset_after)
        flattened.clear()
        layer.double()
        layer.flatten_parameters()
        assert bool(flattened) == reset_after


@needs_torch
@pytest.mark.parametrize("kind", ["GRU", "GRUCell"])
def test_pytorch_keeps_it(kind):
    """In copies, pickles and repr; and accelerate neither makes it nor takes it for torch's."""
    import torch

    import elman.torch

    layer, x = getattr(elman.torch, kind)(3, 5, reset_after=False), torch.randn(2, 3)
    want = layer(x)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert again.reset_after is False
        torch.testing.assert_close(again(x), want, rtol=0, atol=0)
    assert repr(layer) == f"{kind}(3, 5, reset_after=False)"
    model = torch.nn.Sequential(layer, getattr(torch.nn, kind)(5, 5))
    want = model[1](torch.ones(2, 5))
    assert elman.torch.accelerate(model) == ["1"]
    torch.testing.assert_close(model[1](torch.ones(2, 5)), want)
    assert elman.torch.accelerate(model, undo=True) == ["1"]
    assert type(model[0]) is type(layer)


# --- MLX -----------------------------------------------------------------------------------------


@needs_mlx
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_mlx(options):
    """The loop's values where the engine does not serve; each of its layers is of the kind."""
    import mlx.core as mx

    import elman.mlx
    from elman.mlx import paths

    with mx.stream(mx.cpu):
        layer = elman.mlx.GRU(3, 5, reset_after=False, **options)
        x = mx.array(normal(2, 4, 3))
        want = np.array(layer(x))
        paths.clear()
        layer.set_dtype(mx.bfloat16)
        got = np.array(layer(x.astype(mx.bfloat16)).astype(mx.float32))
        assert dict(paths) == {"scan": layer.num_layers}
        assert np.abs(got - want).max() < 3e-2
        assert "reset_after=False" in repr(layer)
        assert not any(part.reset_after for parts in layer._parts for part in parts)
        with pytest.raises(TypeError, match=r"^GRU: reset_after must be a bool, got 1"):
            elman.mlx.GRU(3, 5, reset_after=1)
