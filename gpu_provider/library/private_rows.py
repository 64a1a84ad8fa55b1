"""The private operation as a library call over an array, with one key for all rows or one for each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from gpu_provider.backends.base import Batch
from gpu_provider.backends.libcrypto import libcrypto_verify
from gpu_provider.client import class_bytes, class_of
from gpu_provider.engine.calls import Call
from gpu_provider.errors import InputError, ProviderClosedError
from gpu_provider.kinds import PRIVATE_ROWS
from gpu_provider.library.keys import check_key
from gpu_provider.library.operands import label, not_less, widen
from gpu_provider.native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from gpu_provider.backends.base import Backend, Rows
    from gpu_provider.client import Client
    from gpu_provider.engine.calls import Operands
    from gpu_provider.library.keys import Key

__all__ = ["Keys", "KeysOfRows", "PrivateCall", "keys_of_rows", "private_calls"]

Keys: TypeAlias = "Key | Sequence[Key]"


@dataclass(frozen=True, slots=True)
class KeysOfRows:
    """Says which row of a call has which key."""

    keys: list[Key]
    """The keys, without duplicates."""
    of_row: NDArray[np.intp]
    """[n] indices into ``keys``."""

    @property
    def sizes(self) -> tuple[int, int]:
        """The bytes of the shortest and the longest modulus, in whole limbs. A result has as many as the longest."""
        sizes = [-(-key.bytes // 8) * 8 for key in self.keys]
        return min(sizes, default=0), max(sizes, default=0)

    def handles(self) -> NDArray[np.uint64]:
        """[n]."""
        return np.array([key.handle for key in self.keys], np.uint64)[self.of_row]

    def moduli(self, width: int) -> Rows:
        """[n, width], read-only."""
        data = b"".join(key.n.to_bytes(width, "little") for key in self.keys)
        moduli = np.frombuffer(data, np.uint8).reshape(len(self.keys), width)
        if len(moduli) == 1:
            return np.broadcast_to(moduli, (len(self.of_row), width))
        return moduli[self.of_row]

    @contextlib.contextmanager
    def pinned(self) -> Iterator[None]:
        """Keeps the keys in the key table, even if they are closed meanwhile. Raises ProviderClosedError if one is
        closed already."""
        with contextlib.ExitStack() as unpin:
            for key in self.keys:
                unpin.enter_context(key.pinned())
            yield


class PrivateCall(Call):
    """Rows of one size class. Its keys stay in the key table until its result is there, even if they are closed."""

    def __init__(self, client: Client, class_index: int, handles: NDArray[np.uint64], inputs: Rows) -> None:
        """``handles``: [n]. ``inputs``: [n, bytes of the class], each below its modulus. If a key is closed already,
        the call has failed from the start."""
        kind, row_bytes = PRIVATE_ROWS[class_index], inputs.shape[1]
        super().__init__(kind=kind, operands=(handles, inputs), row_bytes=row_bytes, units_per_row=1)
        self._client = client
        self._pinned: list[int] = []
        for handle in np.unique(handles).tolist():
            if not _pin(client, handle):
                self.fail(ProviderClosedError("a key is closed; load it again"))
                return
            self._pinned.append(handle)

    def compute(self, backend: Backend, operands: Operands, outputs: Rows, ok: NDArray[np.uint8]) -> int:
        handles, inputs = (operand.view() for operand in operands)
        # A backend that used its inputs as scratch space would have its results verified against the wrong numbers.
        handles.flags.writeable = inputs.flags.writeable = False
        batch = Batch(self.row_bytes, handles, inputs, outputs, ok)
        backend.private_op(batch)
        return 0 if backend.verifies else libcrypto_verify(self._client, batch)

    def release(self) -> None:
        for handle in self._pinned:
            _unpin(self._client, handle)


def _pin(client: Client, handle: int) -> bool:
    return bool(lib.gp_key_table_pin(client.keys, handle, ffi.new("uint32_t *")))


def _unpin(client: Client, handle: int) -> None:
    lib.gp_client_unpin_key(client.pointer, handle, 1)


def keys_of_rows(client: Client, keys: Keys, rows: int) -> KeysOfRows:
    """``keys``: one for all rows, or one for each. Raises InputError."""
    of_rows, name = (list(keys), "a key") if isinstance(keys, Iterable) else ([keys], "the key")
    for key in of_rows:
        check_key(client, key, name)
    if len(of_rows) not in {1, rows}:
        raise InputError(f"there are {len(of_rows)} keys for {rows} rows; give one for all, or one for each")
    places = {key: place for place, key in enumerate(dict.fromkeys(of_rows))}
    of_row = np.fromiter((places[key] for key in of_rows), np.intp, len(of_rows))
    return KeysOfRows(list(places), np.broadcast_to(of_row, (rows,)))


def private_calls(client: Client, keys: KeysOfRows, inputs: Rows) -> list[tuple[NDArray[np.intp], PrivateCall]]:
    """A call for each size class among the keys, with the indices of its rows. Raises InputError for a row that is not
    below its modulus."""
    width = max(inputs.shape[1], keys.sizes[1])
    wide = widen(inputs, len(inputs), width)
    too_large = not_less(wide, keys.moduli(width))
    if too_large.size:
        row = int(too_large[0])
        raise InputError(
            f"{label('input', row, len(wide))} is not less than its key's {keys.keys[keys.of_row[row]].bits}-bit "
            "modulus; reduce it or pad it first"
        )
    class_of_key = np.array([class_of(key.bytes) for key in keys.keys])
    class_of_row, handles = class_of_key[keys.of_row], keys.handles()
    calls = []
    for class_index in np.unique(class_of_row).tolist():
        rows = np.flatnonzero(class_of_row == class_index)
        size = class_bytes(class_index)
        numbers = widen(wide[rows, :size], len(rows), size)
        calls.append((rows, PrivateCall(client, class_index, handles[rows], numbers)))
    return calls
