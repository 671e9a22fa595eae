"""What a setting may be beyond its type, said where the type is; `validate` holds every setting to it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin


@dataclass(frozen=True)
class Limit:
    """In an annotation: `Annotated[int, Limit("at least 1", lambda n: n >= 1)]`.

    words: what is wanted, to stand after "must be". holds: whether a value is that, which NaN never is.
    """

    words: str
    holds: Callable[[Any], bool]


Count = Annotated[int, Limit("at least 1", lambda n: n >= 1)]
Index = Annotated[int, Limit("at least 0", lambda n: n >= 0)]
Positive = Annotated[float, Limit("more than 0 and finite", lambda x: 0 < x < math.inf)]
NotNegative = Annotated[float, Limit("at least 0 and finite", lambda x: 0 <= x < math.inf)]
Share = Annotated[float, Limit("a share from 0 to 1", lambda x: 0 <= x <= 1)]


def limits(hint: Any) -> Iterator[Limit]:
    """The limits of an annotation, those of `Count | None` too."""
    if get_origin(hint) is Annotated:
        yield from (part for part in hint.__metadata__ if isinstance(part, Limit))
    elif get_origin(hint) in (Union, UnionType):
        for part in get_args(hint):
            yield from limits(part)
