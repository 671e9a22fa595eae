"""Aspect-ratio buckets: SDXL's shapes, and each image in the nearest."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfdit.data.stream.buckets import AspectBuckets

STEPS = st.sampled_from([8, 16, 32, 64])


@st.composite
def buckets(draw: st.DrawFn) -> AspectBuckets:
    step = draw(STEPS)
    height, width = (step * draw(st.integers(1, 20)) for _ in range(2))
    least = max(height, width) / min(height, width)
    return AspectBuckets(resolution=[height, width], step=step, max_aspect=least * draw(st.floats(1.0, 4.0)))


def test_the_shapes_at_1024_are_sdxls() -> None:
    """The sizes in the table of SDXL's app. I whose short side is as long as the area allows."""
    sizes = AspectBuckets(resolution=1024, max_aspect=2.0).sizes
    upright = [(1088, 960), (1152, 896), (1216, 832), (1280, 768), (1344, 768), (1408, 704)]
    lying = [(width, height) for height, width in reversed(upright)]
    assert sizes == [*lying, (1024, 1024), *upright]
    widest = AspectBuckets(resolution=1024, max_aspect=4.0)
    assert (widest.sizes[0], widest.sizes[-1], len(widest)) == ((512, 2048), (2048, 512), 33)


@given(step=STEPS, n=st.integers(1, 24), max_aspect=st.floats(1.0, 6.0))
def test_shapes_of_a_square_area(step: int, n: int, max_aspect: float) -> None:
    side = n * step
    sizes = AspectBuckets(resolution=side, step=step, max_aspect=max_aspect).sizes
    assert (side, side) in sizes
    for height, width in sizes:
        assert height % step == width % step == 0
        assert height * width <= side**2
        assert max(height, width) / min(height, width) <= max_aspect
        # The short side could not be longer.
        assert max(height, width) * (min(height, width) + step) > side**2
    assert {(width, height) for height, width in sizes} == set(sizes)
    ratios = [height / width for height, width in sizes]
    assert ratios == sorted(set(ratios))


@given(
    given_buckets=buckets(),
    images=st.lists(st.tuples(st.integers(1, 10000), st.integers(1, 10000)), min_size=1, max_size=50),
)
def test_an_image_takes_the_nearest_shape(
    given_buckets: AspectBuckets, images: list[tuple[int, int]]
) -> None:
    numbers = given_buckets.assign(np.array(images))
    assert numbers.shape == (len(images),)
    shapes = [math.log(height / width) for height, width in given_buckets.sizes]
    for (height, width), number in zip(images, numbers.tolist()):
        distances = [abs(math.log(height / width) - shape) for shape in shapes]
        assert distances[number] == pytest.approx(min(distances), abs=1e-12)


@given(given_buckets=buckets())
def test_a_shape_takes_its_own_images(given_buckets: AspectBuckets) -> None:
    sizes = np.array(given_buckets.sizes)
    own = list(range(len(given_buckets)))
    assert given_buckets.assign(sizes).tolist() == own
    assert given_buckets.assign(3 * sizes).tolist() == own


def test_images_beyond_the_last_shape_go_there() -> None:
    buckets = AspectBuckets(resolution=256, step=32)
    extremes = np.array([[10, 10000], [10000, 10], [1, 3], [300, 100]])
    last = len(buckets) - 1
    assert buckets.assign(extremes).tolist() == [0, last, 0, last]
    assert buckets.assign(np.zeros((0, 2), dtype=np.int64)).tolist() == []


def test_a_resolution_that_is_not_square_has_its_shape_and_a_square() -> None:
    sizes = AspectBuckets(resolution=[256, 512]).sizes
    assert {(256, 512), (512, 256), (320, 320)} <= set(sizes)
    assert len(AspectBuckets(resolution=256, max_aspect=1.0)) == 1


@pytest.mark.parametrize(
    ("resolution", "step", "max_aspect", "sentence"),
    [
        (256, 0, 2.0, r"^data\.buckets\.step=0 must be at least 1 pixel$"),
        (256, 96, 2.0, r"^data\.buckets\.step=96 does not divide data\.buckets\.resolution=256; both are"),
        (32, 64, 2.0, r"^data\.buckets\.step=64 does not divide data\.buckets\.resolution=32;"),
        ([64, 100], 64, 2.0, r"step=64 does not divide data\.buckets\.resolution=\[64, 100\]"),
        ([64, 64, 64], 64, 2.0, r"^data\.buckets\.resolution=\[64, 64, 64\] must be one side, or"),
        ([64, 192], 64, 2.0, r"^data\.buckets\.max_aspect=2 must be at least 3, the aspect ratio of"),
        (256, 64, 0.5, r"^data\.buckets\.max_aspect=0\.5 must be at least 1,"),
    ],
)
def test_wrong_settings_are_named(
    resolution: int | Sequence[int], step: int, max_aspect: float, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        AspectBuckets(resolution=resolution, step=step, max_aspect=max_aspect)


def test_an_image_without_pixels_is_named() -> None:
    with pytest.raises(ValueError, match=r"^image 1 is 0x7: data\.buckets needs the size of every image$"):
        AspectBuckets(resolution=64).assign(np.array([[5, 7], [0, 7]]))


def test_tokens_must_fit() -> None:
    AspectBuckets(resolution=256, step=32, token=[8, 2])
    with pytest.raises(
        ValueError, match=r"^data\.buckets\.step=32 is not a multiple of 64, the side of a token"
    ):
        AspectBuckets(resolution=256, step=32, token=[8, 8])
