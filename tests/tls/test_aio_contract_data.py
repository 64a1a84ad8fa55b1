"""What a protocol sees of reading and writing. It must not notice whether it is over our asyncio transport or asyncio's
own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from contract_stacks import (
    Buffered,
    Ours,
    Scenario,
    Scenarios,
    World,
    event_loop_policy,  # noqa: F401  a fixture
    expected,
    pausing_handshakes,  # noqa: F401  a fixture
    run,
)

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy.")

scenario = Scenarios()
MEBIBYTE = bytes(1 << 20)
ENDED = ["eof", ("lost", "NoneType"), ("reported", [])]


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


@pytest.mark.parametrize(("role", "function", "difference", "ours"), scenario.all)
async def test_a_protocol_sees_the_same(role: str, function: Scenario, difference: str | None, ours: Any) -> None:
    assert await run(Ours, role, function) == await expected(role, function, difference, ours)
