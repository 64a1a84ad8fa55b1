"""Tables of contexts by server name, and the SSL_CTXs that they refer to."""

from collections.abc import Sequence
from typing import Any

from gpu_provider.tls._ssl import ffi, lib

__all__ = ["OwnedContext", "ServerNames"]


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

    __slots__ = ("_contexts", "pointer")

    def __init__(self, entries: Sequence[tuple[str, OwnedContext]]) -> None:
        texts = [ffi.new("char[]", name.encode()) for name, _ in entries]
        self._contexts = [context for _, context in entries]
        table = lib.gp_names_new(
            ffi.new("char *[]", texts),
            ffi.new("SSL_CTX *[]", [context.pointer for context in self._contexts]),
            len(entries),
        )
        if table == ffi.NULL:
            raise MemoryError("server names")
        self.pointer = ffi.gc(table, lib.gp_names_free)
