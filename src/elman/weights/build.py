"""The NumPy package's layer of a framework's tensors."""

# pyright: reportUnknownMemberType=false
# (methods of arrays of any dtype are partly untyped)

import json
from collections.abc import Mapping
from typing import Any

from elman.weights.convert import Canonical, Converted, from_canonical, to_canonical
from elman.weights.files import Path, write_safetensors
from elman.weights.frameworks import ConversionError, Tensors, nonlinearities

#: Where a file of several layers says the arguments of each, by its prefix.
LAYERS = "elman.layers"


def build(
    tensors: Mapping[str, Any],
    source: str,
    *,
    cell: bool | None = None,
    reset_after: bool | None = None,
    nonlinearity: str = "",
    **options: Any,
) -> Any:
    """Make the layer, or the cell, that has these weights.

    Parameters
    ----------
    tensors, source, cell, reset_after : as :func:`convert` takes them.
    nonlinearity : "tanh" or "relu", of an RNN, whose weights do not tell.
    options : of the constructor, those that weights do not tell: batch_first, dropout, seed,
        recompute, and dtype. Default: the constructor's, and the tensors' dtype.

    Returns an ``elman.RNN``, ``GRU`` or ``LSTM``, or one of their cells. Raises ConversionError as
    ``convert`` does, and for an RNN without a nonlinearity.

    >>> import elman, elman.weights, numpy as np
    >>> kernel, recurrent, bias = np.ones((3, 12)), np.ones((4, 12)), np.zeros(12)
    >>> tensors = {"kernel": kernel, "recurrent_kernel": recurrent, "bias": bias}
    >>> named = {f"gru/gru_cell/{name}": a for name, a in tensors.items()}
    >>> elman.weights.build(named, "keras", batch_first=True)  # of reset_after=False, by its bias
    GRU(3, 4, batch_first=True, reset_after=False)
    """
    canonical = to_canonical(tensors, source, reset_after)
    return build_canonical(canonical, cell=cell, nonlinearity=nonlinearity, **options)


def build_canonical(
    canonical: Canonical, *, cell: bool | None = None, nonlinearity: str = "", **options: Any
) -> Any:
    """The same of weights that were read."""
    import elman  # whose layers stand above, and read files by this package

    converted = from_canonical(canonical, "elman", cell=cell)
    arguments = converted.arguments | _nonlinearity(converted, nonlinearity)
    options = {"dtype": canonical.dtype.name, **options}
    layer = getattr(elman, arguments.pop("class"))(**arguments, **options)
    layer.load_state_dict({name: a.astype(layer.dtype) for name, a in converted.items()})
    return layer


def _nonlinearity(converted: Converted, given: str) -> dict[str, str]:
    name = converted.arguments["class"]
    known = converted.arguments.get("nonlinearity", "")
    possible = [known] if known else nonlinearities(name.removesuffix("Cell"))
    if (given or known) not in possible:
        raise ConversionError(
            f"{name}: nonlinearity, which weights do not tell, must be in {possible}, got {given!r}"
        )
    return {"nonlinearity": given or known} if given or known else {}


def is_saved(metadata: Mapping[str, str]) -> bool:
    """Whether a file's metadata is what a layer of Elman's writes."""
    return "elman" in metadata


def is_elmans(metadata: Mapping[str, str]) -> bool:
    """The same, or what :func:`write_arguments` writes."""
    return is_saved(metadata) or LAYERS in metadata


def write_arguments(path: Path, tensors: Tensors, layers: Mapping[str, Converted]) -> None:
    """Write the target elman's tensors of several layers, by prefix, with what they do not tell."""
    arguments = {prefix: layer.arguments for prefix, layer in layers.items()}
    write_safetensors(path, tensors, {LAYERS: json.dumps(arguments)})


def arguments_in(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What `write_arguments` wrote of each layer, if it did."""
    try:
        layers: Any = json.loads(metadata.get(LAYERS, "{}"))
        for one in layers.values():
            if one.get("nonlinearity", "tanh") not in nonlinearities("RNN"):
                raise ValueError(f"nonlinearity {one['nonlinearity']!r}")
        return dict(layers)
    except (AttributeError, RecursionError, TypeError, ValueError) as e:
        raise ConversionError(f"elman: {LAYERS} does not describe layers of Elman's: {e!r}") from e


def canonical_of(layer: Any) -> Canonical:
    """The weights of a layer of the NumPy package."""
    spec = layer.spec
    nonlinearity = spec.cell.name.removeprefix("rnn_") if spec.cell.kind == "RNN" else ""
    return Canonical(spec, layer.state_dict(), nonlinearity=nonlinearity)
