"""What a data setting finds, in words."""

from pathlib import Path
from typing import Any

import pytest

import rfdit.commands.data
from rfdit.data.captioned.reader import CaptionedImages
from rfdit.data.contents import option_for
from rfdit.data.decode import SampleDecoder
from rfdit.data.filters import Filters
from rfdit.data.image_folder import ImageFolder
from rfdit.data.survey import survey
from tests.support.data.captioned import numbered_png, write_images, write_table


def found(folder: Path, **settings: Any) -> dict[str, str]:
    source = CaptionedImages(caption_key="json.captions")([str(folder)], filters=Filters())
    decoder = SampleDecoder(caption_key="json.captions", label_key="json.label", draw_caption=True)
    return dict(survey(source, decoder, (16, 16), **{"most": 100, "images": 2} | settings).lines((16, 16), 4))


def write(folder: Path) -> Path:
    """Six images, one of them broken and one of them wide, and a row without one."""
    names = write_images(folder, 6)
    (folder / names[2]).write_bytes(b"broken")
    (folder / names[3]).write_bytes(numbered_png(3, size=(20, 30)))
    rows: list[dict[str, Any]] = [
        {"file_name": name, "text": ["a", "b" * 40], "label": n % 2} for n, name in enumerate(names)
    ]
    rows[1]["text"] = "a"
    write_table(folder / "metadata.jsonl", [*rows, {"file_name": "gone.png", "text": "x", "label": 1}])
    return folder


def test_everything_is_said(tmp_path: Path) -> None:
    lines = found(write(tmp_path / "own"))
    assert lines["samples"] == "6, an epoch of 2 steps with data.batch_size=4"
    assert lines["left out"] == "1 missing_image"
    assert lines["read"] == "6 of them, of which 5 can be used"
    assert lines["unusable"].startswith("1 corrupt_image; the first: corrupt_image: 02")
    assert lines["formats"] == "5 .png"
    assert (
        lines["sizes"]
        == "8x8 to 20x30 (height x width), median 8x8; 80.0% are smaller than data.resolution=16x16 and are enlarged"
    )
    assert lines["captions"] == "1 to 40 characters, median 1; 1 to 2 for each image; 2 of 9 are different"
    assert lines["classes"] == "2, 0 to 1: 1 (3), 0 (2)"


def test_classes_have_their_names(tmp_path: Path) -> None:
    for name in ("red fox", "wolf"):
        write_images(tmp_path / name, 2 if name == "wolf" else 1)
    source = ImageFolder(names=None)([str(tmp_path)], filters=Filters())
    decoder = SampleDecoder(caption_key="txt", label_key="cls")
    lines = dict(survey(source, decoder, (8, 8), most=9, images=1).lines((8, 8), 1))
    assert lines["classes"] == "2, 0 to 1: 1 wolf (2), 0 red fox (1)"


def test_a_part_is_read_evenly(tmp_path: Path) -> None:
    source = CaptionedImages()([str(write(tmp_path / "own"))], filters=Filters())
    few = survey(source, SampleDecoder(caption_key=None), (8, 8), most=3, images=2)
    assert (few.samples, few.read, few.unusable.total()) == (6, 3, 1)  # 0, 2 and 5
    assert [int(image[0, 0, 0]) for image in few.images] == [0, 5]


def test_the_command_writes_a_sheet_and_compares_with_the_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write(tmp_path / "own")
    monkeypatch.setattr("sys.argv", ["rfdit data", "own", "data.resolution=16", "text_encoder.length=8"])
    rfdit.commands.data.main()
    printed = capsys.readouterr().out.splitlines()
    assert "samples   6, an epoch of 1 step with data.batch_size=16" in printed
    assert printed[-2].startswith(
        "too long  44.4% of the first 9 captions are longer than text_encoder.length=8"
    )
    assert printed[-1] == "sheet     5 images as training sees them, in data.png"
    assert (tmp_path / "data.png").stat().st_size > 500


@pytest.mark.parametrize(
    ("files", "option"),
    [
        (["a.png", "a.txt"], "folder"),
        (["a/1.png", "b/2.png"], "imagenet"),
        (["0.tar"], "laion"),
        (["0.tar", "latents.json"], "latents"),
        (["a.png"], None),
        (["a.doc"], None),
    ],
)
def test_the_option_of_a_folder_is_found(files: list[str], option: str | None, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert option_for(str(tmp_path)) == option
