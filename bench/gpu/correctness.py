"""Every kernel at full batches, checked on the host.

A private operation is right if and only if its result, raised to the public exponent, is the input again: Python's
``pow`` checks that for each row. Exponentiations are compared with the processor's kernels, whose radix and layout
differ.
"""

import itertools
import os
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gpu_provider import kernels
from gpu_provider.kernels.cubins import Unit
from gpu_provider.kernels.launch import Operation

from .batches import PrivateBatch, modexp, private_keys, to_numbers, to_rows
from .launcher import Launcher
from .report import Correctness, Report

# Keys of other sizes go into the next class; their primes end within a limb.
SIZES = {256: (2048,), 384: (3072, 2560, 2056), 512: (4096, 3584)}
ROUNDS = 3  # the second uses blinding pairs that the first has squared
EXPONENT_BITS = 225  # ends within a word and within a digit of any window
FULL_EXPONENTS = 32
SHOWN = 4
PORTION = 8  # rows that one thread computes at a time


def check(launcher: Launcher, units: Sequence[Unit], rows: int | None, tiny: bool, report: Report) -> None:
    for unit in units:
        # One more than fills the device, so that the last warp is not full.
        count = rows or launcher.full_rows(unit) + 1
        report.progress(f"{unit}, {count} rows", len(units))
        checks = {"private": check_private(launcher, unit, count, report, rounds=1 if tiny else ROUNDS)}
        if (unit, Operation.MODEXP) in launcher.kernels:
            checks["modexp"] = check_modexp(launcher, unit, min(count, 32) if tiny else count, EXPONENT_BITS, report)
            if not tiny:
                full = min(count, FULL_EXPONENTS)
                checks["modexp, full exponents"] = check_modexp(launcher, unit, full, 8 * unit.bytes, report)
        launcher.free_all()
        for operation, wrong in checks.items():
            report.sample(Correctness(variant=str(unit), operation=operation, rows=count, wrong=wrong))


def check_private(launcher: Launcher, unit: Unit, rows: int, report: Report, *, rounds: int) -> int:
    """How many rows were wrong."""
    batch = PrivateBatch(launcher, unit, rows, SIZES[unit.bytes])
    inputs = to_numbers(batch.inputs)
    edges = [0, 1, batch.moduli[2 % rows] - 1, batch.moduli[3 % rows], (1 << 8 * unit.bytes) - 1]
    inputs[: min(len(edges), rows)] = edges[:rows]
    batch.set_inputs(inputs)
    batch.make_pairs()
    wrong = 0
    first = np.empty(0, np.uint8)
    for _ in range(rounds):
        batch.outputs.fill(0xAA)
        batch.ok.fill(0xAA)
        batch.upload(rows)
        batch.launch(rows)
        batch.download(rows)
        launcher.wait()
        if np.array_equal(batch.outputs, first):
            continue  # the blinding has changed, the result has not
        first = batch.outputs.copy()
        found = zip(inputs, batch.moduli, to_numbers(batch.outputs), batch.ok.tolist(), strict=True)
        for row, (x, n, result, ok) in enumerate(found):
            expected_ok = x < n
            right = pow(result, 65537, n) == x if expected_ok else result == 0
            if right and ok == expected_ok:
                continue
            wrong += 1
            if wrong <= SHOWN:
                report.mismatch(
                    kernel=f"{unit} private", row=row, input=hex(x), modulus=hex(n), e=65537, got=hex(result), ok=ok
                )
    return wrong


def check_modexp(launcher: Launcher, unit: Unit, rows: int, bits: int, report: Report) -> int:
    """How many rows were wrong."""
    width = unit.bytes
    numbers = [key.public_numbers.n for size in SIZES[width] for key in private_keys(size)]
    moduli = list(itertools.islice(itertools.cycle([*numbers, 3, (1 << 8 * width) - 1]), rows))
    bases = [secrets.randbelow(modulus) for modulus in moduli]
    stride = (bits + 31) // 32 * 4
    exponents = np.frombuffer(secrets.token_bytes(rows * stride), np.uint8).reshape(rows, stride).copy()
    exponents[:1] = 0
    exponents[1:2] = 255
    got = modexp(launcher, unit, bases, exponents, moduli, bits=bits)
    expected = np.zeros((rows, width), np.uint8)
    ok = np.zeros(rows, np.uint8)
    arrays = (to_rows(bases, width), exponents, to_rows(moduli, width), expected, ok)

    def compute(begin: int) -> None:
        kernels.modexp(*(array[begin : begin + PORTION] for array in arrays), exponent_bits=bits)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(compute, range(0, rows, PORTION)))
    wrong = 0
    for row, (result, right) in enumerate(zip(got, to_numbers(expected), strict=True)):
        if result == right:
            continue
        wrong += 1
        if wrong <= SHOWN:
            report.mismatch(
                kernel=f"{unit} modexp", row=row, base=hex(bases[row]),
                exponent=exponents[row].tobytes()[::-1].hex(),
                exponent_bits=bits, modulus=hex(moduli[row]), expected=hex(right), got=hex(result),
            )  # fmt: skip
    return wrong
