"""The columns of tables of images: those with the files or the images, and those with the captions."""

from collections.abc import Mapping, Sequence
from typing import Any

from rfdit.data.numbers import is_missing
from rfdit.data.skips import SkippedSampleError, SkipReason

# Names that people give them, in small letters; the first that a table has is used.
COLUMNS = {
    "file": ("file_name", "filename", "file", "image", "path", "image_path", "filepath", "img"),
    "image": ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes"),
    "caption": ("text", "caption", "captions", "prompt", "description"),
}
WHAT = {"file": "file names", "image": "images", "caption": "captions"}
Named = Mapping[str, str | Sequence[str] | None]  # columns that a setting names, by what they hold
Row = Mapping[str, Any]


def check_named(columns: Named | None) -> dict[str, list[str]]:
    """The columns that `data.reader.columns` names, as lists. Raises ValueError for something else than a column."""
    if unknown := set(columns or {}) - set(COLUMNS):
        raise ValueError(
            f"data.reader.columns.{min(unknown)} is not a column that is read; use {', '.join(COLUMNS)}"
        )
    given = {what: value for what, value in (columns or {}).items() if value}
    return {what: [value] if isinstance(value, str) else list(value) for what, value in given.items()}


def find_columns(
    what: str, there: Sequence[str], named: Mapping[str, Sequence[str]], table: str
) -> list[str]:
    """The columns of a table that hold `file`, `image` or `caption`: those that are named, or a usual name.

    there: all columns of the table. Raises ValueError, naming the setting and the columns, if there is none.
    """
    it_has = f"it has {', '.join(there) or 'no columns'}"
    if what in named:
        if missing := [name for name in named[what] if name not in there]:
            raise ValueError(f"data.reader.columns.{what}={missing[0]} is not a column of {table}; {it_has}")
        return list(named[what])
    known = {name.lower(): name for name in reversed(there)}
    if found := next((known[name] for name in COLUMNS[what] if name in known), None):
        return [found]
    without = ", or data.decoder.caption_key=null to do without captions" if what == "caption" else ""
    if what == "file" and "url" in known:
        without = "; for images that are fetched from URLs write data=laion_urls"
    raise ValueError(
        f"data.shards: {table} has no column of {WHAT[what]} ({', '.join(COLUMNS[what])}); {it_has}; "
        f"give data.reader.columns.{what}=COLUMN{without}"
    )


def captions_in(row: Row, columns: Sequence[str]) -> list[str]:
    """The captions of a row that are not blank, from texts and lists of texts.

    Raises SkippedSampleError with the reason if there are none.
    """
    values = [row[name] for name in columns if not is_missing(row.get(name))]
    flat = [part for value in values for part in (value if isinstance(value, list) else [value])]
    texts = [part.strip() for part in flat if isinstance(part, str)]
    if found := [text for text in texts if text]:
        return list(dict.fromkeys(found))
    blank = bool(texts) or any(isinstance(row.get(name), str) for name in columns)
    reason = SkipReason.EMPTY_CAPTION if blank else SkipReason.MISSING_CAPTION
    raise SkippedSampleError(
        SkipReason.CAPTION_NOT_TEXT if flat and not blank else reason, ", ".join(columns)
    )
