"""The baseline: the TLS terminator that takes a few lines with the standard library.

``python -m bench.servers.asyncio_relay PORT UPSTREAM_PORT CERTIFICATE [--uvloop]``: TLS on 127.0.0.1:PORT, relayed to
the upstream. Asyncio's streams over Python's ``ssl``, with its defaults; of the buffers from 16 to 256 KiB the fastest.
"""

import asyncio
import contextlib
import ssl
import sys

BUFFER = 256 * 1024


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(BUFFER):
        writer.write(data)
        await writer.drain()


async def serve(port: int, upstream_port: int, certificate: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", upstream_port, limit=BUFFER)
            request = asyncio.create_task(pump(reader, upstream_writer))
            try:
                await pump(upstream_reader, writer)
            finally:
                request.cancel()
                upstream_writer.close()
        writer.close()

    server = await asyncio.start_server(relay, "127.0.0.1", port, ssl=context, limit=BUFFER, backlog=1024)
    async with server:
        await server.serve_forever()


def main() -> None:
    port, upstream_port, certificate, *flags = sys.argv[1:]
    if flags == ["--uvloop"]:
        import uvloop  # noqa: PLC0415  an extra: needed only where it is asked for

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(serve(int(port), int(upstream_port), certificate))


if __name__ == "__main__":
    main()
