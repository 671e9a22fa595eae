"""A tree of class folders: numbered as torchvision does, filtered, measured, and every file accounted for."""

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder as TorchvisionFolder

from rfdit.data import image_files
from rfdit.data.captioned.files import FileSource
from rfdit.data.decode import SampleDecoder, decode_image
from rfdit.data.filters import Filters
from rfdit.data.image_files import list_images
from rfdit.data.image_folder import ImageFolder
from rfdit.data.sample import RawSample
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.data.source import Reader, Source
from rfdit.storage.disk_cache import cache_root

ALL = Filters()
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes an image of (height, width) below the tree; returns the tree."""

    def write(path: str, size: tuple[int, int] = (8, 8), **options: object) -> Path:
        file = tmp_path / "train" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        form = "png" if path.lower().endswith("png") else "jpeg"
        Image.new("RGB", size[::-1], "red").save(file, form, **options)
        return tmp_path / "train"

    return write


@pytest.fixture
def tree(write: Write) -> Path:
    """Three classes with 2, 1 and 3 images, of several kinds and depths."""
    write("n02/b.JPEG", (8, 16))
    write("n02/a.jpg", (16, 8))
    write("n01/x.png", (32, 8))
    write("n10/deep/er/2.jpg")
    write("n10/1.jpg")
    return write("n10/a.b.jpg")


def opened(tree: Path, filters: Filters = ALL, **settings: object) -> FileSource:
    image_sizes = bool(settings.pop("image_sizes", False))
    return ImageFolder(**settings)([str(tree)], filters=filters, image_sizes=image_sizes)


def raw_samples(source: FileSource) -> list[RawSample]:
    """All of them; none may be missing."""
    found = list(source.samples(range(sum(source.shard_sizes))))
    assert not any(isinstance(sample, SkippedSampleError) for sample in found)
    return cast(list[RawSample], found)


def keys(source: FileSource) -> list[str]:
    return [str(sample["__key__"]) for sample in raw_samples(source)]


def test_it_is_a_reader_and_gives_a_source(tree: Path) -> None:
    assert isinstance(ImageFolder(), Reader)
    assert isinstance(opened(tree), Source)


def test_samples_are_as_a_tar_would_have_them(tree: Path) -> None:
    source = opened(tree)
    assert list(source.shard_sizes) == [6]
    assert keys(source) == ["n01/x", "n02/a", "n02/b", "n10/1", "n10/a.b", "n10/deep/er/2"]
    first, second, third = raw_samples(source)[:3]
    assert (first["cls"], first["txt"], first["png"]) == (b"0", b"n01", (tree / "n01/x.png").read_bytes())
    assert (second["cls"], set(second)) == (b"1", {"__key__", "jpg", "cls", "txt", "json"})
    assert set(third) == {"__key__", "jpeg", "cls", "txt", "json"}
    sample = SampleDecoder(caption_key="txt", label_key="cls")(third, (8, 8))
    assert (sample.key, sample.label, sample.caption) == ("n02/b", 1, "n02")
    assert sample.image is not None
    assert sample.image.shape == (3, 8, 8)


def test_classes_are_numbered_as_torchvision_numbers_them(tree: Path) -> None:
    expected = {
        str(Path(file).relative_to(tree).with_suffix("")): label
        for file, label in TorchvisionFolder(str(tree)).samples
    }
    got = {str(sample["__key__"]): int(sample["cls"]) for sample in raw_samples(opened(tree))}
    assert got == expected


def test_samples_come_in_the_order_asked_and_after_pickling(tree: Path) -> None:
    source = pickle.loads(pickle.dumps(opened(tree)))
    numbers = iter([5, 0, 0, 3])
    got = source.samples(numbers)
    assert next(got)["__key__"] == "n10/deep/er/2"
    assert next(numbers) == 0  # no number is taken before it is needed
    assert [sample["__key__"] for sample in got] == ["n01/x", "n10/1"]


def test_hidden_files_are_left_out_and_others_are_counted(tree: Path) -> None:
    (tree / ".cache").mkdir()
    (tree / "n01/._x.jpg").touch()
    (tree / "list.jpg").touch()  # beside the class folders
    for name in ("n01/notes.txt", "n02/1.heic", "n10/deep/2.HEIC", "n10/plain"):
        (tree / name).touch()
    with pytest.warns(
        UserWarning, match=r"train: leaving out files whose .*: 2 \.heic, 1 \.txt, 1 without a suffix$"
    ):
        source = opened(tree)
    assert len(keys(source)) == 6
    assert source.skipped() == {"unknown_suffix": 4, "missing_label": 1}


def test_every_suffix_of_images_is_read(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    red = Image.new("RGB", (8, 8), "red")
    suffixes = {"jfif": "JPEG", "jpe": "JPEG", "AVIF": "AVIF", "ppm": "PPM", "tga": "TGA", "jp2": "JPEG2000"}
    for suffix, form in suffixes.items():
        red.save(tree / f"n01/red.{suffix}", form)
    Image.new("L", (8, 8)).save(tree / "n01/grey.pgm", "PPM")
    source = opened(tree)
    assert source.skipped() == {}
    assert capsys.readouterr().out == (
        f"{tree} has 13 images of 3 classes: 1 .avif, 1 .jfif, 1 .jp2, 1 .jpe, 1 .jpeg, 4 .jpg, 1 .pgm, 1 .png, "
        "1 .ppm, 1 .tga\n"
    )
    decoded = [SampleDecoder()(sample, (8, 8)) for sample in raw_samples(source)]
    assert len(decoded) == 6 + len(suffixes) + 1
    found, others = list_images(os.fsencode(tree))
    assert (len(found), others) == (len(decoded), {})  # as `rfdit reference images=FOLDER` lists them


def test_links_that_lead_up_are_not_followed(tree: Path) -> None:
    (tree / "n01/loop").symlink_to(tree / "n01")
    (tree / "n10/deep/up").symlink_to(tree)
    assert len(keys(opened(tree))) == 6


def test_links_are_followed_and_dead_ones_are_counted_when_read(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    (tree / "n01/x.png").rename(tmp_path / "else/y.png")
    (tree / "n01/more").symlink_to(tmp_path / "else")
    (tree / "n01/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    source = opened(tree)
    gone, there = source.samples([0, 1])
    assert isinstance(gone, SkippedSampleError)
    assert gone.reason == SkipReason.MISSING_IMAGE
    assert "gone.jpg" in str(gone)
    assert not isinstance(there, SkippedSampleError)
    assert there["__key__"] == "n01/more/y"


def test_a_name_that_is_not_text_is_read_all_the_same(tree: Path) -> None:
    os.rename(tree / "n01/x.png", bytes(tree / "n01") + b"/\xff.png")
    assert keys(opened(tree))[0] == "n01/\\xff"


def test_an_empty_class_keeps_its_number(tree: Path) -> None:
    (tree / "n00").mkdir()
    with pytest.warns(
        UserWarning, match=r"1 of the 4 class folders .* have no images, the first of them n00"
    ):
        source = opened(tree)
    assert [sample["cls"] for sample in raw_samples(source)] == [b"1", b"2", b"2", b"3", b"3", b"3"]


def test_readable_names(tree: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("n10 golden retriever\nn01 tench, Tinca tinca\nn02 goldfish\n")
    source = opened(tree, names=str(names))
    assert [sample["txt"] for sample in raw_samples(source)[:3]] == [
        b"tench, Tinca tinca",
        b"goldfish",
        b"goldfish",
    ]
    names.write_text("n10 golden retriever\n")
    with pytest.raises(ValueError, match=r"^data\.reader\.names=.* has no name for 2 of the 3 class folders"):
        opened(tree, names=str(names))


def test_sizes_are_of_the_images_as_decoded(tree: Path, write: Write) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    write("n02/c.jpg", (4, 12), exif=exif)
    write("n02/d.png", (6, 20), exif=exif)
    source = opened(tree, image_sizes=True)
    sizes = dict(zip(keys(source), source.image_sizes().tolist(), strict=True))
    assert (sizes["n01/x"], sizes["n02/a"], sizes["n02/b"]) == ([32, 8], [16, 8], [8, 16])
    # Stored lying, shown upright.
    assert (sizes["n02/c"], sizes["n02/d"]) == ([12, 4], [20, 6])


def test_sizes_are_there_only_when_asked_for(tree: Path) -> None:
    with pytest.raises(ValueError, match="opened with image_sizes=True"):
        opened(tree).image_sizes()
    with pytest.raises(ValueError, match="opened with image_sizes=True"):
        opened(tree, Filters(min_size=1)).image_sizes()


def test_what_is_filtered_is_counted(tree: Path) -> None:
    (tree / "n10/damaged.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (tree / "n10/vector.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")
    source = opened(tree, Filters(min_size=8, max_aspect=2), image_sizes=True)
    assert keys(source) == ["n02/a", "n02/b", "n10/1", "n10/a.b", "n10/deep/er/2"]
    assert source.skipped() == {"filtered_aspect": 1, "corrupt_image": 1, "unsupported_image": 1}
    assert source.image_sizes().tolist() == [[16, 8], [8, 16], [8, 8], [8, 8], [8, 8]]
    assert [sample["cls"] for sample in raw_samples(source)] == [b"1", b"1", b"2", b"2", b"2"]
    # Without a look at headers these are left to the decoder.
    assert len(keys(opened(tree))) == 8
    assert opened(tree).skipped() == {}


def test_the_class_name_is_the_caption_that_is_filtered(tree: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    names.write_text('["a fish", "a very long name", "a dog"]')
    source = opened(tree, Filters(max_caption=10), names=str(names))
    assert len(keys(source)) == 4
    assert source.skipped() == {"filtered_caption": 2}


def test_nothing_left_is_an_error_that_counts(tree: Path) -> None:
    with pytest.raises(ValueError, match=r"none of 6 images is left: 6 filtered_size$"):
        opened(tree, Filters(min_size=100))
    with pytest.raises(
        ValueError, match=r"^data\.shards: .*: none of 6 images is left: 6 unknown_aesthetic$"
    ):
        opened(tree, Filters(min_aesthetic=5))


def test_headers_are_read_once_per_set_of_files(
    tree: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    header_size = image_files.image_size

    def counted(path: str) -> tuple[int, int] | None:
        read.append(path)
        return header_size(path)

    monkeypatch.setattr(image_files, "image_size", counted)
    first = opened(tree, image_sizes=True).image_sizes()
    again = opened(tree, Filters(min_size=1), image_sizes=True).image_sizes()
    assert np.array_equal(first, again)
    assert len(read) == 6
    (cached,) = (cache_root() / "image-sizes").glob("*")
    for damaged in (b"", cached.read_bytes()[:-1], b"\x00" + cached.read_bytes()[1:]):
        read.clear()
        cached.write_bytes(damaged)
        assert np.array_equal(first, opened(tree, image_sizes=True).image_sizes())
        assert len(read) == 6
    write("n10/new.jpg", (3, 5))
    assert [3, 5] in opened(tree, image_sizes=True).image_sizes().tolist()
    assert len(read) == 6 + 7


def test_many_headers_keep_their_order(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "HEADERS_AT_ONCE", 3)
    for i in range(20):
        tree = write(f"n{i % 3}/{i:02d}.png", (i + 1, 2))
    source = opened(tree, image_sizes=True)
    expected = [int(key[-2:]) + 1 for key in keys(source)]
    assert source.image_sizes()[:, 0].tolist() == expected


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            ["{tree}/n01/x.png"],
            r"^data\.shards: .*x\.png is not one folder; .* tar shards use data=imagenet_wds$",
        ),
        (["{tree}/nowhere"], "nowhere is not one folder"),
        (["{tree}/n01", "{tree}/n02"], r"^data\.shards: 2 paths, the first of them .*n01, is not one folder"),
        (
            ["{tree}/n01"],
            r"^data\.shards: .*n01 has no class folders, .*reads root/CLASS/\*\.jpg; it holds 1 \.png: give",
        ),
        (["{tree}/.."], r"have no images, files that end in \.jpg, \.jpeg"),
    ],
)
def test_a_path_that_is_not_a_tree_is_named(tree: Path, given: list[str], sentence: str) -> None:
    if given == ["{tree}/.."]:
        for file in tree.rglob("*.*"):
            file.unlink()
    with pytest.raises(ValueError, match=sentence):
        ImageFolder()([path.format(tree=tree) for path in given], filters=ALL)


def test_a_wrong_number_of_classes_is_an_error_before_anything_is_read(tree: Path) -> None:
    assert len(keys(opened(tree, num_classes=3))) == 6
    sentence = (
        r"^data\.shards: .* has 3 class folders, n01 to n10, and conditioner\.num_classes=1000; "
        r"give conditioner\.num_classes=3$"
    )
    with pytest.raises(ValueError, match=sentence):
        opened(tree, num_classes=1000)


def test_home_is_expanded(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tree.parent))
    assert len(keys(opened(Path("~/train")))) == 6


def test_sizes_agree_with_the_decoder(tree: Path) -> None:
    """Images are resized without cropping if they are requested in their own aspect ratio."""
    source = opened(tree, image_sizes=True)
    for raw, (height, width) in zip(raw_samples(source), source.image_sizes().tolist(), strict=True):
        data = next(value for name, value in raw.items() if name in ("jpg", "jpeg", "png"))
        with Image.open(io.BytesIO(cast(bytes, data))) as image:
            assert image.size == (width, height)
        assert decode_image(cast(bytes, data), (height, width)).shape == (3, height, width)
