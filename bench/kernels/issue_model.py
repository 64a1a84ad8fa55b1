"""How long warps take for a kernel's hot loop, by its machine code alone: what a scheduler issues, and when it waits.

The compiler writes into every instruction how many cycles the warp must wait before its next one, and which of six
barriers (for what takes an unknown time, such as an exchange between threads) it waits for (Jia, Maggioni, Staiger,
Scarpazza, "Dissecting the NVIDIA Volta GPU architecture via microbenchmarking", 2018). So the code itself says how busy
one, two or more warps keep a scheduler, which counting instructions does not: code whose instructions all wait for one
another may have the same counts as code that is five times as fast.

This is a model, not a measurement: it knows neither misses of the instruction cache nor conflicts of register banks,
and its latencies are those of a GPU without other work.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from .machine_code import Code, Instruction

# Cycles for which one instruction of a warp occupies its pipe. What goes to memory or to another thread shares one pipe
# with the other three schedulers.
_WIDE, _INTEGER, _MEMORY, _ISSUE = 4, 2, 4, 1
_FP64 = {"sm_80": 4, "sm_90": 2, "sm_100": 2}
_SLOW_FP64 = 64
_PIPES = {
    "IMAD": "multiply",
    **dict.fromkeys(("DFMA", "DADD", "DMUL"), "fp64"),
    **dict.fromkeys(("SHFL", "LDS", "STS", "LDG", "STG"), "memory"),
    **dict.fromkeys(("BRA", "CALL", "RET", "NOP"), "branch"),
}
# Cycles until what an instruction stands for a barrier is there, and until its operands have been read.
_LATENCIES = {"SHFL": 23, "LDS": 29, "LDG": 40, "VOTE": 13}
_LATENCY, _READ = 20, 12
_NO_BARRIER = 7
_ROUNDS = 6


@dataclass(frozen=True)
class Digit:
    """What a warp executes for one digit of its exponents, in order: squarings, a product, and the table's scan."""

    instructions: Sequence[Instruction]
    square: int
    """Instructions of one squaring."""
    product: int
    """Instructions of one product."""


def digit_of(code: Code, trips: int, window: int) -> Digit | None:
    """The loop over digits is the only one that calls two functions once each: one squares ``window`` times, one
    multiplies, both in a loop of ``trips``. None if the code has no such loop."""
    functions = code.functions()
    found = []
    for loop in code.loops():
        called = [call.target for call in code.within(loop) if call.is_call and call.target is not None]
        if len(called) == len(set(called)) == 2:
            found.append((loop, [functions[target] for target in called]))
    if len(found) != 1:
        return None
    digits, (square, product) = found[0]
    squaring = _unrolled(code, square, [window, trips])
    multiplying = _unrolled(code, product, [trips])
    if squaring is None or multiplying is None:
        return None
    bodies = [squaring, multiplying]
    trace: list[Instruction] = []
    for instruction in code.within(digits):
        trace.append(instruction)
        if instruction.is_call:
            trace += bodies.pop(0)
    return Digit(trace, len(squaring) // window, len(multiplying))


def _unrolled(code: Code, function: range, trips: Sequence[int]) -> list[Instruction] | None:
    """The instructions of a function, in order, whose only loops are one inside the other and run so many times, the
    outermost first."""
    loops = sorted((loop for loop in code.loops() if loop.start in function), key=len, reverse=True)
    if len(loops) != len(trips) or any(inner.start not in outer for outer, inner in itertools.pairwise(loops)):
        return None

    def body(of: range, depth: int) -> list[Instruction]:
        if depth == len(loops):
            return code.within(of)
        loop = loops[depth]
        before, after = range(of.start, loop.start), range(loop.stop, of.stop)
        return code.within(before) + trips[depth] * body(loop, depth + 1) + code.within(after)

    return body(function, 0)


def warp_cycles(instructions: Sequence[Instruction], warps: int, architecture: str) -> float:
    """The cycles in which each of so many warps of one scheduler executes the instructions once, again and again."""
    steps = [_Step.of(instruction, architecture) for instruction in instructions]
    at = [0] * warps
    ready = [7 * warp for warp in range(warps)]  # they do not begin together
    barriers = [[0] * _NO_BARRIER for _ in range(warps)]
    free: dict[str, int] = {}
    ends: list[int] = []
    now = last = 0
    while len(ends) < warps * _ROUNDS:
        earliest = None
        for warp in (last, *(other for other in range(warps) if other != last)):  # the same one for as long as it can
            step = steps[at[warp]]
            when = max(ready[warp], free.get(step.pipe, 0), *(barriers[warp][barrier] for barrier in step.waits))
            if when <= now:
                break
            earliest = when if earliest is None else min(earliest, when)
        else:
            now = earliest or now + 1
            continue
        free[step.pipe] = now + step.occupies
        ready[warp] = now + step.stall
        if step.write is not None:
            barriers[warp][step.write] = now + step.latency
        if step.read is not None:
            barriers[warp][step.read] = now + _READ
        at[warp] += 1
        if at[warp] == len(steps):
            at[warp] = 0
            ends.append(now)
        last = warp
        now += 1
    return (ends[-1] - ends[warps - 1]) / (len(ends) - warps) * warps


@dataclass(frozen=True, slots=True)
class _Step:
    """An instruction as the model sees it."""

    pipe: str
    occupies: int
    stall: int
    waits: tuple[int, ...]
    write: int | None
    read: int | None
    latency: int

    @classmethod
    def of(cls, instruction: Instruction, architecture: str) -> "_Step":
        control = instruction.control
        write, read = control >> 5 & 7, control >> 8 & 7
        return cls(
            *_pipe(instruction, architecture),
            stall=max(1, control & 15),
            waits=tuple(barrier for barrier in range(6) if control >> 11 >> barrier & 1),
            write=None if write == _NO_BARRIER else write,
            read=None if read == _NO_BARRIER else read,
            latency=_LATENCIES.get(instruction.kind, _LATENCY),
        )


def _pipe(instruction: Instruction, architecture: str) -> tuple[str, int]:
    pipe = _PIPES.get(instruction.kind, "uniform" if instruction.kind.startswith("U") else "integer")
    if pipe == "multiply":
        return pipe, _WIDE if instruction.name.startswith("IMAD.WIDE") else _INTEGER
    if pipe == "fp64":
        return pipe, _FP64.get(architecture, _SLOW_FP64)
    return pipe, {"memory": _MEMORY, "branch": _ISSUE}.get(pipe, _INTEGER)
