"""Tables of metadata as parquet or JSON lines, local or remote, in pieces that are read on their own."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import fsspec
import pyarrow as pa
from pyarrow import parquet

LINES = 10_000  # of JSON in one piece
LINE = "line"

Row = dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """Rows that lie together: a row group of parquet, or the lines between two byte offsets."""

    rows: int
    start: int
    end: int


class ParquetTable:
    """A parquet file; its pieces are its row groups."""

    def __init__(self, path: str) -> None:
        self.path = path

    @cached_property
    def _metadata(self) -> parquet.FileMetaData:
        with _open(self.path) as file:
            return parquet.ParquetFile(file).metadata

    @property
    def columns(self) -> Sequence[str]:
        """Their names."""
        return self._metadata.schema.to_arrow_schema().names

    def pieces(self) -> list[Piece]:
        """All rows, in order."""
        sizes = [self._metadata.row_group(i).num_rows for i in range(self._metadata.num_row_groups)]
        return [Piece(rows, i, i + 1) for i, rows in enumerate(sizes)]

    def load(self, piece: Piece, columns: Sequence[str] | None = None) -> pa.Table:
        """A piece in memory, whole or as far as some columns go."""
        with _open(self.path) as file:
            opened = parquet.ParquetFile(file, metadata=self._metadata)
            names = None if columns is None else list(columns)
            # One thread: this may be one of many worker processes, and a forked one.
            return opened.read_row_group(piece.start, columns=names, use_threads=False)

    def row(self, loaded: pa.Table, number: int) -> Row:
        """A row of a loaded piece."""
        return loaded.slice(number, 1).to_pylist()[0] if loaded.num_columns else {}


class JsonLinesTable:
    """A file with a JSON object on each line; empty lines do not count."""

    def __init__(self, path: str) -> None:
        self.path = path

    @cached_property
    def columns(self) -> Sequence[str]:
        """Their names, as far as the first line tells."""
        with _open(self.path) as file:
            first = next((line for line in file if line.strip()), b"{}")
        try:
            return list(_parsed(first))
        except ValueError:
            return []

    def pieces(self) -> list[Piece]:
        """All rows, in order."""
        return list(self._runs())

    def _runs(self) -> Iterator[Piece]:
        rows = start = end = 0
        with _open(self.path) as file:
            for line in file:
                rows, end = rows + bool(line.strip()), end + len(line)
                if rows == LINES:
                    yield Piece(rows, start, end)
                    rows, start = 0, end
        if rows:
            yield Piece(rows, start, end)

    def load(self, piece: Piece, columns: Sequence[str] | None = None) -> pa.Table:
        """The lines as they are: what they hold may differ from line to line."""
        with _open(self.path) as file:
            file.seek(piece.start)
            lines = file.read(piece.end - piece.start).split(b"\n")
        return pa.table({LINE: pa.array([line for line in lines if line.strip()], pa.large_binary())})

    def row(self, loaded: pa.Table, number: int) -> Row:
        """A row of a loaded piece. Raises ValueError for one that is damaged."""
        return _parsed(loaded[LINE][number].as_py())


Table = ParquetTable | JsonLinesTable


def open_table(path: str) -> Table:
    """path: anything that fsspec opens. Raises ValueError for an ending that is neither kind's."""
    ending = path.lower().rpartition(".")[2]
    if ending == "parquet":
        return ParquetTable(path)
    if ending in ("jsonl", "ndjson"):
        return JsonLinesTable(path)
    raise ValueError(f"data.shards: {path} is no table; files that end in .parquet or .jsonl are")


def expand_tables(paths: Sequence[str]) -> list[str]:
    """The tables, those that a remote glob stands for in their order.

    Raises ValueError for a glob that nothing matches.
    """
    found: list[str] = []
    for path in paths:
        if "://" not in path or "*" not in path:
            found.append(path)
            continue
        system, inner = fsspec.core.url_to_fs(path)
        matches = sorted(system.unstrip_protocol(match) for match in system.glob(inner))
        if not matches:
            raise ValueError(f"data.shards: nothing matches {path}")
        found += matches
    return found


def fingerprint(path: str) -> list[str]:
    """What changes when the file does, as far as its file system tells. Raises OSError if it is not there."""
    system, inner = fsspec.core.url_to_fs(path)
    info = system.info(inner)
    telling = ("size", "mtime", "ETag", "etag", "LastModified", "last_modified")
    return [path, *(f"{name}={info[name]}" for name in telling if name in info)]


def _open(path: str) -> Any:
    """A file, open for reading; of a kind of its own for each file system."""
    system, inner = fsspec.core.url_to_fs(path)
    return system.open(inner, "rb")


def _parsed(line: bytes) -> Row:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"{line[:40]!r} is no JSON object")
    return row
