"""One network, two sets of names: which of our tensors are which of theirs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Size, Tensor, nn

State = dict[str, Tensor]
Shapes = Mapping[str, Size]


@dataclass(frozen=True)
class Stack:
    """One of our tensors is one or several of theirs, one above the other.

    A convolution's kernel counts as the matrix of its flattened rows, so that it can be a linear layer's.
    swapped: those of theirs whose upper and lower half have changed places.
    """

    ours: str
    theirs: tuple[str, ...]
    swapped: frozenset[str] = frozenset()


def linear(ours: str, *theirs: str, swapped: Iterable[str] = ()) -> list[Stack]:
    """The weight and the bias of a linear layer of ours that theirs make up."""
    return [
        Stack(
            f"{ours}.{part}", tuple(f"{t}.{part}" for t in theirs), frozenset(f"{s}.{part}" for s in swapped)
        )
        for part in ("weight", "bias")
    ]


def to_ours(stacks: Iterable[Stack], theirs: Mapping[str, Tensor], shapes: Shapes) -> State:
    """Our state dict from theirs; shapes: of our tensors.

    Raises ValueError where a tensor is missing or has another size.
    """
    state = {}
    for stack in stacks:
        if missing := [name for name in stack.theirs if name not in theirs]:
            raise ValueError(f"there is no {missing[0]}, which {stack.ours} is made of")
        rows = torch.cat([_swap(_rows(theirs[name]), name in stack.swapped) for name in stack.theirs])
        wanted = shapes[stack.ours]
        if rows.numel() != wanted.numel():
            raise ValueError(f"{', '.join(stack.theirs)} do not fill {stack.ours} of shape {list(wanted)}")
        state[stack.ours] = rows.reshape(wanted)
    return state


def to_theirs(stacks: Iterable[Stack], ours: Mapping[str, Tensor], shapes: Shapes) -> State:
    """Their state dict from ours, what `to_ours` undoes; shapes: of their tensors."""
    state = {}
    for stack in stacks:
        heights = [shapes[name][0] for name in stack.theirs]
        parts = ours[stack.ours].reshape(sum(heights), -1).split(heights)
        for name, part in zip(stack.theirs, parts):
            state[name] = _swap(part, name in stack.swapped).reshape(shapes[name]).contiguous()
    return state


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, Size]:
    """Of every tensor of a state dict."""
    return {name: tensor.shape for name, tensor in state.items()}


def check_weights(path: Path, module: nn.Module, state: Mapping[str, Tensor], prefix: str = "") -> None:
    """Raises ValueError, naming one, if tensors of a state dict from `path` are missing, too many or of another shape.

    prefix: of the module's names in the state dict; others are not looked at.
    """
    wanted = {prefix + name: list(shape) for name, shape in shapes_of(module.state_dict()).items()}
    found = {name: list(x.shape) for name, x in state.items() if name.startswith(prefix)}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"{path} is damaged: its weights do not fit its configuration, which for {name} wants "
                f"{wanted.get(name, 'nothing')}, and there is {found.get(name, 'nothing')}"
            )


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(len(tensor), -1)


def _swap(rows: Tensor, swapped: bool) -> Tensor:
    return rows.roll(len(rows) // 2, 0) if swapped else rows
