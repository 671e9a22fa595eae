"""Lists, matrices and pairs of images, and requests that contradict themselves."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rfdit.generate.request import ContactSheet, ImageSpec, SampleRequest, read_prompts
from rfdit.generate.uses.interpolation import Interpolation


def requested(n: int = 2, **settings: Any) -> SampleRequest:
    names = ["a", "b", "c"][:n]
    return SampleRequest(inputs=names, captions=[f"<{name}>" for name in names], **settings)


def noises(sheet: ContactSheet) -> list[tuple[int, int]]:
    return [(spec.seed, spec.key) for spec in sheet.specs]


def test_a_list_counts_keys() -> None:
    sheet = requested(count=2, seed=5, first_key=10, columns=3).sheet()
    assert [spec.input for spec in sheet.specs] == ["a", "a", "b", "b"]
    assert noises(sheet) == [(5, 10), (5, 11), (5, 12), (5, 13)]
    assert (sheet.width, sheet.rows) == (3, ())


@pytest.mark.parametrize("total", [1, 2, 3, 7, 50])
def test_a_total_is_divided_evenly(total: int) -> None:
    sheet = requested(3, total=total).sheet()
    counts = Counter(spec.input for spec in sheet.specs)
    assert len(sheet.specs) == total
    assert max(counts.values()) - min(counts[name] for name in "abc") <= 1
    assert [key for _, key in noises(sheet)] == list(range(total))


def test_a_matrix_of_all_three() -> None:
    sheet = requested(seeds=[0, 7], scales=[1, 2.5]).sheet()
    assert sheet.rows == ["<a>, seed 0", "<a>, seed 7", "<b>, seed 0", "<b>, seed 7"]
    assert sheet.columns == ["scale 1", "scale 2.5"]
    assert sheet.specs[2] == ImageSpec("a", "<a>", 7, 0, 1)
    assert [p.scale for p in sheet.specs] == [1, 2.5] * 4


def test_a_matrix_of_seeds() -> None:
    sheet = requested(seeds=[0, 7], first_key=3).sheet()
    assert (sheet.rows, sheet.columns) == (["<a>", "<b>"], ["seed 0", "seed 7"])
    # The same noise in a column: its images differ by prompt alone.
    assert noises(sheet) == [(0, 3), (7, 3)] * 2


def test_pairs() -> None:
    sheet = requested(seeds=[4, 5], scales=[1, 3], matrix=False).sheet()
    assert [(p.input, p.seed, p.scale) for p in sheet.specs] == [("a", 4, 1), ("b", 5, 3)]
    only = requested(scales=[1, 3], matrix=False).sheet()
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
        ({"seeds": [1], "matrix": False}, "seeds has 1 entry for 2 prompts or labels"),
    ],
)
def test_contradictions(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        requested(**settings).sheet()


def test_an_interpolation_goes_from_stop_to_stop() -> None:
    sheet = Interpolation(frames=2).sheet(requested(3, seeds=[7, 8, 7], first_key=1))
    assert [p.input for p in sheet.specs] == ["a", "a", "b", "b", "c"]
    towards = [p.toward for p in sheet.specs]
    assert [t and (t.input, t.seed, t.weight) for t in towards] == [
        ("b", 8, 0), ("b", 8, 0.5), ("c", 7, 0), ("c", 7, 0.5), ("c", 7, 0),
    ]  # fmt: skip
    assert noises(sheet) == [(7, 1), (7, 1), (8, 1), (8, 1), (7, 1)]
    one = Interpolation(frames=4).sheet(requested(1, seeds=[0, 1]))
    assert [p.input for p in one.specs] == ["a"] * 5


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
        Interpolation().sheet(requested(n, **settings))


def test_prompts_from_anywhere(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\n  a dog \n")
    assert read_prompts(str(file)) == ["a cat", "a dog"]
    assert read_prompts(["a", 7]) == ["a", "7"]
    file.write_text("\n")
    for nothing in ([], str(file), 3):
        with pytest.raises(ValueError, match="has no prompt"):
            read_prompts(nothing)
    file.write_bytes("naïve".encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"^prompts=\S+/prompts.txt is not text in UTF-8 .*; save it as UTF-8$"
    ):
        read_prompts(str(file))


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [(None, "null"), (["a"], r'\["a"\]'), (1.1, "1.1"), (True, "true"), ({"a": None}, "{")],
)
def test_prompts_that_are_not_text_are_refused(prompt: Any, shown: str) -> None:
    with pytest.raises(ValueError, match=rf"prompts has the entry {shown}.* not text; put quotation marks"):
        read_prompts(["a cat", prompt])
