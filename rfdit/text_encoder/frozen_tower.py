"""How a pretrained text tower runs beside a training step."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rfdit.batch import Condition
from rfdit.frozen import Frozen
from rfdit.precision import EncoderPrecision


class FrozenTower:
    """Encodes captions without gradients, in fast arithmetic, and remembers the latest of them.

    It is no `nn.Module`: whoever holds it neither trains nor saves the tower, and a deep copy of
    the holder shares it.

    tokenize: captions -> token ids (b, l).
    encode: (tower, ids) -> pooled (b, p), tokens (b, l, d), mask (b, l).
    dtype: `auto` (bf16 where the hardware multiplies it fast), `fp32` or `bf16`.
    cache_size: captions remembered; the empty one, which every step asks for, always is. A data set
        with fewer captions than this is encoded once.
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
                f"text_encoder.cache_size={cache_size}: at least the empty caption is remembered; write 1"
            )
        self._frozen = Frozen(tower)
        self._tokenize = tokenize
        self._encode = encode
        self._precision = EncoderPrecision(dtype, setting="text_encoder.dtype")
        self._cache_size = cache_size
        self._cache: OrderedDict[tuple[str, torch.device], Condition] = OrderedDict()

    def check(self, of: str, **declared: int) -> None:
        """Holds width, pooled_width and length, which other nodes read, against what the tower gives.

        Raises ValueError, naming every setting that disagrees.
        """
        # In fp32, so that no precision is lost before the device, and with it the dtype, is known.
        tower = self._frozen.on(torch.device("cpu"), torch.float32)
        with torch.no_grad():
            pooled, tokens, _ = self._encode(tower, self._tokenize([""]))
        found = {"width": tokens.shape[2], "pooled_width": pooled.shape[1], "length": tokens.shape[1]}
        wrong = [
            f"text_encoder.{name}={declared[name]} (it has {size})"
            for name, size in found.items()
            if declared[name] != size
        ]
        if wrong:
            raise ValueError(f"the text tower of {of} disagrees with {', '.join(wrong)}")

    def weights_digest(self) -> str:
        """SHA-256 of the weights as they were loaded."""
        return self._frozen.digest()

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """The arithmetic on a device."""
        return self._precision.on(device)

    def __call__(self, captions: Sequence[str], device: torch.device) -> Condition:
        """The captions' condition, float32, on `device`."""
        known = {text: self._cache[text, device] for text in captions if (text, device) in self._cache}
        missing = [text for text in dict.fromkeys(captions) if text not in known]
        if missing:
            known.update(zip(missing, self._run(missing, device)))
        self._remember(known, device)
        rows = [known[text] for text in captions]
        return Condition(
            pooled=torch.cat([row.pooled for row in rows]),
            tokens=torch.cat([row.tokens for row in rows if row.tokens is not None]),
            mask=torch.cat([row.mask for row in rows if row.mask is not None]),
        )

    def _run(self, captions: list[str], device: torch.device) -> list[Condition]:
        """One condition of one row per caption."""
        dtype = self._precision.on(device)
        tower = self._frozen.on(device, dtype)
        ids = self._tokenize(captions).to(device, non_blocking=True)
        # no_grad and not inference_mode: a training step must be able to save the result for backward.
        # The caller's autocast would change the arithmetic that `dtype` asks for.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            pooled, tokens, mask = self._encode(tower, ids)
        # Parts of their own memory: one remembered caption must not keep its whole batch.
        return [
            Condition(
                pooled[i : i + 1].float().clone(), tokens[i : i + 1].float().clone(), mask[i : i + 1].clone()
            )
            for i in range(len(captions))
        ]

    def _remember(self, conditions: Mapping[str, Condition], device: torch.device) -> None:
        for text, condition in conditions.items():
            self._cache[text, device] = condition
            self._cache.move_to_end((text, device))
        if ("", device) in self._cache:
            self._cache.move_to_end(("", device))
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)

    def __deepcopy__(self, memo: dict[int, object]) -> "FrozenTower":
        return self
