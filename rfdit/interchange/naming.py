"""The tensors of one network under two sets of names, ours and theirs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Size, Tensor, nn

State = dict[str, Tensor]
Shapes = Mapping[str, Size]


@dataclass(frozen=True)
class Stack:
    """One of our tensors, which is one or several of theirs, one above the other.

    A convolution's kernel counts as the matrix of its flattened rows, so that it can be a linear layer's.
    swapped: the tensors of theirs whose upper and lower half are exchanged.
    """

    ours: str
    theirs: tuple[str, ...]
    swapped: frozenset[str] = frozenset()


def linear(ours: str, *theirs: str, swapped: Iterable[str] = ()) -> list[Stack]:
    """The weight and the bias of a linear layer of ours that consists of theirs."""
    return [
        Stack(
            f"{ours}.{part}", tuple(f"{t}.{part}" for t in theirs), frozenset(f"{s}.{part}" for s in swapped)
        )
        for part in ("weight", "bias")
    ]


def to_ours(stacks: Iterable[Stack], theirs: Mapping[str, Tensor], shapes: Shapes) -> State:
    """Our state dict from theirs; shapes: of our tensors.

    Raises ValueError if a tensor is missing or has another size.
    """
    state = {}
    for stack in stacks:
        if missing := [name for name in stack.theirs if name not in theirs]:
            raise ValueError(f"there is no {missing[0]}, which {stack.ours} is made of")
        rows = torch.cat([_swap(_rows(theirs[name]), name in stack.swapped) for name in stack.theirs])
        shape = shapes[stack.ours]
        if rows.numel() != shape.numel():
            raise ValueError(f"{', '.join(stack.theirs)} do not fill {stack.ours} of shape {list(shape)}")
        state[stack.ours] = rows.reshape(shape)
    return state


def to_theirs(stacks: Iterable[Stack], ours: Mapping[str, Tensor], shapes: Shapes) -> State:
    """Their state dict from ours, the inverse of `to_ours`; shapes: of their tensors."""
    state = {}
    for stack in stacks:
        heights = [shapes[name][0] for name in stack.theirs]
        parts = ours[stack.ours].reshape(sum(heights), -1).split(heights)
        for name, part in zip(stack.theirs, parts):
            state[name] = _swap(part, name in stack.swapped).reshape(shapes[name]).contiguous()
    return state


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, Size]:
    """The shape of every tensor of a state dict."""
    return {name: tensor.shape for name, tensor in state.items()}


def check_weights(path: Path, module: nn.Module, state: Mapping[str, Tensor], prefix: str = "") -> None:
    """Raises ValueError, naming one, if tensors of a state dict from `path` are missing, too many or of another shape.

    prefix: prefix of the module's names in the state dict; other names are ignored.
    """
    expected = {prefix + name: list(shape) for name, shape in shapes_of(module.state_dict()).items()}
    found = {name: list(x.shape) for name, x in state.items() if name.startswith(prefix)}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{path} is damaged: its weights do not fit its configuration; expected for {name}: "
                f"{expected.get(name, 'nothing')}, found: {found.get(name, 'nothing')}"
            )


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(len(tensor), -1)


def _swap(rows: Tensor, swapped: bool) -> Tensor:
    return rows.roll(len(rows) // 2, 0) if swapped else rows
