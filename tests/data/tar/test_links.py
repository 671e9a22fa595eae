"""Hard links of a tar are read as the earlier files that they repeat, and other links are counted."""

import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rfdit.data.filters import Filters
from rfdit.data.sample import RawSample
from rfdit.data.skips import SkippedSampleError
from rfdit.data.tar import format as tar_format
from rfdit.data.tar.format import scan_tar
from rfdit.data.tar.sidecar import Sidecar, StaleSidecarError
from rfdit.data.tar.source import TarReader
from rfdit.storage.checked import checked_json, parse_checked_json
from tests.support.data.shards import numbered_sample

FILES = ("png", "txt", "cls")


def linked_tar(path: Path, samples: int = 8) -> list[RawSample]:
    """Writes a tar of a folder whose odd samples share images, and some captions, with earlier ones.

    Returns the samples as they are without links.
    """
    folder = path.with_suffix("")
    folder.mkdir()
    expected: list[RawSample] = []
    for number in range(samples):
        files = dict(numbered_sample(number))
        for name in FILES:
            file = folder / f"{files['__key__']}.{name}"
            earlier = folder / f"{number // 4 * 4:06d}.{name}"
            if number % 2 and (name == "png" or number % 4 == 3):
                os.link(earlier, file)
                files[name] = earlier.read_bytes()
            else:
                file.write_bytes(files[name])  # type: ignore[arg-type]
        expected.append({name: files[name] for name in ("__key__", *FILES)})
    with tarfile.open(path, "w") as tar:
        for number in range(samples):
            for name in FILES:
                tar.add(folder / f"{number:06d}.{name}", f"./{number:06d}.{name}")
        assert sum(member.islnk() for member in tar) == 8
    return [sample | {"__key__": f"./{sample['__key__']}"} for sample in expected]


def read(path: Path | str, cache: Path, filters: Filters | None = None, **settings: Any) -> list[Any]:
    """The samples, or the errors in their places, without the name of the shard."""
    source = TarReader(cache=str(cache))([str(path)], filters=filters or Filters(), **settings)
    found: list[Any] = list(source.samples(range(sum(source.shard_sizes))))
    for sample in found:
        if isinstance(sample, dict):
            assert sample.pop("__url__") == str(path)
    return found


def test_linked_files_are_read_as_what_they_repeat(tmp_path: Path) -> None:
    expected = linked_tar(tmp_path / "0.tar")
    assert read(tmp_path / "0.tar", tmp_path / "cache") == expected
    assert read(tmp_path / "0.tar", tmp_path / "cache") == expected  # by the cached index
    assert read(tmp_path / "0.tar", tmp_path / "cache", image_sizes=True) == expected
    # Captions are "number 0" to "number 7", and those of 3 and 7 are links to those of 0 and 4.
    some = Filters(languages=["en"], keep_unknown=True, max_caption=8)
    assert read(tmp_path / "0.tar", tmp_path / "cache", some) == expected


def test_links_of_the_samples_that_filters_leave(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    long = {"__key__": "long", "png": numbered_sample(1)["png"], "txt": b"a caption that is too long"}
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in (("long.png", long["png"]), ("long.txt", long["txt"]), ("b.txt", b"b")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))  # type: ignore[arg-type]
        info = tarfile.TarInfo("b.png")
        info.type, info.linkname = tarfile.LNKTYPE, "long.png"
        tar.addfile(info)
    assert read(tmp_path / "0.tar", tmp_path / "cache", Filters(max_caption=9)) == [
        {"__key__": "b", "txt": b"b", "png": long["png"]}
    ]


def tar_of(members: Sequence[tuple[str, bytes, str]]) -> bytes:
    """members: (name, type, and the content or the link's target)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(content)
            else:
                info.linkname = content
            tar.addfile(info, io.BytesIO(content.encode()))
    return out.getvalue()


REG, LNK, SYM = tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE


@pytest.mark.filterwarnings("ignore:data.shards")
@pytest.mark.parametrize(
    ("members", "contents", "linked"),
    [
        ([("a.txt", REG, "A"), ("b.txt", LNK, "a.txt"), ("c.txt", LNK, "b.txt")], "A A A", 0),
        ([("a.txt", REG, "A"), ("a.png", LNK, "a.txt")], "AA", 0),
        ([("./a.txt", REG, "A"), ("b.txt", LNK, "a.txt"), ("c.txt", LNK, "./a.txt")], "A A A", 0),
        (
            [("a.txt", REG, "A"), ("b.txt", LNK, "a.txt"), ("a.txt", REG, "Z"), ("c.txt", LNK, "a.txt")],
            "A A Z Z",
            0,
        ),
        ([("data", REG, "A"), ("b.txt", LNK, "data")], "A", 0),
        ([("b.txt", LNK, "a.txt"), ("a.txt", REG, "A")], "A", 1),
        ([("b.txt", LNK, "b.txt"), ("a.txt", REG, "A")], "A", 1),
        ([("b.txt", LNK, "/etc/hostname"), ("a.txt", REG, "A")], "A", 1),
        ([("a.txt", REG, "A"), ("b.txt", SYM, "a.txt"), ("c.txt", LNK, "b.txt")], "A", 2),
        ([("a.txt", REG, "A"), ("b.txt", LNK, "a.txt"), ("b.png", LNK, "gone.png")], "A", 1),
    ],
)
def test_which_links_have_a_content(
    members: Sequence[tuple[str, bytes, str]], contents: str, linked: int, tmp_path: Path
) -> None:
    (tmp_path / "0.tar").write_bytes(tar_of(members))
    samples = read(tmp_path / "0.tar", tmp_path / "cache")
    assert " ".join("".join(map(bytes.decode, list(sample.values())[1:])) for sample in samples) == contents
    with (tmp_path / "0.tar").open("rb") as file:
        assert scan_tar(file).skipped["linked_file"] == linked


def test_links_do_not_get_past_the_limit_of_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_format, "MAX_SAMPLE", 5000)
    members = [("a.txt", REG, "A" * 3000), *((f"b.{i}", LNK, "a.txt") for i in range(20))]
    (tmp_path / "0.tar").write_bytes(tar_of(members))
    whole, large = read(tmp_path / "0.tar", tmp_path / "cache")
    assert len(whole["txt"]) == 3000
    assert isinstance(large, SkippedSampleError)
    assert str(large).startswith("sample_too_large")


def test_indexes_for_readers_elsewhere_have_the_links(tmp_path: Path) -> None:
    expected = linked_tar(tmp_path / "0.tar")
    assert TarReader().write_indexes([str(tmp_path / "0.tar")], filters=Filters()).problems == ()
    data = (tmp_path / "0.tar.idx").read_bytes()
    assert read(f"file://{tmp_path}/0.tar", tmp_path / "cache") == expected
    sidecar = Sidecar.from_json(data)
    assert len(sidecar.arrays["links"]) == 8
    about = parse_checked_json(data, place="")
    size = about["size"]
    for wrong in ([[0, 0, size + 1]], [[0, size, 1]], [[0, -1, 1]], [[0, 0, -1]], [[8, 0, 1]], [[-1, 0, 1]],
                  [[1, 0, 1], [0, 0, 1]], [[0, 0.5, 1]], [[0, 2**63, 1]]):  # fmt: skip
        with pytest.raises(StaleSidecarError, match="is not an index"):
            Sidecar.from_json(checked_json(about | {"links": wrong}, indent=None))
    assert np.array_equal(sidecar.arrays["links"], np.array(about["links"]))
