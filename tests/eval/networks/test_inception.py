"""FID's Inception with its real weights, against torch-fidelity itself."""

import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rfdit.data.decode import SampleDecoder
from rfdit.data.filters import Filters
from rfdit.data.stream.one_pass import DecodedSample, decoded_samples
from rfdit.data.tar.source import TarReader
from rfdit.eval.feature_evaluation import FeatureEvaluation
from rfdit.eval.inputs import BalancedLabels
from rfdit.eval.metrics.frechet import FrechetDistance
from rfdit.eval.metrics.kernel import KernelInceptionDistance
from rfdit.eval.metrics.manifold import PrecisionRecall
from rfdit.eval.networks.inception import InceptionFeatures
from rfdit.eval.reference.build import build_reference
from rfdit.eval.reference.files import save_reference
from rfdit.images import to_float

CPU = torch.device("cpu")
SIZE = (128, 128)


@pytest.fixture(scope="session")
def weights(assets: Path) -> Path:
    return assets / "inception" / "pt_inception-2015-12-05-nofc.pth"


@pytest.fixture(scope="session")
def network(weights: Path) -> InceptionFeatures:
    return InceptionFeatures(weights=str(weights), outputs=("pool", "spatial"))


@pytest.fixture(scope="session")
def theirs(weights: Path) -> Any:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    return FeatureExtractorInceptionV3("theirs", ["2048"], feature_extractor_weights_path=str(weights))


def emoji(shard: Path, cache: Path, n: int) -> Tensor:
    source = TarReader(cache=str(cache))([str(shard)], filters=Filters())
    found = decoded_samples(source, SampleDecoder(), SIZE, chunk=16, workers=0)
    return torch.stack([next(s for s in found if isinstance(s, DecodedSample)).image for _ in range(n)])


@pytest.fixture(scope="module")
def images(emoji_shard: Path, tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    return emoji(emoji_shard, tmp_path_factory.mktemp("cache"), 3)


def test_features_are_torch_fidelity_s(network: InceptionFeatures, theirs: Any, images: Tensor) -> None:
    spatial = []
    hook = theirs.Mixed_6d.branch1x1.register_forward_hook(lambda *given: spatial.append(given[2]))
    (pool,) = theirs(images)
    hook.remove()
    features = network(images)
    torch.testing.assert_close(features["pool"], pool, rtol=1e-3, atol=1e-4)
    # sFID: channels last, 7 of the first branch of the graph's mixed_6.
    expected = spatial[0].permute(0, 2, 3, 1)[..., :7].reshape(3, -1)
    assert expected.shape == (3, 2023)
    torch.testing.assert_close(features["spatial"], expected, rtol=1e-3, atol=1e-4)


def test_bf16_is_near_and_training_s_settings_change_nothing(
    network: InceptionFeatures, weights: Path, images: Tensor
) -> None:
    expected = network(images)["pool"]
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(network(images)["pool"], expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    rough = InceptionFeatures(weights=str(weights), precision="bf16")
    assert rough.precision == "bf16"
    error = (rough(images)["pool"] - expected).norm() / expected.norm()
    assert 0 < error < 0.03


def test_building_it_draws_no_random_numbers(weights: Path, network: InceptionFeatures) -> None:
    before = torch.get_rng_state()
    only = InceptionFeatures(weights=str(weights), outputs=["spatial"])
    assert torch.equal(torch.get_rng_state(), before)
    # What no output needs is neither kept nor run.
    assert "Mixed_7c" in network.layers
    assert "Mixed_7c" not in only.layers


def test_weights_without_classes_give_no_inception_score(weights: Path) -> None:
    with pytest.raises(ValueError, match=r"last layer of .* is zeros, so it gives no Inception Score"):
        InceptionFeatures(weights=str(weights), outputs=("logits",))


def test_images_other_than_rgb_bytes_are_refused(network: InceptionFeatures, images: Tensor) -> None:
    for bad, said in (
        (images[:, :1], r"shape \(3, 1, 128, 128\).*RGB.*grey"),
        (torch.cat([images, images[:, :1]], 1), r"shape \(3, 4, 128, 128\).*transparent"),
        (to_float(images), r"are torch.float32, and feature networks take bytes"),
        (to_float(images) * torch.nan, "with NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=said):
            network.forward.__wrapped__(network, bad)  # as without the tests' own shape checks


def test_missing_weights_say_what_to_download_and_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    name = "weights-inception-2015-12-05-6726825d.pth"
    with pytest.raises(
        ValueError, match=rf"download https://\S+{name} .* put it at {tmp_path}/checkpoints/{name}"
    ):
        InceptionFeatures()
    with pytest.raises(ValueError, match=r"network.weights=nowhere.pth: there is no file nowhere.pth"):
        InceptionFeatures(weights="nowhere.pth")


def test_files_of_other_weights_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    torch.save({"fc.weight": torch.zeros(2)}, other)
    with pytest.raises(ValueError, match=r"other.pth does not hold weights of FID's Inception"):
        InceptionFeatures(weights=str(other))
    torch.save({"a": print}, other)  # a function: what a pickle may run
    with pytest.raises(ValueError, match="no weights that load without unpickling code"):
        InceptionFeatures(weights=str(other))


@pytest.mark.slow
def test_distances_are_those_of_torch_fidelity_s_command(
    network: InceptionFeatures, weights: Path, assets: Path, tmp_path: Path
) -> None:
    """FID to 1e-3, and KID, precision and recall, of the same images in files."""
    from torch_fidelity import calculate_metrics
    from torchvision.io import write_png

    n = 100
    sets = {}
    for name, shard in (("fake", 0), ("real", 4)):
        sets[name] = emoji(assets / "data" / "emoji" / f"emoji-{shard:04d}.tar", tmp_path / "cache", n)
        (tmp_path / name).mkdir()
        for k, image in enumerate(sets[name]):
            write_png(image, str(tmp_path / name / f"{k:03d}.png"))
    expected = calculate_metrics(
        input1=str(tmp_path / "fake"), input2=str(tmp_path / "real"), cuda=False, verbose=False, cache=False,
        fid=True, kid=True, kid_subsets=1, kid_subset_size=n, prc=True, prc_neighborhood=3, batch_size=20,
        # Named, since precision and recall would be of a VGG otherwise.
        feature_extractor="inception-v3-compat", feature_layer_prc="2048",
        feature_extractor_weights_path=str(weights), save_cpu_ram=True,
    )  # fmt: skip
    pool = InceptionFeatures(weights=str(weights))
    kept = range(n)
    made = build_reference(sets["real"], pool, data="emoji", device=CPU, batch_size=20, keep=kept)
    save_reference(made, tmp_path / "real.npz")
    metrics = {
        "fid": FrechetDistance(),
        "kid": KernelInceptionDistance(subsets=1, subset_size=n),
        "precision_recall": PrecisionRecall(),
    }
    evaluation = FeatureEvaluation(
        name="emoji",
        samples=n,
        network=pool,
        metrics=metrics,
        inputs=BalancedLabels(),
        reference=str(tmp_path / "real.npz"),
    )
    evaluation.prepare(SIZE, CPU)
    with pytest.warns(UserWarning, match="100 generated images and 2048 features"):
        values = evaluation.measure(evaluation.rows(batch, []) for batch in sets["fake"].split(32))
    assert values["fid"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-3)
    # A difference of sums near one: what is left below 1e-6 is how their products were rounded.
    assert values["kid"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3, abs=1e-6)
    assert values["precision"] == pytest.approx(
        expected["precision"], abs=0.011
    )  # one image, at a ball's border
    assert values["recall"] == pytest.approx(expected["recall"], abs=0.011)
    with pytest.warns(UserWarning, match="fid comes from"):
        values = evaluation.measure([evaluation.rows(sets["real"], [])])
    # Rounding in other batches, by its square root.
    assert abs(values["fid"]) < 1e-3
    assert (values["precision"], values["recall"]) == (1, 1)
