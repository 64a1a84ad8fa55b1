"""The same calls to asyncio's own TLS and to ours, for ``test_aio_contract*.py``: a stack of each, a protocol that
writes down what happens to it, a peer that is Python's ``ssl`` in either case, and the comparison of the two records.

asyncio's own runs on asyncio's event loop, ours there and on uvloop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
from tls_peers import authority, client_ssl_context, credentials, server_context

from gpu_provider import tls
from gpu_provider.tls import aio

if TYPE_CHECKING:
    from collections.abc import Callable

    from tls_peers import Credentials

    from gpu_provider import BatchingProvider
    from gpu_provider.testing import HeldBackend

LIMIT = 20
"""Seconds after which a scenario hangs."""


@functools.cache
def server_ssl_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    present(context, credentials())
    return context


def present(context: ssl.SSLContext, own: Credentials) -> None:
    """Gives ``context`` this certificate."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(own.chain + own.key)
        file.flush()
        context.load_cert_chain(file.name)


def client_context() -> tls.Context:
    """Our client context, which trusts the tests' authority; everything else is the default."""
    context = tls.Context(tls.TLS_CLIENT_METHOD)
    with authority().cert_pem.tempfile() as path:
        context.load_verify_locations(path)
    return context


class Ssl:
    """asyncio's own."""

    name = "ssl"

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.server_context: Any = server_ssl_context()
        self.client_context: Any = client_ssl_context()

    def speak_tls_1_2(self) -> None:
        self.server_context = server_ssl_context.__wrapped__()
        for context in (self.server_context, self.client_context):
            context.maximum_version = ssl.TLSVersion.TLSv1_2

    def ask_for_certificates(self) -> None:
        self.server_context = server_ssl_context.__wrapped__()
        self.server_context.verify_mode = ssl.CERT_REQUIRED
        authority().configure_trust(self.server_context)

    async def create_server(self, factory: Any, *arguments: Any, **options: Any) -> Any:
        return await self.loop.create_server(factory, *arguments, ssl=self.server_context, **options)

    async def create_connection(self, factory: Any, *arguments: Any, **options: Any) -> Any:
        return await self.loop.create_connection(factory, *arguments, ssl=self.client_context, **options)

    async def create_unix_server(self, factory: Any, *arguments: Any, **options: Any) -> Any:
        return await self.loop.create_unix_server(factory, *arguments, ssl=self.server_context, **options)

    async def create_unix_connection(self, factory: Any, *arguments: Any, **options: Any) -> Any:
        return await self.loop.create_unix_connection(factory, *arguments, ssl=self.client_context, **options)

    async def start_tls(self, transport: Any, protocol: Any, *, server_side: bool, **options: Any) -> Any:
        context = self.server_context if server_side else self.client_context
        return await self.loop.start_tls(transport, protocol, context, server_side=server_side, **options)

    async def start_server(self, callback: Any, *arguments: Any, **options: Any) -> Any:
        return await asyncio.start_server(callback, *arguments, ssl=self.server_context, **options)

    async def open_connection(self, *arguments: Any, **options: Any) -> Any:
        return await asyncio.open_connection(*arguments, ssl=self.client_context, **options)


class Ours(Ssl):
    """The same over this package."""

    name = "ours"
    provider: BatchingProvider | None = None

    def __init__(self) -> None:
        super().__init__()
        self.server_context = server_context(self.provider)
        self.client_context = client_context()

    def speak_tls_1_2(self) -> None:
        for context in (self.server_context, self.client_context):
            context.set_max_proto_version(tls.TLS1_2_VERSION)

    def ask_for_certificates(self) -> None:
        self.server_context.set_verify(tls.VERIFY_PEER | tls.VERIFY_FAIL_IF_NO_PEER_CERT)
        with authority().cert_pem.tempfile() as path:
            self.server_context.load_verify_locations(path)

    async def create_server(self, factory: Any, *arguments: Any, **options: Any) -> Any:
        return await aio.create_server(factory, *arguments, context=self.server_context, **_names(options))

    async def create_connection(self, factory: Any, *arguments: Any, **options: Any) -> Any:
        return await aio.create_connection(factory, *arguments, context=self.client_context, **_names(options))

    async def create_unix_server(self, factory: Any, *arguments: Any, **options: Any) -> Any:
        return await aio.create_unix_server(factory, *arguments, context=self.server_context, **_names(options))

    async def create_unix_connection(self, factory: Any, *arguments: Any, **options: Any) -> Any:
        return await aio.create_unix_connection(factory, *arguments, context=self.client_context, **_names(options))

    async def start_tls(self, transport: Any, protocol: Any, *, server_side: bool, **options: Any) -> Any:
        context = self.server_context if server_side else self.client_context
        return await aio.start_tls(transport, protocol, context, server_side=server_side, **_names(options))

    async def start_server(self, callback: Any, *arguments: Any, **options: Any) -> Any:
        return await aio.start_server(callback, *arguments, context=self.server_context, **_names(options))

    async def open_connection(self, *arguments: Any, **options: Any) -> Any:
        return await aio.open_connection(*arguments, context=self.client_context, **_names(options))


def _names(options: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("ssl_"): value for name, value in options.items()}


class Record:
    """What happened, in order. Data that came in pieces counts as one."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self._changed = asyncio.Event()

    def add(self, *event: Any) -> None:
        self.events.append(event if len(event) > 1 else event[0])
        self._changed.set()

    def data(self, data: bytes) -> None:
        if self.events and isinstance(self.events[-1], bytes):
            self.events[-1] += data
            self._changed.set()
        else:
            self.add(data)

    def answer(self, name: str, call: Callable[[], Any]) -> None:
        """Records what a call returns, or the kind of exception that it raises."""
        try:
            self.add(name, call())
        except Exception as error:  # noqa: BLE001  the answer
            self.add(name, type(error).__name__)

    async def until(self, condition: Callable[[list[Any]], object]) -> None:
        async with asyncio.timeout(LIMIT):
            while not condition(self.events):
                self._changed.clear()
                await self._changed.wait()


class Recorder(asyncio.Protocol):
    """``during``: by callback, what to do within it."""

    def __init__(self, record: Record, **during: Callable[[Any], Any]) -> None:
        self.record = record
        self.during = during
        self.transport: Any = None
        self.times: dict[str, int] = {}
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def _do(self, name: str) -> Any:
        self.times[name] = self.times.get(name, 0) + 1
        return self.during[name](self) if name in self.during else None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.record.add("made")
        self._do("made")

    def data_received(self, data: bytes) -> None:
        self.record.data(data)
        self._do("data")

    def eof_received(self) -> Any:
        self.record.add("eof")
        return self._do("eof")

    def pause_writing(self) -> None:
        self.record.add("pause")
        self._do("pause")

    def resume_writing(self) -> None:
        self.record.add("resume")
        self._do("resume")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.record.add("lost", type(exc).__name__)
        if not self.lost.done():
            self.lost.set_result(None)
        self._do("lost")


class Buffered(Recorder, asyncio.BufferedProtocol):
    """``during`` may have ``buffer``: the buffer to return."""

    def get_buffer(self, sizehint: int) -> Any:
        self.buffer = self._do("buffer")
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self.buffer[:nbytes]))


class Link:
    """One connection: the subject's protocol, and its peer's streams."""

    def __init__(
        self, record: Record, protocol: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.record, self.protocol, self.reader, self.writer = record, protocol, reader, writer

    @property
    def transport(self) -> Any:
        return self.protocol.transport

    async def until(self, event: Any) -> None:
        await self.record.until(lambda events: event in events)

    async def lost(self) -> None:
        async with asyncio.timeout(LIMIT):
            await self.protocol.lost

    async def read(self) -> bytes:
        """All that the peer receives."""
        async with asyncio.timeout(LIMIT):
            try:
                return await self.reader.read()
            except OSError as error:
                return type(error).__name__.encode()


async def _nobody() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The streams of a peer whose handshake did not end, because the subject ended first."""
    ours, theirs = socket.socketpair()
    theirs.close()
    return await asyncio.open_connection(sock=ours)


class World:
    """A scenario's stack, role and record. It closes what it opened."""

    def __init__(self, stack: Ssl, role: str, closing: contextlib.AsyncExitStack) -> None:
        self.stack, self.role, self.closing = stack, role, closing
        self.record = Record()
        self.loop = stack.loop

    async def serve(self, factory: Any, **options: Any) -> int:
        server = await self.stack.create_server(factory, "127.0.0.1", 0, **options)
        self.closing.callback(server.close)
        return int(server.sockets[0].getsockname()[1])

    async def peer_server(self, callback: Any, context: ssl.SSLContext | None) -> int:
        server = await asyncio.start_server(callback, "127.0.0.1", 0, ssl=context)
        self.closing.callback(server.close)
        return int(server.sockets[0].getsockname()[1])

    async def connect(self, *arguments: Any, factory: Any = None, **options: Any) -> None:
        """Records how connecting fails."""
        try:
            await self.stack.create_connection(factory or (lambda: Recorder(self.record)), *arguments, **options)
        except Exception as error:  # noqa: BLE001  the answer
            self.record.add(type(error).__name__)

    async def link(self, kind: Any = Recorder, *, options: dict[str, Any] | None = None, **during: Any) -> Link:
        """The subject in its role, with a peer of Python's."""
        made: asyncio.Queue[Any] = asyncio.Queue()

        def factory() -> Any:
            protocol = kind(self.record, **during)
            made.put_nowait(protocol)
            return protocol

        async with asyncio.timeout(LIMIT):
            if self.role == "server":
                port = await self.serve(factory, **options or {})
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", port, ssl=client_ssl_context(), server_hostname="localhost"
                )
                protocol = await made.get()
            else:
                accepted: asyncio.Queue[Any] = asyncio.Queue()

                async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                    accepted.put_nowait((reader, writer))

                port = await self.peer_server(accept, server_ssl_context())
                await self.stack.create_connection(
                    factory, "127.0.0.1", port, server_hostname="localhost", **options or {}
                )
                protocol = await made.get()
                accepting = asyncio.ensure_future(accepted.get())
                await asyncio.wait([accepting, protocol.lost], return_when=asyncio.FIRST_COMPLETED)
                reader, writer = accepting.result() if accepting.done() else await _nobody()
                accepting.cancel()
        self.closing.callback(writer.transport.abort)
        await self.record.until(lambda events: "made" in events)
        self.closing.callback(lambda: protocol.transport.abort())  # noqa: PLW0108  start_tls() may change it
        return Link(self.record, protocol, reader, writer)


async def run(stack: type[Ssl], role: str, scenario: Any) -> list[Any]:
    """What ``scenario`` recorded, with what the loop's exception handler was told at the end."""
    loop = asyncio.get_running_loop()
    reported: list[str] = []
    loop.set_exception_handler(lambda _, context: reported.append(type(context.get("exception")).__name__))
    async with contextlib.AsyncExitStack() as closing:
        world = World(stack(), role, closing)
        async with asyncio.timeout(LIMIT):
            await scenario(world)
        events = list(world.record.events)
    for _ in range(5):
        await asyncio.sleep(0)
    return [*events, ("reported", sorted(reported))]


Scenario = Any


class Scenarios:
    """Functions of a World, to be run in either role or in the named ones."""

    def __init__(self) -> None:
        self.all: list[Any] = []

    def __call__(self, *roles: str, difference: str | None = None, ours: Any = None) -> Callable[[Scenario], Scenario]:
        """``difference``: its name in aio's documentation; ``ours``: what is recorded then, or where asyncio's own has
        a fault."""

        def add(function: Scenario) -> Scenario:
            self.all.extend(
                pytest.param(role, function, difference, ours, id=f"{function.__name__}-{role}")
                for role in roles or ("server", "client")
            )
            return function

        return add


async def expected(role: str, function: Scenario, difference: str | None, ours: Any) -> Any:
    """What our TLS should record."""
    if ours is not None and difference is None:
        return ours
    pythons = await asyncio.to_thread(reference, role, function)
    if difference is None:
        return pythons
    if f"*{difference}*" not in (aio.__doc__ or ""):
        raise LookupError(f"{difference} is not documented")
    if pythons == ours:
        raise LookupError(f"there is no such difference: {difference}")
    return ours


@functools.cache
def reference(role: str, function: Scenario) -> list[Any]:
    """What asyncio's own TLS records."""
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(run(Ssl, role, function))


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    if request.param == "uvloop":
        policy: asyncio.AbstractEventLoopPolicy = pytest.importorskip("uvloop").EventLoopPolicy()
        return policy
    return asyncio.DefaultEventLoopPolicy()


@pytest.fixture(autouse=True)
def pausing_handshakes(
    held_backend: HeldBackend, held_provider: BatchingProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The servers' handshakes pause in async jobs, and continue from the loop instead of from the transport below."""
    held_backend.release_all()
    monkeypatch.setattr(Ours, "provider", held_provider)


async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()
