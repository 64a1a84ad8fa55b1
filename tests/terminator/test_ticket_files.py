"""Keys of session tickets from files: instances that share them resume each other's sessions, whoever rotates first."""

from __future__ import annotations

import base64
import os
import signal
import ssl
from typing import TYPE_CHECKING

import pytest
from resumption import connect, context_with
from terminator_process import Terminator, client_context, echo_terminator
from tls_peers import client_ssl_context

from gpu_provider import tls
from gpu_provider.errors import ConfigError
from gpu_provider.tls.terminator.ticket_files import read_ticket_keys

if TYPE_CHECKING:
    from pathlib import Path


def write(file: Path, *keys: bytes) -> Path:
    file.write_text("".join(base64.b64encode(key).decode() + "\n" for key in keys))
    return file


def encrypting(keys: tls.TicketKeys, candidates: list[bytes]) -> bytes:
    """Which of these encrypts the tickets."""
    client = client_ssl_context(version=ssl.TLSVersion.TLSv1_2)
    _, session = connect(context_with(keys), client)
    (found,) = (one for one in candidates if connect(context_with(tls.TicketKeys.given([one])), client, session)[0])
    return found


def decrypts(keys: tls.TicketKeys, key: bytes) -> bool:
    client = client_ssl_context(version=ssl.TLSVersion.TLSv1_2)
    _, session = connect(context_with(tls.TicketKeys.given([key])), client)
    return connect(context_with(keys), client, session)[0]


@pytest.mark.parametrize(("count", "current"), [(1, 0), (2, 0), (3, 1), (5, 3)])
def test_last_but_one_of_the_lines_encrypts(tmp_path: Path, count: int, current: int) -> None:
    """As HAProxy reads them: the last one is what an instance that was reloaded earlier may encrypt with."""
    all_keys = [os.urandom(80) for _ in range(count)]
    keys = read_ticket_keys([write(tmp_path / "tickets", *all_keys)])
    assert encrypting(keys, all_keys) == all_keys[current]
    assert [decrypts(keys, key) for key in all_keys] == [False] * (count - 3) + [True] * min(count, 3)


def test_first_of_several_files_encrypts(tmp_path: Path) -> None:
    """As nginx reads them: raw, and of two sizes."""
    present, former = os.urandom(48), os.urandom(80)
    files = [tmp_path / "present", tmp_path / "former"]
    for file, key in zip(files, (present, former), strict=True):
        file.write_bytes(key)
    keys = read_ticket_keys(files)
    assert encrypting(keys, [present, former]) == present
    assert decrypts(keys, former)


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ([b""], "not 0"),
        ([b"secret"], "not 6 bytes"),
        ([bytes(80), b"\n"], "each of several files must have one key"),
        ([bytes(80)] * 4, "not 4"),
        ([None], "No such file"),
    ],
)
def test_files_without_a_key_are_refused_and_their_contents_not_shown(
    tmp_path: Path, contents: list[bytes | None], words: str
) -> None:
    paths = [tmp_path / f"tickets{number}" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        if content is not None:
            path.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        read_ticket_keys(paths)
    assert words in str(refused.value)
    assert f"ticket_keys = {str(paths[0])!r}" in str(refused.value)
    assert "secret" not in str(refused.value)


def resume(terminator: Terminator, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSession:
    """Resumes a session, if one is given, and returns the one to resume next."""
    with context.wrap_socket(terminator.dial(), server_hostname="localhost", session=session) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        assert client.session_reused == (session is not None)
        assert client.session is not None
        return client.session


def test_instances_that_share_a_file_resume_each_others_sessions_while_it_changes(tmp_path: Path) -> None:
    context, keys = client_context(), [os.urandom(80) for _ in range(4)]
    file = write(tmp_path / "tickets", *keys[:3])
    flags = ["--ticket-keys", str(file)]
    with echo_terminator(tmp_path, *flags) as one, echo_terminator(tmp_path, "--workers", "2", *flags) as other:
        session = resume(one, context)
        session = resume(other, context, session)
        write(file, *keys)
        one.process.send_signal(signal.SIGHUP)
        one.wait_for("certificates reloaded")
        session = resume(one, context, session)
        session = resume(other, context, session)  # its key is the last one there
        resume(one, context, session)
