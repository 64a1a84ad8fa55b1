"""Small C programs over the provider's sources: what can only be seen from inside a process."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import rsa_keys
from compiler_flags import flags
from openssl_program import NATIVE

from gpu_provider.commands.counts import read_counts

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAMS = Path(__file__).parent
KERNELS = PROGRAMS.parents[1] / "kernels"
JOB_STACK = 32 * 1024
GROUPS = """\
openssl_conf = start
[start]
providers = providers
alg_section = algorithms
[providers]
default = openssl
gpu_provider = module
[openssl]
activate = 1
[module]
activate = 1
module = {module}
kernels = portable
counts_directory = {counts}
[algorithms]
default_properties = ?gpu_provider.batched=yes
"""
FLAGS = [*flags("C_STANDARD", "WARNINGS"), "-O2", "-g1", "-Werror", "-pthread", f"-I{NATIVE}", f"-I{KERNELS}"]


@pytest.fixture(scope="module")
def provider_objects(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The provider's sources, compiled once for all programs that have them."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    directory = tmp_path_factory.mktemp("objects")
    sources = sorted(path for path in NATIVE.rglob("*.c") if path.name != "module.c")
    subprocess.run(["gcc", *FLAGS, "-c", *sources], cwd=directory, check=True, timeout=50)
    return sorted(directory.glob("*.o"))


def build(name: str, directory: Path, *options: str, objects: Sequence[Path] = ()) -> Path:
    """With the provider's objects, or as any program that loads the module."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    program = directory / name
    command = ["gcc", *FLAGS, *options, PROGRAMS / f"{name}.c", *objects, "-o", program, "-lcrypto"]
    subprocess.run(command, check=True, timeout=50)
    return program


def test_decoders_neither_branch_nor_index_by_secrets(tmp_path: Path, provider_objects: list[Path]) -> None:
    """Bleichenbacher's, Manger's and Vaudenay's attacks need no more than a difference in time."""
    if shutil.which("valgrind") is None or not Path("/usr/include/valgrind/memcheck.h").exists():
        pytest.skip("valgrind and its header are not installed")
    program = build("padding_secrets", tmp_path, objects=provider_objects)
    command = ["valgrind", "--quiet", "--error-exitcode=99", str(program)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=55)
    assert result.returncode == 0, result.stderr


def test_job_stack_is_large_enough(tmp_path: Path, provider_objects: list[Path]) -> None:
    """It has no guard page: an overflow would corrupt the heap silently. libssl needs its share of it too."""
    program = build("fibre_stack", tmp_path, objects=provider_objects)
    output = subprocess.run([program], check=True, capture_output=True, text=True, timeout=50).stdout
    assert 0 < int(output) < JOB_STACK // 2


def test_job_stack_is_large_enough_to_compute_groups(tmp_path: Path, provider_objects: list[Path]) -> None:
    """The kernels alone would need more than a job has: they run on a stack of their own."""
    program = build("fibre_stack", tmp_path, objects=provider_objects)
    counts = tmp_path / "counts"
    counts.mkdir()
    configuration = tmp_path / "openssl.cnf"
    configuration.write_text(GROUPS.format(module=NATIVE / "gpu_provider.so", counts=counts))
    output = subprocess.run([program, configuration], check=True, capture_output=True, text=True, timeout=50).stdout
    assert 0 < int(output) < JOB_STACK // 2
    (program_counts,) = read_counts(counts, ended=True)
    assert program_counts.counts[4096].grouped > program_counts.counts[4096].groups, "no job computed for others"


def test_results_that_the_kernels_get_wrong_are_computed_again(tmp_path: Path, provider_objects: list[Path]) -> None:
    """A processor with a fault, or a bug of ours, must cost time and never a connection."""
    program = build("cpu_faults", tmp_path, objects=provider_objects)
    subprocess.run([program], check=True, timeout=50)


def test_no_descriptor_is_left_that_no_pause_has_shown(tmp_path: Path, provider_objects: list[Path]) -> None:
    """A request may be completed just as its job is about to pause. HAProxy would end when it closes the connection."""
    program = build("unseen_descriptor", tmp_path, objects=provider_objects)
    subprocess.run([program], check=True, timeout=50)


def test_waiting_follows_how_busy_processors_are_and_who_comes(tmp_path: Path, provider_objects: list[Path]) -> None:
    """A lone client that waits, and a busy process that never forms groups: both look alike to a mean of gaps."""
    program = build("patience", tmp_path, objects=provider_objects)
    subprocess.run([program], check=True, timeout=50)


def test_requests_wait_for_company_and_turns_end(tmp_path: Path, provider_objects: list[Path]) -> None:
    """A request that waits for company which never comes, or whose submitter never says that its turn is over, would
    be a connection that hangs."""
    program = build("company", tmp_path, objects=provider_objects)
    subprocess.run([program], check=True, timeout=50)


@pytest.mark.parametrize("other", ["default", "base"])
@pytest.mark.parametrize("sanitizer", [None, "address"])
def test_a_thread_may_end_after_its_library_context(tmp_path: Path, other: str, sanitizer: str | None) -> None:
    """OpenSSL has handlers run when a thread ends, on library contexts whose random numbers it used."""
    options = [] if sanitizer is None else [f"-fsanitize={sanitizer}"]
    program = build("thread_outlives_context", tmp_path, *options)
    key = rsa_keys.private_pem(rsa_keys.private_key(2048))
    command = [program, str(NATIVE), other]
    result = subprocess.run(command, check=False, input=key, capture_output=True, timeout=50)
    assert result.returncode == 0, result.stderr.decode()
