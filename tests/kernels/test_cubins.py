"""The CUDA kernels' compilation, without a GPU. `make cubins` compiles them for all architectures."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import pytest

from gpu_provider.kernels import cubins, nvrtc
from gpu_provider.kernels.cubin_cache import CubinCache
from gpu_provider.kernels.cubins import Arithmetic

if TYPE_CHECKING:
    from pathlib import Path

ARCHITECTURE = "sm_90"
UNIT = next(unit for unit in cubins.units([Arithmetic.INT32]) if (unit.bytes, unit.threads) == (256, 16))


@pytest.fixture
def compiler() -> None:
    try:
        nvrtc.version()
    except nvrtc.CompilerMissingError as error:
        pytest.skip(str(error))


@pytest.fixture
def fake_compiler(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The units that were compiled, by a compiler that takes no time."""
    compiled: list[str] = []

    def compile_apart(unit: cubins.Unit, architecture: str) -> bytes:
        compiled.append(f"{architecture} {unit}")
        return str(unit).encode()

    monkeypatch.setattr(cubins, "_compile_apart", compile_apart)
    monkeypatch.setattr(nvrtc, "version", lambda: "99.9")
    return compiled


def test_radix_2_52_is_for_gpus_that_have_many_units_for_doubles() -> None:
    assert cubins.arithmetics("sm_90") == (Arithmetic.FP64, Arithmetic.INT32)
    assert cubins.arithmetics("sm_80") == (Arithmetic.INT32, Arithmetic.FP64)
    assert cubins.arithmetics("sm_86") == (Arithmetic.INT32,)
    assert cubins.arithmetics("sm_100") == (Arithmetic.FP64, Arithmetic.INT32)
    assert cubins.arithmetics("sm_103") == (Arithmetic.INT32,)


def test_every_size_has_units_for_throughput_and_for_latency() -> None:
    units = cubins.units(Arithmetic)
    for arithmetic in Arithmetic:
        for size in (256, 384, 512):
            threads = {unit.threads for unit in units if (unit.arithmetic, unit.bytes) == (arithmetic, size)}
            assert len(threads) == 2, (arithmetic, size)
    assert len(set(map(str, units))) == len(units)


def test_only_what_the_cache_lacks_is_compiled(fake_compiler: list[str], tmp_path: Path) -> None:
    cache = CubinCache(tmp_path / "cubins")
    units = cubins.units([Arithmetic.INT32])
    told: list[tuple[cubins.Unit, bool]] = []
    first = cubins.load_cubins(units[:2], ARCHITECTURE, cache)
    second = cubins.load_cubins(units, ARCHITECTURE, cache, loaded=lambda *what: told.append(what))
    assert sorted(fake_compiler) == sorted(f"{ARCHITECTURE} {unit}" for unit in units)
    assert first.items() <= second.items()
    assert second == {unit: str(unit).encode() for unit in units}
    assert {unit for unit, cached in told if cached} == set(units[:2])
    assert len(told) == len(units)


@pytest.mark.parametrize("changed", ["version", "source", "architecture", "option"])
def test_what_the_machine_code_depends_on_makes_another_file(
    fake_compiler: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    cache = CubinCache(tmp_path / "cubins")
    cubins.load_cubins([UNIT], ARCHITECTURE, cache)
    architecture = "sm_80" if changed == "architecture" else ARCHITECTURE
    if changed == "version":
        monkeypatch.setattr(nvrtc, "version", lambda: "99.10")
    elif changed == "source":
        files = nvrtc.source_files(cubins.SOURCE)
        monkeypatch.setattr(nvrtc, "source_files", lambda _name: files | {"gpu/launch.h": files["gpu/launch.h"] + "\n"})
    elif changed == "option":
        monkeypatch.setattr(cubins, "_OPTIONS", ("--std=c++20",))
    assert cubins.cached_cubins([UNIT], architecture, cache) == {}
    cubins.load_cubins([UNIT], architecture, cache)
    assert len(fake_compiler) == 2


def test_a_cache_that_cannot_be_used_is_told_once_and_stops_nothing(
    fake_compiler: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = CubinCache(tmp_path / "cubins")
    cache.directory.mkdir()
    cache.directory.chmod(0o777)
    units = cubins.units([Arithmetic.INT32])
    with caplog.at_level(logging.WARNING):
        assert cubins.load_cubins(units, ARCHITECTURE, cache).keys() == set(units)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(cache.directory) in caplog.text
    assert len(fake_compiler) == len(units)


def test_the_source_is_the_kernels_and_all_that_they_include_each_once() -> None:
    files = nvrtc.source_files(cubins.SOURCE)
    assert next(iter(files)) == "gpu/kernels.cu"
    assert {"gpu/launch.h", "arithmetic/compiler.h", "gpu/threads52.h", "arithmetic/rsa.h"} <= files.keys()


def test_without_cupy_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setitem(sys.modules, "cupy.cuda", None)
    nvrtc._nvrtc.cache_clear()
    with pytest.raises(nvrtc.CompilerMissingError, match=r"gpu-provider\[cuda13\]"):
        nvrtc.version()


@pytest.mark.usefixtures("compiler")
@pytest.mark.timeout(300)
def test_a_unit_compiles_to_machine_code_without_a_gpu(tmp_path: Path) -> None:
    cache = CubinCache(tmp_path / "cubins")
    (cubin,) = cubins.load_cubins([UNIT], ARCHITECTURE, cache).values()
    assert cubin.startswith(b"\x7fELF")
    assert b"gpk_private" in cubin
    # The program headers are the last thing in the file: it is whole.
    assert len(cubin) == int.from_bytes(cubin[32:40], "little") + 56 * int.from_bytes(cubin[56:58], "little")
    assert cubins.cached_cubins([UNIT], ARCHITECTURE, cache) == {UNIT: cubin}


@pytest.mark.usefixtures("compiler")
def test_a_source_that_does_not_compile_raises_with_the_compilers_words() -> None:
    with pytest.raises(nvrtc.CompileError, match="nonsense"):
        nvrtc.compile_cubin({"a.cu": "nonsense;"}, (), ARCHITECTURE)
    with pytest.raises(nvrtc.CompileError, match="does not compile for 'sm_1'; it knows sm_"):
        nvrtc.compile_cubin({"a.cu": ""}, (), "sm_1")


@pytest.mark.usefixtures("compiler")
def test_a_device_gets_the_latest_code_that_runs_on_it() -> None:
    assert cubins.architecture_for(9, 0) == "sm_90"
    assert cubins.architecture_for(8, 6) == "sm_86"
    assert cubins.architecture_for(12, 9) == nvrtc.architectures()[-1]
    with pytest.raises(nvrtc.CompileError, match=r"7\.0"):
        cubins.architecture_for(7, 0)
