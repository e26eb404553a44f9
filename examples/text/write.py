"""Write with the trained weights, from NumPy alone: a step of a stream for each character."""

from collections.abc import Mapping

import numpy as np

import elman


class Pen:
    """The model of train.py without PyTorch."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self.embedding = weights["embedding.weight"]
        self.head, self.bias = weights["head.weight"], weights["head.bias"]
        hidden = weights["lstm.weight_hh_l0"].shape[1]
        self.lstm = elman.LSTM(self.embedding.shape[1], hidden)
        self.lstm.load_state_dict(
            {
                name.removeprefix("lstm."): value
                for name, value in weights.items()
                if name.startswith("lstm.")
            }
        )

    def write(
        self, start: np.ndarray, count: int, temperature: float, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """`start` and `count` characters more, and what the LSTM gave after each but the last."""
        random, stream = np.random.default_rng(seed), self.lstm.stream()
        written, outputs = list(start), list(stream.run(self.embedding[start[:-1]]))
        for _ in range(count):
            outputs.append(stream.step(self.embedding[written[-1]]))
            scores = (self.head @ outputs[-1] + self.bias) / temperature
            chances = np.exp(scores - scores.max(), dtype="float64")
            written.append(random.choice(len(chances), p=chances / chances.sum()))
        return np.array(written), np.array(outputs)

    def read(self, characters: np.ndarray) -> np.ndarray:
        """What the LSTM gives after each of them, in one call."""
        return self.lstm(self.embedding[characters])[0]
