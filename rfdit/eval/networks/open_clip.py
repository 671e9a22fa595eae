"""CLIP's image features through open_clip, for CMMD, CLIP score and Frechet distances."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import normalize

from rfdit.eval.networks.feature_network import (
    arithmetic,
    check_precision,
    vit_input,
    vit_resize,
    weights_dtype,
)
from rfdit.images import parse_size
from rfdit.storage.checksum import sha256_of
from rfdit.text_encoder.pretrained import create_open_clip, open_clip_weights


class OpenCLIPFeatures(nn.Module):
    """CLIP, a `CaptionNetwork` with one output: `image`, a unit vector in the space of images and captions.

    model: open_clip's name; CMMD uses ViT-L-14-336-quickgelu with pretrained=openai.
    pretrained: one of the model's tags, or a file (safetensors, or a checkpoint that loads as weights only).
    precision: fp32, tf32 or bf16.

    Raises ValueError for an unknown name or tag, and for weights that are another model's or cannot be
    downloaded.
    """

    outputs = ("image",)

    def __init__(self, *, model: str, pretrained: str, precision: str = "fp32") -> None:
        super().__init__()
        import open_clip

        check_precision(precision)
        try:
            file = open_clip_weights(model, pretrained, node="network")
        except OSError as error:
            raise ValueError(str(error)) from None
        self.name, self.precision, self.sha256 = f"open_clip {model}", precision, sha256_of(Path(file))
        with torch.random.fork_rng(devices=[]):  # open_clip draws weights before it loads these
            clip = create_open_clip(model, file, node="network")
        clip = clip.requires_grad_(False).eval().to(weights_dtype(precision))
        self._clip, self._tokenize = clip, open_clip.get_tokenizer(model)
        self._size = parse_size(clip.visual.image_size, setting=f"image_size of open_clip {model}")
        self.resize = vit_resize(self._size)

    def forward(self, images: UInt8[Tensor, "b 3 H W"]) -> dict[str, Float[Tensor, "b d"]]:
        """Unit vectors; raises ValueError unless the images are RGB bytes."""
        with arithmetic(self.precision, images.device):
            visual = self._clip.visual
            x = vit_input(images, self._size, visual.image_mean, visual.image_std)
            return {"image": normalize(self._clip.encode_image(x.to(weights_dtype(self.precision))).float())}

    def captions(self, captions: Sequence[str]) -> Float[Tensor, "b d"]:
        """Unit vectors; captions longer than the model's context are truncated."""
        device = next(self.parameters()).device
        with arithmetic(self.precision, device):
            ids = self._tokenize(list(captions)).to(device)
            return normalize(self._clip.encode_text(ids).float())
