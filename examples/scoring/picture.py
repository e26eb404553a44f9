"""Draw who scored what, and when."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")  # Okabe and Ito


def draw(file: Path, parts: Sequence[Any], killed: int, found: Mapping[str, Any]) -> None:
    """A line for each process, a bar for each part that it handed over."""
    processes = sorted({part.process for part in parts} | {killed})
    first = min(part.began for part in parts)
    figure = Figure(figsize=(11, 3.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for part in parts:
        line = processes.index(part.process)
        colour = COLOURS[line % len(COLOURS)]
        bar = axes.barh(line, part.ended - part.began, left=part.began - first, color=colour)
        bar.patches[0].set_edgecolor("white")
    last = max((p.ended for p in parts if p.process == killed), default=first)
    axes.plot(
        last - first, processes.index(killed), "x", color="black", ms=12, mew=3, clip_on=False
    )
    axes.set_yticks(range(len(processes)), [f"process {n + 1}" for n in range(len(processes))])
    axes.invert_yaxis()
    axes.set_xlabel("seconds; a bar is a part that was handed over, the cross the end of a process")
    axes.spines[["top", "right", "left"]].set_visible(False)
    same = "the same bytes as one process" if found["alone"] == found["spread"] else "OTHER BYTES"
    count = sum(len(part.files) for part in parts)
    axes.set_title(f"{count} recordings, one worker killed: {same}", fontweight="bold")
    figure.savefig(file)
