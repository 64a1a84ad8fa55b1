"""Runs CUDA kernels without a GPU: executes their PTX, as NVIDIA's manual of the PTX ISA defines it, for many warps at
once. ``ptx_parser.py`` compiles it to steps. What stays in registers is computed by ``native/ptx_registers.c``; memory,
calls and branches are followed here.

This shows what the kernels' host build can't: the device's own branches of the source (carry chains and other
inline assembly, shuffles and ballots, fused multiply-adds, the table in shared memory), and the loads and stores that
the compiler makes of the rest. An address outside the buffers of a launch, an exchange among threads that are not all
there, threads that use the same word of shared memory without a __syncwarp() in between, and a register that nobody
has written are errors. Not seen: what the assembler makes of PTX.
"""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from ptx_parser import NATIVE, ONES, OPERATIONS, SHARED, SPECIAL, FaultError, Parameter, ffi, parse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from ptx_parser import Function

WARP = 32
UNWRITTEN = "a register that nobody has written"


@cache
def _native() -> Any:
    with tempfile.TemporaryDirectory() as directory:
        library = f"{directory}/ptx_registers.so"
        flags = [
            "-std=c11",
            "-O3",
            "-march=native",
            "-frounding-math",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-shared",
            "-fPIC",
        ]
        subprocess.run(["gcc", *flags, NATIVE / "ptx_registers.c", "-o", library, "-lm"], check=True, timeout=60)
        return ffi.dlopen(library)


class Machine:
    """One module: PTX text, as NVRTC returns it."""

    def __init__(self, text: str) -> None:
        self._functions = {function.name: function for function in parse(text)}

    def run(self, entry: str, arguments: bytes, warps: int, table_bytes: int, buffers: Sequence[NDArray[Any]]) -> None:
        """Runs ``warps`` blocks of one warp each, with ``table_bytes`` of shared memory. ``arguments``: the kernel's
        parameter, in which are addresses of ``buffers``. Raises FaultError."""
        run = Run(self._functions, warps, table_bytes, buffers)
        run.call(self._functions[entry], {f"{entry}_param_0": Parameter(arguments)}, np.ones(run.threads, bool))


class Uses:
    """Finds races in shared memory. Of each word it knows which thread stored there last, which loaded it last, and how
    often the thread's warp had synchronized by then."""

    def __init__(self, threads: int, size: int) -> None:
        self._threads = np.arange(threads)
        self._now = np.ones(threads, np.int64)
        self._stored_by, self._stored_at, self._loaded_by, self._loaded_at = np.zeros((4, size // 4), np.int64)

    def load(self, place: NDArray[np.uint64], size: int, where: Any) -> None:
        for word in self._words(place, size):
            self._check(self._stored_by[word], self._stored_at[word], where)
            self._loaded_by[word], self._loaded_at[word] = self._threads[where], self._now[where]

    def store(self, place: NDArray[np.uint64], size: int, where: Any) -> None:
        for word in self._words(place, size):
            self._check(self._stored_by[word], self._stored_at[word], where)
            self._check(self._loaded_by[word], self._loaded_at[word], where)
            self._stored_by[word], self._stored_at[word] = self._threads[where], self._now[where]

    def synchronize(self, where: Any) -> None:
        self._now[where] += 1

    def _words(self, place: NDArray[np.uint64], size: int) -> list[NDArray[np.uint64]]:
        first = place * np.uint64(size // 4)
        return [first + np.uint64(i) for i in range(size // 4)]

    def _check(self, thread: NDArray[np.int64], at: NDArray[np.int64], where: Any) -> None:
        if ((thread != self._threads[where]) & (at == self._now[where])).any():
            raise FaultError("a word of shared memory is used by two threads that have not synchronized")


class Run:
    """One launch, and what its threads share."""

    def __init__(
        self, functions: Mapping[str, Function], warps: int, table_bytes: int, buffers: Sequence[NDArray[Any]]
    ) -> None:
        self.functions, self.warps = functions, warps
        self.threads = warps * WARP
        number = np.arange(self.threads, dtype=np.uint64)
        thread, self.warp = number % WARP, number // WARP
        special = thread, self.warp, np.full(self.threads, WARP, np.uint64), thread
        self._special = dict(zip(SPECIAL, special, strict=True))
        self._idle: dict[str, Registers] = {}  # of calls that have returned, by function: their constants are filled in
        self.shared = np.zeros((warps, table_bytes), np.uint8)
        self.uses = Uses(self.threads, self.shared.size)
        self._buffers = sorted(
            ((array.ctypes.data, array.nbytes, array.reshape(-1).view(np.uint8)) for array in buffers),
            key=lambda buffer: buffer[0],
        )

    def call(self, function: Function, parameters: Mapping[str, Parameter], threads: NDArray[np.bool_]) -> None:
        registers = self._idle.pop(function.name, None)
        if registers is None:
            known: dict[int, Any] = {row: np.uint64(number) for number, row in function.constants.items()}
            known |= {row: self._special[special] for special, row in function.special.items()}
            registers = Registers(self, function.rows, known)
        place = Place(self, registers, dict(parameters))
        blocks, end = function.blocks, len(function.blocks)
        at = np.where(threads, 0, end)
        while (number := int(at.min())) < end:
            # Those that are behind go on first; so threads meet again behind a branch.
            here = at == number
            block = blocks[number]
            place.active = None if here.all() else here
            for step in block.steps:
                step(place)
            at = np.where(here, number + 1, at)
            if block.branch is not None:
                predicate, taken_with, label = block.branch
                taken = here
                if predicate is not None:
                    taken = here & (registers.load(predicate, place.active).astype(bool) == taken_with)
                at = np.where(taken, function.labels[label] if label else end, at)
        registers.clear()
        self._idle[function.name] = registers

    def load(self, space: str, address: Any, size: int, active: NDArray[np.bool_] | None) -> NDArray[np.uint64]:
        memory, place, where = self._find(space, address, size, active)
        if space == "shared":
            self.uses.load(place, size, where)
        loaded = np.zeros(self.threads, np.uint64)
        loaded[where] = memory.view(f"<u{size}")[place]
        return loaded

    def store(self, space: str, address: Any, size: int, value: Any, active: NDArray[np.bool_] | None) -> None:
        memory, place, where = self._find(space, address, size, active)
        if space == "shared":
            self.uses.store(place, size, where)
        if not memory.flags.writeable:
            raise FaultError("a store to memory that is only read")
        memory.view(f"<u{size}")[place] = np.broadcast_to(value, self.threads)[where].astype(f"<u{size}")

    def _find(self, space: str, address: Any, size: int, active: NDArray[np.bool_] | None) -> tuple[Any, Any, Any]:
        """The memory, the elements in it, and the threads that have one each."""
        where = slice(None) if active is None else active
        at = np.broadcast_to(address, self.threads)[where]
        if (at % np.uint64(size)).any():
            raise FaultError(f"an address that is not a multiple of {size}")
        if space == "shared":
            bytes_each = self.shared.shape[1]
            at = at - np.uint64(SHARED)  # below: wraps to far above
            if (at >= np.uint64(bytes_each - size + 1)).any():
                raise FaultError(f"an address outside the {bytes_each} bytes of shared memory")
            return self.shared.reshape(-1), (self.warp[where] * np.uint64(bytes_each) + at) // np.uint64(size), where
        lowest, highest = int(at.min()), int(at.max())
        for start, length, memory in self._buffers:
            if start <= lowest and highest + size <= start + length:
                return memory, (at - np.uint64(start)) // np.uint64(size), where
        raise FaultError(f"addresses {lowest:#x} to {highest + size:#x}, which are in no buffer")


@dataclass
class Place:
    """Where some threads of a call are: what a step of a function is given."""

    run: Run
    registers: Registers
    parameters: dict[str, Parameter]
    active: NDArray[np.bool_] | None = None
    """Which threads; None for all."""


class Registers:
    """The registers of one call's threads. They hold 64 bits: an unsigned number, a double's bits, or 0 or 1 for a
    predicate."""

    def __init__(self, run: Run, rows: int, known: Mapping[int, Any]) -> None:
        """``known``: what stands in some rows from the beginning and stays."""
        self._values = np.empty((run.warps, rows, WARP), np.uint64)
        self._written = np.empty((run.warps, rows), np.uint8)
        self._known = list(known)
        for row, value in known.items():
            self._values[:, row] = np.reshape(value, (-1, WARP) if np.ndim(value) else ())
        self.clear()

    def clear(self) -> None:
        self._written[:] = 0
        self._written[:, self._known] = 1

    def load(self, row: int, active: NDArray[np.bool_] | None) -> NDArray[np.uint64]:
        if not self._written[self._warps(active), row].all():
            raise FaultError(UNWRITTEN)
        return self._values[:, row].reshape(-1)

    def store(self, row: int, value: Any, active: NDArray[np.bool_] | None) -> None:
        values = np.broadcast_to(value, self._values[:, row].size).reshape(-1, WARP)
        np.copyto(self._values[:, row], values, where=True if active is None else active.reshape(-1, WARP))
        self._written[self._warps(active), row] = 1

    def compute(self, instructions: Any, active: NDArray[np.bool_] | None) -> None:
        warps, rows, _ = self._values.shape
        values = ffi.from_buffer("uint64_t[]", self._values)
        written = ffi.from_buffer("uint8_t[]", self._written)
        only = ffi.NULL if active is None else ffi.from_buffer("uint8_t[]", active.view(np.uint8))
        place = _native().ptx_compute(len(instructions), instructions, warps, rows, values, written, only)
        if place < len(instructions):
            one = instructions[place]
            if one.operation != OPERATIONS["EXCHANGE"]:
                raise FaultError(UNWRITTEN)
            if (self.load(one.a, active) != ONES[32]).any():
                raise FaultError("an exchange among some threads of a warp")
            raise FaultError("threads of a warp that need one another are not all at the same place")

    @staticmethod
    def _warps(active: NDArray[np.bool_] | None) -> Any:
        return slice(None) if active is None else active.reshape(-1, WARP).any(axis=1)
