"""The states of tokens within a backbone, for losses that read them."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from rfdit.protocols import Backbone


class BlockStates:
    """Keeps the output of one block of a backbone, until it is taken.

    Call `of` before the block is compiled, since a compiled block does not see later hooks. Of blocks with several
    outputs it is the first, the tokens of the image.
    """

    def __init__(self) -> None:
        self._state: Tensor | None = None

    def of(self, backbone: Backbone, number: int) -> None:
        """Keep the output of a block from now on. number: that of the block, from 1; raises ValueError for others."""
        if not 1 <= number <= len(backbone.blocks):
            raise ValueError(
                f"auxiliary.block={number} is not one of the {len(backbone.blocks)} blocks; give 1 to "
                f"{len(backbone.blocks)}"
            )
        backbone.blocks[number - 1].register_forward_hook(self._keep)

    def take(self) -> Float[Tensor, "b n d"]:
        """The state of the last forward pass with gradients."""
        assert self._state is not None
        state, self._state = self._state, None
        return state

    def _keep(self, block: nn.Module, inputs: Any, output: Any) -> None:
        self._state = output[0] if isinstance(output, tuple) else output
