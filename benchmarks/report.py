"""The tables on the terminal."""

from rich import box
from rich.console import Console
from rich.table import Table

from . import results
from .contenders import OTHERS, OURS
from .grid import CELLS, MEMORY, MODES, OVERHEAD, Case
from .measure import TOO_LONG, Result
from .results import Run

#: Whose time on one thread and on several is compared.
PACKAGE = {"inference": "elman", "training": "elman.torch"}


def show(run: Run) -> None:
    """Print everything: times and ratios by case, the summary, memory, and who was wrong."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    for mode in MODES:
        for threads in run["options"]["threads"]:
            if any((r["mode"], r["threads"]) == (mode, threads) for r in run["results"]):
                console.print(times(run, mode, threads))
    console.print(summary(run))
    console.print(notes(run), highlight=False)
    for line in results.wrong(run):
        console.print(f"WRONG, and so not timed: {line}", style="bold red")


def count(threads: int) -> str:
    return f"{threads} thread" + ("s" if threads > 1 else "")


def times(run: Run, mode: str, threads: int) -> Table:
    """Milliseconds of everyone, and how Elman compares with the best of the others."""
    chosen = [r for r in run["results"] if (r["mode"], r["threads"]) == (mode, threads)]
    names = [n for n in OURS | OTHERS if any(n in r["seconds"] for r in chosen)]
    table = Table(
        title=f"{mode.title()}, {count(threads)}: milliseconds a call, median of the turns; then "
        "the best of the others over Elman, median (quartiles): above 1, Elman is faster",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("(L, N, D, H)", no_wrap=True)
    for name in [*names, "over elman", "over elman.torch", "elman's share of the limit"]:
        table.add_column(name, justify="right", no_wrap=name.startswith("over"))
    if threads > 1:
        table.add_column(f"{PACKAGE[mode]}, 1 thread over {threads}", justify="right")
    for cell in CELLS:
        for result in chosen:
            case = Case.read(result["case"])
            if case.cell == cell and case.shape != OVERHEAD:
                table.add_row(str(case), *row(run, result, names))
        table.add_section()
    return table


def row(run: Run, result: Result, names: list[str]) -> list[str]:
    cells = [milliseconds(result, name) for name in names]
    best = results.best_other(result)
    if best in names:
        cells[names.index(best)] = f"[bold]{cells[names.index(best)]}[/]"
    found = [results.best_ratio(result, ours) for ours in ("elman", "elman.torch")]
    cells += ["" if r is None else str(r) for r in found]
    timed = "elman" in result["seconds"]
    cells.append(f"{results.share(run, result, 'elman'):.2f}" if timed else "")
    if result["threads"] > 1:
        gain = results.one_over_many(PACKAGE[result["mode"]])(run, result)
        cells.append("" if gain is None else f"{gain:.2f}")
    return cells


def milliseconds(result: Result, name: str) -> str:
    if name in result["seconds"]:
        return f"{1e3 * results.seconds(result, name):.3g}"
    if name in result["wrong"]:
        return "wrong"
    why = result["left_out"].get(name, "")
    return why.removeprefix(TOO_LONG).removesuffix(" a call") if why.startswith(TOO_LONG) else "-"


def summary(run: Run) -> Table:
    """The least and the median over the shapes."""
    table = Table(title="over the shapes: least, median", box=box.SIMPLE_HEAD)
    for column in ("", "cell", "threads", "least", "median", "the least is at"):
        table.add_column(column, no_wrap=True)
    for figure in results.summary(run):
        table.add_row(
            figure.title,
            figure.cell,
            str(figure.threads),
            f"{figure.least:.2f}",
            f"{figure.median:.2f}",
            figure.least_at,
        )
    return table


def notes(run: Run) -> str:
    """Limits, overhead, memory, who was left out: a line each."""
    lines: list[str] = []
    for threads, measured in run["peaks"].items():
        for when, peak in zip(("before", "after"), measured, strict=True):
            bandwidth = ", ".join(f"{level} {rate:.0f}" for level, rate in peak["gbytes"].items())
            lines.append(
                f"{count(int(threads))}, {when}: {peak['gflops']:.0f} GFLOP/s; "
                f"GB/s read: {bandwidth}"
            )
    for cell, seconds in results.overheads(run).items():
        each = ", ".join(f"{name} {1e6 * s:.1f}" for name, s in seconds.items())
        lines.append(f"a call of {cell} (1, 1, 1, 1), microseconds: {each}")
    for name, found in run["memory"].items():
        line = f"training {MEMORY}, memory of {name}: {found['peak'] / 2**20:.0f} MiB at most, "
        line += f"{(found['peak'] - found['before']) / 2**20:.0f} of them by training"
        if "kept_a_row" in found:
            line += f"; {found['kept_a_row']:.0f} bytes a row kept for backward"
        lines.append(line)
    lines.append("left out: who stands with seconds (s) among the milliseconds would take too long")
    lines += [f"left out: {line}" for line in results.left_out(run)]
    near = results.near_the_peak(run)
    lines += [f"the best of the others above 0.9 of the peak: {line}" for line in near]
    return "\n".join(lines)
