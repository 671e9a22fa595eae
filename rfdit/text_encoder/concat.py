"""Several text encoders as one, as in SD3 (arXiv 2403.03206, fig. 2) and Flux."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdit.batch import Condition
from rfdit.limits import Count, Fraction
from rfdit.protocols import Pretrained, TextEncoder, Truncates
from rfdit.randomness import SampleGenerator


class ConcatEncoder(nn.Module):
    """The tokens of several encoders, joined on channels and on the sequence, and their pooled captions.

    encoders: by name. rows: lists of names; the tokens of a row's encoders are joined on channels and filled with
        zeros up to `width`, and the rows follow each other on the sequence.
    pooled: names of the encoders whose pooled captions are joined.
    drop: by name, the probability with which training replaces a sample's features of this encoder by those of the
        empty caption, each on its own: SD3 has 0.464 for each of three, so that all are dropped for one sample in ten.
    width, pooled_width, length: of the whole. width is that of the widest row, or more.

    A token of a row is masked where it is padding for all encoders of the row.
    Raises ValueError for names without an encoder, encoders without a place, and sizes that disagree.
    """

    def __init__(
        self,
        *,
        encoders: Mapping[str, TextEncoder],
        rows: Sequence[Sequence[str]],
        pooled: Sequence[str],
        width: Count,
        pooled_width: Count,
        length: Count,
        drop: Mapping[str, Fraction] | None = None,
    ) -> None:
        super().__init__()
        self.rows, self.pooled, self.drop = [list(row) for row in rows], list(pooled), dict(drop or {})
        self._check_names(encoders)
        self.encoders: Any = nn.ModuleDict(dict(encoders))  # type: ignore[arg-type]
        self.width, self.pooled_width, self.length = width, pooled_width, length
        self._check_sizes()

    def forward(self, captions: Sequence[str], *, device: torch.device) -> Condition:
        """b captions -> pooled (b, pooled_width), tokens (b, length, width), mask (b, length), float32."""
        found = {name: encoder(captions, device=device) for name, encoder in self.encoders.items()}
        rows = [self._row([found[name] for name in row]) for row in self.rows]
        return Condition(
            pooled=torch.cat([found[name].pooled for name in self.pooled], dim=1),
            tokens=torch.cat([tokens for tokens, _ in rows], dim=1),
            mask=torch.cat([mask for _, mask in rows], dim=1),
        )

    def _row(self, parts: Sequence[Condition]) -> tuple[Tensor, Tensor]:
        """Tokens (b, l, width) and mask (b, l) of the encoders of a row."""
        tokens = torch.cat([part.tokens for part in parts if part.tokens is not None], dim=2)
        masks = torch.stack([part.mask for part in parts if part.mask is not None])
        return F.pad(tokens, (0, self.width - tokens.shape[2])), masks.any(dim=0)

    def drop_parts(self, cond: Condition, null: Condition, *, generator: SampleGenerator) -> Condition:
        """Replaces the features of each encoder by those of `null`, one row, with the probability in `drop`.

        The mask of a row is that of `null` where all its encoders are dropped.
        """
        assert cond.tokens is not None
        assert cond.mask is not None
        assert null.tokens is not None
        assert null.mask is not None
        dropped = {
            name: generator.fork(name).uniform() < self.drop.get(name, 0.0)
            for name in self.encoders  # (b,) each
        }
        tokens, mask, pooled = cond.tokens.clone(), cond.mask.clone(), cond.pooled.clone()
        start = 0
        for row in self.rows:
            end, left = start + self.encoders[row[0]].length, 0
            for name in row:
                right = left + self.encoders[name].width
                place = (slice(None), slice(start, end), slice(left, right))
                tokens[place] = torch.where(dropped[name][:, None, None], null.tokens[place], tokens[place])
                left = right
            whole = torch.stack([dropped[name] for name in row]).all(dim=0)
            mask[:, start:end] = torch.where(whole[:, None], null.mask[:, start:end], mask[:, start:end])
            start = end
        left = 0
        for name in self.pooled:
            right = left + self.encoders[name].pooled_width
            part = torch.where(dropped[name][:, None], null.pooled[:, left:right], pooled[:, left:right])
            pooled[:, left:right] = part
            left = right
        return Condition(pooled, tokens, mask)

    def unread_end(self, caption: str) -> str:
        """The end of a caption that no encoder reads; empty if one reads it whole, or does not say."""
        encoders = list(self.encoders.values())
        ends = [each.unread_end(caption) if isinstance(each, Truncates) else "" for each in encoders]
        return min(ends, key=len)

    def weights_digest(self) -> str:
        """SHA-256 of the names of the encoders and the digests of their weights."""
        parts = [f"{name} {each.weights_digest()}" for name, each in self._pretrained().items()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """The dtype in which the encoders compute on a device, the widest where they differ."""
        found = [each.dtype_on(device) for each in self._pretrained().values()]
        return max(found, key=lambda dtype: dtype.itemsize, default=torch.float32)

    def _pretrained(self) -> dict[str, Pretrained]:
        return {name: each for name, each in self.encoders.items() if isinstance(each, Pretrained)}

    def _check_names(self, encoders: Mapping[str, TextEncoder]) -> None:
        placed = {name for row in self.rows for name in row}
        given = {"rows": placed, "pooled": set(self.pooled), "drop": set(self.drop)}
        for setting, names in given.items():
            if unknown := sorted(names - encoders.keys()):
                raise ValueError(
                    f"text_encoder.{setting} names {', '.join(unknown)}, and text_encoder.encoders has "
                    f"{', '.join(encoders)}"
                )
        if unused := sorted(encoders.keys() - placed - set(self.pooled)):
            raise ValueError(
                f"text_encoder.encoders has {', '.join(unused)}, which is neither in text_encoder.rows nor in "
                "text_encoder.pooled"
            )
        if not self.pooled or not placed or not all(self.rows):
            raise ValueError("text_encoder.rows and text_encoder.pooled must name encoders")

    def _check_sizes(self) -> None:
        for row in self.rows:
            lengths = {self.encoders[name].length for name in row}
            if len(lengths) > 1:
                raise ValueError(
                    f"text_encoder.rows: {', '.join(row)} are joined on channels and must have one length, not "
                    f"{' and '.join(map(str, sorted(lengths)))}"
                )
        widest = max(sum(self.encoders[name].width for name in row) for row in self.rows)
        sizes = {
            "pooled_width": sum(self.encoders[name].pooled_width for name in self.pooled),
            "length": sum(self.encoders[row[0]].length for row in self.rows),
            "width": max(self.width, widest),
        }
        wrong = [
            f"text_encoder.{name}={getattr(self, name)} (they have {size})"
            for name, size in sizes.items()
            if getattr(self, name) != size
        ]
        if wrong:
            raise ValueError(f"the encoders of text_encoder.encoders disagree with {', '.join(wrong)}")
