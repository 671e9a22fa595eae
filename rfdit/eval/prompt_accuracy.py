"""Whether pictures of the embedded world show what their prompts say."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torchmetrics import Metric

from rfdit.conditioning import Conditioner
from rfdit.data import scenes
from rfdit.data.scenes import CENTRE, OFFSETS, RELATIONS, THINGS, Scene, Thing, held_out_prompts, parse
from rfdit.eval.evaluation import Rows
from rfdit.eval.inputs import Wanted, caption_settings, check_captions

# The relations that name each picture of two things once; the other two are their mirror images.
PAIRED = ("left of", "above")


@lru_cache(maxsize=8)
def _coverages(centre: tuple[int, int], resolution: int) -> Float[Tensor, "size shape offset H W"]:
    """The pixels that a thing around `centre` covers, for every size, shape and jitter."""
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
    """The (rows, columns) that belong to the thing around `centre`: everything, or a half."""
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
    """For each image the scene whose picture, with the best jitter, is nearest in squared distance.

    Exact over every scene up to a picture's rounding to bytes: two things stand in disjoint halves,
    so each half is searched alone. The scenes say "left of" or "above".
    Raises ValueError for images that are not square, or no multiple of 32 wide.
    """
    if images.shape[-1] != images.shape[-2]:
        raise ValueError(f"images of {tuple(images.shape[-2:])} are not square, as pictures of scenes are")
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
    """Shares of prompts whose image's nearest scene is right; over no prompts, NaN.

    colour, shape, size: of the prompts with one thing, those whose nearest scene has one thing, and
        that of this colour (shape, size).
    relation: of the prompts with two things, those whose nearest scene has two things of the
        prompt's colours and shapes in the prompt's relation, in either wording, whatever their sizes.
    scene: of all prompts, those whose nearest scene is the prompt's, sizes included.
    """

    full_state_update = False
    right: Tensor
    asked: Tensor
    names = ("colour", "shape", "relation", "size", "scene")

    def __init__(self) -> None:
        super().__init__()
        self.add_state("right", torch.zeros(len(self.names), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("asked", torch.zeros(len(self.names), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, images: UInt8[Tensor, "b 3 H W"], prompts: Sequence[str]) -> None:
        """Counts a batch; raises ValueError for prompts that describe no scene, see also `nearest_scenes`."""
        asked, right = judge(images, prompts)
        self.asked += asked.sum(0).to(self.asked.device)
        self.right += right.sum(0).to(self.right.device)

    def compute(self) -> dict[str, Tensor]:
        """Each name's share."""
        return shares(self.asked, self.right)


def shares(asked: Int[Tensor, "name"], right: Int[Tensor, "name"]) -> dict[str, Tensor]:
    """How many of those that were asked for are right, by name."""
    return dict(zip(PromptAccuracy.names, right / asked, strict=True))


def judge(
    images: UInt8[Tensor, "b 3 H W"], prompts: Sequence[str]
) -> tuple[UInt8[Tensor, "b name"], UInt8[Tensor, "b name"]]:
    """For each image, which of `PromptAccuracy.names` its prompt asks for, and which of these are right."""
    asked = torch.zeros(len(prompts), len(PromptAccuracy.names), dtype=torch.uint8)
    right = asked.clone()
    for i, (prompt, shown) in enumerate(zip(prompts, nearest_scenes(images), strict=True)):
        for name, correct in _judge(parse(prompt).canonical(), shown).items():
            asked[i, PromptAccuracy.names.index(name)] = 1
            right[i, PromptAccuracy.names.index(name)] = correct
    return asked, right


def _judge(wanted: Scene, shown: Scene) -> dict[str, bool]:
    """What was asked for and whether it is there; both scenes are canonical."""
    verdict = {"scene": wanted == shown}
    if wanted.relation is None:
        thing, found = wanted.things[0], shown.things[0]
        for name in ("colour", "shape", "size"):
            verdict[name] = shown.relation is None and getattr(thing, name) == getattr(found, name)
    else:
        same = [(a.colour, a.shape) == (b.colour, b.shape) for a, b in zip(wanted.things, shown.things)]
        verdict["relation"] = wanted.relation == shown.relation and all(same)
    return verdict


class HeldOutPrompts:
    """`eval=prompt_accuracy`: samples held-out prompts of data=shapes and measures `PromptAccuracy`.

    pictures_per_thing: pictures of each of the 12 held-out prompts with one thing.
    pairs: how many held-out prompts with two things, one picture each.
    """

    name = "prompt accuracy"
    shown = ("colour", "shape", "relation")

    def __init__(self, *, pictures_per_thing: int = 8, pairs: int = 96) -> None:
        if pictures_per_thing < 0 or pairs < 0 or pictures_per_thing + pairs == 0:
            raise ValueError(
                f"eval.pictures_per_thing={pictures_per_thing} and eval.pairs={pairs} make no picture; give more"
            )
        things = len(scenes.HELD_OUT_THINGS)
        prompts = held_out_prompts(things + pairs)
        self.prompts = [p for p in prompts[:things] for _ in range(pictures_per_thing)] + prompts[things:]
        self.samples = len(self.prompts)

    def wanted(self, conditioner: Conditioner, *, seed: int) -> Wanted:
        check_captions(conditioner, "eval=prompt_accuracy")
        return Wanted(list(self.prompts), caption_settings(self.prompts, source="held-out shapes"))

    def prepare(self, image_size: tuple[int, int], device: torch.device) -> None:
        """Raises ValueError for pictures that no scene has."""
        height, width = image_size
        if height != width or height % scenes.SIDE:
            raise ValueError(
                f"eval=prompt_accuracy looks for scenes in pictures of {height}x{width}, and these are square, "
                f"with sides that are multiples of {scenes.SIDE}"
            )
        self._device = device

    def rows(self, images: UInt8[Tensor, "b 3 H W"], inputs: Sequence[str] | Sequence[int]) -> Rows:
        asked, right = judge(images.to(self._device), [str(prompt) for prompt in inputs])
        return {"asked": asked.to(self._device), "right": right.to(self._device)}

    def measure(self, batches: Iterable[Rows]) -> dict[str, float]:
        rows = [(batch["asked"].sum(0), batch["right"].sum(0)) for batch in batches]
        found = shares(*(torch.stack(counts).sum(0) for counts in zip(*rows)))
        return {name: float(found[name]) for name in self.shown}

    def settings(self) -> dict[str, dict[str, Any]]:
        return {"metrics": {"prompt_accuracy": {"names": list(self.shown)}}, "features": {}, "reference": {}}
