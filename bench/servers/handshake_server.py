"""A TLS server in which nothing but the provider differs: every request gets an empty response.

``python -m bench.servers.handshake_server PORT CERTIFICATE [--provider]``: the same code with the
batching provider or without it.
"""

import argparse
import asyncio
import contextlib

from gpu_provider import BatchingProvider, tls
from gpu_provider.tls import aio

RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: " + b"0" * 20 + b"\r\nConnection: close\r\n\r\n"


class Answer(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  for the type checker
        self.transport = transport
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.received.endswith(b"\r\n\r\n"):
            self.transport.write(RESPONSE)
            self.transport.close()


async def serve(port: int, certificate: str, provider: BatchingProvider | None) -> None:
    context = tls.Context(tls.TLS_SERVER_METHOD, provider)
    context.use_certificate_chain_file(certificate)
    context.use_privatekey_file(certificate)
    if provider is not None:
        context.set_mode(tls.SSL_MODE_ASYNC)
    server = await aio.create_server(Answer, "127.0.0.1", port, context=context)
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("certificate")
    parser.add_argument("--provider", action="store_true")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        provider = stack.enter_context(BatchingProvider()) if arguments.provider else None
        asyncio.run(serve(arguments.port, arguments.certificate, provider))


if __name__ == "__main__":
    main()
