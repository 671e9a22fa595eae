"""CLIP's image features through open_clip, for CMMD, CLIP score and Frechet distances."""

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import normalize

from rfdit.eval.features import arithmetic, check_precision, weights_dtype
from rfdit.eval.vit_input import resize_in_words, vit_input
from rfdit.eval.weights_file import sha256_of
from rfdit.text_encoder.pretrained import open_clip_weights


class OpenCLIPFeatures(nn.Module):
    """See `CaptionNetwork`. Its one output, `image`, is a unit vector in CLIP's joint space.

    model: open_clip's name; ViT-L-14-336-quickgelu with pretrained=openai is CMMD's.
    pretrained: one of the model's tags, or a file (safetensors, or a checkpoint that loads as weights only).
    precision: fp32, tf32 or bf16.

    Raises ValueError for an unknown name or tag, and for weights that are not the model's or cannot be
    downloaded.
    """

    outputs = ("image",)

    def __init__(self, *, model: str, pretrained: str, precision: str = "fp32") -> None:
        super().__init__()
        import open_clip

        check_precision(precision)
        if model not in open_clip.list_models():
            raise ValueError(f"network.model={model} is no model of open_clip; see open_clip.list_models()")
        try:
            file = Path(open_clip_weights(model, pretrained, node="network"))
        except OSError as error:
            raise ValueError(str(error)) from None
        self.name, self.precision, self.sha256 = f"open_clip {model}", precision, sha256_of(file)
        clip = _load(model, file).requires_grad_(False).eval().to(weights_dtype(precision))
        self._clip, self._tokenize = clip, open_clip.get_tokenizer(model)
        size = clip.visual.image_size
        self._size: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)
        self.resize = resize_in_words(self._size)

    def forward(self, images: UInt8[Tensor, "b 3 H W"]) -> dict[str, Float[Tensor, "b d"]]:
        """Unit vectors; raises ValueError for images that are no RGB bytes."""
        with arithmetic(self.precision, images.device):
            visual = self._clip.visual
            x = vit_input(images, self._size, visual.image_mean, visual.image_std)
            return {"image": normalize(self._clip.encode_image(x.to(weights_dtype(self.precision))).float())}

    def captions(self, captions: Sequence[str]) -> Float[Tensor, "b d"]:
        """Unit vectors; captions longer than the model's context are cut."""
        device = next(self.parameters()).device
        with arithmetic(self.precision, device):
            ids = self._tokenize(list(captions)).to(device)
            return normalize(self._clip.encode_text(ids).float())


def _load(model: str, file: Path) -> Any:
    import open_clip
    from safetensors import SafetensorError

    try:
        with torch.random.fork_rng(devices=[]):  # it draws weights before it loads them
            return open_clip.create_model(model, pretrained=str(file), pretrained_text=False)
    except (AssertionError, KeyError, RuntimeError, SafetensorError, UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"network.pretrained: {file} holds no weights of {model}, or none that load without unpickling "
            f"code: {reason}"
        ) from None
