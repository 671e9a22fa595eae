"""The evaluation of held-out prompts of the embedded shapes."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from rfdit.conditioning import Conditioner
from rfdit.data.shapes import scenes
from rfdit.eval.evaluation import Rows
from rfdit.eval.inputs import ChosenInputs, chosen_captions
from rfdit.eval.metrics.prompt_accuracy import judge, shares
from rfdit.limits import Index


class HeldOutPrompts:
    """`eval=prompt_accuracy`: `PromptAccuracy` of prompts of data=shapes that no training image has.

    images_per_thing: images of each of the 12 held-out prompts with one thing.
    pairs: number of held-out prompts with two things, one image each.
    """

    name = "prompt accuracy"
    shown = ("colour", "shape", "relation")

    def __init__(self, *, images_per_thing: Index = 8, pairs: Index = 96) -> None:
        if images_per_thing < 0 or pairs < 0 or images_per_thing + pairs == 0:
            raise ValueError(
                f"eval.images_per_thing={images_per_thing} and eval.pairs={pairs} give no image; give more"
            )
        things = len(scenes.HELD_OUT_THINGS)
        prompts = scenes.held_out_prompts(things + pairs)
        self.prompts = [p for p in prompts[:things] for _ in range(images_per_thing)] + prompts[things:]
        self.samples = len(self.prompts)

    def choose_inputs(self, conditioner: Conditioner, *, seed: int) -> ChosenInputs:
        """The prompts; raises ValueError for a model of class labels."""
        return chosen_captions(
            list(self.prompts), conditioner, source="held-out shapes", setting="eval=prompt_accuracy"
        )

    def prepare(self, image_size: tuple[int, int], device: torch.device) -> None:
        """Raises ValueError for a size that images of scenes do not have."""
        height, width = image_size
        if height != width or height % scenes.SIDE:
            raise ValueError(
                f"eval=prompt_accuracy looks for scenes in images of {height}x{width}, and these are square, "
                f"with sides that are multiples of {scenes.SIDE}"
            )
        self._device = device

    def rows(self, images: UInt8[Tensor, "b 3 H W"], inputs: Sequence[str] | Sequence[int]) -> Rows:
        """See `judge`."""
        tested, correct = judge(images.to(self._device), [str(prompt) for prompt in inputs])
        return {"tested": tested.to(self._device), "correct": correct.to(self._device)}

    def measure(self, batches: Iterable[Rows]) -> dict[str, float]:
        """The shares of `shown`."""
        counts = [(rows["tested"].sum(0), rows["correct"].sum(0)) for rows in batches]
        found = shares(*(torch.stack(each).sum(0) for each in zip(*counts)))
        return {name: float(found[name]) for name in self.shown}

    def settings(self) -> dict[str, dict[str, Any]]:
        """See `Evaluation`; there is neither a feature network nor a reference."""
        return {"metrics": {"prompt_accuracy": {"names": list(self.shown)}}, "features": {}, "reference": {}}
