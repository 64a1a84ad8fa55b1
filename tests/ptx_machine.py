"""Runs CUDA kernels without a GPU: executes their PTX, as NVIDIA's manual of the PTX ISA defines it, for many warps at
once. Every register is a NumPy array with an element for each thread.

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


_ffi = FFI()
_ffi.cdef("void fma_toward_zero(int count, const double *a, const double *b, const double *c, double *result);")


@cache
def _native() -> Any:
    """NumPy has no fused multiply-add."""
    source = Path(__file__).parent / "native" / "fma_toward_zero.c"
    with tempfile.TemporaryDirectory() as directory:
        library = f"{directory}/fma_toward_zero.so"
        flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-frounding-math", "-shared", "-fPIC"]
        subprocess.run(["gcc", *flags, source, "-o", library, "-lm"], check=True, timeout=60)
        return _ffi.dlopen(library)


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
        with np.errstate(over="ignore"):  # numbers wrap
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
        self.machine = machine
        self.threads = warps * WARP
        number = np.arange(self.threads, dtype=np.uint64)
        self.lane, self.warp = number % WARP, number // WARP
        self.first_of_warp = (number - self.lane).astype(np.int64)
        self.special = {
            "%tid.x": self.lane,
            "%ctaid.x": self.warp,
            "%ntid.x": np.full(self.threads, WARP, np.uint64),
            "%laneid": self.lane,
        }
        self.shared = np.zeros((warps, table_bytes), np.uint8)
        self._uses = _Uses(self.threads, self.shared.size)
        self.carry: Any = None
        self._buffers = sorted(
            ((array.ctypes.data, array.nbytes, array.reshape(-1).view(np.uint8)) for array in buffers),
            key=lambda buffer: buffer[0],
        )

    def load(self, space: str, address: Any, size: int, active: NDArray[np.bool_] | None) -> NDArray[np.uint64]:
        memory, place, where = self._find(space, address, size, active)
        if space == "shared":
            self._uses.load(place, size, where)
        loaded = np.zeros(self.threads, np.uint64)
        loaded[where] = memory.view(f"<u{size}")[place]
        return loaded

    def store(self, space: str, address: Any, size: int, value: Any, active: NDArray[np.bool_] | None) -> None:
        memory, place, where = self._find(space, address, size, active)
        if space == "shared":
            self._uses.store(place, size, where)
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

    def call(self, name: str, result: str, parameters: list[tuple[str, _Parameter]], active: Any) -> _Parameter:
        self._whole_warps(active)
        function = self.machine.functions[name]
        given = {own: parameter for own, (_, parameter) in zip(function.parameters, parameters, strict=True)}
        given[function.result] = returned = _Parameter()
        function.call(self, given, np.ones(self.threads, bool) if active is None else active)
        return returned

    def fma_toward_zero(self, *operands: Any) -> NDArray[np.float64]:
        a, b, c = (x if x.ndim else np.full(self.threads, x) for x in operands)
        result = np.empty(self.threads)
        pointers = [_ffi.from_buffer("double[]", x) for x in (a, b, c)]
        _native().fma_toward_zero(self.threads, *pointers, _ffi.from_buffer("double[]", result, require_writable=True))
        return result

    def shuffle(self, mode: str, operands: Sequence[Any], active: Any) -> tuple[Any, Any]:
        a, b, c, members = operands
        self._exchange(members, active)
        a, b, c = (np.broadcast_to(x, self.threads).astype(np.int64) for x in (a, b, c))
        lane, b, clamp, segment = self.lane.astype(np.int64), b & 31, c & 31, c >> 8 & 31
        bound, lowest = lane & segment | clamp & ~segment, lane & segment
        source = {"up": lane - b, "down": lane + b, "idx": lowest | b & ~segment}[mode]
        inside = source >= bound if mode == "up" else source <= bound
        source = np.where(inside, source, lane)
        return a[self.first_of_warp + source].astype(np.uint64), inside

    def ballot(self, vote: Any, members: Any, active: Any) -> Any:
        self._exchange(members, active)
        bits = np.broadcast_to(vote, self.threads).astype(np.uint64) << self.lane
        return np.repeat(np.bitwise_or.reduce(bits.reshape(-1, WARP), axis=1), WARP)

    def synchronize(self, members: Any, active: Any) -> None:
        self._exchange(members, active)
        self._uses.synchronize(slice(None) if active is None else active)

    def _exchange(self, members: Any, active: Any) -> None:
        self._whole_warps(active)
        if (np.asarray(members) != 0xFFFFFFFF).any():
            raise FaultError("an exchange among some threads of a warp")

    def _whole_warps(self, active: NDArray[np.bool_] | None) -> None:
        if active is not None:
            by_warp = active.reshape(-1, WARP)
            if not (by_warp.all(axis=1) | ~by_warp.any(axis=1)).all():
                raise FaultError("threads of a warp that need one another are not all at the same place")


# ---- registers as they are kept: unsigned numbers in 64 bits, the upper ones zero; doubles; bool for predicates ----


def _signed(a: Any, bits: int) -> Any:
    a = np.asarray(a, np.uint64)
    return a.view(np.int64) if bits == 64 else (a << np.uint64(64 - bits)).view(np.int64) >> (64 - bits)


def _unsigned(a: Any, bits: int) -> Any:
    return np.asarray(a, np.int64).view(np.uint64) & np.uint64((1 << bits) - 1)


def _shift(a: Any, count: Any, bits: int, direction: str) -> Any:
    """Counts of more than the width shift everything out."""
    if direction == "arithmetic":
        return _unsigned(_signed(a, bits) >> np.minimum(count, np.uint64(bits - 1)).astype(np.int64), bits)
    if count.ndim == 0 and count < bits:
        return a >> count if direction == "right" else (a << count) & np.uint64((1 << bits) - 1)
    within = np.minimum(count, np.uint64(63))
    shifted = a >> within if direction == "right" else (a << within) & np.uint64((1 << bits) - 1)
    return np.where(count < bits, shifted, np.uint64(0))


def _multiply_high(a: Any, b: Any) -> Any:
    low, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    a_low, a_high, b_low, b_high = a & mask, a >> low, b & mask, b >> low
    middle = a_high * b_low + (a_low * b_low >> low)
    return a_high * b_high + (middle >> low) + (a_low * b_high + (middle & mask) >> low)


def _multiply_high_signed(a: Any, b: Any) -> Any:
    """Of 32 bits."""
    return _unsigned(_signed(a, 32) * _signed(b, 32) >> 32, 32)


def _leading_zeros(a: Any) -> Any:
    a = np.asarray(a)
    return np.array([64 - int(x).bit_length() for x in a.ravel()], np.uint64).reshape(a.shape)


def _insert(a: Any, b: Any, place: int, length: int) -> Any:
    """b, with the low bits of a in place of its own."""
    ones = (1 << length) - 1
    return b & ~np.uint64(ones << place) | (a & np.uint64(ones)) << np.uint64(place)


def _number(low: Any, high: Any) -> Any:
    return low | high << np.uint64(32)


_HELPERS = {
    "np": np,
    "signed": _signed,
    "unsigned": _unsigned,
    "shift": _shift,
    "multiply_high": _multiply_high,
    "multiply_high_signed": _multiply_high_signed,
    "leading_zeros": _leading_zeros,
    "insert": _insert,
    "number": _number,
    "M32": np.uint64(0xFFFFFFFF),
    "S32": np.uint64(32),
    "Parameter": _Parameter,
}

# By name without its type, what an instruction computes of a, b, c; {mask} the ones of its type.
_INTEGER = {
    "add": "({a} + {b}) & {mask}",
    "sub": "({a} - {b}) & {mask}",
    "and": "{a} & {b}",
    "or": "{a} | {b}",
    "xor": "{a} ^ {b}",
    "not": "~{a} & {mask}",
    "neg": "(0 - {a}) & {mask}",
    "mul.lo": "({a} * {b}) & {mask}",
    "mul.hi": "multiply_high({a}, {b})",
    "mul.wide": "{a} * {b}",
    "mad.lo": "({a} * {b} + {c}) & {mask}",
    "clz": "leading_zeros({a})",
    "mov": "{a}",
    "cvta.to.global": "{a}",
    "selp": "np.where({c}, {a}, {b})",
    "bfi": "insert({a}, {b}, {c}, {length})",
}
_REAL = {"add": "{a} + {b}", "sub": "{a} - {b}", "fma.rz": "run.fma_toward_zero({a}, {b}, {c})", "mov": "{a}"}
_PREDICATE = {"and": "{a} & {b}", "or": "{a} | {b}", "xor": "{a} ^ {b}", "not": "~{a}", "mov": "{a}"}
_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
# Halves of sums of 32 bits with the carry flag: the sum, in 64 bits, of which the upper half is the carry.
_CARRY = {
    "add": "{a} + {b}",
    "mad.lo": "({a} * {b} & M32) + {c}",
    "mad.hi": "({a} * {b} >> S32) + {c}",
}


@dataclass
class _Block:
    """Instructions without a branch among them, as Python."""

    lines: list[str] = field(default_factory=list)
    written: set[int] = field(default_factory=set)
    labels: list[str] = field(default_factory=list)
    branch: tuple[str, str] | None = None
    """The predicate, empty for always, and the label; or, to the end, no label."""
    code: Callable[..., None] | None = None


class _Function:
    def __init__(self, name: str, result: str, parameters: list[str], body: str) -> None:
        self.name, self.result, self.parameters = name, result, parameters
        self._registers: dict[str, int] = {}
        self._scopes: list[dict[str, int]] = [{}]
        self._blocks = [_Block()]
        self._constants: dict[str, np.uint64] = {}
        self._compile(body)

    # ---- executing ----

    def call(self, run: _Run, parameters: Mapping[str, _Parameter], threads: NDArray[np.bool_]) -> None:
        blocks, end = self._blocks, len(self._blocks)
        registers: list[Any] = [None] * len(self._registers)
        at = np.where(threads, 0, end)
        local = dict(parameters)
        while (place := int(at.min())) < end:
            # Those that are behind go on first; so threads meet again behind a branch.
            here = at == place
            block = blocks[place]
            active = None if here.all() else here
            before = {} if active is None else {number: registers[number] for number in block.written}
            if block.code is not None:
                block.code(run, registers, local, active)
            for number, old in before.items():
                new = registers[number]
                registers[number] = new if old is None else np.where(here, new, old)
            at = np.where(here, place + 1, at)
            if block.branch is not None:
                predicate, label = block.branch
                target = self._labels[label] if label else end
                taken = here
                if predicate:
                    chosen = registers[self._registers[predicate.lstrip("!")]]
                    taken = here & (~chosen if predicate.startswith("!") else chosen)
                at = np.where(taken, target, at)

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
        for place, block in enumerate(self._blocks):
            if block.lines:
                source = "def code(run, R, parameters, active):\n    " + "\n    ".join(block.lines)
                space: dict[str, Any] = _HELPERS | self._constants
                exec(compile(source, f"{self.name}:{place}", "exec"), space)  # noqa: S102 - made here
                block.code = space["code"]

    def _statement(self, text: str) -> None:
        if text.startswith((".pragma", ".loc")):
            return
        if text.startswith(".reg"):
            self._declare(text)
            return
        if text.startswith(".param"):
            name = re.sub(r"\[\d+\]$", "", text.rsplit(maxsplit=1)[-1])
            self._blocks[-1].lines.append(f"parameters[{name!r}] = Parameter()")
            return
        guard = ""
        if text.startswith("@"):
            guard, text = text[1:].split(None, 1)
        opcode, _, rest = text.partition(" ")
        operands = [part.strip() for part in re.split(r",(?![^{\[(]*[}\])])", rest)] if rest else []
        if opcode in {"bra", "bra.uni", "ret"}:
            negated = "!" if guard.startswith("!") else ""
            register = guard.lstrip("!")
            if register:
                self._number(register)
            self._blocks[-1].branch = (negated + register, operands[0] if operands else "")
            self._blocks.append(_Block())
        elif guard:
            raise FaultError(f"{self.name}: a guarded {opcode}")
        else:
            self._blocks[-1].lines += self._lines(opcode, operands)

    def _declare(self, text: str) -> None:
        for name in re.sub(r"^\.reg\s+\.\w+\s+", "", text).split(","):
            ranged = re.fullmatch(r"\s*(\S+)<(\d+)>", name)
            names = [f"{ranged[1]}{i}" for i in range(int(ranged[2]))] if ranged else [name.strip()]
            for each in names:
                number = len(self._registers)
                self._registers[each if len(self._scopes) == 1 else f"{each}:{number}"] = number
                self._scopes[-1][each] = number

    def _number(self, name: str) -> int:
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        raise FaultError(f"{self.name}: no register {name}")

    def _target(self, name: str) -> str:
        number = self._number(name)
        self._blocks[-1].written.add(number)
        return f"R[{number}]"

    def _source(self, text: str, bits: int = 64) -> str:
        if re.fullmatch(r"-?\d+|0x[0-9a-fA-F]+", text):
            return self._constant(int(text, 0) & (1 << bits) - 1)
        if re.fullmatch(r"0d[0-9a-fA-F]{16}", text):
            return f"{self._constant(int(text[2:], 16))}.view(np.float64)"
        if text in {"%tid.x", "%ctaid.x", "%ntid.x", "%laneid"}:
            return f"run.special[{text!r}]"
        if any(text in scope for scope in self._scopes):
            return f"R[{self._number(text)}]"
        if re.fullmatch(r"[\w$]*table\w*", text):  # the one array in shared memory
            return self._constant(_SHARED)
        raise FaultError(f"{self.name}: an operand {text}")

    def _constant(self, number: int) -> str:
        self._constants[f"K{number}"] = np.uint64(number)
        return f"K{number}"

    def _lines(self, opcode: str, operands: list[str]) -> list[str]:
        parts = opcode.split(".")
        handlers = {
            "addc": self._carry_chain,
            "bar": self._synchronize,
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
        return handler(parts, operands)

    def _ballot(self, parts: list[str], operands: list[str]) -> list[str]:
        if parts != ["vote", "sync", "ballot", "b32"]:
            raise FaultError(f"{self.name}: the instruction {'.'.join(parts)} is not known")
        vote, members = self._source(operands[1]), self._source(operands[2], 32)
        return [f"{self._target(operands[0])} = run.ballot({vote}, {members}, active)"]

    def _synchronize(self, parts: list[str], operands: list[str]) -> list[str]:
        if parts != ["bar", "warp", "sync"]:
            raise FaultError(f"{self.name}: the instruction {'.'.join(parts)} is not known")
        return [f"run.synchronize({self._source(operands[0], 32)}, active)"]

    def _arithmetic(self, parts: list[str], operands: list[str]) -> list[str]:
        name, kind = ".".join(parts[:-1]), parts[-1]
        if kind in {"pred", "f64"}:
            forms, bits = (_PREDICATE if kind == "pred" else _REAL), 64
        else:
            forms, bits = _INTEGER, int(kind[1:])
            if name == "mov":
                return self._pack(operands) if "{" in "".join(operands) else self._move(operands, bits)
            if name in {"min", "max"}:
                return self._extreme(name, kind, operands)
            if name in {"shl", "shr"}:
                direction = "left" if name == "shl" else "arithmetic" if kind[0] == "s" else "right"
                a, b = self._source(operands[1], bits), self._source(operands[2], 32)
                return [f"{self._target(operands[0])} = shift({a}, {b}, {bits}, {direction!r})"]
        if name == "mul.hi" and kind == "s32":
            a, b = self._source(operands[1], bits), self._source(operands[2], bits)
            return [f"{self._target(operands[0])} = multiply_high_signed({a}, {b})"]
        if name not in forms or (name.startswith("mul.") and kind[0] == "s" and not name.endswith("lo")):
            raise FaultError(f"{self.name}: the instruction {name}.{kind} is not known")
        sources = [self._source(text, bits) for text in operands[1:]]
        if name == "bfi":
            sources[2:] = operands[3:]  # numbers
        ones = self._constant((1 << bits) - 1)
        value = forms[name].format(**dict(zip(("a", "b", "c", "length"), sources, strict=False)), mask=ones)
        if bits == 64:
            value = value.removesuffix(f" & {ones}")
        return [f"{self._target(operands[0])} = {value}"]

    def _move(self, operands: list[str], bits: int) -> list[str]:
        """Of 64 bits also between numbers and doubles: a register's name says what it is."""
        target, source = operands
        value = self._source(source, bits)
        if target.startswith("%fd") != source.startswith("%fd"):
            value = f"{value}.view(np.{'float64' if target.startswith('%fd') else 'uint64'})"
        return [f"{self._target(target)} = {value}"]

    def _pack(self, operands: list[str]) -> list[str]:
        if "{" in operands[1]:
            low, high = (self._source(part, 32) for part in _vector(operands[1]))
            value = f"number({low}, {high})"
            if operands[0].startswith("%fd"):
                value = f"({value}).view(np.float64)"
            return [f"{self._target(operands[0])} = {value}"]
        source = self._source(operands[1])
        if operands[1].startswith("%fd"):
            source = f"{source}.view(np.uint64)"
        low, high = (self._target(part) for part in _vector(operands[0]))
        return [f"{low}, {high} = {source} & M32, {source} >> S32"]

    def _extreme(self, name: str, kind: str, operands: list[str]) -> list[str]:
        bits = int(kind[1:])
        a, b = (self._source(text, bits) for text in operands[1:])
        if kind[0] == "s":
            a, b = (f"signed({x}, {bits})" for x in (a, b))
        value = f"np.{name}imum({a}, {b})"
        return [f"{self._target(operands[0])} = {f'unsigned({value}, {bits})' if kind[0] == 's' else value}"]

    def _compare(self, parts: list[str], operands: list[str]) -> list[str]:
        _, comparison, kind = parts
        bits = int(kind[1:])
        a, b = (self._source(text, bits) for text in operands[1:])
        if kind[0] == "s":
            a, b = (f"signed({x}, {bits})" for x in (a, b))
        return [f"{self._target(operands[0])} = {a} {_COMPARE[comparison]} {b}"]

    def _convert(self, parts: list[str], operands: list[str]) -> list[str]:
        _, to, source = parts
        value = self._source(operands[1])
        if {to[0], source[0]} == {"u"}:
            value = f"{value} & {self._constant((1 << int(to[1:])) - 1)}"
        elif {to[0], source[0]} == {"s"}:
            value = f"unsigned(signed({value}, {int(source[1:])}), {int(to[1:])})"
        else:
            raise FaultError(f"{self.name}: a conversion {'.'.join(parts)}")
        return [f"{self._target(operands[0])} = {value}"]

    def _carry_chain(self, parts: list[str], operands: list[str]) -> list[str]:
        operation = parts[0].removesuffix("c") if parts[0] in {"addc", "madc"} else parts[0]
        form = operation if operation == "add" else f"{operation}.{parts[1]}"
        values = {key: self._source(text, 32) for key, text in zip("abc", operands[1:], strict=False)}
        carry = " + run.carry" if parts[0] in {"addc", "madc"} else ""
        lines = [f"total = {_CARRY[form].format(**values)}{carry}", f"{self._target(operands[0])} = total & M32"]
        if "cc" in parts:
            lines.append("run.carry = total >> S32")
        return lines

    def _shuffle(self, parts: list[str], operands: list[str]) -> list[str]:
        target, _, predicate = operands[0].partition("|")
        given = ", ".join(self._source(text, 32) for text in operands[1:])
        found = f"run.shuffle({parts[2]!r}, ({given}), active)"
        if predicate:
            return [f"{self._target(target)}, {self._target(predicate)} = {found}"]
        return [f"{self._target(target)}, _ = {found}"]

    def _memory(self, parts: list[str], operands: list[str]) -> list[str]:
        what, kind = parts[0], parts[-1]
        space = next((part for part in parts if part in {"param", "global", "shared"}), "generic")
        size = int(kind[1:]) // 8
        registers, where = (operands[0], operands[1]) if what == "ld" else (operands[1], operands[0])
        base, _, offset = where.strip("[]").partition("+")
        names = _vector(registers) if "{" in registers else [registers]
        lines = []
        for i, name in enumerate(names):
            at = int(offset or 0) + i * size
            if space == "param":
                loaded, stored = f"parameters[{base!r}].load({at}, {size})", f"parameters[{base!r}].stored[{at}] = {{}}"
            else:
                address = f"{self._source(base)} + {self._constant(at & (1 << 64) - 1)}"
                if space == "shared":  # addresses of 32 bits
                    address = f"({address}) & M32"
                loaded = f"run.load({space!r}, {address}, {size}, active)"
                stored = f"run.store({space!r}, {address}, {size}, {{}}, active)"
            if what == "ld":
                value = f"{loaded}.view(np.float64)" if kind == "f64" else loaded
                lines.append(f"{self._target(name)} = {value}")
            else:
                value = self._source(name, 8 * size)
                lines.append(stored.format(f"{value}.view(np.uint64)" if kind == "f64" else value))
        return lines

    def _call(self, _: list[str], operands: list[str]) -> list[str]:
        result, name = operands[0].strip("() "), operands[1]
        given = [text.strip("() ") for text in operands[2].strip("()").split(",")]
        parameters = ", ".join(f"({text!r}, parameters[{text!r}])" for text in given)
        return [f"parameters[{result!r}] = run.call({name!r}, {result!r}, [{parameters}], active)"]


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
