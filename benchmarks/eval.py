"""Images per second from pixels to FID's features and moments, compared with other tools.

    python benchmarks/eval.py --weights pt_inception-2015-12-05.pth
    pip install --target peers --no-deps clean-fid pytorch-fid && PYTHONPATH=peers python benchmarks/eval.py ...

All take the same uint8 images, already in memory and on the device, in batches of the same size, in turns, in
one process. The comparison covers resizing, the network, and the statistics of the features. torch-fidelity,
pytorch-fid and clean-fid collect features as their own commands do and compute one covariance at the end; rfdit
accumulates moments. The weights of clean-fid and pytorch-fid cannot be downloaded offline, so both get those of
--weights, which have the same shapes. They resize in their own ways (clean-fid before the network, with Pillow,
which is timed as well).

On a GPU the others compute float32 convolutions in TF32, PyTorch's default, so compare them with rfdit tf32;
rfdit fp32 is true fp32.

First, the peak memory of rfdit after a pass over N images and after one over 4 N more is printed, which does
not depend on N. Then follow the medians of images/s, with the ratio to rfdit in the same round.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from rfdit.eval.metrics.moments import FeatureMoments, sums
from rfdit.eval.networks.inception import InceptionFeatures

BASELINE = "rfdit fp32"
# One pass over the images, in batches, to the mean and covariance of their features.
Pass = Callable[[Iterable[Tensor]], object]


def rfdit_pass(network: InceptionFeatures) -> Pass:
    def run(batches: Iterable[Tensor]) -> FeatureMoments:
        total: list[Tensor] = []
        for batch in batches:
            added = sums(network(batch)["pool"])
            total = [a + b for a, b in zip(total, added)] if total else [*added]
        return FeatureMoments.from_sums(*total)

    return run


def collected(features_of: Callable[[Tensor], Tensor]) -> Pass:
    """A pass that collects features on the CPU and computes their covariance with numpy, as all three tools do."""

    @torch.no_grad()
    def run(batches: Iterable[Tensor]) -> object:
        features = np.concatenate([features_of(batch).cpu().numpy() for batch in batches])
        return features.mean(0), np.cov(features, rowvar=False)

    return run


def torch_fidelity_pass(weights: Path, device: torch.device) -> Pass:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3("theirs", ["2048"], feature_extractor_weights_path=str(weights))
    network.to(device)
    return collected(lambda batch: network(batch)[0])


def pytorch_fid_pass(weights: Path, device: torch.device) -> Pass:
    import pytorch_fid.inception as peer

    peer.load_state_dict_from_url = lambda *_, **__: torch.load(weights, weights_only=True)
    network = peer.InceptionV3([3]).to(device).eval()
    return collected(lambda batch: network(batch.float() / 255)[0].flatten(1))


def clean_fid_pass(weights: Path, device: torch.device) -> Pass:
    import cleanfid.inception_pytorch as peer
    from cleanfid.resize import make_resizer

    peer.load_state_dict_from_url = lambda *_, **__: torch.load(weights, weights_only=True)
    network = peer.InceptionV3([3], resize_input=False).to(device).eval()
    resize = make_resizer("PIL", False, "bicubic", (299, 299))

    def features_of(batch: Tensor) -> Tensor:
        images = batch.permute(0, 2, 3, 1).cpu().numpy()
        resized = np.stack([resize(image) for image in images]).transpose(0, 3, 1, 2)
        return network(torch.from_numpy(resized).to(batch.device) / 255)[0].flatten(1)

    return collected(features_of)


def contenders(weights: Path, device: torch.device) -> dict[str, Pass]:
    """A pass for each installed tool; prints which are left out."""
    found: dict[str, Pass] = {}
    for precision in ("fp32", "tf32", "bf16"):
        if precision != "tf32" or device.type == "cuda":
            network = InceptionFeatures(weights=str(weights), precision=precision).to(device)
            found[f"rfdit {precision}"] = rfdit_pass(network)
    peers = {
        "torch-fidelity": torch_fidelity_pass,
        "pytorch-fid": pytorch_fid_pass,
        "clean-fid": clean_fid_pass,
    }
    for name, make in peers.items():
        try:
            found[name] = make(weights, device)
        except ImportError as error:
            print(f"{name} is left out: {error}")
    return found


def images_on(device: torch.device, n: int, side: int, batch_size: int) -> list[UInt8[Tensor, "b 3 H W"]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)
    return list(images.to(device).split(batch_size))


def seconds(run: Pass, batches: list[Tensor], device: torch.device) -> float:
    _finish(device)
    start = time.perf_counter()
    run(batches)
    _finish(device)
    return time.perf_counter() - start


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def memory_growth(run: Pass, n: int, side: int, batch_size: int, device: torch.device) -> None:
    """Print the peak memory after a pass over n images and after one over 4 n more, drawn as they are needed."""
    peaks = []
    for count in (n, 4 * n):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        run(_drawn(count, side, batch_size, device))
        _finish(device)
        peaks.append(
            torch.cuda.max_memory_allocated() / 2**20
            if device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        )
    print(
        f"peak memory: {peaks[0]:.0f} MiB after {n} images, {peaks[1]:.0f} MiB after {4 * n} more "
        f"({'+' if peaks[1] >= peaks[0] else ''}{peaks[1] - peaks[0]:.0f} MiB)"
    )


def _drawn(n: int, side: int, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    for start in range(0, n, batch_size):
        size = (min(batch_size, n - start), 3, side, side)
        yield torch.randint(0, 256, size, dtype=torch.uint8).to(device)


def compare(passes: dict[str, Pass], batches: list[Tensor], device: torch.device, *, repeats: int) -> None:
    """Print the images/s of each pass, and its speed relative to rfdit."""
    count = sum(map(len, batches))
    times: dict[str, list[float]] = {name: [] for name in passes}
    for run in passes.values():
        run(batches[:1] * 2)  # warm-up
    for _ in range(repeats):
        for name, run in passes.items():
            times[name].append(seconds(run, batches, device))
    print(f"\n{count} images in batches of {len(batches[0])} on {device}, median of {repeats} rounds")
    print(f"{'':16s} {'images/s':>9s} {'best':>9s} {'to rfdit':>9s}")
    for name, took in times.items():
        # Ratios within each round, since other work on the machine slows a whole round.
        ratio = statistics.median(base / own for base, own in zip(times[BASELINE], took))
        print(f"{name:16s} {count / statistics.median(took):9.1f} {count / min(took):9.1f} {ratio:9.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights", type=Path, required=True, help="weights of FID's Inception with torch-fidelity's names"
    )
    parser.add_argument("--images", type=int, default=64, help="number of images in each pass")
    parser.add_argument("--side", type=int, default=256, help="side of the images")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    passes = contenders(args.weights, device)
    memory_growth(passes[BASELINE], args.images, args.side, args.batch_size, device)
    compare(passes, images_on(device, args.images, args.side, args.batch_size), device, repeats=args.repeats)


if __name__ == "__main__":
    main()
