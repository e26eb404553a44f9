"""Draw some forecasts beside what came, and the errors of all."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .demand import DAY, HORIZONS, TEST, WEEK, Series

# Told apart by all common kinds of colour vision (Okabe and Ito).
COLOURS = {"GRU": "#0072B2", "week before": "#E69F00", "week before, shifted": "#009E73"}
DAYS = 7  # shown


def draw(
    file: Path, series: Series, forecasts: dict[str, np.ndarray], errors: dict[str, np.ndarray]
) -> None:
    """Save a week of forecasts a day ahead, and the mean error of each horizon."""
    figure = Figure(figsize=(13, 4.8), dpi=85, layout="constrained")
    gru, week = errors["GRU"].mean(), errors["week before"].mean()
    figure.suptitle(
        f"Electricity demand up to a day ahead: the GRU is {gru:.0f} MW off in the mean, the week "
        f"before {week:.0f}",
        fontweight="bold",
    )
    days, horizons = figure.subplots(1, 2, width_ratios=(5, 3))
    draw_days(days, series, forecasts)
    hours = np.arange(1, HORIZONS + 1) / 2
    for name, each in errors.items():
        horizons.plot(hours, each, color=COLOURS[name], linewidth=2, label=name)
    horizons.set(xlabel="hours ahead", title="Mean error over two weeks, MW", ylim=(0, None))
    horizons.set_xticks(range(0, 25, 6))
    horizons.legend(frameon=False, loc="lower right")
    for axes in (days, horizons):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)


def draw_days(axes: Axes, series: Series, forecasts: dict[str, np.ndarray]) -> None:
    """Draw the first days of the test, each forecast at midnight."""
    shown = np.arange(TEST, TEST + DAYS * DAY)
    when = (shown - TEST) / DAY
    axes.plot(when, series.demand[shown] / 1000, color="0.7", linewidth=5, label="what came")
    for name in ("week before", "GRU"):
        excess = forecasts[name][shown[::DAY] - 1].ravel()
        ahead = series.demand[shown - WEEK] + series.scale * excess
        axes.plot(when, ahead / 1000, color=COLOURS[name], linewidth=1.6, label=name)
    axes.set(title="Forecast at each midnight for the day to come, GW")
    names = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
    axes.set_xticks(np.arange(DAYS) + 0.5, names[:DAYS])
    axes.legend(frameon=False, loc="lower left", ncols=3)
