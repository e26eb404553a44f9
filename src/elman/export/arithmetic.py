"""The arithmetic of ``layers.h`` on arrays of float32: the same operations in the same order.

Recurrent layers have the engine's; these are for what stands before and behind them.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (methods of arrays of any dtype are partly untyped)

from typing import Any

import numpy as np

from elman.engine import Array

#: Terms of a sum that are added up from zero, before their sum is added to those before.
CHAIN = 64
_LOWEST, _ROUND = np.float32(-87), np.float32(12582912)
_EXP = [
    np.float32(c)
    for c in (
        0.0013882515212956579815,
        0.0083665471194146427098,
        0.041667200730433014982,
        0.16666543424445384059,
        0.4999999814957756623,
    )
]


def fma(a: Any, b: Any, c: Any) -> Array:
    """A * b + c with one rounding.

    The product of two floats is exact as a double. The sum is rounded to odd, which keeps the
    second rounding, to float, from falling on a false tie (see ``layers.h``).
    """
    product, addend = np.multiply(a, b, dtype=np.float64), np.asarray(c, np.float64)
    total = product + addend
    kept = total - product
    lost = (product - (total - kept)) + (addend - kept)
    bits = np.atleast_1d(total).view(np.int64).reshape(total.shape)
    inexact_and_even = ((lost < 0) | (lost > 0)) & (bits & 1 == 0)
    towards = np.where((lost > 0) == (total > 0), 1, -1)
    odd = np.where(inexact_and_even, bits + towards, bits)
    return np.atleast_1d(odd).view(np.float64).reshape(total.shape).astype(np.float32)


def product(x: Array, w: Array, bias: Array) -> Array:
    """W x + b: x (..., terms), w (terms, rows), bias (rows)."""
    total: Array | None = None
    for first in range(0, len(w), CHAIN):
        chain = np.zeros((*x.shape[:-1], w.shape[1]), np.float32)
        for k in range(first, min(first + CHAIN, len(w))):
            chain = fma(x[..., k, None], w[k], chain)
        total = chain if total is None else total + chain
    assert total is not None
    return total + bias


def _exp(x: Array) -> tuple[Array, Array]:
    """e^x = scale * (1 + rest) for x <= 0 or NaN; below -87 as at -87."""
    at = np.where(x < _LOWEST, _LOWEST, x)
    shifted = fma(at, np.float32(1.44269504088896340736), _ROUND)
    whole = shifted - _ROUND
    r = fma(whole, np.float32(2.12194440e-4), fma(whole, np.float32(-0.693359375), at))
    q = np.broadcast_to(_EXP[0], r.shape)
    for coefficient in _EXP[1:]:
        q = fma(q, r, coefficient)
    scale = ((shifted.view(np.uint32) + np.uint32(127)) << np.uint32(23)).view(np.float32)
    return scale, fma(r * r, q, r)


def tanh(x: Array) -> Array:
    """By e^(-2|x|)."""
    scale, rest = _exp(-np.abs(x + x))
    e, m = fma(scale, rest, scale), fma(scale, rest, scale - np.float32(1))
    large = e < np.float32(1) / np.float32(3)
    zero, one = np.float32(0), np.float32(1)
    return np.copysign(np.where(large, one, zero) - np.where(large, e + e, m) / (e + one), x)


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-|x|), or e^-|x| / (1 + e^-|x|) where x < 0."""
    scale, rest = _exp(-np.abs(x))
    e, one = fma(scale, rest, scale), np.float32(1)
    return np.where(x < 0, e, one) / (e + one)


def relu(x: Array) -> Array:
    """0 where x < 0, else x: NaN stays NaN."""
    return np.where(x < 0, np.float32(0), x)


def softmax(x: Array) -> Array:
    """e^(x - max x) over their sum, on the last axis, taken in order."""
    most = x[..., 0]
    for i in range(1, x.shape[-1]):
        most = np.where(x[..., i] > most, x[..., i], most)
    scale, rest = _exp(x - most[..., None])
    e = fma(scale, rest, scale)
    total = np.zeros(e.shape[:-1], np.float32)
    for i in range(x.shape[-1]):
        total = total + e[..., i]
    return e / total[..., None]
