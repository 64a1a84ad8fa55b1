"""A directory of certificates: whatever is put there is served after a reload, or the former ones stay."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from terminator_process import (
    Terminator,
    Upstream,
    client_context,
    credentials,
    echo,
)

from gpu_provider.errors import ConfigError
from gpu_provider.settings import load_config
from gpu_provider.tls.terminator.config import TerminatorConfig
from gpu_provider.tls.terminator.serve import check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOT_RELOADED = "certificates not reloaded, the old ones stay in use"
RELOADED = "certificates reloaded"
RELOADS = "gpu_provider_terminator_reloads_total"


def put(directory: Path, name: str, server_name: str, *, key: str | None = None, kind: str = "RSA") -> None:
    """``key``: the name of the private key's own file."""
    chain, private_key = credentials(server_name, kind=kind)
    directory.mkdir(exist_ok=True)
    if key is None:
        (directory / name).write_bytes(private_key + chain)
    else:
        (directory / name).write_bytes(chain)
        (directory / key).write_bytes(private_key)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "certificates"


@pytest.fixture
def upstream() -> Iterator[str]:
    with Upstream(echo) as running:
        yield running.address


def serves(terminator: Terminator, name: str) -> bool:
    try:
        return terminator.echo(name=name) == b"are you there?"
    except ssl.SSLCertVerificationError:  # the first one's
        return False


def test_files_are_found_in_every_usual_form(directory: Path, upstream: str) -> None:
    put(directory, "a.pem", "one.example")
    put(directory, "b.pem", "two.example", key="b.key")
    put(directory, "c.crt", "three.example", key="c.crt.key")
    put(directory, "d.pem.ecdsa", "two.example", kind="ECDSA")
    put(directory, ".hidden.pem", "hidden.example")
    put(directory / "..data", "e.pem", "within.example")
    (directory / "a.pem.ocsp").write_bytes(b"response")
    with Terminator("--cert-dir", str(directory), upstream=upstream) as terminator:
        found = [Path(event["file"]).name for event in terminator.events if event["event"] == "certificate"]
        assert found == ["a.pem", "b.pem", "c.crt", "d.pem.ecdsa"]
        for name in ("one.example", "two.example", "three.example"):
            assert serves(terminator, name)
        only_ecdsa = client_context(ssl.TLSVersion.TLSv1_2)
        only_ecdsa.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
        assert terminator.echo(context=only_ecdsa, name="two.example")
        assert not serves(terminator, "hidden.example")


def test_reload_finds_new_files_and_forgets_removed_ones(directory: Path, upstream: str) -> None:
    put(directory, "a.pem", "one.example")
    put(directory, "b.pem", "two.example")
    with Terminator("--cert-dir", str(directory), "--workers", "2", upstream=upstream) as terminator:
        put(directory, "c.pem", "three.example")
        (directory / "b.pem").unlink()
        terminator.process.send_signal(signal.SIGHUP)
        terminator.wait_for(RELOADED, 2)
        assert [serves(terminator, f"{name}.example") for name in ("one", "two", "three")] == [True, False, True]


def without_its_key(directory: Path) -> None:
    (directory / "b.pem").write_bytes(credentials("two.example")[0])


def with_something_else(directory: Path) -> None:
    (directory / "README").write_text("not a certificate")


def with_a_dangling_link(directory: Path) -> None:
    (directory / "b.pem").symlink_to("nowhere")


def with_a_name_that_is_too_long_for_a_key(directory: Path) -> None:
    put(directory, "x" * 253, "two.example")


def without_itself(directory: Path) -> None:
    shutil.rmtree(directory)


def as_a_file(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.touch()


def without_files(directory: Path) -> None:
    (directory / "a.pem").unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without_its_key, ["b.pem", "no private key", "beside it, as b.pem.key"]),
        (with_something_else, ["README", "no PEM certificate"]),
        (with_a_dangling_link, ["b.pem", "No such file"]),
        (with_a_name_that_is_too_long_for_a_key, ["File name too long"]),
        (without_itself, ["cert_dir", "No such file"]),
        (as_a_file, ["cert_dir", "Not a directory"]),
        (without_files, ["cert_dir", "has no certificate"]),
    ],
)
def test_directory_that_can_not_be_used_is_refused_in_one_line(
    directory: Path, spoil: Callable[[Path], None], words: list[str]
) -> None:
    put(directory, "a.pem", "one.example")
    spoil(directory)
    config = load_config(
        TerminatorConfig, overrides={"listen": ":0", "upstream": "127.0.0.1:1", "cert_dir": str(directory)}
    )
    with pytest.raises(ConfigError) as refused:
        check(config)
    line = str(refused.value)
    assert "\n" not in line
    for word in words:
        assert word in line


def test_failed_reload_is_counted_and_the_former_ones_stay(directory: Path, upstream: str) -> None:
    put(directory, "a.pem", "one.example")
    with Terminator("--cert-dir", str(directory), upstream=upstream) as terminator:
        for number, spoil in enumerate((with_a_name_that_is_too_long_for_a_key, without_itself), start=1):
            spoil(directory)
            terminator.process.send_signal(signal.SIGHUP)
            terminator.wait_for(NOT_RELOADED, number)
            assert terminator.metric(RELOADS, result="failed") == number
            assert serves(terminator, "one.example")
        put(directory, "a.pem", "two.example")
        terminator.process.send_signal(signal.SIGHUP)
        terminator.wait_for(RELOADED)
        assert serves(terminator, "two.example")


def test_changed_files_are_noticed(directory: Path, upstream: str) -> None:
    new = directory.with_name("new")
    put(directory, "a.pem", "one.example")
    with Terminator("--cert-dir", str(directory), "--watch", "0.05", upstream=upstream) as terminator:
        put(new, "b.pem", "two.example")
        os.replace(new / "b.pem", directory / "b.pem")
        terminator.wait_for(RELOADED)
        assert serves(terminator, "two.example")
        (new / "b.pem").write_text("half a file")
        os.replace(new / "b.pem", directory / "b.pem")
        terminator.wait_for(NOT_RELOADED)
        put(new, "b.pem", "three.example")
        os.replace(new / "b.pem", directory / "b.pem")
        terminator.wait_for(RELOADED, 2)
        assert serves(terminator, "three.example")
        assert terminator.metric(RELOADS, result="failed") == 1
        assert terminator.metric(RELOADS, result="ok") == 2, "it reloads what has not changed"
