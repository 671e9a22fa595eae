"""Finding samples in tars, whole, appended and damaged."""

import io
import os
import random
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from rfdit.data.skips import SkippedSampleError
from rfdit.data.tar.format import _BoundedTarInfo, parse_sample, read_sample, scan_tar

Files = dict[str, str | bytes]


def keys(data: bytes) -> list[str]:
    """Keys of the samples that the index of these bytes leads to."""
    return [str(parse_sample(data[a:b])["__key__"]) for a, b in scan_tar(io.BytesIO(data)).spans.tolist()]


@pytest.fixture
def tar(write_shard: Callable[[str, Iterable[Files]], str], make_sample: Callable[[int], Files]) -> bytes:
    return Path(write_shard("a.tar", map(make_sample, range(6)))).read_bytes()


def test_spans_are_whole_samples(tar: bytes, make_sample: Callable[[int], Files]) -> None:
    index = scan_tar(io.BytesIO(tar))
    assert not index.skipped
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
    index = scan_tar(io.BytesIO(out.getvalue()))
    first, second = (parse_sample(out.getvalue()[a:b]) for a, b in index.spans.tolist())
    assert first.keys() == {"__key__", "seg.png", "txt"}
    assert (first["__key__"], second["__key__"]) == (name, "other")


def test_appended_tars_are_one(tar: bytes) -> None:
    index = scan_tar(io.BytesIO(tar + tar))
    assert len(index.spans) == 12
    assert not index.skipped


def test_zeros_in_place_of_samples_are_damage_and_no_end(tar: bytes) -> None:
    spans = scan_tar(io.BytesIO(tar)).spans.tolist()
    (start, _), (_, end) = spans[1], spans[2]
    index = scan_tar(io.BytesIO(tar[:start] + bytes(end - start) + tar[end:]))
    assert len(index.spans) == 4
    assert index.skipped == {"damaged_tar": 1}
    unpadded = tar[: spans[-1][1]] + bytes(1024)  # as some programs end a tar
    assert scan_tar(io.BytesIO(unpadded + tar + unpadded + tar)).skipped == {}


@pytest.mark.parametrize(("magic", "name"), [(b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd")])
def test_compressed_tars_are_named(magic: bytes, name: str) -> None:
    with pytest.raises(ValueError, match=f"compressed with {name}.*unpack"):
        scan_tar(io.BytesIO(magic + bytes(600)))


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100])
def test_a_file_that_is_not_a_tar_is_truncated(data: bytes) -> None:
    index = scan_tar(io.BytesIO(data))
    assert len(index.spans) == 0
    assert index.skipped == {"truncated_tar": 1}


def test_a_bad_header_costs_its_sample_alone(tar: bytes) -> None:
    start, end = scan_tar(io.BytesIO(tar)).spans[2].tolist()
    damaged = tar[: start + 5] + b"?" + tar[start + 6 :]  # in the name of the first file
    assert scan_tar(io.BytesIO(damaged)).skipped == {"damaged_tar": 1}
    assert keys(damaged) == [f"{n:06d}" for n in range(6)]  # its other files are still there
    gone = tar[:start] + bytes(random.Random(0).randbytes(end - start)) + tar[end:]
    assert keys(gone) == [f"{n:06d}" for n in (0, 1, 3, 4, 5)]
    assert scan_tar(io.BytesIO(gone)).skipped == {"damaged_tar": 1}


@pytest.mark.parametrize("missing", [1, 5, 511, 513])
def test_missing_bytes_cost_their_sample_alone(tar: bytes, missing: int) -> None:
    start, _ = scan_tar(io.BytesIO(tar)).spans[2].tolist()
    damaged = tar[: start + 600] + tar[start + 600 + missing :]
    found = keys(damaged)
    assert [f"{n:06d}" for n in (0, 1, 3, 4, 5)] == [key for key in found if key != "000002"]


def test_the_end_missing_is_told(tar: bytes) -> None:
    starts = scan_tar(io.BytesIO(tar)).spans[:, 0].tolist()
    for cut in (starts[3], starts[3] + 100, starts[3] + 600):
        index = scan_tar(io.BytesIO(tar[:cut]))
        assert index.skipped["truncated_tar"] == 1
        assert len(index.spans) == 3


def test_pieces_that_are_not_a_sample(tar: bytes) -> None:
    for data in (b"", bytes(1024), b"x" * 700):
        with pytest.raises(SkippedSampleError, match="damaged_tar"):
            parse_sample(data)
    start, end = scan_tar(io.BytesIO(tar)).spans[0].tolist()
    with pytest.raises(SkippedSampleError, match="duplicate_file"):
        parse_sample(tar[start:end] * 2)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_metadata_of_gigabytes_is_damage(tar: bytes, tmp_path: Path, kind: bytes) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 6 << 30
    (tmp_path / "a.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + tar)
    with (tmp_path / "a.tar").open("r+b") as file:
        os.truncate(file.fileno(), 7 << 30)  # as large as it claims, and sparse
        with pytest.raises(tarfile.ReadError, match="metadata of unlikely size"):
            tarfile.TarFile(fileobj=file, mode="r", tarinfo=_BoundedTarInfo)
    index = scan_tar(io.BytesIO(header.tobuf(tarfile.GNU_FORMAT) + tar))
    assert index.skipped == {"damaged_tar": 1}
    assert len(index.spans) == 6


def test_headers_without_end_are_damage(tar: bytes) -> None:
    header = tarfile.TarInfo("x")
    header.type = tarfile.GNUTYPE_LONGNAME
    index = scan_tar(io.BytesIO(header.tobuf(tarfile.GNU_FORMAT) * 3000 + tar))
    assert index.skipped["damaged_tar"]
    assert len(index.spans) == 6


def test_a_sample_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.tar").open("w+b") as file:
        os.truncate(file.fileno(), 6 << 30)
        with pytest.raises(SkippedSampleError, match="sample_too_large"):
            read_sample(file.fileno(), 0, 6 << 30)
        with pytest.raises(SkippedSampleError, match="truncated_tar"):
            read_sample(file.fileno(), (6 << 30) - 5, (6 << 30) + 5)
        assert read_sample(file.fileno(), 0, 5) == bytes(5)
