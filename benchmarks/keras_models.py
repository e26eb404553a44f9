"""Measure Keras models of one layer and a Dense: the layer Keras's own and Elman's, in turns.

Both are compiled models, of the same weights, and are given batches by ``predict_on_batch`` and
``train_on_batch``; their predictions and losses are compared first. Ratios are taken turn by turn.
One thread, held to one processor. The backend is KERAS_BACKEND's, or PyTorch's.

Example:
    KERAS_BACKEND=jax python -m benchmarks.keras_models --layer GRU --shape 32,100,64
"""

import argparse
import os
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from . import measure, peaks
from .calls import Timer, shape

UNITS = 128
LAYERS = ("GRU", "LSTM", "SimpleRNN")
SHAPES = [(32, 100, 64), (1, 100, 64)]
PACE = measure.Pace(turns=15, fewest=5, budget=10, turns_if_slow=15, patience=0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.keras_models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--layer", nargs="+", choices=LAYERS, default=LAYERS)
    parser.add_argument("--shape", nargs="+", type=shape, default=SHAPES, help="N,L,D")
    options = parser.parse_args()
    measure.hold(peaks.available()[:1])
    os.environ.setdefault("KERAS_BACKEND", "torch")
    cases = [(layer, each) for layer in options.layer for each in options.shape]
    table = Table(title=f"Keras on {backend()}, {UNITS} units: its own over Elman's (ms of both)")
    table.box = box.SIMPLE_HEAD
    for column in ("layer", "(N, L, D)", "predict_on_batch", "train_on_batch"):
        table.add_column(column)
    for layer, each in track(cases, "models", console=Console(stderr=True), transient=True):
        timed = [
            measure.take_turns({who: Timer(way) for who, way in ways.items()}, 1, PACE)  # pyright: ignore
            for ways in calls(layer, *each)
        ]
        table.add_row(layer, str(each), *map(ratio, timed))
    Console().print(table)


def backend() -> str:
    """The name of Keras's backend, told to take one thread."""
    import keras

    import elman

    elman.set_num_threads(1)
    if keras.config.backend() == "torch":
        import torch

        torch.set_num_threads(1)
    return keras.config.backend()


def calls(layer: str, N: int, L: int, D: int) -> list[dict[str, Callable[[], Any]]]:
    """What predicts, and what trains, of both."""
    import keras

    import elman.keras

    generator = np.random.default_rng(0)
    x, y = (generator.normal(size=s).astype("float32") for s in ((N, L, D), (N, 1)))
    models: list[Any] = []
    for module in (keras.layers, elman.keras):
        keras.utils.set_random_seed(0)
        layers = [keras.Input((L, D)), getattr(module, layer)(UNITS), keras.layers.Dense(1)]
        models.append(keras.Sequential(layers))
        models[-1].compile("adam", "mse")
    for way in ("predict_on_batch", "train_on_batch"):
        arguments = (x,) if way == "predict_on_batch" else (x, y)
        stock, ours = (getattr(model, way)(*arguments) for model in models)
        np.testing.assert_allclose(ours, stock, rtol=1e-4, atol=1e-5)
    who = ("Keras", "Elman")
    predict = {w: lambda m=m: m.predict_on_batch(x) for w, m in zip(who, models, strict=True)}
    if keras.config.backend() == "numpy":
        return [predict]
    train = {w: lambda m=m: m.train_on_batch(x, y) for w, m in zip(who, models, strict=True)}
    return [predict, train]


def ratio(found: dict[str, list[float]]) -> str:
    """The median of the turns' ratios, and milliseconds of both."""
    stock, ours = found.values()
    times = "/".join(f"{1e3 * median(seconds):.3g}" for seconds in (stock, ours))
    return f"{median(s / o for s, o in zip(stock, ours, strict=True)):.2f} ({times})"


if __name__ == "__main__":
    main()
