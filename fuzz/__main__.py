"""``python -m fuzz safetensors`` or ``onnx``: atheris searches; more arguments are libFuzzer's."""

import sys
import tempfile
import types
from pathlib import Path

import atheris

import elman.onnx  # noqa: F401 (to be instrumented)
from fuzz import readers

CORPUS = Path("build", "fuzz")


def instrument():
    """Let atheris see which way Elman goes. (Its own import hook misses editable installs.)"""
    for module in [m for name, m in sys.modules.items() if name.partition(".")[0] == "elman"]:
        for value in vars(module).values():
            if isinstance(value, types.FunctionType) and value.__module__ == module.__name__:
                atheris.instrument_func(value)


def main():
    """Search from the seeds on, and keep in build/fuzz what leads to new places."""
    name, *arguments = sys.argv[1:]
    corpus = CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    for i, (reader, data) in enumerate(readers.seeds()):
        if reader.__name__ == name:
            (corpus / f"seed-{i}").write_bytes(data)
    reader = getattr(readers, name)
    instrument()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        atheris.Setup([sys.argv[0], str(corpus), *arguments], lambda data: reader(data, path))
        atheris.Fuzz()


main()
