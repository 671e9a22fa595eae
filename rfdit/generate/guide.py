"""The second network of autoguidance, from a checkpoint of its own."""

from typing import Protocol, runtime_checkable

from rfdit.autoencoder.contract import LatentContract
from rfdit.batch import Condition, Latent, Time
from rfdit.checkpoint.saved_run import SavedRun
from rfdit.network import Network
from rfdit.sampler import Guidance, HasGuide
from rfdit.sampler.guidance import innermost


@runtime_checkable
class CheckpointGuide(Protocol):
    """A guide whose network is loaded from a checkpoint, together with the main network."""

    ckpt: str
    weights: str
    network: Network | None

    def check(self, guide: SavedRun, main: SavedRun) -> None:
        """Raises ValueError for a checkpoint that does not fit the main one."""
        ...


class Guide:
    """`guidance.guide`: the network that `guidance=autoguidance` moves away from (arXiv 2406.02507).

    ckpt, weights: as for sample.py. network: loaded and set together with the main network.
    """

    def __init__(self, *, ckpt: str, weights: str = "ema") -> None:
        self.ckpt, self.weights = ckpt, weights
        self.network: Network | None = None

    def __call__(self, z_t: Latent, t: Time, cond: Condition) -> Latent:
        if self.network is None:
            raise ValueError(
                f"guidance.guide.ckpt={self.ckpt} is loaded by sample.py only; use another guidance"
            )
        return self.network.backbone(z_t, t, cond)

    def check(self, guide: SavedRun, main: SavedRun) -> None:
        """Raises ValueError for a model of other latents, or of other inputs, than the main one."""
        latents = LatentContract.from_dict(guide.latents).differences(LatentContract.from_dict(main.latents))
        found = [f"latents.{name}={a} (there {b})" for name, (a, b) in latents.items()]
        if guide.num_classes != main.num_classes:
            found.append(f"it knows {_inputs(guide.num_classes)} (there {_inputs(main.num_classes)})")
        if found:
            raise ValueError(
                f"guidance.guide.ckpt={self.ckpt} does not fit ckpt={main.path}: {', '.join(found)}; give another "
                "training of the same task"
            )


def _inputs(num_classes: int | None) -> str:
    return "captions" if num_classes is None else f"{num_classes} classes"


def find_guide(guidance: Guidance) -> CheckpointGuide | None:
    """The guide of autoguidance, which may be in an interval; None for other guidances."""
    guidance = innermost(guidance)
    guide = guidance.guide if isinstance(guidance, HasGuide) else None
    return guide if isinstance(guide, CheckpointGuide) else None
