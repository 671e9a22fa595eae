"""The embedded world's shards: the same for all processes, complete or missing."""

import concurrent.futures
import multiprocessing
from pathlib import Path

import pytest

from rfdit.data.decode import SampleDecoder
from rfdit.data.filters import Filters
from rfdit.data.shapes.scenes import is_held_out, parse
from rfdit.data.shapes.shards import ShapesShards
from rfdit.data.stream.dataset import Stream
from rfdit.data.stream.positions import Bucket, FinitePlan
from rfdit.data.tar.source import TarReader
from rfdit.eval.metrics.prompt_accuracy import PromptAccuracy
from rfdit.storage.disk_cache import cache_root


def shapes(cache: Path, **settings: object) -> ShapesShards:
    defaults = {"split": "train", "samples": 60, "shards": 4, "resolution": 32, "cache": str(cache)}
    return ShapesShards(**defaults | settings)


def contents(paths: list[str]) -> list[bytes]:
    return [Path(path).read_bytes() for path in paths]


def test_shards_are_the_same_everywhere(tmp_path: Path) -> None:
    here, there = (shapes(tmp_path / name)() for name in ("a", "b"))
    assert [Path(path).name for path in here] == [f"{i:05d}.tar" for i in range(4)]
    assert contents(here) == contents(there)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"split": "validation"}, {"one_thing": 1.0}, {"resolution": 64}]
)
def test_other_settings_give_other_shards(tmp_path: Path, change: dict[str, object]) -> None:
    shards, others = shapes(tmp_path)(), shapes(tmp_path, **change)()
    assert set(shards).isdisjoint(others)
    assert set(contents(shards)).isdisjoint(contents(others))


def test_shards_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = shapes(tmp_path)()

    def write(self: ShapesShards, folder: Path) -> None:
        raise AssertionError("written again")

    monkeypatch.setattr(ShapesShards, "_write", write)
    assert shapes(tmp_path)() == first


def test_a_damaged_shard_is_written_again(tmp_path: Path) -> None:
    paths = shapes(tmp_path)()
    whole, untouched = contents(paths), Path(paths[0]).stat().st_mtime_ns
    for damaged in (b"", whole[1][:600], whole[1][:700] + b"?" + whole[1][701:]):
        Path(paths[1]).write_bytes(damaged)
        assert shapes(tmp_path)() == paths
        assert contents(paths) == whole
    assert Path(paths[0]).stat().st_mtime_ns == untouched


def test_an_interrupted_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(self: ShapesShards, folder: Path) -> None:
        (folder / "00000.tar").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ShapesShards, "_write", write)
        with pytest.raises(KeyboardInterrupt):
            shapes(tmp_path)()
    assert list(tmp_path.iterdir()) == []
    assert len(shapes(tmp_path)()) == 4


def _write(cache: str) -> list[str]:
    return shapes(Path(cache), samples=400)()


def test_processes_may_write_at_once(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(3, mp_context=fork) as pool:
        found = list(pool.map(_write, [str(tmp_path)] * 3))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 4
    assert [path.name for path in tmp_path.iterdir()] == [shapes(tmp_path, samples=400).folder.name]


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "rfdit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "rfdit"


def test_the_reader_finds_scenes_that_are_not_held_out(tmp_path: Path) -> None:
    """The stream yields the images of their captions, none of them held out."""
    for split in ("train", "validation"):
        source = TarReader(cache=str(tmp_path))(shapes(tmp_path, split=split)(), filters=Filters())
        decoder = SampleDecoder(caption_key="json.caption")
        plan = FinitePlan(Bucket((32, 32), source.shard_sizes), batch_size=60, ranks=1)
        (batch,) = list(Stream(source=source, plan=plan, decoder=decoder, seed=0))
        assert len(batch) == 60
        assert batch.captions is not None
        assert not any(is_held_out(parse(caption)) for caption in batch.captions)
        metric = PromptAccuracy()
        metric.update(batch.images, batch.captions)
        assert metric.compute()["scene"] == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"split": "test"}, "split=test is unknown"), ({"resolution": 48}, r"data\.resolution=48")],
)
def test_wrong_settings_are_named(tmp_path: Path, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shapes(tmp_path, **wrong)
