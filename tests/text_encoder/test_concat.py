"""Several encoders as one, against the prompts of diffusers' SD3 and Flux, and the drop of each on its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from rfdit.config.build import build as build_node
from rfdit.data.latents.manifest import arithmetic_of, weights_of
from rfdit.randomness import SampleGenerator
from rfdit.text_encoder.concat import ConcatEncoder
from tests.support.models import text_models as models

CPU = torch.device("cpu")
CONF = Path(__file__).parents[2] / "conf/text_encoder"
CAPTIONS = [
    "a red circle",
    "",
    "the blue square of the red circle : a photo of the small blue square of a circle",
]
SIZES = {"clip_l": (16, 16), "clip_g": (8, 16), "t5": (32, 20)}  # width, length


def t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=models.VOCABULARY, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of a pipeline's encoders and tokenizers, as SD3 names them; Flux's are two of them."""
    folder = tmp_path_factory.mktemp("pipeline")
    parts = [lambda: models.clip(16), lambda: models.clip(8), t5, lambda: models.clip(16, projection=False)]
    for number, make in zip(("", "_2", "_3", "_flux"), parts):
        words = models.tokenizer(start=number != "_3")
        models.save(folder / f"text_encoder{number}", make, words)
        words.save_pretrained(folder / f"tokenizer{number}")
    return folder


def node(folder: Path, name: str = "concat", **changes: Any) -> dict[str, Any]:
    """The settings of an option, with small encoders."""
    found = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    assert isinstance(found, dict)
    for part, settings in found["encoders"].items():
        width, length = SIZES[part]
        settings |= {
            "source": str(folder),
            "dtype": "fp32",
            "width": width,
            "pooled_width": width,
            "length": length,
        }
    if name == "flux":
        found["encoders"]["clip_l"] |= {
            "subfolder": "text_encoder_flux",
            "tokenizer_subfolder": "tokenizer_flux",
        }
        found["encoders"]["t5"] |= {"subfolder": "text_encoder_3", "tokenizer_subfolder": "tokenizer_3"}
        return found | {"width": 32, "pooled_width": 16, "length": 20} | changes
    return found | {"width": 32, "pooled_width": 24, "length": 36} | changes


def build(folder: Path, name: str = "concat", **changes: Any) -> ConcatEncoder:
    encoder = build_node(node(folder, name, **changes))
    assert isinstance(encoder, ConcatEncoder)
    return encoder


def loaded(folder: Path, name: str, kind: str) -> Any:
    import transformers

    return getattr(transformers, kind).from_pretrained(folder / name)


def test_sd3_s_prompts(folder: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    parts: dict[str, Any] = {
        f"tokenizer{number}": loaded(folder, f"tokenizer{number}", "PreTrainedTokenizerFast")
        for number in ("", "_2", "_3")
    }
    kinds = ["CLIPTextModelWithProjection"] * 2 + ["T5EncoderModel"]
    for number, kind in zip(("", "_2", "_3"), kinds):
        parts[f"text_encoder{number}"] = loaded(folder, f"text_encoder{number}", kind)
    pipeline = StableDiffusion3Pipeline(
        transformer=None, scheduler=FlowMatchEulerDiscreteScheduler(), vae=None, **parts
    )
    with torch.no_grad():
        tokens, _, pooled, _ = pipeline.encode_prompt(
            CAPTIONS,
            CAPTIONS,
            CAPTIONS,
            device=CPU,
            do_classifier_free_guidance=False,
            max_sequence_length=20,
        )
    found = build(folder)(CAPTIONS, device=CPU)
    assert found.mask is not None
    assert found.mask.all()
    torch.testing.assert_close(found.tokens, tokens, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-5, atol=1e-5)
    assert tokens[:, :16, 24:].abs().max() == 0
    assert tokens[0].std() > 0.1
    assert not torch.allclose(tokens[0], tokens[2])


def test_flux_s_prompts(folder: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        transformer=None,
        tokenizer=loaded(folder, "tokenizer_flux", "PreTrainedTokenizerFast"),
        tokenizer_2=loaded(folder, "tokenizer_3", "PreTrainedTokenizerFast"),
        text_encoder=loaded(folder, "text_encoder_flux", "CLIPTextModel"),
        text_encoder_2=loaded(folder, "text_encoder_3", "T5EncoderModel"),
    )
    with torch.no_grad():
        tokens, pooled, _ = pipeline.encode_prompt(CAPTIONS, None, device=CPU, max_sequence_length=20)
    found = build(folder, "flux")(CAPTIONS, device=CPU)
    torch.testing.assert_close(found.tokens, tokens, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-5, atol=1e-5)


def test_a_dropped_encoder_has_the_features_of_the_empty_caption(folder: Path) -> None:
    encoder = build(folder, drop={"clip_g": 1.0})
    cond, null = encoder(CAPTIONS, device=CPU), encoder([""], device=CPU)
    found = encoder.drop_parts(cond, null, generator=SampleGenerator(seed=0, keys=torch.arange(3)))
    tokens = cond.tokens.clone()
    tokens[:, :16, 16:24] = null.tokens[:, :16, 16:24]
    assert torch.equal(found.tokens, tokens)
    assert torch.equal(
        found.pooled, torch.cat([cond.pooled[:, :16], null.pooled[:, 16:].expand(3, -1)], dim=1)
    )


def test_each_is_dropped_on_its_own(folder: Path) -> None:
    encoder = build(folder)
    cond, null = encoder(CAPTIONS[:1] * 2000, device=CPU), encoder([""], device=CPU)
    generator = SampleGenerator(seed=0, keys=torch.arange(2000))
    found = encoder.drop_parts(cond, null, generator=generator)
    places = {
        "clip_l": (slice(16), slice(16)),
        "clip_g": (slice(16), slice(16, 24)),
        "t5": (slice(16, 36), slice(32)),
    }

    def same(part: str, other: Tensor) -> Tensor:
        rows, channels = places[part]
        return (found.tokens[:, rows, channels] == other[:, rows, channels]).flatten(1).all(dim=1)

    dropped = torch.stack([same(part, null.tokens) for part in places])
    kept = torch.stack([same(part, cond.tokens) for part in places])
    assert torch.equal(dropped, ~kept)
    # Standard errors over 2,000 samples: 0.011 and 0.0067.
    assert dropped.float().mean(dim=1).sub(0.464).abs().max() < 0.05
    assert abs(dropped.all(dim=0).float().mean() - 0.464**3) < 0.03
    alone = encoder.drop_parts(cond[7:8], null, generator=SampleGenerator(seed=0, keys=torch.tensor([7])))
    assert torch.equal(alone.tokens[0], found.tokens[7])


def test_masks_are_joined_and_dropped_with_their_row(folder: Path) -> None:
    masked = node(folder)
    for part in masked["encoders"].values():
        part["mask"] = True
    encoder = build_node(masked)
    cond, null = encoder(CAPTIONS, device=CPU), encoder([""], device=CPU)
    assert cond.mask.sum(dim=1).tolist() == [5 + 4, 2 + 1, 16 + 19]
    encoder.drop = {"clip_l": 1.0, "clip_g": 1.0}
    found = encoder.drop_parts(cond, null, generator=SampleGenerator(seed=0, keys=torch.arange(3)))
    assert found.mask.sum(dim=1).tolist() == [2 + 4, 2 + 1, 2 + 19]
    encoder.drop = {"clip_l": 1.0}
    found = encoder.drop_parts(cond, null, generator=SampleGenerator(seed=0, keys=torch.arange(3)))
    assert torch.equal(found.mask, cond.mask)


def test_every_encoder_has_its_digest(folder: Path) -> None:
    encoder, settings = build(folder), node(folder)
    found = weights_of("text_encoder", settings, encoder)
    assert list(found) == [f"text_encoder.encoders.{part}" for part in SIZES]
    assert len({about["sha256"] for about in found.values()}) == 3
    assert found["text_encoder.encoders.t5"]["place"] == f"text_encoder.encoders.t5.source={folder}"
    assert set(arithmetic_of(CPU, text_encoder=encoder).values()) == {"fp32"}
    assert encoder.weights_digest() == build(folder, drop={}).weights_digest()


def test_the_end_that_no_encoder_reads_is_told(folder: Path) -> None:
    encoder = build(folder)
    assert encoder.unread_end(" ".join(["red"] * 19)) == ""  # T5 reads it
    assert encoder.unread_end(" ".join(["red"] * 21)).replace(" ", "") == "redred"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rows": [["clip_l"], ["t5"]], "pooled": ["clip_l"]},
            r"has clip_g, which is neither in text_encoder\.rows",
        ),
        (
            {"drop": {"bert": 0.1}},
            r"text_encoder\.drop names bert, and text_encoder\.encoders has clip_l, clip_g, t5",
        ),
        (
            {"rows": [["clip_l", "t5"]]},
            r"clip_l, t5 are joined on channels and must have one length, not 16 and 20",
        ),
        ({"width": 24}, r"text_encoder\.width=24 \(they have 32\)"),
        (
            {"length": 77, "pooled_width": 1},
            r"pooled_width=1 \(they have 24\), text_encoder\.length=77 \(they",
        ),
        ({"pooled": []}, r"text_encoder\.rows and text_encoder\.pooled must name encoders"),
    ],
)
def test_settings_that_do_not_fit(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(folder, **changes)
