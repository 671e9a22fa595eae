"""Frozen pretrained text towers, for use in a training step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rfdit.batch import Condition
from rfdit.pretrained.frozen import Frozen
from rfdit.storage.lru import LRU


class FrozenTower:
    """Encodes captions without gradients, in a fast dtype, and caches the latest of them.

    It is not an `nn.Module`, so a module that holds it neither trains nor saves the tower, and deep
    copies of the holder share it.

    tokenize: captions -> token ids (b, l).
    encode: (tower, ids) -> pooled (b, p), tokens (b, l, d), mask (b, l).
    dtype: `auto` (bf16 where the hardware multiplies it fast), `fp32` or `bf16`.
    cache_size: cached captions, always including the empty one, which every step needs. A data set with
        fewer captions is encoded once. Raises ValueError below 1.
    """

    def __init__(
        self,
        tower: nn.Module,
        *,
        tokenize: Callable[[list[str]], Tensor],
        encode: Callable[[Any, Tensor], tuple[Tensor, Tensor, Tensor]],
        dtype: str = "auto",
        cache_size: int = 256,
    ) -> None:
        if cache_size < 1:
            raise ValueError(
                f"text_encoder.cache_size={cache_size} must be at least 1, since the empty caption is always cached"
            )
        self.frozen = Frozen(tower, dtype=dtype, setting="text_encoder.dtype")
        self.tokenize = tokenize
        self._encode = encode
        self._cache: LRU[tuple[str, torch.device], Condition] = LRU(cache_size)

    def check(self, of: str, **declared: int) -> None:
        """Compares the declared width, pooled_width and length, which other config nodes read, with the tower.

        Raises ValueError, naming every setting that disagrees.
        """
        # In fp32, so that weights keep their precision until the device, and with it the dtype, is known.
        tower = self.frozen.on(torch.device("cpu"), torch.float32)
        with torch.no_grad():
            pooled, tokens, _ = self._encode(tower, self.tokenize([""]))
        found = {"width": tokens.shape[2], "pooled_width": pooled.shape[1], "length": tokens.shape[1]}
        wrong = [
            f"text_encoder.{name}={declared[name]} (it has {size})"
            for name, size in found.items()
            if declared[name] != size
        ]
        if wrong:
            raise ValueError(f"the text tower of {of} disagrees with {', '.join(wrong)}")

    def __call__(self, captions: Sequence[str], device: torch.device) -> Condition:
        """The condition of captions, float32, on `device`."""
        known = {text: self._cache[text, device] for text in captions if (text, device) in self._cache}
        missing = [text for text in dict.fromkeys(captions) if text not in known]
        if missing:
            known.update(zip(missing, self._run(missing, device)))
        self._remember(known, device)
        return Condition.join([known[text] for text in captions])

    def _run(self, captions: list[str], device: torch.device) -> list[Condition]:
        """One condition, of one row, per caption."""
        dtype = self.frozen.dtype_on(device)
        tower = self.frozen.on(device, dtype)
        ids = self.tokenize(captions).to(device, non_blocking=True)
        # no_grad, not inference_mode: a training step must be able to save the result for backward.
        # Autocast of the caller would change the dtype.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            pooled, tokens, mask = self._encode(tower, ids)
        rows = Condition(pooled.float(), tokens.float(), mask)
        # Copies: one cached caption must not keep the memory of its whole batch.
        return [rows[i : i + 1].map(Tensor.clone) for i in range(len(captions))]

    def _remember(self, conditions: Mapping[str, Condition], device: torch.device) -> None:
        if ("", device) in self._cache:  # every step needs the null condition again
            conditions = {**conditions, "": self._cache["", device]}
        for text, condition in conditions.items():
            self._cache[text, device] = condition

    def __deepcopy__(self, memo: dict[int, object]) -> "FrozenTower":
        return self
