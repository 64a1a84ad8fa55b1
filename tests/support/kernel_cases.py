"""Random batches for the kernels, each row checked: as many as the caller asks for.

``make test-long`` runs this file: a million private operations of the fastest ISA, fewer of the others, with progress.
"""

from __future__ import annotations

import argparse
import random
import sys
from typing import TYPE_CHECKING

from kernel_oracle import Numbers, modexp, private_op
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gpu_provider import kernels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BATCH = 64
SIZES = (2048, 2056, 3000, 3072, 4096)
# Of the cases of the fastest ISA, one in so many is run on each: about the same time.
SHARE = {kernels.Isa.IFMA: 1, kernels.Isa.PORTABLE: 50}


def check_private_operations(isa: kernels.Isa, cases: int, seed: int = 2026) -> Iterator[int]:
    """Keys of all sizes mixed. Yields after each batch how many rows it had. Raises AssertionError."""
    source = random.Random(seed)  # noqa: S311
    keys = [Numbers.of(bits) for bits in (*SIZES, 2048, 2048, 2560)]
    loaded = [key.load() for key in keys]
    for count in batches(cases):
        chosen = [source.randrange(len(keys)) for _ in range(count)]
        inputs = [random_number(source, keys[i].n) for i in chosen]
        outputs, ok = private_op([loaded[i] for i in chosen], inputs, 512, isa)
        assert ok == [1] * count
        # The public operation is the cheap oracle for all; the full one, for one of each batch.
        for i, x, y in zip(chosen, inputs, outputs, strict=True):
            assert pow(y, keys[i].e, keys[i].n) == x, f"{isa.name}: input {x:#x} of the key {keys[i]} gave {y:#x}"
        assert outputs[0] == keys[chosen[0]].private(inputs[0])
        yield count


def check_powers(isa: kernels.Isa, cases: int, seed: int = 2026) -> Iterator[int]:
    """Odd moduli of any length up to 8192 bits, exponents of up to 256 bits. Yields and raises as above."""
    source = random.Random(seed)  # noqa: S311
    for count in batches(cases):
        stride = source.choice((32, 64, 128, 256, 384, 512, source.randrange(1, 1025)))
        moduli = [random_number(source, 1 << 8 * stride) | 3 for _ in range(count)]
        bases = [random_number(source, 1 << 8 * stride) for _ in moduli]
        exponents = [source.getrandbits(source.choice((8, 64, 225, 256))) for _ in moduli]
        outputs, ok = modexp(bases, exponents, moduli, stride, isa)
        assert ok == [1] * count
        for base, exponent, modulus, power in zip(bases, exponents, moduli, outputs, strict=True):
            wanted = pow(base, exponent, modulus)
            assert power == wanted, f"{isa.name}: {base:#x} ** {exponent:#x} % {modulus:#x} gave {power:#x}"
        yield count


def batches(cases: int) -> Iterator[int]:
    for start in range(0, cases, BATCH):
        yield min(BATCH, cases - start)


def random_number(source: random.Random, bound: int) -> int:
    """Below the bound: uniform, short, near it, or long runs of equal bits."""
    kind = source.randrange(4)
    if kind == 0:
        return source.randrange(bound)
    if kind == 1:
        return source.getrandbits(source.randrange(1, bound.bit_length()))
    if kind == 2:
        return bound - 1 - source.getrandbits(source.randrange(1, 128))
    value = 0
    while value.bit_length() < bound.bit_length():
        run = source.randrange(1, 200)
        value = value << run | (source.randrange(2) * ((1 << run) - 1))
        value |= value == 0
    return value % bound


def main() -> int:
    parser = argparse.ArgumentParser(description="Checks random batches of the kernels on every ISA.")
    parser.add_argument("--cases", type=int, default=1_000_000, help="private operations of the fastest ISA")
    cases = parser.parse_args().cases
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    for isa in kernels.Isa:
        if isa is kernels.Isa.BEST:
            continue
        try:
            kernels.isa(isa)
        except kernels.UnsupportedError as error:
            print(f"{isa.name}: not run: {error}")
            continue
        subjects: dict[str, tuple[Callable[[kernels.Isa, int, int], Iterator[int]], int]] = {
            "private operations": (check_private_operations, max(1, cases // SHARE[isa])),
            "exponentiations": (check_powers, max(1, cases // SHARE[isa] // 10)),
        }
        for name, (check, count) in subjects.items():
            seed = random.SystemRandom().getrandbits(32)
            what = f"{isa.name}: {count:,} {name}, seed {seed}"
            with Progress(*columns, TimeRemainingColumn(), disable=not sys.stdout.isatty(), transient=True) as progress:
                task = progress.add_task(what, total=count)
                for done in check(isa, count, seed):
                    progress.advance(task, done)
            print(f"{what}: no mismatch", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
