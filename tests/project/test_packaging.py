"""What a user installs: what the wheel and the sdist hold, and what is said if this machine can't build them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from gpu_provider import native
from gpu_provider.kernels import _kernels
from gpu_provider.tls import _ssl

LIBRARIES = [
    native.MODULE_DIRECTORY / "gpu_provider.so",
    *(Path(module.__file__) for module in (native._core, _kernels, _ssl)),
]
ROOT = Path(__file__).resolve().parents[2]
CHECK = ROOT / "tests" / "check_prerequisites.sh"
BUILD_FILES = ("pyproject.toml", "setup.py", "flags.mk")


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist and the wheel built from it, from a copy of the tree that holds a stale object."""
    directory = tmp_path_factory.mktemp("packaging")
    source = directory / "source"
    source.mkdir()
    for name in ("LICENSE", "MANIFEST.in", "README.md", "CHANGELOG.md", *BUILD_FILES):
        shutil.copy(ROOT / name, source)
    for name in ("gpu_provider", "kernels", "tls"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (source / "gpu_provider" / "native" / "gpu_provider.so").write_bytes(b"stale")
    build = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", directory / "dist", source],
        env=os.environ | compilers_without_kernels(directory),
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    return directory / "dist"


def compilers_without_kernels(directory: Path) -> dict[str, str]:
    """Compilers that leave out the arithmetic, which takes most of a minute and which no test here calls: they look at
    which files the packages hold. ``make wheel`` builds everything."""
    stubs = directory / "stubs.cpp"
    stubs.write_text(
        "namespace gpk {\n"
        "void private_ifma(void *, const struct PrivateBatch &) {}\n"
        "void modexp_ifma(void *, const struct ModexpBatch &) {}\n"
        "void private_portable(void *, const struct PrivateBatch &) {}\n"
        "void modexp_portable(void *, const struct ModexpBatch &) {}\n"
        "}\n"
    )
    for name in ("gcc", "g++"):
        compiler = directory / name
        compiler.write_text(
            "#!/bin/sh\n"
            "for argument; do\n"
            "    case $argument in */batch_*.cpp) arithmetic=1 ;; esac\n"
            '    [ "$before" != -o ] || object=$argument\n'
            "    before=$argument\n"
            "done\n"
            f'[ -z "$arithmetic" ] || exec {name} -fPIC -x c++ -c {stubs} -o "$object"\n'
            f'exec {name} "$@" -O0 -U_FORTIFY_SOURCE\n'
        )
        compiler.chmod(0o755)
    return {"CC": str(directory / "gcc"), "CXX": str(directory / "g++")}


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (path,) = distributions.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel_names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


pytestmark = pytest.mark.timeout(300)  # the fixture compiles


def test_the_wheel_serves_python_3_11_and_later(wheel: Path) -> None:
    assert wheel.name.split("-")[2:4] == ["cp311", "abi3"]


def test_nothing_but_gpu_provider_lands_in_site_packages(wheel_names: list[str]) -> None:
    top = {name.partition("/")[0] for name in wheel_names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"gpu_provider"}


def test_the_wheel_carries_the_provider_module_the_extensions_and_the_other_files(wheel_names: list[str]) -> None:
    assert {
        "gpu_provider/native/gpu_provider.so",
        "gpu_provider/native/_core.abi3.so",
        "gpu_provider/kernels/_kernels.abi3.so",
        "gpu_provider/tls/_ssl.abi3.so",
        "gpu_provider/py.typed",
        "gpu_provider/observe/status.html",
    } <= set(wheel_names)


def test_the_wheel_carries_every_module_and_no_source_but_the_kernels(wheel_names: list[str]) -> None:
    """``packages`` is listed by hand: a package left out would be missing for users alone."""
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "gpu_provider").rglob("*.py")}
    for part in ("kernels", "tls"):
        modules |= {f"gpu_provider/{path.relative_to(ROOT)}" for path in (ROOT / part).rglob("*.py")}
    assert modules == {name for name in wheel_names if name.endswith(".py")}
    sources = [name for name in wheel_names if name.endswith((".c", ".cpp", ".cu", ".h", ".md"))]
    kernels = {
        f"gpu_provider/{path.relative_to(ROOT)}"
        for folder in ("arithmetic", "gpu")
        for path in (ROOT / "kernels" / folder).iterdir()
        if path.suffix in {".cu", ".h"}
    }
    assert set(sources) == kernels  # compiled for the GPU that is there


def test_a_stale_object_in_the_tree_does_not_reach_the_users(distributions: Path, wheel: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert not [name for name in archive.getnames() if name.endswith(".so")]
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("gpu_provider/native/gpu_provider.so").startswith(b"\x7fELF")


def test_what_is_installed_is_small(wheel: Path) -> None:
    """The libraries are those of this environment, since the wheel's lack most of the kernels."""
    with zipfile.ZipFile(wheel) as archive:
        files = sum(info.file_size for info in archive.infolist() if not info.filename.endswith(".so"))
    libraries = sum(path.stat().st_size for path in LIBRARIES)
    assert files + libraries < 8_000_000


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_libraries_have_no_debug_information(library: Path) -> None:
    """It would be most of what a user downloads. The names of functions stay, for backtraces."""
    sections = library.read_bytes()
    assert b".debug_info" not in sections
    assert b".symtab" in sections


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl program is not installed")
def test_the_module_in_the_wheel_loads_without_python(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        module = Path(archive.extract("gpu_provider/native/gpu_provider.so", tmp_path))
    listed = subprocess.run(
        ["openssl", "list", "-providers", "-provider-path", module.parent, "-provider", "gpu_provider"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert listed.returncode == 0, listed.stderr
    assert "status: active" in listed.stdout


def check(python: str = sys.executable, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(CHECK), python],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def executable(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def test_the_check_is_silent_where_nothing_is_missing() -> None:
    done = check()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_missing_compiler_is_named_with_its_package() -> None:
    done = check(CC="no-such-compiler")
    assert done.returncode == 1
    assert "no 'no-such-compiler' on the PATH" in done.stderr
    assert "apt-get install gcc libc6-dev\n" in done.stderr


def test_a_missing_cxx_compiler_is_named_with_its_package() -> None:
    done = check(CXX="no-such-compiler")
    assert done.returncode == 1
    assert "no 'no-such-compiler' on the PATH" in done.stderr
    assert "apt-get install g++\n" in done.stderr


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"ssl.h": "#error absent"}, "the headers and libraries of OpenSSL"),
        ({"opensslv.h": "#define OPENSSL_VERSION_MAJOR 1", "ssl.h": ""}, "OpenSSL 3.0 or later"),
    ],
)
def test_missing_or_old_openssl_headers_are_named_with_their_package(
    tmp_path: Path, headers: dict[str, str], message: str
) -> None:
    (tmp_path / "openssl").mkdir()
    for name, text in headers.items():
        (tmp_path / "openssl" / name).write_text(f"{text}\n")
    done = check(CC=f"cc -I{tmp_path}")
    assert done.returncode == 1
    assert message in done.stderr
    assert "apt-get install libssl-dev\n" in done.stderr


def test_missing_headers_of_the_c_library_are_named_with_their_package() -> None:
    done = check(CC="cc -nostdinc")
    assert "apt-get install libc6-dev\n" in done.stderr


def test_a_missing_python_is_named_with_its_packages() -> None:
    done = check("no-such-python")
    assert done.returncode == 1
    assert "apt-get install python3 python3-venv python3-dev\n" in done.stderr


def test_a_python_without_venv_and_headers_is_named_with_their_packages(tmp_path: Path) -> None:
    """Debian splits both from python3."""
    code = "import sys; sys.modules['ensurepip'] = None; import sysconfig; sysconfig.get_path = lambda _: '/nowhere'"
    python = executable(tmp_path / "python", f'#!/bin/sh\nexec {sys.executable} -c "{code}\n$2"\n')
    done = check(python)
    assert "apt-get install python3-venv python3-dev\n" in done.stderr


def test_an_old_python_is_told_with_the_remedy(tmp_path: Path) -> None:
    code = "import sys, platform; sys.version_info = (3, 9); platform.python_version = lambda: '3.9.2'"
    python = executable(tmp_path / "python", f'#!/bin/sh\nexec {sys.executable} -c "{code}\n$2"\n')
    done = check(python)
    assert done.returncode == 1
    assert "3.9.2" in done.stderr
    assert "make PYTHON=" in done.stderr


def test_a_free_threaded_python_is_refused_with_the_reason() -> None:
    code = "import runpy, sysconfig; sysconfig.get_config_vars()['Py_GIL_DISABLED'] = 1; runpy.run_path('setup.py')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("gpu-provider can't be built for a free-threaded Python")
    assert "Traceback" not in done.stderr


def test_make_says_what_is_missing_before_it_touches_anything(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "tests").mkdir()
    shutil.copy(CHECK, tmp_path / "tests")
    for name in BUILD_FILES:
        shutil.copy(ROOT / name, tmp_path)
    for name in ("gpu_provider", "tls", "kernels"):
        (tmp_path / name).mkdir()
    done = subprocess.run(
        ["make", "demo"],
        cwd=tmp_path,
        env={**os.environ, "CC": "no-such-compiler", "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "apt-get install gcc" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / ".venv").exists()
