"""A process that forks while its other threads work: the child has none of them."""

import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
from conftest import open_backend
from tiny_model import make_tiny_encoder

from boostr import backends
from boostr.backends.numpy.runtime import jit, slabs
from boostr.engine.load import load_module
from boostr.engine.runner import Runner
from boostr.engine.text_passes import TextPasses

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def in_child(works):
    """Whether it works there, within a minute."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if works() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_texts_are_embedded_whoever_had_the_turn(tmp_path):
    backend = open_backend("numpy")
    module: Any = load_module(make_tiny_encoder(tmp_path / "bert"), backend=backend)
    passes = TextPasses(Runner(module, backend), [module])

    def embedded():
        ((_, values),) = passes.over([[5, 6, 7]], module.last_hidden_state)
        return values

    truth = embedded()
    with passes._turn:  # another thread's
        assert in_child(lambda: np.array_equal(embedded(), truth))


def test_backends_are_opened_whoever_was_opening_one():
    held, done = threading.Event(), threading.Event()

    def hold():
        with backends._opening:
            held.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    assert in_child(lambda: backends._opening.acquire(timeout=5))
    done.set()
    holder.join()


@pytest.mark.parametrize("module", [jit, slabs])
def test_locks_of_the_process_are_free(module):
    """A fork waits until who holds one is done with what it guards."""
    held = threading.Event()

    def hold():
        with module._lock:
            held.set()
            time.sleep(0.1)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    assert in_child(lambda: module._lock.acquire(timeout=30))
    holder.join()
