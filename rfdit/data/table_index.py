"""Which rows of a table are wanted: found once, kept in a folder, and memory-mapped from there."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from rfdit.data.cache_folder import write_atomically
from rfdit.data.filters import Filters
from rfdit.data.skips import SkipReason
from rfdit.data.tables import Piece, Row, Table, fingerprint, open_table

VERSION = 1  # of what is kept


@dataclass(frozen=True)
class TableIndex:
    """The wanted rows of one table.

    name: of the table with everything that the index depends on.
    folder: where the index is kept. Its arrays are memory-mapped when asked for, so that this is small.
    kept: wanted rows of each piece.
    skipped: rows that are not wanted, by reason.
    """

    name: str
    folder: Path
    table: Table
    pieces: Sequence[Piece]
    kept: Sequence[int]
    skipped: Mapping[str, int]

    def rows(self, piece: int) -> Int[np.ndarray, "n"]:
        """Which rows of a piece are wanted."""
        rows = self._array("rows")
        if rows is None:
            return np.arange(self.kept[piece])
        start = sum(self.kept[:piece])
        return rows[start : start + self.kept[piece]].astype(np.int64)

    def sizes(self) -> Int[np.ndarray, "n 2"] | None:
        """(height, width) of the image of each wanted row, if they were asked for."""
        return self._array("sizes")

    def _array(self, kind: str) -> np.ndarray | None:
        path = self.folder / f"{self.name}.{kind}.npy"
        return np.load(path, mmap_mode="r") if path.exists() else None


@dataclass(frozen=True, kw_only=True)
class TableIndexer:
    """Indexes tables.

    folder: where indices are kept.
    filters: which rows are wanted.
    caption_columns: where captions are; the first of them that a row has.
    url_columns: one of them is needed.
    image_sizes: whether sizes are needed; rows without one are not wanted then.
    """

    folder: Path
    filters: Filters
    caption_columns: Sequence[str]
    url_columns: Sequence[str]
    image_sizes: bool

    def __call__(self, path: str) -> TableIndex:
        """The index, from the folder if it is there.

        Raises ValueError, naming the setting, for a table that cannot be read or has no URLs.
        """
        table = open_table(path)
        try:
            name = self._name(path)
            if not (self.folder / f"{name}.json").exists():
                self._build(table, name)
            return self._load(table, name)
        except (OSError, EOFError, pa.ArrowInvalid) as error:
            raise ValueError(f"data.shards: {path} cannot be read: {error}") from error

    def _name(self, path: str) -> str:
        depends = [
            VERSION,
            fingerprint(path),
            self.filters.settings,
            list(self.caption_columns),
            list(self.url_columns),
            self.image_sizes,
        ]
        return hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:24]

    def _load(self, table: Table, name: str) -> TableIndex:
        found = json.loads((self.folder / f"{name}.json").read_text())
        pieces = [Piece(**piece) for piece in found["pieces"]]
        return TableIndex(name, self.folder, table, pieces, found["kept"], found["skipped"])

    def _build(self, table: Table, name: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        pieces = table.pieces()
        if pieces and not set(self.url_columns) & set(table.columns):
            raise ValueError(
                f"data.shards: {table.path} has no column {' or '.join(self.url_columns)} of URLs; it has "
                f"{', '.join(table.columns)}; give data.reader.columns.url"
            )
        skipped: Counter[str] = Counter()
        if self.filters.active or self.image_sizes:
            wanted = [self._wanted(table, piece, skipped) for piece in pieces]
            kept = [len(rows) for rows, _ in wanted]
            self._save(f"{name}.rows.npy", np.concatenate([rows for rows, _ in wanted]) if wanted else None)
            if self.image_sizes:
                self._save(
                    f"{name}.sizes.npy", np.concatenate([sizes for _, sizes in wanted]) if wanted else None
                )
        else:
            kept = [piece.rows for piece in pieces]
        found = {"pieces": [asdict(piece) for piece in pieces], "kept": kept, "skipped": skipped}
        # Last: an index is complete if this is there.
        write_atomically(self.folder / f"{name}.json", lambda file: file.write(json.dumps(found).encode()))

    def _save(self, name: str, array: np.ndarray | None) -> None:
        if array is not None:
            write_atomically(self.folder / name, lambda file: np.save(file, array))

    def _wanted(
        self, table: Table, piece: Piece, skipped: Counter[str]
    ) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n 2"]]:
        """The wanted rows of a piece and the sizes of their images; the others are counted."""
        loaded = table.load(piece, [column for column in self._needed() if column in table.columns])
        rows: list[int] = []
        sizes: list[tuple[int, int]] = []
        for i in range(piece.rows):
            try:
                row = table.row(loaded, i)
            except ValueError:
                skipped[SkipReason.CORRUPT_METADATA] += 1
                continue
            size = self.filters.size(row) if self.image_sizes else (0, 0)
            reason = self.filters.drop_reason(
                row, caption=caption_of(row, self.caption_columns), size=_no_size
            )
            reason = reason or ("unknown_size" if size is None else None)
            if reason is None and size is not None:
                rows.append(i)
                sizes.append(size)
            else:
                skipped[str(reason)] += 1
        return np.array(rows, np.int32), np.array(sizes, np.int32).reshape(-1, 2)

    def _needed(self) -> list[str]:
        """The columns that decide."""
        settings: dict[str, Any] = self.filters.settings
        asks = {
            "width": self.image_sizes
            or settings["min_size"] is not None
            or settings["max_aspect"] is not None,
            "aesthetic": settings["min_aesthetic"] is not None,
            "watermark": settings["max_watermark"] is not None,
            "unsafe": settings["max_unsafe"] is not None,
            "language": settings["languages"] is not None,
        }
        asks["height"] = asks["width"]
        needed = [column for name, asked in asks.items() if asked for column in self.filters.columns[name]]
        if settings["min_caption"] is not None or settings["max_caption"] is not None:
            needed += self.caption_columns
        return needed


def caption_of(row: Row, columns: Sequence[str]) -> str | None:
    """The caption of a row, if it has one."""
    return next((row[column] for column in columns if isinstance(row.get(column), str)), None)


def _no_size() -> None:
    """The image is not here to look at."""
