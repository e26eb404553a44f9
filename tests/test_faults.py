"""What goes wrong in the middle of a call leaves a library that works, and stops in time."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
from reference import assert_all_same_bits

import elman
from elman import _engine, engine, spec

LIMIT = 300  # seconds; a child that hangs would wait for ever


def compute():
    """A call that uses several threads, forward and backward."""
    layer = elman.GRU(20, 64, bidirectional=True, seed=0)
    x = np.random.default_rng(0).normal(size=(30, 40, 20)).astype("float32")
    output, h_n, vjp = layer.vjp(x)
    return {"output": output, "h_n": h_n} | vjp(np.cos(output), np.sin(h_n))


def in_new_process(function):
    """What happens there, and how many threads and how much memory it has, is its own affair."""
    child = multiprocessing.get_context("spawn").Process(target=function)
    child.start()
    child.join(LIMIT)
    try:
        assert child.exitcode == 0
    finally:
        child.kill()
        child.join()


only_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def count_threads():
    """Of this process, whoever started them."""
    return len(os.listdir("/proc/self/task"))


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


# Cell and L, N, D, H, P of calls of seconds, wherever most of their time goes.
LONG = {
    "input": ("gru", 10_000, 32, 4096, 64, 64),
    "recurrence": ("gru", 5_000, 16, 8, 1024, 1024),
    "one row": ("gru", 2_000_000, 1, 1, 64, 64),
    "one step": ("gru", 1, 4_000, 8, 4096, 4096),
    "two states": ("lstm", 4_000, 16, 8, 1024, 1024),
    "projection": ("lstm", 200_000, 16, 8, 256, 200),
}


@pytest.fixture(params=LONG)
def long_call(request):
    """A cell, weights and x. What is never touched costs no memory: x is one row again."""
    _engine.poison_buffers(False)
    cell, steps, batch, D, H, P = LONG[request.param]
    cell = spec.CELLS[cell]
    rows = len(cell.gates) * H
    shapes = [(rows, D), (rows, P), None, None, None if P == H else (P, H)]
    weights = [None if shape is None else np.full(shape, 0.01, "float32") for shape in shapes]
    x = np.broadcast_to(np.ones(D, "float32"), (steps, batch, D))
    return cell, weights, x


def stops_in_the_middle(call, last):
    """The call raises, and what it writes last is not written."""
    last.fill(np.nan)
    with ctrl_c(0.05), pytest.raises(KeyboardInterrupt):
        call()
    assert np.isnan(last).any()


@pytest.mark.parametrize("threads", [1, 3])
def test_ctrl_c_stops_forward(long_call, threads):
    cell, weights, x = long_call
    want = compute()
    packed = engine.pack(cell, weights)
    output = np.empty((*x.shape[:2], packed.output_size), "float32")
    S = cell.state_size(packed.hidden_size, packed.output_size)
    h_n = np.empty((1, x.shape[1], S), "float32")
    absent = [None] * 6
    stops_in_the_middle(
        lambda: _engine.forward(packed, x, output, h_n, *absent, threads), output[-1]
    )
    assert_all_same_bits(compute(), want)


@pytest.mark.parametrize("threads", [1, 3])
def test_ctrl_c_stops_backward(long_call, threads):
    cell, weights, x = long_call
    want = compute()
    packed = engine.pack(cell, weights)
    steps, batch, _ = x.shape
    H, P = packed.hidden_size, packed.output_size
    S = cell.state_size(H, P)
    gates = np.zeros((1, steps * batch, cell.kept * H), "float32")
    states = np.zeros((1, batch + steps * batch, S), "float32")
    d_output = np.broadcast_to(np.ones(P, "float32"), (steps, batch, P))
    d_x, d_h_0 = np.empty((1, *x.shape), "float32"), np.empty((1, batch, S), "float32")
    d_weights = [None if w is None else np.empty_like(w) for w in weights]
    arguments = (x, gates, states, d_output, None, d_x, d_h_0, d_weights)
    stops_in_the_middle(
        lambda: _engine.backward(packed, *arguments, None, None, None, threads), d_h_0
    )
    assert_all_same_bits(compute(), want)


def test_backward_that_is_given_up_is_done_all_the_same():
    """By the thread that made the call, which sleeps in its midst, so that the other gives up."""
    layer = elman.GRU(8, 300, seed=0)
    x = np.random.default_rng(0).normal(size=(8000, 2, 8)).astype("float32")
    output, h_n, vjp = layer.vjp(x)
    want = vjp(output, h_n)
    slept = []

    def sleep(*_):
        time.sleep(0.3)
        slept.append(True)

    elman.set_num_threads(2)
    _engine.always_wait(False)
    before = signal.signal(signal.SIGALRM, sleep)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    try:
        got = vjp(output, h_n)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert slept
    assert_all_same_bits(got, want)


def test_a_handler_that_does_not_raise_is_run_and_the_call_goes_on():
    want = compute()
    ran = []
    layer = elman.GRU(8, 128, seed=0)
    x = np.random.default_rng(0).normal(size=(10_000, 8, 8)).astype("float32")
    before = signal.signal(signal.SIGALRM, lambda *_: ran.append(compute()))
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    try:
        output, h_n = layer(x)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert_all_same_bits(ran[0], want)
    again, h_n_again = layer(x)
    assert_all_same_bits({"output": again, "h_n": h_n_again}, {"output": output, "h_n": h_n})


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_before_anything_is_computed(threads):
    elman.set_num_threads(threads)
    want = compute()
    layer = elman.GRU(20, 64, seed=0)
    x = np.ones((30, 40, 20), "float32")
    with pytest.raises(
        ValueError, match="lengths must lie between 0 and L = 30, got 31 for row 39"
    ):
        layer(x, lengths=[30] * 39 + [31])
    assert_all_same_bits(compute(), want)


@contextlib.contextmanager
def memory_limit(more):
    """This process gets no more than so many bytes beyond what it has."""
    import resource

    with open("/proc/self/statm") as statm:
        has = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + more, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def run_out_of_memory():
    elman.set_num_threads(3)
    want = compute()
    rng = np.random.default_rng(0)
    H, batch = 1024, 50_000
    arrays = [rng.normal(size=(3 * H, n)).astype("float32") for n in (4, H)]
    weights = engine.pack(spec.CELLS["gru"], [*arrays, None, None, None])
    x = np.ones((1, batch, 4), "float32")
    output, h_n = np.empty((1, batch, H), "float32"), np.empty((1, batch, H), "float32")
    little = np.empty((1, 1, H), "float32"), np.empty((1, 1, H), "float32")
    absent = [None] * 6

    for threads in (1, 3):
        with memory_limit(1 << 20), pytest.raises(MemoryError):  # not even to pack the weights
            _engine.forward(weights, x[:, :1], *little, *absent, threads)
    for threads in (1, 3):
        with memory_limit(64 << 20):
            _engine.forward(weights, x[:, :1], *little, *absent, threads)
            with pytest.raises(MemoryError):
                _engine.forward(weights, x, output, h_n, *absent, threads)
            assert_all_same_bits(compute(), want)
    _engine.forward(weights, x, output, h_n, *absent, 3)
    assert (output == little[0]).all()
    # The calls that failed have left the threads to those that come after.
    before = count_threads()
    elman.set_num_threads(8)
    assert_all_same_bits(compute(), want)
    assert count_threads() == before + 5


@only_linux
def test_out_of_memory():
    in_new_process(run_out_of_memory)


def test_sizes_beyond_any_memory():
    want = compute()
    layer = elman.GRU(1, 1, seed=0)
    one = np.float32(1)
    for shape in [(2**30, 2**30, 1), (1, 2**45, 1), (2**45, 1, 1)]:
        with pytest.raises((MemoryError, ValueError)):
            layer(np.broadcast_to(one, shape))
    # Even where output is to be had: the same few bytes again and again.
    weights = layer._packed[0]
    everywhere = np.lib.stride_tricks.as_strided(np.empty(1, "float32"), (1, 2**45, 1), (0, 0, 4))
    with pytest.raises(MemoryError):
        _engine.forward(weights, everywhere, everywhere, everywhere, *[None] * 6, 3)
    assert_all_same_bits(compute(), want)


def call_from_many_threads():
    want = compute()
    elman.set_num_threads(3)
    before = count_threads()
    callers = 4
    ready = threading.Barrier(callers)
    most, wrong = [], []

    def call():
        ready.wait()
        for _ in range(20):
            try:
                assert_all_same_bits(compute(), want)
            except AssertionError as error:
                wrong.append(error)
            most.append(count_threads())

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert max(most) <= before + callers + 2, "each caller has threads of its own"


@only_linux
def test_calls_at_once_share_the_threads():
    in_new_process(call_from_many_threads)


def run_in_subinterpreter(code, isolated):
    try:
        import _interpreters as interpreters  # 3.13

        sub, run = interpreters.create("isolated" if isolated else "legacy"), interpreters.exec
    except ImportError:
        import _xxsubinterpreters as interpreters

        sub, run = interpreters.create(isolated=isolated), interpreters.run_string
    failure = run(sub, code)
    assert failure is None, failure
    interpreters.destroy(sub)


REFUSED = """
try:
    import {}
except ImportError:
    pass
else:
    raise RuntimeError("imported")
"""


def import_in_subinterpreters():
    # The extension by itself, since NumPy refuses too, and may be first.
    sys.path.insert(0, os.path.dirname(_engine.__file__))
    for isolated in (True, False):  # with a lock of its own, from Python 3.12 on, or sharing one
        for module in ("_engine", "elman"):
            code = f"import sys; sys.path = {sys.path!r}" + REFUSED.format(module)
            run_in_subinterpreter(code, isolated)
    compute()


def test_a_subinterpreter_is_refused():
    in_new_process(import_in_subinterpreters)
