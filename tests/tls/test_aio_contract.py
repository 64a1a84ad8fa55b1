"""What a protocol sees of a connection's life and end. It must not notice whether it is over our asyncio transport
or asyncio's own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest
from contract_stacks import (
    Buffered,
    Link,
    Ours,
    Recorder,
    Scenario,
    Scenarios,
    World,
    event_loop_policy,  # noqa: F401  a fixture
    expected,
    pausing_handshakes,  # noqa: F401  a fixture
    run,
)

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy.")

scenario = Scenarios()
MEBIBYTE = bytes(1 << 20)


# ---- a connection's life ----


@scenario()
async def the_peer_ends(world: World) -> None:
    link = await world.link(data=lambda protocol: protocol.transport.write(b"answer"))
    link.writer.write(b"question")
    assert await link.reader.readexactly(6) == b"answer"
    link.writer.close()
    await link.lost()
    world.record.answer("closing", link.transport.is_closing)


@scenario()
async def the_subject_ends(world: World) -> None:
    link = await world.link()
    for _ in range(3):
        link.transport.write(MEBIBYTE)
    link.transport.close()
    world.record.answer("closing", link.transport.is_closing)
    link.transport.close()
    received = await link.read()
    link.writer.close()
    await link.lost()
    link.transport.close()
    world.record.add(len(received))


def _ends(how: str, where: str) -> None:
    async def function(world: World) -> None:
        def end(protocol: Any) -> None:
            if protocol.times[where] == 1:
                getattr(protocol.transport, how)()
                protocol.transport.write(b"ignored")
                world.record.answer("closing", protocol.transport.is_closing)

        link = await world.link(**{where: end})
        with contextlib.suppress(ConnectionError):
            if where != "made":  # what arrives after close() is another scenario
                link.writer.write(b"one")
            if where == "eof":
                link.writer.close()
        await link.read()
        link.writer.close()
        await link.lost()

    function.__name__ = f"{how}_within_{where}"
    scenario()(function)


for _how in ("close", "abort"):
    for _where in ("made", "data", "eof"):
        _ends(_how, _where)


@scenario()
async def no_data_after_abort(world: World) -> None:
    link = await world.link(data=lambda protocol: protocol.transport.abort())
    link.writer.write(MEBIBYTE)
    await link.lost()
    world.record.events = [len(event) < 1 << 20 if isinstance(event, bytes) else event for event in world.record.events]


def _raises(where: str, error: BaseException, kind: Any = Recorder) -> None:
    async def function(world: World) -> None:
        def fail(protocol: Any) -> None:
            if protocol.times[where] == 1:
                raise error

        during: dict[str, Any] = {"buffer": lambda _: bytearray(100)} if kind is Buffered else {}
        during[where] = fail
        try:
            link = await world.link(kind, **during)
        except Exception as raised:  # noqa: BLE001  the client's connection_made raised
            world.record.add("raised", type(raised).__name__)
            await world.record.until(lambda events: ("lost", type(error).__name__) in events)
            return
        link.writer.write(b"one")
        if where in ("eof", "lost"):
            link.writer.close()
        await link.lost()

    function.__name__ = f"{type(error).__name__}_within_{where}_{kind.__name__}"
    scenario()(function)


for _where in ("made", "data", "eof", "lost"):
    _raises(_where, ZeroDivisionError())
_raises("data", OSError())
_raises("data", asyncio.CancelledError())
_raises("buffer", ZeroDivisionError(), Buffered)
_raises("data", ZeroDivisionError(), Buffered)


@scenario()
async def much_written_within_made(world: World) -> None:
    link = await world.link(made=lambda protocol: protocol.transport.write(MEBIBYTE * 16))
    received = await link.reader.readexactly(len(MEBIBYTE) * 16)
    link.writer.close()
    await link.lost()
    # Whether one large write is enough to be paused is a matter of the limits.
    world.record.events[:] = [event for event in world.record.events if event not in ("pause", "resume")]
    world.record.add(len(received))


@scenario()
async def written_within_eof(world: World) -> None:
    link = await world.link(eof=lambda protocol: protocol.transport.write(b"goodbye"))
    link.writer.close()
    await link.lost()


# ---- the end ----


@scenario(difference="truncation", ours=["made", b"half", ("lost", "ConnectionResetError"), ("reported", [])])
async def a_truncated_stream(world: World) -> None:
    link = await world.link()
    link.writer.write(b"half")
    await link.until(b"half")
    bare_end(link)
    await link.lost()


@scenario()
async def a_reset(world: World) -> None:
    link = await world.link()
    raw = link.writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.writer.transport.abort()
    await link.lost()


@scenario()
async def the_peer_ends_without_close_notify_after_close(world: World) -> None:
    link = await world.link()
    link.writer.transport.pause_reading()  # it would answer
    link.transport.close()
    bare_end(link)
    await link.lost()


def bare_end(link: Link) -> None:
    """The peer's FIN without its close_notify."""
    with socket.socket(fileno=os.dup(link.writer.get_extra_info("socket").fileno())) as raw:
        raw.shutdown(socket.SHUT_WR)


@scenario(difference="late data", ours=["made", "closes", ("lost", "NoneType"), ("reported", [])])
async def the_peer_sends_on_after_close(world: World) -> None:
    link = await world.link()

    async def stream() -> None:
        while True:
            link.writer.write(MEBIBYTE)
            await link.writer.drain()

    streaming = asyncio.ensure_future(stream())
    await world.record.until(lambda events: isinstance(events[-1], bytes))
    world.record.events[:] = ["made", "closes"]
    link.transport.close()
    await link.lost()
    with contextlib.suppress(OSError):
        await streaming


@scenario()
async def a_peer_that_does_not_answer_close(world: World) -> None:
    """Its kernel accepts the bytes, but it reads none."""
    link = await world.link(options={"ssl_shutdown_timeout": 0.05})
    link.writer.transport.pause_reading()
    link.transport.write(MEBIBYTE * 16)
    link.transport.close()
    await link.lost()
    world.record.events[:] = [event for event in world.record.events if event not in ("pause", "resume")]


@scenario(
    difference="closed",
    ours=["made", ("reading", False), ("lost", "NoneType"), ("peer", True), ("reading", False), ("reported", [])],
)
async def after_abort(world: World) -> None:
    def lost(protocol: Any) -> None:
        world.record.add("peer", protocol.transport.get_extra_info("peername") is not None)

    link = await world.link(lost=lost)
    link.transport.abort()
    world.record.answer("reading", link.transport.is_reading)
    await link.lost()
    world.record.answer("reading", link.transport.is_reading)


# ---- what a transport can be asked ----


ASKED = ("version", "cipher", "compression", "selected_alpn_protocol", "getpeercert")


@scenario()
async def extra_info(world: World) -> None:
    link = await world.link()
    info = link.transport.get_extra_info
    assert info("peername") == link.writer.get_extra_info("sockname")
    assert info("sockname") == link.writer.get_extra_info("peername")
    assert info("socket").fileno() > 0
    _ask(world, info)
    link.writer.close()
    await link.lost()
    _ask(world, info)


@scenario()
async def extra_info_of_tls_1_2(world: World) -> None:
    world.stack.speak_tls_1_2()
    link = await world.link()
    _ask(world, link.transport.get_extra_info)
    link.transport.abort()
    await link.lost()


def _ask(world: World, info: Callable[..., Any]) -> None:
    context = world.stack.server_context if world.role == "server" else world.stack.client_context
    for name in ("cipher", "compression", "peercert"):
        world.record.add(name, info(name))
    world.record.add("sslcontext", info("sslcontext") is context)
    world.record.add("nothing", info("nothing", "default"))
    secured = info("ssl_object")
    for name in ASKED:
        world.record.add(name, getattr(secured, name)())
    world.record.add("DER", secured.getpeercert(True))
    for name in ("server_side", "server_hostname", "session_reused"):
        world.record.add(name, getattr(secured, name))
    world.record.add("context", secured.context is context)


@pytest.mark.parametrize(("role", "function", "difference", "ours"), scenario.all)
async def test_a_protocol_sees_the_same(role: str, function: Scenario, difference: str | None, ours: Any) -> None:
    assert await run(Ours, role, function) == await expected(role, function, difference, ours)
