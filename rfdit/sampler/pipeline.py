"""From captions or labels to pictures: the one way in which training, evaluation and sampling do it."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor

from rfdit.autoencoder.contract import Autoencoder
from rfdit.batch import Condition
from rfdit.images import to_uint8
from rfdit.network import Network
from rfdit.randomness import SampleGenerator
from rfdit.sampler.sampler import Sampler


class Pipeline:
    """A network, its autoencoder and a sampler.

    latent_shape: (c, h, w) of what is sampled.
    bf16: matrix products in bf16; the integration itself is always float32.
    batch_size: how many pictures are made at once.
    """

    def __init__(
        self,
        *,
        network: Network,
        autoencoder: Autoencoder,
        sampler: Sampler,
        latent_shape: tuple[int, int, int],
        device: torch.device,
        bf16: bool,
        batch_size: int = 32,
    ) -> None:
        self.network, self.autoencoder, self.sampler = network, autoencoder, sampler
        self.latent_shape, self.device = latent_shape, device
        self.bf16, self.batch_size = bf16, batch_size

    @torch.no_grad()
    def __call__(
        self,
        inputs: Sequence[str] | Sequence[int],
        *,
        seed: int,
        first_key: int = 0,
        negative: str | None = None,
        on_batch: Callable[[int], None] | None = None,
    ) -> UInt8[Tensor, "n 3 H W"]:
        """One picture per input, uint8, on the CPU.

        seed, first_key: picture i starts from the noise of (seed, first_key + i), whatever the
            batch size or device.
        negative: what guidance moves away from; the null condition by default.
        on_batch: called with the number of pictures made so far.
        """
        was_training = self.network.training
        self.network.eval()
        pictures = []
        for start in range(0, len(inputs), self.batch_size):
            chunk = inputs[start : start + self.batch_size]
            keys = torch.arange(start, start + len(chunk), device=self.device) + first_key
            pictures.append(self._batch(chunk, SampleGenerator(seed=seed, keys=keys), negative).cpu())
            if on_batch is not None:
                on_batch(start + len(chunk))
        self.network.train(was_training)
        return torch.cat(pictures)

    def _batch(
        self, inputs: Sequence[str] | Sequence[int], generator: SampleGenerator, negative: str | None
    ) -> UInt8[Tensor, "b 3 H W"]:
        conditioner = self.network.conditioner
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            cond: Condition = conditioner(inputs, device=self.device)
            away = (
                conditioner.null(device=self.device)
                if negative is None
                else conditioner([negative], device=self.device)
            )
            noise = generator.fork("image").normal(*self.latent_shape)
            latents = self.sampler(
                self.network.backbone, noise, cond, away.expand(len(inputs)), generator=generator.fork("sde")
            )
        return to_uint8(self.autoencoder.decode(latents))
