"""The cache keeps its limit, evicts the least recently used entries, and survives faults around it."""

import errno
import multiprocessing
import os
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from rfdit.storage import disk_cache
from rfdit.storage.disk_cache import CacheFullError, DiskCache, default_folder

BLOCK = 4096  # in which file systems count
ENTRY = 2 * BLOCK  # of an entry of a block, and its digest


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    """Room for ten entries of a block each, with their digests."""
    return DiskCache(folder=str(tmp_path / "cache"), max_bytes=10 * ENTRY)


def put(cache: DiskCache, name: str, data: bytes = b"x" * BLOCK) -> Path:
    def write(file: BinaryIO) -> None:
        file.write(data)

    return cache.put(name, write)


def read(cache: DiskCache, name: str) -> bytes | None:
    file = cache.open(name)
    if file is None:
        return None
    with file:
        return file.read()


def names(cache: DiskCache) -> set[int]:
    """The existing ones of the entries "0" to "99"; looking does not count as a use."""
    return {i for i in range(100) if cache._path(str(i)).exists()}


def test_what_is_put_is_found(cache: DiskCache) -> None:
    assert cache.open("a") is None
    path = put(cache, "a", b"one")
    assert read(cache, "a") == path.read_bytes() == b"one"
    put(cache, "a", b"two")
    assert read(cache, "a") == b"two"
    other = DiskCache(folder=str(cache.folder), max_bytes=cache.max_bytes)
    assert read(other, "a") == b"two"


def test_without_a_check_what_is_there_is_opened(cache: DiskCache) -> None:
    put(cache, "a", b"one").write_bytes(b"two")
    with cache.open_or_put("a", lambda file: file.write(b"three"), check=False) as file:
        assert file.read() == b"two"
    with cache.open_or_put("a", lambda file: file.write(b"three")) as file:
        assert file.read() == b"three"


def test_the_least_recently_used_go_first(cache: DiskCache) -> None:
    for i in range(10):
        put(cache, str(i))
    assert names(cache) == set(range(10))
    assert read(cache, "0")
    assert read(cache, "2")
    put(cache, "10")
    # Down to nine tenths of the limit with the new one's block: 1 goes, 0 and 2 were just used.
    assert names(cache) == set(range(11)) - {1}
    for i in range(11, 14):
        put(cache, str(i))
    assert names(cache) == {0, 2, *range(6, 14)}
    assert cache.total_bytes() == 10 * ENTRY


def test_the_limit_holds_for_entries_of_any_size(cache: DiskCache) -> None:
    for i in range(30):
        put(cache, str(i), b"x" * (i * 977 % (6 * BLOCK)))
        assert cache.total_bytes() <= 10 * ENTRY
        assert i in names(cache)


def test_an_evicted_file_that_is_open_can_be_read_on(cache: DiskCache) -> None:
    put(cache, "0", b"y" * BLOCK)
    file = cache.open("0")
    assert file is not None
    with file:
        for i in range(1, 20):
            put(cache, str(i))
        assert 0 not in names(cache)
        assert file.read() == b"y" * BLOCK


@pytest.mark.parametrize("damage", ["cut", "changed", "no digest"])
def test_a_damaged_entry_is_dropped_and_can_be_put_again(cache: DiskCache, damage: str) -> None:
    path = put(cache, "a", b"a" * 100)
    if damage == "no digest":
        disk_cache._digest_path(path).unlink()
    else:
        path.write_bytes(b"a" * 50 if damage == "cut" else b"b" * 100)
    assert read(cache, "a") is None
    assert not path.exists()
    assert cache.total_bytes() == 0
    put(cache, "a", b"a" * 100)
    assert read(cache, "a") == b"a" * 100


def test_a_writer_that_fails_leaves_nothing(cache: DiskCache) -> None:
    def write(file: BinaryIO) -> None:
        file.write(b"half")
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        cache.put("a", write)
    assert cache.open("a") is None
    assert list(cache.folder.glob("??/*")) == []


def test_what_is_larger_than_the_limit_is_refused_and_nothing_goes_for_it(cache: DiskCache) -> None:
    put(cache, "1")
    with pytest.raises(CacheFullError, match=r"86016 bytes do not fit into a cache of 81920"):
        put(cache, "2", b"x" * 20 * BLOCK)
    assert names(cache) == {1}


def test_on_a_full_disk_older_entries_make_room(cache: DiskCache) -> None:
    for i in range(10):
        put(cache, str(i))

    def write(file: BinaryIO) -> None:
        if cache.total_bytes() > 6 * ENTRY:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file.write(b"new")

    cache.put("10", write)
    assert names(cache) == {5, 6, 7, 8, 9, 10}

    def hopeless(file: BinaryIO) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        cache.put("11", hopeless)


def test_files_of_others_are_left_alone_and_do_not_count(cache: DiskCache) -> None:
    strange = [cache.folder / "ab" / "mine.txt", cache.folder / "notes", cache.folder / "photos" / "x.jpg"]
    for path in strange:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 20 * BLOCK)
    for i in range(20):
        put(cache, str(i))
    assert all(path.exists() for path in strange)
    assert cache.total_bytes() == 10 * ENTRY


def half_write(folder: str, said: "multiprocessing.SimpleQueue[str]") -> None:
    """A writer that is killed in the middle."""

    def write(file: BinaryIO) -> None:
        file.write(b"half")
        file.flush()
        said.put("half")
        time.sleep(60)

    DiskCache(folder=folder, max_bytes=10 * BLOCK).put("a", write)


def test_what_a_killed_writer_left_goes_with_the_next_use(cache: DiskCache) -> None:
    def parts() -> list[Path]:
        return list(cache.folder.glob("*/*.part*"))

    context = multiprocessing.get_context("fork")
    said = context.SimpleQueue()
    process = context.Process(target=half_write, args=(str(cache.folder), said))
    process.start()
    assert said.get() == "half"
    assert cache.open("b") is None
    assert cache.total_bytes() == 0
    assert len(parts()) == 1  # the writer is alive
    process.kill()
    process.join()
    fresh = DiskCache(folder=str(cache.folder), max_bytes=cache.max_bytes)
    assert fresh.open("b") is None
    assert parts() == []


def test_what_this_process_is_writing_is_not_swept_out(cache: DiskCache) -> None:
    def write(file: BinaryIO) -> None:
        file.write(b"first")
        put(DiskCache(folder=str(cache.folder), max_bytes=cache.max_bytes), "b")
        assert cache.total_bytes() == ENTRY
        file.write(b" and second")

    cache.put("a", write)
    assert read(cache, "a") == b"first and second"


def test_what_dead_writers_left_is_swept_out(cache: DiskCache) -> None:
    folder = put(cache, "a").parent
    parts = [folder / "tmpabc.part", folder / "tmpabc.part.b2"]
    orphan = folder / f"{'0' * 30}.b2"
    for path in [*parts, orphan]:
        path.touch()
    assert cache.total_bytes() == ENTRY
    assert not any(path.exists() for path in parts)
    assert orphan.exists()  # its file may get its name just now
    os.utime(orphan, (time.time() - 4000,) * 2)
    assert cache.total_bytes() == ENTRY
    assert not orphan.exists()


def test_a_lost_count_is_counted_again(cache: DiskCache) -> None:
    for i in range(10):
        put(cache, str(i))
    (cache.folder / "total").write_bytes(b"\0\0")
    put(cache, "10")
    assert cache.total_bytes() == 10 * ENTRY


def test_entries_removed_by_hand_only_cost_a_count(cache: DiskCache) -> None:
    for i in range(10):
        put(cache, str(i)).unlink()
    put(cache, "10")
    put(cache, "11")
    assert names(cache) == {10, 11}


def write_and_read(folder: str, number: int, failures: "multiprocessing.SimpleQueue[str]") -> None:
    """One of several processes that use the same names at the same time."""
    cache = DiskCache(folder=folder, max_bytes=20 * BLOCK)
    for i in range(100):
        name = str((i * 7 + number) % 30)
        put(cache, name, name.encode() * 1000)
        for other in (name, str((i * 11 + number) % 30)):
            data = read(cache, other)
            if data not in (None, other.encode() * 1000):
                failures.put(f"{other}: {data!r}")
        if cache.total_bytes() > 20 * BLOCK + 4 * 2 * BLOCK:  # while others rename
            failures.put("over the limit")
    failures.put("done")


def test_processes_share_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    failures = context.SimpleQueue()
    processes = [context.Process(target=write_and_read, args=(str(tmp_path), i, failures)) for i in range(4)]
    for process in processes:
        process.start()
    said = [failures.get() for _ in processes]
    for process in processes:
        process.join()
    assert said == ["done"] * 4
    cache = DiskCache(folder=str(tmp_path), max_bytes=20 * BLOCK)
    assert cache.total_bytes() <= 20 * BLOCK
    with cache._locked() as total:
        assert total.value == cache.total_bytes()


def spool(folder: str, written: "multiprocessing.SimpleQueue[int]") -> None:
    cache = DiskCache(folder=folder, max_bytes=100 * BLOCK)

    def write(file: BinaryIO) -> None:
        written.put(os.getpid())
        time.sleep(0.1)
        file.write(b"shard")

    assert cache.get_or_put("shard", write).read_bytes() == b"shard"


def test_one_of_several_processes_writes_an_entry(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    written = context.SimpleQueue()
    processes = [context.Process(target=spool, args=(str(tmp_path), written)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    written.get()
    assert written.empty()


def test_the_default_is_in_ram_where_there_is_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_cache, "RAM", tmp_path)
    assert default_folder() == tmp_path / f"rfdit-{os.getuid()}"
    cache = DiskCache(max_bytes=10 * BLOCK)
    put(cache, "1")
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(disk_cache, "RAM", tmp_path / "none")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert default_folder() == tmp_path / f"rfdit-{os.getuid()}"


def test_a_default_folder_of_another_user_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_cache, "RAM", tmp_path)
    cache = DiskCache(max_bytes=BLOCK)
    uid = os.getuid()
    cache.folder.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    (tmp_path / f"rfdit-{uid}").rename(tmp_path / f"rfdit-{uid + 1}")
    with pytest.raises(ValueError, match=rf"belongs to user {uid}; give another folder"):
        put(DiskCache(max_bytes=BLOCK), "1")


def test_an_invalid_limit_is_named() -> None:
    with pytest.raises(ValueError, match=r"images\.max_bytes=0 must be more than 0"):
        DiskCache(max_bytes=0)
