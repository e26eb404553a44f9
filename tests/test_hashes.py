"""The digests of tests/engine/hashes.txt, which hold on every machine, from the extension.

The numbers are those of tests/engine/hashes.cpp, where they are explained, made again in NumPy.
"""

from pathlib import Path

import numpy as np
import pytest

from elman import engine, spec

RECORDED = (Path(__file__).parent / "engine" / "hashes.txt").read_text().splitlines()
STREAMS = X, SCALE, H_0, D_OUTPUT, D_H_N, LENGTHS, RESET, WEIGHTS = range(8)


def mix(x):
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def draw(stream, *shape):
    i = np.arange(int(np.prod(shape)), dtype=np.uint64)
    return mix(i + np.uint64(stream << 32)).reshape(shape)


def numbers(dtype, stream, *shape, exponent=0):
    whole = (draw(stream, *shape) >> np.uint64(40)).astype(np.int64) - 2**23
    return np.ldexp(whole.astype(dtype), exponent - 23)


def weights_of(dtype, stream, *shape):
    """In half precision any sign and mantissa, and one of eight exponents."""
    if dtype in ("float32", "float64"):
        return numbers(dtype, stream, *shape, exponent=-3)
    x = draw(stream, *shape)
    exponent = (x >> np.uint64(16)) % np.uint64(8)
    if dtype == "bfloat16":
        bits = (x & np.uint64(0x807F)) | (exponent + np.uint64(116)) << np.uint64(7)
        return bits.astype(np.uint16)
    bits = (x & np.uint64(0x83FF)) | (exponent + np.uint64(4)) << np.uint64(10)
    return bits.astype(np.uint16).view(np.float16)


def digest(arrays):
    bits = [a.ravel().view(f"u{a.itemsize}").astype(np.uint64) for a in arrays]
    bits = np.concatenate(bits)
    return int(mix(bits ^ mix(np.arange(len(bits), dtype=np.uint64))).sum())


def extent(kind, steps, batch):
    """What the case says of lengths and reset, and the rows that x has then."""
    lengths = (draw(LENGTHS, batch) % np.uint64(steps + 1)).astype(np.int64)
    reset = draw(RESET, steps, batch) % np.uint64(8) == 0
    if kind == "packed":
        lengths[0] = steps
        batch_sizes = (lengths > np.arange(steps)[:, None]).sum(1)
        return engine.Extent(batch_sizes=batch_sizes), (int(batch_sizes.sum()),)
    if kind == "ragged":
        return engine.Extent(lengths, reset), (steps, batch)
    return engine.Extent(), (steps, batch)


@pytest.mark.parametrize("line", RECORDED, ids=lambda line: line.rpartition(" ")[0])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_digest_is_the_recorded_one(line, threads):
    weights_dtype, cell, kind, *sizes, recorded = line.split()
    dtype = "float64" if weights_dtype == "float64" else "float32"
    directions, steps, batch, D, H = map(int, sizes)
    P = (H + 1) // 2 if cell.endswith("_projected") else H
    cell = spec.CELLS[cell.removesuffix("_projected")]
    how, rows = extent(kind, steps, batch)
    if kind == "packed":
        batch = int(how.batch_sizes[0])
    scale = (draw(SCALE, *rows) % np.uint64(32)).astype(np.int32) - 24
    x = np.ldexp(numbers(dtype, X, *rows, D), scale[..., None])
    h_0 = numbers(dtype, H_0, directions, batch, cell.state_size(H, P))
    G = len(cell.gates)
    each = [(G * H, D), (G * H, P), (G * H,), (G * H,), (P, H) if P < H else None]
    shapes = each * directions
    streams = [s for d in range(directions) for s in (*range(4 * d, 4 * d + 4), 8 + d)]
    weights = [
        None if shape is None else weights_of(weights_dtype, WEIGHTS + stream, *shape)
        for stream, shape in zip(streams, shapes, strict=True)
    ]
    packed = engine.pack(cell, weights)

    output, h_n, kept = engine.forward(cell, packed, x, h_0, how, threads, keep=True)
    d_output = numbers(dtype, D_OUTPUT, *output.shape)
    d_h_n = numbers(dtype, D_H_N, *h_n.shape)
    d_x, d_h_0, d_weights = engine.backward(packed, shapes, x, kept, d_output, d_h_n, how, threads)
    given = [d for d in d_weights if d is not None]
    assert f"{digest([output, h_n, d_x, d_h_0, *given]):016x}" == recorded
