"""Frozen language models of Hugging Face through open_clip: BERT, RoBERTa, XLM-R, T5 encoders."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rfdit.batch import Condition
from rfdit.limits import Count
from rfdit.storage.untrusted import reading
from rfdit.text_encoder.frozen_tower import FrozenTower
from rfdit.text_encoder.pretrained import text_model_folder
from rfdit.text_encoder.unread import unread_end

# open_clip has two more: cls_pooler removes a token, max_pooler includes the padding.
POOLERS = ("mean_pooler", "cls_last_hidden_state_pooler")


class OpenCLIPHFEncoder(nn.Module):
    """The HFTextEncoder of open_clip with a pretrained language model, frozen, without projection.

    source: a folder with `config.json`, tokenizer and `.safetensors`, or a hub name.
    width, pooled_width: both must be the hidden size of the model.
    length: tokens per caption; longer captions are truncated.
    pooler: `mean_pooler`, or `cls_last_hidden_state_pooler` for the first token.
    dtype, cache_size: see `FrozenTower`.

    Raises OSError without weights at `source`, ValueError where they disagree with the settings.
    """

    def __init__(
        self,
        *,
        source: str,
        width: Count,
        pooled_width: Count,
        length: Count,
        pooler: str = "mean_pooler",
        dtype: str = "auto",
        cache_size: Count = 256,
    ) -> None:
        super().__init__()
        if pooler not in POOLERS:
            raise ValueError(f"text_encoder.pooler={pooler} is unknown; use {' or '.join(POOLERS)}")
        self.width, self.pooled_width, self.length = width, pooled_width, length
        tower, tokenizer = _load(text_model_folder(source), length=length, pooler=pooler, source=source)
        self._tower = FrozenTower(
            tower, tokenize=tokenizer, encode=encode_hf, dtype=dtype, cache_size=cache_size
        )
        self._tower.check(
            f"text_encoder.source={source}", width=width, pooled_width=pooled_width, length=length
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


def encode_hf(
    tower: Any, ids: Int[Tensor, "b l"]
) -> tuple[Float[Tensor, "b p"], Float[Tensor, "b l d"], Bool[Tensor, "b l"]]:
    """Pooled caption, tokens and mask of an HFTextEncoder."""
    pooled, tokens = tower(ids)
    mask = ids != tower.config.pad_token_id
    return pooled, tokens, mask[:, -tokens.shape[1] :]  # cls_pooler removes the first token


def _load(folder: str, *, length: int, pooler: str, source: str) -> tuple[Any, Any]:
    """The tower and its tokenizer."""
    from open_clip.hf_configs import arch_dict
    from open_clip.hf_model import HFTextEncoder
    from open_clip.tokenizer import HFTokenizer
    from transformers import AutoConfig

    # Otherwise transformers offers to run code that comes with a model.
    with reading(f"text_encoder.source={source} cannot be read"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.model_type not in arch_dict:
        known = ", ".join(sorted(arch_dict))
        raise ValueError(f"text_encoder.source={source} is a {config.model_type}; open_clip supports {known}")
    longest = getattr(config, "max_position_embeddings", length)
    if length > longest:
        raise ValueError(f"text_encoder.length={length} must be at most {longest}, the positions of {source}")
    with reading(f"text_encoder.source={source} cannot be read as a {config.model_type}"), _without_bar():
        tower = HFTextEncoder(
            folder,
            output_dim=config.hidden_size,
            proj_type=None,
            pooler_type=pooler,
            pretrained=True,
            output_tokens=True,
        )
        return tower, HFTokenizer(folder, context_length=length, clean="whitespace", trust_remote_code=False)


@contextmanager
def _without_bar() -> Iterator[None]:
    """Load without transformers' progress bar, which is about local files: downloads have ended by then."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
