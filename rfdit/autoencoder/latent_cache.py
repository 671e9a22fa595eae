"""Small data sets are encoded once."""

from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b

import torch
from torch import Tensor

from rfdit.autoencoder.contract import Moments
from rfdit.batch import Images


class LatentCache:
    """Latents of the images seen last, by the images' bytes.

    For deterministic encoders and sets that fit in memory: it reads every image on the CPU, which
    a GPU would have to wait for, and needs unchanging crops to ever find one again.
    size: how many latents are kept; 0 keeps none and costs nothing.
    """

    def __init__(self, size: int) -> None:
        if size < 0:
            raise ValueError(f"autoencoder.cache_size={size} must not be negative")
        self.size = size
        self._latents: OrderedDict[bytes, Tensor] = OrderedDict()

    def __call__(self, encode: Callable[[Images], Moments], images: Images) -> Moments:
        """`encode(images)`, with those that are remembered looked up instead."""
        if self.size == 0:
            return encode(images)
        keys = [blake2b(image.numpy(force=True).tobytes(), digest_size=16).digest() for image in images]
        known = {key: self._latents[key] for key in keys if key in self._latents}
        missing = {key: i for i, key in enumerate(keys) if key not in known}
        if missing:
            new = encode(images[list(missing.values())])
            # Copies: a remembered latent must not keep its whole batch.
            known |= {key: latent.clone() for key, latent in zip(missing, new)}
        for key, latent in known.items():
            self._latents[key] = latent
            self._latents.move_to_end(key)
        while len(self._latents) > self.size:
            self._latents.popitem(last=False)
        return torch.stack([known[key] for key in keys])
