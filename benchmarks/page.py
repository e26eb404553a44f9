"""Write docs/speed.md, which shows the results of every kind of processor, and their pictures.

Results are files in benchmarks/results that ``python -m benchmarks.run --output`` has written, each
named after its processor. ``make bench-page`` measures this one's anew.

Example:
    python -m benchmarks.page
"""

import argparse
import json
from pathlib import Path

from elman.cli import processor

from . import peaks, results
from .grid import CELLS
from .markdown import row, table
from .results import Run

RESULTS, DOCS = Path("benchmarks/results"), Path("docs")
PAGE = DOCS / "speed.md"
TITLES = {"GRU-reset-before": "GRU that resets before"}
CONTENDERS = {
    "torch": "PyTorch",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "jax": "JAX",
    "keras": "Keras",
    "mlx": "MLX",
}
INTRODUCTION = """\
# How fast, processor by processor

How many times as fast as others each package is, float32, on one thread of the processor that a
section is named after; below 1 another one is faster. Everybody's outputs and gradients were
checked against float64 first, everybody was held to one processor and took the best of the layouts
and options that it has, and all took turns; figures are medians of the turns' ratios. "The best" is
the fastest of the others at that shape, whoever that is. Where rows' lengths differ, torch packs.

`python -m benchmarks.run` measures one's own machine, and `--quick` in some minutes a cell. What
was tried for speed, and what it brought, is in [performance.md](performance.md); so is what
[single calls cost](performance.md#calls).
"""
SUMMARY = """\
Over all shapes the least, where that is, and the median, against the best of the others:
"""


def text(runs: dict[str, Run]) -> str:
    """The page: a section for each run, by its name."""
    return "\n".join([INTRODUCTION, *(section(name, run) for name, run in runs.items())])


def section(name: str, run: Run) -> str:
    """What one processor's run found."""
    cells = [cell for cell in CELLS if any(r["case"]["cell"] == cell for r in run["results"])]
    lines = [f"## {run['machine']['cpu']}", "", described(run), ""]
    lines += [f"![Times of a GRU as multiples of Elman's]({picture(name).name})", ""]
    lines += [SUMMARY, *summary(run, cells), ""]
    for cell in cells:
        lines += [f"### {TITLES.get(cell, cell)}", "", *table(run, cell), ""]
        if any("elman.jax" in result["seconds"] for result in run["results"]):
            lines += ["`elman.jax` against a jitted `lax.scan`:", "", *table(run, cell, "jax"), ""]
    return "\n".join(lines)


def described(run: Run) -> str:
    """When it was measured, by which command, of which versions, and how fast the machine is."""
    peak = peaks.best(run["peaks"]["1"])
    quick = " --quick" if run["options"]["quick"] else ""
    versions = ", ".join(f"{who} {run['versions'][key]}" for key, who in CONTENDERS.items())
    speeds = ", ".join(f"{level} {speed:.0f}" for level, speed in peak["gbytes"].items())
    return (
        f"Measured on {run['date'][:10]} by `python -m benchmarks.run{quick} --threads 1`, "
        f"{versions}, on a machine of {run['machine']['processors']} processors whose one does "
        f"{peak['gflops']:.0f} GFLOP/s and reads, in GB/s, {speeds}."
    )


def summary(run: Run, cells: list[str]) -> list[str]:
    """A table of least and median, a column a cell."""
    found: dict[str, dict[str, str]] = {}
    for figure in results.summary(run):
        title = figure.title.removesuffix(" against the best of the others")
        if figure.threads == 1 and title != figure.title:
            cell = f"{figure.least:#.2g} at {figure.least_at}; {figure.median:#.2g}"
            found.setdefault(title, {})[figure.cell] = cell
    lines = [
        row(["", *(TITLES.get(cell, cell) for cell in cells)]),
        row(["---"] * (len(cells) + 1)),
    ]
    return lines + [row([t, *(by.get(cell, "") for cell in cells)]) for t, by in found.items()]


def picture(name: str) -> Path:
    """Where a run's picture lies."""
    return DOCS / f"speed-{name}.png"


def file_of(cpu: str) -> Path:
    """Where a processor's results lie."""
    return RESULTS / f"{cpu.lower().replace(',', '').replace(' ', '-')}.json"


def read() -> dict[str, Run]:
    """The runs that there are, by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


def main() -> None:
    """Write the page and the pictures, or say where this processor's results lie."""
    from .picture import draw

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--file", action="store_true", help="print where this processor's results lie, and no more"
    )
    if parser.parse_args().file:
        print(file_of(processor()))
        return
    runs = read()
    PAGE.write_text(text(runs))
    for name, run in runs.items():
        draw(run, picture(name))
    print(f"saved {PAGE}, and a picture of {', '.join(runs)}")


if __name__ == "__main__":
    main()
