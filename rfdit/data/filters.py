"""Which samples are wanted, by what is known of them before their pixels are decoded."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

# What LAION's releases and img2dataset call things; the first of these that a sample has is used.
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
    """Names the reason for which a sample is dropped, or none. By default nothing is dropped.

    min_size: of the image's shorter side, in pixels.
    max_aspect: longer side over shorter side.
    min_aesthetic: LAION's aesthetic score, 0 to 10.
    max_watermark, max_unsafe: probabilities of a watermark, and of being not safe for work.
    min_caption, max_caption: length in characters, without white space around.
    languages: of the caption, as the metadata writes them ("en").
    keep_unknown: keep samples whose metadata lacks what a filter asks for; else they are dropped, and
        counted as `unknown_<what>`.
    columns: where else to look than `COLUMNS` says, as {"aesthetic": "my_score"}.

    Raises ValueError for a column it does not know, or a range that is empty.
    """

    def __init__(
        self,
        *,
        min_size: int | None = None,
        max_aspect: float | None = None,
        min_aesthetic: float | None = None,
        max_watermark: float | None = None,
        max_unsafe: float | None = None,
        min_caption: int | None = None,
        max_caption: int | None = None,
        languages: Sequence[str] | None = None,
        keep_unknown: bool = False,
        columns: Mapping[str, str | None] | None = None,
    ) -> None:
        unknown = set(columns or {}) - set(COLUMNS)
        if unknown:
            raise ValueError(
                f"data.filters.columns.{min(unknown)} is no column that filters use; there are {', '.join(COLUMNS)}"
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
            raise ValueError(f"data.filters.languages={languages} is no list; write [{languages}]")
        self.min_size, self.max_aspect = min_size, max_aspect
        self.min_aesthetic, self.max_watermark, self.max_unsafe = min_aesthetic, max_watermark, max_unsafe
        self.min_caption, self.max_caption = min_caption, max_caption
        self.languages = None if languages is None else [language.lower() for language in languages]
        self.keep_unknown = keep_unknown
        self.columns = COLUMNS | {name: (column,) for name, column in (columns or {}).items() if column}

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides what is dropped, as plain data: caches are named after it."""
        return dict(vars(self))

    @property
    def active(self) -> bool:
        """Whether anything can be dropped."""
        off = {"keep_unknown", "columns"}
        return any(value is not None for name, value in vars(self).items() if name not in off)

    def size(self, metadata: Mapping[str, Any]) -> Size | None:
        """(height, width) of the image as the metadata tells it; None if it does not."""
        height, width = (self._number(metadata, name) for name in ("height", "width"))
        return None if not height or not width else (int(height), int(width))

    def drop_reason(
        self, metadata: Mapping[str, Any], *, caption: str | None, size: Callable[[], Size | None]
    ) -> str | None:
        """Why this sample is dropped, or None.

        metadata: the sample's JSON, or its row of a table.
        caption: its caption, if it has one. size: finds (height, width) of the image where the metadata
            does not tell; called only if a filter asks for it.
        """
        return (
            self._by_size(metadata, size) or self._by_score(metadata) or self._by_caption(metadata, caption)
        )

    def _by_size(self, metadata: Mapping[str, Any], size: Callable[[], Size | None]) -> str | None:
        if self.min_size is None and self.max_aspect is None:
            return None
        found = self.size(metadata) or size()
        if found is None:
            return self._unknown("size")
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
            value = self._number(metadata, name)
            if value is None:
                if reason := self._unknown(name):
                    return reason
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
        return next((metadata[c] for c in self.columns[name] if metadata.get(c) is not None), None)

    def _number(self, metadata: Mapping[str, Any], name: str) -> float | None:
        """None for what is no number, NaN included."""
        try:
            value = float(self._value(metadata, name))
        except (TypeError, ValueError):
            return None
        return value if value == value else None
