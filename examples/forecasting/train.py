"""Train a GRU to tell by how much the next day will differ from the same day a week before."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

import elman.torch

from .demand import HORIZONS, TEST, VALIDATION, WEEK, Series, absolute_errors, origins

HIDDEN = 32
ROWS, STEPS = 16, WEEK  # of the pieces of the series in one step of training
EVERY = 10  # steps of training a look at the validation part


class Forecaster(nn.Module):
    """A GRU and a linear head: what was seen (L, N, D) to all horizons (L, N, HORIZONS)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.gru = elman.torch.GRU(features, HIDDEN)
        self.dropout = nn.Dropout(0.3)  # eight weeks are soon learnt by heart
        self.head = nn.Linear(HIDDEN, HORIZONS)

    def forward(self, seen: Tensor) -> Tensor:
        return self.head(self.dropout(self.gru(seen)[0]))


def train(
    series: Series, updates: int, after_update: Callable[[], None]
) -> tuple[Forecaster, list[tuple[int, float]]]:
    """The model of the best validation error, and these errors: (updates, mean error in MW)."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    model = Forecaster(series.seen.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    seen, wanted = torch.from_numpy(series.seen), torch.from_numpy(series.wanted)
    best, curve = model.state_dict(), []
    for update in range(1, updates + 1):
        first = random.integers(WEEK, VALIDATION - HORIZONS - STEPS, ROWS)
        at = torch.from_numpy(first + np.arange(STEPS)[:, None])  # (STEPS, ROWS)
        loss = (model(seen[at]) - wanted[at]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if update % EVERY == 0:
            errors = absolute_errors(series, forecast(model, series), origins(VALIDATION, TEST))
            curve.append((update, float(errors.mean())))
            if curve[-1][1] == min(error for _, error in curve):
                best = {name: w.clone() for name, w in model.state_dict().items()}
        after_update()
    model.load_state_dict(best)
    return model.eval(), curve


@torch.no_grad()
def forecast(model: Forecaster, series: Series) -> np.ndarray:
    """(T, HORIZONS), after every half hour: one call, as a state has seen the past alone."""
    training = model.training
    found = model.eval()(torch.from_numpy(series.seen)[:, None])[:, 0].numpy()
    model.train(training)
    return found
