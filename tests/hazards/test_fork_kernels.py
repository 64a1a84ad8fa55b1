"""Hazard: the program forks while a thread is inside the kernels. The child may free its keys, and use new ones."""

from __future__ import annotations

import gc
import os
import signal
import threading

import pytest
from kernel_oracle import Numbers, private_op

from gpu_provider import kernels


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_child_forked_in_the_middle_of_a_call_frees_keys_and_uses_new_ones() -> None:
    numbers, isa = Numbers.of(2048), kernels.isa()
    key, stop = numbers.load(), threading.Event()
    calls = [key] * 5

    def work() -> None:
        while not stop.is_set():
            private_op(calls, list(range(5)), 256, isa)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        statuses = []
        for _ in range(20):
            child = os.fork()
            if child == 0:
                signal.alarm(30)
                calls.clear()
                del key
                gc.collect()
                right = private_op([numbers.load()], [7], 256, isa) == ([numbers.private(7)], [1])
                os._exit(0 if right else 1)
            statuses.append(os.waitpid(child, 0)[1])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert statuses == [0] * 20
    assert private_op([key], [7], 256, isa) == ([numbers.private(7)], [1])
