"""Score recordings on Dask's workers, kill one of them, and compare with one process alone.

Example:
    python -m examples.scoring --files 240
"""

import argparse
import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from dask.distributed import Client, LocalCluster, as_completed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import elman

from . import detector, picture
from .recordings import fails, record, recording

TRAINED = 60  # recordings that the head is fitted to, none of which is scored


class Part(NamedTuple):
    """A part of the work that is done: by whom, and when it began and ended."""

    files: list[Path]
    scores: np.ndarray
    process: int
    began: float
    ended: float


def main(arguments: Sequence[str] | None = None) -> dict[str, float | str]:
    """Run it, print what came of it, and draw who did what."""
    given = parse(arguments)
    console = Console()
    folder = Path(given.output)
    model, random = folder / "model", range(10**6, 10**6 + TRAINED)
    detector.fit([recording(n) for n in random], [fails(n) for n in random], model)
    files = record(folder / "recordings", given.files)
    console.print(f"{len(files)} recordings, {sum(f.stat().st_size for f in files) / 1e6:.0f} MB")

    alone = work(files, model)
    parts, killed = spread(files, model, given.together, console)
    scores = write(parts, files, folder / "scores")
    right = np.mean((scores > 0) == [fails(n) for n in range(len(files))])
    found = {"alone": digest(alone.scores), "spread": digest(scores), "right": float(right)}
    found |= {"processes": len({p.process for p in parts}), "killed": killed}
    picture.draw(folder / "scoring.png", parts, killed, found)
    console.print(f"one process        {found['alone']}")
    console.print(f"and on workers     {found['spread']}, in parts of {given.together}")
    same = "the same bytes" if found["alone"] == found["spread"] else "OTHER BYTES"
    console.print(f"{same}, though process {killed} was killed; {right:.1%} judged rightly")
    console.print(f"who did what       {folder / 'scoring.png'}")
    return found


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command is given."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.scoring",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option("--files", type=int, default=240, help="recordings to score; default: %(default)s")
    option("--together", type=int, default=5, help="of each part; default: %(default)s")
    option("--output", default="build/scoring", help="folder; default: %(default)s")
    return parser.parse_args(arguments)


def work(files: Sequence[Path], model: Path) -> Part:
    """Score some files as one batch, on one thread."""
    began = time.time()
    elman.set_num_threads(1)
    scores = detector.score([np.load(file) for file in files], model)
    return Part(list(files), scores, os.getpid(), began, time.time())


def spread(
    files: Sequence[Path], model: Path, together: int, console: Console
) -> tuple[list[Part], int]:
    """Score all files on two workers, and on a third that is killed while it works.

    What it had not handed over Dask gives to the others. Returns the parts, and who was killed.
    """
    batches = [files[k : k + together] for k in range(0, len(files), together)]
    with (
        LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
        progress(console, len(files)) as advance,
    ):
        client.wait_for_workers(3)
        waiting = [client.submit(work, batch, model, pure=False) for batch in batches]
        victim = client.submit(os.getpid, pure=False).result()
        parts: list[Part] = []
        for future in as_completed(waiting):
            parts.append(future.result())  # of one that is lost with its worker, when it is redone
            advance(len(parts[-1].files))
            if len(parts) == len(waiting) // 4:
                os.kill(victim, signal.SIGKILL)
    return parts, victim


@contextmanager
def progress(console: Console, total: int) -> Iterator[Callable[[int], None]]:
    """A bar, and what advances it."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("scoring", total=total)
        yield lambda count: bar.advance(task, count)


def write(parts: Sequence[Part], files: Sequence[Path], folder: Path) -> np.ndarray:
    """A file of its score for each recording; all of them, in the recordings' order."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = (zip(part.files, part.scores, strict=True) for part in parts)
    found = {file: score for each in pairs for file, score in each}
    for file, score in found.items():
        np.save(folder / file.name, score)
    return np.array([found[file] for file in files])


def digest(scores: np.ndarray) -> str:
    """Of the scores' bytes."""
    return hashlib.sha256(scores.tobytes()).hexdigest()[:16]


if __name__ == "__main__":
    main()
