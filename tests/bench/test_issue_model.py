"""The model behind the estimates of the CUDA kernels: what one scheduler issues of a few instructions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench.kernels.issue_model import digit_of, warp_cycles
from bench.kernels.machine_code import Code, Instruction

if TYPE_CHECKING:
    from collections.abc import Sequence

NONE = 7


def instruction(
    name: str,
    stall: int = 1,
    *,
    sets: int = NONE,
    waits: Sequence[int] = (),
    address: int = 0,
    target: int | None = None,
) -> Instruction:
    control = stall | sets << 5 | NONE << 8 | sum(1 << barrier for barrier in waits) << 11
    return Instruction(address, name, False, target, control)


@pytest.mark.parametrize(
    ("instructions", "warps", "cycles"),
    [
        pytest.param([instruction("IADD3", 6)] * 10, 1, 60, id="alone, a warp waits as the compiler says"),
        pytest.param([instruction("IADD3", 6)] * 10, 3, 60, id="three warps fill one another's waits"),
        pytest.param([instruction("IADD3", 6)] * 10, 6, 120, id="six need the pipe for longer"),
        pytest.param([instruction("DFMA", 1)] * 10, 1, 20, id="a pipe takes the next one when it is free"),
        pytest.param([instruction("DFMA"), instruction("IADD3")] * 10, 1, 20, id="two pipes work side by side"),
        pytest.param([instruction("IMAD.WIDE.U32.X")] * 10, 1, 40, id="wide products have half the rate"),
        pytest.param(
            [instruction("SHFL.IDX", sets=2), instruction("IADD3", waits=[2])], 1, 24, id="a barrier is waited for"
        ),
    ],
)
def test_cycles_of_a_warp(instructions: Sequence[Instruction], warps: int, cycles: int) -> None:
    assert warp_cycles(instructions, warps, "sm_90") == pytest.approx(cycles, rel=0.1)


def test_a_digit_is_its_squarings_and_its_product_with_their_loops_unrolled() -> None:
    code = [
        instruction("IADD3", address=0),
        instruction("CALL.REL", address=16, target=80),
        instruction("CALL.REL", address=32, target=160),
        instruction("BRA", address=48, target=0),
        instruction("EXIT", address=64),
        instruction("IADD3", address=80),  # three squarings
        instruction("DFMA", address=96),  # each of two trips
        instruction("BRA", address=112, target=96),
        instruction("BRA.U", address=128, target=80),
        instruction("RET.REL", address=144),
        instruction("DADD", address=160),  # a product of two trips
        instruction("BRA", address=176, target=160),
        instruction("RET.REL", address=192),
    ]
    digit = digit_of(Code("kernel", 32, code), trips=2, window=3)
    assert digit is not None
    kinds = [each.kind for each in digit.instructions]
    assert (kinds.count("DFMA"), kinds.count("DADD"), kinds.count("EXIT")) == (6, 2, 0)
    assert digit.product == 5


def test_code_without_the_loop_over_digits_is_told_apart() -> None:
    code = [instruction("IADD3", address=0), instruction("BRA", address=16, target=0)]
    assert digit_of(Code("kernel", 32, code), trips=2, window=3) is None
