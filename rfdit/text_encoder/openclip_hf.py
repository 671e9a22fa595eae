"""Frozen text towers of Hugging Face inside open_clip: BERT, RoBERTa, XLM-R, T5 encoders."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rfdit.batch import Condition
from rfdit.text_encoder.frozen_tower import FrozenTower
from rfdit.text_encoder.pretrained import hub_folder

# open_clip has two more: cls_pooler takes a token away, max_pooler maximises over the padding.
POOLERS = ("mean_pooler", "cls_last_hidden_state_pooler")


class OpenCLIPHFEncoder(nn.Module):
    """open_clip's HFTextEncoder with a pretrained language model, frozen; no projection.

    source: a folder with `config.json`, tokenizer and `.safetensors`, or a hub name.
    width, pooled_width: must both be the model's hidden size.
    length: tokens per caption; longer captions are cut.
    pooler: `mean_pooler`, or `cls_last_hidden_state_pooler` for the first token.
    dtype, cache_size: see `FrozenTower`.

    Raises OSError without weights at `source`, ValueError where they disagree with the settings.
    """

    def __init__(
        self,
        *,
        source: str,
        width: int,
        pooled_width: int,
        length: int,
        pooler: str = "mean_pooler",
        dtype: str = "auto",
        cache_size: int = 256,
    ) -> None:
        super().__init__()
        if pooler not in POOLERS:
            raise ValueError(f"text_encoder.pooler={pooler}: write {' or '.join(POOLERS)}")
        self.width, self.pooled_width, self.length = width, pooled_width, length
        tower, tokenizer = _load(hub_folder(source), length=length, pooler=pooler, source=source)
        self._tower = FrozenTower(
            tower, tokenize=tokenizer, encode=encode_hf, dtype=dtype, cache_size=cache_size
        )
        self._tower.check(
            f"text_encoder.source={source}", width=width, pooled_width=pooled_width, length=length
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


def encode_hf(
    tower: Any, ids: Int[Tensor, "b l"]
) -> tuple[Float[Tensor, "b p"], Float[Tensor, "b l d"], Bool[Tensor, "b l"]]:
    """An open_clip HFTextEncoder's pooled caption, tokens and mask for token ids."""
    pooled, tokens = tower(ids)
    real = ids != tower.config.pad_token_id
    return pooled, tokens, real[:, -tokens.shape[1] :]  # cls_pooler takes the first token away


def _load(folder: str, *, length: int, pooler: str, source: str) -> tuple[Any, Any]:
    """The tower and its tokenizer."""
    from open_clip.hf_configs import arch_dict
    from open_clip.hf_model import HFTextEncoder
    from open_clip.tokenizer import HFTokenizer
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    if config.model_type not in arch_dict:
        known = ", ".join(sorted(arch_dict))
        raise ValueError(f"text_encoder.source={source} is a {config.model_type}; open_clip knows {known}")
    longest = getattr(config, "max_position_embeddings", length)
    if length > longest:
        raise ValueError(f"text_encoder.length={length}: the model of {source} has {longest} positions")
    tower = HFTextEncoder(
        folder,
        output_dim=config.hidden_size,
        proj_type=None,
        pooler_type=pooler,
        pretrained=True,
        output_tokens=True,
    )
    return tower, HFTokenizer(folder, context_length=length, clean="whitespace")
