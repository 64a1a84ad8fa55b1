"""That secrets decide no branch and no address, and that no wrong result leaves: shown on the compiled code."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from compiler_flags import flags
from kernel_oracle import Numbers

from bench.gpu.host_device import host_kernels
from gpu_provider.kernels import _kernels

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels"
pytestmark = pytest.mark.timeout(300)


def build(
    name: str, directory: Path, *options: str, with_files: Sequence[str] = ("cpu/key.cpp", "cpu/memory.cpp")
) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    program = directory / name
    sources = [ROOT / "tests" / "native" / f"{name}.cpp", *(KERNELS / file for file in with_files)]
    own = ["-O2", "-g1", "-Werror", "-pthread", *options, f"-I{KERNELS}"]
    subprocess.run(["g++", *flags("CXX_STANDARD", "WARNINGS"), *own, *sources, "-o", program], check=True, timeout=200)
    return program


def key_on_stdin(bits: int) -> str:
    key = Numbers.of(bits)
    return " ".join(f"{number:x}" for number in (key.n, key.e, key.p, key.q, key.dp, key.dq, key.qinv))


def memcheck(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Uses the smallest key: its exponents are half as long as its class's largest, and the code is the same."""
    command = ["valgrind", "--quiet", "--error-exitcode=99", program, *arguments]
    return subprocess.run(command, input=key_on_stdin(1024), check=False, capture_output=True, text=True, timeout=200)


def test_no_branch_and_no_address_depends_on_a_secret(tmp_path: Path) -> None:
    """Memcheck follows every bit of keys, blinding, inputs and exponents through the portable build of the source."""
    if shutil.which("valgrind") is None or not Path("/usr/include/valgrind/memcheck.h").exists():
        pytest.skip("valgrind and its header are not installed")
    program = build("kernel_secrets", tmp_path, "-DGPK_CHECK_SECRETS")
    result = memcheck(program)
    assert result.returncode == 0, result.stderr
    assert memcheck(program, "leak").returncode == 99, "the check does not notice a branch on dP"


def test_nor_in_the_multi_thread_kernels(tmp_path: Path) -> None:
    """The source that a GPU runs, in both radices, from a key's record to the result."""
    if shutil.which("valgrind") is None or not Path("/usr/include/valgrind/memcheck.h").exists():
        pytest.skip("valgrind and its header are not installed")
    if not host_kernels():
        pytest.skip("this processor lacks AVX2 or FMA")
    options = ["-DGPK_CHECK_SECRETS", *flags("WARP")]
    program = build("thread_secrets", tmp_path, *options, with_files=("records.cpp", "cpu/memory.cpp"))
    result = memcheck(program)
    assert result.returncode == 0, result.stderr


def test_nor_in_powers_modulo_a_power_of_two(tmp_path: Path) -> None:
    """What even moduli take besides OpenSSL's arithmetic, with the flags that it is installed with."""
    if shutil.which("valgrind") is None or not Path("/usr/include/valgrind/memcheck.h").exists():
        pytest.skip("valgrind and its header are not installed")
    program = tmp_path / "modexp_secrets"
    native = ROOT / "gpu_provider" / "native"
    options = [*flags("C_STANDARD", "WARNINGS"), "-O2", "-g1", f"-I{native}", f"-I{KERNELS}"]
    source = ROOT / "tests" / "native" / "modexp_secrets.c"
    subprocess.run(["gcc", *options, source, "-lcrypto", "-o", program], check=True, timeout=100)
    result = memcheck(program)
    assert result.returncode == 0, result.stderr
    assert memcheck(program, "leak").returncode == 99, "the check does not notice a branch on the result"


def test_no_fault_lets_a_wrong_result_out(tmp_path: Path) -> None:
    """Each of 199 runs flips one bit of one product, all over the operation. A few faults hit what is not used."""
    program = build("kernel_faults", tmp_path)
    key = key_on_stdin(2048)
    result = subprocess.run([program], input=key, check=True, capture_output=True, text=True, timeout=100)
    products, caught, harmless = (int(word) for word in result.stdout.split())
    assert products > 3_000_000
    assert caught + harmless == 199
    assert harmless < 20


def instructions_of(source: str, *functions: str) -> list[str]:
    """The installed kernels' instructions of one source: its local functions, and these, which others call."""
    if shutil.which("objdump") is None or shutil.which("readelf") is None:
        pytest.skip("objdump and readelf are not installed")

    def output_of(*command: str | Path) -> list[str]:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()

    library = Path(_kernels.__file__)
    addresses, file = set(), None
    for line in output_of("readelf", "-sW", library):
        match = re.match(r" *\d+: (\w+) +\w+ (FILE|FUNC) .* (?:ABS|\d+)(.*)", line)
        if match is None:
            continue
        address, kind, name = match[1], match[2], match[3].strip()
        if kind == "FILE":
            file = name
        elif file == source or any(f"{len(function)}{function}E" in name for function in functions):
            addresses.add(int(address, 16))
    instructions, wanted = [], False
    for line in output_of("objdump", "-d", "--no-show-raw-insn", library):
        if line.endswith(">:"):
            wanted = int(line.split()[0], 16) in addresses
        elif wanted and "\t" in line:
            instructions.append(line.split("\t", 1)[1])
    return instructions


def test_vectors_never_reach_an_address_or_a_flag_in_the_ifma_code() -> None:
    """Secrets are in vector registers there. Other than by a store, one could leave or choose an address only by these
    instructions: moves to a general register or to the flags, gathers, scatters, and loads under a mask."""
    if platform.machine() != "x86_64":
        pytest.skip("the IFMA code exists on x86-64 alone")
    instructions = instructions_of("batch_ifma.cpp", "private_ifma", "modexp_ifma")
    assert sum(text.startswith("vpmadd52") for text in instructions) > 5000
    ways_out = re.compile(
        r"vp?gather|vp?scatter|vpcompress|vpexpand|kortest|ktest|vptest |v?movmsk|vpmovmsk|vpextr|vcomis|vucomis"
        r"|kmov\w\s+%k\d,%[er]|vmov[dq]\s+%xmm\d+,%[er]|i?div"
    )
    found = [i for i, text in enumerate(instructions) if ways_out.match(text) or "{%k" in text]
    assert [instructions[i] for i in found if not is_restored(instructions, i)] == []


def is_restored(instructions: list[str], index: int) -> bool:
    """Whether this moves to a general register what was moved from one: gcc keeps pointers in idle vector registers."""
    move = re.match(r"vmovq\s+%xmm(\d+),%r", instructions[index])
    if move is None:
        return False
    writes = re.compile(rf".*%[xyz]mm{move[1]}$")
    last = next(text for text in reversed(instructions[:index]) if writes.match(text.rstrip()))
    return re.match(r"vmovq\s+%r", last) is not None
