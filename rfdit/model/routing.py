"""Forward passes in which some blocks see only some tokens."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rfdit.batch import Condition, Latent, Time
from rfdit.device import without_autocast
from rfdit.model.layers.embeddings import token_grid
from rfdit.model.layers.rope import Rotation
from rfdit.protocols import (
    Auxiliary,
    Backbone,
    Route,
    Routing,
    VelocityNetwork,
    class_name,
    unwrapped,
)
from rfdit.randomness import SampleGenerator


@runtime_checkable
class RoutesTokens(Protocol):
    """A backbone whose blocks need not see all tokens.

    route: the route of its next forward passes; None sends all tokens through all blocks.
    path: the first and the last of the blocks whose output is joined with their input by layers of its own, and who can
        be done without; None if it has no such layers.
    """

    route: Route | None
    path: tuple[int, int] | None


@runtime_checkable
class LeavesPathOut(Protocol):
    """A routing that leaves the joined path out for some samples."""

    def left_out(self, *, generator: SampleGenerator) -> Bool[Tensor, "b"] | None:
        """True for the samples that leave the path out; None if none does."""
        ...


def routed_network(backbone: VelocityNetwork) -> RoutesTokens | None:
    """The network within a backbone that routes tokens; None if its blocks always see all tokens."""
    network = unwrapped(backbone)
    return network if isinstance(network, RoutesTokens) else None


def _blocks(routing: Routing, backbone: Backbone) -> tuple[int, int]:
    network = routed_network(backbone)
    return routing.blocks(len(backbone.blocks), None if network is None else network.path)


@contextmanager
def routed(backbone: VelocityNetwork, route: Route | None) -> Iterator[None]:
    """Context in which a backbone's forward passes follow a route."""
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
    first, last = _blocks(routing, backbone)
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
    kept = routing.kept(token_grid(latent_size, backbone.patch_size), generator=generator.fork("route"))
    left_out = None
    if isinstance(routing, LeavesPathOut):
        left_out = routing.left_out(generator=generator.fork("path"))
    if kept is None and left_out is None:
        return None
    return Route(*_blocks(routing, backbone), kept, left_out)


def without_path(backbone: VelocityNetwork) -> VelocityNetwork:
    """The network as it is when the blocks of its joined path give nothing; they are not computed.

    Raises ValueError for a network without such a path.
    """
    network = routed_network(backbone)
    if network is None or network.path is None:
        raise ValueError(
            "guidance leaves out the blocks in the middle of the model, which knows no way without them; use "
            "guidance=cfg, or a model that was trained with model.outer_blocks"
        )
    path = network.path

    def velocity(z_t: Latent, t: Time, cond: Condition) -> Latent:
        none = torch.empty(len(z_t), 0, dtype=torch.int64, device=z_t.device)
        with routed(backbone, Route(*path, kept=none)):
            return backbone(z_t, t, cond)

    return velocity


class Join(nn.Module):
    """The output y of a path of blocks joined with its input x, W [x, y]; a mask token stands for what is missing.

    Shapes: x (b, n, d), y (b, k, d) of the tokens that are kept -> (b, n, d).
    The mask token is drawn from N(0, 0.02), and not trained (arXiv 2510.21986).
    """

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * width, width)
        self.token = nn.Parameter(0.02 * torch.randn(width), requires_grad=False)

    def forward(
        self, x: Float[Tensor, "b n d"], y: Float[Tensor, "b k d"], route: Route | None
    ) -> Float[Tensor, "b n d"]:
        if route is not None and route.kept is not None:
            # Not a view: it is written to. Its values are the token's, whichever dtype autocast has chosen.
            y = self.token.to(y.dtype).repeat(*x.shape[:2], 1).scatter(1, _indices(route.kept, y), y)
        if route is not None and route.left_out is not None:
            y = torch.where(route.left_out[:, None, None], self.token.to(y.dtype), y)
        dtype = torch.promote_types(x.dtype, y.dtype)
        # Outside of autocast, since what flows between blocks is float32 throughout.
        with without_autocast(x):
            joined = torch.cat([x.to(dtype), y.to(dtype)], dim=-1).to(self.linear.weight.dtype)
            return self.linear(joined).to(dtype)


class Passage:
    """The image's tokens on their way through the blocks of one forward pass, with what belongs to each of them.

        x = passage.enter(number, x)
        if passage.has_tokens:
            x = block(x, modulation, passage.rotation)
        x = passage.leave(number, x)

    Before the first block of a route, tokens that are not kept are set aside, and after the last one they are put
    back as they were, or all are joined with what they were before it. Without a route and a join nothing happens.

    rotation, mask: of the tokens that the next block sees. In the mask, the image's tokens come first.
    has_tokens: False where no token is kept.
    join, path: the layers behind a path of blocks, and its first and last block.
    """

    def __init__(
        self,
        route: Route | None,
        rotation: Rotation | None,
        mask: Bool[Tensor, "b m"] | None = None,
        *,
        join: Join | None = None,
        path: tuple[int, int] | None = None,
    ) -> None:
        self.rotation, self.mask, self.has_tokens = rotation, mask, True
        self._route, self._join, self._of_all = route, join, (rotation, mask)
        ends = (route.first, route.last) if route is not None else None
        if join is not None and ends not in (None, path):
            raise ValueError(f"a route of the blocks {ends} does not fit the joined path {path}")
        self._first, self._last = ends or path or (0, 0)  # no block has the number 0

    def enter(self, number: int, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b k d"]:
        """Those of the tokens x that block `number` sees.

        Raises ValueError if the route is that of a batch of another size.
        """
        if number != self._first:
            return x
        self._whole = x
        kept = None if self._route is None else self._route.kept
        if kept is None:
            return x
        if len(kept) != len(x):
            raise ValueError(f"a route of {len(kept)} samples does not fit a batch of {len(x)}")
        self.has_tokens = kept.shape[1] > 0
        if self.rotation is not None:
            self.rotation = self.rotation.of(kept)
        if self.mask is not None:  # no token of the image is padding, so any of them may leave the front
            self.mask = self.mask[:, x.shape[1] - kept.shape[1] :]
        return x.gather(1, _indices(kept, x))

    def leave(self, number: int, x: Float[Tensor, "b k d"]) -> Float[Tensor, "b n d"]:
        """The tokens x that come out of block `number`, among those that were set aside."""
        if number != self._last:
            return x
        self.has_tokens, (self.rotation, self.mask) = True, self._of_all
        if self._join is not None:
            return self._join(self._whole, x, self._route)
        if self._route is None or self._route.kept is None:
            return x
        dtype = torch.promote_types(x.dtype, self._whole.dtype)  # autocast may have changed it
        return self._whole.to(dtype).scatter(1, _indices(self._route.kept, x), x.to(dtype))


def _indices(kept: Int[Tensor, "b k"], x: Tensor) -> Int[Tensor, "b k d"]:
    """The numbers of tokens, for all numbers of each token."""
    return kept[..., None].expand(-1, -1, x.shape[-1])
