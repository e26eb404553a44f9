"""Measure exported models against RTNeural's: nanoseconds a step, one core, one input, one output.

Both are compiled from the same weights, the header as it is, RTNeural with Eigen and -ffast-math.
Their outputs are compared first: the header's with Python's, bit for bit, RTNeural's to 1e-4. They
take turns; a ratio is the median of the turns'.

Example:
    python -m benchmarks.exported --rtneural ../RTNeural --eigen /usr/include/eigen3
"""

import argparse
import json
import subprocess
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

import elman
import elman.export

from . import measure, peaks

SOURCE = Path(__file__).with_suffix(".cpp")
SIZES = (8, 16, 20, 32, 40, 64)
STEPS, PASSES, TURNS = 16000, 5, 5
FLAGS = ["-std=c++17", "-O3", "-march=native"]


def main() -> None:
    """Compile, compare, measure, print, save."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.exported",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rtneural", type=Path, required=True, help="folder of its repository")
    parser.add_argument("--eigen", type=Path, default=Path("/usr/include/eigen3"))
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--cell", nargs="+", choices=("GRU", "LSTM"), default=["GRU", "LSTM"])
    parser.add_argument("--hidden", nargs="+", type=int, default=SIZES)
    parser.add_argument("--output", type=Path, default=Path("build/bench/exported"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    measure.hold(peaks.available()[:1])
    cases = [(cell, hidden) for cell in options.cell for hidden in options.hidden]
    progress = track(cases, "exported models", console=Console(stderr=True), transient=True)
    found = [one(options, cell, hidden) for cell, hidden in progress]
    show(found)
    file = options.output / "exported.json"
    file.write_text(json.dumps(found, indent=1))
    print(f"saved in {file}")


def one(options: argparse.Namespace, cell: str, hidden: int) -> dict[str, Any]:
    """A model's nanoseconds, turn by turn."""
    folder = options.output / f"{cell}{hidden}"
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(hidden)
    head = elman.export.Linear(rng.uniform(-0.3, 0.3, (1, hidden)).astype("float32"))
    model = elman.export.Model([getattr(elman, cell)(1, hidden, seed=0), head])
    x = rng.uniform(-1, 1, (STEPS, 1)).astype("float32")
    (folder / "amp.h").write_text(elman.export.header(model, "amp"))
    (folder / "in").write_bytes(x.tobytes())
    elman.export.write(model, folder / "amp.json")
    fast = ["-ffast-math", "-DRTNEURAL=1", "-DRTNEURAL_USE_EIGEN=1", "-DRTNEURAL_NO_DEBUG=1"]
    fast += [f"-DLAYER={cell}LayerT", f"-DHIDDEN={hidden}", "-w"]
    fast += [f"-isystem{options.rtneural}", f"-isystem{options.eigen}"]
    programs = {"elman": [], "rtneural": fast}
    for name, flags in programs.items():
        compile_ = [options.compiler, *FLAGS, *flags, f"-I{folder}", str(SOURCE)]
        subprocess.run([*compile_, "-o", str(folder / name)], check=True)
    turns: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(TURNS):
        for name, taken in turns.items():
            taken.append(run(folder, name))
    output, _ = model(x)
    ours, theirs = (np.fromfile(folder / f"{name}.out", np.float32)[:, None] for name in programs)
    if ours.tobytes() != output.tobytes():
        raise AssertionError(f"{model}: the program's bits are not Python's")
    np.testing.assert_allclose(theirs, output, rtol=0, atol=1e-4)
    return {"cell": cell, "hidden": hidden, **turns}


def run(folder: Path, name: str) -> float:
    """Nanoseconds a step, of the fastest piece of some passes."""
    files = [folder / "in", folder / f"{name}.out", str(PASSES), folder / "amp.json"]
    done = subprocess.run([folder / name, *files], check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def show(found: list[dict[str, Any]]) -> None:
    """A row a model."""
    title = f"nanoseconds a step, {STEPS} steps, one input, a Linear output, one core"
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for column in ("cell", "units", "elman", "RTNeural", "RTNeural / elman"):
        table.add_column(column, justify="right")
    ratios: list[float] = []
    for case in found:
        ours, theirs = case["elman"], case["rtneural"]
        ratios.append(median(b / a for a, b in zip(ours, theirs, strict=True)))
        times = [f"{median(turns):.0f}" for turns in (ours, theirs)]
        table.add_row(case["cell"], str(case["hidden"]), *times, f"{ratios[-1]:.2f}")
    console = Console()
    console.print(table)
    console.print(
        f"in the median {median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}"
    )


if __name__ == "__main__":
    main()
