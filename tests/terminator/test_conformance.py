"""What no proper client sends is answered by the terminator as by OpenSSL's own server, alert for alert.

The client is tlslite-ng, an implementation of its own.
"""

from __future__ import annotations

import contextlib
import copy
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from changing_client import SERVED, TLS12, TLS13, Change, Client, outcome
from cryptography import x509
from ports import unused_port
from terminator_process import TIMEOUT, Terminator, Upstream, write_credentials
from tlslite.constants import ContentType, ExtensionType, HandshakeType
from tlslite.extensions import TLSExtension
from tlslite.messages import ClientHello, ClientKeyExchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl program is not installed")


# ---- the two servers: both answer with each line's letters in reverse ----


def reverse_lines(connection: socket.socket) -> None:
    with connection.makefile("rb") as lines:
        for line in lines:
            connection.sendall(line.rstrip(b"\n")[::-1] + b"\n")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("credentials")


@pytest.fixture(scope="module")
def terminator(directory: Path) -> Iterator[tuple[str, int]]:
    with (
        Upstream(reverse_lines) as upstream,
        Terminator(*write_credentials(directory), upstream=upstream.address) as running,
    ):
        yield running.address


@pytest.fixture(scope="module")
def openssl(directory: Path) -> Iterator[tuple[str, int]]:
    write_credentials(directory)
    address = "127.0.0.1", unused_port()
    chain, key = str(directory / "server.pem"), str(directory / "server.key")
    process = subprocess.Popen(
        [
            "openssl", "s_server", "-accept", f"{address[0]}:{address[1]}", "-cert", chain, "-cert_chain", chain,
            "-key", key, "-rev", "-min_protocol", "TLSv1.2", "-no_renegotiation",
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while process.poll() is None:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(address, TIMEOUT):
                break
        yield address
    finally:
        process.kill()
        process.wait()


# ---- TLS 1.2 with RSA key exchange ----


def encrypted(padded: Callable[[int], bytes]) -> Callable[[Path], Change]:
    """A change of the ClientKeyExchange to this block, which ``padded`` makes for the modulus's size, encrypted."""

    def for_certificate(directory: Path) -> Change:
        key = x509.load_pem_x509_certificate((directory / "server.pem").read_bytes()).public_key().public_numbers()
        size = (key.n.bit_length() + 7) // 8

        def change(message: Any) -> Any:
            if isinstance(message, ClientKeyExchange):
                block = int.from_bytes(padded(size))
                message.encryptedPreMasterSecret = bytearray(pow(block, key.e, key.n).to_bytes(size))
            return message

        return change

    return for_certificate


PREMASTER = b"\x03\x03" + bytes(range(1, 47))
BLOCKS: dict[str, Callable[[int], bytes]] = {
    "another secret": lambda size: b"\x00\x02" + b"\xaa" * (size - 51) + b"\x00" + PREMASTER,
    "another version": lambda size: b"\x00\x02" + b"\xaa" * (size - 51) + b"\x00\x03\x01" + PREMASTER[2:],
    "a short secret": lambda size: b"\x00\x02" + b"\xaa" * (size - 50) + b"\x00" + PREMASTER[1:],
    "a long secret": lambda size: b"\x00\x02" + b"\xaa" * (size - 52) + b"\x00" + PREMASTER + b"\x01",
    "no secret": lambda size: b"\x00\x02" + b"\xaa" * (size - 3) + b"\x00",
    "no separator": lambda size: b"\x00\x02" + b"\xaa" * (size - 2),
    "a zero in the padding": lambda size: b"\x00\x02\xaa\xaa\x00" + b"\xaa" * (size - 54) + b"\x00" + PREMASTER,
    "the type of a signature": lambda size: b"\x00\x01" + b"\xff" * (size - 51) + b"\x00" + PREMASTER,
    "a one in front": lambda size: b"\x01\x02" + b"\xaa" * (size - 51) + b"\x00" + PREMASTER,
    "zeros": bytes,
}


def test_rsa_key_exchange_serves_a_proper_client(terminator: tuple[str, int], openssl: tuple[str, int]) -> None:
    for address in (terminator, openssl):
        assert outcome(address, TLS12, key_exchange="rsa") == SERVED


@pytest.mark.parametrize("block", BLOCKS)
def test_no_padding_of_the_premaster_secret_can_be_told_from_another(
    block: str, directory: Path, terminator: tuple[str, int], openssl: tuple[str, int]
) -> None:
    """Else the server were an oracle for decryption (Bleichenbacher 1998, ROBOT)."""
    change = encrypted(BLOCKS[block])(directory)
    for address in (terminator, openssl):
        assert outcome(address, TLS12, key_exchange="rsa", change=change) == "bad_record_mac"


@pytest.mark.parametrize("size", [-1, 1, -256], ids=["short", "long", "empty"])
def test_a_premaster_secret_of_a_wrong_size(size: int, terminator: tuple[str, int], openssl: tuple[str, int]) -> None:
    def change(message: Any) -> Any:
        if isinstance(message, ClientKeyExchange):
            whole = message.encryptedPreMasterSecret
            message.encryptedPreMasterSecret = whole + b"\x01" if size > 0 else whole[:size]
        return message

    ours, theirs = (outcome(address, TLS12, key_exchange="rsa", change=change) for address in (terminator, openssl))
    assert ours == theirs != SERVED


# ---- what begins the handshake ----


def hello(change: Callable[[Any], object]) -> Change:
    def changed(message: Any) -> Any:
        if not isinstance(message, ClientHello):
            return message
        sent = copy.deepcopy(message)  # tlslite goes on with its own
        change(sent)
        return sent

    return changed


def without(extension: int) -> Change:
    def change(message: Any) -> None:
        message.extensions = [one for one in message.extensions if one.extType != extension]

    return hello(change)


def with_extension(extension: int, payload: bytes) -> Change:
    def change(message: Any) -> None:
        kept = [one for one in message.extensions if one.extType != extension]
        message.extensions = [TLSExtension(extType=extension).create(extension, bytearray(payload)), *kept]

    return hello(change)


X25519_OF_ZEROS = b"\x00\x24\x00\x1d\x00\x20" + bytes(32)
SHORT_P256 = b"\x00\x08\x00\x17\x00\x04\x04\x01\x02\x03"
HELLOS: dict[str, Change] = {
    "no ciphers": hello(lambda message: setattr(message, "cipher_suites", [])),
    "unknown ciphers": hello(lambda message: setattr(message, "cipher_suites", [0xFAFA])),
    "no compression": hello(lambda message: setattr(message, "compression_methods", [])),
    "two compressions": hello(lambda message: setattr(message, "compression_methods", [1, 0])),
    "deflate alone": hello(lambda message: setattr(message, "compression_methods", [1])),
    "SSL 3": hello(lambda message: setattr(message, "client_version", (3, 0))),
    "a long session id": hello(lambda message: setattr(message, "session_id", bytearray(33))),
    "an extension twice": hello(lambda message: message.extensions.insert(0, message.extensions[0])),
    "an unknown extension": with_extension(0xFAFA, b"grease"),
    "no groups": without(ExtensionType.supported_groups),
    "an empty list of groups": with_extension(ExtensionType.supported_groups, b"\x00\x00"),
    "half a group": with_extension(ExtensionType.supported_groups, b"\x00\x03\x00\x1d\x00"),
    "unknown groups": with_extension(ExtensionType.supported_groups, b"\x00\x02\xfa\xfa"),
    "no signature algorithms": without(ExtensionType.signature_algorithms),
    "unknown signature algorithms": with_extension(ExtensionType.signature_algorithms, b"\x00\x02\xfa\xfa"),
    "an empty server name": with_extension(ExtensionType.server_name, b"\x00\x03\x00\x00\x00"),
    "a server name with a zero": with_extension(ExtensionType.server_name, b"\x00\x06\x00\x00\x03a\x00b"),
    "a torn server name": with_extension(ExtensionType.server_name, b"\x00\x20\x00\x00\x1dlocal"),
    "an empty list of protocols": with_extension(ExtensionType.alpn, b"\x00\x00"),
    "an empty protocol": with_extension(ExtensionType.alpn, b"\x00\x01\x00"),
    "a torn list of versions": with_extension(ExtensionType.supported_versions, b"\x05\x03\x04"),
    "unknown versions": with_extension(ExtensionType.supported_versions, b"\x02\xfa\xfa"),
    "no key shares": without(ExtensionType.key_share),
    "a key share of a small order": with_extension(ExtensionType.key_share, X25519_OF_ZEROS),
    "a short key share": with_extension(ExtensionType.key_share, SHORT_P256),
    "a torn key share": with_extension(ExtensionType.key_share, b"\x00\x24\x00\x1d\x00\x20"),
}


@pytest.mark.parametrize("version", [TLS12, TLS13], ids=["TLS 1.2", "TLS 1.3"])
@pytest.mark.parametrize("changed", HELLOS)
def test_a_client_hello_that_is_none(
    changed: str, version: tuple[int, int], terminator: tuple[str, int], openssl: tuple[str, int]
) -> None:
    ours, theirs = (outcome(address, version, change=HELLOS[changed]) for address in (terminator, openssl))
    assert ours == theirs


# ---- what comes after the handshake ----


def flipped(client: Client) -> None:
    def change(record: bytearray) -> bytes:
        record[-1] ^= 1
        return record

    client.wire.change = change


def torn(client: Client) -> None:
    """A record with a byte less than it had when it was sealed."""
    client.wire.change = lambda record: record[:3] + (len(record) - 6).to_bytes(2) + record[5:-1]


def with_type(content_type: int) -> Callable[[Client], None]:
    def then(client: Client) -> None:
        client.wire.change = lambda record: bytes([content_type]) + record[1:]

    return then


def in_the_clear(content_type: int, payload: bytes) -> Callable[[Client], object]:
    header = bytes([content_type, 3, 3]) + len(payload).to_bytes(2)
    return lambda client: client.wire.send(header + payload)


def sealed(content_type: int, payload: bytes) -> Callable[[Client], object]:
    return lambda client: client.record(content_type, payload)


FINISHED = bytes([HandshakeType.finished, 0, 0, 12]) + bytes(12)
RECORDS: dict[str, Callable[[Client], object]] = {
    "a flipped bit": flipped,
    "a torn record": torn,
    "another type outside": with_type(ContentType.handshake),
    "an unknown type outside": with_type(99),
    "application data in the clear": in_the_clear(ContentType.application_data, bytes(64)),
    "an alert in the clear": in_the_clear(ContentType.alert, b"\x02\x28"),
    "an empty record": in_the_clear(ContentType.application_data, b""),
    "a record longer than any": in_the_clear(ContentType.application_data, bytes(17000)),
    "ChangeCipherSpec in the clear": in_the_clear(ContentType.change_cipher_spec, b"\x01"),
    "ChangeCipherSpec": sealed(ContentType.change_cipher_spec, b"\x01"),
    "more data than a record may have": sealed(ContentType.application_data, bytes(16385)),
    "no data": sealed(ContentType.application_data, b""),
    "an unknown type": sealed(99, b"what"),
    "half an alert": sealed(ContentType.alert, b"\x02"),
    "an unknown alert": sealed(ContentType.alert, b"\x02\xfa"),
    "an alert of an unknown level": sealed(ContentType.alert, b"\x07\x28"),
    "an empty handshake record": sealed(ContentType.handshake, b""),
    "Finished": sealed(ContentType.handshake, FINISHED),
    "an unknown message": sealed(ContentType.handshake, b"\xfa\x00\x00\x00"),
    "KeyUpdate of an unknown kind": sealed(ContentType.handshake, b"\x18\x00\x00\x01\x07"),
    "a torn KeyUpdate": sealed(ContentType.handshake, b"\x18\x00\x00\x00"),
    "a HelloRequest": sealed(ContentType.handshake, b"\x00\x00\x00\x00"),
    "a CertificateVerify": sealed(ContentType.handshake, b"\x0f\x00\x00\x04\x08\x04\x00\x00"),
}


@pytest.mark.parametrize("version", [TLS12, TLS13], ids=["TLS 1.2", "TLS 1.3"])
@pytest.mark.parametrize("record", RECORDS)
def test_a_bad_record_after_the_handshake(
    record: str, version: tuple[int, int], terminator: tuple[str, int], openssl: tuple[str, int]
) -> None:
    ours, theirs = (outcome(address, version, then=RECORDS[record]) for address in (terminator, openssl))
    assert ours == theirs


@pytest.mark.parametrize("mac_first", [True, False], ids=["MAC, then encrypt", "encrypt, then MAC"])
@pytest.mark.parametrize("place", [-1, -17, -33, 5], ids=["padding", "block before", "MAC", "first block"])
def test_no_fault_of_a_cbc_record_can_be_told_from_another(
    place: int, *, mac_first: bool, terminator: tuple[str, int], openssl: tuple[str, int]
) -> None:
    """Else the server were an oracle for padding (Vaudenay 2002)."""

    def damage(client: Client) -> None:
        def change(record: bytearray) -> bytes:
            record[place] ^= 0x80
            return record

        client.wire.change = change

    change = without(ExtensionType.encrypt_then_mac) if mac_first else hello(lambda _message: None)
    for address in (terminator, openssl):
        for then, expected in ((lambda _client: None, SERVED), (damage, "bad_record_mac")):
            assert outcome(address, TLS12, cipher="aes128", change=change, then=then) == expected
