"""Reads the CUDA kernels' machine code with nvdisasm and cuobjdump (from PyPI), and counts what is in it."""

import importlib.metadata
import itertools
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_SECTION = re.compile(r"^\s*\.section\s+\.text\.(\w+),.*\n", re.MULTILINE)
_LABEL = re.compile(r"^([.$][\w.$]+):")
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P[0-9T]+ )?([A-Z][A-Z0-9_.]*)(.*?);")
_UPPER_HALF = re.compile(r"^\s+/\* 0x([0-9a-f]{16}) \*/")
_CONTROL = 41  # the first of the 17 bits in an instruction's upper half that are for the scheduler
_PLACE, _FUNCTION = re.compile(r"\.L_\w+"), re.compile(r"\$[\w$]+")
_RESOURCES = re.compile(r"Function (\w+):\s+REG:(\d+)")


class MissingToolError(Exception):
    """A program that reads machine code is not installed."""


class Instruction(NamedTuple):
    address: int
    name: str
    """The name with its suffixes, such as IMAD.WIDE.U32."""
    conditional: bool
    target: int | None
    """Where a branch or a call of a function goes."""
    control: int
    """Scheduling bits. From bit 0: the cycles before the next instruction (4 bits), a hint (1), the barriers that it
    sets when its result is there and when its operands have been read (3 each; 7: none), and those it waits for (6)."""

    @property
    def kind(self) -> str:
        return self.name.partition(".")[0]

    @property
    def is_call(self) -> bool:
        """Whether it calls a function: before sm_90 the compiler leaves some loops by a CALL that never returns."""
        return self.kind == "CALL" and self.target is not None

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

    def exchanges_apart(self) -> list[Instruction]:
        """Instructions that all threads of a warp must execute together, where some may have branched off: behind a
        branch that the compiler does not know to be the same for all, and before the place where they meet again
        (BSYNC)."""
        found, depth, parted = [], 0, False
        for instruction in self.instructions:
            depth += (instruction.kind == "BSSY") - (instruction.kind == "BSYNC")
            parted = depth > 0 and (parted or (instruction.name == "BRA" and instruction.conditional))
            if parted and instruction.kind in {"SHFL", "VOTE", "MATCH", "REDUX"}:
                found.append(instruction)
        return found

    def loops(self) -> list[range]:
        """Addresses of the loops, the shortest first. The endless loop of one instruction that ends a kernel is
        none."""
        ends: dict[int, int] = {}
        for instruction in self.instructions:
            if (
                instruction.kind == "BRA"
                and instruction.target is not None
                and instruction.target < instruction.address
            ):
                ends[instruction.target] = max(instruction.address, ends.get(instruction.target, 0))
        return sorted((range(begin, end + 1) for begin, end in ends.items()), key=len)

    def functions(self) -> dict[int, range]:
        """The addresses of each function that the kernel calls, by its first one. They lie behind the kernel."""
        starts = sorted({call.target for call in self.instructions if call.is_call and call.target is not None})
        bounds = [*starts, self.instructions[-1].address + 1]
        return {start: range(start, end) for start, end in itertools.pairwise(bounds)}

    def within(self, addresses: range) -> list[Instruction]:
        """The instructions at these addresses."""
        return [instruction for instruction in self.instructions if instruction.address in addresses]


def read_cubin(path: Path) -> list[Code]:
    """The kernels of a file. Raises MissingToolError."""
    registers = dict(_RESOURCES.findall(_run("cuobjdump", "--dump-resource-usage", str(path))))
    text = _run("nvdisasm", "--print-code", "--print-instruction-encoding", str(path))
    sections = list(_SECTION.finditer(text))
    ends = [section.start() for section in sections[1:]] + [len(text)]
    return [
        Code(section[1], int(registers[section[1]]), _instructions(text[section.end() : end]))
        for section, end in zip(sections, ends, strict=True)
    ]


def _instructions(text: str) -> list[Instruction]:
    labels: dict[str, int] = {}
    waiting: list[str] = []
    found: list[tuple[int, str, bool, str | None]] = []
    control: list[int] = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            waiting.append(label[1])
        elif instruction := _INSTRUCTION.match(line):
            address = int(instruction[1], 16)
            labels |= dict.fromkeys(waiting, address)
            waiting.clear()
            targets = _FUNCTION if instruction[3].startswith("CALL") else _PLACE
            target = targets.search(instruction[4])
            found.append((address, instruction[3], instruction[2] is not None, target[0] if target else None))
        elif half := _UPPER_HALF.match(line):
            control.append(int(half[1], 16) >> _CONTROL & 0x1FFFF)
    return [
        Instruction(address, name, conditional, None if target is None else labels.get(target), bits)
        for (address, name, conditional, target), bits in zip(found, control, strict=True)
    ]


def _run(program: str, *arguments: str) -> str:
    return subprocess.run([_find(program), *arguments], capture_output=True, text=True, check=True, timeout=120).stdout


def _find(program: str) -> str:
    """The program of the package nvidia-cuda-PROGRAM, or of a CUDA toolkit on the PATH."""
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
