"""DINOv2's features through timm, for Frechet distances that agree better with people than FID."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from rfdit.eval.networks.feature_network import (
    arithmetic,
    check_precision,
    vit_input,
    vit_resize,
    weights_dtype,
)
from rfdit.limits import Count
from rfdit.pretrained.weights_file import load_weights
from rfdit.storage.checksum import sha256_of


class DINOv2Features(nn.Module):
    """DINOv2, a `FeatureNetwork` with one output: `cls`, the class token after the last norm.

    FD_DINOv2 (arXiv 2306.04675) is the Frechet distance of it with ViT-L/14 at 224 pixels.

    model: timm's name. weights: file, safetensors or one that loads as weights only.
    image_size: input of the network in pixels, a multiple of 14. precision: fp32, tf32 or bf16.

    Raises ValueError for a model that is not a DINOv2, and for weights that are missing or another model's.
    """

    outputs = ("cls",)

    def __init__(
        self,
        *,
        weights: str,
        model: str = "vit_large_patch14_dinov2",
        image_size: Count = 224,
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        import timm
        from timm.models.vision_transformer import checkpoint_filter_fn

        check_precision(precision)
        if model not in timm.list_models("*dinov2*"):
            known = ", ".join(timm.list_models("*dinov2*"))
            raise ValueError(f"network.model={model} is not a DINOv2 of timm; use one of {known}")
        if image_size < 14 or image_size % 14:
            raise ValueError(
                f"network.image_size={image_size} is not a multiple of DINOv2's patch size 14; use 224"
            )
        file = Path(weights).expanduser()
        state = load_weights(file, setting=f"network.weights={weights}")
        self.name, self.precision, self.sha256 = f"timm {model} {image_size}", precision, sha256_of(file)
        with torch.random.fork_rng(devices=[]):  # timm draws weights before these are loaded
            vit: Any = timm.create_model(model, img_size=image_size, num_classes=0)
        try:
            # Renames Meta's own names and resamples the positions to the grid.
            vit.load_state_dict(checkpoint_filter_fn(state, vit))
        except (RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"network.weights: {file} does not hold weights of {model}: {reason}") from None
        self._vit: Any = vit.requires_grad_(False).eval().to(weights_dtype(precision))
        self._size = (image_size, image_size)
        self.resize = vit_resize(self._size)

    def forward(self, images: UInt8[Tensor, "b 3 H W"]) -> dict[str, Float[Tensor, "b d"]]:
        """Class tokens; raises ValueError unless the images are RGB bytes."""
        normal = self._vit.pretrained_cfg
        with arithmetic(self.precision, images.device):
            x = vit_input(images, self._size, normal["mean"], normal["std"])
            return {"cls": self._vit(x.to(weights_dtype(self.precision))).float()}
