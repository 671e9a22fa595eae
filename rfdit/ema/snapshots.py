"""Snapshots of power function averages, from which averages of other lengths are made."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.distributed.tensor import DTensor

from rfdit.ema.profiles import power_of
from rfdit.limits import Count
from rfdit.storage.atomic import write_atomically
from rfdit.storage.checksum import crc32_of_tensor


@dataclass(frozen=True)
class Snapshot:
    """The metadata of a snapshot.

    profile, std: name and length of the average. updates: steps that it includes. step: step of the run.
    """

    profile: str
    std: float
    updates: int
    step: int


class Snapshots:
    """Writes the trained weights of power function averages every N steps and when training ends.

    They are float16, as in EDM2: its relative rounding of 5e-4 is not amplified by sums with few and
    small coefficients. All other weights of a network are in its checkpoints.
    """

    def __init__(self, *, folder: str, every_n_steps: Count) -> None:
        if every_n_steps < 1:
            raise ValueError(f"callbacks.ema.snapshots.every_n_steps={every_n_steps} must be at least 1")
        self.folder, self.every_n_steps = Path(folder), every_n_steps

    def write(self, snapshot: Snapshot, weights: Mapping[str, Tensor], *, writes: bool) -> None:
        """Writes one file atomically.

        writes: True on the rank that writes. All ranks must call it, since shards are gathered, one tensor
            at a time.
        """
        halves: dict[str, Tensor] = {}
        for name, weight in weights.items():
            half = weight.detach().to(torch.float16)
            half = half.full_tensor() if isinstance(half, DTensor) else half
            if writes:
                halves[name] = half.cpu().contiguous()
        if not writes:
            return
        path = self.folder / f"{snapshot.profile}_{snapshot.step:08d}.safetensors"
        metadata = {k: str(v) for k, v in asdict(snapshot).items()} | {"crc32": str(checksum(halves))}
        write_atomically(path, lambda file: file.write(save(halves, metadata)), durable=True)

    def discard_after(self, step: int) -> None:
        """Removes the snapshots of later steps, which a run that resumes here takes again."""
        for path, snapshot in read_snapshots(self.folder).items():
            if snapshot.step > step:
                path.unlink()


def checksum(weights: Mapping[str, Tensor]) -> int:
    """CRC-32 of the values, in the order of their names."""
    crc = 0
    for name in sorted(weights):
        crc = crc32_of_tensor(weights[name], crc)
    return crc


def read_snapshots(folder: Path) -> dict[Path, Snapshot]:
    """The snapshots in a folder, by file; raises ValueError for a file that is damaged or not a snapshot."""
    return {path: _read(path) for path in sorted(folder.glob("*.safetensors"))}


def _read(path: Path) -> Snapshot:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        snapshot = Snapshot(
            metadata["profile"], float(metadata["std"]), int(metadata["updates"]), int(metadata["step"])
        )
        power_of(snapshot.std, setting="its std")
        if not 0 < snapshot.updates <= snapshot.step:
            raise ValueError(
                f"its {snapshot.updates} updates and step {snapshot.step} do not belong together"
            )
        return snapshot
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as a snapshot of an average ({type(error).__name__})"
        ) from None
