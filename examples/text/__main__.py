"""A character LSTM reads Python's manual, and writes.

It is trained with elman.torch, states carried from piece to piece. Then NumPy alone writes with its
weights, a step of a stream for each character, and what the LSTM gave must have the same bits as
the whole text has in one call.

Example:
    python -m examples.text --epochs 6
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from . import manual
from .picture import draw
from .train import Writer, chunks, train
from .write import Pen

START = "The "
COMPARED = manual.ORDER, 5  # characters of a table: what is common, and what is best here


def main(arguments: Sequence[str] | None = None) -> None:
    """Run everything and report."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)

    text = manual.read()[: options.characters]
    alphabet = "".join(sorted(set(text)))
    learnt, held_out = manual.split(text)
    console.print(f"{len(learnt)} characters to learn, {len(held_out)} held out")
    tables = {order: manual.table_bits(learnt, held_out, order) for order in COMPARED}
    parts = [manual.numbers(part, alphabet) for part in (learnt, held_out)]
    columns = TextColumn("training"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=options.epochs * len(chunks(parts[0])))
        model, losses, bits = train(
            *parts, len(alphabet), options.epochs, lambda: progress.advance(task)
        )

    written = write(model, alphabet, options.write)
    draw(options.output / "text.png", losses, bits, tables, written)
    (options.output / "text.txt").write_text(written, encoding="utf-8")
    summary = {"bits": bits[-1], "tables": tables, "losses": losses, "held_out": bits}
    (options.output / "summary.json").write_text(json.dumps(summary, indent=1))
    console.print(written, markup=False)
    console.rule()
    console.print(f"held out: {bits[-1]:.2f} bits a character")
    for order, value in tables.items():
        console.print(f"          {value:.2f} by a table of {order} characters")
    console.print(f"{options.write} steps of a stream and one call: the same bits")
    console.print(f"saved in {options.output}: text.png, text.txt, summary.json")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command is given."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.text",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--epochs", type=int, default=6, help="length of the training (default: %(default)s)")
    add("--characters", type=int, help="of the manual, from its beginning (default: all)")
    add("--write", type=int, default=1000, help="characters (default: %(default)s)")
    add("--threads", type=int, default=1, help="for PyTorch (default: %(default)s)")
    add("--output", type=Path, default=Path("build/text"), help="folder (default: %(default)s)")
    return parser.parse_args(arguments)


def write(model: Writer, alphabet: str, count: int) -> str:
    """What NumPy writes with the model's weights; an error unless the bits are the whole text's."""
    pen = Pen({name: w.numpy() for name, w in model.state_dict().items()})
    written, outputs = pen.write(manual.numbers(START, alphabet), count, temperature=0.6, seed=0)
    if not np.array_equal(outputs, pen.read(written[:-1])):
        raise SystemExit("the stream's bits are not those of the whole text")
    return "".join(alphabet[n] for n in written)


if __name__ == "__main__":
    main()
