"""The embedded data set: one or two coloured shapes on a plain background, and their captions.

Everything is enumerable: 60 things, 4 relations, and a jitter of whole pixels, so that the scene
nearest to an image can be found exactly. Lengths are in pixels of a 32-pixel image.
"""

import hashlib
import itertools
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

SIDE = 32
BACKGROUND = (240, 240, 240)
SIZES = {"small": 4.5, "large": 7.0}  # half the side of a thing's bounding box
COLOURS = {
    "red": (225, 30, 30),
    "green": (25, 160, 60),
    "blue": (40, 80, 225),
    "yellow": (250, 205, 0),
    "purple": (160, 40, 190),
    "black": (25, 25, 25),
}
# Centres (x, y) of the first and the second thing.
RELATIONS = {
    "left of": ((8, 16), (24, 16)),
    "right of": ((24, 16), (8, 16)),
    "above": ((16, 8), (16, 24)),
    "below": ((16, 24), (16, 8)),
}
MIRRORED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
CENTRE = (16, 16)
# Offsets of things in whole pixels. A large thing has room in its half for (-1, 0, 1); without jitter
# a model learns the data set in minutes on a CPU.
JITTER = (0,)
SUPERSAMPLING = 8
HELD_OUT_ONE_IN = 20

Offset = tuple[int, int]
OFFSETS: tuple[Offset, ...] = tuple(itertools.product(JITTER, JITTER))


def _circle_points(n: int, radii: Sequence[float] = (1.0,)) -> NDArray[np.float64]:
    """n points around the origin, clockwise from the top, at alternating radii."""
    angle = 2 * math.pi * np.arange(n) / n
    radius = np.resize(radii, n)
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], axis=1)


def _cross_points(arm: float) -> NDArray[np.float64]:
    """A cross with arms 2 * arm wide: three corners of one arm, in four rotations."""
    corners = np.array([(-arm, -1), (arm, -1), (arm, -arm)])
    rotations = [((1, 0), (0, 1)), ((0, 1), (-1, 0)), ((-1, 0), (0, -1)), ((0, -1), (1, 0))]
    return np.concatenate([corners @ np.array(rotation) for rotation in rotations])


# Outlines in the box [-1, 1]^2, y down.
SHAPES: dict[str, NDArray[np.float64]] = {
    "circle": _circle_points(64),
    "square": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=np.float64),
    "triangle": np.array([(0, -1), (1, 0.9), (-1, 0.9)], dtype=np.float64),
    "star": _circle_points(10, radii=(1.05, 0.42)) + np.array([0, 0.05]),
    "cross": _cross_points(arm=0.32),
}


@dataclass(frozen=True)
class Thing:
    """A shape with a size and a colour, by name."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """One thing in the middle, or two things in the halves of the image that the relation names.

    Raises ValueError for another number of things, or a relation without two things.
    """

    things: tuple[Thing, ...]
    relation: str | None = None

    def __post_init__(self) -> None:
        if len(self.things) != (1 if self.relation is None else 2):
            raise ValueError(f"{len(self.things)} things with relation={self.relation} are not a scene")

    @property
    def caption(self) -> str:
        """The caption, such as "a small red circle left of a large blue square"."""
        return f" {self.relation} ".join(map(str, self.things))

    @property
    def centres(self) -> tuple[tuple[int, int], ...]:
        """The things' centres (x, y) before jitter."""
        return (CENTRE,) if self.relation is None else RELATIONS[self.relation]

    def canonical(self) -> "Scene":
        """Of the two scenes with this image, the one that says "left of" or "above"."""
        if self.relation in ("right of", "below"):
            return Scene(self.things[::-1], MIRRORED[self.relation])
        return self


THINGS = tuple(Thing(*names) for names in itertools.product(SIZES, COLOURS, SHAPES))
_THING = rf"a ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_CAPTION = re.compile(rf"{_THING}(?: ({'|'.join(RELATIONS)}) {_THING})?")


def parse(caption: str) -> Scene:
    """The scene that a caption describes; raises ValueError for other captions."""
    match = _CAPTION.fullmatch(caption.strip())
    if match is None:
        raise ValueError(
            f"{caption!r} does not describe a scene; write it as 'a small red circle' or "
            "'a small red circle left of a large blue square'"
        )
    words = match.groups()
    if words[3] is None:
        return Scene((Thing(*words[:3]),))
    return Scene((Thing(*words[:3]), Thing(*words[4:])), words[3])


@cache
def _sprite(size: str, shape: str, scale: int) -> NDArray[np.float32]:
    """The fraction of each pixel that a thing covers, in a square around its centre."""
    radius = SIZES[size] * scale
    n = 2 * math.ceil(radius)
    grid = (np.arange(n * SUPERSAMPLING) + 0.5) / SUPERSAMPLING - n / 2
    x, y = grid[None, :] / radius, grid[:, None] / radius
    inside = np.zeros((grid.size, grid.size), dtype=bool)
    outline = SHAPES[shape]
    # Even-odd rule: a point is inside if a ray to the right crosses the outline an odd number of times.
    for (x0, y0), (x1, y1) in zip(outline, np.roll(outline, 1, axis=0), strict=True):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < x0 + (x1 - x0) * (y - y0) / (y1 - y0))
    return inside.reshape(n, SUPERSAMPLING, n, SUPERSAMPLING).mean(axis=(1, 3), dtype=np.float32)


def _placed(
    thing: Thing, centre: tuple[int, int], offset: Offset, resolution: int
) -> tuple[NDArray[np.float32], tuple[slice, slice]]:
    """A thing's sprite, and its (rows, columns) in the image."""
    if resolution <= 0 or resolution % SIDE:
        raise ValueError(f"data.resolution={resolution}: shapes are drawn at a multiple of {SIDE} pixels")
    scale = resolution // SIDE
    sprite = _sprite(thing.size, thing.shape, scale)
    left, top = ((c + o) * scale - len(sprite) // 2 for c, o in zip(centre, offset, strict=True))
    return sprite, (slice(top, top + len(sprite)), slice(left, left + len(sprite)))


def coverage(thing: Thing, centre: tuple[int, int], offset: Offset, resolution: int) -> NDArray[np.float32]:
    """The fraction in [0, 1] of each pixel of an (H, W) image that a thing covers."""
    sprite, where = _placed(thing, centre, offset, resolution)
    covered = np.zeros((resolution, resolution), dtype=np.float32)
    covered[where] = sprite
    return covered


def render(
    scene: Scene, offsets: Sequence[Offset] | None = None, resolution: int = SIDE
) -> NDArray[np.uint8]:
    """Render a scene as an antialiased image, uint8 (H, W, 3).

    offsets: (x, y) for each thing, of OFFSETS; without them they are not jittered.
    Raises ValueError for a resolution that is not a multiple of 32.
    """
    image = np.full((resolution, resolution, 3), BACKGROUND, dtype=np.float32)
    offsets = offsets or [(0, 0)] * len(scene.things)
    for thing, centre, offset in zip(scene.things, scene.centres, offsets, strict=True):
        sprite, where = _placed(thing, centre, offset, resolution)
        colour = np.array(COLOURS[thing.colour], dtype=np.float32)
        image[where] += sprite[..., None] * (colour - image[where])
    return image.round().astype(np.uint8)


def _choose_held_out() -> frozenset[Thing]:
    """A small and a large thing of each colour, with shapes in turn."""
    shapes = itertools.cycle(SHAPES)
    return frozenset(Thing(size, colour, next(shapes)) for colour in COLOURS for size in SIZES)


HELD_OUT_THINGS = _choose_held_out()
SEEN_THINGS = tuple(thing for thing in THINGS if thing not in HELD_OUT_THINGS)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def is_held_out(scene: Scene) -> bool:
    """True for scenes that never occur in training: those with a held-out thing, and held-out pairs."""
    if not HELD_OUT_THINGS.isdisjoint(scene.things):
        return True
    return len(scene.things) == 2 and _hash(scene.canonical().caption) % HELD_OUT_ONE_IN == 0


def held_out_prompts(limit: int | None = None) -> list[str]:
    """Captions that are never in training: first the 12 of one thing, then pairs of other things.

    The pairs are in a fixed random order; `limit` keeps the first prompts.
    """
    single = [str(thing) for thing in THINGS if thing in HELD_OUT_THINGS]
    pairs = (
        Scene(things, relation) for things in itertools.permutations(SEEN_THINGS, 2) for relation in RELATIONS
    )
    double = sorted((scene.caption for scene in pairs if is_held_out(scene)), key=_hash)
    return (single + double)[:limit]


def draw(rng: random.Random, *, one_thing: float = 0.5) -> tuple[Scene, tuple[Offset, ...]]:
    """Draw a training scene and its jitter: one thing with probability `one_thing`, else two different ones."""
    scene = Scene((rng.choice(SEEN_THINGS),))
    if rng.random() >= one_thing:
        scene = _draw_pair(rng)
        while is_held_out(scene):
            scene = _draw_pair(rng)
    return scene, tuple(rng.choice(OFFSETS) for _ in scene.things)


def _draw_pair(rng: random.Random) -> Scene:
    return Scene(tuple(rng.sample(SEEN_THINGS, 2)), rng.choice(list(RELATIONS)))
