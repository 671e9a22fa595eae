"""Nested settings: their dotted names and their differences."""

from rfdit.differences import Difference, differences, flatten, walk

NESTED = {"a": {"b": 1, "c": [1, {"d": 2}]}, "e": {}}


def test_paths_are_dotted_and_lists_are_values_unless_they_are_walked() -> None:
    assert flatten(NESTED) == {"a.b": 1, "a.c": [1, {"d": 2}]}
    assert [path for path, _ in walk(NESTED)] == ["", "a", "a.b", "a.c", "e"]
    assert ("a.c.1.d", 2) in list(walk(NESTED, lists=True))


def test_differences_are_the_settings_that_are_not_equal() -> None:
    other = {"a": {"b": 2, "c": [1, {"d": 2}]}, "e": {"f": None, "g": 3}}
    assert list(differences(NESTED, other)) == [Difference("a.b", 1, 2), Difference("e.g", None, 3)]
    assert list(differences(NESTED, NESTED)) == []


def test_a_part_that_one_side_lacks_is_one_difference_named_by_its_class() -> None:
    [found] = differences({"ema": {"_target_": "rfdit.callbacks.EMA", "n": 1}}, {"ema": None})
    assert found.text("the cache has") == "ema=EMA (the cache has null)"
