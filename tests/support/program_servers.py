"""HAProxy and nginx as Debian has them, serving a small answer over TLS with the provider module."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from groups import TIMEOUT, Server, find_program, wait_until
from ports import unused_port

if TYPE_CHECKING:
    from groups import Directory

_HAPROXY = """\
global
    maxconn 1000
    ssl-mode-async
    {settings}
defaults
    mode http
    timeout client 30s
frontend tls
    bind 127.0.0.1:{port} ssl {certificates}
    http-request return status 200 content-type text/plain string hello
"""


class HAProxy(Server):
    def __init__(
        self, directory: Directory, *flags: str, settings: str = "nbthread 2", bits: tuple[int, ...] = (2048,)
    ) -> None:
        port = unused_port()
        certificates = " ".join(f"crt {directory.certificate(size)}" for size in bits)
        text = _HAPROXY.format(port=port, settings=settings, certificates=certificates)
        configuration = str(directory.write("haproxy.cfg", text))
        super().__init__([find_program("haproxy"), *(flags or ["-db"]), "-f", configuration], directory, port)

    def __exit__(self, *exception: object) -> None:
        """It ends itself with SIGSEGV when it finds itself in a state that can't be: never here."""
        assert "bug condition" not in self.output, self.output
        super().__exit__(*exception)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def workers(self) -> list[str]:
        """Of a master."""
        return Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()

    def reload(self) -> None:
        """Once more if need be: the master may overlook a signal while it executes itself again."""
        former = self.workers()[-1:]
        for _ in range(TIMEOUT):
            self.process.send_signal(signal.SIGUSR2)
            with contextlib.suppress(TimeoutError):
                return wait_until(lambda: self.workers()[-1:] not in ([], former), "", 1)
        pytest.fail(f"HAProxy does not load again: {self.output}")

    def resident_kib(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") // 1024


def nginx(directory: Directory, workers: int = 1) -> Server:
    """Each worker has a listening socket of its own, so that the kernel spreads connections over all of them."""
    port = unused_port()
    user = "user nobody nogroup;" if os.geteuid() == 0 else ""
    configuration = directory.write(
        "nginx.conf",
        f"""
        daemon off;
        worker_processes {workers};
        {user}
        pid nginx.pid;
        error_log stderr;
        events {{ }}
        http {{
            access_log off;
            client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
            uwsgi_temp_path uwsgi; scgi_temp_path scgi;
            server {{
                listen 127.0.0.1:{port} ssl reuseport;
                ssl_protocols TLSv1.2 TLSv1.3;
                ssl_certificate {directory.certificate(2048)};
                ssl_certificate_key {directory.certificate(2048)};
                return 200 hello;
            }}
        }}
        """,
    )
    command = [find_program("nginx"), "-p", f"{directory.path}/", "-e", "stderr", "-c", str(configuration)]
    return Server(command, directory, port)
