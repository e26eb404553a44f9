"""From training to a web page: a GRU learns to detect spoken words, and becomes C and WebAssembly.

espeak-ng speaks, in many voices. The detector is trained with elman.torch, exported as keyword.h,
compiled with detect.c and as a page that needs nothing else, and judged by voices that it has not
heard. The C program's bytes, and those of the page in a browser, must be Python's.

Example:
    python -m examples.keyword --steps 1000
"""

import argparse
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

import elman.export

from . import programs
from .detector import FRAME
from .picture import draw
from .score import Score, score
from .speech import HELD_OUT, OTHERS, STRANGE, VOICES, WORDS, Clip, clips, recording, write_wav
from .train import train

SHOWN = 16  # seconds of the recording in the picture and the page
BLOCK = 25  # frames that Python is given at a time


def main() -> None:
    """Run everything and report."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.keyword",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--steps", type=int, default=1000, help="length of the training (default: %(default)s)")
    add("--minutes", type=int, default=20, help="of recordings to judge by (default: %(default)s)")
    add("--threads", type=int, default=1, help="for PyTorch (default: %(default)s)")
    add("--output", type=Path, default=Path("build/keyword"), help="folder (default: %(default)s)")
    options = parser.parse_args()
    missing = programs.missing() + ["playwright"] * (not find_spec("playwright"))
    if missing:
        raise SystemExit(f"not installed: {', '.join(missing)}; `make demo-keyword` does it")
    torch.set_num_threads(options.threads)
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)

    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
    with Progress(*columns, TimeElapsedColumn()) as progress:
        spoken, strange = speak(progress)
        task = progress.add_task("training", total=options.steps)
        detector, losses = train(spoken, options.steps, lambda: progress.advance(task))
    model = detector.model()
    (folder / "keyword.h").write_text(elman.export.header(model, "keyword"))
    programs.compile_detect(folder)
    programs.write_page(folder)

    found = judge(folder, strange, options.minutes)
    samples, said = recording(np.random.default_rng(16), strange, SHOWN)
    wav = folder / "recording.wav"
    write_wav(wav, samples)
    classes = stream(model, samples)
    by_c, printed = programs.detect(folder, wav)
    by_page, by_microphone = programs.browse(folder, wav)
    for name, given in {"the C program": by_c, "the page": by_page}.items():
        if given.tobytes() != classes.tobytes():
            raise SystemExit(f"the bytes of {name} are not Python's")

    loudness, _ = elman.export.Model(model.layers[:3])(frames(samples))
    draw(folder / "keyword.png", loudness, classes, said, found)
    summary = {
        "accuracy": found.accuracy,
        "false alarms": found.false_alarms,
        "minutes": options.minutes,
        "confusion": found.confusion.tolist(),
        "steps": options.steps,
        "losses": losses,
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    print(f"the C program in recording.wav:\n{printed}", end="")
    print(f"the page by a microphone: {' '.join(by_microphone)}")
    print(
        f"{found.accuracy:.1%} of the words heard, of voices that were not trained on, "
        f"{found.false_alarms} false alarms in {options.minutes} minutes"
    )
    print(f"{len(classes)} frames of the C program, of the page and of Python: the same bytes")
    print(
        f"saved in {folder}: keyword.h, detect, keyword.html, keyword.png, page.png, summary.json"
    )


def speak(progress: Progress) -> tuple[list[Clip], list[Clip]]:
    """Clips to train on, and those of other voices, with some other words."""
    plans = [
        (VOICES, WORDS, 5),
        (VOICES, OTHERS, 1),
        (HELD_OUT, WORDS, 4),
        (HELD_OUT, OTHERS + STRANGE, 1),
    ]
    total = sum(len(voices) * len(words) * each for voices, words, each in plans)
    task = progress.add_task("speaking", total=total)
    made: list[list[Clip]] = []
    for seed, plan in enumerate(plans):
        made.append([])
        for clip in clips(*plan, seed):
            made[-1].append(clip)
            progress.advance(task)
    return made[0] + made[1], made[2] + made[3]


def judge(folder: Path, spoken: list[Clip], minutes: int) -> Score:
    """What the C program hears in so many minutes of recordings."""
    total = Score(np.zeros((1 + len(WORDS),) * 2, int), 0)
    for seed in range(minutes):
        samples, said = recording(np.random.default_rng([4, seed]), spoken, 60)
        write_wav(folder / "judged.wav", samples)
        classes, _ = programs.detect(folder, folder / "judged.wav")
        one = score(classes, said)
        total = Score(total.confusion + one.confusion, total.unsaid + one.unsaid)
    return total


def frames(samples: np.ndarray) -> np.ndarray:
    """Whole frames, (L, FRAME)."""
    return samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)


def stream(model: elman.export.Model, samples: np.ndarray) -> np.ndarray:
    """The model's output, some frames at a time."""
    states, blocks = None, []
    for block in np.split(frames(samples), range(BLOCK, len(samples) // FRAME, BLOCK)):
        output, states = model(block, states)
        blocks.append(output)
    return np.concatenate(blocks)


if __name__ == "__main__":
    main()
