"""The comparison of decoders runs with the installed ones, and shows damaged files."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from webdataset import TarWriter

import rfdit


@pytest.fixture
def decode() -> ModuleType:
    file = Path(rfdit.__file__).parents[1] / "benchmarks" / "decode.py"
    spec = importlib.util.spec_from_file_location("decode_benchmark", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def images(decode: ModuleType, tmp_path: Path) -> list[bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    with TarWriter(str(tmp_path / "0.tar")) as tar:
        for i in range(3):
            tar.write({"__key__": str(i), "jpg": Image.fromarray(noise), "txt": "noise"})
    found: list[bytes] = decode.jpegs([str(tmp_path / "0.tar")], 2)
    assert len(found) == 2
    return found


def test_it_compares(decode: ModuleType, images: list[bytes], capsys: pytest.CaptureFixture[str]) -> None:
    decode.compare({decode.BASELINE: decode.pillow_draft, "all": decode.pillow}, images, 32, repeats=1)
    rows = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith((decode.BASELINE, "all"))
    ]
    assert len(rows) == 2
    assert " 1.00 " in rows[0]
    assert rows[1].endswith("0.00         0")


def test_it_says_what_becomes_of_damaged_files(
    decode: ModuleType, images: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    decode.show_unusual({decode.BASELINE: decode.pillow_draft}, images[0], 32)
    forms = dict(part.split("\n", 1) for part in capsys.readouterr().out.strip().split("\n\n"))
    assert "an image, 0.0" in forms["as it is"]
    assert "corrupt_image: image file is truncated" in forms["half of it"]


def test_shards_without_jpegs_are_named(decode: ModuleType, tmp_path: Path) -> None:
    with TarWriter(str(tmp_path / "0.tar")) as tar:
        tar.write({"__key__": "0", "txt": "nothing"})
    with pytest.raises(SystemExit, match=r"there are no \.jpg files in the 1 shards, .*0\.tar"):
        decode.jpegs([str(tmp_path / "0.tar")], 2)
