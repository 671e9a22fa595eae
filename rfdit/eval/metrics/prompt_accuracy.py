"""Prompt accuracy: how many images of the embedded shapes show what their prompts say."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torchmetrics import Metric

from rfdit.data.shapes import scenes
from rfdit.data.shapes.scenes import CENTRE, OFFSETS, RELATIONS, THINGS, Scene, Thing, parse

# The relations that name each image of two things once; the other two are their mirror images.
PAIRED = ("left of", "above")


@lru_cache(maxsize=8)
def _coverages(centre: tuple[int, int], resolution: int) -> Float[Tensor, "size shape offset H W"]:
    """The share of each pixel that a thing around `centre` covers, for every size, shape and jitter."""
    return torch.from_numpy(
        np.array(
            [
                [
                    [scenes.coverage(Thing(size, "red", shape), centre, o, resolution) for o in OFFSETS]
                    for shape in scenes.SHAPES
                ]
                for size in scenes.SIZES
            ]
        )
    )


def _region(centre: tuple[int, int], resolution: int) -> tuple[slice, slice]:
    """The (rows, columns) that belong to the thing around `centre`: the whole image, or a half."""
    x, y = (
        slice(0, resolution)
        if at == scenes.SIDE // 2
        else slice(0, resolution // 2)
        if at < scenes.SIDE // 2
        else slice(resolution // 2, resolution)
        for at in centre
    )
    return y, x


def _distances(images: UInt8[Tensor, "b 3 H W"], centre: tuple[int, int]) -> Float[Tensor, "b thing"]:
    """Squared distance of a region of the images to each thing around `centre`, at its best jitter.

    With x the region less the background, m a thing's coverage and c its colour less the
    background, |x - m c|^2 = |x|^2 - 2 <x, m c> + |m|^2 |c|^2: colours share their products <x, m>.
    """
    rows, columns = _region(centre, images.shape[-1])
    covered = _coverages(centre, images.shape[-1])[..., rows, columns].to(images.device)
    background = torch.tensor(scenes.BACKGROUND, device=images.device) / 255
    colours = torch.tensor(list(scenes.COLOURS.values()), device=images.device) / 255 - background
    x = images[..., rows, columns].float() / 255 - background[:, None, None]
    inner = torch.einsum("bchw,sohwj->bcsoj", x, covered.movedim(2, -1))  # j: jitter
    matched = torch.einsum("bcsoj,kc->bskoj", inner, colours)  # k: colour
    size_of_thing = covered.square().sum((-2, -1))[:, None] * colours.square().sum(1)[:, None, None]
    distances = x.square().sum((1, 2, 3)).view(-1, 1, 1, 1, 1) - 2 * matched + size_of_thing
    return distances.amin(-1).flatten(1)


def nearest_scenes(images: UInt8[Tensor, "b 3 H W"]) -> list[Scene]:
    """For each image the scene that, with the best jitter, renders nearest in squared distance.

    Exact over every scene up to rounding to bytes: two things stand in disjoint halves, so each half is
    searched alone. The scenes say "left of" or "above".
    Raises ValueError for images that are not square, or whose side is not a multiple of 32.
    """
    if images.shape[-1] != images.shape[-2]:
        raise ValueError(f"images of {tuple(images.shape[-2:])} are not square, as images of scenes are")
    relations: list[str | None] = [None, *PAIRED]
    totals, things = [], []
    for relation in relations:
        centres = (CENTRE,) if relation is None else RELATIONS[relation]
        nearest = [_distances(images, centre).min(1) for centre in centres]
        totals.append(torch.stack([found.values for found in nearest]).sum(0))
        things.append(torch.stack([found.indices for found in nearest], dim=1).tolist())
    best: list[int] = torch.stack(totals).argmin(0).tolist()
    return [Scene(tuple(THINGS[k] for k in things[r][i]), relations[r]) for i, r in enumerate(best)]


class PromptAccuracy(Metric):
    """Shares of prompts whose image's nearest scene is right; NaN over no prompts.

    colour, shape, size: among prompts with one thing, those whose nearest scene has one thing, with
        that colour (shape, size).
    relation: among prompts with two things, those whose nearest scene has two things with the
        prompt's colours and shapes in the prompt's relation, in either wording, whatever their sizes.
    scene: among all prompts, those whose nearest scene is the prompt's, sizes included.
    """

    full_state_update = False
    names = ("colour", "shape", "relation", "size", "scene")
    tested: Tensor
    correct: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("tested", torch.zeros(len(self.names), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("correct", torch.zeros(len(self.names), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, images: UInt8[Tensor, "b 3 H W"], prompts: Sequence[str]) -> None:
        """Counts a batch; raises ValueError for prompts that describe no scene, see also `nearest_scenes`."""
        tested, correct = judge(images, prompts)
        self.tested += tested.sum(0).to(self.tested.device)
        self.correct += correct.sum(0).to(self.correct.device)

    def compute(self) -> dict[str, Tensor]:
        """Each name's share."""
        return shares(self.tested, self.correct)


def shares(tested: Int[Tensor, "name"], correct: Int[Tensor, "name"]) -> dict[str, Tensor]:
    """correct / tested, by the names of `PromptAccuracy`."""
    return dict(zip(PromptAccuracy.names, correct / tested, strict=True))


def judge(
    images: UInt8[Tensor, "b 3 H W"], prompts: Sequence[str]
) -> tuple[UInt8[Tensor, "b name"], UInt8[Tensor, "b name"]]:
    """1 for each of `PromptAccuracy.names` that a prompt tests, and 1 for each that its image has right."""
    tested = torch.zeros(len(prompts), len(PromptAccuracy.names), dtype=torch.uint8)
    correct = tested.clone()
    for i, (prompt, shown) in enumerate(zip(prompts, nearest_scenes(images), strict=True)):
        for name, is_correct in _judge(parse(prompt).canonical(), shown).items():
            tested[i, PromptAccuracy.names.index(name)] = 1
            correct[i, PromptAccuracy.names.index(name)] = is_correct
    return tested, correct


def _judge(prompted: Scene, shown: Scene) -> dict[str, bool]:
    """The tests that the prompt sets, and whether the image passes each; both scenes are canonical."""
    verdict = {"scene": prompted == shown}
    if prompted.relation is None:
        thing, found = prompted.things[0], shown.things[0]
        for name in ("colour", "shape", "size"):
            verdict[name] = shown.relation is None and getattr(thing, name) == getattr(found, name)
    else:
        same = [(a.colour, a.shape) == (b.colour, b.shape) for a, b in zip(prompted.things, shown.things)]
        verdict["relation"] = prompted.relation == shown.relation and all(same)
    return verdict
