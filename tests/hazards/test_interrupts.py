"""Hazard: Ctrl-C, or another signal handler that raises, at any moment of a call. Neither close(), nor another thread's
call, nor the interpreter's exit waits for what the call has left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from paths import SUPPORT

if TYPE_CHECKING:
    from gpu_provider import BatchingProvider
    from gpu_provider.testing import HeldBackend

# Does something, such as raising, before the n-th bytecode of what is called, for every n; Python runs signal handlers
# between bytecodes.
_INTERRUPT = """
import itertools, signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from rsa_keys import private_key
from gpu_provider import BatchingProvider, ProviderClosedError, ProviderConfig

M = (1 << 127) - 1

def interrupt():
    raise KeyboardInterrupt

def interrupted(number, call, handler=interrupt):
    count = 0
    def trace(frame, event, _):
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        if count == number:
            sys.settrace(None)
            handler()
        return trace
    sys.settrace(trace)
    try:
        call()
    except (KeyboardInterrupt, ProviderClosedError, TimeoutError):
        pass
    except RuntimeError as error:  # of a Condition that was interrupted
        assert "un-acquired lock" in str(error)
    finally:
        sys.settrace(None)
    return count >= number

def works(provider):
    with ThreadPoolExecutor(1) as pool:
        key = provider.load_key(private_key(2048))
        assert pow(pool.submit(provider.private_op, key, 3).result(timeout=20), key.e, key.n) == 3
        assert pool.submit(provider.modexp, 3, 5, M).result(timeout=20) == 243
"""

_AT_EVERY_BYTECODE = """
with BatchingProvider() as provider:
    key = provider.load_key(private_key(2048))
    array = np.arange(4, dtype=np.uint64).reshape(2, 2)
    {call}  # what is imported at first use
    for number in itertools.count(1, {step}):
        if not interrupted(number, lambda: {call}):
            break
    works(provider)
print("ended after", number)
"""

_CLOSE_AT_EVERY_BYTECODE = """
for number in itertools.count({first}, 8):
    provider = BatchingProvider(ProviderConfig(threads=1))
    provider.start()
    future = provider.submit(provider.load_key(private_key(2048)), 1)
    again = interrupted(number, lambda: provider.{call})
    provider.close()
    assert future.result(timeout=0) == 1
    if not again:
        break
print("ended after", number)
"""


_FUTURE_AT_EVERY_BYTECODE = """
from gpu_provider.testing import HeldBackend
backend = HeldBackend()
with BatchingProvider(ProviderConfig(backend_timeout=50), backends=[backend]) as provider:
    key = provider.load_key(private_key(2048))
    try:
        for number in itertools.count(1):
            future = provider.submit(key, 1)
            if not interrupted(number, lambda: future.{call}):
                break
    finally:
        backend.release_all()
print("ended after", number)
"""

_HANDLER_CLOSES = """
for number in itertools.count(1, {step}):
    provider = BatchingProvider(ProviderConfig(threads=1))
    provider.start()
    key = {key}
    again = interrupted(number, lambda: {call}, provider.close)
    provider.close()
    if not again:
        break
print("ended after", number)
"""


def run(script: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", f"import numpy as np\n{_INTERRUPT}\n{script}"],
        env={**os.environ, "PYTHONPATH": str(SUPPORT)},
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    ("call", "step"),
    [
        ("provider.private_op(key, 2)", 1),
        ("provider.modexp(3, 5, M)", 1),
        ("provider.private_op(key, array)", 2),
        ("provider.sign_many(key, [b''], PKCS1v15(), SHA256())", 9),
        ("key.decrypt(bytes(256), PKCS1v15())", 9),
    ],
)
def test_a_call_at_every_bytecode(call: str, step: int) -> None:
    assert "ended" in run(_AT_EVERY_BYTECODE.format(call=call, step=step))


@pytest.mark.parametrize("call", ["done()", "cancel()", "add_done_callback(print)", "exception(timeout=0)"])
def test_a_futures_method_at_every_bytecode(call: str) -> None:
    """Its lock may stay taken then."""
    assert "ended" in run(_FUTURE_AT_EVERY_BYTECODE.format(call=call))


@pytest.mark.parametrize(
    ("call", "step"),
    [
        ("provider.private_op(key, 2)", 23),
        ("provider.submit(key, 2).result()", 23),
        ("provider.modexp(3, 5, M)", 23),
        ("provider.library_context", 7),
        ("provider.close()", 3),
    ],
)
def test_a_signal_handler_closes_the_provider_at_any_bytecode(call: str, step: int) -> None:
    key = "provider.load_key(private_key(2048))" if "key" in call else None
    assert "ended" in run(_HANDLER_CLOSES.format(call=call, key=key, step=step))


@pytest.mark.parametrize(("call", "first"), [("close()", 1), ("__exit__(None, None, None)", 3)])
def test_close_at_every_bytecode(call: str, first: int) -> None:
    assert "ended" in run(_CLOSE_AT_EVERY_BYTECODE.format(call=call, first=first))


_LONG_CALL = """
import asyncio
def alarm(*_): raise KeyboardInterrupt
signal.signal(signal.SIGALRM, alarm)
P = (1 << 4096) - 1
def long(provider): return provider.modexp([3] * 100000, P - 2, P)  # minutes
def since(start): return time.monotonic() - start
"""


@pytest.mark.parametrize(
    "script",
    [
        # Ctrl-C
        """
        try:
            with BatchingProvider() as provider:
                signal.setitimer(signal.ITIMER_REAL, 0.5)
                long(provider)
        except KeyboardInterrupt:
            pass
        """,
        """
        async def main(provider):
            await asyncio.wait_for(provider.modexp_async([3] * 1000, P - 2, P), 0.5)
        with BatchingProvider() as provider:
            try:
                asyncio.run(main(provider))
            except TimeoutError:
                pass
        """,
        # The thread goes on, because nobody can tell it that nobody waits for it; close() ends it.
        """
        async def main():
            with BatchingProvider() as provider:
                await asyncio.wait_for(asyncio.to_thread(long, provider), 0.5)
        try:
            asyncio.run(main())
        except TimeoutError:
            pass
        """,
        """
        provider = BatchingProvider()
        provider.start()
        threading.Thread(target=long, args=[provider], daemon=True).start()
        """,
    ],
)
def test_nothing_is_computed_that_nobody_waits_for(script: str) -> None:
    assert run(_LONG_CALL + textwrap.dedent(script) + "\nprint('ended')") == "ended\n"


def test_other_calls_go_on_after_one_is_interrupted() -> None:
    script = """
with BatchingProvider(ProviderConfig(threads=1)) as provider:
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        long(provider)
    except KeyboardInterrupt:
        pass
    works(provider)
    assert provider.stats().by_backend["cpu"] < 1000
"""
    run(_LONG_CALL + script)


def test_a_call_that_is_not_done_when_the_provider_is_closed_is_told() -> None:
    script = """
with ThreadPoolExecutor(1) as pool:
    provider = BatchingProvider()
    provider.start()
    call = pool.submit(long, provider)
    while not provider.stats().by_backend:
        time.sleep(0.01)
    provider.close()
    assert "closed before the call could be completed" in str(call.exception(timeout=20))
"""
    run(_LONG_CALL + script)


def test_a_call_that_is_being_computed_when_the_provider_is_closed_has_its_result(
    held_provider: BatchingProvider, held_backend: HeldBackend
) -> None:
    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(held_provider.modexp, [3, 4], 5, 7)
        held_backend.wait_for_batch()
        closing = pool.submit(held_provider.close)
        held_backend.release_all()
        closing.result(timeout=30)
        assert call.result(timeout=30) == [5, 2]
