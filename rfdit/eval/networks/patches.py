"""Vectors for the patches of an image, from frozen vision networks: the teachers of `auxiliary=repa`."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from rfdit.eval.networks.feature_network import arithmetic, check_images, vit_input
from rfdit.eval.networks.inception import InceptionFeatures
from rfdit.limits import Count
from rfdit.pretrained.frozen import Frozen
from rfdit.pretrained.weights_file import load_weights


class ViTPatches:
    """The patch tokens of a vision transformer of timm, such as a DINOv2 or DINOv3, after its last norm.

    model: timm's name. weights: file, safetensors or one that loads as weights only.
    image_size: images are resized to it, bicubic with antialiasing. 224 with patches of 14 pixels gives the 16 x 16
        tokens that a DiT with patch 2 has of latents of 256 pixels at downsampling 8.
    dtype: auto (bf16 where it is fast), fp32 or bf16.
    Raises ValueError for a model that timm does not have as a vision transformer, and for weights of another one.
    """

    def __init__(self, *, model: str, weights: str, image_size: Count = 224, dtype: str = "auto") -> None:
        import timm
        from timm.models.vision_transformer import checkpoint_filter_fn

        if model not in timm.list_models():
            raise ValueError(f"auxiliary.teacher.model={model} is not a model of timm")
        state = load_weights(Path(weights).expanduser(), setting=f"auxiliary.teacher.weights={weights}")
        with torch.random.fork_rng(devices=[]):  # timm draws weights before these are loaded
            vit: Any = timm.create_model(model, img_size=image_size, num_classes=0)
        if not hasattr(vit, "forward_features") or not hasattr(vit, "num_prefix_tokens"):
            raise ValueError(f"auxiliary.teacher.model={model} is not a vision transformer of timm")
        try:
            vit.load_state_dict(checkpoint_filter_fn(state, vit))
        except (RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"auxiliary.teacher.weights={weights} does not hold weights of {model}: {reason}"
            ) from None
        self.name, self.width = f"timm {model} {image_size}", vit.num_features
        self._size, self._prefix = (image_size, image_size), vit.num_prefix_tokens
        self._mean, self._std = vit.pretrained_cfg["mean"], vit.pretrained_cfg["std"]
        self._frozen = Frozen(vit, dtype=dtype, setting="auxiliary.teacher.dtype")

    def weights_digest(self) -> str:
        """As of `Pretrained`."""
        return self._frozen.weights_digest()

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """As of `Pretrained`."""
        return self._frozen.dtype_on(device)

    def __call__(self, images: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b f rows columns"]:
        dtype = self._frozen.dtype_on(images.device)
        vit: Any = self._frozen.on(images.device, dtype)
        x = vit_input(images, self._size, self._mean, self._std)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            tokens = vit.forward_features(x.to(dtype))[:, self._prefix :].float()  # (b, n, f)
        rows, columns = (n // p for n, p in zip(self._size, vit.patch_embed.patch_size))
        return tokens.transpose(1, 2).unflatten(2, (rows, columns))


class InceptionPatches:
    """FID's Inception at its 17 x 17 grid of 768 channels: a teacher whose weights are small and widely at hand.

    weights: as for `InceptionFeatures`.
    """

    width = 768

    def __init__(self, *, weights: str | None = None) -> None:
        network = InceptionFeatures(weights=weights, outputs=("spatial",))
        self.name = network.name
        self._frozen = Frozen(network, dtype="fp32", setting="auxiliary.teacher.dtype")

    def weights_digest(self) -> str:
        """As of `Pretrained`."""
        return self._frozen.weights_digest()

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """As of `Pretrained`."""
        return torch.float32

    def __call__(self, images: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b f rows columns"]:
        check_images(images)
        network: Any = self._frozen.on(images.device, torch.float32)
        with arithmetic("fp32", images.device):
            return network.grid(images)
