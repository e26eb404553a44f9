"""From training to a plug-in: an LSTM learns an amplifier, and becomes a C program.

The amplifier is a formula, so is the guitar. The LSTM is trained with elman.torch, streamed in
Python, exported as amp.h, compiled with play.c, and run on a WAV file. Its bytes must be Python's.

Example:
    python -m examples.amp --epochs 60
"""

import argparse
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

import elman.export

from .picture import draw
from .sound import amplifier, guitar, read_wav, write_wav
from .train import train

BLOCK = 64


def main() -> None:
    """Run everything and report."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.amp",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--epochs", type=int, default=60, help="length of the training (default: %(default)s)")
    add("--seconds", type=int, default=20, help="of guitar to train on (default: %(default)s)")
    add("--threads", type=int, default=1, help="for PyTorch (default: %(default)s)")
    add("--output", type=Path, default=Path("build/amp"), help="folder (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)

    x = guitar(options.seconds, seed=0)
    columns = TextColumn("training"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    with Progress(*columns) as progress:
        task = progress.add_task("", total=options.epochs)
        trained, losses = train(x, amplifier(x), options.epochs, lambda: progress.advance(task))
    model = elman.export.from_torch(torch.nn.Sequential(trained.lstm, trained.head))
    (options.output / "amp.h").write_text(elman.export.header(model, "amp"))

    write_wav(options.output / "guitar.wav", guitar(5, seed=1))
    heard = read_wav(options.output / "guitar.wav")
    wanted, streamed = amplifier(heard), stream(model, heard)
    played = play(options.output)
    if played.tobytes() != streamed.tobytes():
        raise SystemExit("the C program's bytes are not Python's")
    error = float(np.square(played - wanted).sum() / np.square(wanted).sum())
    signals = {"input": heard, "target: the formula": wanted, "output: the C program": played}
    draw(options.output / "amp.png", signals, losses, error)
    summary = {"error": error, "epochs": options.epochs, "losses": losses, "samples": len(heard)}
    (options.output / "summary.json").write_text(json.dumps(summary, indent=1))
    print(f"off by {error:.2%} of the signal's power on a recording that was not trained on")
    print(f"{len(heard)} samples of the C program and of Python: the same bytes")
    print(f"saved in {options.output}: amp.h, play, guitar.wav, amp.wav, amp.png, summary.json")


def stream(model: elman.export.Model, x: np.ndarray) -> np.ndarray:
    """The model's output, block by block as a sound card asks for it."""
    states, blocks = None, []
    for first in range(0, len(x), BLOCK):
        output, states = model(x[first : first + BLOCK, None], states)
        blocks.append(output[:, 0])
    return np.concatenate(blocks)


def play(folder: Path) -> np.ndarray:
    """Compile the C program, run it, and read what it wrote behind the header of 44 bytes."""
    compiler = next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None:
        raise SystemExit("a C compiler is needed: cc, gcc or clang")
    source, program = Path(__file__).with_name("play.c"), folder / "play"
    command = [compiler, "-std=c99", "-O3", f"-I{folder}", source, "-o", program]
    subprocess.run(command, check=True)
    subprocess.run([program, folder / "guitar.wav", folder / "amp.wav"], check=True)
    return np.frombuffer((folder / "amp.wav").read_bytes(), "<f4", offset=44)


if __name__ == "__main__":
    main()
