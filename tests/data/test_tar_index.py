"""Finding samples in tars, whole, appended and damaged."""

import io
import random
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from rfdit.data.skips import SkippedSampleError
from rfdit.data.tar import parse_sample
from rfdit.data.tar_index import index_tar

Files = dict[str, str | bytes]


def keys(data: bytes) -> list[str]:
    """Of the samples that the index of these bytes leads to."""
    return [str(parse_sample(data[a:b])["__key__"]) for a, b in index_tar(io.BytesIO(data)).spans.tolist()]


@pytest.fixture
def tar(write_shard: Callable[[str, Iterable[Files]], str], make_sample: Callable[[int], Files]) -> bytes:
    return Path(write_shard("a.tar", map(make_sample, range(6)))).read_bytes()


def test_spans_are_whole_samples(tar: bytes, make_sample: Callable[[int], Files]) -> None:
    index = index_tar(io.BytesIO(tar))
    assert (index.damaged, index.truncated) == (0, False)
    for number, (start, end) in enumerate(index.spans.tolist()):
        assert parse_sample(tar[start:end]) == make_sample(number)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_with_long_and_strange_names(format: int) -> None:
    out = io.BytesIO()
    name = "d" * 60 + "/" + "k" * 60 if format == tarfile.USTAR_FORMAT else "d" * 200 + "/käse"
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for file in (f"{name}.seg.png", f"{name}.txt", "noextension", "__meta__.json", "other.txt"):
            info = tarfile.TarInfo(file)
            info.size = 700
            tar.addfile(info, io.BytesIO(bytes(700)))
    index = index_tar(io.BytesIO(out.getvalue()))
    first, second = (parse_sample(out.getvalue()[a:b]) for a, b in index.spans.tolist())
    assert first.keys() == {"__key__", "seg.png", "txt"}
    assert (first["__key__"], second["__key__"]) == (name, "other")


def test_appended_tars_are_one(tar: bytes) -> None:
    index = index_tar(io.BytesIO(tar + tar))
    assert len(index.spans) == 12
    assert (index.damaged, index.truncated) == (0, False)


@pytest.mark.parametrize(("magic", "name"), [(b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd")])
def test_compressed_tars_are_named(magic: bytes, name: str) -> None:
    with pytest.raises(ValueError, match=f"compressed by {name}.*unpack"):
        index_tar(io.BytesIO(magic + bytes(600)))


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100])
def test_what_is_no_tar_is_truncated(data: bytes) -> None:
    index = index_tar(io.BytesIO(data))
    assert len(index.spans) == 0
    assert index.truncated


def test_a_bad_header_costs_its_sample_alone(tar: bytes) -> None:
    start, end = index_tar(io.BytesIO(tar)).spans[2].tolist()
    damaged = tar[: start + 5] + b"?" + tar[start + 6 :]  # in the name of the first file
    assert index_tar(io.BytesIO(damaged)).damaged == 1
    assert keys(damaged) == [f"{n:06d}" for n in range(6)]  # its other files are still there
    gone = tar[:start] + bytes(random.Random(0).randbytes(end - start)) + tar[end:]
    assert keys(gone) == [f"{n:06d}" for n in (0, 1, 3, 4, 5)]
    assert index_tar(io.BytesIO(gone)).damaged == 1


@pytest.mark.parametrize("missing", [1, 5, 511, 513])
def test_missing_bytes_cost_their_sample_alone(tar: bytes, missing: int) -> None:
    start, _ = index_tar(io.BytesIO(tar)).spans[2].tolist()
    damaged = tar[: start + 600] + tar[start + 600 + missing :]
    found = keys(damaged)
    assert [f"{n:06d}" for n in (0, 1, 3, 4, 5)] == [key for key in found if key != "000002"]


def test_the_end_missing_is_told(tar: bytes) -> None:
    starts = index_tar(io.BytesIO(tar)).spans[:, 0].tolist()
    for cut in (starts[3], starts[3] + 100, starts[3] + 600):
        index = index_tar(io.BytesIO(tar[:cut]))
        assert index.truncated
        assert len(index.spans) == 3


def test_pieces_that_are_no_sample(tar: bytes) -> None:
    for data in (b"", bytes(1024), b"x" * 700):
        with pytest.raises(SkippedSampleError, match="damaged_tar"):
            parse_sample(data)
    start, end = index_tar(io.BytesIO(tar)).spans[0].tolist()
    with pytest.raises(SkippedSampleError, match="duplicate_file"):
        parse_sample(tar[start:end] * 2)
