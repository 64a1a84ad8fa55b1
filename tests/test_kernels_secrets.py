"""That secrets decide no branch and no address, and that no wrong result leaves: shown on the compiled code."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kernel_oracle import Numbers

from gpu_provider.kernels import warp

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "kernels"
pytestmark = pytest.mark.timeout(300)


def build(name: str, directory: Path, *options: str, with_files: Sequence[str] = ("key.cpp", "memory.cpp")) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    program = directory / name
    sources = [ROOT / "tests" / "native" / f"{name}.cpp", *(KERNELS / file for file in with_files)]
    flags = ["-std=c++17", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", *options, f"-I{KERNELS}"]
    subprocess.run(["g++", *flags, *sources, "-o", program], check=True, timeout=200)
    return program


def setup_arguments(name: str) -> list[str]:
    """A list of compiler flags in setup.py."""
    match = re.search(rf"^{name} = \[(.*)\]$", (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert match
    return re.findall(r'"(-[^"]+)"', match[1])


def key_on_stdin() -> str:
    key = Numbers.of(2048)
    return " ".join(f"{number:x}" for number in (key.n, key.e, key.p, key.q, key.dp, key.dq, key.qinv))


def test_no_branch_and_no_address_depends_on_a_secret(tmp_path: Path) -> None:
    """Memcheck follows every bit of keys, blinding, inputs and exponents through the portable build of the source."""
    if shutil.which("valgrind") is None or not Path("/usr/include/valgrind/memcheck.h").exists():
        pytest.skip("valgrind and its header are not installed")
    program = build("kernel_secrets", tmp_path, "-DGPK_CHECK_SECRETS")
    command = ["valgrind", "--quiet", "--error-exitcode=99", program]
    result = subprocess.run(command, input=key_on_stdin(), check=False, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    leak = subprocess.run(
        [*command, "leak"], input=key_on_stdin(), check=False, capture_output=True, text=True, timeout=200
    )
    assert leak.returncode == 99, "the check does not notice a branch on dP"


def test_nor_in_the_multi_thread_kernels(tmp_path: Path) -> None:
    """The source that a GPU runs, in both radices, from a key's record to the result."""
    if shutil.which("valgrind") is None or not Path("/usr/include/valgrind/memcheck.h").exists():
        pytest.skip("valgrind and its header are not installed")
    if not warp.host_kernels():
        pytest.skip("this processor lacks AVX2 or FMA")
    options = ["-DGPK_CHECK_SECRETS", *setup_arguments("WARP_ARGS")]
    program = build("thread_secrets", tmp_path, *options, with_files=("thread_record.cpp", "memory.cpp"))
    command = ["valgrind", "--quiet", "--error-exitcode=99", program]
    result = subprocess.run(command, input=key_on_stdin(), check=False, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr


def test_no_fault_lets_a_wrong_result_out(tmp_path: Path) -> None:
    """One bit of one product flipped, all over the operation: 199 runs. A few faults hit what is not used."""
    program = build("kernel_faults", tmp_path)
    result = subprocess.run([program], input=key_on_stdin(), check=True, capture_output=True, text=True, timeout=100)
    products, caught, harmless = (int(word) for word in result.stdout.split())
    assert products > 3_000_000
    assert caught + harmless == 199
    assert harmless < 20


def compiler() -> list[str]:
    if platform.machine() != "x86_64":
        pytest.skip("the IFMA lane exists on x86-64 alone")
    if shutil.which("g++") is None or shutil.which("objdump") is None:
        pytest.skip("g++ and objdump are not installed")
    return ["g++", "-std=c++17", "-O2", "-fPIC", *setup_arguments("IFMA_ARGS")]


def test_vectors_never_reach_an_address_or_a_flag_in_the_ifma_code(tmp_path: Path) -> None:
    """Secrets live in vector registers there. These are the instructions by which one could come out other than by a
    store, or choose an address: to a general register, to the flags, gathers and scatters, and loads under a mask."""
    target = tmp_path / "batch_ifma.o"
    subprocess.run([*compiler(), "-c", KERNELS / "batch_ifma.cpp", "-o", target], check=True, timeout=200)
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", target], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    instructions = [line.split("\t", 1)[1] for line in listing.splitlines() if "\t" in line]
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
