"""Train, compare and serve: two PyTorch classifiers from the same seeds, and one in NumPy.

For each seed a two-layer bidirectional GRU classifier is trained on the Japanese Vowels with
elman.torch.GRU and again with torch.nn.GRU; a second process then loads the weights into the
NumPy package and classifies the test utterances without PyTorch. The table, the picture and
summary.json say how well, how fast, and how far apart the answers are.

Example:
    python -m examples.japanese_vowels.demo --seeds 5 --threads 1
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from safetensors.torch import save_file

import elman

from .answers import Answer, ask
from .data import Utterances, load
from .picture import draw
from .report import LABELS, Run, print_table, save_summary, summarise
from .train import EPOCHS, ElmanClassifier, StockClassifier, classify, train

MODELS = {"elman": ElmanClassifier, "torch": StockClassifier}


def main() -> None:
    """Run everything and report."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    elman.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    to_train, to_test = load()
    runs = run_seeds(args, to_train, to_test)
    summary = summarise(runs, to_test.speakers, args.threads)
    save_summary(summary, args.output / "summary.json")
    draw(args.output / "demo.png", summary, runs, to_test.speakers)
    print_table(summary)
    print(f"saved in {args.output}: demo.png, summary.json and the weights of each seed")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seeds", type=positive, default=5, help="how many times to train (default: %(default)s)")
    add("--epochs", type=positive, default=EPOCHS, help="length of each (default: %(default)s)")
    add("--threads", type=positive, default=1, help="for every package (default: %(default)s)")
    add("--output", type=Path, default=Path("build/demo"), help="folder (default: %(default)s)")
    return parser.parse_args()


def positive(text: str) -> int:
    """Read a whole number, at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def run_seeds(args: argparse.Namespace, to_train: Utterances, to_test: Utterances) -> list[Run]:
    """Train and classify with every seed under one progress bar."""
    columns = TextColumn("{task.description:29}"), BarColumn(), TaskProgressColumn()
    # Redrawn seldom: the bar must not take time from the trainings.
    with Progress(*columns, TimeElapsedColumn(), refresh_per_second=4) as progress:
        task = progress.add_task("warming up", total=args.seeds * (2 * args.epochs + 1))
        for model in MODELS.values():
            train(model, to_train, seed=0, epochs=2)

        def announce(step: str) -> Callable[[], None]:
            progress.update(task, description=step)
            return lambda: progress.advance(task)

        return [run_seed(seed, args, to_train, to_test, announce) for seed in range(args.seeds)]


def run_seed(
    seed: int,
    args: argparse.Namespace,
    to_train: Utterances,
    to_test: Utterances,
    announce: Callable[[str], Callable[[], None]],
) -> Run:
    """Train with the two PyTorch packages in turn, then classify with all three."""
    trainings = {}
    for package, model in MODELS.items():
        advance = announce(f"seed {seed}: training {LABELS[package]}")
        trainings[package] = train(model, to_train, seed, args.epochs, advance)

    advance = announce(f"seed {seed}: classifying")
    answers = {
        package: ask(lambda model=training.model: classify(model, to_test))
        for package, training in trainings.items()
    }
    weights = trainings["elman"].model.state_dict()
    file = args.output / f"seed{seed}.safetensors"
    save_file(weights, file)
    answers["numpy"] = ask_numpy(file, args.threads)

    stock = StockClassifier().eval()
    stock.load_state_dict(weights)
    differences = {
        "torch": classify(stock, to_test).difference(answers["elman"]),
        "numpy": answers["numpy"].difference(answers["elman"]),
    }
    advance()
    return Run(trainings, answers, differences)


def ask_numpy(weights: Path, threads: int) -> Answer:
    """Run classify.py in a process of its own, which never imports PyTorch."""
    file = weights.with_name("answer.npz")
    options = ["--answer", str(file), "--threads", str(threads)]
    subprocess.run(
        [sys.executable, "-m", f"{__package__}.classify", str(weights), *options],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},  # for NumPy's own products
    )
    with np.load(file) as saved:
        answer = Answer(saved["output"], saved["h_n"], saved["logits"], float(saved["seconds"]))
    file.unlink()
    return answer


if __name__ == "__main__":
    main()
