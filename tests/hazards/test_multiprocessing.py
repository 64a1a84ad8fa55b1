"""Hazard: a program starts other processes, by any of multiprocessing's methods, and each makes a provider of its own.
Whoever hands one its parent's is told what to do, and all of them end."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

_PROGRAM = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from gpu_provider import BatchingProvider, Key, ProviderConfig

def begin(der: bytes) -> None:
    global provider, key
    provider = BatchingProvider(ProviderConfig(threads=1))
    provider.start()
    key = provider.load_key(der)

def compute(x: int) -> int:
    return provider.private_op(key, x)

def use(key: Key) -> None:
    print("used")

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    der = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    begin(der)
    with ProcessPoolExecutor(2, context, begin, (der,)) as pool:
        results = list(pool.map(compute, range(20)))
        assert [pow(result, key.e, key.n) for result in results] == list(range(20))
        try:
            pool.submit(use, key).result()
        except TypeError as error:
            print(error)
    assert results[7] == compute(7)
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_the_processes_of_a_pool_compute_and_end(tmp_path: Path, method: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM)
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", program, method],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout == ("a Key can't be pickled: load it in the other process, with a provider of its own\n")
