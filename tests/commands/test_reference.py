"""References: files of three kinds, mismatches, and the command that makes them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rfdit.eval.metrics.frechet import FrechetDistance
from rfdit.eval.metrics.moments import FeatureMoments
from rfdit.eval.reference.files import load_reference, save_reference
from tests.support.commands.command_line import CommandLine
from tests.support.evaluation.tiny_features import TinyFeatures, reference_of

TINY = [
    "network._target_=tests.support.evaluation.tiny_features.TinyFeatures", "network.outputs=[pool]", "num_workers=0",
    "out=made.npz",
]  # fmt: skip


@pytest.fixture
def features() -> Tensor:
    return torch.randn(30, 4)


def test_a_reference_comes_back_from_its_file(features: Tensor, tmp_path: Path) -> None:
    written = reference_of({"pool": features, "spatial": features[:, :2]})
    save_reference(written, tmp_path / "folder" / "real.npz")
    read = load_reference(str(tmp_path / "folder" / "real.npz"))
    assert read.settings() == written.settings()
    assert read.settings()["images"] == 30
    for output in ("pool", "spatial"):
        assert torch.equal(read.moments[output].covariance, written.moments[output].covariance)
        assert torch.equal(read.moments[output].mean, written.moments[output].mean)
        assert torch.equal(read.features[output], written.features[output])


@pytest.mark.parametrize(
    "keys", [("mu", "sigma", "mu_s", "sigma_s"), ("mu", "sigma")], ids=["ADM", "pytorch-fid"]
)
def test_statistics_of_others_are_read(features: Tensor, keys: tuple[str, ...], tmp_path: Path) -> None:
    moments = FeatureMoments.of(features)
    arrays = dict(zip(keys, [moments.mean.numpy(), moments.covariance.numpy()] * 2))
    np.savez(tmp_path / "theirs.npz", **arrays)
    read = load_reference(str(tmp_path / "theirs.npz"))
    assert set(read.moments) == ({"pool", "spatial"} if "mu_s" in keys else {"pool"})
    assert (read.network, read.image_size, read.data) == ("inception-2015-12-05", None, "theirs.npz")
    metric = FrechetDistance()
    metric.compare_with(read)
    metric.update(features)
    assert abs(float(metric.compute()["fid"])) < 1e-7


def test_files_that_are_not_statistics_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"eval.reference=nowhere.npz is not a file; rfdit reference"):
        load_reference("nowhere.npz")
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    np.savez(tmp_path / "pickle.npz", mu=np.array([print], dtype=object), sigma=np.zeros((1, 1)))
    np.savez(tmp_path / "nan.npz", mu=np.array([np.nan]), sigma=np.zeros((1, 1)))
    np.savez(tmp_path / "shape.npz", mu=np.zeros(2), sigma=np.zeros((3, 3)))
    (tmp_path / "text.npz").write_text("no zip")
    for name, said in {
        "images": "it has arr_0",
        "pickle": "allow_pickle=False",
        "nan": "NaN or infinite",
        "shape": r"shape \(2,\)",
        "text": "not a file of reference statistics",
    }.items():
        with pytest.raises(ValueError, match=said):
            load_reference(str(tmp_path / f"{name}.npz"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network": "inception-2015-12-05"}, "made with inception-2015-12-05, and the features are tiny's"),
        (
            {"weights_sha256": "ab" * 32},
            r"weights abababababab of tiny, and network.weights has 000000000000",
        ),
        ({"image_size": (16, 8)}, "images of 16 x 8, and the evaluation has images of 8 x 8"),
    ],
)
def test_a_reference_that_does_not_fit_is_refused(
    features: Tensor, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        reference_of({"pool": features}, **changes).check(TinyFeatures(), (8, 8))


def test_what_may_differ_is_warned_of(features: Tensor) -> None:
    made = reference_of({"pool": features}, precision="bf16", image_size=None, weights_sha256=None)
    with pytest.warns(UserWarning, match="made with precision 'bf16', and the network here has 'fp32'"):
        made.check(TinyFeatures(), (8, 8))


def write_images(folder: Path) -> Tensor:
    """A colour, a grey and a transparent image in folders; returns the images that must be measured."""
    (folder / "below").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    Image.fromarray(pixels[..., :3]).save(folder / "a.png")
    Image.fromarray(pixels[..., 0]).save(folder / "b.png")
    Image.fromarray(pixels).save(folder / "below" / "c.png")
    (folder / "d.png").write_text("not an image")
    alpha = pixels[..., 3:] / 255
    on_white = (pixels[..., :3] * alpha + 255 * (1 - alpha)).round()
    made = [pixels[..., :3], np.repeat(pixels[..., :1], 3, axis=2), on_white]
    return torch.from_numpy(np.stack(made).astype(np.uint8)).permute(0, 3, 1, 2)


def test_the_command_measures_a_folder_of_images_of_any_mode(cli: CommandLine, tmp_path: Path) -> None:
    expected = TinyFeatures()(write_images(tmp_path / "images"))["pool"]
    said = cli.reference(*TINY, "images=images", "resolution=8", "features=10", "batch_size=2")
    assert said == "3 images of (8, 8) through tiny in made.npz; left out: 1 corrupt_image\n"
    made = load_reference("made.npz")
    torch.testing.assert_close(made.features["pool"], expected, rtol=0, atol=0.5)
    torch.testing.assert_close(made.moments["pool"].mean, expected.double().mean(0), rtol=0, atol=0.5)
    assert (made.data, made.image_size, made.moments["pool"].count) == ("images", (8, 8), 3)


def test_the_command_reads_an_npz_as_it_is(cli: CommandLine, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 6, 8, 3), np.uint8)
    np.savez(tmp_path / "samples.npz", arr_0=images, arr_1=np.arange(9))
    cli.reference(*TINY, "images=samples.npz", "features=4", "batch_size=4")
    made = load_reference("made.npz")
    every = TinyFeatures()(torch.from_numpy(images).permute(0, 3, 1, 2))["pool"]
    torch.testing.assert_close(made.moments["pool"].covariance, FeatureMoments.of(every).covariance)
    # Kept ones are random, and of the set.
    assert made.features["pool"].shape == (4, 12)
    assert (torch.cdist(made.features["pool"], every).min(1).values == 0).all()
    first = made.data_sha256
    cli.reference(*TINY, "images=samples.npz", "batch_size=9")
    assert load_reference("made.npz").data_sha256 == first
    np.savez(tmp_path / "samples.npz", arr_0=images[::-1])
    cli.reference(*TINY, "images=samples.npz")
    assert load_reference("made.npz").data_sha256 != first


def test_the_command_reads_training_data(cli: CommandLine) -> None:
    """It reads the demo's own shards as a run does, and a random part of them."""
    shapes = ["data.shards.samples=40", "data.shards.shards=2"]
    assert "40 images of (32, 32)" in cli.reference(*TINY, *shapes)
    assert load_reference("made.npz").data.startswith("2 shards, ")
    assert "10 images" in cli.reference(*TINY, *shapes, "count=10")
    assert load_reference("made.npz").data.endswith(", 10 random images")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["images=nowhere"], "images=nowhere is not a folder and not an .npz"),
        (["images=images"], "images: they have different sizes"),
        (["images=grey.npz"], "arr_0 is uint8 of shape (2, 8, 8) and must be RGB bytes (N, H, W, 3)"),
        (["images=empty"], "images=empty has no images"),
        (["images=rgb.npz", "resolution=16"], "resolution=(16, 16): the images of rgb.npz have (8, 8)"),
        (["images=images", "resolution=8", "count=9"], "count=9: there are 5 images"),
        (["resolution=8"], "resolution applies to images=... only"),
        (["images=rgb.npz", "features=-1"], "features=-1"),
        (["images=rgb.npz", "network.outputs=5"], "network.outputs=5 is a whole number"),
        (["imges=rgb.npz"], "imges is not a setting; did you mean images?"),
    ],
)
def test_bad_input_is_one_sentence(cli: CommandLine, overrides: list[str], said: str, tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "e.png")
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "grey.npz", arr_0=np.zeros((2, 8, 8), np.uint8))
    np.savez(tmp_path / "rgb.npz", arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    assert said in cli.error("reference", *TINY, *overrides)
