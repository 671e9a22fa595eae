"""Filters of samples by their metadata, before their pixels are decoded."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rfdit.data.numbers import LARGEST_SIDE, finite_number, is_missing, whole_number
from rfdit.limits import AtLeastOne, Finite, Index

# Names in LAION's releases and img2dataset; the first of these that a sample has is used.
COLUMNS = {
    "width": ("width", "WIDTH"),
    "height": ("height", "HEIGHT"),
    "aesthetic": ("aesthetic", "AESTHETIC_SCORE", "aesthetic_score"),
    "watermark": ("pwatermark", "PWATERMARK"),
    "unsafe": ("punsafe", "PUNSAFE"),
    "language": ("language", "LANGUAGE", "lang"),
}

Size = tuple[int, int]  # (height, width)


class Filters:
    """Drops samples by their size, scores and caption, each with a reason. By default nothing is dropped.

    A sample whose metadata lacks what a filter needs is `unknown_<name>`, and one with something there that
    cannot be a size or a score (text, infinite, a side of 512.5) is `invalid_<name>`.

    min_size: least length of the image's shorter side, in pixels.
    max_aspect: greatest ratio of longer to shorter side.
    min_aesthetic: least aesthetic score of LAION, 0 to 10.
    max_watermark, max_unsafe: greatest probabilities of a watermark, and of being not safe for work.
    min_caption, max_caption: length in characters, without surrounding white space.
    languages: the caption's languages that are kept, as the metadata writes them ("en").
    keep_unknown: keep samples that are unknown. Those that are invalid are dropped all the same.
    columns: names of the metadata instead of those in `COLUMNS`, as {"aesthetic": "my_score"}.

    Raises ValueError for an unknown column or an empty range.
    """

    def __init__(
        self,
        *,
        min_size: Index | None = None,
        max_aspect: AtLeastOne | None = None,
        min_aesthetic: Finite | None = None,
        max_watermark: Finite | None = None,
        max_unsafe: Finite | None = None,
        min_caption: Index | None = None,
        max_caption: Index | None = None,
        languages: Sequence[str] | None = None,
        keep_unknown: bool = False,
        columns: Mapping[str, str | None] | None = None,
    ) -> None:
        unknown = set(columns or {}) - set(COLUMNS)
        if unknown:
            raise ValueError(
                f"data.filters.columns.{min(unknown)} is not used by any filter; use {', '.join(COLUMNS)}"
            )
        if min_caption is not None and max_caption is not None and min_caption > max_caption:
            raise ValueError(
                f"data.filters.min_caption={min_caption} is more than data.filters.max_caption={max_caption}"
            )
        if max_aspect is not None and max_aspect < 1:
            raise ValueError(
                f"data.filters.max_aspect={max_aspect}: longer side over shorter side is at least 1"
            )
        if isinstance(languages, str):
            raise ValueError(f"data.filters.languages={languages} is not a list; write [{languages}]")
        self.min_size, self.max_aspect = min_size, max_aspect
        self.min_aesthetic, self.max_watermark, self.max_unsafe = min_aesthetic, max_watermark, max_unsafe
        self.min_caption, self.max_caption = min_caption, max_caption
        self.languages = None if languages is None else [language.lower() for language in languages]
        self.keep_unknown = keep_unknown
        self.columns = COLUMNS | {name: (column,) for name, column in (columns or {}).items() if column}

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides what is dropped, as plain data; part of the names of caches."""
        return dict(vars(self))

    @property
    def active(self) -> bool:
        """True if any filter is set."""
        off = {"keep_unknown", "columns"}
        return any(value is not None for name, value in vars(self).items() if name not in off)

    def size(self, metadata: Mapping[str, Any]) -> Size | None:
        """(height, width) of the image in the metadata; None if it is missing, or cannot be a size."""
        height, width = (
            whole_number(self._value(metadata, name), least=1, most=LARGEST_SIDE)
            for name in ("height", "width")
        )
        return None if height is None or width is None else (height, width)

    def no_size(self, metadata: Mapping[str, Any]) -> str:
        """The reason why a sample has no size: unknown, or invalid."""
        missing = any(self._value(metadata, name) is None for name in ("height", "width"))
        return "unknown_size" if missing else "invalid_size"

    def drop_reason(
        self, metadata: Mapping[str, Any], *, caption: str | None, size: Callable[[], Size | None]
    ) -> str | None:
        """The reason to drop a sample; None keeps it.

        metadata: the sample's JSON, or its row of a table.
        caption: the sample's caption, if it has one.
        size: measures (height, width) of the image; called only if a filter needs it and the metadata
            lacks it.
        """
        return (
            self._by_size(metadata, size) or self._by_score(metadata) or self._by_caption(metadata, caption)
        )

    def _by_size(self, metadata: Mapping[str, Any], size: Callable[[], Size | None]) -> str | None:
        if self.min_size is None and self.max_aspect is None:
            return None
        found = self.size(metadata) or size()
        if found is None:
            reason = self.no_size(metadata)
            return None if reason == "unknown_size" and self.keep_unknown else reason
        if self.min_size is not None and min(found) < self.min_size:
            return "filtered_size"
        if self.max_aspect is not None and max(found) > self.max_aspect * min(found):
            return "filtered_aspect"
        return None

    def _by_score(self, metadata: Mapping[str, Any]) -> str | None:
        limits = [
            ("aesthetic", self.min_aesthetic, -1),
            ("watermark", self.max_watermark, 1),
            ("unsafe", self.max_unsafe, 1),
        ]
        for name, limit, sign in limits:
            if limit is None:
                continue
            stated = self._value(metadata, name)
            if stated is None:
                if reason := self._unknown(name):
                    return reason
            elif (value := finite_number(stated)) is None:
                return f"invalid_{name}"
            elif sign * value > sign * limit:
                return f"filtered_{name}"
        return None

    def _by_caption(self, metadata: Mapping[str, Any], caption: str | None) -> str | None:
        if self.min_caption is not None or self.max_caption is not None:
            length = len((caption or "").strip())
            if length < (self.min_caption or 0) or (
                self.max_caption is not None and length > self.max_caption
            ):
                return "filtered_caption"
        if self.languages is not None:
            language = self._value(metadata, "language")
            if language is None:
                return self._unknown("language")
            if str(language).lower() not in self.languages:
                return "filtered_language"
        return None

    def _unknown(self, name: str) -> str | None:
        return None if self.keep_unknown else f"unknown_{name}"

    def _value(self, metadata: Mapping[str, Any], name: str) -> Any:
        """The value in the first of a name's columns that has one in the metadata; None if none has."""
        return next((v for c in self.columns[name] if not is_missing(v := metadata.get(c))), None)
