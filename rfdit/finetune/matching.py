"""Weights of one network in another: which are taken as they are, resized, left as they were drawn, or not used."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from rfdit.checkpoint.saved_run import SavedRun
from rfdit.conditioning import TakesClassesByName
from rfdit.counted import counted
from rfdit.images import parse_size
from rfdit.model.layers.resizing import Patches, ResizesPatches, ResizesPositions
from rfdit.network import Network

Capability = TypeVar("Capability")


@dataclass(frozen=True)
class Given:
    """The weights of a saved model, and the settings that their shapes depend on; None where they are not known.

    grid: rows and columns of its tokens.
    """

    state: dict[str, Tensor]
    patches: Patches | None = None
    grid: tuple[int, int] | None = None
    class_names: Sequence[str] | None = None

    @classmethod
    def of(cls, saved: SavedRun, weights: str) -> "Given":
        """Raises ValueError for weights that the model does not have."""
        channels, *sides = saved.latent_shape
        patch = saved.config["model"].get("patch_size")
        known = type(patch) is int and patch > 0
        height, width = parse_size(sides, setting="model.input_size")
        return cls(
            state=saved.weights(weights),
            patches=Patches(patch, channels) if known else None,
            grid=(height // patch, width // patch) if known else None,
            class_names=saved.class_names,
        )


@dataclass
class Fit:
    """What became of the weights, by the names of tensors.

    taken: without a change. changed, initial, unused: with a few words on how, or why. computed: tensors that
        are not learned.
    parameters: the number of each tensor's values, of the network's or, for unused ones, of those given.
    """

    taken: list[str] = field(default_factory=list)
    changed: dict[str, str] = field(default_factory=dict)
    initial: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    computed: list[str] = field(default_factory=list)
    parameters: dict[str, int] = field(default_factory=dict)

    def count(self, names: Sequence[str]) -> int:
        """The values of all tensors of these names."""
        return sum(self.parameters[name] for name in names)

    @property
    def total(self) -> int:
        """The learned values of the network."""
        return self.count([*self.taken, *self.changed, *self.initial])

    @property
    def share(self) -> float:
        """The share of them that were given, resized ones included."""
        return self.count([*self.taken, *self.changed]) / max(1, self.total)


@torch.no_grad()
def fit(network: Network, given: Given, *, resize_patches: bool, class_names: Sequence[str] | None) -> Fit:
    """Copies into a network what fits of the given weights.

    Tensors of the same name and shape are taken. Learned positions of another grid are interpolated. Layers of
    other patches or channels are resized if `resize_patches` says so. Rows of a table of classes go by the names
    of the classes, if both sides have names. The rest is left as it is.

    class_names: those of the network's classes, by number.
    """
    found = Fit()
    for name, own in network.state_dict().items():
        found.parameters[name] = own.numel()
        theirs = given.state.get(name)
        if _is_computed(network, name):
            found.computed.append(name)
            if theirs is not None and not (theirs.shape == own.shape and torch.equal(theirs, own)):
                found.unused[name] = "this run computes them"
                found.parameters[name] = theirs.numel()
        elif theirs is None:
            found.initial[name] = "not among the weights"
        else:
            _take(found, network, name, own, given, resize_patches, class_names)
    for name in given.state.keys() - network.state_dict().keys():
        found.unused[name], found.parameters[name] = "not part of this network", given.state[name].numel()
    return found


def _take(
    found: Fit,
    network: Network,
    name: str,
    own: Tensor,
    given: Given,
    resize_patches: bool,
    class_names: Sequence[str] | None,
) -> None:
    """Copies one tensor that both have, if it fits in one way or another."""
    theirs = given.state[name]
    module = next(_modules(network, name, TakesClassesByName), None)
    there, here = given.class_names, class_names
    of_classes = there and here and theirs.shape[1:] == own.shape[1:] and len(theirs) == len(there) + 1
    if module and of_classes and there and here and list(there) != list(here):
        own.copy_(module.from_classes(theirs, there, here))
        new = [each for each in here if each not in set(there)]
        others = f", and {len(new)} new ({', '.join(new[:3])}{', ...' if len(new) > 3 else ''})"
        found.changed[name] = f"{counted(len(here) - len(new), 'class', 'classes')} by name" + (
            others if new else ""
        )
        return
    if theirs.shape == own.shape:
        own.copy_(theirs)
        found.taken.append(name)
        return
    resized, why = None, f"{_shape(theirs)} there, {_shape(own)} here"
    if (positions := next(_modules(network, name, ResizesPositions), None)) and given.grid:
        if theirs.ndim == 2 and len(theirs) == given.grid[0] * given.grid[1]:
            resized = positions.from_grid(theirs, given.grid)
    elif (reads := next(_modules(network, name, ResizesPatches), None)) and given.patches:
        if not resize_patches:
            why += "; init.resize_patches=true resizes it"
        else:
            resized = _resized(reads, theirs, given.patches)
    elif module is not None:
        why += "; classes are taken by name where both sides name them"
    if resized is None or resized.shape != own.shape:
        found.initial[name] = why
        found.unused[name] = why
    else:
        own.copy_(resized)
        found.changed[name] = f"{_shape(theirs)} to {_shape(own)}"


def _resized(module: ResizesPatches, theirs: Tensor, patches: Patches) -> Tensor | None:
    sides = patches.size**2 * patches.channels
    return module.from_patches(theirs, patches) if sides in theirs.shape or theirs.ndim == 1 else None


def _modules(network: nn.Module, name: str, capability: type[Capability]) -> Iterator[Capability]:
    """The modules on the way to a tensor that have a capability, the innermost first."""
    parts = name.split(".")[:-1]
    for length in range(len(parts), 0, -1):
        module = network.get_submodule(".".join(parts[:length]))
        if isinstance(module, capability):
            yield module


def _is_computed(network: nn.Module, name: str) -> bool:
    positions = next(_modules(network, name, ResizesPositions), None)
    return positions is not None and not positions.fixed_grid


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))
