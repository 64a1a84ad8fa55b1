"""The CUDA kernels as NVRTC compiles them, without a GPU: their PTX, executed by ``ptx_machine.py``, against Python's
``pow``. Every unit, with keys of small primes and short exponents; ``test_cupy_device.py`` has whole keys."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from kernel_oracle import Numbers, integers, prime, rows
from ptx_machine import WARP, Machine
from ptx_parser import FaultError
from ptx_units import run

from gpu_provider.kernels import cubins
from gpu_provider.kernels.cubins import Arithmetic, Unit
from gpu_provider.kernels.launch import MODEXP_LAUNCH, PRIVATE_LAUNCH, Operation, key_record, modulus_record

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNITS = cubins.units(Arithmetic)
pytestmark = pytest.mark.timeout(300)
every_unit = pytest.mark.parametrize("unit", UNITS, ids=str)


def readonly(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


class Launch:
    """Keys with their records, and a pair for each row, in memory as a device would have it."""

    def __init__(self, unit: Unit, keys: list[Numbers], key_of_row: list[int]) -> None:
        self.unit, self.keys = unit, keys
        self.records = np.zeros((len(keys), unit.key_bytes), np.uint8)
        for record, key in zip(self.records, keys, strict=True):
            numbers = {"n": key.n, "e": key.e, "p": key.p, "q": key.q, "dp": key.dp, "dq": key.dq, "qinv": key.qinv}
            key_record(record, unit.arithmetic.radix_bits, unit.bytes, **numbers)
        self.count = len(key_of_row)
        self.key_of_row = readonly(np.array(key_of_row, np.uint32))
        self.pair_of_row = readonly(np.arange(self.count, dtype=np.uint32)[::-1].copy())
        self.pairs = np.zeros((self.count, unit.pair_bytes), np.uint8)
        noise = np.random.default_rng(5).integers(0, 256, (self.count, unit.bytes), np.uint8)
        self._run(Operation.MAKE_PAIRS, readonly(noise))

    def private_op(self, inputs: list[int]) -> tuple[list[int], list[int]]:
        outputs, ok = np.full((self.count, self.unit.bytes), 0xA5, np.uint8), np.full(self.count, 7, np.uint8)
        self._run(Operation.PRIVATE, readonly(rows(inputs, self.unit.bytes)), outputs, ok)
        return integers(outputs), ok.tolist()

    def _run(self, operation: Operation, inputs: NDArray[np.uint8], *results: NDArray[np.uint8]) -> None:
        read = self.key_of_row, self.pair_of_row, readonly(self.records)
        launch = np.zeros(1, PRIVATE_LAUNCH)
        exponent_bits = max(max(key.p, key.q).bit_length() for key in self.keys)
        any_e = int(np.bitwise_or.reduce([key.e for key in self.keys]))
        addresses = [array.ctypes.data for array in (*read, self.pairs, inputs, *results)]
        launch[0] = (self.count, exponent_bits, any_e, *addresses, *(2 - len(results)) * [0])
        warps = -(-self.count // self.unit.rows)
        run(self.unit, operation.entry, launch.tobytes(), warps, [*read, self.pairs, inputs, *results])


@every_unit
def test_exponentiations(unit: Unit) -> None:
    source = random.Random(7)  # noqa: S311 (test data)
    bits = 8 * unit.bytes
    moduli = [2**bits - 1, source.getrandbits(bits) | 1 | 1 << bits - 1, source.getrandbits(700) | 1, 3]
    records = np.zeros((len(moduli), unit.modulus_bytes), np.uint8)
    for record, modulus in zip(records, moduli, strict=True):
        modulus_record(record, unit.arithmetic.radix_bits, unit.bytes, modulus)
    count = 4 * unit.rows - 1
    modulus_of_row = [i % len(moduli) for i in range(count)]
    edges = [2**bits - 2, 2**bits - 1, 0, 1]
    bases = [edges[i] if i < len(edges) else source.getrandbits(bits) for i in range(count)]
    powers = [source.getrandbits(18) for _ in range(count)]

    arrays = [np.array(modulus_of_row, np.uint32), records, rows(bases, unit.bytes), rows(powers, 4)]
    outputs = np.full((count, unit.bytes), 0xA5, np.uint8)
    launch = np.zeros(1, MODEXP_LAUNCH)
    launch[0] = (count, 18, 4, 0, *(array.ctypes.data for array in (*arrays, outputs)))
    run(
        unit, Operation.MODEXP.entry, launch.tobytes(), 5, [*map(readonly, arrays), outputs]
    )  # the last warp has no row
    expected = [pow(base, power, moduli[i]) for base, power, i in zip(bases, powers, modulus_of_row, strict=True)]
    assert integers(outputs) == expected


@every_unit
def test_private_operations(unit: Unit) -> None:
    """Small primes take every step of the operation, in a fraction of the time."""
    keys = [
        Numbers.from_primes(prime(bits, e), prime(bits, e, seed=1), e) for bits, e in ((40, 65537), (36, 3), (40, 17))
    ]
    keys[2] = replace(keys[2], dp=keys[2].dp ^ 2)  # its results must not come out
    key_of_row = [i % 3 for i in range(max(6, unit.rows + 1))]
    launch = Launch(unit, keys, key_of_row)
    source = random.Random(8)  # noqa: S311 (test data)
    for _ in range(2):  # the second time with the pairs squared
        inputs = [0, 1, 5, keys[0].n - 1, keys[1].n, keys[2].n - 1]  # the fifth is not below its modulus
        inputs += [source.randrange(keys[i].n) for i in key_of_row[6:]]
        outputs, ok = launch.private_op(inputs)
        right = [i != 4 and key != 2 for i, key in enumerate(key_of_row)]
        assert ok == right
        assert outputs == [keys[i].private(x) * r for x, i, r in zip(inputs, key_of_row, right, strict=True)]


def test_a_buffer_that_is_too_short_is_seen() -> None:
    """Otherwise the tests above would prove less than they claim."""
    launch = Launch(UNITS[0], [Numbers.from_primes(prime(64, 3), prime(64, 3, seed=1), 3)], [0])
    launch.pairs = launch.pairs[:, :-4].copy()
    with pytest.raises(FaultError, match="in no buffer"):
        launch.private_op([5])


ENTRY = ".visible .entry kernel(.param .u64 kernel_param_0) { .reg .pred %p<4>; .reg .b32 %r<9>; .reg .b64 %rd<4>; "
OWN_WORD = "mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 2; add.s32 %r3, %r2, table; st.shared.u32 [%r3], %r1; "
FIRST_WORD = "mov.u32 %r4, table; ld.shared.u32 %r5, [%r4]; "
UNTIL_LANE_3 = "mov.u32 %r1, %laneid; setp.gt.u32 %p1, %r1, 3; @%p1 bra $after; "
SHUFFLE = "shfl.sync.idx.b32 %r6|%p2, %r1, 0, 31, -1; "


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("add.s32 %r1, %r2, 1; ", "nobody has written"),
        (UNTIL_LANE_3 + SHUFFLE + "$after: ", "not all at the same place"),
        (UNTIL_LANE_3 + "$after: " + SHUFFLE, None),
        ("mov.u32 %r1, %laneid; " + SHUFFLE.replace("-1", "15"), "among some threads"),
        (OWN_WORD + FIRST_WORD, "not synchronized"),
        (OWN_WORD + "bar.warp.sync -1; " + FIRST_WORD, None),
        (OWN_WORD + UNTIL_LANE_3 + "bar.warp.sync -1; $after: ", "not all at the same place"),
        (OWN_WORD.replace("2;", "3;"), "outside the 128 bytes of shared memory"),
        ("ld.param.u64 %rd1, [kernel_param_0]; ld.global.u32 %r1, [%rd1+2]; ", "not a multiple of 4"),
        ("ld.param.u64 %rd1, [kernel_param_0]; ld.global.u32 %r1, [%rd1+4]; ", "in no buffer"),
        ("ld.param.u64 %rd1, [kernel_param_0]; st.global.u32 [%rd1], 1; ", "only read"),
        ("ld.param.u64 %rd1, [kernel_param_0]; ld.global.u32 %r1, [%rd1]; ", None),
        ("mul.wide.s32 %rd1, %r1, 2; ", "mul.wide.s32 is not known"),
    ],
)
def test_faults_of_a_kernel_are_seen(body: str, fault: str | None) -> None:
    buffer = readonly(np.zeros(1, np.uint32))

    def execute() -> None:
        Machine(ENTRY + body + "ret; }").run("kernel", buffer.ctypes.data.to_bytes(8, "little"), 2, 4 * WARP, [buffer])

    if fault is None:
        execute()
    else:
        with pytest.raises(FaultError, match=fault):
            execute()
