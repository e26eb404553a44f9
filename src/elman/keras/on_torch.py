"""Keras's PyTorch backend: a layer by the operators of ``elman.torch``."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (parts of torch are not typed)

from collections.abc import Sequence

import torch
from torch import Tensor

from elman.spec import Cell, Weights
from elman.torch.modules import exporter_runs, is_differentiated, needs_loop, run_rounded
from elman.torch.modules import served as _served
from elman.torch.operators import join

split, concatenate, zeros_like = torch.chunk, torch.cat, torch.zeros_like


def served(x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
    """Whether the engine takes these tensors. An ONNX model gets the nodes of Keras's own."""
    if x.is_meta:
        return True
    return not needs_loop() and not exporter_runs() and _served(x, states, *weights)


def mask_rule(unroll: bool, zero_output: bool) -> tuple[bool, bool]:
    """Whether Keras's output at a masked step is zeros before a row's first; and anywhere.

    Later it is otherwise that of the step before.
    """
    return True, zero_output


def run(
    cell: Cell, weights: Weights, states: Sequence[Tensor], x: Tensor, lengths: Tensor | None = None
) -> tuple[Tensor, Sequence[Tensor]]:
    """A layer: x and output (N, L, features), each state (N, H), lengths (N,) int64."""
    if x.is_meta:  # by which Keras learns shapes
        return x.new_empty(*x.shape[:2], states[0].shape[-1]), states
    h_0 = join(states)
    assert h_0 is not None
    keep = is_differentiated(x, h_0, *weights)
    absent = Weights(None, None)  # of the other direction
    output, h_n = run_rounded(
        *(cell.name, x.transpose(0, 1), h_0.unsqueeze(0), *weights, *absent),
        *(lengths, None, None, keep, False),
    )
    return output.transpose(0, 1), h_n.squeeze(0).chunk(len(states), -1)
