"""Reads the CUDA kernels' machine code with nvdisasm and cuobjdump (from PyPI), counts it, and models its cost.

The cycles are a model, not a measurement: what the busiest pipe of a scheduler has to do, as if no instruction ever
waited for data or for memory.
"""

import importlib.metadata
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

__all__ = ["Code", "Instruction", "MissingToolError", "Product", "hot_product", "read_cubin"]

_SECTION = re.compile(r"^\s*\.section\s+\.text\.(\w+),.*\n", re.MULTILINE)
_LABEL = re.compile(r"^(\.L_\w+):")
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P[0-9T]+ )?([A-Z][A-Z0-9_.]*)(.*?);")
_TARGET = re.compile(r"\.L_\w+")
_RESOURCES = re.compile(r"Function (\w+):\s+REG:(\d+)")

# Cycles of a scheduler for one instruction of a warp. IMAD.WIDE has half the rate of other 32-bit operations.
_WIDE, _INTEGER, _MEMORY = 4, 2, 4
_FP64 = {"sm_80": 4, "sm_90": 2, "sm_100": 2}


class MissingToolError(Exception):
    """A program that reads machine code is not installed."""


class Instruction(NamedTuple):
    address: int
    name: str
    """With its suffixes: IMAD.WIDE.U32."""
    conditional: bool
    target: int | None
    """Where a branch goes, if it is in the same kernel."""

    @property
    def kind(self) -> str:
        return self.name.partition(".")[0]

    @property
    def is_multiply_add(self) -> bool:
        return self.kind == "DFMA" or self.name.startswith("IMAD.WIDE")


@dataclass(frozen=True)
class Code:
    """One kernel, with the functions that it calls."""

    name: str
    registers: int
    instructions: Sequence[Instruction]

    def count(self, *kinds: str) -> int:
        return sum(instruction.kind in kinds for instruction in self.instructions)

    @property
    def multiply_adds(self) -> int:
        """IMAD.WIDE and DFMA."""
        return sum(instruction.is_multiply_add for instruction in self.instructions)

    def exchanges_apart(self) -> list[Instruction]:
        """What all threads of a warp must do together, but stands where some may have branched off: behind a branch
        that the compiler does not know to be the same for all, and before the place where they meet (BSYNC)."""
        found, depth, parted = [], 0, False
        for instruction in self.instructions:
            depth += (instruction.kind == "BSSY") - (instruction.kind == "BSYNC")
            parted = depth > 0 and (parted or (instruction.name == "BRA" and instruction.conditional))
            if parted and instruction.kind in {"SHFL", "VOTE", "MATCH", "REDUX"}:
                found.append(instruction)
        return found

    def loops(self) -> list[range]:
        """Addresses, the shortest loop first. A kernel ends in an endless loop of one instruction, which is none."""
        ends: dict[int, int] = {}
        for instruction in self.instructions:
            if (
                instruction.kind == "BRA"
                and instruction.target is not None
                and instruction.target < instruction.address
            ):
                ends[instruction.target] = max(instruction.address, ends.get(instruction.target, 0))
        return sorted((range(begin, end + 1) for begin, end in ends.items()), key=len)

    def within(self, loop: range, but: Iterable[range] = ()) -> list[Instruction]:
        """The instructions of a loop without those of loops in it."""
        return [
            instruction
            for instruction in self.instructions
            if instruction.address in loop and not any(instruction.address in other for other in but)
        ]


@dataclass(frozen=True)
class Product:
    """A Montgomery product as one warp computes it, for all rows that it holds, in the loop that runs most."""

    multiply_adds: int
    instructions: int
    cycles: float
    digit_cycles: float
    """What a digit of the exponent costs beside its products: the scan of the table."""


def hot_product(code: Code, architecture: str, trips: int) -> Product | None:
    """The product in the one nest of three loops (digits, squarings, threads), of which the innermost runs ``trips``
    times; None if the code has no such nest."""
    loops = code.loops()
    nests = [[loop for loop in loops if inner.start in loop] for inner in loops]
    deepest = [nest for nest in nests if len(nest) == 3]
    if len(deepest) != 1:
        return None
    threads, squarings, digits = deepest[0]
    each, once = code.within(threads), code.within(squarings, [threads])
    beside = code.within(digits, [loop for loop in loops if len(loop) < len(digits) and loop.start in digits])
    return Product(
        multiply_adds=sum(instruction.is_multiply_add for instruction in once + trips * each),
        instructions=len(once) + trips * len(each),
        cycles=_cycles(once, architecture) + trips * _cycles(each, architecture),
        digit_cycles=_cycles(beside, architecture),
    )


def _cycles(instructions: Sequence[Instruction], architecture: str) -> float:
    """Of the busiest of a scheduler's pipes; it also issues one instruction in a cycle at most."""
    multiply = integer = floating = memory = 0
    for instruction in instructions:
        if instruction.name.startswith("IMAD.WIDE"):
            multiply += _WIDE
        elif instruction.kind == "IMAD":
            multiply += _INTEGER
        elif instruction.kind in {"DFMA", "DADD", "DMUL"}:
            floating += _FP64.get(architecture, 64)
        elif instruction.kind in {"LDS", "STS", "LDG", "STG", "SHFL"}:
            memory += _MEMORY
        elif instruction.kind not in {"BRA", "CALL", "RET", "NOP"} and not instruction.kind.startswith("U"):
            integer += _INTEGER
    return max(multiply, integer, floating, memory, len(instructions))


def read_cubin(path: Path) -> list[Code]:
    """The kernels of a file. Raises MissingToolError."""
    registers = dict(_RESOURCES.findall(_run("cuobjdump", "--dump-resource-usage", str(path))))
    text = _run("nvdisasm", "--print-code", str(path))
    sections = list(_SECTION.finditer(text))
    ends = [section.start() for section in sections[1:]] + [len(text)]
    return [
        Code(section[1], int(registers[section[1]]), _instructions(text[section.end() : end]))
        for section, end in zip(sections, ends, strict=True)
    ]


def _instructions(text: str) -> list[Instruction]:
    labels: dict[str, int] = {}
    waiting: list[str] = []
    found: list[tuple[int, str, bool, str]] = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            waiting.append(label[1])
        elif instruction := _INSTRUCTION.match(line):
            address = int(instruction[1], 16)
            labels |= dict.fromkeys(waiting, address)
            waiting.clear()
            found.append((address, instruction[3], instruction[2] is not None, instruction[4]))
    return [
        Instruction(address, name, conditional, labels.get(target[0]) if (target := _TARGET.search(operands)) else None)
        for address, name, conditional, operands in found
    ]


def _run(program: str, *arguments: str) -> str:
    return subprocess.run([_find(program), *arguments], capture_output=True, text=True, check=True, timeout=120).stdout


def _find(program: str) -> str:
    """From the package nvidia-cuda-PROGRAM, or a CUDA toolkit on the PATH."""
    try:
        files = importlib.metadata.files(f"nvidia-cuda-{program}") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == program:
            return str(file.locate())
    found = shutil.which(program)
    if found is None:
        raise MissingToolError(f"{program} is not installed: pip install -e '.[cuda-check]'")
    return found
