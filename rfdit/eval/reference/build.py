"""References built from real images in one pass, in constant memory except for the features that are kept."""

import hashlib
from collections.abc import Collection, Iterable, Iterator

import torch
from jaxtyping import UInt8
from torch import Tensor

from rfdit.eval.metrics.moments import FeatureMoments, sums
from rfdit.eval.networks.feature_network import FeatureNetwork, check_finite
from rfdit.eval.reference.reference import Reference


def build_reference(
    images: Iterable[UInt8[Tensor, "3 H W"]],
    network: FeatureNetwork,
    *,
    data: str,
    device: torch.device,
    batch_size: int,
    keep: Collection[int] = (),
) -> Reference:
    """Statistics of images by every output of the network.

    data: the source of the images, in words. keep: indices of the images whose features are kept.
    Raises ValueError for fewer than two images, and for images of several sizes.
    """
    network.to(device)
    totals: dict[str, list[Tensor]] = {}
    kept: dict[str, list[Tensor]] = {output: [] for output in network.outputs}
    checksum, count = hashlib.sha256(), 0
    size: tuple[int, int] | None = None
    for batch in _batches(images, batch_size):
        size = (batch.shape[2], batch.shape[3])
        checksum.update(batch.contiguous().numpy().data)
        rows = [row for row in range(len(batch)) if count + row in keep]
        count += len(batch)
        for output, features in network(batch.to(device)).items():
            check_finite(features, output)
            kept[output].append(features[rows].cpu())
            added = sums(features)
            totals[output] = [a + b for a, b in zip(totals[output], added)] if output in totals else [*added]
    if size is None:
        raise ValueError("there are no images")
    return Reference(
        network=network.name,
        weights_sha256=network.sha256,
        resize=network.resize,
        precision=network.precision,
        data=data,
        data_sha256=checksum.hexdigest(),
        image_size=size,
        moments={
            output: FeatureMoments.from_sums(*(x.cpu() for x in total)) for output, total in totals.items()
        },
        features={output: torch.cat(rows) for output, rows in kept.items()} if keep else {},
    )


def _batches(images: Iterable[UInt8[Tensor, "3 H W"]], batch_size: int) -> Iterator[UInt8[Tensor, "b 3 H W"]]:
    batch: list[Tensor] = []
    shape: torch.Size | None = None
    for image in images:
        shape = shape or image.shape
        if image.shape != shape:
            raise ValueError(
                f"images have the sizes {tuple(shape[1:])} and {tuple(image.shape[1:])}; a reference needs one size"
            )
        batch.append(image)
        if len(batch) == batch_size:
            yield torch.stack(batch)
            batch = []
    if batch:
        yield torch.stack(batch)
