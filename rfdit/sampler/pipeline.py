"""From captions or labels to pictures: the one way in which training, evaluation and sampling do it."""

import copy
from collections.abc import Callable, Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor

from rfdit.autoencoder.contract import Autoencoder
from rfdit.batch import Condition, Latent
from rfdit.conditioning import Conditioner
from rfdit.images import to_float, to_uint8
from rfdit.network import Network
from rfdit.randomness import SampleGenerator
from rfdit.sampler.conditions import Conditions
from rfdit.sampler.guidance import Guidance
from rfdit.sampler.sampler import Sampler


class Pipeline:
    """A network, its autoencoder and a sampler.

    latent_shape: (c, h, w) of what is sampled.
    bf16: matrix products in bf16; the integration itself is always float32.
    batch_size: how many pictures are made at once.
    decode_batch: how many of them are decoded at once, where memory is short; None decodes all.
    guide: of autoguidance, what makes conditions for the network that it moves away from.

    Raises ValueError for a batch of no pictures.
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
        decode_batch: int | None = None,
        guide: Conditioner | None = None,
    ) -> None:
        for name, size in (("batch_size", batch_size), ("decode_batch", decode_batch)):
            if size is not None and size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        self.network, self.autoencoder, self.sampler = network, autoencoder, sampler
        self.latent_shape, self.device = latent_shape, device
        self.bf16, self.batch_size, self.decode_batch = bf16, batch_size, decode_batch
        self.guide = guide

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the pictures."""
        _, height, width = self.latent_shape
        return height * self.autoencoder.downsampling, width * self.autoencoder.downsampling

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
        conditions, pictures = self.conditions(inputs, negative=negative), []
        for start in range(0, len(inputs), self.batch_size):
            chunk = inputs[start : start + self.batch_size]
            keys = range(first_key + start, first_key + start + len(chunk))
            pictures.append(self.decode(self.sample(self.generator(seed, keys), chunk, conditions)))
            if on_batch is not None:
                on_batch(start + len(chunk))
        self.network.train(was_training)
        return torch.cat(pictures)

    def conditions(self, inputs: Sequence[str | int], *, negative: str | None = None) -> Conditions:
        """The conditions of pictures of these inputs, encoded when they are needed."""
        return Conditions(
            self.network.conditioner,
            inputs,
            negative=negative,
            group=self.batch_size,
            device=self.device,
            guide=self.guide,
        )

    def generator(self, seed: int, keys: Sequence[int]) -> SampleGenerator:
        """All randomness of the pictures with these keys."""
        return SampleGenerator(seed=seed, keys=torch.tensor(keys, device=self.device))

    def noise(self, generator: SampleGenerator) -> Latent:
        """What these pictures start from."""
        return generator.fork("image").normal(*self.latent_shape)

    @torch.no_grad()
    def sample(
        self,
        generator: SampleGenerator,
        inputs: Sequence[str | int],
        conditions: Conditions,
        *,
        z_t: Latent | None = None,
        start: float = 1.0,
        around: Callable[[Guidance], Guidance] | None = None,
        on_step: Callable[[int, Latent], None] | None = None,
    ) -> Latent:
        """Latents, one for each input.

        z_t: to start from, in place of the generator's noise.
        start: the time of `z_t`, and on_step: both as of `Sampler`.
        around: changes the field that the sampler integrates, as `rfdit.sampler.fields` does.
        """
        sampler = copy.copy(self.sampler)
        if around is not None:
            sampler.guidance = around(sampler.guidance)
        with self._autocast():
            cond: Condition = conditions(inputs)
            away = conditions.away(inputs)
            z_t = self.noise(generator) if z_t is None else z_t
            z0 = sampler(
                self.network.backbone,
                z_t,
                cond,
                away,
                start=start,
                generator=generator.fork("sde"),
                on_step=on_step,
            )
        self.sampler.evaluations = sampler.evaluations
        return z0

    @torch.no_grad()
    def encode(self, images: UInt8[Tensor, "b 3 H W"]) -> Latent:
        """The latents of pictures, without a draw."""
        return self.autoencoder.from_moments(self.autoencoder.moments(to_float(images.to(self.device))))

    def decode(self, latents: Latent) -> UInt8[Tensor, "b 3 H W"]:
        """Pictures of latents, on the CPU."""
        slices = latents.split(self.decode_batch or len(latents))
        return torch.cat([to_uint8(self.autoencoder.decode(part)).cpu() for part in slices])

    def with_sampler(self, sampler: Sampler) -> "Pipeline":
        """The same network, sampled in another way."""
        other = copy.copy(self)
        other.sampler = sampler
        return other

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)
