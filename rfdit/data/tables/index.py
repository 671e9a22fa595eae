"""Index of the rows of a table that pass the filters: built once, stored in a folder, memory-mapped."""

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from rfdit.data.decode import caption_text
from rfdit.data.filters import Filters, Size
from rfdit.data.skips import SkipReason
from rfdit.data.tables.table import Piece, Row, Table, fingerprint, open_table
from rfdit.storage.atomic import write_atomically
from rfdit.storage.checked import (
    DamagedFileError,
    read_checked_json,
    structure,
    whole_numbers,
    write_checked_json,
)
from rfdit.storage.checksum import blake2b_at, json_digest

FORMAT = 5  # number of the format of an index's files


@dataclass(frozen=True)
class TableIndex:
    """The selected rows of one table.

    name: identifies the table and everything that the index depends on.
    folder: the folder of its arrays, which are memory-mapped when they are used, so that this object is
        small.
    selected: number of selected rows of each piece. skipped: numbers of the others, by reason.
    arrays: names of the arrays: `rows` unless all rows are selected, `sizes` if they are needed.
    """

    name: str
    folder: Path
    table: Table
    pieces: Sequence[Piece]
    selected: Sequence[int]
    skipped: Mapping[str, int]
    arrays: Collection[str]

    def rows(self, piece: int) -> Int[np.ndarray, "n"]:
        """Numbers of the selected rows of a piece, counted from its beginning."""
        rows = self._array("rows")
        if rows is None:
            return np.arange(self.selected[piece])
        start = sum(self.selected[:piece])
        return rows[start : start + self.selected[piece]].astype(np.int64)

    def sizes(self) -> Int[np.ndarray, "n 2"] | None:
        """(height, width) of each selected row's image; None if the index was built without sizes."""
        return self._array("sizes")

    def _array(self, kind: str) -> np.ndarray | None:
        path = self.folder / f"{self.name}.{kind}.npy"
        return np.load(path, mmap_mode="r") if kind in self.arrays else None


@dataclass(frozen=True, kw_only=True)
class TableIndexer:
    """Builds and loads indices.

    folder: the folder of the indices. filters: rules that select rows.
    caption_columns: the first of them that has text is the caption for the filters.
    check: raises ValueError, naming the setting, for a table without the columns that are needed.
    depends: plain data on which the check, or the rows that are selected, depend besides.
    image_sizes: True if sizes are needed; rows without one are skipped then.
    measure: (height, width) of a row's image, where its columns do not say it; it needs the columns
        measured_columns.
    """

    folder: Path
    filters: Filters
    caption_columns: Sequence[str]
    check: Callable[[Table], None]
    depends: Sequence[Any]
    image_sizes: bool
    measure: Callable[[Row], Size | None] = lambda row: None
    measured_columns: Sequence[str] = ()

    def __call__(self, path: str) -> TableIndex:
        """The index of a table, from the folder if it is there and whole.

        Raises ValueError, naming the setting, for a table that cannot be read or lacks a column.
        """
        from pyarrow import ArrowInvalid

        table = open_table(path)
        try:
            name = self._name(path)
            with contextlib.suppress(FileNotFoundError, DamagedFileError):
                return self._load(table, name)
            self._build(table, name)
            return self._load(table, name)
        except (OSError, EOFError, ArrowInvalid) as error:
            raise ValueError(f"data.shards: {path} cannot be read: {error}") from error

    def _name(self, path: str) -> str:
        depends = [
            FORMAT,
            fingerprint(path),
            self.filters.settings,
            list(self.caption_columns),
            list(self.depends),
            self.image_sizes,
        ]
        return json_digest(depends, digits=24)

    def _load(self, table: Table, name: str) -> TableIndex:
        file = self.folder / f"{name}.json"
        stored = read_checked_json(file)
        with structure(file):
            for kind, digest in stored["arrays"].items():
                if blake2b_at(path := self.folder / f"{name}.{kind}.npy") != digest:
                    raise DamagedFileError(f"{path} is not what was written")
            pieces = [Piece(**piece) for piece in stored["pieces"]]
            selected, skipped = stored["selected"], stored["skipped"]
            counts = [*selected, *skipped.values(), *(n for piece in pieces for n in vars(piece).values())]
            if not whole_numbers(counts) or len(selected) != len(pieces):
                raise DamagedFileError(f"{file} is not what was written")
            return TableIndex(
                name, self.folder, table, pieces, selected, skipped, frozenset(stored["arrays"])
            )

    def _build(self, table: Table, name: str) -> None:
        pieces = table.pieces()
        if pieces:
            self.check(table)
        self.folder.mkdir(parents=True, exist_ok=True)
        selected, skipped = [piece.rows for piece in pieces], Counter[str]()
        arrays: dict[str, str] = {}
        if pieces and (self.filters.active or self.image_sizes):
            chosen = [self._select(table, piece, skipped) for piece in pieces]
            selected = [len(rows) for rows, _ in chosen]
            arrays["rows"] = self._save(f"{name}.rows.npy", [rows for rows, _ in chosen])
            if self.image_sizes:
                arrays["sizes"] = self._save(f"{name}.sizes.npy", [sizes for _, sizes in chosen])
        stored = {
            "pieces": [asdict(piece) for piece in pieces],
            "selected": selected,
            "skipped": skipped,
            "arrays": arrays,
        }
        # Last: an index is complete if this file exists.
        write_checked_json(self.folder / f"{name}.json", stored)

    def _save(self, name: str, parts: list[np.ndarray]) -> str:
        """Writes an array; returns its digest."""
        write_atomically(self.folder / name, lambda file: np.save(file, np.concatenate(parts)))
        return blake2b_at(self.folder / name)

    def _select(
        self, table: Table, piece: Piece, skipped: Counter[str]
    ) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n 2"]]:
        """The selected rows of a piece and the sizes of their images; the others are counted."""
        loaded = table.load(piece, [column for column in self._needed() if column in table.columns])
        rows: list[int] = []
        sizes: list[tuple[int, int]] = []
        for i in range(piece.rows):
            try:
                row = table.row(loaded, i)
            except ValueError:
                skipped[SkipReason.CORRUPT_METADATA] += 1
                continue
            size = self.filters.size(row) or self.measure(row) if self.image_sizes else (0, 0)
            caption = first_text(row, self.caption_columns)
            reason = self.filters.drop_reason(row, caption=caption, size=partial(self.measure, row))
            if reason is not None:
                skipped[reason] += 1
            elif size is None:
                skipped[self.filters.no_size(row)] += 1
            else:
                rows.append(i)
                sizes.append(size)
        return np.array(rows, np.int32), np.array(sizes, np.int32).reshape(-1, 2)

    def _needed(self) -> list[str]:
        """The columns on which the selection depends."""
        settings: dict[str, Any] = self.filters.settings
        sized = self.image_sizes or settings["min_size"] is not None or settings["max_aspect"] is not None
        needs = {
            "width": sized,
            "height": sized,
            "aesthetic": settings["min_aesthetic"] is not None,
            "watermark": settings["max_watermark"] is not None,
            "unsafe": settings["max_unsafe"] is not None,
            "language": settings["languages"] is not None,
        }
        needed = [column for name, need in needs.items() if need for column in self.filters.columns[name]]
        if sized:
            needed += self.measured_columns
        if settings["min_caption"] is not None or settings["max_caption"] is not None:
            needed += self.caption_columns
        return needed


def first_text(row: Row, columns: Sequence[str]) -> str | None:
    """The text of the first of some columns that has any; of a list, the first text that is not blank."""
    texts = (caption_text(row.get(column)) for column in columns)
    return next((text for text in texts if text is not None), None)
