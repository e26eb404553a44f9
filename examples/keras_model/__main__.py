"""Train a Keras model, run it with Elman's layers, and serve it without Keras.

Two epochs are Keras's own, the others of the same model with Elman's layers in the place of its
own. The .keras file that it ends as is then run in three ways: by Keras, by Keras with the layers
accelerated, and from NumPy in a process that has no Keras. Their answers must agree to 1e-6.

Example:
    python -m examples.keras_model --epochs 20
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

import elman.keras
from examples.japanese_vowels.data import load

from .picture import draw, short
from .serve import Served, convert
from .train import EPOCHS_OF_KERAS, accuracy, build, train

AGREE = 1e-6
Model = Callable[[np.ndarray, np.ndarray], np.ndarray]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run everything and report."""
    options = parse(arguments)
    folder, console = options.output, Console(highlight=False)
    torch.set_num_threads(1)
    elman.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)

    data, test = load()
    model = build(data.frames.shape[1])
    columns = TextColumn("training"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=options.epochs)
        epochs = train(model, data, options.epochs, lambda: progress.advance(task))
    file = folder / "model.keras"
    model.save(file)
    convert(file, folder)
    command = [sys.executable, "-m", "examples.keras_model.serve", str(folder)]
    subprocess.run(command, check=True)

    models = load_three(file, folder)
    answers = {name: run(test.frames, test.lengths) for name, run in models.items()}
    answers["NumPy, no Keras"] = np.load(folder / "answers.npy")
    stock = answers.pop("Keras")
    differences = {name: float(np.abs(each - stock).max()) for name, each in answers.items()}
    if max(differences.values()) > AGREE:
        raise SystemExit(f"the answers differ: {differences}")
    calls = {
        "one utterance": time_calls(models, test.frames[:1], test.lengths[:1], options.turns),
        f"all {len(test.lengths)}": time_calls(models, test.frames, test.lengths, options.turns),
    }
    right = accuracy(stock, test)
    draw(folder / "keras_model.png", epochs, calls, right, differences)
    summary = {"accuracy": right, "differences": differences, "epochs": epochs, "calls": calls}
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    print_table(console, epochs, calls)
    console.print(f"{right:.1%} recognised by each; answers within {max(differences.values()):.0e}")
    console.print(
        f"saved in {folder}: model.keras, keras_model.png, summary.json, the files served"
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command is given."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.keras_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--epochs", type=int, default=20, help=f"more than {EPOCHS_OF_KERAS}; default: %(default)s")
    add("--turns", type=int, default=5, help="of each call that is timed; default: %(default)s")
    add("--output", type=Path, default=Path("build/keras_model"), help="default: %(default)s")
    return parser.parse_args(arguments)


def load_three(file: Path, folder: Path) -> dict[str, Model]:
    """The model of a file as Keras has it, accelerated, and as NumPy has it."""
    stock, accelerated = keras.saving.load_model(file), keras.saving.load_model(file)
    elman.keras.accelerate(accelerated)
    return {
        "Keras": lambda frames, _: stock.predict_on_batch(frames),
        "accelerated": lambda frames, _: accelerated.predict_on_batch(frames),
        "NumPy, no Keras": Served(folder),
    }


def time_calls(
    models: dict[str, Model], frames: np.ndarray, lengths: np.ndarray, turns: int
) -> dict[str, float]:
    """Milliseconds of a call of each, which take turns: the least of them, after a first one."""
    best = dict.fromkeys(models, np.inf)
    for turn in range(turns + 1):
        for name, run in models.items():
            began = time.perf_counter()
            run(frames, lengths)
            if turn > 0:
                best[name] = min(best[name], 1e3 * (time.perf_counter() - began))
    return best


def print_table(
    console: Console, epochs: dict[str, list[float]], calls: dict[str, dict[str, float]]
) -> None:
    """Print what epochs and calls took."""
    table = Table(title="Milliseconds, one thread")
    for heading, justify in (("", "left"), ("an epoch", "right"), *((c, "right") for c in calls)):
        table.add_column(heading, justify=justify)
    medians = {name: 1e3 * float(np.median(seconds)) for name, seconds in epochs.items()}
    trained = {"Keras": medians["Keras"], "accelerated": medians["Elman"]}
    for name in next(iter(calls.values())):
        epoch = f"{trained[name]:.0f}" if name in trained else ""
        table.add_row(name, epoch, *(short(each[name]) for each in calls.values()))
    console.print(table)


if __name__ == "__main__":
    main()
