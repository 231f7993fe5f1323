"""Slow and greedy clients: the time of each is bounded, and no other client waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest

from app.http.parser import EVENTS_AT_ONCE
from tests.protocol_server import GET, Site, response, rest, run
from tests.scripted import PATIENCE


@pytest.mark.parametrize("begun", [b"", b"GET /thing HTTP/1.1\r\nHost", GET[:-2]])
def test_promise_22_a_connection_with_unfinished_headers_is_closed(begun):
    """Silent from the start, or in the middle: nothing is answered, and the place is free again."""

    async def scenario():
        async with Site(headers=0.2) as site:
            assert await site.ask(begun) == b""
            await site.until(lambda: not site.connections.open)

    run(scenario)


def test_a_byte_now_and_then_gains_no_time():
    """Headers that come bit by bit have the same time in all; the next request on a connection too."""

    async def scenario():
        async with Site(headers=0.3) as site:
            reader, writer = await site.connect(GET)
            await response(reader)

            async def drip():
                with contextlib.suppress(ConnectionError):
                    while not reader.at_eof():
                        writer.write(b"G")
                        await asyncio.sleep(0.02)

            dripping = asyncio.create_task(drip())
            with contextlib.suppress(ConnectionError):
                await rest(reader)
            await dripping
            await site.until(lambda: not site.connections.open)

    run(scenario)


def test_blank_lines_give_no_more_time_for_a_request():
    """A new connection that sends nothing else is closed."""

    async def scenario():
        async with Site(headers=0.2) as site:
            reader, writer = await site.connect()

            async def drip():
                while not writer.is_closing():
                    writer.write(b"\r\n")
                    await asyncio.sleep(0.02)

            task = asyncio.create_task(drip())
            try:
                return await rest(reader)
            finally:
                task.cancel()

    with contextlib.suppress(ConnectionResetError):
        assert run(scenario) == b""


def test_an_idle_connection_outlives_the_time_for_headers():
    """``KEEP_ALIVE_MS`` is its own time; after it the connection is closed without a reset."""

    async def scenario():
        async with Site(headers=0.1, keep_alive=PATIENCE) as site:
            reader, writer = await site.connect(GET)
            await response(reader)
            await asyncio.sleep(0.2)
            writer.write(GET)
            await response(reader)
        async with Site(headers=PATIENCE, keep_alive=0.1) as site:
            reader, _ = await site.connect(GET)
            await response(reader)
            assert await rest(reader) == b""

    run(scenario)


def test_a_body_that_never_ends_after_its_response():
    """After an early response, a client that continues to send byte by byte is disconnected."""

    async def scenario():
        async with Site(headers=0.2) as site:
            site.reads_body = False
            head = b"POST /thing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
            reader, writer = await site.connect(head)
            await response(reader)
            with contextlib.suppress(ConnectionError):
                while not reader.at_eof():
                    writer.write(b"x")
                    await asyncio.sleep(0.02)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(reader.read(1), 0.01)
            await site.until(lambda: not site.connections.open)

    run(scenario)


@pytest.mark.parametrize("pace", ["dead", "one kilobyte at a time"])
def test_promise_22_a_client_that_does_not_read_is_aborted(pace, caplog):
    """The application is cancelled, and the log has a line."""
    caplog.set_level(logging.INFO)

    async def scenario():
        async with Site(send=0.4, answer=bytes(32 << 20)) as site:
            reader, _writer = await site.connect(GET)
            with contextlib.suppress(ConnectionError):
                while site.connections.open:
                    await asyncio.sleep(0.02)
                    if pace != "dead":
                        await reader.read(1000)
            await site.until(lambda: not site.state.tasks)

    run(scenario)
    assert "the client reads too slowly" in caplog.text


@pytest.mark.slow
def test_a_slow_reader_that_continues_is_served():
    """64 KiB within the time are enough, however long all of it takes."""

    async def scenario():
        async with Site(send=0.5, answer=bytes(8 << 20)) as site:
            reader, _writer = await site.connect(GET)
            await reader.readuntil(b"\r\n\r\n")
            left = 8 << 20
            while left:
                left -= len(await reader.read(256 << 10))
                if left % 7 == 0:
                    await asyncio.sleep(0.05)

    run(scenario)


def test_tiny_chunks_leave_others_their_turn():
    """Thousands of parts in one write: the body is whole, and the event loop goes round in between."""

    async def scenario():
        async with Site() as site:
            count = 20_000
            head = b"POST /thing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
            turns = 0

            def turn():
                nonlocal turns
                turns += 1
                if not site.requests:
                    asyncio.get_running_loop().call_soon(turn)

            turn()
            await site.ask(head + b"1\r\nA\r\n" * count + b"0\r\n\r\n")
            assert site.requests == [("/thing", b"A" * count)]
            assert turns > count // EVENTS_AT_ONCE

    run(scenario)
