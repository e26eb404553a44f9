"""Classify the test utterances with trained weights and NumPy alone: no PyTorch is needed.

Example:
    python -m examples.japanese_vowels.classify build/demo/seed0.safetensors
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

import elman

from .answers import Answer, ask
from .data import CHANNELS, load


class Classifier:
    """The classifier of train.py, in NumPy."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        hidden = weights["gru.weight_hh_l0"].shape[1]
        self.gru = elman.GRU(CHANNELS, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.gru.load_state_dict(
            {
                name.removeprefix("gru."): value
                for name, value in weights.items()
                if name.startswith("gru.")
            }
        )
        self.weight, self.bias = weights["linear.weight"], weights["linear.bias"]

    def __call__(self, frames: np.ndarray, lengths: np.ndarray) -> Answer:
        """Answer for frames (N, L, 12) of which each row's first `lengths` are real."""
        output, h_n = self.gru(frames, lengths=lengths)
        mean = output.sum(axis=1) / lengths[:, None].astype(np.float32)
        return Answer(output, h_n, mean @ self.weight.T + self.bias)


def main() -> None:
    """Load the weights, classify the test set, say how well and how fast."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path, help="a safetensors file that the demo has written")
    parser.add_argument("--answer", type=Path, help="save the outputs and the seconds here, .npz")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    args = parser.parse_args()

    elman.set_num_threads(args.threads)
    model = Classifier(load_file(args.weights))
    _, test = load()
    answer = ask(lambda: model(test.frames, test.lengths))
    assert "torch" not in sys.modules
    if args.answer:
        np.savez(args.answer, **answer._asdict())
    print(
        f"{answer.accuracy(test.speakers):.1%} of {len(test.speakers)} utterances recognised "
        f"in {1000 * answer.seconds:.1f} ms"
    )


if __name__ == "__main__":
    main()
