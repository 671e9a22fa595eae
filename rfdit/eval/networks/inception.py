"""FID's Inception network: torch-fidelity's port of the TensorFlow graph of 2015."""

import io
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from rfdit.eval.networks.feature_network import arithmetic, check_images, check_precision, weights_dtype
from rfdit.pretrained.weights_file import load_weights
from rfdit.storage.checksum import sha256_of

OUTPUTS = ("pool", "spatial", "logits")
# torch-fidelity's layers in order. The first part ends at what sFID reads, the graph's mixed_6 (17 x 17).
TO_SPATIAL = (
    "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2",
    "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d",
)  # fmt: skip
TO_POOL = ("Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c")
SPATIAL_CHANNELS = 7  # of the graph's mixed_6/conv, the block's first branch: 7 x 17 x 17 = 2023 numbers


class InceptionFeatures(nn.Module):
    """Inception, a `FeatureNetwork`; resizes images of any size to 299 x 299 as TensorFlow 1 did.

    Batch norms are folded into the convolutions, which changes features by rounding only.

    weights: file; None takes torch-fidelity's from torch.hub's cache, or downloads it.
    outputs: some of pool (2048, for FID, KID, precision and recall), spatial (2023, for sFID, in the order
        of TensorFlow's channels-last) and logits (1008, without bias, for the Inception Score).
    precision: fp32, or tf32 or bf16, which are faster and say so in the protocol.

    Raises ValueError for weights that are another network's, lack the classes that `logits` needs, or
    are missing and cannot be downloaded.
    """

    name = "inception-2015-12-05"
    resize = "bilinear to 299 x 299 as TensorFlow 1 (torch-fidelity)"
    classes: Tensor | None

    def __init__(
        self, *, weights: str | None = None, outputs: Sequence[str] = ("pool",), precision: str = "fp32"
    ) -> None:
        super().__init__()
        check_precision(precision)
        if not outputs or not set(outputs) <= set(OUTPUTS):
            raise ValueError(f"network.outputs={list(outputs)}: give some of {', '.join(OUTPUTS)}")
        self.outputs, self.precision = tuple(outputs), precision
        file = inception_weights() if weights is None else Path(weights).expanduser()
        # Read before the network is built, so that missing weights are reported at once.
        state = load_weights(file, setting=f"network.weights={weights or 'null'}")
        self.sha256 = sha256_of(file)
        net = _network(state, file)
        if "logits" in outputs and not net.fc.weight.any():
            raise ValueError(
                f"network.weights: the last layer of {file} is zeros, so it gives no Inception Score; leave out "
                "that metric and the output logits, or use torch-fidelity's own weights"
            )
        layers = [*TO_SPATIAL, *(TO_POOL if self.outputs != ("spatial",) else ())]
        self.layers = nn.ModuleDict({layer: getattr(net, layer) for layer in layers})
        self.register_buffer("classes", net.fc.weight.detach().clone() if "logits" in outputs else None)
        self.requires_grad_(False).eval()
        _fold_batch_norms(self.layers)
        self.layers.to(weights_dtype(precision))
        self.to(memory_format=torch.channels_last)

    def forward(self, images: UInt8[Tensor, "b 3 H W"]) -> dict[str, Float[Tensor, "b d"]]:
        """Features by output; raises ValueError unless the images are RGB bytes."""
        check_images(images)
        features = {}
        with arithmetic(self.precision, images.device):
            x = self.grid(images)
            if "spatial" in self.outputs:
                features["spatial"] = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1).float()
            if self.outputs != ("spatial",):
                for layer in TO_POOL:
                    x = self.layers[layer](x)
                features["pool"] = x.float().mean((2, 3))
            if self.classes is not None:
                features["logits"] = features["pool"] @ self.classes.T
        return {output: features[output] for output in self.outputs}

    def grid(self, images: UInt8[Tensor, "b 3 H W"]) -> Float[Tensor, "b 768 17 17"]:
        """The graph's mixed_6, before `spatial` takes a part of it."""
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

        x = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(299, 299), align_corners=False)
        x = ((x - 128) / 128).to(weights_dtype(self.precision), memory_format=torch.channels_last)
        for layer in TO_SPATIAL:
            x = self.layers[layer](x)
        return x


def _network(state: dict[str, Tensor], file: Path) -> Any:
    """torch-fidelity's module with these weights."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # It unpickles whatever the file holds, so it gets a copy of what was read as weights only.
    trusted = io.BytesIO()
    torch.save(state, trusted)
    trusted.seek(0)
    try:
        with torch.random.fork_rng(devices=[]):  # it draws weights before it loads these
            return FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=trusted)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"network.weights: {file} does not hold weights of FID's Inception: {reason}"
        ) from None


def _fold_batch_norms(module: nn.Module) -> None:
    """Folds each convolution's batch norm into its weights and a bias."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval
    from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d

    for child in module.modules():
        if isinstance(child, BasicConv2d):
            child.conv, child.bn = fuse_conv_bn_eval(child.conv, child.bn), nn.Identity()


def inception_weights() -> Path:
    """torch-fidelity's file of weights, from torch.hub's cache or downloaded to it.

    Raises ValueError that says which file to put where.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    name = URL_INCEPTION_V3.rpartition("/")[2]
    file = Path(torch.hub.get_dir()) / "checkpoints" / name
    if file.is_file():
        return file
    try:
        # A request with a timeout first: the download has none.
        urllib.request.urlopen(urllib.request.Request(URL_INCEPTION_V3, method="HEAD"), timeout=10).close()
        file.parent.mkdir(parents=True, exist_ok=True)
        sha256 = name.removesuffix(".pth").rpartition("-")[2]
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(file), hash_prefix=sha256, progress=False)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"FID's Inception needs its weights, and they cannot be downloaded from here ({error}): download "
            f"{URL_INCEPTION_V3} on a machine with network and put it at {file}, or set network.weights=FILE"
        ) from None
    return file
