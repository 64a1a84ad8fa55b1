"""The cache of compiled kernels: a cubin is code that runs with the keys, and a file may be anything."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from gpu_provider.errors import BackendError
from gpu_provider.kernels.cubin_cache import CubinCache, UnsafeCacheError, default_directory

NAME = "sm_90-int32-2048-t8-w4-0123.cubin"
CUBIN = bytes(range(256)) * 40


@pytest.fixture
def cache(tmp_path: Path) -> CubinCache:
    return CubinCache(tmp_path / "new" / "cubins")


def test_what_was_written_is_read(cache: CubinCache) -> None:
    assert cache.read(NAME) is None
    cache.write(NAME, CUBIN)
    assert cache.read(NAME) == CUBIN
    assert cache.read("sm_90-another.cubin") is None
    assert os.listdir(cache.directory) == [NAME]


def test_a_new_directory_is_for_its_user_alone(cache: CubinCache) -> None:
    cache.write(NAME, CUBIN)
    assert stat.S_IMODE(cache.directory.stat().st_mode) == 0o700


@pytest.mark.parametrize("damage", [b"", CUBIN, None, "flip", "renamed"])
def test_a_damaged_file_counts_as_absent(cache: CubinCache, damage: bytes | str | None) -> None:
    cache.write(NAME, CUBIN)
    path = cache.directory / NAME
    content = bytearray(path.read_bytes())
    if damage == "renamed":
        path.rename(cache.directory / "other")
        assert cache.read("other") is None
        return
    if damage == "flip":
        content[-1] ^= 1
    path.write_bytes(damage if isinstance(damage, bytes) else content if damage else content[:-1])
    assert cache.read(NAME) is None
    cache.write(NAME, CUBIN)
    assert cache.read(NAME) == CUBIN


@pytest.mark.parametrize("mode", [0o770, 0o777, 0o1777])
def test_a_directory_where_others_write_is_not_used(cache: CubinCache, mode: int) -> None:
    cache.write(NAME, CUBIN)
    cache.directory.chmod(mode)
    with pytest.raises(UnsafeCacheError, match="chmod go-w"):
        cache.read(NAME)
    with pytest.raises(UnsafeCacheError):
        cache.write(NAME, CUBIN)


def test_a_file_that_others_may_write_or_a_link_is_not_used(cache: CubinCache, tmp_path: Path) -> None:
    cache.write(NAME, CUBIN)
    (cache.directory / NAME).chmod(0o666)
    with pytest.raises(UnsafeCacheError):
        cache.read(NAME)
    (cache.directory / NAME).rename(tmp_path / "elsewhere")
    (cache.directory / NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        cache.read(NAME)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_another_users_directory_is_not_used(cache: CubinCache) -> None:
    cache.write(NAME, CUBIN)
    os.chown(cache.directory, 12345, -1)
    with pytest.raises(UnsafeCacheError, match="belongs to user 12345"):
        cache.read(NAME)


def test_a_directory_of_a_container_image_may_be_readable_by_all(cache: CubinCache) -> None:
    cache.write(NAME, CUBIN)
    cache.directory.chmod(0o755)
    assert stat.S_IMODE((cache.directory / NAME).stat().st_mode) == 0o644
    assert cache.read(NAME) == CUBIN


def test_where_a_directory_cannot_be_made_it_says_so_and_leaves_nothing() -> None:
    with pytest.raises(OSError, match="/proc"):
        CubinCache(Path("/proc/no/cubins")).write(NAME, CUBIN)


def test_readers_beside_writers_see_whole_files_or_none(cache: CubinCache) -> None:
    stop = threading.Event()
    seen: set[bytes | None] = set()
    contents = [bytes([i]) * 50_000 for i in range(4)]

    def read() -> None:
        while not stop.is_set():
            seen.add(cache.read(NAME))

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [
        threading.Thread(target=lambda content=content: [cache.write(NAME, content) for _ in range(25)])
        for content in contents
    ]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert seen <= {None, *contents}
    assert cache.read(NAME) in contents
    assert os.listdir(cache.directory) == [NAME]


def test_the_directory_follows_xdg() -> None:
    assert default_directory({"XDG_CACHE_HOME": "/x", "HOME": "/h"}) == Path("/x/gpu-provider/cubins")
    assert default_directory({"XDG_CACHE_HOME": "relative", "HOME": "/h"}) == Path("/h/.cache/gpu-provider/cubins")
    with pytest.raises(BackendError, match="XDG_CACHE_HOME"):
        default_directory({})
