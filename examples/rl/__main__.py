"""CartPole without velocities, by RecurrentPPO with sb3-contrib's policy and with Elman's.

Both learn in turn from each of some seeds. The table and the picture say what they reach, how long
the updates take, and the frames a second. "Solved" is a mean return of 195 and more, of 200.

Example:
    python -m examples.rl --seeds 3 --threads 2
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

import elman
from elman.torch.sb3 import MlpLstmPolicy

from .learn import FRAMES, Learning, learn
from .picture import draw

POLICIES = {"sb3-contrib": "MlpLstmPolicy", "elman": MlpLstmPolicy}


def main() -> None:
    """Run everything and report."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    elman.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    learnings = run(args.seeds, args.steps)
    summary = summarise(learnings)
    (args.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    draw(args.output / "rl.png", learnings, summary, args.steps, args.threads)
    print_table(summary)
    print(f"saved in {args.output}: rl.png and summary.json")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seeds", type=int, default=3, help="how many times to learn (default: %(default)s)")
    add("--steps", type=int, default=30720, help="frames of each (default: %(default)s)")
    add("--threads", type=int, default=2, help="(default: %(default)s)")
    add("--output", type=Path, default=Path("build/rl"), help="folder (default: %(default)s)")
    return parser.parse_args()


def run(seeds: int, steps: int) -> dict[str, list[Learning]]:
    """Learn with both policies in turn, from every seed, under one progress bar."""
    columns = TextColumn("{task.description:20}"), BarColumn(), TaskProgressColumn()
    learnings: dict[str, list[Learning]] = {name: [] for name in POLICIES}
    # Redrawn seldom: the bar must not take time from what is timed.
    with Progress(*columns, TimeElapsedColumn(), refresh_per_second=2) as progress:
        task = progress.add_task("", total=seeds * len(POLICIES) * steps)
        for seed in range(seeds):
            for name, policy in POLICIES.items():
                progress.update(task, description=f"seed {seed}: {name}")
                found = learn(policy, seed, steps, lambda frames: progress.advance(task, frames))
                learnings[name].append(found)
    return learnings


def summarise(learnings: dict[str, list[Learning]]) -> dict[str, dict[str, float]]:
    """Figures of each policy over its seeds, and how many times as fast Elman's is."""
    figures = {
        name: {
            "score": float(np.mean([each.score for each in found])),
            "score_least": min(each.score for each in found),
            "score_most": max(each.score for each in found),
            "return_at_end": float(np.mean([at_end(each) for each in found])),
            "update_seconds": median(each.updating for each in found),
            "frames_per_second": FRAMES
            / (median(each.acting for each in found) + median(each.updating for each in found)),
        }
        for name, found in learnings.items()
    }
    stock, ours = figures.values()
    return figures | {
        "speedup": {
            "updates": stock["update_seconds"] / ours["update_seconds"],
            "all": ours["frames_per_second"] / stock["frames_per_second"],
        }
    }


def at_end(learning: Learning) -> float:
    """Mean return of the episodes that ended in the last fifth of the frames."""
    ends, returns = np.array(learning.ends), np.array(learning.returns)
    return float(returns[ends > 0.8 * FRAMES * len(learning.acting)].mean())


def median(seconds: Iterable[list[float]]) -> float:
    """What most rollouts, or updates, of all seeds took: others may use the processor too."""
    return float(np.median(np.concatenate(list(seconds))))


def print_table(summary: dict[str, dict[str, float]]) -> None:
    """Print the figures, a row a policy."""
    table = Table(title="CartPole without velocities")
    table.add_column("policy")
    columns = ("score", "of seeds", "at the end", "update, ms", "frames a second")
    for heading in columns:
        table.add_column(heading, justify="right")
    for name in POLICIES:
        score, least, most, at_end, seconds, frames = summary[name].values()
        spread = f"{least:.0f} to {most:.0f}"
        row = (f"{score:.0f}", spread, f"{at_end:.0f}", f"{1e3 * seconds:.0f}", f"{frames:.0f}")
        table.add_row(name, *row)
    console = Console(highlight=False)
    console.print(table)
    updates, whole = summary["speedup"].values()
    console.print(f"elman's updates are {updates:.1f} times as fast, all of it {whole:.1f} times")


if __name__ == "__main__":
    main()
