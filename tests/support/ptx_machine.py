"""Runs CUDA kernels without a GPU: executes their PTX, as NVIDIA's manual of the PTX ISA defines it, for many warps at
once. What stays in registers is computed by ``native/ptx_registers.c``, memory, calls and branches are followed here.

What the kernels' host build can't show is seen here: the device's own branches of the source (carry chains and other
inline assembly, shuffles and ballots, fused multiply-adds, the table in shared memory), and the loads and stores that
the compiler makes of the rest. An address outside the buffers of a launch, an exchange among threads that are not all
there, threads that use the same word of shared memory without a __syncwarp() in between, and a register that nobody
has written are errors. Not seen: what the assembler makes of PTX.

Only the instructions that the kernels use are known; another one is an error that names it.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cffi import FFI

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

WARP = 32
_SHARED = 1 << 20  # where shared memory begins, in addresses of its own
_ONES = [(1 << bits) - 1 for bits in range(65)]
_SPECIAL = ("%tid.x", "%ctaid.x", "%ntid.x", "%laneid")

_NATIVE = Path(__file__).resolve().parents[1] / "native"
_ffi = FFI()
_ffi.cdef((_NATIVE / "ptx_registers.h").read_text())
_OPERATIONS: dict[str, int] = _ffi.typeof("enum operation").relements


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
        subprocess.run(["gcc", *flags, _NATIVE / "ptx_registers.c", "-o", library, "-lm"], check=True, timeout=60)
        return _ffi.dlopen(library)


UNWRITTEN = "a register that nobody has written"


class FaultError(Exception):
    """What would be an error of the device, or undefined."""


class Machine:
    """One module: PTX text, as NVRTC returns it."""

    def __init__(self, text: str) -> None:
        self.functions = {function.name: function for function in _parse(text)}

    def run(self, entry: str, arguments: bytes, warps: int, table_bytes: int, buffers: Sequence[NDArray[Any]]) -> None:
        """Runs ``warps`` blocks of one warp each, with ``table_bytes`` of shared memory. ``arguments``: the kernel's
        parameter, in which are addresses of ``buffers``. Raises FaultError."""
        run = _Run(self, warps, table_bytes, buffers)
        parameter = f"{entry}_param_0"
        self.functions[entry].call(run, {parameter: _Parameter(arguments)}, np.ones(run.threads, bool))


@dataclass
class _Parameter:
    """Of a kernel, the same for all threads; or of a function, by offset what each thread has stored there."""

    given: bytes = b""
    stored: dict[int, NDArray[np.uint64]] = field(default_factory=dict)

    def load(self, at: int, size: int) -> Any:
        return self.stored[at] if self.stored else np.uint64(int.from_bytes(self.given[at : at + size], "little"))


class _Uses:
    """Of each word of shared memory, the thread that stored there last, the one that loaded it last, and when: how many
    times the thread's warp had synchronized by then."""

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


class _Run:
    """What the threads of a launch share."""

    def __init__(self, machine: Machine, warps: int, table_bytes: int, buffers: Sequence[NDArray[Any]]) -> None:
        self.machine, self.warps = machine, warps
        self.threads = warps * WARP
        number = np.arange(self.threads, dtype=np.uint64)
        lane, self.warp = number % WARP, number // WARP
        self.special = dict(zip(_SPECIAL, (lane, self.warp, np.full(self.threads, WARP, np.uint64), lane), strict=True))
        self.idle: dict[str, _Registers] = {}
        """By the function's name, those of a call that has returned: the next one needn't fill in its constants."""
        self.shared = np.zeros((warps, table_bytes), np.uint8)
        self.uses = _Uses(self.threads, self.shared.size)
        self._buffers = sorted(
            ((array.ctypes.data, array.nbytes, array.reshape(-1).view(np.uint8)) for array in buffers),
            key=lambda buffer: buffer[0],
        )

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
            at = at - np.uint64(_SHARED)  # below: wraps to far above
            if (at >= np.uint64(bytes_each - size + 1)).any():
                raise FaultError(f"an address outside the {bytes_each} bytes of shared memory")
            return self.shared.reshape(-1), (self.warp[where] * np.uint64(bytes_each) + at) // np.uint64(size), where
        lowest, highest = int(at.min()), int(at.max())
        for start, length, memory in self._buffers:
            if start <= lowest and highest + size <= start + length:
                return memory, (at - np.uint64(start)) // np.uint64(size), where
        raise FaultError(f"addresses {lowest:#x} to {highest + size:#x}, which are in no buffer")


@dataclass
class _Place:
    """Where the threads of a call are: what a step of a function is given."""

    run: _Run
    registers: _Registers
    parameters: dict[str, _Parameter]
    active: NDArray[np.bool_] | None = None
    """Which threads; None for all."""


class _Registers:
    """Of the threads of one call: unsigned numbers in 64 bits, the upper ones zero; the bits of doubles; 0 or 1 for
    predicates."""

    def __init__(self, run: _Run, rows: int, known: Mapping[int, Any]) -> None:
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
        values = _ffi.from_buffer("uint64_t[]", self._values)
        written = _ffi.from_buffer("uint8_t[]", self._written)
        only = _ffi.NULL if active is None else _ffi.from_buffer("uint8_t[]", active.view(np.uint8))
        place = _native().ptx_compute(len(instructions), instructions, warps, rows, values, written, only)
        if place < len(instructions):
            one = instructions[place]
            if one.operation != _OPERATIONS["EXCHANGE"]:
                raise FaultError(UNWRITTEN)
            if (self.load(one.a, active) != _ONES[32]).any():
                raise FaultError("an exchange among some threads of a warp")
            raise FaultError("threads of a warp that need one another are not all at the same place")

    @staticmethod
    def _warps(active: NDArray[np.bool_] | None) -> Any:
        return slice(None) if active is None else active.reshape(-1, WARP).any(axis=1)


# By name without its type, what an instruction computes of its operands.
_INTEGER = {
    "add": "ADD",
    "sub": "SUBTRACT",
    "and": "AND",
    "or": "OR",
    "xor": "XOR",
    "not": "NOT",
    "neg": "NEGATE",
    "mul.lo": "MULTIPLY",
    "mul.hi": "MULTIPLY_HIGH",
    "mad.lo": "MULTIPLY_ADD",
    "clz": "LEADING_ZEROS",
    "mov": "MOVE",
    "cvta.to.global": "MOVE",
    "selp": "SELECT",
    "shl": "SHIFT_LEFT",
}
_REAL = {"add": "ADD_REAL", "sub": "SUBTRACT_REAL", "fma.rz": "MULTIPLY_ADD_TOWARD_ZERO", "mov": "MOVE"}
_PREDICATE = {"and": "AND", "or": "OR", "xor": "XOR", "mov": "MOVE"}
# Those of signed numbers, which have to be extended to 64 bits first.
_SIGNED = {"min": "MINIMUM_SIGNED", "max": "MAXIMUM_SIGNED", "shr": "SHIFT_RIGHT_SIGNED"}
_UNSIGNED = {"min": "MINIMUM", "max": "MAXIMUM", "shr": "SHIFT_RIGHT"}
_SHUFFLES = {"up": "UP", "down": "DOWN", "idx": "TO"}


@dataclass
class _Block:
    """Instructions without a branch among them."""

    steps: list[Any] = field(default_factory=list)
    """Each a function of a ``_Place``; while it is compiled, also lists of instructions for ``_Registers.compute``."""
    labels: list[str] = field(default_factory=list)
    branch: tuple[int | None, bool, str] | None = None
    """The predicate's row, or None for always; its value with which it is taken; the label, or nothing for the end."""


class _Function:
    def __init__(self, name: str, result: str, parameters: list[str], body: str) -> None:
        self.name, self.result, self.parameters = name, result, parameters
        self._rows = 0
        self._scopes: list[dict[str, int]] = [{}]
        self._blocks = [_Block()]
        self._constants: dict[int, int] = {}
        self._special = {special: self._row() for special in _SPECIAL}
        self._carry, *self._temporary = (self._row() for _ in range(4))
        self._compile(body)

    # ---- executing ----

    def call(self, run: _Run, parameters: Mapping[str, _Parameter], threads: NDArray[np.bool_]) -> None:
        registers = run.idle.pop(self.name, None)
        if registers is None:
            known: dict[int, Any] = {row: np.uint64(number) for number, row in self._constants.items()}
            known |= {row: run.special[special] for special, row in self._special.items()}
            registers = _Registers(run, self._rows, known)
        place = _Place(run, registers, dict(parameters))
        blocks, end = self._blocks, len(self._blocks)
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
                at = np.where(taken, self._labels[label] if label else end, at)
        registers.clear()
        run.idle[self.name] = registers

    # ---- compiling ----

    def _compile(self, body: str) -> None:
        position = 0
        token = re.compile(r"\s*(?:([{}])|([$\w]+):|([^;{}:]*(?:\{[^}]*\}[^;{}]*)*);)")
        while body[position:].strip():
            match = token.match(body, position)
            if match is None:
                raise FaultError(f"{self.name}: not understood: {body[position : position + 80]!r}")
            position = match.end()
            brace, label, statement = match.groups()
            if brace == "{":
                self._scopes.append({})
            elif brace == "}":
                self._scopes.pop()
            elif label:
                self._blocks.append(_Block(labels=[label]))
            else:
                self._statement(" ".join(statement.split()))
        self._labels = {label: place for place, block in enumerate(self._blocks) for label in block.labels}
        for block in self._blocks:
            block.steps = [step if callable(step) else _computation(step) for step in block.steps]

    def _statement(self, text: str) -> None:
        if text.startswith((".pragma", ".loc")):
            return
        if text.startswith(".reg"):
            self._declare(text)
            return
        if text.startswith(".param"):
            name = re.sub(r"\[\d+\]$", "", text.rsplit(maxsplit=1)[-1])
            self._step(lambda place: place.parameters.update({name: _Parameter()}))
            return
        guard = ""
        if text.startswith("@"):
            guard, text = text[1:].split(None, 1)
        opcode, _, rest = text.partition(" ")
        operands = [part.strip() for part in re.split(r",(?![^{\[(]*[}\])])", rest)] if rest else []
        if opcode in {"bra", "bra.uni", "ret"}:
            predicate = self._register(guard.lstrip("!")) if guard else None
            self._blocks[-1].branch = predicate, not guard.startswith("!"), operands[0] if operands else ""
            self._blocks.append(_Block())
        elif guard:
            raise FaultError(f"{self.name}: a guarded {opcode}")
        else:
            self._instruction(opcode, operands)

    def _declare(self, text: str) -> None:
        for name in re.sub(r"^\.reg\s+\.\w+\s+", "", text).split(","):
            ranged = re.fullmatch(r"\s*(\S+)<(\d+)>", name)
            names = [f"{ranged[1]}{i}" for i in range(int(ranged[2]))] if ranged else [name.strip()]
            self._scopes[-1].update((each, self._row()) for each in names)

    def _row(self) -> int:
        self._rows += 1
        return self._rows - 1

    def _register(self, name: str) -> int:
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        raise FaultError(f"{self.name}: an operand {name}")

    def _constant(self, number: int) -> int:
        if number not in self._constants:
            self._constants[number] = self._row()
        return self._constants[number]

    def _source(self, text: str, bits: int = 64) -> int:
        if re.fullmatch(r"-?\d+|0x[0-9a-fA-F]+", text):
            return self._constant(int(text, 0) & _ONES[bits])
        if re.fullmatch(r"0d[0-9a-fA-F]{16}", text):
            return self._constant(int(text[2:], 16))
        if text in self._special:
            return self._special[text]
        if re.fullmatch(r"[\w$]*table\w*", text):  # the one array in shared memory
            return self._constant(_SHARED)
        return self._register(text)

    def _step(self, step: Callable[[_Place], None]) -> None:
        self._blocks[-1].steps.append(step)

    def _compute(self, operation: str, target: int, *operands: int, bits: int = 64) -> int:
        """One instruction for ``_Registers.compute``; returns its target."""
        steps = self._blocks[-1].steps
        if not steps or callable(steps[-1]):
            steps.append([])
        steps[-1].append((_OPERATIONS[operation], bits, target, *operands, *(3 - len(operands)) * [0]))
        return target

    def _unknown(self, parts: list[str]) -> FaultError:
        return FaultError(f"{self.name}: the instruction {'.'.join(parts)} is not known")

    def _instruction(self, opcode: str, operands: list[str]) -> None:
        parts = opcode.split(".")
        handlers = {
            "addc": self._carry_chain,
            "bar": self._synchronize,
            "bfi": self._insert,
            "call": self._call,
            "cvt": self._convert,
            "ld": self._memory,
            "madc": self._carry_chain,
            "setp": self._compare,
            "shfl": self._shuffle,
            "st": self._memory,
            "vote": self._ballot,
        }
        handler = self._carry_chain if "cc" in parts else handlers.get(parts[0], self._arithmetic)
        handler(parts, operands)

    def _ballot(self, parts: list[str], operands: list[str]) -> None:
        if parts != ["vote", "sync", "ballot", "b32"]:
            raise self._unknown(parts)
        self._compute("EXCHANGE", 0, self._source(operands[2], 32))
        self._compute("BALLOT", self._register(operands[0]), self._source(operands[1]))

    def _synchronize(self, parts: list[str], operands: list[str]) -> None:
        if parts != ["bar", "warp", "sync"]:
            raise self._unknown(parts)
        self._compute("EXCHANGE", 0, self._source(operands[0], 32))
        self._step(lambda place: place.run.uses.synchronize(slice(None) if place.active is None else place.active))

    def _arithmetic(self, parts: list[str], operands: list[str]) -> None:
        name, kind = ".".join(parts[:-1]), parts[-1]
        if name == "mov" and "{" in "".join(operands):
            self._pack(operands)
            return
        target = self._register(operands[0])
        if kind in {"pred", "f64"}:
            forms, bits = (_PREDICATE if kind == "pred" else _REAL), 64
            if name == "not" and kind == "pred":
                self._compute("XOR", target, self._source(operands[1]), self._constant(1))
                return
        else:
            forms, bits = _INTEGER | _UNSIGNED, int(kind[1:])
        sources = [self._source(text, bits) for text in operands[1:]]
        if name in {"shl", "shr"}:
            sources[1] = self._source(operands[2], 32)
        if kind[0] == "s" and name in _SIGNED:
            sources[0] = self._signed(sources[0], bits, 0)
            if name != "shr":
                sources[1] = self._signed(sources[1], bits, 1)
            self._compute("MOVE", target, self._compute(_SIGNED[name], self._temporary[2], *sources), bits=bits)
        elif name == "mul.hi" and kind == "s32":
            product = self._compute("MULTIPLY", self._temporary[2], *self._both_signed(sources, bits))
            self._compute("SHIFT_RIGHT", product, product, self._constant(bits))
            self._compute("MOVE", target, product, bits=bits)
        elif name == "mul.wide" and kind[0] == "u":
            self._compute("MULTIPLY", target, *sources)
        elif name not in forms or (name == "mul.hi" and kind[0] == "s"):
            raise self._unknown(parts)
        else:
            self._compute(forms[name], target, *sources, bits=bits)

    def _signed(self, source: int, bits: int, place: int) -> int:
        """The number in 64 bits, in a register of its own for each ``place``."""
        return source if bits == 64 else self._compute("SIGN_EXTEND", self._temporary[place], source, bits=bits)

    def _both_signed(self, sources: list[int], bits: int) -> list[int]:
        return [self._signed(source, bits, place) for place, source in enumerate(sources)]

    def _pack(self, operands: list[str]) -> None:
        if "{" in operands[1]:
            low, high = (self._source(part, 32) for part in _vector(operands[1]))
            shifted = self._compute("SHIFT_LEFT", self._temporary[0], high, self._constant(32))
            self._compute("OR", self._register(operands[0]), low, shifted)
            return
        source = self._source(operands[1])
        low, high = (self._register(part) for part in _vector(operands[0]))
        self._compute("AND", low, source, self._constant(_ONES[32]))
        self._compute("SHIFT_RIGHT", high, source, self._constant(32))

    def _insert(self, _: list[str], operands: list[str]) -> None:
        """b, with the low bits of a in place of its own."""
        a, b = (self._source(text) for text in operands[1:3])
        place, length = (int(text) for text in operands[3:])
        own = self._compute("AND", self._temporary[0], a, self._constant(_ONES[length]))
        self._compute("SHIFT_LEFT", own, own, self._constant(place))
        others = self._compute("AND", self._temporary[1], b, self._constant(_ONES[64] & ~(_ONES[length] << place)))
        self._compute("OR", self._register(operands[0]), own, others)

    def _compare(self, parts: list[str], operands: list[str]) -> None:
        _, comparison, kind = parts
        bits = int(kind[1:])
        sources = [self._source(text, bits) for text in operands[1:]]
        if kind[0] == "f":
            raise self._unknown(parts)
        if kind[0] == "s":
            sources = self._both_signed(sources, bits)
        if comparison in {"gt", "ge"}:
            comparison = {"gt": "lt", "ge": "le"}[comparison]
            sources.reverse()
        operation = {"eq": "EQUAL", "ne": "NOT_EQUAL", "lt": "LESS", "le": "LESS_EQUAL"}[comparison]
        if kind[0] == "s" and operation.startswith("LESS"):
            operation += "_SIGNED"
        self._compute(operation, self._register(operands[0]), *sources)

    def _convert(self, parts: list[str], operands: list[str]) -> None:
        _, to, source = parts
        value = self._source(operands[1])
        if {to[0], source[0]} == {"s"}:
            value = self._signed(value, int(source[1:]), 0)
        elif {to[0], source[0]} != {"u"}:
            raise self._unknown(parts)
        self._compute("MOVE", self._register(operands[0]), value, bits=int(to[1:]))

    def _carry_chain(self, parts: list[str], operands: list[str]) -> None:
        """Sums of 32 bits in 64, of which the upper half is the carry; and of halves of products."""
        operation = parts[0].removesuffix("c") if parts[0] in {"addc", "madc"} else parts[0]
        sources = [self._source(text, 32) for text in operands[1:]]
        total = self._temporary[0]
        if operation == "mad":
            product = {"lo": "MULTIPLY", "hi": "MULTIPLY_HIGH"}[parts[1]]
            sources = [self._compute(product, total, *sources[:2], bits=32), sources[2]]
        elif operation != "add":
            raise self._unknown(parts)
        self._compute("ADD", total, *sources)
        if parts[0] in {"addc", "madc"}:
            self._compute("ADD", total, total, self._carry)
        self._compute("MOVE", self._register(operands[0]), total, bits=32)
        if "cc" in parts:
            self._compute("SHIFT_RIGHT", self._carry, total, self._constant(32))

    def _shuffle(self, parts: list[str], operands: list[str]) -> None:
        if parts[1] != "sync" or parts[2] not in _SHUFFLES:
            raise self._unknown(parts)
        target, _, predicate = operands[0].partition("|")
        *sources, members = (self._source(text, 32) for text in operands[1:])
        self._compute("EXCHANGE", 0, members)
        if predicate:
            self._compute(f"WITHIN_{_SHUFFLES[parts[2]]}", self._register(predicate), *sources)
        self._compute(f"SHUFFLE_{_SHUFFLES[parts[2]]}", self._register(target), *sources)

    def _memory(self, parts: list[str], operands: list[str]) -> None:
        what, kind = parts[0], parts[-1]
        space = next((part for part in parts if part in {"param", "global", "shared"}), "generic")
        size = int(kind[1:]) // 8
        registers, where = (operands[0], operands[1]) if what == "ld" else (operands[1], operands[0])
        base, _, offset = where.strip("[]").partition("+")
        for i, name in enumerate(_vector(registers) if "{" in registers else [registers]):
            at = int(offset or 0) + i * size
            value = self._register(name) if what == "ld" else self._source(name, 8 * size)
            if space == "param":
                self._step((_load_parameter if what == "ld" else _store_parameter)(base, at, size, value))
                continue
            bits = 32 if space == "shared" else 64
            address, offset_row = self._temporary[0], self._constant(at & _ONES[bits])
            self._compute("ADD", address, self._source(base), offset_row, bits=bits)
            self._step((_load if what == "ld" else _store)(space, address, size, value))

    def _call(self, _: list[str], operands: list[str]) -> None:
        result, name = operands[0].strip("() "), operands[1]
        given = [text.strip("() ") for text in operands[2].strip("()").split(",")]
        self._compute("EXCHANGE", 0, self._constant(_ONES[32]))

        def call(place: _Place) -> None:
            run = place.run
            function = run.machine.functions[name]
            parameters = {own: place.parameters[text] for own, text in zip(function.parameters, given, strict=True)}
            parameters[function.result] = place.parameters[result] = _Parameter()
            function.call(run, parameters, np.ones(run.threads, bool) if place.active is None else place.active)

        self._step(call)


def _computation(instructions: list[tuple[int, ...]]) -> Callable[[_Place], None]:
    native = _ffi.new("struct instruction[]", instructions)
    return lambda place: place.registers.compute(native, place.active)


def _load(space: str, address: int, size: int, target: int) -> Callable[[_Place], None]:
    def load(place: _Place) -> None:
        registers, active = place.registers, place.active
        registers.store(target, place.run.load(space, registers.load(address, active), size, active), active)

    return load


def _store(space: str, address: int, size: int, source: int) -> Callable[[_Place], None]:
    def store(place: _Place) -> None:
        registers, active = place.registers, place.active
        place.run.store(space, registers.load(address, active), size, registers.load(source, active), active)

    return store


def _load_parameter(name: str, at: int, size: int, target: int) -> Callable[[_Place], None]:
    return lambda place: place.registers.store(target, place.parameters[name].load(at, size), place.active)


def _store_parameter(name: str, at: int, _: int, source: int) -> Callable[[_Place], None]:
    def store(place: _Place) -> None:
        place.parameters[name].stored[at] = place.registers.load(source, place.active)

    return store


def _vector(text: str) -> list[str]:
    return [part.strip() for part in text.strip("{} ").split(",")]


def _parse(text: str) -> list[_Function]:
    text = re.sub(r"//[^\n]*", "", text)
    functions = []
    header = re.compile(r"(?:\.func\s*(?:\(([^)]*)\))?|\.visible\s+\.entry)\s*([$\w]+)\s*\(([^)]*)\)\s*([^{;]*)([{;])")
    for match in header.finditer(text):
        result, name, parameters, _, begins = match.groups()
        if begins == ";":
            continue
        depth, end = 1, match.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        own = [re.sub(r"\[\d+\]$", "", part.split()[-1]) for part in parameters.split(",") if part.strip()]
        returned = re.sub(r"\[\d+\]$", "", result.split()[-1]) if result else ""
        functions.append(_Function(name, returned, own, text[match.end() : end - 1]))
    return functions
