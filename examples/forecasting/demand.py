"""The series, what the network sees of it, and how it is divided by time."""

from typing import NamedTuple

import numpy as np
from pmdarima.datasets import load_taylor

DAY = 48  # half hours
WEEK = 7 * DAY
HORIZONS = DAY
VALIDATION, TEST = 8 * WEEK, 10 * WEEK  # where these begin: of twelve weeks


class Series(NamedTuple):
    """Demand in MW, and what is made of it for each of its T half hours."""

    demand: np.ndarray  # (T)
    seen: np.ndarray  # (T, features): the network's input
    wanted: np.ndarray  # (T, HORIZONS): by how much demand will exceed the week before, scaled
    scale: float  # MW


def load() -> np.ndarray:
    """Demand in England and Wales from Monday, 5 June 2000 on: twelve weeks of half hours, in MW.

    J. W. Taylor, "Short-term electricity demand forecasting using double seasonal exponential
    smoothing", Journal of the Operational Research Society 54 (2003).
    """
    return load_taylor()


def prepare(demand: np.ndarray) -> Series:
    """Features and targets. The scale is that of the part for training alone."""
    steps = len(demand)
    excess = np.full(steps + HORIZONS, np.nan)  # over the same half hour a week before
    excess[WEEK:steps] = demand[WEEK:] - demand[:-WEEK]
    scale = float(excess[WEEK:VALIDATION].std())
    learnt = demand[:VALIDATION]
    angles = [2 * np.pi * np.arange(steps) / period for period in (DAY, WEEK)]
    seen = np.stack(
        [
            np.nan_to_num(excess[:steps]) / scale,
            (demand - learnt.mean()) / learnt.std(),
            *(wave(angle) for angle in angles for wave in (np.sin, np.cos)),
        ],
        axis=1,
    )
    ahead = np.arange(steps)[:, None] + 1 + np.arange(HORIZONS)
    return Series(demand, seen.astype("float32"), (excess[ahead] / scale).astype("float32"), scale)


def origins(first: int, last: int) -> slice:
    """The half hours after which all horizons lie within `first` .. `last` - 1."""
    return slice(first - 1, last - HORIZONS)


def absolute_errors(series: Series, forecast: np.ndarray, at: slice) -> np.ndarray:
    """(origins, HORIZONS) in MW, of a forecast (T, HORIZONS) of what is `wanted`."""
    return series.scale * np.abs(forecast[at] - series.wanted[at])
