"""The trained part of a run: a backbone and the conditioner that feeds it."""

from torch import nn

from rfdit.conditioning import Conditioner
from rfdit.protocols import Auxiliary, Backbone

AUXILIARY = "auxiliary"  # how the names of parameters begin that only training needs


class Network(nn.Module):
    """Backbone and conditioner as one module, which optimiser, EMA and checkpoints share.

    auxiliary: a loss on states within the backbone; its layers are trained, sharded and resumed with the others, and
        are not part of the model that is sampled or exported.
    """

    def __init__(
        self, *, backbone: Backbone, conditioner: Conditioner, auxiliary: Auxiliary | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.conditioner = conditioner
        self.auxiliary = auxiliary
