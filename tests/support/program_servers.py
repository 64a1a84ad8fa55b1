"""Servers as Debian has them, which give a small answer over TLS with the provider module."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from groups import TIMEOUT, Server, find_program, wait_until
from ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Sequence

    from groups import Client, Directory

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


def apache(directory: Directory, bits: int) -> Server:
    """Its event MPM, with 25 threads in one process. It answers 404."""
    program = find_program("apache2")
    modules = "/usr/lib/apache2/modules"
    port = unused_port()
    user = "User nobody\nGroup nogroup\n" if os.geteuid() == 0 else ""
    configuration = directory.write(
        "apache.conf",
        f"""
        ServerRoot {directory.path}
        DefaultRuntimeDir {directory.path}
        PidFile {directory.path}/apache.pid
        ErrorLog {directory.path}/apache.log
        ServerName localhost
        {user}
        LoadModule mpm_event_module {modules}/mod_mpm_event.so
        LoadModule authz_core_module {modules}/mod_authz_core.so
        LoadModule ssl_module {modules}/mod_ssl.so
        ServerLimit 1
        StartServers 1
        ThreadsPerChild 25
        MaxRequestWorkers 25
        Listen 127.0.0.1:{port}
        SSLEngine on
        SSLCertificateFile {directory.certificate(bits)}
        """,
    )
    return Server([program, "-f", str(configuration), "-DFOREGROUND"], directory, port)


def postgres(directory: Directory) -> Server:
    """Serves each connection by a process. It may not be root."""
    binaries = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")))
    program, initdb = find_program("postgres", *binaries), find_program("initdb", *binaries)
    port, data, file = unused_port(), directory.path / "data", directory.certificate(2048)
    data.mkdir(mode=0o700)
    if os.geteuid() == 0:
        shutil.chown(data, "nobody")
        shutil.chown(file, "nobody")
    prepare = [initdb, "-D", str(data), "-U", "nobody", "-A", "trust", "--no-sync", "--no-locale", "--encoding=UTF8"]
    subprocess.run(_as_nobody(prepare), check=True, cwd=directory.path, stdout=subprocess.DEVNULL, timeout=50)
    settings = {
        "port": port,
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "fsync": "off",
        "ssl": "on",
        "ssl_cert_file": file,
        "ssl_key_file": file,
    }
    options = [f"--{name}={value}" for name, value in settings.items()]
    return Server(_as_nobody([program, "-D", str(data), *options]), directory, port)


def _as_nobody(command: Sequence[str]) -> list[str]:
    if os.geteuid() != 0:
        return list(command)
    return [find_program("setpriv"), "--reuid=nobody", "--regid=nogroup", "--clear-groups", *command]


def connect_to_postgres(client: Client, port: int) -> bytes:
    """The kind of the first message from the server to a user, by its protocol."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as plain:
        plain.sendall(struct.pack("!II", 8, 80877103))
        assert plain.recv(1) == b"S"
        with client.secure(plain) as connection:
            startup = struct.pack("!I", 3 << 16) + b"user\0nobody\0database\0postgres\0\0"
            connection.sendall(struct.pack("!I", len(startup) + 4) + startup)
            return connection.recv(1)
