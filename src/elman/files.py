"""Files of weights: written whole or not at all, and read with errors that name them."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (safe_open is not typed)

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Path = str | os.PathLike[str]


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under another name beside it, then move it into place."""
    temporary = f"{os.fspath(path)}.{os.urandom(4).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o666)  # less what the umask takes away
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_safetensors(title: str, path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Every tensor by its name, and the file's metadata. Needs the package safetensors.

    Raises ValueError, opening with the title, where the file is no safetensors file or holds a type
    that NumPy does not have.
    """
    _require_safetensors(title)
    from safetensors import SafetensorError, safe_open

    where = os.fspath(path)
    try:
        with safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return cast(dict[str, Array], tensors), cast(dict[str, str], file.metadata() or {})
    except SafetensorError as e:
        raise ValueError(f"{title}: {where!r} is not a safetensors file: {e}") from e
    except (AttributeError, TypeError) as e:  # how safetensors puts it
        raise ValueError(f"{title}: {where!r} holds a type that NumPy does not have: {e}") from e


def write_safetensors(
    path: Path, tensors: Mapping[str, Array], metadata: dict[str, str] | None = None
) -> None:
    """Write the tensors under their names, whole or not at all. Needs the package safetensors."""
    _require_safetensors("save")
    from safetensors.numpy import save

    # Memory is written as it lies, so each array has to lie in order.
    ordered = {name: np.ascontiguousarray(a) for name, a in tensors.items()}
    write_whole(path, save(ordered, metadata))


def _require_safetensors(title: str) -> None:
    if find_spec("safetensors") is None:
        reason = "needs the package safetensors, which the extra elman[safetensors] brings"
        raise ModuleNotFoundError(f"{title}: {reason}", name="safetensors")
