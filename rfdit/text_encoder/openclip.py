"""Frozen text towers of the models of open_clip."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rfdit.batch import Condition
from rfdit.limits import Count
from rfdit.text_encoder.frozen_tower import FrozenTower
from rfdit.text_encoder.openclip_hf import encode_hf
from rfdit.text_encoder.pretrained import check_open_clip_model, create_open_clip, open_clip_weights
from rfdit.text_encoder.unread import unread_end

LAYERS = ("last", "penultimate")


class OpenCLIPEncoder(nn.Module):
    """The text tower of an open_clip model, frozen: features per token, and the pooled caption.

    model: name in open_clip, such as ViT-L-14-quickgelu.
    pretrained: one of the tags of the model, or a file (safetensors, or a checkpoint that loads as
        weights only); null leaves random weights, for tests.
    width, pooled_width, length: width of the tower, width of CLIP's joint space, and context length; all
        three must be those of the model.
    layer: source of the token features. `last`: the final norm. `penultimate`: the output of the last
        block but one, without norm, as in SDXL and SD3 (arXiv 2403.03206, fig. 2). The pooled caption
        is that of the model either way.
    dtype, cache_size: see `FrozenTower`.

    Raises ValueError for an unknown name or tag and where the model disagrees with the settings,
    OSError if the weights cannot be downloaded.
    """

    def __init__(
        self,
        *,
        model: str,
        pretrained: str | None,
        width: Count,
        pooled_width: Count,
        length: Count,
        layer: str = "last",
        dtype: str = "auto",
        cache_size: Count = 256,
    ) -> None:
        super().__init__()
        if layer not in LAYERS:
            raise ValueError(f"text_encoder.layer={layer} is unknown; use last or penultimate")
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

    def unread_end(self, caption: str) -> str:
        """The end of a caption that is cut off; empty if it is read whole."""
        return unread_end(self._tower.tokenize, caption, self.length)

    def weights_digest(self) -> str:
        """SHA-256 of the weights as they were loaded."""
        return self._tower.frozen.weights_digest()

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """The dtype to compute in on a device."""
        return self._tower.frozen.dtype_on(device)


def _load(model: str, pretrained: str | None) -> tuple[Any, Any]:
    """The text tower of the model and its tokenizer, without the image tower."""
    import open_clip

    check_open_clip_model(model)
    file = None if pretrained is None else open_clip_weights(model, pretrained)
    try:
        # force_custom_text: makes the text tower a module of its own in every model.
        whole = create_open_clip(model, file, force_custom_text=True)
        return whole.text, open_clip.get_tokenizer(model)
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise OSError(
            f"text_encoder.model={model} needs a tokenizer or a config from the hub: {reason}"
        ) from None


def _encoding(
    tower: Any, tokenizer: Any, layer: str
) -> Callable[[Any, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """The function that computes pooled caption, tokens and mask with this kind of tower."""
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
    """Pooled caption, tokens and mask of a TextTransformer."""
    depth = tower.transformer.layers
    features = tower.forward_intermediates(
        ids,
        indices=[depth - 1 if layer == "last" else depth - 2],
        normalize_intermediates=layer == "last",
        output_fmt="NLC",
    )
    return features["text_features"], features["text_intermediates"][0], _not_padding(ids, tokenizer)


def _not_padding(ids: Int[Tensor, "b l"], tokenizer: Any) -> Bool[Tensor, "b l"]:
    """The mask of tokens that are not padding."""
    position = torch.arange(ids.shape[1], device=ids.device)
    if hasattr(tokenizer, "eot_token_id"):  # CLIP pads with 0, which is also the token of "!"
        end = (ids == tokenizer.eot_token_id).int().argmax(dim=1, keepdim=True)
        return position <= end
    # SigLIP's end token is its padding token: the empty caption keeps the first.
    return (ids != tokenizer.tokenizer.pad_token_id) | (position == 0)
