"""Arguments as no one should pass them: strategies that turn a good array into something else."""

import contextlib
import os
import warnings

import numpy as np
from hypothesis import strategies as st

HUGE = st.sampled_from([2**31 - 1, 2**31, 2**40, 2**61, 2**62])
DTYPES = (
    *("float16", "float32", "float64", "longdouble", "complex64", "bool", "int8", "int64"),
    *("uint8", "uint64", ">f4", ">f8", ">i8", "O", "S3", "U3", "datetime64[s]", "V4"),
)


class Liar:
    """Says that it is an array, and is none."""

    def __init__(self, error):
        self._error = error

    def __array__(self, dtype=None, copy=None):
        raise self._error("no array")


class Subclass(np.ndarray):
    """Refuses to be computed with."""

    def __array_ufunc__(self, *_, **__):
        raise TypeError("not to be computed with")


NOTHING = st.sampled_from(
    [
        None,
        *("", "abc", b"abc", 0, -1, 2**70, 1.5, float("nan"), 1j, True, ..., object),
        *({}, {"x": 1}, set(), [], [[]], [None], [[1], [1, 2]], ["a"], [2**70], [{}], range(3)),
        *(Liar(RuntimeError), Liar(ValueError), Liar(TypeError)),
        np.float32(1),
        np.array("abc"),
        np.array(None),
        np.zeros((), [("a", "f4")]),
    ]
)


def _dtype(a, dtype):
    with warnings.catch_warnings(), contextlib.suppress(TypeError, ValueError):
        warnings.simplefilter("ignore")  # of a cast that loses something
        return a.astype(dtype)
    return np.zeros(a.shape, dtype)


def _reshaped(a):
    shapes = st.lists(st.integers(0, 4), max_size=4)
    axis = st.integers(0, max(a.ndim - 1, 0))
    return st.one_of(
        shapes.map(lambda shape: np.zeros(shape, a.dtype)),
        axis.map(lambda axis: a.take(0, axis) if a.ndim else a),
        axis.map(lambda axis: np.expand_dims(a, axis)),
        axis.map(lambda axis: np.concatenate([a, a], axis) if a.ndim else a),
        axis.map(lambda axis: a[(slice(None),) * axis + (slice(0, 0),)] if a.ndim else a),
        st.permutations(range(a.ndim)).map(lambda axes: a.transpose(axes)),
    )


def _immense(a):
    """One value, said to be very many: its memory is small, a result's would not be."""

    def build(axis, size):
        shape = [*a.shape]
        shape[axis % a.ndim] = size
        with contextlib.suppress(ValueError):  # NumPy's own limit
            return np.broadcast_to(a.reshape(-1)[:1].reshape([1] * a.ndim), shape)
        return a

    return st.builds(build, st.integers(0, 3), HUGE) if a.ndim and a.size else st.just(a)


def _otherwise(a):
    """The same values in another guise."""
    guises = [
        lambda: a.tolist(),
        lambda: a[::-1],
        lambda: a[..., ::-1],
        lambda: np.asfortranarray(a),
        lambda: np.ma.masked_array(a, a > 0),
        lambda: a.view(Subclass),
        lambda: np.lib.stride_tricks.as_strided(a, a.shape, [0] * a.ndim),
        lambda: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
        lambda: memoryview(np.ascontiguousarray(a)),
    ]
    if a.ndim == 2:
        guises.append(lambda: np.asmatrix(a))
    guise = st.sampled_from(guises)
    return guise.map(lambda make: _ignoring_deprecation(make)) if a.size and a.ndim else st.just(a)


def _ignoring_deprecation(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of np.matrix
        return make()


def changed(a):
    """Something instead of the array: now and then the array itself."""
    return st.one_of(
        st.just(a),
        _otherwise(a),
        _reshaped(a),
        _immense(a),
        st.sampled_from(DTYPES).map(lambda dtype: _dtype(a, dtype)),
        NOTHING,
    )


def changed_state(state):
    """The same for an RNN's or a GRU's h, or for an LSTM's (h, c): either of them, or the pair."""
    if not isinstance(state, tuple):
        return changed(state)
    h, c = state
    pairs = [(c, h), (h,), (h, c, c), [h, c], (h, None), (None, None), (), {"h": h}, np.array(0)]
    return st.one_of(
        changed(h).map(lambda a: (a, c)),
        changed(c).map(lambda a: (h, a)),
        changed(h),
        st.sampled_from(pairs),
    )


def lengths(steps, batch):
    """Lengths, most of them wrong."""
    number = st.one_of(
        st.integers(0, steps), st.integers(-3, steps + 3), st.integers(-(2**63), 2**63 - 1)
    )
    good = np.arange(batch) % (steps + 1)
    lists = st.lists(number, min_size=batch, max_size=batch)
    kinds = [lists, lists.map(np.array), changed(good)]  # each as often: one_of would flatten them
    return st.sampled_from(kinds).flatmap(lambda kind: kind)


@contextlib.contextmanager
def bounded_memory(more=2 * 2**30):
    """As much memory as there is in use now and so much more, where the system can say no."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
