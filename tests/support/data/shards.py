"""Small shards whose samples contain their number."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from webdataset import TarWriter

from tests.support.servers.counting_server import counting_server

Files = dict[str, str | bytes]


def numbered_sample(number: int) -> Files:
    """The number is in the key, the caption, the label and the red and green of the image."""
    pixels = np.full((8, 8, 3), 100, dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = number % 256, number // 256
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "png")
    return {
        "__key__": f"{number:06d}",
        "png": png.getvalue(),
        "txt": f"number {number}".encode(),
        "cls": str(number).encode(),
    }


def write_tar(path: Path, samples: Iterable[Files]) -> str:
    """Writes samples to a shard; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TarWriter(str(path), encoder=False) as tar:
        for sample in samples:
            tar.write(sample)
    return str(path)


@pytest.fixture
def make_sample() -> Callable[[int], Files]:
    return numbered_sample


@pytest.fixture
def write_shard(tmp_path: Path) -> Callable[[str, Iterable[Files]], str]:
    """Writes samples to a shard of this name; returns its path."""

    return lambda name, samples: write_tar(tmp_path / name, samples)


@pytest.fixture
def write_numbered(
    write_shard: Callable[[str, Iterable[Files]], str],
) -> Callable[[Sequence[int]], list[str]]:
    """Writes shards of these sizes, the samples numbered through; returns their paths."""

    def write(sizes: Sequence[int]) -> list[str]:
        ends = np.cumsum(sizes).tolist()
        return [
            write_shard(f"{i:03d}.tar", map(numbered_sample, range(end - size, end)))
            for i, (size, end) in enumerate(zip(sizes, ends, strict=True))
        ]

    return write


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries servers without a pause."""
    monkeypatch.setattr("rfdit.data.tar.remote.PAUSES", (0.0, 0.0))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server that serves the files of `tmp_path` and counts requests."""
    with counting_server(tmp_path) as url:
        yield url
