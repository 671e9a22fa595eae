"""open_clip's text towers with random weights, compared with open_clip itself."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rfdit.text_encoder.openclip import OpenCLIPEncoder

CPU = torch.device("cpu")
SMALL = "ViT-S-32-alt"  # the smallest text tower among open_clip's: 256 wide, 10 blocks
CAPTIONS = ["a photo of a dog!", "", "many words " * 60]


def build(**changes: Any) -> OpenCLIPEncoder:
    settings = {
        "model": SMALL,
        "pretrained": None,
        "width": 256,
        "pooled_width": 256,
        "length": 77,
        "dtype": "fp32",
    }
    return OpenCLIPEncoder(**{**settings, **changes})


@pytest.fixture(scope="module")
def clip() -> nn.Module:
    import open_clip

    return open_clip.create_model(SMALL).eval()


@pytest.fixture(scope="module")
def weights(clip: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The reference's weights as the file a hub would give."""
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("clip") / "open_clip_model.safetensors"
    save_file(clip.state_dict(), path)
    return str(path)


@torch.no_grad()
def hidden(clip: Any, ids: Tensor, blocks: int) -> Tensor:
    """The output of the first blocks of open_clip's CLIP, step by step."""
    x = clip.token_embedding(ids) + clip.positional_embedding
    for block in clip.transformer.resblocks[:blocks]:
        x = block(x, attn_mask=clip.attn_mask)
    return x


def tokenize(captions: list[str]) -> Tensor:
    import open_clip

    return open_clip.get_tokenizer(SMALL)(captions)


@pytest.mark.parametrize("layer", ["last", "penultimate"])
def test_tokens_and_pooled_are_open_clip_s(clip: Any, weights: str, layer: str) -> None:
    condition = build(pretrained=weights, layer=layer)(CAPTIONS, device=CPU)
    ids = tokenize(CAPTIONS)
    with torch.no_grad():
        pooled = clip.encode_text(ids)
        tokens = clip.ln_final(hidden(clip, ids, 10)) if layer == "last" else hidden(clip, ids, 9)
    torch.testing.assert_close(condition.pooled, pooled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(condition.tokens, tokens, rtol=1e-4, atol=1e-5)


def test_the_mask_is_true_up_to_the_end_token() -> None:
    condition = build()(CAPTIONS, device=CPU)
    assert condition.mask is not None
    # Start, "a photo of a dog !", end; start and end; all of a cut caption.
    assert condition.mask.sum(dim=1).tolist() == [8, 2, 77]
    assert condition.mask[:, 0].all()


def test_bf16_is_close_and_comes_back_in_fp32(weights: str) -> None:
    exact = build(pretrained=weights)(CAPTIONS, device=CPU)
    fast = build(pretrained=weights, dtype="bf16")(CAPTIONS, device=CPU)
    assert fast.tokens is not None
    assert fast.tokens.dtype == torch.float32
    assert torch.cosine_similarity(fast.pooled, exact.pooled).min() > 0.99


def test_only_the_text_tower_is_kept_and_none_of_it_is_saved() -> None:
    encoder = build()
    holder = nn.ModuleDict({"text_encoder": encoder})
    assert holder.state_dict() == {}
    assert list(holder.parameters()) == []
    module = encoder._tower.frozen.on(CPU, torch.float32)
    assert sum(p.numel() for p in module.parameters()) < 21e6  # the whole model has 43 M
    assert copy.deepcopy(encoder)._tower is encoder._tower


def test_a_torch_checkpoint_loads_as_weights_only(clip: nn.Module, tmp_path: Path) -> None:
    torch.save({"state_dict": clip.state_dict()}, tmp_path / "plain.pt")
    torch.save(clip, tmp_path / "pickle.pt")
    assert build(pretrained=str(tmp_path / "plain.pt")).width == 256
    with pytest.raises(ValueError, match=r"none that load without unpickling code") as caught:
        build(pretrained=str(tmp_path / "pickle.pt"))
    assert "\n" not in str(caught.value)


def test_weights_of_another_model_are_refused(weights: str) -> None:
    with pytest.raises(ValueError, match=r"text_encoder\.pretrained=.* holds no weights of ViT-S-32"):
        build(model="ViT-S-32", pretrained=weights, width=384, pooled_width=384)


@pytest.mark.parametrize(("setting", "value"), [("width", 512), ("pooled_width", 768), ("length", 64)])
def test_settings_that_disagree_with_the_model_are_named(setting: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"text_encoder\.{setting}={value} \(it has"):
        build(**{setting: value})


def test_unknown_names_are_answered_with_known_ones() -> None:
    with pytest.raises(ValueError, match=r"text_encoder\.model=ViT-L14 .* did you mean: .*ViT-L-14"):
        build(model="ViT-L14")
    with pytest.raises(ValueError, match=r"text_encoder\.pretrained=opnai .* its tags: openai"):
        build(model="ViT-L-14-quickgelu", pretrained="opnai")
    with pytest.raises(ValueError, match=r"text_encoder\.layer=first"):
        build(layer="first")


def test_a_tag_of_another_activation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"use text_encoder\.model=ViT-L-14-quickgelu"):
        build(model="ViT-L-14", pretrained="openai")


def test_an_unreachable_hub_is_said_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"text_encoder\.pretrained=openai") as caught:
        build(model="ViT-L-14-quickgelu", pretrained="openai")
    assert "hub cannot be reached" in str(caught.value)
    assert "Download timm/vit_large_patch14_clip_224.openai" in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_model_with_a_hugging_face_tower(assets: Path, tmp_path: Path) -> None:
    import json

    import open_clip

    folder = str(assets / "text_encoder/minilm")
    text = {"hf_model_name": folder, "hf_tokenizer_name": folder, "hf_proj_type": "mlp", "context_length": 16}
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32}
    (tmp_path / "mini.json").write_text(json.dumps({"embed_dim": 48, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(tmp_path / "mini.json")
    condition = build(model="mini", width=384, pooled_width=48, length=16)(["a dog", ""], device=CPU)
    assert condition.mask is not None
    assert condition.mask.sum(dim=1).tolist() == [4, 2]
    with pytest.raises(ValueError, match="last layer only"):
        build(model="mini", width=384, pooled_width=48, length=16, layer="penultimate")
