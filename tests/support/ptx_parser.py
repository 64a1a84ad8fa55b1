"""Compiles PTX, as NVRTC returns it, to steps that ``ptx_machine.py`` executes.

Only the instructions that the kernels use are known; another one is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cffi import FFI

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHARED = 1 << 20  # where shared memory begins, in addresses of its own
ONES = [(1 << bits) - 1 for bits in range(65)]
SPECIAL = ("%tid.x", "%ctaid.x", "%ntid.x", "%laneid")

NATIVE = Path(__file__).resolve().parents[1] / "native"
ffi = FFI()
ffi.cdef((NATIVE / "ptx_registers.h").read_text())
OPERATIONS: dict[str, int] = ffi.typeof("enum operation").relements

Step = Callable[[Any], None]
"""A step of a function: it gets the machine's ``Place``, where some threads of a call are."""


class FaultError(Exception):
    """What would be an error of the device, or undefined."""


@dataclass
class Parameter:
    """A parameter of a kernel, which is the same for all threads, or of a function."""

    given: bytes = b""
    """A kernel's."""
    stored: dict[int, NDArray[np.uint64]] = field(default_factory=dict)
    """A function's: by offset, what each thread has stored there."""

    def load(self, at: int, size: int) -> Any:
        return self.stored[at] if self.stored else np.uint64(int.from_bytes(self.given[at : at + size], "little"))


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
class Block:
    """Instructions without a branch among them, which may follow them."""

    steps: list[Any] = field(default_factory=list)
    """While they are compiled, also lists of instructions for ``Registers.compute``."""
    labels: list[str] = field(default_factory=list)
    branch: tuple[int | None, bool, str] | None = None
    """The predicate's row, or None for always; its value with which it is taken; the label, or nothing for the end."""


class Function:
    def __init__(self, name: str, result: str, parameters: list[str], body: str) -> None:
        self.name, self.result, self.parameters = name, result, parameters
        self.rows = 0
        """How many registers a thread has."""
        self.blocks = [Block()]
        self.constants: dict[int, int] = {}
        """Rows of registers by the constants that they hold."""
        self.special = {special: self._row() for special in SPECIAL}
        """Rows of registers by the special registers that they hold."""
        self._scopes: list[dict[str, int]] = [{}]
        self._carry, *self._temporary = (self._row() for _ in range(4))
        self._compile(body)

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
                self.blocks.append(Block(labels=[label]))
            else:
                self._statement(" ".join(statement.split()))
        self.labels = {label: place for place, block in enumerate(self.blocks) for label in block.labels}
        for block in self.blocks:
            block.steps = [step if callable(step) else _computation(step) for step in block.steps]

    def _statement(self, text: str) -> None:
        if text.startswith((".pragma", ".loc")):
            return
        if text.startswith(".reg"):
            self._declare(text)
            return
        if text.startswith(".param"):
            name = re.sub(r"\[\d+\]$", "", text.rsplit(maxsplit=1)[-1])
            self._step(lambda place: place.parameters.update({name: Parameter()}))
            return
        guard = ""
        if text.startswith("@"):
            guard, text = text[1:].split(None, 1)
        opcode, _, rest = text.partition(" ")
        operands = [part.strip() for part in re.split(r",(?![^{\[(]*[}\])])", rest)] if rest else []
        if opcode in {"bra", "bra.uni", "ret"}:
            predicate = self._register(guard.lstrip("!")) if guard else None
            self.blocks[-1].branch = predicate, not guard.startswith("!"), operands[0] if operands else ""
            self.blocks.append(Block())
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
        self.rows += 1
        return self.rows - 1

    def _register(self, name: str) -> int:
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        raise FaultError(f"{self.name}: an operand {name}")

    def _constant(self, number: int) -> int:
        if number not in self.constants:
            self.constants[number] = self._row()
        return self.constants[number]

    def _source(self, text: str, bits: int = 64) -> int:
        if re.fullmatch(r"-?\d+|0x[0-9a-fA-F]+", text):
            return self._constant(int(text, 0) & ONES[bits])
        if re.fullmatch(r"0d[0-9a-fA-F]{16}", text):
            return self._constant(int(text[2:], 16))
        if text in self.special:
            return self.special[text]
        if re.fullmatch(r"[\w$]*table\w*", text):  # the one array in shared memory
            return self._constant(SHARED)
        return self._register(text)

    def _step(self, step: Step) -> None:
        self.blocks[-1].steps.append(step)

    def _compute(self, operation: str, target: int, *operands: int, bits: int = 64) -> int:
        """One instruction for ``Registers.compute``; returns its target."""
        steps = self.blocks[-1].steps
        if not steps or callable(steps[-1]):
            steps.append([])
        steps[-1].append((OPERATIONS[operation], bits, target, *operands, *(3 - len(operands)) * [0]))
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
        self._compute("AND", low, source, self._constant(ONES[32]))
        self._compute("SHIFT_RIGHT", high, source, self._constant(32))

    def _insert(self, _: list[str], operands: list[str]) -> None:
        """b, with the low bits of a in place of its own."""
        a, b = (self._source(text) for text in operands[1:3])
        place, length = (int(text) for text in operands[3:])
        own = self._compute("AND", self._temporary[0], a, self._constant(ONES[length]))
        self._compute("SHIFT_LEFT", own, own, self._constant(place))
        others = self._compute("AND", self._temporary[1], b, self._constant(ONES[64] & ~(ONES[length] << place)))
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
            address, offset_row = self._temporary[0], self._constant(at & ONES[bits])
            self._compute("ADD", address, self._source(base), offset_row, bits=bits)
            self._step((_load if what == "ld" else _store)(space, address, size, value))

    def _call(self, _: list[str], operands: list[str]) -> None:
        result, name = operands[0].strip("() "), operands[1]
        given = [text.strip("() ") for text in operands[2].strip("()").split(",")]
        self._compute("EXCHANGE", 0, self._constant(ONES[32]))

        def call(place: Any) -> None:
            run = place.run
            function = run.functions[name]
            parameters = {own: place.parameters[text] for own, text in zip(function.parameters, given, strict=True)}
            parameters[function.result] = place.parameters[result] = Parameter()
            run.call(function, parameters, np.ones(run.threads, bool) if place.active is None else place.active)

        self._step(call)


def _computation(instructions: list[tuple[int, ...]]) -> Step:
    native = ffi.new("struct instruction[]", instructions)
    return lambda place: place.registers.compute(native, place.active)


def _load(space: str, address: int, size: int, target: int) -> Step:
    def load(place: Any) -> None:
        registers, active = place.registers, place.active
        registers.store(target, place.run.load(space, registers.load(address, active), size, active), active)

    return load


def _store(space: str, address: int, size: int, source: int) -> Step:
    def store(place: Any) -> None:
        registers, active = place.registers, place.active
        place.run.store(space, registers.load(address, active), size, registers.load(source, active), active)

    return store


def _load_parameter(name: str, at: int, size: int, target: int) -> Step:
    return lambda place: place.registers.store(target, place.parameters[name].load(at, size), place.active)


def _store_parameter(name: str, at: int, _: int, source: int) -> Step:
    def store(place: Any) -> None:
        place.parameters[name].stored[at] = place.registers.load(source, place.active)

    return store


def _vector(text: str) -> list[str]:
    return [part.strip() for part in text.strip("{} ").split(",")]


def parse(text: str) -> list[Function]:
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
        functions.append(Function(name, returned, own, text[match.end() : end - 1]))
    return functions
