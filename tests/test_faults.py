"""What goes wrong in the middle of a call leaves a library that works, and stops in time."""

import contextlib
import signal

import numpy as np
import pytest
from reference import assert_all_same_bits

import elman
from elman import _engine, engine, spec


def compute():
    """A call that uses several threads, forward and backward."""
    layer = elman.GRU(20, 64, bidirectional=True, seed=0)
    x = np.random.default_rng(0).normal(size=(30, 40, 20)).astype("float32")
    output, h_n, vjp = layer.vjp(x)
    return {"output": output, "h_n": h_n} | vjp(np.cos(output), np.sin(h_n))


@contextlib.contextmanager
def ctrl_c(after):
    """What Ctrl-C does, some seconds from now."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, after)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# L, N, D, H of calls of seconds, wherever most of their time goes.
LONG = {
    "input": (10_000, 32, 4096, 64),
    "recurrence": (5_000, 16, 8, 1024),
    "one row": (2_000_000, 1, 1, 64),
    "one step": (1, 4_000, 8, 4096),
}


@pytest.fixture(params=LONG)
def long_call(request):
    """Weights of a GRU and its x. What is never touched costs no memory: x is one row again."""
    _engine.poison_buffers(False)
    steps, batch, D, H = LONG[request.param]
    weights = [np.full((3 * H, D), 0.01, "float32"), np.full((3 * H, H), 0.01, "float32")]
    x = np.broadcast_to(np.ones(D, "float32"), (steps, batch, D))
    return engine.pack(spec.CELLS["gru"], [*weights, None, None]), x


def stops_in_the_middle(call, last):
    """The call raises, and what it writes last is not written."""
    last.fill(np.nan)
    with ctrl_c(0.05), pytest.raises(KeyboardInterrupt):
        call()
    assert np.isnan(last).any()


@pytest.mark.parametrize("threads", [1, 3])
def test_ctrl_c_stops_forward(long_call, threads):
    weights, x = long_call
    want = compute()
    output = np.empty((*x.shape[:2], weights.hidden_size), "float32")
    h_n = np.empty((1, *output.shape[1:]), "float32")
    absent = [None] * 6
    stops_in_the_middle(
        lambda: _engine.forward(weights, x, output, h_n, *absent, threads), output[-1]
    )
    assert_all_same_bits(compute(), want)


@pytest.mark.parametrize("threads", [1, 3])
def test_ctrl_c_stops_backward(long_call, threads):
    weights, x = long_call
    want = compute()
    steps, batch, D = x.shape
    H = weights.hidden_size
    gates, states = (np.zeros((1, steps * batch, n * H), "float32") for n in (4, 1))
    d_output = np.broadcast_to(np.ones(H, "float32"), (steps, batch, H))
    d_x, d_h_0 = np.empty((1, *x.shape), "float32"), np.empty((1, batch, H), "float32")
    d_weights = [np.empty((3 * H, n), "float32") for n in (D, H)]
    arguments = (x, gates, states, d_output, None, d_x, d_h_0, [*d_weights, None, None])
    stops_in_the_middle(
        lambda: _engine.backward(weights, *arguments, None, None, None, threads), d_h_0
    )
    assert_all_same_bits(compute(), want)


def test_a_handler_that_does_not_raise_is_run_and_the_call_goes_on():
    want = compute()
    ran = []
    before = signal.signal(signal.SIGALRM, lambda *_: ran.append(compute()))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        layer = elman.GRU(8, 256, seed=0)
        x = np.random.default_rng(0).normal(size=(3_000, 32, 8)).astype("float32")
        output, h_n = layer(x)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert_all_same_bits(ran[0], want)
    again, h_n_again = layer(x)
    assert_all_same_bits({"output": again, "h_n": h_n_again}, {"output": output, "h_n": h_n})
