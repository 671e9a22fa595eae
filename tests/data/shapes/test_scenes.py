"""Captions and images of the embedded world, and its scenes that training never sees."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from rfdit.data.shapes.scenes import (
    BACKGROUND,
    COLOURS,
    HELD_OUT_THINGS,
    OFFSETS,
    RELATIONS,
    SHAPES,
    SIZES,
    THINGS,
    Scene,
    Thing,
    draw,
    held_out_prompts,
    is_held_out,
    parse,
    render,
)

CIRCLE, SQUARE = Thing("small", "red", "circle"), Thing("large", "blue", "square")


def covered(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """True where an image is not plain background."""
    return (image != np.array(BACKGROUND)).any(-1)


def test_captions_read_as_sentences_and_back() -> None:
    assert Scene((CIRCLE,)).caption == "a small red circle"
    assert Scene((CIRCLE, SQUARE), "left of").caption == "a small red circle left of a large blue square"
    pairs = itertools.product(THINGS[::7], THINGS[::11], RELATIONS)
    for scene in [Scene((t,)) for t in THINGS] + [Scene((a, b), relation) for a, b, relation in pairs]:
        assert parse(scene.caption) == scene


@pytest.mark.parametrize("caption", ["", "a red circle", "a small red circle on a large blue square"])
def test_other_captions_are_refused(caption: str) -> None:
    with pytest.raises(ValueError, match="does not describe a scene"):
        parse(caption)


@pytest.mark.parametrize(("things", "relation"), [((), None), ((CIRCLE, SQUARE), None), ((CIRCLE,), "above")])
def test_a_relation_needs_two_things(things: tuple[Thing, ...], relation: str | None) -> None:
    with pytest.raises(ValueError, match="are not a scene"):
        Scene(things, relation)


def test_mirrored_captions_are_one_scene() -> None:
    right = Scene((SQUARE, CIRCLE), "right of")
    assert right.canonical() == Scene((CIRCLE, SQUARE), "left of")
    assert np.array_equal(render(right), render(right.canonical()))


def test_the_first_thing_stands_where_the_relation_says() -> None:
    red = np.array(COLOURS["red"])
    places = {}
    for relation in RELATIONS:
        rows, columns = np.nonzero((render(Scene((CIRCLE, SQUARE), relation)) == red).all(-1))
        places[relation] = (columns.mean() + 0.5, rows.mean() + 0.5)
    assert places == {"left of": (8, 16), "right of": (24, 16), "above": (16, 8), "below": (16, 24)}


def test_things_stay_in_their_halves() -> None:
    """The nearest scene can thus be found half by half, and nothing is cut off."""
    for size, shape in itertools.product(SIZES, SHAPES):
        thing = Thing(size, "black", shape)
        area = covered(render(Scene((thing,)))).sum()
        for a, b in itertools.product(OFFSETS, OFFSETS):
            across, down = (covered(render(Scene((thing, thing), r), (a, b))) for r in ("left of", "above"))
            assert across[:, :16].sum() == across[:, 16:].sum() == area
            assert down[:16].sum() == down[16:].sum() == area


@pytest.mark.parametrize("size", SIZES)
def test_shapes_are_far_apart(size: str) -> None:
    """At any jitter two shapes of one colour differ by more than a shape's antialiased rim."""
    images = {
        shape: [render(Scene((Thing(size, "red", shape),)), (o,)).astype(float) for o in OFFSETS]
        for shape in SHAPES
    }
    for one, other in itertools.combinations(SHAPES, 2):
        nearest = min(np.linalg.norm(a - b) for a in images[one] for b in images[other])
        assert nearest > 850, (one, other)


def test_colours_are_far_apart() -> None:
    for one, other in itertools.combinations([*COLOURS.values(), BACKGROUND], 2):
        assert np.linalg.norm(np.subtract(one, other)) > 120


def test_images_scale() -> None:
    scene = Scene((CIRCLE, SQUARE), "above")
    large = render(scene, ((1, 0), (0, -1)), 128)
    assert large.shape == (128, 128, 3)
    reduced = large.reshape(32, 4, 32, 4, 3).mean((1, 3))
    assert np.abs(reduced - render(scene, ((1, 0), (0, -1)))).max() < 12


def test_other_resolutions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.resolution=40: shapes are drawn at a multiple of 32"):
        render(Scene((CIRCLE,)), resolution=40)


def test_held_out_things_are_balanced() -> None:
    assert len(HELD_OUT_THINGS) == 12
    assert Counter(thing.colour for thing in HELD_OUT_THINGS) == dict.fromkeys(COLOURS, 2)
    assert Counter(thing.size for thing in HELD_OUT_THINGS) == dict.fromkeys(SIZES, 6)
    assert set(Counter(thing.shape for thing in HELD_OUT_THINGS).values()) <= {2, 3}


def test_held_out_prompts_are_held_out_with_their_mirror_images() -> None:
    prompts = held_out_prompts()
    assert prompts[:12] == [str(thing) for thing in THINGS if thing in HELD_OUT_THINGS]
    assert held_out_prompts(30) == prompts[:30]
    pairs = [parse(prompt) for prompt in prompts[12:]]
    seen_pairs = 48 * 47 * 4
    assert 0.04 < len(pairs) / seen_pairs < 0.06
    assert len({scene.canonical() for scene in pairs}) == len(pairs) / 2
    assert all(is_held_out(scene) and HELD_OUT_THINGS.isdisjoint(scene.things) for scene in pairs)


def test_draws_are_never_held_out_and_cover_the_rest() -> None:
    rng = random.Random(0)
    drawn = [draw(rng)[0] for _ in range(4000)]
    assert not any(is_held_out(scene) for scene in drawn)
    assert {thing for scene in drawn for thing in scene.things} == set(THINGS) - HELD_OUT_THINGS
    assert {scene.relation for scene in drawn} == {None, *RELATIONS}
    assert 0.45 < sum(scene.relation is None for scene in drawn) / len(drawn) < 0.55
