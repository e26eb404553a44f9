"""``python -m fuzz safetensors`` or ``onnx``: atheris searches; more arguments are libFuzzer's."""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["elman"]):
    from fuzz import readers

CORPUS = Path("build", "fuzz")


def main():
    """Search from the seeds on, and keep in build/fuzz what leads to new places."""
    name, *arguments = sys.argv[1:]
    corpus = CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    for i, (reader, data) in enumerate(readers.seeds()):
        if reader.__name__ == name:
            (corpus / f"seed-{i}").write_bytes(data)
    reader = getattr(readers, name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        atheris.Setup([sys.argv[0], str(corpus), *arguments], lambda data: reader(data, path))
        atheris.Fuzz()


main()
