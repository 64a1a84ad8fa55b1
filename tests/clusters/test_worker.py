"""What each worker opens: keys that it loads itself and that never travel, and its share of the machine's threads."""

from __future__ import annotations

import importlib
import pickle
import sys
from typing import TYPE_CHECKING

import pytest
from rsa_keys import private_key

from gpu_provider import InputError, KeyLoadError, ProviderConfig
from gpu_provider.clusters.worker import Worker, check_keys

if TYPE_CHECKING:
    from pathlib import Path


def test_keys_come_from_files_and_from_functions(pem: Path) -> None:
    worker = Worker({"file": pem, "fetched": pem.read_bytes, "made": lambda: private_key(2048)}, None, 1)
    try:
        private = private_key(2048).private_numbers()
        powers = worker.run(lambda _, keys, x: [keys[name].provider.private_op(keys[name], x) for name in keys], 2)
        assert powers == [pow(2, private.d, private.public_numbers.n)] * 3
        with pytest.raises(TypeError, match="stay in its process"):
            pickle.dumps(worker)
    finally:
        worker.close()


@pytest.mark.parametrize(
    ("variable", "config", "threads"),
    [(None, None, 3), ("2", None, 2), ("2", ProviderConfig(), 3), (None, ProviderConfig(threads=1), 1)],
)
def test_a_worker_uses_its_share_of_threads_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, config: ProviderConfig | None, threads: int
) -> None:
    monkeypatch.delenv("GPU_PROVIDER_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("GPU_PROVIDER_THREADS", variable)
    worker = Worker({}, config, 3)
    worker.close()
    assert worker.provider.config.threads == threads


def test_a_key_that_a_worker_lacks_is_named_with_its_machine(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    with pytest.raises(KeyLoadError, match=r"^key 'signing' can't be read on \S+: .*/none\.pem'; each worker loads"):
        Worker({"signing": tmp_path / "none.pem"}, None, 1)
    with pytest.raises(KeyLoadError, match=r"^key 'signing' on \S+: "):
        Worker({"signing": tmp_path / "empty.pem"}, None, 1)


def test_a_key_itself_is_not_sent(pem: Path) -> None:
    for key in (pem.read_bytes(), pem.read_text(), private_key(2048)):
        with pytest.raises(InputError, match=r"key 'signing' is given as \w+, but keys are not sent") as caught:
            check_keys({"signing": key})
        assert "PRIVATE" not in str(caught.value)


@pytest.mark.parametrize(("engine", "module"), [("dask", "distributed"), ("ray", "ray")])
def test_without_the_engine_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, engine: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"gpu_provider.clusters.{engine}", raising=False)
    with pytest.raises(ImportError, match=rf"pip install 'gpu-provider\[{engine}\]'"):
        importlib.import_module(f"gpu_provider.clusters.{engine}")
