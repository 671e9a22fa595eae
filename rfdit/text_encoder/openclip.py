"""The frozen text towers of open_clip's models."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from pickle import UnpicklingError
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rfdit.batch import Condition
from rfdit.text_encoder.frozen_tower import FrozenTower
from rfdit.text_encoder.openclip_hf import encode_hf
from rfdit.text_encoder.pretrained import open_clip_weights

LAYERS = ("last", "penultimate")


class OpenCLIPEncoder(nn.Module):
    """The text tower of an open_clip model, frozen: features per token, and the pooled caption.

    model: open_clip's name, such as ViT-L-14-quickgelu.
    pretrained: one of the model's tags, or a file (safetensors, or a checkpoint that loads as
        weights only); null leaves random weights, for tests.
    width: of the tower. pooled_width: of CLIP's joint space. length: the tower's context. All three
        must be the model's.
    layer: where the token features come from. `last`: after the final norm. `penultimate`: what the
        last block but one gives, without norm, as in SDXL and SD3 (arXiv 2403.03206, fig. 2).
        The pooled caption is the model's own either way.
    dtype, cache_size: see `FrozenTower`.

    Raises ValueError for an unknown name or tag and where the model disagrees with the settings,
    OSError if the weights cannot be downloaded.
    """

    def __init__(
        self,
        *,
        model: str,
        pretrained: str | None,
        width: int,
        pooled_width: int,
        length: int,
        layer: str = "last",
        dtype: str = "auto",
        cache_size: int = 256,
    ) -> None:
        super().__init__()
        if layer not in LAYERS:
            raise ValueError(f"text_encoder.layer={layer}: write last or penultimate")
        self.width, self.pooled_width, self.length = width, pooled_width, length
        tower, tokenizer = _load(model, pretrained)
        encode = _encoding(tower, tokenizer, layer)
        self._tower = FrozenTower(
            tower, tokenize=tokenizer, encode=encode, dtype=dtype, cache_size=cache_size
        )
        self._tower.check(
            f"text_encoder.model={model}", width=width, pooled_width=pooled_width, length=length
        )

    def forward(self, captions: Sequence[str], *, device: torch.device) -> Condition:
        """b captions -> pooled (b, pooled_width), tokens (b, length, width), mask (b, length), float32."""
        return self._tower(captions, device)

    def weights_digest(self) -> str:
        """SHA-256 of the weights as they were loaded."""
        return self._tower.weights_digest()

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """The arithmetic on a device."""
        return self._tower.dtype_on(device)


def _load(model: str, pretrained: str | None) -> tuple[Any, Any]:
    """The model's text tower and its tokenizer; the image tower is dropped."""
    import open_clip
    from safetensors import SafetensorError

    names = open_clip.list_models()
    if model not in names:
        close = ", ".join(get_close_matches(model, names)) or "see open_clip.list_models()"
        raise ValueError(f"text_encoder.model={model} is no model of open_clip; did you mean: {close}")
    weights = None if pretrained is None else open_clip_weights(model, pretrained)
    try:
        # force_custom_text: every model then has its text tower as a module of its own.
        whole = open_clip.create_model(
            model, pretrained=weights, force_custom_text=True, pretrained_text=False
        )
        return whole.text, open_clip.get_tokenizer(model)
    except (AssertionError, KeyError, RuntimeError, SafetensorError, UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"text_encoder.pretrained={pretrained} holds no weights of {model}, "
            f"or none that load without unpickling code: {reason}"
        ) from None
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise OSError(
            f"text_encoder.model={model} needs a tokenizer or a config from the hub: {reason}"
        ) from None


def _encoding(
    tower: Any, tokenizer: Any, layer: str
) -> Callable[[Any, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """How this kind of tower gives pooled caption, tokens and mask."""
    from open_clip.hf_model import HFTextEncoder

    if not isinstance(tower, HFTextEncoder):
        return partial(_encode, tokenizer=tokenizer, layer=layer)
    if layer != "last":
        raise ValueError(
            f"text_encoder.layer={layer}: this model's Hugging Face text tower gives its last layer only"
        )
    tower.output_tokens = True
    return encode_hf


def _encode(
    tower: Any, ids: Int[Tensor, "b l"], *, tokenizer: Any, layer: str
) -> tuple[Float[Tensor, "b p"], Float[Tensor, "b l d"], Bool[Tensor, "b l"]]:
    """A TextTransformer's pooled caption, tokens and mask for token ids."""
    depth = tower.transformer.layers
    features = tower.forward_intermediates(
        ids,
        indices=[depth - 1 if layer == "last" else depth - 2],
        normalize_intermediates=layer == "last",
        output_fmt="NLC",
    )
    return features["text_features"], features["text_intermediates"][0], _real(ids, tokenizer)


def _real(ids: Int[Tensor, "b l"], tokenizer: Any) -> Bool[Tensor, "b l"]:
    """Which tokens are a caption's own: up to the end token, or all but the padding."""
    position = torch.arange(ids.shape[1], device=ids.device)
    if hasattr(tokenizer, "eot_token_id"):  # CLIP pads with 0, which is the token of "!" as well
        end = (ids == tokenizer.eot_token_id).int().argmax(dim=1, keepdim=True)
        return position <= end
    # SigLIP ends with its padding token: the empty caption keeps its first.
    return (ids != tokenizer.tokenizer.pad_token_id) | (position == 0)
