"""Who may use the service: users and groups as the kernel knows them, not as a program claims."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import structlog
from groups import TIMEOUT, Client, get_many, public_directory
from program_servers import HAProxy
from service_process import HELLO, Service
from terminator_process import run_command

from gpu_provider.observe.repeated import RepeatedWarnings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from groups import Directory

NOBODY = pwd.getpwnam("nobody")
REFUSED = "program refused"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start programs as other users")

PROGRAM = """
import os, socket, sys
user, group, *more_groups = map(int, sys.argv[3:])
if os.geteuid() == 0:
    os.setgroups(more_groups)
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
    connection.connect(sys.argv[1])
    try:
        connection.send(bytes.fromhex(sys.argv[2]))
        print("admitted" if connection.recv(100) else "refused")
    except ConnectionError:
        print("refused")
"""


@pytest.fixture
def directory() -> Iterator[Directory]:
    with public_directory("service = {path}/socket") as directory:
        yield directory


def attempt(directory: Directory, user: int, group: int, *more_groups: int) -> str:
    """As the module begins, in a process of this user and groups."""
    who = map(str, (user, group, *more_groups))
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(directory.path / "socket"), HELLO.hex(), *who],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    return run.stdout.strip()


@as_root
@pytest.mark.parametrize(
    ("flags", "admitted"),
    [
        ([], ["root", "user", "group", "member"]),
        (["--allow-users", "nobody"], ["user"]),
        (["--allow-users", str(NOBODY.pw_uid)], ["user"]),
        (["--allow-users", "nobody", "--allow-users", "root"], ["root", "user"]),
        (["--allow-groups", "www-data"], ["group", "member"]),
        (["--allow-groups", str(grp.getgrnam("www-data").gr_gid)], ["group", "member"]),
        (["--allow-users", "nobody", "--allow-groups", "www-data"], ["user", "group", "member"]),
    ],
)
def test_programs_of_these_users_and_groups_are_admitted_and_no_others(directory, flags, admitted):
    www, other, nogroup = grp.getgrnam("www-data").gr_gid, 54321, NOBODY.pw_gid
    programs = {
        "root": (0, 0),
        "user": (NOBODY.pw_uid, nogroup),
        "group": (other, www),
        "member": (other, nogroup, other, www),
        "nobody else": (other, nogroup, other),
    }
    with Service(directory.path / "socket", *flags):
        answers = {name: attempt(directory, *who) for name, who in programs.items()}
    assert [name for name, answer in answers.items() if answer == "admitted"] == admitted + ["nobody else"] * (
        not flags
    )


def test_a_program_that_is_refused_computes_by_itself_and_is_logged_once(directory):
    with Service(directory.path / "socket", "--allow-users", "54321") as service:
        with HAProxy(directory) as server:
            assert get_many(server.port, [Client()] * 20) == {b"HTTP/1.1 200 OK": 20}
        refused = service.wait_for(REFUSED)
        assert (refused["uid"], refused["pid"]) == (os.geteuid(), server.process.pid)
        assert "allow_users" in refused["reason"]
        for _ in range(100):
            assert attempt(directory, os.geteuid(), os.getegid()) == "refused"
        assert service.metric("gpu_provider_service_refused_total", reason="not_allowed") > 100
        service.stop()
        assert len([event for event in service.events if event["event"] == REFUSED]) <= 2
    assert (directory.counts().operations, directory.counts().served) == (20, 0)


@as_root
def test_a_group_needs_no_mode_0666(directory):
    www = grp.getgrnam("www-data").gr_gid
    with Service(directory.path / "socket", "--socket-group", "www-data", mode="0660"):
        status = (directory.path / "socket").stat()
        assert (status.st_gid, stat.S_IMODE(status.st_mode)) == (www, 0o660)
        assert attempt(directory, NOBODY.pw_uid, www) == "admitted"
        with pytest.raises(subprocess.CalledProcessError) as failure:
            attempt(directory, NOBODY.pw_uid, NOBODY.pw_gid)
        assert "Permission denied" in failure.value.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--allow-users", "no-such-user"], "allow_users: there is no user 'no-such-user' here"),
        (["--allow-groups", "no-such-group"], "allow_groups: there is no group 'no-such-group' here"),
        (["--socket-group", "no-such-group"], "socket_group: there is no group 'no-such-group' here"),
        (["--allow-users", "4294967295"], "allow_users: there is no user '4294967295' here"),
    ],
)
def test_an_unknown_name_ends_it_with_one_line(tmp_path, flags, words):
    run = run_command("service", "--admin", "off", "--socket", str(tmp_path / "socket"), *flags)
    assert run.returncode == 2
    assert words in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "socket").exists()


def test_what_is_repeated_is_logged_every_ten_seconds_with_how_often_it_came():
    now = 1000.0
    warnings = RepeatedWarnings(lambda: now)
    with structlog.testing.capture_logs() as lines:
        for _ in range(100):
            warnings.warn(REFUSED, reason="too many", uid=7, pid=1)
            now += 0.5
        warnings.warn(REFUSED, reason="too many", uid=8, pid=2)
    assert [line["times"] for line in lines] == [1, 20, 20, 20, 20, 1]
    assert [line["uid"] for line in lines] == [7, 7, 7, 7, 7, 8]
