"""Pictures from a rectified-flow transformer that rfdit trained. Needs torch and diffusers, not rfdit.

t = 0 is data and t = 1 is noise; the transformer predicts dz/dt = noise - data, at timesteps of 1000 t.
"""

# mypy: disable-error-code="attr-defined"
# diffusers imports its classes lazily, so that type checkers see empty ones.

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

Caption = tuple[Tensor, Tensor]  # tokens (1, l, d) and the pooled caption (1, p)


class RectifiedFlowPipeline(DiffusionPipeline):
    """What labels and captions have in common: from noise through the scheduler to pictures."""

    model_cpu_offload_seq = "text_encoder->transformer->vae"

    def noise(self, n: int, generator: Any, latents: Tensor | None) -> Tensor:
        """The latents given, or new ones (n, c, h, w)."""
        shape = (n, self.transformer.config.in_channels, self.config.latent_height, self.config.latent_width)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self._execution_device)
        if latents.shape != shape:
            raise ValueError(f"latents have the shape {tuple(latents.shape)}; {shape} is needed")
        return latents.to(self._execution_device, torch.float32)

    def integrate(self, field: Callable[[Tensor, Tensor], Tensor], latents: Tensor, steps: int) -> Tensor:
        """From noise to data in N steps of the scheduler; field: (z, timesteps) -> velocity."""
        # The scheduler's own times would end at 1/1000 instead of with a whole last step.
        sigmas = np.linspace(1, 1 / steps, steps)
        self.scheduler.set_timesteps(sigmas=sigmas, device=latents.device)
        for t in self.progress_bar(self.scheduler.timesteps):
            v = field(latents.to(self.transformer.dtype), t.expand(len(latents)))
            latents = self.scheduler.step(v.float(), t, latents).prev_sample
        return latents

    def finish(self, latents: Tensor, output_type: str, return_dict: bool) -> Any:
        """Latents to pictures: pil, np, pt, or the latents themselves (latent)."""
        images: Any = latents if output_type == "latent" else self.decode(latents)
        if output_type in ("np", "pil"):
            images = images.permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pictures in [0, 1]; without a vae the latents are pixels in [-1, 1]."""
        if self.vae is not None:
            shift = getattr(self.vae.config, "shift_factor", None) or 0.0
            raw = latents / self.vae.config.scaling_factor + shift
            latents = self.vae.decode(raw.to(self.vae.dtype)).sample
        return (latents.float() / 2 + 0.5).clamp(0, 1)


class LabelPipeline(RectifiedFlowPipeline):
    """Pictures of classes."""

    _optional_components = ["vae"]  # noqa: RUF012

    def __init__(
        self, transformer: Any, scheduler: Any, vae: Any, latent_height: int = 32, latent_width: int = 32
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
        self.register_to_config(latent_height=latent_height, latent_width=latent_width)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | list[int],
        num_inference_steps: int = 25,
        guidance_scale: float = 3.0,
        generator: Any = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """One picture for each label; a guidance_scale of 1 is no guidance."""
        labels = torch.as_tensor(class_labels, device=self._execution_device).reshape(-1)
        null = torch.full_like(labels, self.transformer.config.num_embeds_ada_norm)

        def field(z: Tensor, t: Tensor) -> Tensor:
            if guidance_scale == 1:
                return self.transformer(z, timestep=t, class_labels=labels).sample
            both = torch.cat([labels, null])
            c, u = self.transformer(
                z.repeat(2, 1, 1, 1), timestep=t.repeat(2), class_labels=both
            ).sample.chunk(2)
            return u + guidance_scale * (c - u)

        latents = self.integrate(field, self.noise(len(labels), generator, latents), num_inference_steps)
        return self.finish(latents, output_type, return_dict)


class CaptionPipeline(RectifiedFlowPipeline):
    """Pictures of captions.

    A caption's padding takes no part in attention, so each caption goes through the transformer with its
    own number of tokens, and guidance takes two evaluations. Without a text_encoder, captions are given as
    (tokens, pooled), in shapes (1, l, d) and (1, p), without padding.
    """

    _optional_components = ["vae", "text_encoder", "tokenizer"]  # noqa: RUF012

    def __init__(
        self,
        transformer: Any,
        scheduler: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        latent_height: int = 32,
        latent_width: int = 32,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )
        self.register_to_config(latent_height=latent_height, latent_width=latent_width)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | list[Caption],
        num_inference_steps: int = 25,
        guidance_scale: float = 3.0,
        negative_prompt: str | Caption = "",
        num_images_per_prompt: int = 1,
        generator: Any = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """num_images_per_prompt pictures for each caption; a guidance_scale of 1 is no guidance."""
        prompts: Any = [prompt] if isinstance(prompt, str) else prompt
        noise = self.noise(len(prompts) * num_images_per_prompt, generator, latents)
        away = None if guidance_scale == 1 else self.encode_prompt(negative_prompt)
        done = []
        for one, start in zip(prompts, noise.split(num_images_per_prompt)):
            field = self._field(self.encode_prompt(one), away, guidance_scale)
            done.append(self.integrate(field, start, num_inference_steps))
        return self.finish(torch.cat(done), output_type, return_dict)

    def encode_prompt(self, prompt: str | Caption) -> Caption:
        """A caption's tokens and their mean, of its real tokens alone."""
        if not isinstance(prompt, str):
            tokens, pooled = (x.to(self._execution_device, self.transformer.dtype) for x in prompt)
            return tokens, pooled
        if self.text_encoder is None:
            raise ValueError(
                "this folder has no text encoder: give each prompt as (tokens, pooled), of shapes (1, l, d) and "
                "(1, p) without padding, and negative_prompt too unless guidance_scale=1"
            )
        ids = self.tokenizer(prompt, truncation=True, max_length=self.text_encoder.config.length).input_ids
        tokens = self.text_encoder(torch.tensor([ids], device=self._execution_device))
        return tokens, tokens.mean(dim=1)

    def _field(
        self, caption: Caption, away: Caption | None, scale: float
    ) -> Callable[[Tensor, Tensor], Tensor]:
        def velocity(z: Tensor, t: Tensor, about: Caption) -> Tensor:
            tokens, pooled = (x.expand(len(z), *x.shape[1:]) for x in about)
            return self.transformer(
                z, encoder_hidden_states=tokens, pooled_projections=pooled, timestep=t
            ).sample

        def field(z: Tensor, t: Tensor) -> Tensor:
            c = velocity(z, t, caption)
            if away is None:
                return c
            u = velocity(z, t, away)
            return u + scale * (c - u)

        return field
