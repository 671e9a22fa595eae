"""The samples that filters drop, the reasons, and messages about wrong settings."""

import math
from collections.abc import Mapping
from typing import Any

import pytest

from rfdit.data.filters import Filters, Size

ROW = {
    "WIDTH": 400, "HEIGHT": 300, "AESTHETIC_SCORE": 5.5, "pwatermark": 0.2, "punsafe": 0.01, "LANGUAGE": "en",
}  # fmt: skip


def reason(
    filters: Filters, row: Mapping[str, Any] = ROW, caption: str | None = "a cat", size: Size | None = None
) -> str | None:
    return filters.drop_reason(row, caption=caption, size=lambda: size)


def test_nothing_is_dropped_by_default() -> None:
    assert reason(Filters(), {}, None) is None
    assert not Filters().active
    assert not Filters(keep_unknown=True, columns={"width": "w"}).active


@pytest.mark.parametrize(
    ("passes", "drops", "name"),
    [
        ({"min_size": 300}, {"min_size": 301}, "filtered_size"),
        ({"max_aspect": 4 / 3}, {"max_aspect": 1.33}, "filtered_aspect"),
        ({"min_aesthetic": 5.5}, {"min_aesthetic": 5.6}, "filtered_aesthetic"),
        ({"max_watermark": 0.2}, {"max_watermark": 0.1}, "filtered_watermark"),
        ({"max_unsafe": 0.01}, {"max_unsafe": 0.0}, "filtered_unsafe"),
        ({"min_caption": 5}, {"min_caption": 6}, "filtered_caption"),
        ({"max_caption": 5}, {"max_caption": 4}, "filtered_caption"),
        ({"languages": ["EN", "de"]}, {"languages": ["de"]}, "filtered_language"),
    ],
)
def test_each_filter(passes: dict[str, Any], drops: dict[str, Any], name: str) -> None:
    assert reason(Filters(**passes)) is None
    assert reason(Filters(**drops)) == name
    assert Filters(**drops).active


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"min_size": 1}, "unknown_size"),
        ({"min_aesthetic": 1}, "unknown_aesthetic"),
        ({"max_watermark": 1}, "unknown_watermark"),
        ({"max_unsafe": 1}, "unknown_unsafe"),
        ({"languages": ["en"]}, "unknown_language"),
    ],
)
@pytest.mark.parametrize("row", [{}, dict.fromkeys(ROW), {name: float("nan") for name in list(ROW)[:5]}])
def test_what_is_not_known(settings: dict[str, Any], name: str, row: dict[str, Any]) -> None:
    assert reason(Filters(**settings), row) == name
    assert reason(Filters(**settings, keep_unknown=True), row) is None


@pytest.mark.parametrize(
    ("settings", "column", "name"),
    [
        ({"min_size": 1}, "WIDTH", "invalid_size"),
        ({"max_aspect": 2}, "HEIGHT", "invalid_size"),
        ({"min_aesthetic": 1}, "AESTHETIC_SCORE", "invalid_aesthetic"),
        ({"max_watermark": 1}, "pwatermark", "invalid_watermark"),
        ({"max_unsafe": 1}, "punsafe", "invalid_unsafe"),
    ],
)
@pytest.mark.parametrize("keep_unknown", [False, True])
def test_what_cannot_be_a_number(
    settings: dict[str, Any], column: str, name: str, keep_unknown: bool
) -> None:
    filters = Filters(**settings, keep_unknown=keep_unknown)
    for value in (math.inf, -math.inf, True, "12abc", [5], "nan"):
        assert reason(filters, ROW | {column: value}) == name
    if name == "invalid_size":
        for value in (512.5, 1e308, 0, -3, 10**400):
            assert reason(filters, ROW | {column: value}) == name
            assert (
                reason(filters, ROW | {column: value}, size=(300, 300)) is None
            )  # what the image says counts


def test_the_image_tells_its_size_where_the_metadata_does_not() -> None:
    assert reason(Filters(min_size=10), {}, size=(10, 20)) is None
    assert reason(Filters(min_size=11), {}, size=(10, 20)) == "filtered_size"
    assert Filters().size(ROW) == (300, 400)
    assert Filters().size({"width": 3}) is None


def test_columns_can_have_other_names() -> None:
    filters = Filters(min_aesthetic=3, columns={"aesthetic": "score"})
    assert reason(filters, {"score": 4, "AESTHETIC_SCORE": 1}) is None
    assert reason(filters, {"AESTHETIC_SCORE": 4}) == "unknown_aesthetic"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"columns": {"colour": "c"}},
            r"data\.filters\.columns\.colour is not used by any filter; use width, height",
        ),
        ({"min_caption": 5, "max_caption": 4}, r"min_caption=5 is more than data\.filters\.max_caption=4"),
        ({"max_aspect": 0.5}, r"data\.filters\.max_aspect=0.5: .* at least 1"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Filters(**settings)
