"""Forward passes in which some blocks see only some tokens."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rfdit.model.layers.embeddings import token_grid
from rfdit.model.layers.rope import Rotation
from rfdit.protocols import Auxiliary, Backbone, Route, RoutesTokens, Routing, StandsFor, class_name
from rfdit.randomness import SampleGenerator


def routed_network(backbone: Backbone) -> RoutesTokens | None:
    """The network whose `route` decides for a backbone; None if its blocks see all tokens always."""
    network = backbone.network if isinstance(backbone, StandsFor) else backbone
    return network if isinstance(network, RoutesTokens) else None


@contextmanager
def routed(backbone: Backbone, route: Route | None) -> Iterator[None]:
    """Forward passes of a backbone go by a route in this context."""
    if route is None:
        yield
        return
    network = routed_network(backbone)
    assert network is not None, "`check_routing` refuses other backbones"
    network.route = route
    try:
        yield
    finally:
        network.route = None


def check_routing(routing: Routing, backbone: Backbone, auxiliary: Auxiliary | None) -> None:
    """Raises ValueError for a backbone whose blocks always see all tokens, for blocks that it does not have, and for an
    auxiliary loss on the states of some tokens alone.
    """
    if routed_network(backbone) is None:
        raise ValueError(
            f"routing needs blocks that can do without some of the tokens, and those of {class_name(backbone)} cannot; "
            "use model=dit or model=mmdit, or leave routing out"
        )
    first, last = routing.blocks(len(backbone.blocks))
    if auxiliary is not None and first <= auxiliary.block <= last:
        raise ValueError(
            f"auxiliary.block={auxiliary.block} sees only some of the tokens, as all blocks from {first} to {last} do "
            "with this routing; use a block before or behind them"
        )


def draw_route(
    routing: Routing | None, backbone: Backbone, latent_size: Sequence[int], *, generator: SampleGenerator
) -> Route | None:
    """The route of a batch through a backbone in a training step; None if all tokens see all blocks.

    latent_size: height and width of its latents. generator: that of its step, which has the keys of its samples.
    """
    if routing is None:
        return None
    tokens = math.prod(token_grid(latent_size, backbone.patch_size))
    kept = routing.kept(tokens, generator=generator.fork("route"))
    return None if kept is None else Route(*routing.blocks(len(backbone.blocks)), kept)


class Passage:
    """The image's tokens on their way through the blocks of one forward pass, with what belongs to each of them.

        x = passage.enter(number, x)
        x = passage.leave(number, block(x, modulation, passage.rotation))

    Before the first block of a route, tokens that are not kept are set aside, and after the last one they are put
    back as they were. Nothing happens without a route.

    rotation, mask: of the tokens that the next block sees. In the mask, the image's tokens come first.
    """

    def __init__(
        self, route: Route | None, rotation: Rotation | None, mask: Bool[Tensor, "b m"] | None = None
    ) -> None:
        self.rotation, self.mask, self._route = rotation, mask, route
        self._of_all = rotation, mask

    def enter(self, number: int, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b k d"]:
        """Those of the tokens x that block `number` sees.

        Raises ValueError if the route is that of a batch of another size.
        """
        if self._route is None or number != self._route.first:
            return x
        kept = self._route.kept
        if len(kept) != len(x):
            raise ValueError(f"a route of {len(kept)} samples does not fit a batch of {len(x)}")
        self._whole = x
        if self.rotation is not None:
            self.rotation = self.rotation.of(kept)
        if self.mask is not None:  # no token of the image is padding, so any of them may leave the front
            self.mask = self.mask[:, x.shape[1] - kept.shape[1] :]
        return x.gather(1, _indices(kept, x))

    def leave(self, number: int, x: Float[Tensor, "b k d"]) -> Float[Tensor, "b n d"]:
        """The tokens x that come out of block `number`, among those that were set aside."""
        if self._route is None or number != self._route.last:
            return x
        self.rotation, self.mask = self._of_all
        dtype = torch.promote_types(x.dtype, self._whole.dtype)  # autocast may have changed it
        return self._whole.to(dtype).scatter(1, _indices(self._route.kept, x), x.to(dtype))


def _indices(kept: Int[Tensor, "b k"], x: Tensor) -> Int[Tensor, "b k d"]:
    """The numbers of tokens, for all numbers of each token."""
    return kept[..., None].expand(-1, -1, x.shape[-1])
