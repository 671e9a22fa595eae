"""The real MiniLM inside open_clip."""

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import are_progress_bars_disabled
from torch import nn

from rfdit.text_encoder.openclip_hf import OpenCLIPHFEncoder

CPU = torch.device("cpu")


def build(source: str | Path, **changes: Any) -> OpenCLIPHFEncoder:
    return OpenCLIPHFEncoder(
        **{"source": str(source), "width": 384, "pooled_width": 384, "length": 32, **changes}
    )


@pytest.fixture(scope="module")
def minilm(assets: Path) -> Path:
    return assets / "text_encoder/minilm"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_it_knows_what_a_puppy_is(minilm: Path, dtype: str) -> None:
    encoder = build(minilm, dtype=dtype)
    dog, puppy, car = encoder(
        ["a photo of a dog", "a photo of a puppy", "a photo of a car"], device=CPU
    ).pooled
    assert torch.cosine_similarity(dog, puppy, dim=0) > torch.cosine_similarity(dog, car, dim=0) + 0.3


def test_loading_shows_no_bar_and_leaves_that_of_downloads(
    minilm: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shown = are_progress_bars_disabled()
    build(minilm)
    assert "Loading weights" not in capfd.readouterr().err
    assert are_progress_bars_disabled() == shown


def test_tokens_mask_and_mean(minilm: Path) -> None:
    condition = build(minilm, dtype="fp32")(["a dog", "", "word " * 99], device=CPU)
    assert condition.tokens is not None
    assert condition.mask is not None
    assert condition.tokens.shape == (3, 32, 384)
    assert condition.tokens.dtype == condition.pooled.dtype == torch.float32
    assert condition.mask.sum(dim=1).tolist() == [4, 2, 32]
    torch.testing.assert_close(condition.pooled[0], condition.tokens[0, :4].mean(dim=0))


def test_the_first_token_can_be_the_pooled_one(minilm: Path) -> None:
    condition = build(minilm, pooler="cls_last_hidden_state_pooler")(["a dog"], device=CPU)
    assert condition.tokens is not None
    assert torch.equal(condition.pooled, condition.tokens[:, 0])


def test_none_of_it_is_saved(minilm: Path) -> None:
    assert nn.ModuleDict({"text_encoder": build(minilm)}).state_dict() == {}


def test_settings_that_disagree_with_the_model_are_named(minilm: Path) -> None:
    with pytest.raises(ValueError, match=r"text_encoder\.width=64 \(it has 384\)") as caught:
        build(minilm, width=64)
    assert "pooled_width" not in str(caught.value)
    with pytest.raises(ValueError, match=r"text_encoder\.length=600 must be at most 512"):
        build(minilm, length=600)
    with pytest.raises(ValueError, match=r"text_encoder\.pooler=max_pooler"):
        build(minilm, pooler="max_pooler")


def test_bad_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match=r"this folder lacks config\.json or \*\.safetensors"):
        build(tmp_path)
    with pytest.raises(OSError, match=r"text_encoder\.source=/no/such: there is no such folder"):
        build("/no/such")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"hub cannot be reached .* `hf download nobody/nothing") as caught:
        build("nobody/nothing")
    assert caught.value.__suppress_context__
