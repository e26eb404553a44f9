"""The picture: who takes how long, as a multiple of Elman's time, and where the machine's limit is.

One cell on one thread. Bars begin at 1, which is Elman's time: to the right whoever takes longer.

Example:
    python -m benchmarks.picture build/bench/bench.json build/bench/bench.png --cell GRU
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from . import results
from .contenders import OURS
from .grid import CELLS, LARGEST, LIKE, Case
from .measure import Result
from .results import Run

#: The shapes that are not drawn: others are much like them.
LEFT_OUT = (100, 1, 128, 256), (1000, 8, 64, 64), (100, 32, 256, 256), LARGEST
CHOSEN = {shape: like for shape, like in LIKE.items() if shape not in LEFT_OUT}
NAMES = {
    "elman": "Elman, NumPy",
    "elman.torch": "Elman, PyTorch",
    "torch": "torch",
    "torch packed": "torch, packed",
    "ONNX Runtime": "ONNX Runtime",
    "OpenVINO": "OpenVINO",
    "JAX": "JAX",
    "MLX": "MLX",
}
#: The package whose time is 1, and who is not drawn beside it.
UNIT = {"inference": "elman", "training": "elman.torch"}
UNDRAWN = {"inference": (), "training": ("elman",)}
ELMAN, SLOWER, FASTER = "#e07b39", "#b9c0c8", "#5b7fa6"
INK, FAINT = "#22272e", "#7d8590"
LEFT, RIGHT = 0.05, 700.0
BAR = 0.82  # of the distance between two bars
GAP = 1.7  # between two groups, in bars


def draw(run: Run, path: Path, cell: str = "GRU") -> Path:
    """Draw the picture there."""
    chosen = {mode: select(run, cell, mode) for mode in UNIT}
    shapes = [s for s in CHOSEN if any(s in results for results in chosen.values())]
    if not shapes:
        raise SystemExit(f"benchmarks.picture: needs the {cell} on one thread")
    # Groups lie side by side in both panels, each as high as the larger of the two.
    heights = [max(len(bars(by_shape.get(s))) for by_shape in chosen.values()) for s in shapes]
    tops = [sum(heights[:i]) + GAP * i for i in range(len(shapes))]
    bottom = sum(heights) + GAP * len(shapes)
    figure, panels = plt.subplots(
        1, 2, figsize=(9, 1.5 + 0.132 * bottom), sharex=True, sharey=True, layout="constrained"
    )
    for axes, (mode, by_shape) in zip(panels, chosen.items(), strict=True):
        prepare(axes, mode, bottom)
        for shape, top, height in zip(shapes, tops, heights, strict=True):
            if shape in by_shape:
                group(axes, run, by_shape[shape], top, height)
    figure.suptitle(title(run, cell), fontsize=7.8, color=INK, x=0.008, ha="left", linespacing=1.4)
    figure.legend(
        handles=[
            Line2D([], [], color=ELMAN, linewidth=1.6, label="Elman's time, 1×"),
            Patch(color=SLOWER, label="takes longer"),
            Patch(color=FASTER, label="takes less"),
            Patch(color=ELMAN, label="Elman's PyTorch package"),
            Line2D([], [], color=INK, linewidth=1.4, label="the machine's limit"),
        ],
        loc="outside lower left",
        ncols=5,
        frameon=False,
        fontsize=7,
        labelcolor=INK,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    plt.close(figure)
    return path


def select(run: Run, cell: str, mode: str) -> dict[tuple[int, ...], Result]:
    """The cell's results on one thread, by shape."""
    found: dict[tuple[int, ...], Result] = {}
    for result in run["results"]:
        case = Case.read(result["case"])
        wanted = case.cell == cell and case.num_layers == 1 and case.shape in CHOSEN
        timed = result["mode"] == mode and UNIT[mode] in result["seconds"]
        if wanted and timed and result["threads"] == 1:
            found[case.shape] = result
    return found


def bars(result: Result | None) -> list[str]:
    if result is None:
        return []
    unseen = UNIT[result["mode"]], *UNDRAWN[result["mode"]]
    return [n for n in NAMES if n in result["seconds"] and n not in unseen]


def prepare(axes: Axes, mode: str, bottom: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(LEFT, RIGHT)
    axes.set_ylim(bottom - GAP / 2, -GAP)
    axes.set_xticks([0.1, 1, 10, 100], ["0.1×", "1×", "10×", "100×"])
    axes.tick_params(axis="x", length=0, labelsize=7, labelcolor=FAINT)
    axes.minorticks_off()
    axes.set_yticks([])
    axes.grid(axis="x", color="#e6e9ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.set_title(
        f"{mode.title()}: {NAMES[UNIT[mode]]} is 1",
        fontsize=8.5,
        color=INK,
        loc="left",
        weight="bold",
    )


def group(axes: Axes, run: Run, result: Result, top: float, height: int) -> None:
    """One shape: its name, its bars, and the limit as a line across them."""
    case, names, mode = Case.read(result["case"]), bars(result), result["mode"]
    size = "({}, {}, {}, {})".format(*case.shape)
    axes.text(LEFT, top - 0.75, CHOSEN[case.shape], fontsize=7.8, color=INK, va="center")
    time = duration(results.seconds(result, UNIT[mode]))
    axes.text(1, top - 0.75, f" {time}", fontsize=7, color=ELMAN, va="center", weight="bold")
    axes.text(RIGHT, top - 0.75, size, fontsize=7, color=FAINT, va="center", ha="right")
    for i, who in enumerate(names):
        compared = results.ratio(result, who, UNIT[mode])
        assert compared is not None  # both were timed
        times = compared.median
        colour = ELMAN if who in OURS else SLOWER if times >= 1 else FASTER
        axes.barh(top + i + 0.3, times - 1, BAR, left=1, color=colour)
        axes.text(
            max(times, 1),
            top + i + 0.34,
            f" {NAMES[who]} {digits(times)}× ",
            fontsize=6.8,
            color=INK,
            va="center",
            ha="right" if times > RIGHT / 8 else "left",  # inside where there is no room
        )
    axes.plot([1, 1], [top - 0.2, top + len(names) - 0.2], color=ELMAN, linewidth=1.6)
    limit(axes, results.share(run, result, UNIT[mode]), top, len(names))


def limit(axes: Axes, at: float, top: float, count: int) -> None:
    """A line where the machine's limit is, or an arrow at the edge where it is further left."""
    if at < LEFT:
        label = f"◂ {digits(at)}×"
        axes.text(LEFT, top + 0.34, label, fontsize=6.3, color=INK, va="center")
    else:
        axes.plot([at, at], [top - 0.2, top + count - 0.2], color=INK, linewidth=1.4)


def digits(number: float) -> str:
    """As many as tell it from its like."""
    return f"{number:.0f}" if number >= 10 else f"{number:#.2g}" if number < 1 else f"{number:#.3g}"


def duration(seconds: float) -> str:
    for unit, size in (("s", 1), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def title(run: Run, cell: str) -> str:
    versions = ", ".join(
        f"{name} {run['versions'][package].partition('+')[0]}"
        for name, package in (
            ("torch", "torch"),
            ("ONNX Runtime", "onnxruntime"),
            ("OpenVINO", "openvino"),
            ("JAX", "jax"),
            ("MLX", "mlx"),
        )
        if package in run["versions"]
    )
    sizes = "L steps, N rows, D features, H units"
    return (
        f"{cell} ({sizes}), float32, one thread of: {run['machine']['cpu']}\n{versions}\n"
        "Time a call, as a multiple of Elman's. The limit is the least that the machine's measured "
        "arithmetic allows,\nor, for N = 1, the reading of the recurrent weights at every step."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.picture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--cell", choices=CELLS, default="GRU", help="default: %(default)s")
    options = parser.parse_args()
    run = json.loads(options.results.read_text())
    print(f"drawn in {draw(run, options.picture, options.cell)}")
