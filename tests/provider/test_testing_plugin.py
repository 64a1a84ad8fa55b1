"""gpu_provider.testing as its users use it: in a project's own tests, in a pytest of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest
from rsa_keys import private_key, private_pem

from gpu_provider import BatchingProvider, ConfigError, testing
from gpu_provider.testing import HeldBackend, fill_queue

pytest_plugins = ["pytester"]


def example_in_the_documentation() -> str:
    lines = (testing.__doc__ or "").partition("For example::")[2].partition("\nFixtures:")[0].splitlines()
    return "\n".join(line.removeprefix("    ") for line in lines)


def test_the_example_in_the_documentation_works_as_written(pytester: pytest.Pytester) -> None:
    numbers = private_key(2048).private_numbers()
    pytester.makepyfile(
        f"MY_KEY = {private_pem(private_key(2048))!r}\nD = {numbers.d}\nN = {numbers.public_numbers.n}\n"
        + example_in_the_documentation()
    )
    pytester.runpytest_subprocess("--strict-markers", "-p", "no:cacheprovider").assert_outcomes(passed=2)


def test_the_plugin_loads_nothing_heavy_until_it_is_used() -> None:
    """Every pytest in the environment imports it."""
    script = (
        "import sys, gpu_provider.testing\n"
        "heavy = {'numpy', 'cryptography', 'prometheus_client', 'msgspec', 'gpu_provider.native._core'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"


def test_a_batch_is_held_until_it_is_released(held_provider: BatchingProvider, held_backend: HeldBackend) -> None:
    key = held_provider.load_key(private_key(2048))
    future = held_provider.submit(key, 2)
    batch = held_backend.wait_for_batch()
    assert not future.done()
    held_backend.release(batch)
    assert future.result(timeout=10) == pow(2, private_key(2048).private_numbers().d, key.n)


def test_waiting_for_a_batch_ends(held_backend: HeldBackend) -> None:
    with pytest.raises(TimeoutError, match="no batch arrived"):
        held_backend.wait_for_batch(timeout=0.01)


def test_releasing_nothing_is_an_error(held_backend: HeldBackend) -> None:
    with pytest.raises(RuntimeError, match="no batch is held"):
        held_backend.release()


def test_holding_again(held_provider: BatchingProvider, held_backend: HeldBackend) -> None:
    key = held_provider.load_key(private_key(2048))
    held_backend.release_all()
    held_provider.private_op(key, 2)
    held_backend.wait_for_batch()
    held_backend.hold()
    future = held_provider.submit(key, 2)
    held_backend.wait_for_batch()
    assert not future.done()


@pytest.mark.gpu_provider(queue_depth=5)
def test_the_marker_sets_the_depth(held_provider: BatchingProvider) -> None:
    assert len(fill_queue(held_provider, held_provider.load_key(private_key(2048)))) == 5


def test_a_misspelt_setting_in_the_marker_is_named(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gpu_provider(queue_dept=5)
        def test_it(held_provider):
            pass
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [f"*{ConfigError.__name__}: 'queue_dept' is not a setting; did you mean 'queue_depth'?*"]
    )
