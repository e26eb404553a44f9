"""Elman in models that others build: ``accelerate`` for those there are, ``install`` for others.

A stock module keeps its class and gets a ``forward`` of its own, so that to whoever looks it is
``torch.nn``'s. Only a subclass that calls ``super().forward`` has to find Elman's in a class.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (parts of torch are not typed)

import copy
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import cache, update_wrapper
from types import MethodType, new_class
from typing import Any

import torch
from torch import nn
from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch.compiler import is_compiling

from elman.swap import Names, turn_each
from elman.torch import layers
from elman.torch.modules import STOCK, Unscriptable, refuse_scripting, trace_forward

_OURS: dict[str, Any] = {name: getattr(layers, name) for name in STOCK}

# What torch's forward asks of its class, and Elman computes itself or does without.
_ASKED = (
    "check_forward_args",
    "check_hidden_size",
    "check_input",
    "get_expected_cell_size",
    "get_expected_hidden_size",
    "permute_hidden",
)


class _Forward:
    """``forward`` of a stock module, by the class of Elman's that has its name."""

    def __init__(self, stock: str) -> None:
        update_wrapper(self, _OURS[stock].forward)
        self._function, self._stock = _OURS[stock].forward, stock
        self.__globals__ = self._function.__globals__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        function = self._function
        if not is_compiling() and get_eval_frame_callback() is not None:
            # torch.compile has broken its graph here, and would compile what this calls.
            function = torch.compiler.disable(function)
        return function(*args, **kwargs)

    @property
    def __code__(self) -> Any:
        """What torch.jit.script asks of a forward that it is about to compile."""
        return refuse_scripting(self._stock)


_FORWARDS = {name: _Forward(name) for name in STOCK}


def _replicate(module: Any) -> Any:
    """A replica as DataParallel makes it, whose methods are not bound to the original."""
    replica = type(module)._replicate_for_data_parallel(module)
    _serve(replica)
    return replica


def _stock_state(module: Any) -> dict[str, Any]:
    """What is pickled: nothing of Elman's, so that a model loads as a stock one without it."""
    has_own = hasattr(type(module), "__getstate__")
    state = type(module).__getstate__(module) if has_own else module.__dict__
    return {name: value for name, value in state.items() if name not in _NAMES}


def _deepcopy(module: Any, memo: dict[int, Any]) -> Any:
    own = getattr(_unwrapped(type(module)), "__deepcopy__", None)
    if own:  # as parametrised modules have
        copied = own(module, memo)
    else:
        make, args, *state = module.__reduce_ex__(4)
        memo[id(module)] = copied = make(*copy.deepcopy(args, memo))
        if state:
            copied.__setstate__(copy.deepcopy(state[0], memo))
    if not _is_served(copied):
        _serve(copied)
    return copied


# What a stock module has that is served, beside its forward, before what its class has.
_METHODS: dict[str, Callable[..., Any]] = {
    "_replicate_for_data_parallel": _replicate,
    "_slow_forward": trace_forward,
    "__getstate__": _stock_state,
    "__deepcopy__": _deepcopy,
}
_NAMES = ("forward", *_METHODS)


def _reduce(module: Any, protocol: Any) -> Any:
    cls: Any = type(module)
    before: Any = _unwrapped(cls)
    # As of the oldest protocol, for newer ones mind another class than the object's own.
    make, args, *rest = before.__reduce_ex__(module, 1)
    make, *args = (before if each is cls else each for each in (make, *args))
    return make, tuple(args), *rest


@cache
def _wrapped(cls: type, name: str) -> type:
    """A class derived from a subclass of torch's of that name, to which ``super()`` is Elman's.

    It is pickled as the subclass. Nothing but a body tells them apart, as Python asks of two
    classes if one is to be put in the other's place.
    """

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _FORWARDS[name](self, *args, **kwargs)

    above = {"forward": forward}
    inner = new_class(name, (STOCK[name],), exec_body=lambda body: body.update(above))
    own = {key: getattr(cls, key) for key in ("__module__", "__qualname__", "__doc__")}
    own |= {
        "_unwrapped": cls,
        "__deepcopy__": _deepcopy,
        "__reduce_ex__": _reduce,
        "__jit_ignored_attributes__": Unscriptable(),
    }
    return new_class(cls.__name__, (cls, inner), exec_body=lambda body: body.update(own))


def _unwrapped(cls: Any) -> type:
    """The class itself, or what it was before it was wrapped."""
    return vars(cls).get("_unwrapped", cls)


def accelerate(model: nn.Module, undo: bool = False) -> Names:
    """Have every RNN, GRU, LSTM and cell of these of a model run by Elman, in place.

    The modules stay the same objects of the same class, with their parameters, hooks and buffers:
    ``isinstance(module, torch.nn.GRU)`` holds, and so do optimisers and other references. Each
    takes ``lengths=`` and ``reset=`` besides, as :class:`elman.torch.GRU` does. Deep copies are
    accelerated too; what is loaded from a pickle is a stock model, with Elman there or without, and
    so is a shallow copy.

    Subclasses of torch's classes are served alike, those too whose ``forward`` wraps
    ``super().forward``; they are of a class made for that then, derived from their own. A module is
    left alone if it computes something of its own, or its ``forward`` was replaced.

    Returns the names of the modules that it turned, "" for the model itself; a second call finds
    none. The list has an attribute ``left``, from the name of each recurrent module that was left
    alone to the reason. A model without any recurrent module gets a UserWarning. With ``undo=True``
    it turns back what it had turned, and returns their names.

    torch.compile breaks its graph at every instance of ``torch.nn.GRU``, unless
    ``torch._dynamo.config.allow_rnn`` is set: where one graph matters, build models of Elman's own
    classes.

    >>> import torch, elman.torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.GRU(3, 4))
    >>> elman.torch.accelerate(model)
    ['1']
    >>> isinstance(model[1], torch.nn.GRU), elman.torch.accelerate(model).left
    (True, {})
    >>> output, h_n = model[1](torch.ones(5, 2, 3), lengths=[5, 1])
    >>> elman.torch.accelerate(model, undo=True)
    ['1']
    """
    return turn_each(model.named_modules(), _turn_back if undo else _turn)


def _is_recurrent(module: nn.Module) -> bool:
    if isinstance(module, torch.jit.ScriptModule):
        return module.original_name in STOCK
    return isinstance(module, (nn.RNNBase, nn.RNNCellBase))


def _turn(module: Any) -> bool | str | None:
    if not _is_recurrent(module):
        return None
    if _is_served(module) or isinstance(module, tuple(_OURS.values())):
        return False
    if reason := _why_left(module):
        return reason
    _serve(module)
    return True


def _turn_back(module: Any) -> bool | None:
    if not _is_recurrent(module):
        return None
    if not _is_served(module):
        return False
    if _is_wrapped(module):
        before = _unwrapped(type(module))
        if before is type(module):
            return False  # a parametrisation has given it a class since, and takes it away first
        module.__class__ = before
    else:
        for method in _NAMES:
            del module.__dict__[method]
    return True


def _is_served(module: Any) -> bool:
    return _is_wrapped(module) or isinstance(_own_forward(module), _Forward)


def _is_wrapped(module: Any) -> bool:
    return hasattr(type(module), "_unwrapped")


def _own_forward(module: Any) -> Any:
    """The function that stands before its class's, if any does."""
    own = module.__dict__.get("forward")
    return getattr(own, "__func__", own)


def _stock(cls: type) -> str | None:
    """The name of torch's class from which this one is derived."""
    return next((name for name, stock in STOCK.items() if issubclass(cls, stock)), None)


def _why_left(module: Any) -> str | None:
    if isinstance(module, torch.jit.ScriptModule):
        return "torch.jit has compiled it"
    cls, name = type(module), _stock(type(module))
    title = cls.__name__
    if name is None:
        return f"{title} derives from no RNN, GRU, LSTM or cell of torch.nn's"
    stock: Any = STOCK[name]
    if _own_forward(module) is not None:
        return "its forward was replaced"
    for method in _ASKED:
        if getattr(cls, method, None) is not getattr(stock, method, None):
            return f"{title} has a {method} of its own"
    if not all(map(_wraps_super, _own_forwards(cls, stock))):
        return f"{title} has a forward of its own, which does not call super().forward"
    return None


def _own_forwards(cls: type, stock: type) -> list[Any]:
    """What a class has before torch's forward."""
    before = cls.__mro__[: cls.__mro__.index(stock)]
    return [vars(c)["forward"] for c in before if "forward" in vars(c)]


def _wraps_super(forward: Any) -> bool:
    code = getattr(inspect.unwrap(forward), "__code__", None)
    return code is not None and {"super", "forward"} <= {*code.co_names}


def _serve(module: Any) -> None:
    cls = type(module)
    name = _stock(cls)
    assert name is not None
    if _own_forwards(cls, STOCK[name]):
        module.__class__ = _wrapped(cls, name)
    else:
        for method, function in {"forward": _FORWARDS[name], **_METHODS}.items():
            module.__dict__[method] = MethodType(function, module)


def install() -> AbstractContextManager[Any]:
    """Put Elman's classes in the place of torch.nn's, for all models that are built after.

    ``torch.nn.RNN``, ``GRU``, ``LSTM`` and their cells are Elman's then, for packages that build
    their models anew at every fit. :func:`uninstall` puts torch's back, and so does the end of
    ``with install():``; modules stay what they were built as. Names that a package has imported
    before, and its subclasses of torch's classes, stay torch's: there is :func:`accelerate` for
    these. For torch.compile, call :func:`uninstall` when the model is built.

    >>> import torch, elman.torch
    >>> with elman.torch.install():
    ...     gru = torch.nn.GRU(3, 4)
    >>> type(gru) is elman.torch.GRU, torch.nn.GRU is elman.torch.GRU
    (True, False)
    """
    before = {name: getattr(nn, name) for name in STOCK}
    _put(_OURS)
    put_back = ExitStack()
    put_back.callback(_put, before)
    return put_back


def uninstall() -> None:
    """Put torch's own classes back, whatever :func:`install` has done."""
    _put(STOCK)


def _put(classes: Mapping[str, Any]) -> None:
    for name, cls in classes.items():
        setattr(nn, name, cls)
        setattr(nn.modules, name, cls)
