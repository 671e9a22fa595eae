"""Images from a rectified-flow transformer that rfdit trained. Needs torch and diffusers, not rfdit.

t = 0 is data and t = 1 is noise; the transformer predicts dz/dt = noise - data, at timesteps of 1000 t.
"""

# mypy: disable-error-code="attr-defined, misc"
# diffusers imports its classes lazily, so that type checkers see empty ones.

import inspect
import json
import math
import numbers
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

logger = logging.get_logger(__name__)
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class RectifiedFlowPipeline(DiffusionPipeline):
    """Images of captions, or of classes: what the transformer was trained with.

    vae: None where latents are pixels in [-1, 1].
    text_encoder, tokenizer: without them, captions are given as prompt_embeds.
    latent_height, latent_width: size of the latents. downsampling: pixels per latent pixel along one side.

    The model makes images of this one size. A caption's padding takes no part in attention, so that the
    captions of a batch go through the transformer in groups of the same number of tokens.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["vae", "text_encoder", "tokenizer"]  # noqa: RUF012
    # Read now, since diffusers imports a copy that every other pipeline.py replaces.
    _code = Path(__file__).read_text()

    def __init__(
        self,
        transformer: Any,
        scheduler: Any,
        vae: Any = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        latent_height: int = 32,
        latent_width: int = 32,
        downsampling: int = 1,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )
        self.register_to_config(
            latent_height=latent_height, latent_width=latent_width, downsampling=downsampling
        )
        self.vae_scale_factor = downsampling
        self.image_processor = VaeImageProcessor(vae_scale_factor=downsampling)
        self.num_classes: Any = getattr(transformer.config, "num_embeds_ada_norm", None)
        known = ["class_labels"] if self.num_classes else ["prompt_embeds", "pooled_prompt_embeds"]
        self._callback_tensor_inputs = ["latents", *known]
        self._guidance_scale, self._num_timesteps, self._interrupt = 1.0, 0, False

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | int | list[int] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 25,
        sigmas: list[float] | None = None,
        guidance_scale: float = 3.0,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        class_labels: int | list[int] | Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Tensor]], Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Generate num_images_per_prompt images for each prompt or class.

        prompt: captions, or numbers of classes for a model of classes, which class_labels also takes.
        height, width: pixels; only the model's own size is possible.
        sigmas: times from 1 downwards, one for each step, in place of equidistant ones.
        guidance_scale: turned off at 1 and below.
        negative_prompt: one for all prompts, or a list with one for each; the empty caption by default.
        latents: the noise to start from, (n, c, h, w).
        prompt_embeds, pooled_prompt_embeds: features of captions, (n, l, d) and (n, p), in place of prompt, with
            prompt_attention_mask, (n, l), where some have fewer tokens. negative_*: likewise.
        output_type: pil, np (n, h, w, 3), pt (n, 3, h, w), or latent.
        callback_on_step_end: called after each step as (pipeline, step, timestep, tensors) with the tensors that
            callback_on_step_end_tensor_inputs names; those that it returns in a dictionary are used on. With
            guidance, conditions begin with the negative ones.

        Raises ValueError for input that does not fit the model, and for images that are not finite.
        """
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        steps = num_inference_steps if sigmas is None else len(sigmas)
        self._check(height, width, steps, guidance_scale, num_images_per_prompt, output_type)
        if unknown := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(
                f"callback_on_step_end_tensor_inputs has {', '.join(sorted(unknown))}; use "
                f"{', '.join(self._callback_tensor_inputs)}"
            )
        self._guidance_scale, self._interrupt = float(guidance_scale), False
        positive = (prompt_embeds, pooled_prompt_embeds, prompt_attention_mask)
        negative = (negative_prompt_embeds, negative_pooled_prompt_embeds, negative_prompt_attention_mask)
        condition: dict[str, Tensor]
        mask: Tensor | None = None
        if self.num_classes is None:
            if class_labels is not None:
                raise ValueError("class_labels is given, but this model knows captions; give prompt")
            condition, mask = self._captions(prompt, negative_prompt, positive, negative)
        else:
            features = [negative_prompt, *positive, *negative]
            if any(value is not None for value in features):
                raise ValueError(
                    "this model knows classes, not captions; leave out negative_prompt and all *_embeds and masks"
                )
            condition = {"class_labels": self._labels(prompt, class_labels)}
        times = num_images_per_prompt
        condition = {name: x.repeat_interleave(times, dim=0) for name, x in condition.items()}
        mask = None if mask is None else mask.repeat_interleave(times, dim=0)
        n = len(next(iter(condition.values()))) // (2 if self.do_classifier_free_guidance else 1)
        z = self.prepare_latents(n, generator, latents)
        timesteps = self._timesteps(steps, sigmas)
        with self.progress_bar(total=len(timesteps)) as progress:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                z = self.scheduler.step(self._velocity(z, t, condition, mask), t, z, return_dict=False)[0]
                if callback_on_step_end is not None:
                    tensors = {"latents": z} | condition
                    given = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    returned = callback_on_step_end(self, i, t, given) or {}
                    z = returned.get("latents", z)
                    condition = {name: returned.get(name, x) for name, x in condition.items()}
                progress.update()
        images: Any = z
        if output_type != "latent":
            images = self.image_processor.postprocess(self.decode(z), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def encode_prompt(self, prompt: str | list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Captions to prompt_embeds (n, l, d), pooled_prompt_embeds (n, p) and prompt_attention_mask (n, l).

        The pooled caption is the mean of its tokens. What is longer than the text encoder reads is cut off, with
        a warning.
        """
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError(
                "this folder has no text encoder: give prompt_embeds and pooled_prompt_embeds, and unless "
                "guidance_scale=1 negative_prompt_embeds and negative_pooled_prompt_embeds too"
            )
        length, ids = self.text_encoder.config.length, []
        for caption in _captions_of("prompt", prompt):
            every = self.tokenizer(caption, verbose=False).input_ids
            if len(every) > length:
                lost = self.tokenizer.decode(every[length - 1 : -1])
                logger.warning(
                    f"the text encoder reads {length} tokens of a prompt, and this is cut off: {lost}"
                )
            ids.append(self.tokenizer(caption, truncation=True, max_length=length).input_ids)
        longest = max(map(len, ids))
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
        mask = torch.tensor([[i < len(row) for i in range(longest)] for row in ids])
        tokens = self.text_encoder(padded.to(self._execution_device))
        pooled = torch.stack([x[: len(row)].mean(dim=0) for x, row in zip(tokens, ids, strict=True)])
        return tokens, pooled, mask

    def prepare_latents(
        self, n: int, generator: torch.Generator | list[torch.Generator] | None, latents: Tensor | None
    ) -> Tensor:
        """The latents given, or noise, (n, c, h, w), float32 whatever the transformer's dtype."""
        shape = (n, self.transformer.config.in_channels, self.config.latent_height, self.config.latent_width)
        if isinstance(generator, list) and len(generator) != n:
            raise ValueError(
                f"generator has {len(generator)} entries for {n} images; give one for each, or one"
            )
        if latents is None:
            return randn_tensor(
                shape, generator=generator, device=self._execution_device, dtype=torch.float32
            )
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents have the shape {tuple(latents.shape)}; {shape} is needed")
        return latents.to(self._execution_device, torch.float32)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images in [-1, 1], float32; raises ValueError where these are not finite."""
        images = latents
        if self.vae is not None:
            shift = getattr(self.vae.config, "shift_factor", None) or 0.0
            raw = latents / self.vae.config.scaling_factor + shift
            images = self.vae.decode(raw.to(self.vae.dtype), return_dict=False)[0].float()
        if not bool(images.isfinite().all()):
            raise ValueError(
                f"the images are not finite in {self.transformer.dtype}; use torch_dtype=torch.bfloat16 or float32, "
                "or a smaller guidance_scale"
            )
        return images

    def save_config(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write the index, and before it the code of this pipeline and of parts that diffusers does not have."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pipeline.py").write_text(self._code)
        for name, module in self._own_parts().items():
            (folder / name).mkdir(exist_ok=True)
            shutil.copyfile(str(module.__file__), folder / name / f"{_stem(module)}.py")
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def to_json_string(self) -> str:
        """The index, which names files of code where diffusers would name modules of this process."""
        index = json.loads(super().to_json_string())
        index["_class_name"] = ["pipeline", type(self).__name__]
        for name, module in self._own_parts().items():
            index[name][0] = _stem(module)
        return json.dumps(index, indent=2, sort_keys=True) + "\n"

    def _own_parts(self) -> dict[str, Any]:
        """The modules of the parts whose code comes with this file."""
        siblings = type(self).__module__.rpartition(".")[0] + "."
        libraries = {name: self.config[name][0] or "" for name in self.components}
        return {
            name: sys.modules[library] for name, library in libraries.items() if library.startswith(siblings)
        }

    def _check(
        self,
        height: int | None,
        width: int | None,
        steps: int,
        guidance_scale: float,
        num_images_per_prompt: int,
        output_type: str,
    ) -> None:
        """Raises ValueError for settings that this model cannot follow."""
        own = [side * self.vae_scale_factor for side in (self.config.latent_height, self.config.latent_width)]
        size = [own[0] if height is None else height, own[1] if width is None else width]
        if size != own:
            raise ValueError(
                f"height={size[0]}, width={size[1]} is not possible: this model makes images of height={own[0]}, "
                f"width={own[1]}"
            )
        for name, value in (("num_inference_steps", steps), ("num_images_per_prompt", num_images_per_prompt)):
            if not isinstance(value, numbers.Integral) or value < 1:
                raise ValueError(f"{name}={value} must be a whole number of at least 1")
        if not math.isfinite(guidance_scale):
            raise ValueError(f"guidance_scale={guidance_scale} must be a finite number")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type={output_type!r} is unknown; use {', '.join(OUTPUT_TYPES)}")

    def _captions(
        self,
        prompt: Any,
        negative_prompt: Any,
        positive: tuple[Tensor | None, ...],
        negative: tuple[Tensor | None, ...],
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The condition, with guidance the negative one first, and the mask of its tokens, on the CPU."""
        sides = [self._features("", prompt, positive)]
        n = len(sides[0][0])
        if self.do_classifier_free_guidance:
            if negative[0] is None:
                away = "" if negative_prompt is None else negative_prompt
                negative_prompt = [away] * n if isinstance(away, str) else away
            sides.insert(0, self._features("negative_", negative_prompt, negative))
            if len(sides[0][0]) != n:
                raise ValueError(
                    f"negative_prompt has {len(sides[0][0])} entries and prompt has {n}; give as many"
                )
        longest = max(mask.shape[1] for _, _, mask in sides)
        padded = [F.pad(tokens, (0, 0, 0, longest - tokens.shape[1])) for tokens, _, _ in sides]
        condition = {
            "prompt_embeds": torch.cat(padded),
            "pooled_prompt_embeds": torch.cat([pooled for _, pooled, _ in sides]),
        }
        return condition, torch.cat([F.pad(mask, (0, longest - mask.shape[1])) for _, _, mask in sides])

    def _features(
        self, side: str, prompt: Any, given: tuple[Tensor | None, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, pooled captions and mask, of captions or of features that are given in their place."""
        tokens, pooled, mask = given
        if (tokens is None) == (prompt is None):
            raise ValueError(f"give {side}prompt or {side}prompt_embeds, and not both")
        if tokens is None:
            tokens, pooled, mask = self.encode_prompt(_captions_of(f"{side}prompt", prompt))
        if pooled is None or tokens.ndim != 3 or len(pooled) != len(tokens):
            raise ValueError(
                f"{side}prompt_embeds, of the shape (n, l, d), needs {side}pooled_prompt_embeds, of the shape (n, p)"
            )
        mask = torch.ones(tokens.shape[:2]) if mask is None else mask
        if mask.shape != tokens.shape[:2]:
            raise ValueError(
                f"{side}prompt_attention_mask has the shape {tuple(mask.shape)}; {tuple(tokens.shape[:2])} is needed"
            )
        device, dtype = self._execution_device, self.transformer.dtype
        return tokens.to(device, dtype), pooled.to(device, dtype), mask.to("cpu", torch.bool)

    def _labels(self, prompt: Any, class_labels: Any) -> Tensor:
        """The numbers of the classes, with guidance those of the null class first."""
        if (prompt is None) == (class_labels is None):
            raise ValueError("give class_labels, the numbers of the classes")
        given = prompt if class_labels is None else class_labels
        try:
            labels = torch.as_tensor(given).reshape(-1)
        except (TypeError, ValueError, RuntimeError):
            labels = torch.empty(0)
        integers = not (labels.is_floating_point() or labels.dtype == torch.bool)
        if not len(labels) or not integers or not bool(((labels >= 0) & (labels < self.num_classes)).all()):
            raise ValueError(
                f"class_labels={given!r}: give numbers of classes, from 0 to {self.num_classes - 1}"
            )
        labels = labels.to(self._execution_device, torch.long)
        if not self.do_classifier_free_guidance:
            return labels
        return torch.cat([torch.full_like(labels, self.num_classes), labels])

    def _timesteps(self, steps: int, sigmas: list[float] | None) -> Tensor:
        """Sets the scheduler's times; those that end at 0, where its own would end at 1/1000 before the last step."""
        settings: dict[str, Any] = {"num_inference_steps": steps}
        if "sigmas" in inspect.signature(self.scheduler.set_timesteps).parameters:
            settings = {"sigmas": np.linspace(1, 1 / steps, steps) if sigmas is None else sigmas}
        elif sigmas is not None:
            raise ValueError(f"sigmas is given, and {type(self.scheduler).__name__} takes none")
        self.scheduler.set_timesteps(**settings, device=self._execution_device)
        self._num_timesteps = len(self.scheduler.timesteps)
        return self.scheduler.timesteps

    def _velocity(self, z: Tensor, t: Tensor, condition: dict[str, Tensor], mask: Tensor | None) -> Tensor:
        """The guided velocity, float32; a callback may have turned guidance off, with or without its conditions."""
        guided = self.do_classifier_free_guidance
        inputs = (torch.cat([z, z]) if guided else z).to(self.transformer.dtype)
        condition = {name: x[-len(inputs) :] for name, x in condition.items()}
        v = self._predict(inputs, t, condition, mask).float()
        if not guided:
            return v
        u, c = v.chunk(2)
        return u + self._guidance_scale * (c - u)

    def _predict(self, z: Tensor, t: Tensor, condition: dict[str, Tensor], mask: Tensor | None) -> Tensor:
        """The transformer's output for each row, without the padding of captions."""
        if mask is None:
            return self.transformer(z, timestep=t.expand(len(z)), **condition, return_dict=False)[0]
        v, mask = torch.empty_like(z), mask[-len(z) :]
        for real in mask.unique(dim=0):
            rows = (mask == real).all(dim=1).nonzero().flatten().to(z.device)
            v[rows] = self.transformer(
                z[rows],
                timestep=t.expand(len(rows)),
                encoder_hidden_states=condition["prompt_embeds"][rows][:, real.to(z.device)],
                pooled_projections=condition["pooled_prompt_embeds"][rows],
                return_dict=False,
            )[0]
        return v


def _captions_of(name: str, prompt: Any) -> list[str]:
    """One or more captions as a list; raises ValueError for anything else."""
    captions = [prompt] if isinstance(prompt, str) else prompt
    if (
        not isinstance(captions, list | tuple)
        or not captions
        or not all(isinstance(x, str) for x in captions)
    ):
        raise ValueError(f"{name}={prompt!r}: give a caption, or a list of them")
    return list(captions)


def _stem(module: Any) -> str:
    """The name of a module's file."""
    return str(module.__name__).rpartition(".")[2]
