"""Serve what was a Keras model, without Keras: NumPy is all that it takes.

Example:
    python -m examples.keras_model.serve build/keras_model
"""

import argparse
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

import elman
import elman.cli
from examples.japanese_vowels.data import load

LAYERS = {"frames": "layers/bidirectional", "utterance": "layers/lstm"}  # as --list shows them


def convert(model: Path, folder: Path) -> None:
    """A .keras file's recurrent layers as files for elman.load, and the Dense beside them."""
    import h5py

    for name, layer in LAYERS.items():
        target = str(folder / f"{name}.safetensors")
        command = ["convert", str(model), target, "--to", "elman", "--layer", layer, "--force"]
        elman.cli.main(command)
    with zipfile.ZipFile(model) as file, file.open("model.weights.h5") as weights:
        dense = h5py.File(io.BytesIO(weights.read()))["layers/dense/vars"]
        np.savez(folder / "speaker.npz", kernel=dense["0"], bias=dense["1"])


class Served:
    """The model of train.py, of the files that convert() wrote."""

    def __init__(self, folder: Path) -> None:
        self.frames, self.utterance = (elman.load(folder / f"{n}.safetensors") for n in LAYERS)
        with np.load(folder / "speaker.npz") as dense:
            self.kernel, self.bias = dense["kernel"], dense["bias"]

    def __call__(self, frames: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Probabilities (N, 9), of frames (N, L, 12) of which each row's first are real."""
        time_major = frames.swapaxes(0, 1)
        output, _ = self.frames(time_major, lengths=lengths)
        _, (h_n, _) = self.utterance(output, lengths=lengths)
        scores = h_n[-1] @ self.kernel + self.bias
        chances = np.exp(scores - scores.max(axis=1, keepdims=True))
        return chances / chances.sum(axis=1, keepdims=True)


def main() -> None:
    """Answer for the test utterances, and save the answers beside the weights."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where python -m examples.keras_model wrote")
    folder = parser.parse_args().folder
    _, test = load()
    answers = Served(folder)(test.frames, test.lengths)
    assert not {"keras", "torch", "jax"} & set(sys.modules)
    np.save(folder / "answers.npy", answers)
    right = np.mean(answers.argmax(axis=1) == test.speakers)
    print(f"{right:.1%} of {len(test.speakers)} utterances recognised, without Keras")


if __name__ == "__main__":
    main()
