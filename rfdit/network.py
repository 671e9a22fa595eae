"""The trained part of a run: a backbone and the conditioner that feeds it."""

from torch import nn

from rfdit.conditioning import Conditioner
from rfdit.protocols import Auxiliary, Backbone, Objective, OwnsLayers

# The parts of a network that only training needs, with whose names those of their parameters begin.
TRAINING_ONLY = ("auxiliary", "objective")


def is_for_training_only(tensor: str) -> bool:
    """True for the name of a network's tensor that is not part of the model that is sampled."""
    return tensor.partition(".")[0] in TRAINING_ONLY


def layers_of(objective: Objective) -> nn.Module | None:
    """The layers that an objective trains; None if it has none.

    Raises ValueError if it has some that it does not name, which no optimiser would see.
    """
    layers = objective.layers if isinstance(objective, OwnsLayers) else None
    named = set() if layers is None else {id(p) for p in layers.parameters()}
    for name, part in getattr(objective, "__dict__", {}).items():
        if isinstance(part, nn.Module) and any(
            p.requires_grad and id(p) not in named for p in part.parameters()
        ):
            raise ValueError(
                f"objective={type(objective).__name__} has layers in `{name}` that nothing would train; give it a "
                "property `layers` that returns them (`OwnsLayers`), or freeze them"
            )
    return layers


class Network(nn.Module):
    """Backbone and conditioner as one module, which optimiser, EMA and checkpoints share.

    auxiliary: a loss on states within the backbone; its layers are trained, sharded and resumed with the others, and
        are not part of the model that is sampled or exported.
    objective: the layers of the objective, such as a learned weighting; likewise.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        conditioner: Conditioner,
        auxiliary: Auxiliary | None = None,
        objective: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.conditioner = conditioner
        self.auxiliary = auxiliary
        self.objective = objective
