"""Lists, matrices and pairs of pictures, and what contradicts itself."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rfdit.sampling.interpolation import Interpolation
from rfdit.sampling.request import Asked, Picture, Request, read_prompts


def asked(n: int = 2, **settings: Any) -> Asked:
    names = ["a", "b", "c"][:n]
    return Asked(inputs=names, captions=[f"<{name}>" for name in names], **settings)


def noises(request: Request) -> list[tuple[int, int]]:
    return [(picture.seed, picture.key) for picture in request.pictures]


def test_a_list_counts_keys() -> None:
    request = asked(count=2, seed=5, first_key=10, columns=3).request()
    assert [picture.given for picture in request.pictures] == ["a", "a", "b", "b"]
    assert noises(request) == [(5, 10), (5, 11), (5, 12), (5, 13)]
    assert (request.width, request.rows) == (3, ())


@pytest.mark.parametrize("total", [1, 2, 3, 7, 50])
def test_a_total_is_divided_evenly(total: int) -> None:
    request = asked(3, total=total).request()
    counts = Counter(picture.given for picture in request.pictures)
    assert len(request.pictures) == total
    assert max(counts.values()) - min(counts[name] for name in "abc") <= 1
    assert [key for _, key in noises(request)] == list(range(total))


def test_a_matrix_of_all_three() -> None:
    request = asked(seeds=[0, 7], scales=[1, 2.5]).request()
    assert request.rows == ["<a>, seed 0", "<a>, seed 7", "<b>, seed 0", "<b>, seed 7"]
    assert request.columns == ["scale 1", "scale 2.5"]
    assert request.pictures[2] == Picture("a", "<a>", 7, 0, 1)
    assert [p.scale for p in request.pictures] == [1, 2.5] * 4


def test_a_matrix_of_seeds() -> None:
    request = asked(seeds=[0, 7], first_key=3).request()
    assert (request.rows, request.columns) == (["<a>", "<b>"], ["seed 0", "seed 7"])
    # The same noise in a column: its pictures differ by prompt alone.
    assert noises(request) == [(0, 3), (7, 3)] * 2


def test_pairs() -> None:
    request = asked(seeds=[4, 5], scales=[1, 3], matrix=False).request()
    assert [(p.given, p.seed, p.scale) for p in request.pictures] == [("a", 4, 1), ("b", 5, 3)]
    only = asked(scales=[1, 3], matrix=False).request()
    assert noises(only) == [(0, 0), (0, 1)]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"count": 0}, "count=0 must be at least 1"),
        ({"total": 0}, "total=0 must be at least 1"),
        ({"columns": 0}, "columns=0 must be at least 1"),
        ({"count": 2, "total": 3}, "total=3 and count=2 are both set"),
        ({"seeds": []}, r"seeds=\[\] is empty"),
        ({"seeds": [0], "count": 2}, "count and total do not go with seeds"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\] has an entry twice"),
        ({"scales": [1], "columns": 4}, "columns=4 does not go with a matrix"),
        ({"scales": [1, 2, 3], "matrix": False}, "scales has 3 entries for 2 prompts or labels"),
        ({"seeds": [1], "matrix": False}, "seeds has 1 entries for 2 prompts or labels"),
    ],
)
def test_contradictions(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        asked(**settings).request()


def test_an_interpolation_goes_from_stop_to_stop() -> None:
    request = Interpolation(frames=2).request(asked(3, seeds=[7, 8, 7], first_key=1))
    assert [p.given for p in request.pictures] == ["a", "a", "b", "b", "c"]
    towards = [p.toward for p in request.pictures]
    assert [t and (t.given, t.seed, t.weight) for t in towards] == [
        ("b", 8, 0), ("b", 8, 0.5), ("c", 7, 0), ("c", 7, 0.5), ("c", 7, 0),
    ]  # fmt: skip
    assert noises(request) == [(7, 1), (7, 1), (8, 1), (8, 1), (7, 1)]
    one = Interpolation(frames=4).request(asked(1, seeds=[0, 1]))
    assert [p.given for p in one.pictures] == ["a"] * 5


@pytest.mark.parametrize(
    ("n", "settings", "sentence"),
    [
        (1, {}, "needs two prompts or two seeds"),
        (3, {"seeds": [0, 1]}, "has 3 prompts or labels and seeds has 2 entries"),
        (2, {"count": 3}, "without count, total or scales"),
        (2, {"scales": [1.0]}, "without count, total or scales"),
    ],
)
def test_interpolations_that_lead_nowhere(n: int, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Interpolation().request(asked(n, **settings))


def test_prompts_from_anywhere(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\n  a dog \n")
    assert read_prompts(str(file)) == ["a cat", "a dog"]
    assert read_prompts(["a", 7]) == ["a", "7"]
    file.write_text("\n")
    for nothing in ([], str(file), 3):
        with pytest.raises(ValueError, match="names no prompt"):
            read_prompts(nothing)
    file.write_bytes("naïve".encode("utf-16"))
    with pytest.raises(ValueError, match=r"^prompts=\S+/prompts.txt is no text in UTF-8"):
        read_prompts(str(file))
