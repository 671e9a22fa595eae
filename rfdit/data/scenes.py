"""The embedded world: captioned pictures of one or two things, small enough to enumerate.

"a small red circle", "a small red circle left of a large blue square". One thing stands in the
middle; two stand in the two halves of the picture. Each is off its place by at most one pixel (of
32) either way, so there is always more than one picture of a caption, and never one that cannot be
rendered and compared.
"""

import itertools
import math
import re
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

SIDE = 32  # every length below is in pixels of a picture with this side
RADII = {"small": 4.2, "large": 6.9}
COLOURS = {
    "red": (220, 30, 40),
    "green": (30, 160, 60),
    "blue": (30, 80, 230),
    "yellow": (250, 210, 0),
    "purple": (150, 50, 190),
    "orange": (255, 130, 20),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
BACKGROUND = (245, 245, 245)
# Relation of the first thing to the second -> places of the first and of the second, as (x, y).
PLACES = {
    "left of": ((8, 16), (24, 16)),
    "right of": ((24, 16), (8, 16)),
    "above": ((16, 8), (16, 24)),
    "below": ((16, 24), (16, 8)),
}
MIRRORED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
JITTER = (-1, 0, 1)
OFFSETS = tuple(itertools.product(JITTER, JITTER))  # of a thing from its place, as (dx, dy)
HELD_OUT_PAIRS = 20  # one in so many captions with two things is held out
SUPERSAMPLING = 8


@dataclass(frozen=True)
class Thing:
    """What stands somewhere."""

    size: str
    colour: str
    shape: str

    @property
    def caption(self) -> str:
        """Such as "a small red circle"."""
        return f"a {self.size} {self.colour} {self.shape}"

    @property
    def held_out(self) -> bool:
        """Whether it is in no training picture: two things of every colour, one of each size."""
        colour = list(COLOURS).index(self.colour)
        return SHAPES.index(self.shape) == (colour + (2 if self.size == "large" else 0)) % len(SHAPES)


@dataclass(frozen=True)
class Scene:
    """One thing, or a first thing in some relation to a second."""

    first: Thing
    relation: str | None = None
    second: Thing | None = None

    @property
    def caption(self) -> str:
        """Such as "a small red circle left of a large blue square"."""
        if self.second is None:
            return self.first.caption
        return f"{self.first.caption} {self.relation} {self.second.caption}"

    @property
    def mirrored(self) -> "Scene":
        """The other caption of the same picture: what A left of B is, B right of A is too."""
        if self.second is None or self.relation is None:
            return self
        return Scene(self.second, MIRRORED[self.relation], self.first)

    @property
    def held_out(self) -> bool:
        """Whether training never sees it, in either wording."""
        if self.second is None:
            return self.first.held_out
        caption = min(self.caption, self.mirrored.caption)
        chosen = zlib.crc32(caption.encode()) % HELD_OUT_PAIRS == 0
        return chosen or self.first.held_out or self.second.held_out


THINGS = tuple(Thing(*words) for words in itertools.product(RADII, COLOURS, SHAPES))
SEEN = tuple(thing for thing in THINGS if not thing.held_out)

_THING = rf"a ({'|'.join(RADII)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_CAPTION = re.compile(rf"{_THING}(?: ({'|'.join(PLACES)}) {_THING})?")


def parse(caption: str) -> Scene:
    """The scene of a caption; raises ValueError for a caption of another world."""
    match = _CAPTION.fullmatch(caption)
    if match is None:
        raise ValueError(f"{caption!r} is no caption of data=shapes, such as 'a small red circle'")
    first = Thing(match[1], match[2], match[3])
    return Scene(first, match[4], Thing(match[5], match[6], match[7])) if match[4] else Scene(first)


def _outline(shape: str, radius: float) -> list[tuple[float, float]]:
    """A shape's corners around the origin, y downwards."""
    r = radius
    if shape == "square":
        return [(-0.8 * r, -0.8 * r), (0.8 * r, -0.8 * r), (0.8 * r, 0.8 * r), (-0.8 * r, 0.8 * r)]
    if shape == "triangle":
        return [(0, -0.95 * r), (r, 0.8 * r), (-r, 0.8 * r)]
    if shape == "star":
        radii = (r if i % 2 == 0 else 0.4 * r for i in range(10))
        return [(q * math.sin(math.pi * i / 5), -q * math.cos(math.pi * i / 5)) for i, q in enumerate(radii)]
    a, b = r, 0.32 * r  # cross: half the length and half the width of its arms
    return [
        (-b, -a),
        (b, -a),
        (b, -b),
        (a, -b),
        (a, b),
        (b, b),
        (b, a),
        (-b, a),
        (-b, b),
        (-a, b),
        (-a, -b),
        (-b, -b),
    ]


@lru_cache(maxsize=4096)
def coverage(thing: Thing, x: int, y: int, resolution: int) -> np.ndarray:
    """How much of each pixel a thing at (x, y), in units of SIDE, covers: (resolution, resolution) in [0, 1]."""
    scale = resolution * SUPERSAMPLING / SIDE
    mask = Image.new("L", (resolution * SUPERSAMPLING,) * 2)
    draw, radius = ImageDraw.Draw(mask), RADII[thing.size]
    if thing.shape == "circle":
        r = 0.9 * radius
        draw.ellipse([scale * (x - r), scale * (y - r), scale * (x + r), scale * (y + r)], fill=255)
    else:
        draw.polygon([(scale * (x + u), scale * (y + v)) for u, v in _outline(thing.shape, radius)], fill=255)
    return np.asarray(mask.resize((resolution, resolution), Image.Resampling.BOX), np.float32) / 255


def render(
    scene: Scene, offsets: tuple[tuple[int, int], ...] = ((0, 0), (0, 0)), resolution: int = SIDE
) -> UInt8[np.ndarray, "H W 3"]:
    """The picture of a scene; offsets: of its things from their places, in units of SIDE."""
    things = [scene.first] if scene.second is None else [scene.first, scene.second]
    places = PLACES[scene.relation] if scene.relation else ((SIDE // 2, SIDE // 2),)
    picture = np.full((resolution, resolution, 3), BACKGROUND, np.float32)
    for thing, (x, y), (dx, dy) in zip(things, places, offsets):
        alpha = coverage(thing, x + dx, y + dy, resolution)[..., None]
        picture = picture * (1 - alpha) + np.array(COLOURS[thing.colour], np.float32) * alpha
    return picture.round().astype(np.uint8)


def draw_scene(seed: int, index: int) -> tuple[Scene, tuple[tuple[int, int], ...]]:
    """The training world's scene number `index` and its offsets; half of them have one thing."""
    rng = np.random.default_rng([seed, index])
    offsets = tuple(OFFSETS[i] for i in rng.integers(len(OFFSETS), size=2))
    if rng.random() < 0.5:
        return Scene(SEEN[rng.integers(len(SEEN))]), offsets
    while True:
        first, second = (SEEN[i] for i in rng.choice(len(SEEN), size=2, replace=False))
        scene = Scene(first, list(PLACES)[rng.integers(len(PLACES))], second)
        if not scene.held_out:
            return scene, offsets


def held_out_things() -> list[Scene]:
    """All captions with one thing that training never sees."""
    return [Scene(thing) for thing in THINGS if thing.held_out]


def held_out_pairs(count: int) -> list[Scene]:
    """The first `count` held-out captions with two things, both of which training knows apart."""
    rng = np.random.default_rng(0)
    found: dict[str, Scene] = {}
    while len(found) < count:
        first, second = (SEEN[i] for i in rng.choice(len(SEEN), size=2, replace=False))
        scene = Scene(first, list(PLACES)[rng.integers(len(PLACES))], second)
        if scene.held_out:
            found.setdefault(scene.caption, scene)
    return list(found.values())
