"""Names of files in a shard: which are one sample, and which samples cannot be read."""

import io
import tarfile
from collections.abc import Mapping, Sequence

import pytest

from rfdit.data.tar.format import parse_sample, scan_tar


def tar_of(names: Sequence[str], links: Mapping[str, bytes] | None = None) -> bytes:
    """A tar of files; links: {name: type of the link} for those that are links to the first file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            if links and name in links:
                info.type, info.linkname = links[name], names[0]
                tar.addfile(info)
            else:
                info.size = len(name)
                tar.addfile(info, io.BytesIO(name.encode()))
    return out.getvalue()


def found(data: bytes) -> tuple[dict[str, str], dict[str, int]]:
    """({key: extensions} of the samples, counts of those that are left out)."""
    scan = scan_tar(io.BytesIO(data))
    samples = {}
    for start, end in scan.spans.tolist():
        key, *extensions = parse_sample(data[start:end]).items()
        samples[str(key[1])] = " ".join(extension for extension, _ in extensions)
    return samples, dict(scan.skipped)


@pytest.mark.parametrize(
    ("names", "samples"),
    [
        ("a.jpg a.txt b.JPG b.TXT d/c.jpg", {"a": "jpg txt", "b": "jpg txt", "d/c": "jpg"}),
        ("v1.0/a.jpg v1.0/a.txt", {"v1.0/a": "jpg txt"}),
        # Extensions with dots, as in webdataset.
        ("a.jpg a.seg.png a.txt", {"a": "jpg seg.png txt"}),
        ("a.img.jpg a.caption.txt a.meta.json", {"a": "img.jpg caption.txt meta.json"}),
        ("a.jpg a.depth.png a.normal.png a.json", {"a": "jpg depth.png normal.png json"}),
        # Keys with dots.
        (
            "cat.0.jpg cat.0.txt cat.1.jpg cat.1.txt dog.0.jpg",
            {"cat.0": "jpg txt", "cat.1": "jpg txt", "dog.0": "jpg"},
        ),
        ("cat.0.jpg cat.1.JPG cat.2.png", {"cat.0": "jpg", "cat.1": "jpg", "cat.2": "png"}),
        ("x.Y.com.jpg x.Y.com.txt x.Y.org.jpg x.Y.org.txt", {"x.Y.com": "jpg txt", "x.Y.org": "jpg txt"}),
        ("a.1.jpg a.1.txt a.jpg a.txt", {"a.1": "jpg txt", "a": "jpg txt"}),
        ("a.b.png a.b.txt a.jpg a.txt", {"a.b": "png txt", "a": "jpg txt"}),
        ("a.2.jpg a.jpg", {"a.2": "jpg", "a": "jpg"}),
        ("a.0.safetensors a.1.safetensors", {"a.0": "safetensors", "a.1": "safetensors"}),
    ],
)
def test_files_of_one_sample(names: str, samples: dict[str, str]) -> None:
    assert found(tar_of(names.split())) == (samples, {})


@pytest.mark.parametrize(
    ("names", "skipped"),
    [
        ("a.jpg b.jpg a.txt b.txt z.jpg z.txt", {"scattered_files": 2}),
        ("a.0.jpg a.1.jpg a.0.txt a.1.txt z.jpg z.txt", {"scattered_files": 2}),
        ("README 0001 __meta__ __meta__.json .hidden ._c.jpg d.e/0002 z.jpg z.txt", {"no_extension": 3}),
    ],
)
def test_samples_that_cannot_be_read_are_counted_by_what_is_wrong(
    names: str, skipped: dict[str, int]
) -> None:
    assert found(tar_of(names.split())) == ({"z": "jpg txt"}, skipped)


def test_samples_of_the_same_name_are_several() -> None:
    """As in two tars that were written to one."""
    scan = scan_tar(io.BytesIO(tar_of(["a.jpg", "a.txt", "b.jpg", "b.txt"] * 2)))
    assert (len(scan.spans), scan.skipped) == (4, {})


def test_symbolic_links_are_counted() -> None:
    names = ["a.jpg", "a.txt", "b.jpg", "b.txt", "c.jpg", "c.txt", "d.jpg", "e.jpg", "d.txt"]
    links = dict.fromkeys(["b.jpg", "c.jpg", "c.txt", "d.jpg"], tarfile.SYMTYPE)
    samples, counts = found(tar_of(names, links))
    assert samples == {"a": "jpg txt", "e": "jpg"}
    assert counts == {"linked_file": 2, "scattered_files": 1}
