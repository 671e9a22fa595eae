"""Limits on the values of settings, stated in their type annotations and checked by `validate`."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin


@dataclass(frozen=True)
class Limit:
    """A condition on values, for an annotation: `Annotated[int, Limit("at least 1", lambda n: n >= 1)]`.

    words: the condition in words, to follow "must be". holds: tests a value; false for NaN.
    """

    words: str
    holds: Callable[[Any], bool]


def are_sides(size: Any) -> bool:
    """True for one side of a square, or both sides of a rectangle, in whole numbers above 0."""
    sides = size if isinstance(size, list | tuple) else [size, size]
    return len(sides) == 2 and all(type(side) is int and side > 0 for side in sides)


Count = Annotated[int, Limit("at least 1", lambda n: n >= 1)]
AtLeastTwo = Annotated[int, Limit("at least 2", lambda n: n >= 2)]
Index = Annotated[int, Limit("at least 0", lambda n: n >= 0)]
Seed = Annotated[int, Limit("from 0 to 2^63 - 1", lambda n: 0 <= n < 2**63)]
Size = Annotated[
    int | Sequence[int], Limit("one side, or [height,width], in whole numbers above 0", are_sides)
]
Finite = Annotated[float, Limit("finite", math.isfinite)]
Positive = Annotated[float, Limit("more than 0 and finite", lambda x: 0 < x < math.inf)]
NotNegative = Annotated[float, Limit("at least 0 and finite", lambda x: 0 <= x < math.inf)]
AtLeastOne = Annotated[float, Limit("at least 1 and finite", lambda x: 1 <= x < math.inf)]
Fraction = Annotated[float, Limit("from 0 to 1", lambda x: 0 <= x <= 1)]
OpenFraction = Annotated[float, Limit("between 0 and 1", lambda x: 0 < x < 1)]
BelowOne = Annotated[float, Limit("at least 0 and less than 1", lambda x: 0 <= x < 1)]


def limits(hint: Any) -> Iterator[Limit]:
    """The limits of an annotation on a value as a whole, including those of a union such as `Count | None`."""
    if get_origin(hint) is Annotated:
        yield from (part for part in hint.__metadata__ if isinstance(part, Limit))
    elif get_origin(hint) in (Union, UnionType):
        for part in get_args(hint):
            yield from limits(part)


def violations(value: Any, hint: Any) -> Iterator[str]:
    """The limits that a value of the annotation's type breaks, in words; the items of lists are tested as well."""
    if value is None:
        return
    items = isinstance(value, list | tuple)
    for part in get_args(hint) if get_origin(hint) in (Union, UnionType) else [hint]:
        bare = get_origin(part.__origin__ if get_origin(part) is Annotated else part)
        if get_origin(part) is Annotated and (not items or bare is not None):
            yield from (limit.words for limit in limits(part) if not limit.holds(value))
        elif items and bare in (list, tuple, Sequence, Iterable):
            for item in value:
                yield from (f"{words}, each of them" for words in violations(item, get_args(part)[0]))
