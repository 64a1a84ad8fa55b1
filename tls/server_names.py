"""Tables of contexts by server name, and the SSL_CTXs that they refer to."""

from collections.abc import Mapping
from typing import Any

from gpu_provider.tls._ssl import ffi, lib

__all__ = ["OwnedContext", "ServerNames", "is_server_name"]


def is_server_name(name: str) -> bool:
    """Whether clients can ask for it. Of wildcards, clients accept only ``*.`` at the front."""
    host = name.removeprefix("*.")
    return bool(host) and len(name) <= 255 and name.isascii() and "*" not in host and "\0" not in host


class OwnedContext:
    """Owns an SSL_CTX and what its callbacks point to."""

    __slots__ = ("alive", "library_context", "pointer")

    def __init__(self, pointer: Any, library_context: object) -> None:
        self.pointer = pointer
        self.library_context = library_context
        self.alive: list[object] = []

    def __del__(self) -> None:
        # It goes before the tables, and before the library context.
        lib.SSL_CTX_free(self.pointer)


class ServerNames:
    """A table of contexts by server name. A Context keeps its current one, and a connection the one that it was made
    with.

    It refers to the SSL_CTXs and not to the Contexts, because those have tables too: contexts that name themselves or
    each other would form a cycle, and their private keys would stay in memory until a garbage collection.
    """

    __slots__ = ("_alive", "pointer")

    def __init__(self, contexts: Mapping[str, OwnedContext]) -> None:
        """``contexts`` by ASCII names in lower case."""
        self._alive = [(ffi.new("char[]", name.encode()), context) for name, context in sorted(contexts.items())]
        entries = [(name, context.pointer) for name, context in self._alive]
        self.pointer = ffi.new("gp_names *", (len(entries), entries))
