"""Images from captions or labels, for training, evaluation and sampling alike."""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from rfdit.autoencoder.contract import Autoencoder
from rfdit.batch import Condition, Latent
from rfdit.conditioning import Conditioner, HasMicro, truncation
from rfdit.images import to_float, to_uint8
from rfdit.network import Network
from rfdit.processes.rank import is_rank_zero
from rfdit.randomness import START, SampleGenerator
from rfdit.sampler.conditions import Conditions
from rfdit.sampler.guidance import Guidance
from rfdit.sampler.sampler import Sampler


class NotFiniteError(ValueError):
    """Images with NaN or infinite values."""


class Pipeline:
    """A network, its autoencoder and a sampler.

    latent_shape: (c, h, w) of one sample.
    bf16: matrix products in bf16; the integration itself is always float32.
    batch_size: images that are sampled at once.
    decode_batch: images of a batch that are decoded at once, if memory is short; None decodes all.
    guide: under autoguidance, the conditioner of the network that it moves away from.

    Raises ValueError for a batch size below 1.
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
        """(height, width) of the images."""
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
    ) -> UInt8[Tensor, "n 3 H W"]:
        """One image per input, uint8, on the CPU.

        seed, first_key: image i starts from the noise of (seed, first_key + i), whatever the
            batch size or device.
        negative: a caption that guidance moves away from; the null condition by default.
        """
        with self.evaluating():
            conditions, images = self.conditions(inputs, negative=negative), []
            for start in range(0, len(inputs), self.batch_size):
                chunk = inputs[start : start + self.batch_size]
                keys = range(first_key + start, first_key + start + len(chunk))
                images.append(self.decode(self.sample(self.generator(seed, keys), chunk, conditions)))
            return torch.cat(images)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Context in which the network is in evaluation mode."""
        was_training = self.network.training
        self.network.eval()
        try:
            yield
        finally:
            self.network.train(was_training)

    def conditions(self, inputs: Sequence[str | int], *, negative: str | None = None) -> Conditions:
        """The conditions of these inputs, encoded when they are needed; warns of captions that are cut off."""
        if is_rank_zero() and (note := truncation(self.network.conditioner, [*inputs, negative])):
            warnings.warn(note, stacklevel=2)
        for conditioner in (self.network.conditioner, self.guide):
            micro = conditioner.micro_embedding() if isinstance(conditioner, HasMicro) else None
            if micro is not None:
                micro.image_size = self.image_size
        return Conditions(
            self.network.conditioner,
            inputs,
            negative=negative,
            group=self.batch_size,
            device=self.device,
            guide=self.guide,
        )

    def generator(self, seed: int, keys: Sequence[int]) -> SampleGenerator:
        """All randomness of the images with these keys."""
        return SampleGenerator(seed=seed, keys=torch.tensor(keys, device=self.device))

    def noise(self, generator: SampleGenerator) -> Latent:
        """The noise that these images start from, (b, c, h, w)."""
        return generator.fork(START).normal(*self.latent_shape)

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

        z_t: the latents to start from, in place of the generator's noise.
        start, on_step: the time of `z_t` and a function called after each step; see `Sampler`.
        around: wraps the guidance, as the classes of `rfdit.sampler.fields` do.
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
        """The latents of images: means, where the autoencoder gives distributions."""
        return self.autoencoder.from_moments(self.autoencoder.moments(to_float(images.to(self.device))))

    def decode(self, latents: Latent) -> UInt8[Tensor, "b 3 H W"]:
        """The images of latents, on the CPU.

        Raises NotFiniteError for images with NaN or infinity, which would become black.
        """
        images, finite = [], []
        for part in latents.split(self.decode_batch or len(latents)):
            decoded = self.autoencoder.decode(part)
            finite.append(part.isfinite().flatten(1).all(1) & decoded.isfinite().flatten(1).all(1))
            images.append(to_uint8(decoded).cpu())
        _require_finite(torch.cat(finite))
        return torch.cat(images)

    def unnormalised(self, latents: Latent) -> Latent:
        """Latents as the autoencoder gives them, before normalisation, float32 on the CPU.

        Raises NotFiniteError for NaN and infinity.
        """
        raw = self.autoencoder.contract.denormalise(latents.float())
        _require_finite(raw.isfinite().flatten(1).all(1))
        return raw.cpu()

    def with_sampler(self, sampler: Sampler) -> "Pipeline":
        """A pipeline of the same network with another sampler."""
        other = copy.copy(self)
        other.sampler = sampler
        return other

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)


def _require_finite(finite: Bool[Tensor, "n"]) -> None:
    if not finite.all():
        raise NotFiniteError(
            f"{int((~finite).sum())} of {len(finite)} images have values that are NaN or infinite, and cannot be "
            "used; use a lower guidance.scale, more sampler.steps, precision=fp32, or another checkpoint"
        )
