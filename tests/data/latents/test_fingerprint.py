"""Fingerprints: the changes after which a shard counts as another one."""

import os
import shutil
from pathlib import Path

import pytest

from rfdit.data.latents.fingerprint import Fingerprint
from rfdit.data.tar.spool import UnreadableShardError


def same(first: Fingerprint, shard: str) -> bool | None:
    return first.is_same_shard(first.now(shard))


def test_a_file_is_known_by_its_bytes(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    shard.write_bytes(b"one")
    first = Fingerprint.of(str(shard))
    assert first.now(str(shard)) == first
    os.utime(shard, ns=(1, 1))
    touched = first.now(str(shard))
    assert first.is_same_shard(touched)
    assert (touched.sha256, touched.marks) == (first.sha256, [3, 1])
    shard.write_bytes(b"two")  # as long as before
    assert same(first, str(shard)) is False


def test_a_tree_is_known_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "tree/cat").mkdir(parents=True)
    (tmp_path / "tree/cat/1.jpg").write_bytes(b"one")
    tree = str(tmp_path / "tree")
    first = Fingerprint.of(tree)
    assert first.now(tree) == first
    (tmp_path / "tree/cat/2.jpg").write_bytes(b"")
    assert same(first, tree) is None
    (tmp_path / "tree/cat/2.jpg").unlink()
    assert first.now(tree) == first
    os.utime(tmp_path / "tree/cat/1.jpg", ns=(1, 1))
    assert same(first, tree) is None


def test_a_remote_file_is_suspected_by_what_its_server_says_and_known_by_its_bytes(tmp_path: Path) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    with files.open("/prints/a.tar", "wb") as file:
        file.write(b"one")
    first = Fingerprint.of("memory://prints/a.tar")
    assert first.sha256 is None
    assert first.now("memory://prints/a.tar") == first
    with files.open("/prints/a.tar", "wb") as file:
        file.write(b"three")
    now = first.now("memory://prints/a.tar")
    assert first.is_same_shard(now) is None
    (tmp_path / "one").write_bytes(b"one")
    (tmp_path / "three").write_bytes(b"three")
    with (tmp_path / "one").open("rb") as file:
        one, touched = first.with_bytes(file), now.with_bytes(file)
    with (tmp_path / "three").open("rb") as file:
        three = now.with_bytes(file)
    assert one.is_same_shard(now) is None
    assert one.is_same_shard(touched) is True
    assert one.is_same_shard(three) is False


def test_of_a_command_nothing_is_known() -> None:
    first = Fingerprint.of("pipe:cat a.tar")
    assert first == Fingerprint(marks=[], sha256=None) == first.now("pipe:cat a.tar")


def test_a_shard_that_is_gone(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    shutil.copy(__file__, shard)
    first = Fingerprint.of(str(shard))
    shard.unlink()
    for ask in (first.now, Fingerprint.of):
        with pytest.raises(UnreadableShardError, match="No such file"):
            ask(str(shard))
