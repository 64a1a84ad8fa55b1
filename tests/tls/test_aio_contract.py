"""What a protocol sees over our asyncio transport and over asyncio's own: it must not notice which it is."""

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
ENDED = ["eof", ("lost", "NoneType"), ("reported", [])]


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


# ---- reading ----


# asyncio's own client does not end its handshake if it is paused here.
@scenario("server")
@scenario("client", ours=["made", ("reading", False), "resumes", ("reading", True), b"early", *ENDED])
async def paused_from_the_start(world: World) -> None:
    link = await world.link(made=lambda protocol: protocol.transport.pause_reading())
    world.record.answer("reading", link.transport.is_reading)
    link.writer.write(b"early")
    for _ in range(20):
        await asyncio.sleep(0)
    world.record.add("resumes")
    link.transport.resume_reading()
    link.transport.resume_reading()
    world.record.answer("reading", link.transport.is_reading)
    await link.until(b"early")
    link.writer.close()
    await link.lost()


@scenario()
async def paused_within_data(world: World) -> None:
    link = await world.link(data=lambda protocol: protocol.transport.pause_reading())
    link.writer.write(b"one")
    await link.until(b"one")
    link.writer.write(b"two")
    link.writer.close()
    for _ in range(20):
        await asyncio.sleep(0)
    link.transport.pause_reading()
    world.record.add("resumes")
    link.transport.resume_reading()
    await link.until(b"two")
    link.transport.resume_reading()
    await link.lost()


@scenario("server")
@scenario("client", ours=["made", "resumes", b"last words", *ENDED])
async def the_end_waits_for_a_paused_reader(world: World) -> None:
    link = await world.link(made=lambda protocol: protocol.transport.pause_reading())
    link.writer.write(b"last words")
    link.writer.close()
    for _ in range(20):
        await asyncio.sleep(0)
    world.record.add("resumes")
    link.transport.resume_reading()
    await link.lost()


@scenario()
async def reading_is_paused_and_resumed_after_the_end(world: World) -> None:
    link = await world.link()
    link.transport.abort()
    world.record.answer("pause", link.transport.pause_reading)
    world.record.answer("resume", link.transport.resume_reading)
    await link.lost()


def _small(protocol: Any) -> bytearray:
    return bytearray(3 if protocol.times["buffer"] % 2 else 5)


@scenario()
async def buffers_of_changing_size(world: World) -> None:
    link = await world.link(Buffered, buffer=_small)
    link.writer.write(bytes(range(256)))
    await world.record.until(lambda events: len(events) > 1 and len(events[1]) == 256)
    link.writer.close()
    await link.lost()


@scenario()
async def a_view_as_buffer(world: World) -> None:
    room = bytearray(100)
    link = await world.link(Buffered, buffer=lambda _: memoryview(room)[10:20])
    link.writer.write(b"twelve bytes")
    await link.until(b"twelve bytes")
    link.writer.close()
    await link.lost()


@scenario(
    difference="empty buffer",
    ours=["made", ("lost", "RuntimeError"), ("reported", ["RuntimeError"])],
)
async def an_empty_buffer(world: World) -> None:
    link = await world.link(Buffered, buffer=lambda _: bytearray())
    link.writer.write(b"one")
    await link.lost()


@scenario()
async def another_protocol_in_mid_stream(world: World) -> None:
    def switch(protocol: Any) -> None:
        second = Buffered(world.record, buffer=lambda _: bytearray(4))
        second.transport, second.lost = protocol.transport, protocol.lost
        protocol.transport.set_protocol(second)
        world.record.answer("protocol", lambda: protocol.transport.get_protocol() is second)

    link = await world.link(data=switch)
    link.writer.write(b"first")
    await link.until(("protocol", True))
    link.writer.write(b"and the rest")
    await link.until(b"and the rest")
    link.writer.close()
    await link.lost()


# ---- writing ----


@scenario()
async def what_was_written_may_be_changed(world: World) -> None:
    link = await world.link()
    for data in (bytearray(b"array "), memoryview(bytearray(b"view ")), memoryview(bytearray(b"..part..."))[2:6]):
        link.transport.write(data)
        data[:] = bytes(len(data))
    link.transport.writelines(iter([b"list ", bytearray(b"of "), memoryview(b"lines")]))
    link.transport.write(b"")
    link.transport.writelines([])
    for wrong in ("text", 7, None):
        world.record.answer("write", lambda wrong=wrong: link.transport.write(wrong))
    link.transport.close()
    world.record.add(await link.read())
    link.writer.close()
    await link.lost()


@scenario()
async def writing_after_the_end(world: World) -> None:
    link = await world.link(lost=lambda protocol: protocol.transport.write(b"within connection_lost"))
    link.transport.close()
    for _ in range(10):
        world.record.answer("write", lambda: link.transport.write(b"x"))
    await link.read()
    link.writer.close()
    await link.lost()
    for _ in range(10):
        world.record.answer("write", lambda: link.transport.write(b"x"))
    link.transport.abort()


def _flows(name: str, *, ours: Any = None, **during: Any) -> None:
    async def function(world: World) -> None:
        link = await world.link(**during)
        written = 0
        while "pause" not in world.record.events:
            link.transport.write(MEBIBYTE)
            written += len(MEBIBYTE)
            await asyncio.sleep(0)
        try:
            received = await link.reader.readexactly(written)
        except asyncio.IncompleteReadError as error:
            received = error.partial
        if link.transport.is_closing():
            link.writer.close()
        else:
            world.record.add(len(received) == written)
            await link.until("resume")
            link.transport.close()
        await link.read()
        link.writer.close()
        await link.lost()

    function.__name__ = name
    scenario(ours=ours)(function)


_flows("a_writer_is_paused_and_resumed")
_flows("close_within_pause", pause=lambda protocol: protocol.transport.close())
_flows("abort_within_pause", pause=lambda protocol: protocol.transport.abort())
_flows("close_within_resume", resume=lambda protocol: protocol.transport.close())
_flows(
    "abort_within_resume",  # asyncio's own then reports an error of its own
    ours=["made", "pause", "resume", ("lost", "NoneType"), ("reported", [])],
    resume=lambda protocol: protocol.transport.abort(),
)


def _fails(protocol: Any) -> None:
    raise ZeroDivisionError


_flows("an_error_within_pause", pause=_fails)
_flows("an_error_within_resume", resume=_fails)


@scenario()
async def limits(world: World) -> None:
    link = await world.link()
    link.transport.set_write_buffer_limits(high=100_000)
    world.record.answer("limits", link.transport.get_write_buffer_limits)
    link.transport.set_write_buffer_limits(low=1000)
    world.record.answer("limits", link.transport.get_write_buffer_limits)
    link.transport.set_write_buffer_limits(100, 10)
    world.record.answer("limits", link.transport.get_write_buffer_limits)
    world.record.answer("high below low", lambda: link.transport.set_write_buffer_limits(10, 100))
    world.record.answer("negative", lambda: link.transport.set_write_buffer_limits(10, -1))
    world.record.answer("size", link.transport.get_write_buffer_size)
    link.transport.abort()
    await link.lost()


@scenario(difference="limits", ours=["made", 65536, ("lost", "NoneType"), ("reported", [])])
async def limits_by_default(world: World) -> None:
    link = await world.link()
    world.record.add(link.transport.get_write_buffer_limits()[1])
    link.transport.abort()
    await link.lost()


@scenario(difference="limits", ours=["made", 0, "pause", "resume", *ENDED])
async def limits_of_zero(world: World) -> None:
    """Paused whenever there is something in the buffer, and resumed when there is nothing."""
    link = await world.link()
    link.transport.set_write_buffer_limits(0)
    world.record.add(link.transport.get_write_buffer_size())
    link.transport.write(MEBIBYTE * 8)
    await link.reader.readexactly(len(MEBIBYTE) * 8)
    await link.until("resume")
    link.writer.close()
    await link.lost()


@scenario(
    difference="half-close",
    ours=["made", ("can", True), *ENDED],
)
async def write_eof(world: World) -> None:
    link = await world.link()
    world.record.answer("can", link.transport.can_write_eof)
    link.transport.write(b"question")
    try:
        link.transport.write_eof()
    except NotImplementedError:
        link.transport.close()
    assert await link.read() == b"question"
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
    """Its kernel takes the bytes, but it reads none."""
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
