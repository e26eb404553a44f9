"""Files of whole models: tensors by name, of PyTorch's checkpoints and of Keras's files."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# (h5py is not typed, nor are parts of torch)

import io
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from elman.weights.files import Path, bfloat16, read_safetensors, read_whole, require
from elman.weights.frameworks import KINDS, Array, ConversionError, Tensors


def read(path: Path) -> Mapping[str, Any]:
    """Every tensor of a file, by its name; nothing in the file is run.

    Raises ValueError where it is no such file as its name says, OSError where it cannot be read,
    ModuleNotFoundError where that needs a package that is not there.
    """
    return READERS[suffix(path)](path)


def metadata(path: Path) -> dict[str, str]:
    """What a file says beside its tensors, which only safetensors do; raises as `read` does."""
    return read_safetensors("convert", path)[1] if suffix(path) == ".safetensors" else {}


def suffix(path: Path) -> str:
    """The end of a file's name that says what it is; "" for one that is not known."""
    return next((end for end in READERS if os.fsdecode(path).endswith(end)), "")


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    return read_safetensors("convert", path)[0]


def _read_torch(path: Path) -> dict[str, Any]:
    """The tensors of a checkpoint, however deep they are in it: names are joined by dots."""
    require("torch", "torch", "torch")
    import torch

    data = io.BytesIO(read_whole(path))
    try:
        found = torch.load(data, map_location="cpu", weights_only=True)
    except Exception as e:  # as it raises whatever comes
        reason = str(e).strip().partition("\n")[0]
        raise ConversionError(
            f"torch: {os.fspath(path)!r} is no checkpoint of tensors alone, as torch.load reads "
            f"with weights_only=True: {reason}"
        ) from e
    return {name: value.detach() for name, value in _leaves(found) if torch.is_tensor(value)}


def _leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """What is in dictionaries and lists, each of which is opened once."""
    waiting, opened = [("", value)], set[int]()
    while waiting:
        name, value = waiting.pop()
        inner: Any = None
        if isinstance(value, Mapping):
            inner = value.items()
        elif isinstance(value, (list, tuple)):
            inner = enumerate(value)
        if inner is None:
            yield name, value
        elif id(value) not in opened:
            opened.add(id(value))
            each = [(f"{name}.{key}" if name else str(key), one) for key, one in inner]
            waiting += reversed(each)


def _read_keras(path: Path) -> Tensors:
    """The weights in a ``.keras`` archive, beside which lies what would be run."""
    try:
        with zipfile.ZipFile(io.BytesIO(read_whole(path))) as archive:
            weights = archive.getinfo("model.weights.h5")
            if weights.compress_type != zipfile.ZIP_STORED:
                raise ValueError("its weights are compressed, which Keras's are not")
            data = archive.read(weights)
    except (EOFError, KeyError, NotImplementedError, ValueError, zipfile.BadZipFile) as e:
        raise ConversionError(f"keras: {os.fspath(path)!r} is no .keras file: {e}") from e
    return _hdf5(path, data)


def _read_hdf5(path: Path) -> Tensors:
    return _hdf5(path, read_whole(path))


def _hdf5(path: Path, data: bytes) -> Tensors:
    """Every array of an HDF5 file, by its path, in which Keras's numbers are names again."""
    require("keras", "h5py", "h5py")
    import h5py

    tensors: Tensors = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and (item.dtype.kind == "f" or "dtype" in item.attrs):
            tensors[_keras_name(name, item.parent)] = _array(name, item, len(data))

    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            file.visititems(visit)
    except (KeyError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as e:
        raise ConversionError(f"keras: {os.fspath(path)!r} cannot be read as HDF5: {e}") from e
    return tensors


def _array(name: str, item: Any, most: int) -> Array:
    """A dataset, which may have no more bytes than there are, and none in other files."""
    if item.external or item.is_virtual:
        raise ValueError(f"{name} lies in another file")
    if item.size * item.dtype.itemsize > most:
        raise ValueError(f"{name} has shape {item.shape}, of more bytes than the file")
    a = np.asarray(item)
    return a.view(bfloat16("keras")) if item.attrs.get("dtype") == "bfloat16" else a


def _keras_name(name: str, group: Any) -> str:
    """The name of a cell's variable, which Keras 3 stores under its number."""
    above, _, number = name.rpartition("/vars/")
    if above and _is_cell(group):
        return f"{above}/{('kernel', 'recurrent_kernel', 'bias')[int(number)]}"
    return name


def _is_cell(group: Any) -> bool:
    """Whether the variables 0, 1 and perhaps 2 are a cell's, for they have no other names."""
    shapes = [group[number].shape for number in "012" if number in group]
    if len(shapes) != len(group) or len(shapes) < 2 or {len(s) for s in shapes[:2]} != {2}:
        return False
    (_, columns), (hidden, others) = shapes[:2]
    by_name = "cell" in str(group.attrs.get("name", "")) or "/cell" in group.name
    gates = [len(cell.gates) for cell in KINDS.values() if len(cell.gates) > 1 or by_name]
    return columns == others and columns in [n * hidden for n in gates]


#: What reads a file, by the end of its name.
READERS: dict[str, Callable[[Path], Mapping[str, Any]]] = {
    ".safetensors": _read_safetensors,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".keras": _read_keras,
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
}
