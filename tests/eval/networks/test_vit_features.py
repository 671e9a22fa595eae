"""CLIP's and DINOv2's features with random weights, against the libraries themselves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from rfdit.conditioning import LabelConditioner
from rfdit.eval.feature_evaluation import FeatureEvaluation
from rfdit.eval.inputs import BalancedLabels
from rfdit.eval.metrics.clip_score import CLIPScore
from rfdit.eval.networks.dinov2 import DINOv2Features
from rfdit.eval.networks.feature_network import CaptionNetwork, FeatureNetwork
from rfdit.eval.networks.open_clip import OpenCLIPFeatures

CLIP = "ViT-S-32-alt"  # the smallest of open_clip's
DINO = "vit_small_patch14_dinov2"  # the smallest of timm's


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)


@pytest.fixture(scope="module")
def clip() -> Any:
    import open_clip

    return open_clip.create_model(CLIP).eval()


@pytest.fixture(scope="module")
def clip_file(clip: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> str:
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("clip") / "open_clip_model.safetensors"
    save_file(clip.state_dict(), path)
    return str(path)


def test_clip_gives_unit_vectors_of_images_and_captions(clip: Any, clip_file: str, images: Tensor) -> None:
    import open_clip

    before = torch.get_rng_state()
    network = OpenCLIPFeatures(model=CLIP, pretrained=clip_file)
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(network, CaptionNetwork)
    x = interpolate(images / 255, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (clip.visual.image_mean, clip.visual.image_std))
    captions = ["a red circle", "a blue square"]
    with torch.no_grad():
        expected = normalize(clip.encode_image((x - mean) / std))
        words = normalize(clip.encode_text(open_clip.get_tokenizer(CLIP)(captions)))
    torch.testing.assert_close(network(images)["image"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.captions(captions), words, rtol=1e-4, atol=1e-5)
    assert network.resize == "bicubic with antialiasing to 224 x 224"
    evaluation = FeatureEvaluation(
        name="clip", samples=2, network=network, metrics={"clip_score": CLIPScore()}, inputs=BalancedLabels()
    )
    evaluation.prepare((40, 40), torch.device("cpu"))
    with pytest.raises(ValueError, match="clip_score needs captions, and this model was trained on class"):
        evaluation.choose_inputs(LabelConditioner(num_classes=3, width=4), seed=0)
    score = 100 * (expected * words).sum(1).clamp(min=0).mean()
    values = evaluation.measure([evaluation.rows(images, captions)])
    assert values["clip_score"] == pytest.approx(float(score), rel=1e-3, abs=1e-3)


def test_clip_weights_that_do_not_fit_are_refused(clip_file: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"network.model=ViT-Nonsense is not a model of open_clip"):
        OpenCLIPFeatures(model="ViT-Nonsense", pretrained=clip_file)
    with pytest.raises(
        ValueError, match=r"network.pretrained=nowhere is neither a file nor a tag of network.model"
    ):
        OpenCLIPFeatures(model="ViT-B-32", pretrained="nowhere")
    other = tmp_path / "other.pt"
    torch.save({"a": print}, other)
    with pytest.raises(ValueError, match=r"network.pretrained=.*other.pt holds no weights of ViT-S-32-alt"):
        OpenCLIPFeatures(model=CLIP, pretrained=str(other))


def test_dinov2_gives_the_class_token(images: Tensor, tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    vit: Any = timm.create_model(DINO, img_size=28, num_classes=0).eval()
    file = tmp_path / "dino.safetensors"
    save_file(vit.state_dict(), file)
    network = DINOv2Features(weights=str(file), model=DINO, image_size=28)
    assert isinstance(network, FeatureNetwork)
    x = interpolate(images / 255, (28, 28), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = vit.forward_features((x - mean) / std)[:, 0]
    torch.testing.assert_close(network(images)["cls"], expected, rtol=1e-4, atol=1e-5)
    # Positions are resampled to the given grid.
    assert DINOv2Features(weights=str(file), model=DINO, image_size=42)(images)["cls"].isfinite().all()
    with pytest.raises(ValueError, match=r"does not hold weights of vit_base_patch14_dinov2"):
        DINOv2Features(weights=str(file), model="vit_base_patch14_dinov2", image_size=28)
    with pytest.raises(ValueError, match="not a multiple of DINOv2's patch size 14"):
        DINOv2Features(weights=str(file), model=DINO, image_size=30)
    with pytest.raises(ValueError, match="is not a DINOv2 of timm"):
        DINOv2Features(weights=str(file), model="resnet18")
