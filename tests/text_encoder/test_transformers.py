"""Text models of transformers: small random ones of each class, and the real MiniLM."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rfdit.text_encoder.openclip_hf import OpenCLIPHFEncoder
from rfdit.text_encoder.transformers import TransformersEncoder
from tests.support.models import text_models as models

CPU = torch.device("cpu")
LENGTH = 12
CAPTIONS = ["a red circle", "", "the blue square of the red circle : a photo"]


def build(source: Path, **changes: Any) -> TransformersEncoder:
    sizes = {"width": 16, "pooled_width": 16, "length": LENGTH, "dtype": "fp32"}
    return TransformersEncoder(source=str(source), **sizes | changes)


# The class, and the part of it that reads text.
MODELS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "t5": (models.t5, lambda model: model),
    "t5_whole": (models.t5_whole, lambda model: model.encoder),
    "t5gemma": (models.t5gemma, lambda model: model.get_encoder()),
    "gemma": (models.gemma, lambda model: model.model),
    "qwen": (models.qwen, lambda model: model.model),
    "clip": (models.clip, lambda model: model),
    "siglip": (models.siglip, lambda model: model.text_model),
}


@pytest.fixture(scope="module", params=MODELS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    """Name, folder, and the part of the model that reads text."""
    make, part = MODELS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    model = models.save(folder, make, models.tokenizer())
    return request.param, folder, part(model)


def own_features(model: Any, *, masked: bool, layer: int) -> tuple[Tensor, Tensor, Any]:
    """Tokens of a layer, mask, and output of the model itself."""
    found = models.tokenizer()(
        CAPTIONS, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    )
    arguments = {"attention_mask": found.attention_mask} if masked else {}
    with torch.no_grad():
        output = model(input_ids=found.input_ids, output_hidden_states=True, **arguments)
    return output.hidden_states[layer], found.attention_mask.bool(), output


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("layer", ["last", 1, -2])
def test_features_are_those_of_the_model(
    saved: tuple[str, Path, Any], masked: bool, layer: int | str
) -> None:
    _, folder, model = saved
    condition = build(folder, mask=masked, layer=layer)(CAPTIONS, device=CPU)
    tokens, mask, output = own_features(model, masked=masked, layer=-1 if layer == "last" else int(layer))
    tokens = output.last_hidden_state if layer == "last" else tokens
    assert condition.mask is not None
    assert condition.tokens is not None
    mask = mask if masked else torch.ones_like(mask)
    assert torch.equal(condition.mask, mask)
    torch.testing.assert_close(condition.tokens[mask], tokens[mask], rtol=1e-5, atol=1e-5)
    mean = torch.stack([row[real].mean(dim=0) for row, real in zip(tokens, mask)])
    torch.testing.assert_close(condition.pooled, mean, rtol=1e-5, atol=1e-5)


def test_padding_changes_nothing_under_a_mask(saved: tuple[str, Path, Any]) -> None:
    _, folder, _ = saved
    short, long = (build(folder, length=length)(CAPTIONS[:1], device=CPU) for length in (6, LENGTH))
    assert short.tokens is not None
    assert long.tokens is not None
    torch.testing.assert_close(short.tokens[0, :5], long.tokens[0, :5], rtol=1e-4, atol=1e-5)


def test_poolers(saved: tuple[str, Path, Any]) -> None:
    _, folder, model = saved
    for pooler, place in (("first", 0), ("last", -1)):
        condition = build(folder, pooler=pooler)(CAPTIONS, device=CPU)
        assert condition.tokens is not None
        assert condition.mask is not None
        for row, real, pooled in zip(condition.tokens, condition.mask, condition.pooled):
            assert torch.equal(pooled, row[real][place])
    output = own_features(model, masked=True, layer=-1)[2]
    own = getattr(output, "text_embeds", getattr(output, "pooler_output", None))
    if own is None:
        with pytest.raises(ValueError, match=r"pooler=model: this model has no pooled output; use mean"):
            build(folder, pooler="model")
    else:
        found = build(folder, pooler="model")(CAPTIONS, device=CPU).pooled
        torch.testing.assert_close(found, own, rtol=1e-5, atol=1e-5)


def test_it_is_frozen_unsaved_and_has_a_digest(saved: tuple[str, Path, Any], tmp_path: Path) -> None:
    name, folder, _ = saved
    encoder = build(folder)
    assert nn.ModuleDict({"text_encoder": encoder}).state_dict() == {}
    assert encoder.weights_digest() == build(folder, cache_size=3, length=5).weights_digest()
    torch.manual_seed(1)
    model = MODELS[name][0]()
    model.save_pretrained(tmp_path)
    models.tokenizer().save_pretrained(tmp_path)
    assert build(tmp_path).weights_digest() != encoder.weights_digest()
    half = build(folder, dtype="bf16")(CAPTIONS, device=CPU)
    assert half.tokens is not None
    assert half.tokens.dtype == torch.float32
    assert half.tokens.isfinite().all()


def test_minilm_is_that_of_open_clip(assets: Path) -> None:
    source, sizes = assets / "text_encoder/minilm", {"width": 384, "pooled_width": 384, "length": 32}
    captions = ["a photo of a dog", "", "word " * 99]
    mine = build(source, **sizes)(captions, device=CPU)
    theirs = OpenCLIPHFEncoder(source=str(source), dtype="fp32", **sizes)(captions, device=CPU)  # type: ignore[arg-type]
    assert mine.mask is not None
    assert torch.equal(mine.mask, theirs.mask)
    torch.testing.assert_close(mine.tokens[mine.mask], theirs.tokens[theirs.mask], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine.pooled, theirs.pooled, rtol=1e-5, atol=1e-5)
    assert build(source, **sizes).unread_end("a dog " * 20).startswith("a dog a dog")


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder without start and end tokens, with a chat template."""
    folder = tmp_path_factory.mktemp("chatty")
    models.save(folder, models.qwen, models.tokenizer(start=False, end=False, pad=False, chat=True))
    return folder


def test_a_caption_without_tokens_keeps_one_place(chatty: Path) -> None:
    condition = build(chatty)(["", "red"], device=CPU)
    assert condition.mask is not None
    assert condition.mask.sum(dim=1).tolist() == [1, 1]
    assert condition.tokens is not None
    assert condition.tokens.isfinite().all()


def test_templates_and_chats_put_the_caption_in_its_place(chatty: Path) -> None:
    plain = build(chatty)(["describe : a red circle"], device=CPU)
    template = build(chatty, template="describe : {}")(["a red circle"], device=CPU)
    assert torch.equal(template.pooled, plain.pooled)
    spoken = build(chatty, chat=True, system="photo", template="the {}")(["red circle"], device=CPU)
    written = build(chatty)(["system : photo user : the red circle photo :"], device=CPU)
    assert torch.equal(spoken.pooled, written.pooled)


def test_the_features_of_the_first_tokens_can_be_left_out(chatty: Path) -> None:
    whole = build(chatty, template="describe : {}")(["a red circle", ""], device=CPU)
    rest = build(chatty, template="describe : {}", skip=2, length=LENGTH - 2)(
        ["a red circle", ""], device=CPU
    )
    assert torch.equal(rest.tokens, whole.tokens[:, 2:])
    assert rest.mask.sum(dim=1).tolist() == [3, 1]
    torch.testing.assert_close(rest.pooled[0], whole.tokens[0, 2:5].mean(dim=0))


def test_the_end_that_is_not_read_is_told(chatty: Path, tmp_path: Path) -> None:
    assert build(chatty, length=3).unread_end("a red circle") == ""
    assert build(chatty, length=3).unread_end("a red circle of photo").replace(" ", "") == "ofphoto"
    behind = build(chatty, length=5, template="describe : {} of the photo")
    assert behind.unread_end("a red circle") == ""
    assert behind.unread_end("a red circle square").replace(" ", "") == "square"
    models.save(tmp_path, models.qwen, models.tokenizer())
    assert build(tmp_path, length=4).unread_end("a red circle").replace(" ", "") == "circle"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 8}, r"text_encoder\.width=8 \(it has 16\)"),
        ({"layer": 4}, r"text_encoder\.layer=4 does not exist; the model has hidden states 0 to 2"),
        ({"layer": "first"}, r"text_encoder\.layer=first is unknown"),
        ({"pooler": "max"}, r"text_encoder\.pooler=max is unknown; use mean, first, last, model"),
        ({"length": 99999999}, r"text_encoder\.length=99999999 must be at most"),
        ({"template": "a photo"}, r"text_encoder\.template='a photo' must have \{\} once"),
        ({"system": "x"}, r"text_encoder\.system has no effect without text_encoder\.chat=true"),
    ],
)
def test_settings_that_do_not_fit(chatty: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(chatty, **changes)


def test_bad_folders_are_one_sentence(chatty: Path, tmp_path: Path) -> None:
    models.save(tmp_path / "plain", models.qwen, models.tokenizer())
    with pytest.raises(ValueError, match=r"chat=true: this tokenizer has no chat template; use "):
        build(tmp_path / "plain", chat=True)
    with pytest.raises(OSError, match=r"vae/ \(text_encoder\.subfolder\) of this folder lacks config\.json"):
        build(chatty, subfolder="vae")
    for change, message in (
        (
            {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3},
            r"lacks \d+ weights of a qwen3, such as .*layers\.2",
        ),
        ({"model_type": "no_such"}, r"cannot be read: "),
        ({"model_type": "vit", "vocab_size": None}, r"is a vit, which has no part that reads text"),
        ({"auto_map": {"AutoModel": "evil.Model"}, "model_type": "evil"}, r"cannot be read: "),
    ):
        config = json.loads((tmp_path / "plain/config.json").read_text())
        (tmp_path / "plain/config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message) as caught:
            build(tmp_path / "plain")
        assert "\n" not in str(caught.value)
        (tmp_path / "plain/config.json").write_text(json.dumps(config))


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    model = models.save(tmp_path, models.qwen, models.tokenizer())
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"this folder lacks config\.json or \*\.safetensors"):
        build(tmp_path)
