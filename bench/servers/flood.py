"""The terminator under ten times the handshakes that it can compute: how many it still serves, and how fast."""

import errno
import os
import select
import socket
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from ..harness import Bench, BenchError
from ..report import Result, Target

CLIENTS_AT_BEST = 64
TIMES = 10
PATIENCE = 5.0  # seconds after which a client of the flood gives up
PROGRAM = ("-m", "gpu_provider.commands.cli")


@dataclass
class Flood:
    offered: int = 0
    latencies: list[float] = field(default_factory=list)  # of those that were served, in seconds
    failures: Counter[str] = field(default_factory=Counter)


class Client:
    """One handshake, over a socket that does not block. It is done when the client's last bytes are sent."""

    def __init__(self, context: ssl.SSLContext, port: int) -> None:
        self.began = time.monotonic()
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.connect_ex(("127.0.0.1", port))
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")

    def goes_on(self) -> bool:
        """Returns whether the handshake is done. Raises OSError if the server has refused."""
        try:
            if not (data := self.socket.recv(65536)):
                raise ConnectionResetError(errno.ECONNRESET, "the server has ended the connection")
            self._incoming.write(data)
        except BlockingIOError:
            pass
        try:
            self._tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            done = False
        if self._outgoing.pending:
            self.socket.sendall(self._outgoing.read())
        return done


class Clients:
    def __init__(self, port: int) -> None:
        self._port = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE
        self._poll = select.epoll()
        self._clients: dict[int, Client] = {}  # the oldest first
        self.flood = Flood()

    def run(self, rate: float, seconds: float) -> Flood:
        """Opens ``rate`` connections a second, whatever has become of the earlier ones."""
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            due = int(passed * rate) - self.flood.offered
            for _ in range(min(due, 16)):
                self._open()
            self._give_up()
            for descriptor, _ in self._poll.poll(0 if due > 16 else 0.001):
                self._go_on(self._clients[descriptor])
        for client in self._clients.values():
            client.socket.close()
        self._poll.close()
        return self.flood

    def _open(self) -> None:
        client = Client(self._context, self._port)
        self.flood.offered += 1
        self._clients[client.socket.fileno()] = client
        self._poll.register(client.socket, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)

    def _go_on(self, client: Client) -> None:
        try:
            if not client.goes_on():
                return
            self.flood.latencies.append(time.monotonic() - client.began)
        except OSError as error:
            self.flood.failures[type(error).__name__] += 1
        self._close(client)

    def _give_up(self) -> None:
        while self._clients:
            client = next(iter(self._clients.values()))
            if time.monotonic() - client.began < PATIENCE:
                break
            self.flood.failures["gave up"] += 1
            self._close(client)

    def _close(self, client: Client) -> None:
        del self._clients[client.socket.fileno()]
        client.socket.close()


def measure(
    bench: Bench,
    *,
    rounds: int,
    seconds: float,
    connections: int,
    bits: int = 4096,
    advance: Callable[[str, int], None],
) -> Result:
    """``connections``: to find out what it serves at best. The clients have a processor of their own, and OpenSSL
    computes on the others: else the clients would be what is measured."""
    result = Result(
        "flood",
        f"Terminator under {TIMES} times the new connections that it can serve, RSA-{bits} computed by OpenSSL",
        {"rounds": rounds, "seconds": seconds, "connections": connections, "bits": bits, "patience": PATIENCE},
    )
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) < 2:
        raise BenchError("the flood needs a processor for the clients and one for the terminator: there is one in all")
    of_server = ",".join(map(str, processors[:-1]))
    program = ["taskset", "-c", of_server, sys.executable, *PROGRAM]
    flags = ["--backend", "libcrypto", "--threads", str(len(processors) - 1)]
    os.sched_setaffinity(0, processors[-1:])
    try:
        for turn in range(rounds):
            server = bench.run_terminator("terminator", program, bench.upstream(), bits, *flags)
            advance("at best", 2 * rounds)
            rate = connections / bench.load(server, connections, CLIENTS_AT_BEST, 0).wall_seconds
            advance("flood", 2 * rounds)
            flood = Clients(server.port).run(TIMES * rate, seconds)
            latency = sorted(flood.latencies)[int(len(flood.latencies) * 0.99)] if flood.latencies else PATIENCE
            result.samples.append({
                "round": turn, "at_best": rate, "served": len(flood.latencies) / seconds, "latency": latency,
                "offered": flood.offered / seconds, "failures": dict(flood.failures),
            })  # fmt: skip
    finally:
        os.sched_setaffinity(0, processors)
    at_best, served = result.values("at_best"), result.values("served")
    result.add_row("at best", "served", "per second", at_best)
    result.add_row("flood", "offered", "per second", result.values("offered"), to=("at best", at_best))
    result.add_row("flood", "served", "per second", served, to=("at best", at_best), target=Target(0.8, at_most=False))
    result.add_row("flood", "99 % within", "s", result.values("latency"), target=Target(PATIENCE))
    return result
