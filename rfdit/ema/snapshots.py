"""What power function averages were at some steps, from which averages of other lengths are made."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from rfdit.checksum import crc32_of_tensor


@dataclass(frozen=True)
class Snapshot:
    """What a snapshot says of itself.

    profile, std: the average that it is of. updates: how many steps that had seen; step: the run's.
    """

    profile: str
    std: float
    updates: int
    step: int


class Snapshots:
    """Writes the trained weights of power function averages every N steps and when training ends.

    They are float16, as in EDM2: its rounding, relative 5e-4, is not amplified by sums of few and small
    coefficients. Anything else of a network is in its checkpoints.
    """

    def __init__(self, *, folder: str, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise ValueError(f"callbacks.ema.snapshots.every_n_steps={every_n_steps} must be at least 1")
        self.folder, self.every_n_steps = Path(folder), every_n_steps

    def write(self, snapshot: Snapshot, weights: Mapping[str, Tensor], *, writes: bool) -> None:
        """One file, whole or not at all.

        writes: whether this rank does. All have to call this: shards are gathered, one tensor at a time.
        """
        halves: dict[str, Tensor] = {}
        for name, weight in weights.items():
            half = weight.detach().to(torch.float16)
            half = half.full_tensor() if isinstance(half, DTensor) else half
            if writes:
                halves[name] = half.cpu().contiguous()
        if not writes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{snapshot.profile}_{snapshot.step:08d}.safetensors"
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            said = {k: str(v) for k, v in asdict(snapshot).items()}
            save_file(halves, partial, metadata=said | {"crc32": str(checksum(halves))})
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def discard_after(self, step: int) -> None:
        """Removes those of later steps: a run that goes on from here takes these steps again."""
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
    """The snapshots in a folder by file; raises ValueError for a file that is none, or is damaged."""
    return {path: _read(path) for path in sorted(folder.glob("*.safetensors"))}


def _read(path: Path) -> Snapshot:
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata()
        return Snapshot(said["profile"], float(said["std"]), int(said["updates"]), int(said["step"]))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as a snapshot of an average ({type(error).__name__})"
        ) from None
