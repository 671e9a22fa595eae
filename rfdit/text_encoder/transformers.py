"""Frozen language models and text towers of transformers: T5, T5Gemma, Gemma, Qwen, CLIP, SigLIP, BERT and others."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rfdit.batch import Condition
from rfdit.limits import Count, Index
from rfdit.text_encoder.frozen_tower import FrozenTower
from rfdit.text_encoder.prompts import Prompts
from rfdit.text_encoder.transformers_model import load_model

Tokens = Float[Tensor, "b l d"]
Mask = Bool[Tensor, "b l"]


def _mean(output: Any, tokens: Tokens, mask: Mask) -> Float[Tensor, "b p"]:
    weight = mask[:, :, None].to(tokens.dtype)
    return (tokens * weight).sum(dim=1) / weight.sum(dim=1)


def _first(output: Any, tokens: Tokens, mask: Mask) -> Float[Tensor, "b p"]:
    return tokens[:, 0]


def _last(output: Any, tokens: Tokens, mask: Mask) -> Float[Tensor, "b p"]:
    position = torch.arange(mask.shape[1], device=mask.device)
    return tokens[torch.arange(len(tokens), device=tokens.device), (position * mask).argmax(dim=1)]


def _own(output: Any, tokens: Tokens, mask: Mask) -> Float[Tensor, "b p"]:
    for name in ("text_embeds", "pooler_output"):  # CLIP's projection, or else the pooler
        if (pooled := getattr(output, name, None)) is not None:
            return pooled
    raise ValueError("text_encoder.pooler=model: this model has no pooled output; use mean, first or last")


POOLERS: Mapping[str, Callable[[Any, Tokens, Mask], Tensor]] = {
    "mean": _mean,
    "first": _first,
    "last": _last,
    "model": _own,
}


class TransformersEncoder(nn.Module):
    """A text model of transformers, frozen: an encoder, a decoder, the encoder of both, or the text tower of CLIP.

    source, subfolder: a folder with `config.json` and `.safetensors`, or a hub name, and the model's folder inside it.
    tokenizer_subfolder: the tokenizer's folder inside the source; None is the model's.
    width, pooled_width: of the model's layer, and of the pooled caption.
    length: tokens per caption that the model receives; longer captions are truncated.
    layer: `last`, with the model's last norm, or the number of a hidden state: 0 is the embedding, -1 the last
        block's output, which many models have normalised already, -2 that of the block before it (SD3's CLIP).
    pooler: `mean` of the tokens that are not padding, the `first` or the `last` of these, or the `model`'s own.
    mask: padding is masked, in the model and after it. Without it the model reads padding as tokens (SD3, Flux).
    template: the prompt, with {} where the caption is. chat, system: put it as a user's turn into the chat template
        of the tokenizer, after a system prompt. skip: first tokens of the prompt whose features are left out.
    dtype, cache_size: see `FrozenTower`.

    Only safetensors are read, and no code of the folder is run. Raises OSError without weights at `source`,
    ValueError where they disagree with the settings.
    """

    def __init__(
        self,
        *,
        source: str,
        width: Count,
        pooled_width: Count,
        length: Count,
        subfolder: str | None = None,
        tokenizer_subfolder: str | None = None,
        layer: int | str = "last",
        pooler: str = "mean",
        mask: bool = True,
        template: str | None = None,
        chat: bool = False,
        system: str | None = None,
        skip: Index = 0,
        dtype: str = "auto",
        cache_size: Count = 256,
    ) -> None:
        super().__init__()
        if pooler not in POOLERS:
            raise ValueError(f"text_encoder.pooler={pooler} is unknown; use {', '.join(POOLERS)}")
        if isinstance(layer, str) and layer != "last":
            raise ValueError(f"text_encoder.layer={layer} is unknown; use last, or a hidden state's number")
        self.width, self.pooled_width, self.length = width, pooled_width, length
        model, tokenizer = load_model(
            source,
            subfolder=subfolder,
            tokenizer_subfolder=tokenizer_subfolder or subfolder,
            length=length + skip,
        )
        self._prompts = Prompts(
            tokenizer, length=length + skip, mask=mask, template=template, chat=chat, system=system
        )
        self._tower = FrozenTower(
            model,
            tokenize=self._prompts,
            encode=partial(_encode, layer=layer, pooler=pooler, masked=mask, skip=skip),
            dtype=dtype,
            cache_size=cache_size,
        )
        self._tower.check(
            f"text_encoder.source={source}", width=width, pooled_width=pooled_width, length=length
        )

    def forward(self, captions: Sequence[str], *, device: torch.device) -> Condition:
        """b captions -> pooled (b, pooled_width), tokens (b, length, width), mask (b, length), float32."""
        return self._tower(captions, device)

    def unread_end(self, caption: str) -> str:
        """The end of a caption that is cut off; empty if it is read whole."""
        return self._prompts.unread_end(caption)

    def weights_digest(self) -> str:
        """SHA-256 of the weights as they were loaded."""
        return self._tower.frozen.weights_digest()

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """The dtype to compute in on a device."""
        return self._tower.frozen.dtype_on(device)


def _encode(
    model: Any, prompts: Int[Tensor, "b 2 n"], *, layer: int | str, pooler: str, masked: bool, skip: int
) -> tuple[Float[Tensor, "b p"], Float[Tensor, "b l d"], Bool[Tensor, "b l"]]:
    """Pooled caption, tokens and mask. prompts: token ids, and 1 where one is not padding."""
    ids, mask = prompts.unbind(dim=1)
    # SD3, Flux and others give no mask, which is not the same as one of ones in every model.
    output = model(
        input_ids=ids, output_hidden_states=layer != "last", **({"attention_mask": mask} if masked else {})
    )
    if layer == "last":
        tokens = output.last_hidden_state
    else:
        states = output.hidden_states
        if not -len(states) <= int(layer) < len(states):
            raise ValueError(
                f"text_encoder.layer={layer} does not exist; the model has hidden states 0 to {len(states) - 1}"
            )
        tokens = states[int(layer)]
    kept = mask.bool()[:, skip:]
    if masked:  # a caption without tokens keeps its first place
        kept = kept | (torch.arange(kept.shape[1], device=kept.device) == 0)
    pooled = POOLERS[pooler](output, tokens[:, skip:], kept)
    return pooled, tokens[:, skip:], kept
