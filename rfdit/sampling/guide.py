"""The second network of autoguidance, from a checkpoint of its own."""

from rfdit.autoencoder.contract import LatentContract
from rfdit.batch import Condition, Latent, Time
from rfdit.conditioning import Conditioner
from rfdit.network import Network
from rfdit.sampler import Autoguidance, Guidance, GuidanceInterval
from rfdit.training.checkpoint import SavedRun


class Guide:
    """`guidance.guide`: the network that `guidance=autoguidance` moves away from (arXiv 2406.02507).

    ckpt, weights: as of sample.py. network: the weights, put here when the main network is known.
    """

    def __init__(self, *, ckpt: str, weights: str = "ema") -> None:
        self.ckpt, self.weights = ckpt, weights
        self.network: Network | None = None

    def __call__(self, z_t: Latent, t: Time, cond: Condition) -> Latent:
        if self.network is None:
            raise ValueError(
                f"guidance.guide.ckpt={self.ckpt} is loaded by sample.py alone; use another guidance"
            )
        return self.network.backbone(z_t, t, cond)

    @property
    def conditioner(self) -> Conditioner:
        """What makes conditions for its network."""
        assert self.network is not None
        return self.network.conditioner

    def check(self, guide: SavedRun, main: SavedRun) -> None:
        """Raises ValueError for a model of other latents, or of other inputs, than the main one."""
        latents = LatentContract.from_dict(guide.latents).differences(LatentContract.from_dict(main.latents))
        found = [f"latents.{name}={a} (there {b})" for name, (a, b) in latents.items()]
        mine, theirs = (saved.config["conditioner"].get("num_classes") for saved in (guide, main))
        if mine != theirs:
            found.append(f"it knows {_inputs(mine)} (there {_inputs(theirs)})")
        if found:
            raise ValueError(
                f"guidance.guide.ckpt={self.ckpt} does not fit ckpt={main.path}: {', '.join(found)}; give another "
                "training of the same task"
            )


def _inputs(num_classes: int | None) -> str:
    return "captions" if num_classes is None else f"{num_classes} classes"


def find_guide(guidance: Guidance) -> Guide | None:
    """The guide of autoguidance, which may be in an interval; None for other guidances."""
    if isinstance(guidance, GuidanceInterval):
        return find_guide(guidance.inside)
    guide = guidance.guide if isinstance(guidance, Autoguidance) else None
    return guide if isinstance(guide, Guide) else None
