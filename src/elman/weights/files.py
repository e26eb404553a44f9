"""Files of weights: written whole or not at all, and read with errors that name them."""

import errno
import json
import os
import stat
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Path = str | os.PathLike[str]


# The types of safetensors that NumPy has.
_TYPES = {
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    "BOOL": "bool",
    "C64": "complex64",
}


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under another name beside it, then move it into place.

    A link stays one: what it leads to is written. Raises OSError where that is no regular file.
    """
    target = os.path.realpath(os.fsdecode(path))
    if os.path.exists(target):
        require_regular(target)
    temporary = os.path.join(os.path.dirname(target), f".{os.urandom(8).hex()}")
    try:
        file = open(temporary, "xb")  # noqa: SIM115
    except OSError as e:  # of a file that nobody asked for
        raise type(e)(e.errno, e.strerror, os.fsdecode(path)) from e
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def read_whole(path: Path) -> bytes:
    """The bytes of a regular file."""
    require_regular(path)
    with open(path, "rb") as file:
        return file.read()


def require_regular(path: Path) -> None:
    """Raise OSError unless a regular file is there: a device is none, and a pipe never ends."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fsdecode(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", os.fsdecode(path))


def read_safetensors(title: str, path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Every tensor by its name, in the file's order, and the file's metadata.

    Needs the package safetensors, and of bfloat16 ml_dtypes. Raises ValueError, opening with the
    title, where the file is no safetensors file or holds a type that NumPy does not have.
    """
    require(f"{title}:", "safetensors", "safetensors")
    from safetensors import SafetensorError, deserialize  # pyright: ignore[reportUnknownVariableType]

    # All of it at once: a file that is mapped, and cut short meanwhile, ends the process.
    where, data = os.fsdecode(path), read_whole(path)
    tensors: dict[str, Array] = {}
    try:
        for name, tensor in deserialize(data):
            dtype = bfloat16(title) if tensor["dtype"] == "BF16" else _TYPES[tensor["dtype"]]
            tensors[name] = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
    except SafetensorError as e:
        raise ValueError(f"{title}: {where!r} is not a safetensors file: {e}") from e
    except KeyError as e:
        raise ValueError(f"{title}: {where!r} holds a type that NumPy does not have: {e}") from e
    except ValueError as e:  # of no elements, but of sizes beyond any array
        raise ValueError(f"{title}: {where!r} holds a shape that NumPy does not have: {e}") from e
    # A file that loads begins with its header's size and the header.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = cast(dict[str, str], header.pop("__metadata__", None) or {})
    # They come in an order that changes from run to run.
    return {name: tensors[name] for name in header}, metadata


def write_safetensors(
    path: Path, tensors: Mapping[str, Array], metadata: dict[str, str] | None = None
) -> None:
    """Write the tensors under their names, whole or not at all. Needs the package safetensors."""
    require("save:", "safetensors", "safetensors")
    from safetensors.numpy import save

    # Memory is written as it lies, so each array has to lie in order.
    ordered = {name: np.ascontiguousarray(a) for name, a in tensors.items()}
    write_whole(path, save(ordered, metadata))


def as_array(title: str, values: Any) -> Array:
    """Like ``np.asarray``, and bfloat16 of torch and MLX, which that does not read, by its bits.

    Raises what that does, and ModuleNotFoundError, opening with the title, where bfloat16 lacks the
    package ml_dtypes.
    """
    try:
        return np.asarray(values)
    except (TypeError, ValueError):
        dtype: Any = getattr(values, "dtype", None)
        if str(dtype) not in ("torch.bfloat16", "mlx.core.bfloat16"):
            raise
    # The framework's integers of as many bits, from the module that its dtypes are from.
    bits: Any = np.asarray(values.view(sys.modules[type(dtype).__module__].int16))
    return bits.view(bfloat16(title))


def bfloat16(title: str) -> np.dtype[Any]:
    """NumPy's bfloat16, which needs the package ml_dtypes."""
    require(f"{title}: bfloat16", "ml_dtypes", "bfloat16")
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def require(title: str, package: str, extra: str) -> None:
    """Raise ModuleNotFoundError, opening with the title, unless the package is there."""
    if find_spec(package) is None:
        raise ModuleNotFoundError(
            f"{title} needs the package {package}, which the extra elman[{extra}] brings",
            name=package,
        )
