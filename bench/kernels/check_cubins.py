"""``python -m bench.kernels.check_cubins``: compiles every CUDA kernel for every architecture, checks the code.

It needs neither a GPU nor a driver. It fails on local memory, where spilled registers go, on exchanges among threads
where a warp may have diverged, and on counts that differ from the repository's table. ``--update`` rewrites the table,
with estimates of what a private operation costs. The table belongs to one version of NVRTC: with another, everything
but the counts is checked, and the estimates shown are those of what that version compiled.

The table also has a digest of what it was made from: the sources, NVRTC and its options. While that is the same, the
machine code can't have moved, so only one architecture is compiled, as a spot check.
"""

import argparse
import csv
import hashlib
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from gpu_provider.errors import BackendError
from gpu_provider.kernels import cubins, nvrtc
from gpu_provider.kernels.cubin_cache import CubinCache

from ..environment import ROOT
from ..report import progress_on
from .issue_model import Digit, digit_of, warp_cycles
from .machine_code import Code, MissingToolError, read_cubin
from .units import all_units

TABLE = ROOT / "kernels" / "machine_code.csv"
CACHE = ROOT / "build" / "cubins"
SPOT_CHECK = "sm_90"  # compiled for both arithmetics
SKIPPED = 77

SCHEDULERS = 4  # of a multiprocessor, each with a quarter of its registers
REGISTERS = 65536 // SCHEDULERS
BLOCK_BYTES = 1024  # of shared memory that a block costs beside its own


@dataclass(frozen=True)
class Gpu:
    """A well-known GPU of an architecture, to make a rate of cycles. Boost clock as published."""

    name: str
    multiprocessors: int
    clock: float
    """Hz."""
    shared: int
    """Bytes of shared memory of a multiprocessor."""


GPUS = {
    "sm_75": Gpu("T4", 40, 1.59e9, 64 << 10),
    "sm_80": Gpu("A100 SXM", 108, 1.41e9, 164 << 10),
    "sm_86": Gpu("A10", 72, 1.695e9, 100 << 10),
    "sm_89": Gpu("L40S", 142, 2.52e9, 100 << 10),
    "sm_90": Gpu("H100 SXM", 132, 1.755e9, 228 << 10),
    "sm_100": Gpu("B200", 148, 1.85e9, 228 << 10),
    "sm_120": Gpu("RTX 5090", 170, 2.41e9, 100 << 10),
}


@dataclass(frozen=True)
class Row:
    """What the table keeps of one kernel."""

    architecture: str
    unit: str
    kernel: str
    rows: int
    """Rows that a warp works on."""
    registers: int
    table_bytes: int
    """Shared memory of a warp."""
    instructions: int
    multiply_adds: int
    """IMAD.WIDE and DFMA."""
    iadd3: int
    shfl: int
    local: int
    """LDL and STL: must be 0."""
    bra: int
    bssy: int
    digit_multiply_adds: int
    """What one warp executes for a digit of the exponents: ``window`` squarings, a product and the table's scan."""
    digit_instructions: int
    square_instructions: int
    product_instructions: int
    warps: int
    """Warps that a multiprocessor of the architecture's GPU (``GPUS``) holds at a time. This and what follows are
    estimated for private operations, and 0 in other kernels."""
    digit_cycles: int
    """Estimate: until such a warp is done with a digit, where all of them compute."""
    lone_digit_cycles: int
    """The same for a warp that has its scheduler for itself."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.kernels.check_cubins", description=__doc__)
    parser.add_argument("--update", action="store_true", help="write the table instead of comparing with it")
    parser.add_argument(
        "--arch",
        nargs="+",
        choices=GPUS,
        help=f"architectures (default: all; {SPOT_CHECK} if the table was made from the same sources and NVRTC)",
    )
    parser.add_argument(
        "--every-unit",
        action="store_true",
        help="also what bench.gpu alone measures: both arithmetics, and every window",
    )
    arguments = parser.parse_args()
    if arguments.update and arguments.every_unit:
        parser.error("--every-unit: the table keeps what the backend uses, so that does not go with --update")
    console = Console()
    try:
        spot_check = not (arguments.every_unit or arguments.update) and table_inputs() == inputs()
        wanted = arguments.arch or ([SPOT_CHECK] if spot_check else list(GPUS))
        return check(wanted, arguments.every_unit, arguments.update, console)
    except (nvrtc.CompilerMissingError, MissingToolError) as error:
        print(error)
        return SKIPPED
    except BackendError as error:
        print(error, file=sys.stderr)
        return 1


def check(wanted: Sequence[str], every_unit: bool, update: bool, console: Console) -> int:
    known = [name for name in wanted if name in nvrtc.architectures()]
    if unknown := [name for name in wanted if name not in known]:
        console.print(f"NVRTC {nvrtc.version()} does not know {' '.join(unknown)}")
    version, table = read_table()
    comparable = version == nvrtc.version()
    todo = {name: all_units() if every_unit else cubins.units(cubins.arithmetics(name)) for name in known}
    rows, faults = [], []
    for architecture, unit, code in compiled(todo, console):
        digit = digit_of(code, unit.threads if code.name == "gpk_modexp" else unit.threads // 2, unit.window)
        rows.append(row := describe(architecture, unit, code, digit))
        faults += [f"{architecture} {unit} {code.name}: {fault}" for fault in find_faults(code, row)]
        if (update or not comparable) and digit is not None and code.name == "gpk_private":
            rows[-1] = estimate(row, digit)
    if update:
        write_table(rows, [row for row in table if row.architecture not in known])
    elif comparable:
        faults += compare(rows, [row for row in table if row.architecture in known])
    else:
        console.print(f"counts are not compared: the table is of NVRTC {version or 'none'}, this is {nvrtc.version()}")
    show([row for row in table if row.architecture in known] if comparable and not update else rows, console)
    for fault in faults:
        console.print(fault, style="red", markup=False, soft_wrap=True)
    console.print(f"NVRTC {nvrtc.version()}: {len(rows)} kernels for {len(known)} architectures, {len(faults)} faults")
    return 1 if faults else 0


def compiled(
    todo: Mapping[str, Sequence[cubins.Unit]], console: Console
) -> Iterator[tuple[str, cubins.Unit, Code]]:  # fmt: skip
    """Every kernel of these units, by architecture."""
    with progress_on(console) as progress, tempfile.TemporaryDirectory() as directory:
        task = progress.add_task("", total=sum(map(len, todo.values())))
        for name, units in todo.items():

            def loaded(unit: cubins.Unit, _cached: bool, name: str = name) -> None:
                progress.update(task, description=f"{name} {unit}", advance=1)

            for unit, cubin in cubins.load_cubins(units, name, CubinCache(CACHE), loaded=loaded).items():
                path = Path(directory) / "cubin"
                path.write_bytes(cubin)
                for code in read_cubin(path):
                    yield name, unit, code


def describe(architecture: str, unit: cubins.Unit, code: Code, digit: Digit | None) -> Row:
    """Without what :func:`estimate` says."""
    private = code.name == "gpk_private"
    return Row(
        architecture=architecture,
        unit=str(unit),
        kernel=code.name,
        rows=unit.rows,
        registers=code.registers,
        table_bytes=unit.table_bytes,
        instructions=len(code.instructions),
        multiply_adds=sum(each.is_multiply_add for each in code.instructions),
        iadd3=code.count("IADD3"),
        shfl=code.count("SHFL"),
        local=code.count("LDL", "STL"),
        bra=code.count("BRA"),
        bssy=code.count("BSSY"),
        digit_multiply_adds=sum(each.is_multiply_add for each in digit.instructions) if digit else 0,
        digit_instructions=len(digit.instructions) if digit else 0,
        square_instructions=digit.square if digit else 0,
        product_instructions=digit.product if digit else 0,
        warps=0,
        digit_cycles=0,
        lone_digit_cycles=round(warp_cycles(digit.instructions, 1, architecture)) if digit and private else 0,
    )


def estimate(row: Row, digit: Digit) -> Row:
    """Fills in the estimates, for as many warps as the architecture's GPU has registers and shared memory for."""
    registers = -(-row.registers // 8) * 8 * 32
    shared = GPUS[row.architecture].shared
    warps = min(shared // (row.table_bytes + BLOCK_BYTES), SCHEDULERS * (REGISTERS // registers))
    # The first schedulers have a warp more than the last ones.
    rate = sum(
        each / warp_cycles(digit.instructions, each, row.architecture)
        for scheduler in range(SCHEDULERS)
        if (each := (warps + SCHEDULERS - 1 - scheduler) // SCHEDULERS)
    )
    return replace(row, warps=warps, digit_cycles=round(warps / rate))


def digits_of(row: Row) -> float:
    """The digits of a private operation's exponents, and what the rest of it costs as digits."""
    bits, window = (int(part) for part in re.findall(r"-(\d+)-t\d+-w(\d+)", row.unit)[0])
    digits = -(-bits // 2 // window)
    # Mod p and q, the table and 6 products around the exponentiation; mod n there are twice as many threads, and so
    # trips, for 17 squarings and 8 products: of the check, and of blinding.
    squares, products = 2 * 17, (1 << window) - 2 + 6 + 2 * 8
    rest = squares * row.square_instructions + products * row.product_instructions
    return digits + rest / row.digit_instructions


def find_faults(code: Code, row: Row) -> Iterator[str]:
    """What no kernel may have."""
    if row.local:
        yield f"{row.local} accesses to local memory: registers are spilled"
    if apart := code.exchanges_apart():
        yield f"{apart[0].name} at {apart[0].address:#x} stands where a warp may have parted"
    if row.digit_multiply_adds == 0:
        yield "the loop over digits was not found: the code is not what bench/kernels/issue_model.py takes it for"


def show(rows: Sequence[Row], console: Console) -> None:
    columns = (
        "unit",
        "registers",
        "warps/SM",
        "instructions/digit",
        "ms, lone warps",
        "ms, all",
        "1/s, SM",
        "1/s, GPU",
    )
    title = "Private operations, estimated from the machine code and not measured (bench/kernels/issue_model.py)"
    table = Table("", *columns, title=title)
    for row in rows:
        if row.warps:
            gpu = GPUS[row.architecture]
            cycles, lone = (each * digits_of(row) for each in (row.digit_cycles, row.lone_digit_cycles))
            rate = row.warps * row.rows * gpu.clock / cycles
            table.add_row(
                row.architecture,
                row.unit,
                str(row.registers),
                str(row.warps),
                f"{row.digit_instructions:,}",
                f"{1e3 * lone / gpu.clock:.2f}",
                f"{1e3 * cycles / gpu.clock:.2f}",
                f"{rate:,.0f}",
                f"{rate * gpu.multiprocessors:,.0f} ({gpu.name})",
            )
    console.print(table)


def read_table() -> tuple[str, list[Row]]:
    """The version of NVRTC that it was made with, and the rows; none if it has other columns than this program."""
    if not TABLE.exists():
        return "", []
    with TABLE.open(newline="") as file:
        version = file.readline().removeprefix("# NVRTC ").partition(",")[0].strip()
        records = csv.DictReader(file)
        if records.fieldnames != [field.name for field in fields(Row)]:
            return "", []
        return version, [msgspec.convert(record, Row, strict=False) for record in records]


def inputs() -> str:
    """A digest of all that the table's machine code depends on."""
    names = (cubins.cache_names(cubins.units(cubins.arithmetics(name)), name).values() for name in GPUS)
    return hashlib.sha256("\n".join(chain.from_iterable(names)).encode()).hexdigest()[:32]


def table_inputs() -> str:
    """The digest that the table was made with."""
    with TABLE.open() as file:
        return file.readline().partition(", inputs ")[2].strip()


def write_table(rows: Sequence[Row], others: Sequence[Row]) -> None:
    """``others``: rows kept as they are. The digest then stays what it was, so that a check still compiles them."""
    digest = table_inputs() if others else inputs()
    with TABLE.open("w", newline="") as file:
        file.write(f"# NVRTC {nvrtc.version()}, inputs {digest}\n")
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, sorted([*rows, *others], key=lambda row: list(GPUS).index(row.architecture))))


def compare(rows: Sequence[Row], table: Sequence[Row]) -> Iterator[str]:
    """Yields what differs between the units that the table must have and the table."""
    remedy = "look at why, then python -m bench.kernels.check_cubins --update"
    own = {(name, str(unit)) for name in GPUS for unit in cubins.units(cubins.arithmetics(name))}
    kept = {(row.architecture, row.unit, row.kernel): row for row in table}
    for row in rows:
        before = kept.pop((row.architecture, row.unit, row.kernel), None)
        if before is None:
            if (row.architecture, row.unit) in own:
                yield f"{row.architecture} {row.unit} {row.kernel} is not in {TABLE.name}: {remedy}"
        elif (counted := replace(before, warps=0, digit_cycles=0)) != row:
            now = asdict(row)
            moved = (f"{name} {old} -> {now[name]}" for name, old in asdict(counted).items() if old != now[name])
            yield f"{row.architecture} {row.unit} {row.kernel} moved ({', '.join(moved)}): {remedy}"
    for name in kept:
        yield f"{' '.join(name)} is in {TABLE.name}, but there is no such kernel: {remedy}"


if __name__ == "__main__":
    sys.exit(main())
