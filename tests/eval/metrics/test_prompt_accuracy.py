"""Exact images are recognised, noisy ones too, wrong ones are not."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from rfdit.conditioning import LabelConditioner, TextConditioner
from rfdit.data.shapes.scenes import OFFSETS, RELATIONS, THINGS, Scene, Thing, held_out_prompts, parse, render
from rfdit.eval.evaluation import Evaluation
from rfdit.eval.held_out_prompts import HeldOutPrompts
from rfdit.eval.metrics.prompt_accuracy import PromptAccuracy, _distances, nearest_scenes
from rfdit.text_encoder.bpe import BPEEncoder

PROMPTS = held_out_prompts(60)
CIRCLE, SQUARE = Thing("small", "red", "circle"), Thing("large", "blue", "square")


def draw(prompts: list[str], resolution: int = 32) -> Tensor:
    """The prompts' images, with alternating jitters."""
    jitters = itertools.cycle(itertools.product(OFFSETS, OFFSETS))
    drawn = []
    for prompt in prompts:
        scene = parse(prompt)
        drawn.append(render(scene, next(jitters)[: len(scene.things)], resolution))
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2)


def accuracy(images: Tensor, prompts: list[str]) -> dict[str, float]:
    metric = PromptAccuracy()
    metric.update(images, prompts)
    return {name: float(value) for name, value in metric.compute().items()}


def test_every_scene_is_nearest_to_its_own_image() -> None:
    single = [(Scene((thing,)), (offset,)) for thing in THINGS for offset in OFFSETS]
    pairs = [
        (Scene((a, b), relation), (OFFSETS[i % len(OFFSETS)], OFFSETS[i // 9 % len(OFFSETS)]))
        for i, (a, b, relation) in enumerate(itertools.product(THINGS[::7], THINGS[::5], RELATIONS))
    ]
    images = torch.from_numpy(np.stack([render(*scene) for scene in single + pairs])).permute(0, 3, 1, 2)
    assert nearest_scenes(images) == [scene.canonical() for scene, _ in single + pairs]


@pytest.mark.parametrize("resolution", [32, 64])
def test_exact_images_are_all_right(resolution: int) -> None:
    shares = accuracy(draw(PROMPTS, resolution), PROMPTS)
    assert shares == dict.fromkeys(("colour", "shape", "relation", "size", "scene"), 1.0)


def test_noise_does_not_matter() -> None:
    clean = draw(PROMPTS).float()
    noisy = (clean + 25 * torch.randn_like(clean)).clamp(0, 255).to(torch.uint8)
    assert min(accuracy(noisy, PROMPTS).values()) > 0.95


def test_the_nearest_thing_is_exact() -> None:
    """The fast search agrees with comparing arbitrary images to every image of one thing."""
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    drawn = [render(Scene((thing,)), (offset,)) for thing in THINGS for offset in OFFSETS]
    every_image = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).double().flatten(1)
    squared = torch.cdist(images.double().flatten(1), every_image).square() / 255**2
    expected = squared.view(5, len(THINGS), len(OFFSETS)).amin(-1)
    found = _distances(images, (16, 16)).double()
    # The images compared here are rounded to bytes.
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
    assert torch.equal(found.argmin(1), expected.argmin(1))


def test_wrong_colour_shape_and_size_are_told_apart() -> None:
    prompts = [str(CIRCLE)] * 3
    shown = ["a small blue circle", "a small red square", "a large red circle"]
    shares = accuracy(draw(shown), prompts)
    for name in ("colour", "shape", "size"):
        assert shares[name] == pytest.approx(2 / 3)
    assert shares["scene"] == 0
    assert np.isnan(shares["relation"])


def test_another_number_of_things_is_wrong() -> None:
    two = Scene((CIRCLE, SQUARE), "above").caption
    shares = accuracy(draw([two, str(CIRCLE)]), [str(CIRCLE), two])
    assert set(shares.values()) == {0.0}


def test_a_swapped_relation_is_wrong_and_its_mirror_image_is_right() -> None:
    caption = Scene((CIRCLE, SQUARE), "left of").caption
    for shown, right in {
        "left of": (CIRCLE, SQUARE, 1.0),
        "right of": (SQUARE, CIRCLE, 1.0),
        "above": (CIRCLE, SQUARE, 0.0),
    }.items():
        first, second, share = right
        assert accuracy(draw([Scene((first, second), shown).caption]), [caption])["relation"] == share
    swapped = Scene((SQUARE, CIRCLE), "left of").caption
    assert accuracy(draw([swapped]), [caption])["relation"] == 0.0


def test_relation_disregards_sizes_and_scene_does_not() -> None:
    caption = Scene((CIRCLE, SQUARE), "below").caption
    larger = Scene((Thing("large", "red", "circle"), SQUARE), "below").caption
    shares = accuracy(draw([larger]), [caption])
    assert (shares["relation"], shares["scene"]) == (1.0, 0.0)


def test_parts_merge_to_the_whole() -> None:
    """The states are summed, as torchmetrics does across ranks."""
    images = draw(PROMPTS)
    images[::3] = 255 - images[::3]
    whole, first, second = PromptAccuracy(), PromptAccuracy(), PromptAccuracy()
    whole.update(images, PROMPTS)
    first.update(images[:7], PROMPTS[:7])
    second.update(images[7:], PROMPTS[7:])
    first.merge_state(second)
    assert first.compute() == whole.compute()


def test_a_caption_that_is_not_a_scene_is_refused() -> None:
    with pytest.raises(ValueError, match="'a red circle' does not describe a scene"):
        accuracy(draw(PROMPTS[:1]), ["a red circle"])
    with pytest.raises(ValueError, match="not square"):
        nearest_scenes(torch.zeros(1, 3, 32, 64, dtype=torch.uint8))


def test_held_out_prompts_are_sampled_and_judged() -> None:
    evaluation = HeldOutPrompts(images_per_thing=2, pairs=5)
    assert isinstance(evaluation, Evaluation)
    assert evaluation.samples == 12 * 2 + 5
    conditioner = TextConditioner(encoder=BPEEncoder(width=8, length=16))
    chosen = evaluation.choose_inputs(conditioner, seed=0)
    evaluation.prepare((32, 32), torch.device("cpu"))
    halves = [chosen.inputs[:11], chosen.inputs[11:]]
    rows = [evaluation.rows(draw(half), half) for half in halves]
    assert evaluation.measure(rows) == {"colour": 1.0, "shape": 1.0, "relation": 1.0}
    assert chosen.settings["different"] == 12 + 5


def test_held_out_prompts_need_captions_and_square_images() -> None:
    evaluation = HeldOutPrompts()
    with pytest.raises(ValueError, match="eval=prompt_accuracy asks for captions and this model was trained"):
        evaluation.choose_inputs(LabelConditioner(num_classes=3, width=8), seed=0)
    with pytest.raises(ValueError, match="images of 32x64, and these are square"):
        evaluation.prepare((32, 64), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"eval\.pairs=0 give no image"):
        HeldOutPrompts(images_per_thing=0, pairs=0)
