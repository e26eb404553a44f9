"""A process that has used the engine may fork or spawn others, which give the same bits."""

import multiprocessing
import os
import subprocess
import sys
import sysconfig
import threading

import numpy as np
import pytest
from reference import assert_all_same_bits, each, named

import elman

LIMIT = 60  # seconds; a child that hangs would wait for ever


def compute():
    """Calls that are large enough to use several threads."""
    elman.set_num_threads(3)
    x = np.random.default_rng(0).normal(size=(30, 40, 20)).astype("float32")
    results = {}
    for layer in (
        elman.GRU(20, 64, bidirectional=True, seed=0),
        elman.LSTM(20, 64, bidirectional=True, proj_size=40, seed=0),
    ):
        output, final, vjp = layer.vjp(x)
        of_layer = {
            "output": output,
            **named(final, "n"),
            **vjp(np.cos(output), each(np.sin, final)),
        }
        results |= {f"{layer}: {name}": a for name, a in of_layer.items()}
    return results


def send(connection):
    connection.send(compute())
    connection.close()


def in_child(method):
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=send, args=(sender,))
    child.start()
    sender.close()
    try:
        assert receiver.poll(LIMIT), "the child hangs"
        result = receiver.recv()
        child.join(LIMIT)
        assert child.exitcode == 0
    finally:
        child.kill()
        child.join()
    return result


# Newer Pythons warn that a child of a process with threads may deadlock; here it must not.
forking = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
no_fork = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere the system's own libraries do not survive a fork"
)


@forking
@pytest.mark.parametrize("method", [pytest.param("fork", marks=no_fork), "spawn"])
def test_a_child_gives_the_same_bits(method):
    want = compute()
    for _ in range(2):
        assert_all_same_bits(in_child(method), want)
    assert_all_same_bits(compute(), want)


@forking
@no_fork
def test_a_fork_while_another_thread_is_in_the_engine():
    want = compute()
    stop = threading.Event()

    def keep_busy():
        layer = elman.GRU(20, 64, seed=0)
        while not stop.is_set():
            layer(np.ones((30, 40, 20), "float32"))

    thread = threading.Thread(target=keep_busy)
    thread.start()
    try:
        for _ in range(10):
            assert_all_same_bits(in_child("fork"), want)
    finally:
        stop.set()
        thread.join()


@forking
@no_fork
def test_a_fork_of_a_fork():
    compute()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child():
        compute()
        sender.send(in_child("fork"))

    process = context.Process(target=child)
    process.start()
    try:
        assert receiver.poll(LIMIT), "the child hangs"
        assert_all_same_bits(receiver.recv(), compute())
        process.join(LIMIT)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has its lock always"
)
def test_a_free_threaded_python_stays_so():
    code = "import elman, sys; assert not sys._is_gil_enabled()"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHON_GIL"}
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env=environment)
