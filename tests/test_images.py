"""Sizes as they are given in settings."""

from typing import Any

import pytest

from rfdit.images import parse_size


@pytest.mark.parametrize("size", [32, [32, 32], (32, 32)])
def test_a_side_or_both(size: Any) -> None:
    assert parse_size(size, setting="resolution") == (32, 32)


@pytest.mark.parametrize("size", [0, -8, 2.5, True, "32", None, [], [32], [32, 0], [8, 8, 8], ["8", 8]])
def test_anything_else_is_refused_by_name(size: Any) -> None:
    with pytest.raises(ValueError, match=r"^resolution=.* must be one side, or \[height,width\]"):
        parse_size(size, setting="resolution")
