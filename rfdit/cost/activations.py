"""The memory of a forward and a backward pass apart from the weights, estimated without computing them."""

import copy
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rfdit.batch import Condition
from rfdit.protocols import Backbone


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors made under it while they live; `peak` is the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.finalize[..., Any]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in given and id(storage) not in self._known:
                    self._count(storage)
        return out

    def _count(self, storage: Any) -> None:
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        self._known[id(storage)] = weakref.finalize(storage, self._drop, id(storage), storage.nbytes())

    def _drop(self, key: int, nbytes: int) -> None:
        if self._known.pop(key, None) is not None:
            self.live -= nbytes

    def forget(self, tensor: Tensor) -> None:
        """Stop counting a tensor."""
        storage = tensor.untyped_storage()
        self._drop(id(storage), storage.nbytes())


def pass_bytes(
    backbone: Backbone, z_t: Tensor, t: Tensor, cond: Condition, *, autocast: torch.dtype | None
) -> int:
    """The peak memory of a forward and a backward pass apart from the weights and their gradients, in bytes.

    It counts every tensor that the eager passes hold at once: those that autograd saves, the casts of
    weights under autocast, recomputed and temporary results. It does not count the workspace of kernels,
    the reserve of an allocator, or the savings of compilation. With real tensors the passes are computed;
    with fake ones they cost nothing.
    """
    trained = [p for p in backbone.parameters() if p.requires_grad]
    live = LiveBytes()
    hooks = [p.register_post_accumulate_grad_hook(lambda p: live.forget(p.grad)) for p in trained]
    try:
        with live:
            # Without a cache, as in Lightning, since every weight is used once.
            with torch.autocast(
                z_t.device.type, dtype=autocast, enabled=autocast is not None, cache_enabled=False
            ):
                loss = backbone(z_t, t, cond).square().mean()
            loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
        for p in trained:
            p.grad = None
    return live.peak


def estimate_pass_bytes(
    backbone: Backbone,
    latent: tuple[int, int, int],
    cond: Condition,
    *,
    batch_size: int,
    autocast: torch.dtype | None,
) -> int:
    """`pass_bytes` of a backbone on the meta device, traced with fake CPU tensors.

    latent: (c, h, w). cond: the condition of one sample; only its shapes matter.
    """

    def fake(x: Tensor | None) -> Tensor | None:
        return None if x is None else torch.empty(batch_size, *x.shape[1:], dtype=x.dtype)

    with FakeTensorMode(allow_non_fake_inputs=False):
        weights: dict[int, object] = {
            id(p): nn.Parameter(torch.empty(p.shape, dtype=p.dtype), requires_grad=p.requires_grad)
            for p in backbone.parameters()
        }
        network = copy.deepcopy(backbone, weights)
        pooled = fake(cond.pooled)
        assert pooled is not None
        return pass_bytes(
            network,
            torch.empty(batch_size, *latent),
            torch.empty(batch_size),
            Condition(pooled=pooled, tokens=fake(cond.tokens), mask=fake(cond.mask)),
            autocast=autocast,
        )
