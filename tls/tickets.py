"""TicketKeys: the keys that encrypt session tickets, shared by several contexts."""

import os
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakSet

from gpu_provider.tls._ssl import ffi, lib
from gpu_provider.tls.errors import Error, why
from gpu_provider.tls.library_context import default_library_context

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed import ReadableBuffer

__all__ = ["TicketKeys"]


class TicketKeys:
    """Keys for the session tickets of all contexts that are given them (:meth:`Context.set_ticket_keys`). A client can
    resume with one of these contexts a session that it began with another.

    A key encrypts for ``rotate_after`` seconds, and decrypts for three times as long: with the default that covers the
    two hours for which OpenSSL's tickets are valid. The keys are wiped when nobody refers to this object or to a
    context that has it.

    ``memory``: the descriptor of a memfd (``os.memfd_create``), for processes that share the keys. Each makes an object
    of its own, the first from an empty one and before the others. It may be closed afterwards.
    """

    __slots__ = ("__weakref__", "pointer")

    MOST: ClassVar[int] = lib.GP_TICKETS_KEYS
    """So many keys decrypt."""

    def __init__(self, rotate_after: float = 3600.0, *, memory: int | None = None) -> None:
        if not 0 < rotate_after <= 86400:
            raise ValueError(f"rotate_after must be more than 0 seconds and at most 86400, not {rotate_after!r}")
        self._make(int(rotate_after * 1e9) or 1, -1 if memory is None else memory)

    def _make(self, interval: int, descriptor: int) -> None:
        tickets = lib.gp_tickets_new(default_library_context(), interval, descriptor)
        if tickets == ffi.NULL:
            raise Error(f"no keys for session tickets: {why()}")
        self.pointer: Any = ffi.gc(tickets, lib.gp_tickets_free)
        _all.add(self)

    @classmethod
    def given(cls, keys: "Sequence[ReadableBuffer]") -> "TicketKeys":
        """One to three keys of your own, for servers that share them: the first encrypts, all decrypt, and none gets
        too old. Each is 48 or 80 random bytes, which are its name, what encrypts (AES-128 or AES-256) and what
        authenticates; or the same in base64. Raises ValueError, which does not show the key."""
        if not 1 <= len(keys) <= cls.MOST:
            raise ValueError(f"there must be 1 to {cls.MOST} keys for session tickets, not {len(keys)}")
        self = cls.__new__(cls)
        self._make((2**64 - 1) // cls.MOST, -1)  # for centuries
        for index, key in enumerate(keys):
            with ffi.from_buffer(key) as data:
                if not lib.gp_tickets_give(self.pointer, index, data, len(data)):
                    raise ValueError(
                        f"a key for session tickets must be 48 or 80 bytes or their base64, not {len(data)} bytes"
                    )
        return self

    def rotate(self) -> None:
        """Starts to encrypt with a new key. After three calls no earlier ticket is accepted."""
        if not lib.gp_tickets_rotate(self.pointer):
            raise Error(f"no new key for session tickets: {why()}")


_all: WeakSet[TicketKeys] = WeakSet()


def _renew_locks_in_child() -> None:
    for keys in _all:
        lib.gp_tickets_after_fork(keys.pointer)


os.register_at_fork(after_in_child=_renew_locks_in_child)
