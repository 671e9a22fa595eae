"""A text encoder without pretrained weights: an embedding table that is trained with the model."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from rfdit.batch import Condition
from rfdit.limits import AtLeastTwo, Count
from rfdit.text_encoder.unread import unread_end

VOCABULARY = 49_408  # of CLIP's byte-pair encoding, its start and end tokens included


class BPEEncoder(nn.Module):
    """CLIP's byte-pair tokens, each embedded with its position; pooled by their mean.

    There is nothing to download, and no context between tokens: the attention of the model mixes them.
    width: length of a token's vector. The table has 49,408 rows, so keep it small; the model projects.
    pooled_width: must equal width.
    length: tokens per caption, start and end included; longer captions are truncated.
    Raises ValueError for another pooled_width and a length below 2.
    """

    def __init__(self, *, width: Count, length: AtLeastTwo, pooled_width: Count | None = None) -> None:
        super().__init__()
        if pooled_width not in (None, width):
            raise ValueError(
                f"text_encoder.pooled_width={pooled_width}: the pooled caption is the mean of the tokens, "
                f"so it must be text_encoder.width={width}"
            )
        if length < 2:
            raise ValueError(
                f"text_encoder.length={length} must be at least 2, for the start and the end token"
            )
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

    def unread_end(self, caption: str) -> str:
        """The end of a caption that is cut off; empty if it is read whole."""
        return unread_end(_tokenizer(), caption, self.length)


def tokenize(captions: Sequence[str], length: int) -> tuple[Int[Tensor, "b l"], Bool[Tensor, "b l"]]:
    """Captions -> zero-padded token ids, and a mask that is True from the start token to the end token.

    The mask cannot be derived from the ids: 0 is also the token of an exclamation mark.
    """
    rows = [token_ids(caption, length) for caption in captions]
    ids = torch.tensor([row + (0,) * (length - len(row)) for row in rows])
    ends = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(length) < ends[:, None]


@lru_cache(maxsize=2**16)
def token_ids(caption: str, length: int) -> tuple[int, ...]:
    """The tokens of a caption with start and end token, at most `length` in all.

    Cached, since byte-pair encoding in Python takes longer than the embedding.
    """
    tokenizer = _tokenizer()
    inner = tokenizer.encode(caption)[: length - 2]
    return (tokenizer.sot_token_id, *inner, tokenizer.eot_token_id)


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()
