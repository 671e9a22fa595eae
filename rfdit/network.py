"""What is trained: the backbone, and whatever of the conditioner has weights."""

from torch import nn

from rfdit.conditioning import Conditioner
from rfdit.protocols import Backbone


class Network(nn.Module):
    """The two trained parts under one roof: what EMA copies, checkpoints hold and optimisers see."""

    def __init__(self, *, backbone: Backbone, conditioner: Conditioner) -> None:
        super().__init__()
        self.backbone = backbone
        self.conditioner = conditioner
