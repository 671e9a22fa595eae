"""Captions through an embedding table that is trained with the model."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from rfdit.batch import Condition

VOCABULARY = 49_408  # of CLIP's byte-pair encoding, its start and end tokens included


class BPEEncoder(nn.Module):
    """CLIP's byte-pair tokens, each embedded with its position; pooled by their mean.

    Nothing to download and no context between tokens: the model's own attention has to mix them.
    width: of a token's vector. The table has 49,408 rows, so keep it small; the model projects.
    pooled_width: equals width.
    length: tokens per caption, start and end included; longer captions lose their tail.
    """

    def __init__(self, *, width: int, length: int, pooled_width: int | None = None) -> None:
        super().__init__()
        if pooled_width not in (None, width):
            raise ValueError(
                f"text_encoder.pooled_width={pooled_width}: the pooled caption is the mean of the tokens, "
                f"so it must be text_encoder.width={width}"
            )
        if length < 2:
            raise ValueError(f"text_encoder.length={length}: the start and the end token alone take 2")
        self.width = self.pooled_width = width
        self.length = length
        self.token_embedding = nn.Embedding(VOCABULARY, width)
        self.position_embedding = nn.Parameter(torch.empty(length, width))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding, std=0.02)

    def forward(self, captions: Sequence[str], *, device: torch.device) -> Condition:
        """b captions -> pooled (b, width), tokens (b, length, width), mask (b, length)."""
        ids, mask = tokenize(captions, self.length)
        ids, mask = ids.to(device, non_blocking=True), mask.to(device, non_blocking=True)
        tokens = self.token_embedding(ids) + self.position_embedding  # (b, l, d)
        weight = mask[:, :, None].to(tokens.dtype)
        pooled = (tokens * weight).sum(dim=1) / weight.sum(dim=1)  # (b, d)
        return Condition(pooled, tokens, mask)


def tokenize(captions: Sequence[str], length: int) -> tuple[Int[Tensor, "b l"], Bool[Tensor, "b l"]]:
    """Captions -> token ids, zero-padded, and True from the start token to the end token.

    The mask cannot be read off the ids: 0 is the token of an exclamation mark as well.
    """
    rows = [token_ids(caption, length) for caption in captions]
    ids = torch.tensor([row + (0,) * (length - len(row)) for row in rows])
    ends = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(length) < ends[:, None]


@lru_cache(maxsize=2**16)
def token_ids(caption: str, length: int) -> tuple[int, ...]:
    """The caption's tokens between start and end token, at most `length` of them in all.

    Cached: byte-pair encoding in Python takes longer than the embedding.
    """
    tokenizer = _tokenizer()
    inner = tokenizer.encode(caption)[: length - 2]
    return (tokenizer.sot_token_id, *inner, tokenizer.eot_token_id)


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()
