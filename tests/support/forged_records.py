"""Records that no library sends, for a connection whose handshake a library made: the keys come from its key log.

AES-128-GCM with SHA-256 alone: TLS_AES_128_GCM_SHA256 in TLS 1.3, any ECDHE suite with AES128-GCM-SHA256 in TLS 1.2.
"""

from __future__ import annotations

import hashlib
import hmac
import ssl
import struct
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from gpu_provider import tls

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA = 20, 21, 22, 23
TLS13_CIPHERSUITE = "TLS_AES_128_GCM_SHA256"
TLS12_CIPHERS = ("ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-GCM-SHA256")

HELLO_REQUEST = b"\x00\x00\x00\x00"
WARNING = b"\x01\x5a"  # user_cancelled


def with_known_ciphers(context: tls.Context) -> tls.Context:
    """Has the context agree on nothing else."""
    context.set_cipher_list(":".join(TLS12_CIPHERS))
    context.set_ciphersuites(TLS13_CIPHERSUITE)
    return context


def plain(content_type: int, payload: bytes) -> bytes:
    """A record as before the first keys."""
    return struct.pack("!BHH", content_type, 0x0303, len(payload)) + payload


def fragments(message: bytes, size: int = 1) -> list[bytes]:
    return [message[start : start + size] for start in range(0, len(message), size)]


class Tls13Sender:
    """One direction of TLS 1.3, from the first record that is protected by the secret of this label in the key log."""

    def __init__(self, key_log: Path, label: str = "CLIENT_TRAFFIC_SECRET_0") -> None:
        self._use(_logged(key_log, label)[1])

    def _use(self, secret: bytes) -> None:
        self._secret = secret
        self._aead = AESGCM(_expand_label(secret, b"key", 16))
        self._iv = int.from_bytes(_expand_label(secret, b"iv", 12))
        self._sequence = 0

    def seal(self, content_type: int, payload: bytes) -> bytes:
        inner = payload + bytes([content_type])
        header = struct.pack("!BHH", APPLICATION_DATA, 0x0303, len(inner) + 16)
        nonce = (self._iv ^ self._sequence).to_bytes(12)
        self._sequence += 1
        return header + self._aead.encrypt(nonce, inner, header)

    def key_update(self, *, requested: bool = True, fragment: int = 5) -> bytes:
        """In records of ``fragment`` bytes of the message."""
        message = b"\x18\x00\x00\x01" + bytes([requested])
        records = b"".join(self.seal(HANDSHAKE, part) for part in fragments(message, fragment))
        self._use(_expand_label(self._secret, b"traffic upd", 32))
        return records


class Tls12Sender:
    """One direction of TLS 1.2, after its Finished."""

    def __init__(self, key_log: Path, server_random: bytes, *, server: bool = False) -> None:
        client_random, master = _logged(key_log, "CLIENT_RANDOM")
        block = _prf(master, b"key expansion" + server_random + client_random, 40)
        self._aead = AESGCM(block[16:32] if server else block[:16])
        self._salt = block[36:40] if server else block[32:36]
        self._sequence = 1

    def seal(self, content_type: int, payload: bytes) -> bytes:
        sequence = struct.pack("!Q", self._sequence)
        self._sequence += 1
        data = sequence + struct.pack("!BHH", content_type, 0x0303, len(payload))
        return plain(content_type, sequence + self._aead.encrypt(self._salt + sequence, payload, data))


def forging_client(sock: socket.socket, context: ssl.SSLContext, key_log: Path) -> Tls12Sender | Tls13Sender:
    """Shakes hands over ``sock``, and leaves it to the caller, with what seals the client's next records."""
    context.keylog_filename = str(key_log)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    flight = b""
    while True:
        try:
            client.do_handshake()
            break
        except ssl.SSLWantReadError:
            sock.sendall(outgoing.read())
            data = sock.recv(65536)
            assert data, "the server ended during the handshake"
            flight += data
            incoming.write(data)
    sock.sendall(outgoing.read())
    if client.version() == "TLSv1.3":
        return Tls13Sender(key_log)
    return Tls12Sender(key_log, server_random_of(flight))


def server_random_of(server_flight: bytes) -> bytes:
    """Of a flight that begins with a ServerHello."""
    assert server_flight[0] == HANDSHAKE
    assert server_flight[5] == 2
    return server_flight[11:43]


def ticket(nonce: int) -> bytes:
    """A NewSessionTicket of TLS 1.3."""
    body = struct.pack("!IIB", 7200, 0, 2) + struct.pack("!H", nonce) + b"\x00\x04tick" + b"\x00\x00"
    return b"\x04" + len(body).to_bytes(3) + body


def _logged(key_log: Path, label: str) -> tuple[bytes, bytes]:
    """Client random and secret of the last connection."""
    lines = [line.split() for line in key_log.read_text().splitlines() if line.startswith(label + " ")]
    return bytes.fromhex(lines[-1][1]), bytes.fromhex(lines[-1][2])


def _expand_label(secret: bytes, label: bytes, size: int) -> bytes:
    """HKDF-Expand-Label of RFC 8446 with an empty context, for at most one block of output."""
    label = b"tls13 " + label
    info = struct.pack("!HB", size, len(label)) + label + b"\x00"
    return hmac.digest(secret, info + b"\x01", hashlib.sha256)[:size]


def _prf(secret: bytes, seed: bytes, size: int) -> bytes:
    """P_SHA256 of RFC 5246."""
    output, block = b"", seed
    while len(output) < size:
        block = hmac.digest(secret, block, hashlib.sha256)
        output += hmac.digest(secret, block + seed, hashlib.sha256)
    return output[:size]
