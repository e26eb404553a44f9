"""Has Elman become slower? Compares two results of ``benchmarks.run``; exits with 1 if it has.

Only ratios are compared, the best of the others over Elman, never seconds: machines differ, and so
does one machine from day to day. The others are those that both runs timed.

Example:
    python -m benchmarks.compare old.json new.json --tolerance 0.1
"""

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from . import results
from .contenders import OTHERS, OURS
from .grid import Case
from .measure import Result
from .results import Ratio, Run

Key = tuple[Case, str, int]  # case, mode, threads


class Change(NamedTuple):
    """A package's ratio to the best of the others in both runs."""

    key: Key
    package: str
    old: Ratio
    new: Ratio

    @property
    def factor(self) -> float:
        return self.new.median / self.old.median

    def is_worse(self, tolerance: float) -> bool:
        return self.factor < 1 - tolerance

    def __str__(self) -> str:
        case, mode, threads = self.key
        return f"{case}, {mode}, {threads} thread{'s' if threads > 1 else ''}, {self.package}"


def main() -> int:
    """Print the changes; 1 if any is for the worse."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.1, help="default: %(default)s")
    options = parser.parse_args()
    old, new = (json.loads(path.read_text()) for path in (options.old, options.new))
    changes = compare(old, new)
    if not changes:
        parser.error("the two have no case in common")
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table(changes, options.tolerance))
    worse = [change for change in changes if change.is_worse(options.tolerance)]
    print(f"{len(worse)} of {len(changes)} worse by more than {options.tolerance:.0%}")
    return 1 if worse else 0


def compare(old: Run, new: Run) -> list[Change]:
    """What both runs timed."""
    before, after = by_key(old), by_key(new)
    changes: list[Change] = []
    for key in before.keys() & after.keys():
        pair = before[key], after[key]
        others = [n for n in OTHERS if all(n in result["seconds"] for result in pair)]
        for package in OURS:
            ratios = [ratio_to_best(result, others, package) for result in pair]
            if None not in ratios:
                changes.append(Change(key, package, *ratios))
    return sorted(changes, key=lambda change: change.factor)


def by_key(run: Run) -> dict[Key, Result]:
    return {(Case.read(r["case"]), r["mode"], r["threads"]): r for r in run["results"]}


def ratio_to_best(result: Result, others: list[str], package: str) -> Ratio | None:
    best = results.best_other(result, others)
    return None if best is None else results.ratio(result, best, package)


def table(changes: list[Change], tolerance: float) -> Table:
    """The worst first."""
    table = Table(title="the best of the others over Elman", box=box.SIMPLE_HEAD)
    table.add_column("")
    for column in ("old", "new", "new over old"):
        table.add_column(column, justify="right", no_wrap=True)
    for change in changes:
        style = "bold red" if change.is_worse(tolerance) else ""
        figures = (str(change.old), str(change.new), f"{change.factor:.2f}")
        table.add_row(str(change), *figures, style=style)
    return table


if __name__ == "__main__":
    sys.exit(main())
