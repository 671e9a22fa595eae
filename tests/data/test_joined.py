"""Several sources as one: their numbers, and how far each is read ahead."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from rfdit.data.first import FirstSamples
from rfdit.data.joined import JoinedSource, joined
from rfdit.data.sample import RawSample
from rfdit.data.source import Source


class Ahead:
    """A source that takes `ahead` numbers before it yields the first sample."""

    def __init__(self, name: str, shard_sizes: list[int], ahead: int = 0) -> None:
        self.name, self.shard_sizes, self.ahead = name, shard_sizes, ahead

    def samples(self, numbers: Iterable[int]) -> Iterator[RawSample]:
        waiting: list[int] = []
        for number in numbers:
            waiting.append(number)
            if len(waiting) > self.ahead:
                yield {"__key__": f"{self.name}{waiting.pop(0)}"}
        yield from ({"__key__": f"{self.name}{number}"} for number in waiting)

    def skipped(self) -> Mapping[str, int]:
        return {"missing_caption": 1}

    def image_sizes(self) -> np.ndarray:
        return np.full((sum(self.shard_sizes), 2), len(self.name))


def test_numbers_go_through_the_sources_in_turn() -> None:
    source = joined([Ahead("a", [2, 1]), Ahead("b", [2], ahead=3), Ahead("cc", [1])])
    assert isinstance(source, Source)
    assert list(source.shard_sizes) == [2, 1, 2, 1]
    numbers = [5, 0, 3, 4, 2, 3, 1]
    keys = [raw["__key__"] for raw in source.samples(iter(numbers))]
    assert keys == ["cc0", "a0", "b0", "b1", "a2", "b0", "a1"]
    assert source.skipped() == {"missing_caption": 3}
    assert source.image_sizes()[:, 0].tolist() == [1, 1, 1, 1, 1, 2]


def test_an_endless_stream_is_read_only_as_far_as_a_source_asks() -> None:
    taken: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            for number in (0, 2):
                taken.append(number)
                yield number

    found = JoinedSource([Ahead("a", [2]), Ahead("b", [2], ahead=2)]).samples(endless())
    assert [next(found)["__key__"] for _ in range(2)] == ["a0", "b0"]
    assert taken == [0, 2] * 3  # the third number of the second source


def test_one_source_is_itself() -> None:
    source = Ahead("a", [2])
    assert joined([source]) is source


def test_the_first_samples_are_those_of_the_first_shards() -> None:
    first = FirstSamples(Ahead("ab", [2, 3, 4]), 4)
    assert isinstance(first, Source)
    assert list(first.shard_sizes) == [2, 2, 0]
    assert [raw["__key__"] for raw in first.samples(iter([3, 0]))] == ["ab3", "ab0"]
    assert first.image_sizes().tolist() == [[2, 2]] * 4
    assert list(FirstSamples(Ahead("a", [2, 3]), 10).shard_sizes) == [2, 3]
