"""Captioned images are read as they are, in every form alike, and every file and row is used or counted."""

import itertools
import json
import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from rfdit.batch import Batch
from rfdit.data.captioned.reader import CaptionedImages
from rfdit.data.decode import SampleDecoder
from rfdit.data.filters import Filters
from rfdit.data.pixels import IMAGE_EXTENSIONS
from rfdit.data.sample import RawSample
from rfdit.data.skips import SkippedSampleError
from rfdit.data.source import Reader, Source
from rfdit.data.stream.dataset import Stream
from rfdit.data.stream.positions import Bucket, EndlessPlan, StreamState
from tests.support.data.captioned import FORMS, numbered_png, write_form, write_images, write_table

TEXTS = [f"number {n}" for n in range(5)]
DECODER = SampleDecoder(caption_key="json.captions", draw_caption=True)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def opened(
    *shards: Path, filters: Filters | None = None, image_sizes: bool = False, **settings: Any
) -> Source:
    reader = CaptionedImages(**settings)
    return reader([str(path) for path in shards], filters=filters or Filters(), image_sizes=image_sizes)


def raw_samples(source: Source) -> list[RawSample]:
    """All of them; none may be missing."""
    found = list(source.samples(range(sum(source.shard_sizes))))
    assert not any(isinstance(sample, SkippedSampleError) for sample in found)
    return cast(list[RawSample], found)


def captions(source: Source) -> list[list[str]]:
    return [json.loads(sample["json"])["captions"] for sample in raw_samples(source)]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_samples(form: str, tmp_path: Path) -> None:
    source = pickle.loads(pickle.dumps(opened(write_form(form, tmp_path / "own", TEXTS))))
    assert isinstance(CaptionedImages(), Reader)
    assert isinstance(source, Source)
    for number, raw in enumerate(raw_samples(source)):
        sample = DECODER(raw, (8, 8))
        assert sample.image is not None
        assert (sample.caption, int(sample.image[0, 0, 0])) == (f"number {number}", number)
        assert raw["txt"] == f"number {number}".encode()
    assert not source.skipped()


@pytest.mark.parametrize("form", FORMS)
def test_sizes_and_filters_are_those_of_every_source(form: str, tmp_path: Path) -> None:
    place = write_form(form, tmp_path / "own", [*TEXTS, "a longer caption"])
    source = opened(place, filters=Filters(max_caption=10, min_size=8), image_sizes=True)
    assert source.image_sizes().tolist() == [[8, 8]] * 5
    assert source.skipped() == {"filtered_caption": 1}
    assert len(raw_samples(source)) == 5
    with pytest.raises(ValueError, match=r"left: .*6 filtered_size"):
        opened(place, filters=Filters(min_size=9))


def batches(source: Source, *, ranks: int, first: int, count: int) -> Iterator[Batch]:
    """The global batches first, first + 1, ... of six samples: those of the ranks, in turn."""
    progress = StreamState(origin=(0,), batch=6, batches=first)
    plan = EndlessPlan(
        [Bucket((8, 8), source.shard_sizes)],
        seed=3,
        shuffle_shards=2,
        batch_size=6 // ranks,
        ranks=ranks,
        progress=progress,
    )
    streams = [Stream(source=source, plan=plan, decoder=DECODER, seed=3, rank=r) for r in range(ranks)]
    return itertools.islice(itertools.chain.from_iterable(zip(*streams)), count * ranks)


@pytest.mark.parametrize("form", ["texts", "jsonl", "parquet"])
def test_order_and_drawn_captions_are_a_function_of_seed_and_position(form: str, tmp_path: Path) -> None:
    several = [[f"{n}a", f"{n}b", f"{n}c"] for n in range(7)]
    if form == "texts":
        place = write_form(form, tmp_path / "own", ["\n".join(texts) for texts in several])
    else:
        names = write_images(tmp_path / "own", 7)
        image = {"parquet": [{"image": {"bytes": numbered_png(n)}} for n in range(7)]}.get(
            form, [{"file_name": name} for name in names]
        )
        file = "train.parquet" if form == "parquet" else "metadata.jsonl"
        rows = [row | {"text": texts} for row, texts in zip(image, several, strict=True)]
        place = write_table(tmp_path / "own" / file, rows).parent
    source = opened(place, captions_by_line=True)

    def seen(**settings: int) -> list[tuple[int, str, list[int]]]:
        rows = []
        for batch in batches(source, **settings):
            assert batch.captions is not None
            assert batch.images is not None
            reds = batch.images[:, 0, 0, 0].tolist()
            rows += zip(batch.positions.tolist(), batch.captions, reds, strict=True)
        return rows

    whole = seen(ranks=1, first=0, count=14)
    assert seen(ranks=3, first=0, count=14) == whole
    assert seen(ranks=2, first=5, count=9) == whole[30:]
    assert all(text[0] == str(red) for _, text, red in whole)
    epochs = [sorted(red for _, _, red in whole[n : n + 7]) for n in range(0, 84, 7)]
    assert epochs == [list(range(7))] * 12
    assert {text for _, text, _ in whole} == {text for texts in several for text in texts}


def test_every_file_of_a_folder_is_used_or_counted(tmp_path: Path) -> None:
    folder = write_form("texts", tmp_path / "own", TEXTS)
    (folder / "deep").mkdir()
    (folder / "deep/a.b.JPG").write_bytes(numbered_png(9))  # a PNG whatever its name says
    (folder / "deep/a.b.txt").write_text("  deep\n")
    (folder / "deep/a.b.json").write_text('{"label": 4, "width": 8}')
    (folder / "alone.png").write_bytes(numbered_png(1))
    (folder / "alone.txt.bak").touch()
    (folder / "README.txt").write_text("about")
    with pytest.warns(UserWarning, match=r"own: leaving out what .*: 1 \.bak$"):
        source = opened(folder)
    assert source.skipped() == {"missing_caption": 1, "missing_image": 1, "unknown_suffix": 1}
    last = raw_samples(source)[-1]
    assert (last["__key__"], last["txt"]) == ("deep/a.b", b"deep")
    assert json.loads(last["json"]) == {"label": 4, "width": 8, "captions": ["deep"]}
    assert set(last) == {"__key__", "jpg", "txt", "json"}


def test_every_image_suffix_is_read(tmp_path: Path) -> None:
    for suffix in IMAGE_EXTENSIONS:
        (tmp_path / f"{suffix}.{suffix.upper()}").write_bytes(numbered_png(1))
        (tmp_path / f"{suffix}.txt").write_text("a caption")
    samples = [DECODER(raw, (8, 8)) for raw in raw_samples(opened(tmp_path))]
    assert sorted(sample.key for sample in samples) == sorted(IMAGE_EXTENSIONS)


def test_suffixes_of_texts_may_be_in_capitals(tmp_path: Path) -> None:
    names = write_images(tmp_path, 2)
    (tmp_path / "00.TXT").write_text("zero")
    (tmp_path / "00.JSON").write_text('{"label": 3}')
    (tmp_path / "01.TXT").write_text("capitals")
    (tmp_path / "01.txt").write_text("one")
    source = opened(tmp_path)
    assert (names, captions(source)) == (["00.png", "01.png"], [["zero"], ["one"]])
    assert json.loads(raw_samples(source)[0]["json"])["label"] == 3
    assert not source.skipped()


def test_bad_texts_and_images_are_skipped_with_their_reason(tmp_path: Path) -> None:
    folder = write_form("texts", tmp_path / "own", [*TEXTS[:1], "", "3", "4", "5"])
    (folder / "02.txt").write_bytes(b"\xff\xfe\xff")
    source = opened(folder)
    (folder / "03.png").unlink()
    (folder / "04.txt").unlink()
    reasons = []
    for raw in source.samples(range(5)):
        try:
            if isinstance(raw, SkippedSampleError):
                raise raw
            DECODER(raw, (8, 8))
        except SkippedSampleError as skipped:
            reasons.append(str(skipped.reason))
    assert reasons == ["empty_caption", "not_utf8", "missing_image", "missing_caption"]


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.json", "rows.jsonl", "rows.parquet"])
def test_every_row_of_a_table_is_used_or_counted(tmp_path: Path, name: str) -> None:
    names = write_images(tmp_path, 4)
    rows = [
        {"image": names[0], "caption": "a, b", "label": "3"},
        {"image": names[0], "caption": "c", "label": "3"},
    ]
    rows += [
        {"image": names[1], "caption": " ", "label": "3"},
        {"image": "gone.png", "caption": "d", "label": "3"},
    ]
    rows += [
        {"image": names[2], "caption": "e", "label": "5"},
        {"image": "x.mp4", "caption": "f", "label": "3"},
    ]
    source = opened(write_table(tmp_path / name, rows))
    assert captions(source) == [["a, b", "c"], ["e"]]
    assert source.skipped() == {"empty_caption": 1, "missing_image": 1, "unknown_suffix": 1}
    sample = SampleDecoder(caption_key="txt", label_key="json.label")(raw_samples(source)[1], (8, 8))
    assert (sample.caption, sample.label) == ("e", 5)


def test_a_file_that_rows_name_in_two_ways_is_one_image(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    rows = [{"file_name": name, "text": name} for name in ("./00.png", "00.png", ".//00.png")]
    table = write_table(tmp_path / "metadata.jsonl", rows)
    for place in (table, tmp_path):
        assert captions(opened(place)) == [["./00.png", "00.png", ".//00.png"]]
        assert raw_samples(opened(place))[0]["__key__"] == "00"
        assert not opened(place).skipped()


def test_images_that_metadata_does_not_name_are_counted(tmp_path: Path) -> None:
    write_form("csv", tmp_path / "own", TEXTS)
    (tmp_path / "own/more.png").write_bytes(numbered_png(7))
    with (tmp_path / "own/metadata.csv").open("a") as file:
        file.write("00.png,an unquoted, comma\n")
    assert opened(tmp_path / "own").skipped() == {"missing_caption": 1, "corrupt_metadata": 1}


@pytest.mark.parametrize(
    "text",
    [
        '{"00.png": "one", "01.png": ["two", "three"]}',
        '{"00.png": {"text": "one"}, "01.png": {"text": ["two", "three"]}}',
    ],
)
def test_json_may_give_captions_by_file_name(tmp_path: Path, text: str) -> None:
    write_images(tmp_path, 2)
    (tmp_path / "captions.json").write_text(text)
    assert captions(opened(tmp_path / "captions.json")) == [["one"], ["two", "three"]]


def test_columns_and_the_folder_of_the_images_can_be_named(tmp_path: Path) -> None:
    names = write_images(tmp_path / "images", 2)
    rows = [{"id": name, "short": f"s{name}", "long": f"l{name}"} for name in names]
    table = write_table(tmp_path / "rows.csv", rows)
    columns = {"file": "id", "caption": ["short", "long"]}
    source = opened(table, root=str(tmp_path / "images"), columns=columns)
    assert captions(source) == [["s00.png", "l00.png"], ["s01.png", "l01.png"]]


def test_parquet_rows_are_used_or_counted(tmp_path: Path) -> None:
    rows = [{"jpg": numbered_png(n), "caption": f"{n}", "size": n} for n in range(3)]
    rows += [{"jpg": None, "caption": "no image", "size": 3}, {"jpg": b"broken", "caption": "x", "size": 4}]
    rows += [{"jpg": numbered_png(5), "caption": None, "size": 5}]
    write_table(tmp_path / "b.parquet", rows)
    write_table(tmp_path / "a.parquet", [{"image": {"bytes": numbered_png(9)}, "text": "first"}])
    source = opened(tmp_path)
    assert list(source.shard_sizes) == [1, 2, 2, 2]
    found = list(source.samples(range(7)))
    good = [raw for raw in found if not isinstance(raw, SkippedSampleError)]
    assert [raw["txt"] for raw in good] == [b"first", b"0", b"1", b"2"]
    assert json.loads(good[-1]["json"]) == {"caption": "2", "size": 2, "captions": ["2"]}
    bad = [str(raw.reason) for raw in found if isinstance(raw, SkippedSampleError)]
    assert bad == ["missing_image", "corrupt_image", "missing_caption"]


def test_opening_parquet_files_says_what_they_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"image": numbered_png(1), "text": "one"}]
    for name in ("a.parquet", "b.parquet"):
        write_table(tmp_path / name, rows)
    opened(tmp_path)
    assert capsys.readouterr().out == (
        f"{tmp_path / 'a.parquet'} and 1 more have 2 captioned images in rows of parquet\n"
    )


def test_several_of_any_form_are_one_set(tmp_path: Path) -> None:
    places = [write_form(form, tmp_path / form, [f"{form} {n}" for n in range(2)]) for form in FORMS]
    source = opened(*places)
    assert sum(source.shard_sizes) == 10
    assert captions(source) == [[f"{form} {n}"] for form in FORMS for n in range(2)]


def test_images_without_captions_are_read_where_none_are_needed(tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    source = opened(tmp_path, caption_key=None)
    assert [sorted(raw) for raw in raw_samples(source)] == [["__key__", "json", "png"]] * 2
    assert torch.equal(
        SampleDecoder(caption_key=None)(raw_samples(source)[1], (8, 8)).image[0], torch.ones(8, 8)
    )


BAD: Sequence[tuple[str, str]] = [
    ("plain", r" has no image with a caption; it holds 2 \.png: give each image a caption in NAME\.txt beside it, or"),
    ("classes", r" has no image .* holds 2 \.png: write data=imagenet data\.shards=.*classes for one class"),
    ("tars", r" has no image with a caption; it holds 1 \.tar: write data=laion data\.shards=.*tars$"),
    ("splits", r" has no .* holds 2 \.csv, 4 \.png: write data=folder and one of the folders .*\(splits/a, splits/b\)"),
    ("listed", r" has no .* holds 1 \.csv, 2 \.png: write data=folder data\.shards=listed/rows\.csv$"),
    ("empty", r" has no image with a caption; it holds no file$"),
    ("nowhere", r" does not exist; data=folder reads local folders and tables$"),
    ("notes.md", r" is neither a folder nor a table .*; for tar shards write data=laion$"),
    ("wrong.csv", r" has no column of captions \(text, caption, .*\); it has file_name, label; give data\.reader\."),
    ("unnamed.csv", r" has no column of file names \(file_name, .*\); it has id, text; give .*columns\.file="),
    ("missing.csv", r" names 2 images, none of which exists below \., the first of them a\.png; give .*root="),
    ("broken.json", r" cannot be read: is not JSON: .*; give a table of file names"),
    ("broken.parquet", r" cannot be read: "),
    ("none.parquet", r" has no column of captions .*; it has image, label; give"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "sentence"), BAD, ids=[path for path, _ in BAD])
def test_what_cannot_be_read_is_said_in_one_sentence(
    path: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("plain", "classes/a", "classes/b", "splits/a", "splits/b", "listed"):
        write_images(Path(folder), 1 if "classes" in folder else 2)
    for split in ("splits/a", "splits/b"):
        write_table(Path(split, "metadata.csv"), [{"file_name": "00.png", "text": "x"}])
    write_table(Path("listed/rows.csv"), [{"file_name": "00.png", "text": "x"}])
    for folder in ("tars", "empty"):
        Path(folder).mkdir()
    Path("tars/0.tar").touch()
    Path("notes.md").touch()
    write_table(Path("wrong.csv"), [{"file_name": "00.png", "label": 1}])
    write_table(Path("unnamed.csv"), [{"id": "00.png", "text": 1}])
    write_table(Path("missing.csv"), [{"file_name": name, "text": "x"} for name in ("a.png", "b.png")])
    Path("broken.json").write_text("{")
    Path("broken.parquet").write_text("{")
    write_table(Path("none.parquet"), [{"image": numbered_png(1), "label": 1}])
    with pytest.raises(ValueError, match=f"^data\\.shards: {re.escape(path)}{sentence}"):
        opened(Path(path))


def test_a_wrong_column_names_those_that_are_there(tmp_path: Path) -> None:
    names = write_images(tmp_path, 1)
    table = write_table(tmp_path / "rows.csv", [{"file_name": names[0], "text": "x"}])
    with pytest.raises(
        ValueError, match=r"columns\.caption=txt is not a column of .*; it has file_name, text$"
    ):
        opened(table, columns={"caption": "txt"})
    with pytest.raises(
        ValueError, match=r"columns\.text is not a column that is read; use file, image, caption$"
    ):
        CaptionedImages(columns={"text": "x"})
