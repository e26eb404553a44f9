"""What reads files, on any bytes: an answer, or an error of the kind that is documented.

``python -m fuzz`` lets atheris call them, which notices new paths through the code;
``tests/test_fuzz_files.py`` calls them too.
"""

import contextlib
import tempfile
from pathlib import Path

import numpy as np

import elman
from elman import weights
from elman.weights.files import read_safetensors


def convert_to_all(tensors, source):
    """Write what was read for every framework; the conversions refuse, or give arrays."""
    with contextlib.suppress(weights.ConversionError):
        canonical = weights.to_canonical(tensors, source)
        for target in weights.FRAMEWORKS:
            with contextlib.suppress(weights.ConversionError):
                weights.from_canonical(canonical, target)


def safetensors(data, path):
    """A file that ``elman.load`` and ``elman convert`` read. Returns whether either did."""
    path.write_bytes(data)
    read = False
    with contextlib.suppress(ValueError):
        layer = elman.load(path)
        read = True
        x = np.zeros((2, layer.spec.input_size), layer.dtype)
        output, _ = layer(x)
        assert output.shape == (2, layer.spec.directions * layer.spec.output_size)
    with contextlib.suppress(ValueError):
        tensors, metadata = read_safetensors("convert", path)
        read = True
        assert all(isinstance(text, str) for text in metadata.values())
        for source in weights.FRAMEWORKS:
            convert_to_all(tensors, source)
    return read


def onnx(data, path):
    """A model that ``elman.onnx.read`` reads. Returns whether it did."""
    from elman import onnx as models

    path.write_bytes(data)
    with contextlib.suppress(weights.ConversionError):
        model = models.read(path)
        convert_to_all(model.tensors, "onnx")
        return True
    return False


def seeds():
    """For each reader, files that are good ones."""
    from elman import onnx as models

    layers = [
        elman.GRU(2, 3, seed=0),
        elman.GRU(2, 3, 2, bidirectional=True, seed=0),
        elman.RNN(1, 2, nonlinearity="relu", bias=False, dtype="float64", seed=0),
        elman.LSTM(2, 3, seed=0),
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        for layer in layers:
            layer.save(path)
            yield safetensors, path.read_bytes()
            nonlinearity = layer.spec.cell.name.partition("_")[2]
            tensors = weights.convert(layer.state_dict(), "torch", "onnx")
            models.write(path, tensors, nonlinearity)
            yield onnx, path.read_bytes()
        layer = elman.LSTM(2, 3, bidirectional=True, proj_size=2, seed=0)
        layer.save(path)
        yield safetensors, path.read_bytes()  # ONNX has no projection
