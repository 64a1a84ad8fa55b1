"""A TLS client, tlslite-ng's, that lets a test change whatever it sends."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from terminator_process import TIMEOUT
from tlslite.constants import AlertDescription
from tlslite.errors import TLSAbruptCloseError, TLSRemoteAlert
from tlslite.handshakesettings import HandshakeSettings
from tlslite.messages import Message
from tlslite.tlsconnection import TLSConnection

if TYPE_CHECKING:
    from collections.abc import Callable

Change = "Callable[[Any], Any]"
"""Takes and returns a message of tlslite-ng's."""

TLS12, TLS13 = (3, 3), (3, 4)
SERVED = "served"


class Wire:
    """A socket that sends everything at once when an answer is waited for: a server that ends the connection in between
    would make what is still to be sent fail, and the client would never read the alert."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._unsent = bytearray()
        self.change: Callable[[bytearray], bytes] | None = None
        """Changes the next record."""

    def send(self, data: bytes) -> int:
        change, self.change = self.change, None
        self._unsent += data if change is None else change(bytearray(data))
        return len(data)

    def recv(self, size: int) -> bytes:
        unsent, self._unsent = self._unsent, bytearray()
        self._socket.sendall(unsent)
        return self._socket.recv(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


class Client(TLSConnection):  # type: ignore[misc]
    def __init__(self, sock: socket.socket, change: Change) -> None:
        self.wire = Wire(sock)
        super().__init__(self.wire)
        self._change = change

    def _sendMsg(self, msg: Any, *arguments: Any, **options: Any) -> Any:  # noqa: N802 (tlslite's name)
        return super()._sendMsg(self._change(msg), *arguments, **options)

    def record(self, content_type: int, payload: bytes) -> None:
        """Sends this as one record, protected as is due."""
        for _ in self._recordLayer.sendRecord(Message(content_type, bytearray(payload))):
            pass


def outcome(
    address: tuple[str, int],
    version: tuple[int, int],
    *,
    key_exchange: str = "ecdhe_rsa",
    cipher: str = "aes128gcm",
    change: Change = lambda message: message,
    then: Callable[[Client], object] = lambda _client: None,
) -> str:
    """A handshake, of which each message passes through ``change``; then ``then``, and a line. Returns the alert that
    the server answers with, or whether it serves the client or ends the connection in silence."""
    settings = HandshakeSettings()
    settings.minVersion = settings.maxVersion = version
    settings.keyExchangeNames = [key_exchange]
    settings.keyShares = ["x25519"]
    settings.cipherNames = [cipher]
    with socket.create_connection(address, TIMEOUT) as sock:
        client = Client(sock, change)
        try:
            client.handshakeClientCert(settings=settings, serverName="localhost")
            then(client)
            client.write(b"stressed\n")
            answer = client.read(min=9, max=9)
        except TLSRemoteAlert as alert:
            return AlertDescription.toRepr(alert.description) or str(alert.description)
        except (TLSAbruptCloseError, ConnectionError):
            return "closed in silence"
        assert answer == b"desserts\n"
        return SERVED
