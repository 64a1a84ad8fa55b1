"""PROXY protocol headers, read by another implementation of the protocol."""

import socket

import pytest
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2
from terminator_process import Terminator, Upstream, write_credentials

from gpu_provider.tls.terminator.client_facts import ClientFacts
from gpu_provider.tls.terminator.proxy_protocol import header

FACTS = ClientFacts("TLSv1.3", "TLS_AES_128_GCM_SHA256", False, None, 0)
PARSERS = {1: ProxyProtocolV1(), 2: ProxyProtocolV2()}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("family", "source", "destination"),
    [
        (socket.AF_INET, ("192.0.2.1", 1), ("255.255.255.255", 65535)),
        (socket.AF_INET6, ("2001:db8::1", 51234, 0, 0), ("::1", 443, 0, 0)),
    ],
)
def test_header_is_what_another_parser_reads(version, family, source, destination):
    result = PARSERS[version].unpack(header(version, family, source, destination, FACTS))
    assert result.family == family
    assert version == 1 or result.protocol == socket.SOCK_STREAM  # version 1 knows TCP alone
    assert (str(result.source[0]), result.source[1]) == source[:2]
    assert (str(result.dest[0]), result.dest[1]) == destination[:2]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_upstream_learns_the_clients_address(tmp_path, version, host):
    received = []

    def record(connection):
        data = bytearray()
        while chunk := connection.recv(4096):
            data += chunk
        received.append(bytes(data))

    flags = write_credentials(tmp_path, "localhost")
    listen = f"[{host}]:0" if ":" in host else f"{host}:0"
    with (
        Upstream(record) as upstream,
        Terminator(
            *flags, "--listen", listen, "--proxy-protocol", f"v{version}", upstream=upstream.address
        ) as terminator,
        terminator.connect() as client,
    ):
        source = client.getsockname()
        client.sendall(b"hello")
        client.unwrap()  # close_notify both ways: the upstream has seen the end
    (data,) = received
    assert data.endswith(b"hello")
    result = PARSERS[version].unpack(data[: -len(b"hello")])
    assert (str(result.source[0]), result.source[1]) == source[:2]
    assert (str(result.dest[0]), result.dest[1]) == terminator.address
