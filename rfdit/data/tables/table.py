"""Tables of metadata as parquet or JSON lines, local or remote, read in pieces."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import fsspec

from rfdit.storage.text import decode_text, parse_json

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet

LINES = 10_000  # lines of JSON in one piece
FIRST_LINES = 100  # in which columns are looked for
LINE = "line"  # the column that holds them

Row = dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """Rows that are read together: a row group of parquet, or the lines between two byte offsets."""

    rows: int
    start: int
    end: int


class ParquetTable:
    """A parquet file; its pieces are its row groups."""

    def __init__(self, path: str) -> None:
        self.path = path

    @cached_property
    def _metadata(self) -> "parquet.FileMetaData":
        from pyarrow import parquet

        with _open(self.path) as file:
            return parquet.ParquetFile(file).metadata

    @property
    def columns(self) -> Sequence[str]:
        """Names of the columns."""
        return self._metadata.schema.to_arrow_schema().names

    @property
    def binary_columns(self) -> Sequence[str]:
        """Names of the columns of bytes, or of structures that have a field `bytes`."""
        import pyarrow as pa

        def is_binary(kind: pa.DataType) -> bool:
            if pa.types.is_struct(kind):
                return any(field.name == "bytes" for field in kind)
            return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

        schema = self._metadata.schema.to_arrow_schema()
        return [field.name for field in schema if is_binary(field.type)]

    def pieces(self) -> list[Piece]:
        """All rows, in order."""
        sizes = [self._metadata.row_group(i).num_rows for i in range(self._metadata.num_row_groups)]
        return [Piece(rows, i, i + 1) for i, rows in enumerate(sizes)]

    def load(self, piece: Piece, columns: Sequence[str] | None = None) -> "pa.Table":
        """A piece in memory, with all columns or some."""
        from pyarrow import parquet

        with _open(self.path) as file:
            opened = parquet.ParquetFile(file, metadata=self._metadata)
            # One thread, since this may be one of many worker processes, and a forked one.
            names = None if columns is None else list(columns)
            return opened.read_row_group(piece.start, columns=names, use_threads=False)

    def row(self, loaded: "pa.Table", number: int) -> Row:
        """A row of a loaded piece; some programs write text as bytes."""
        row = loaded.slice(number, 1).to_pylist()[0] if loaded.num_columns else {}
        return {name: _as_text(value) if isinstance(value, bytes) else value for name, value in row.items()}


class JsonLinesTable:
    """A file with a JSON object on each line; empty lines do not count. A piece is 10,000 lines."""

    def __init__(self, path: str) -> None:
        self.path = path

    @cached_property
    def columns(self) -> Sequence[str]:
        """Names of the columns of the first lines, each of which may lack some."""
        found: dict[str, None] = {}
        problem: ValueError | None = None
        with _open(self.path) as file:
            for line in itertools.islice(filter(bytes.strip, file), FIRST_LINES):
                try:
                    found |= dict.fromkeys(_parsed(line))
                except ValueError as error:
                    problem = problem or error
        if problem is not None and not found:
            raise ValueError(f"data.shards: {self.path}: its first line {problem}")
        return list(found)

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

    def load(self, piece: Piece, columns: Sequence[str] | None = None) -> "pa.Table":
        """The whole lines, since their columns may differ."""
        import pyarrow as pa

        with _open(self.path) as file:
            file.seek(piece.start)
            lines = file.read(piece.end - piece.start).split(b"\n")
        return pa.table({LINE: pa.array([line for line in lines if line.strip()], pa.large_binary())})

    def row(self, loaded: "pa.Table", number: int) -> Row:
        """A row of a loaded piece. Raises ValueError for a damaged one."""
        return _parsed(loaded[LINE][number].as_py())


Table = ParquetTable | JsonLinesTable


def open_table(path: str) -> Table:
    """path: anything that fsspec opens. Raises ValueError unless it ends in .parquet, .jsonl or .ndjson."""
    ending = path.lower().rpartition(".")[2]
    if ending == "parquet":
        return ParquetTable(path)
    if ending in ("jsonl", "ndjson"):
        return JsonLinesTable(path)
    raise ValueError(f"data.shards: {path} is not a table; use files that end in .parquet or .jsonl")


def expand_tables(paths: Sequence[str]) -> list[str]:
    """The paths, with the matches of each remote glob in its place, sorted.

    Raises ValueError for a glob without a match.
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
    """Plain data that changes when the file does, as far as its file system tells. Raises OSError without a file."""
    system, inner = fsspec.core.url_to_fs(path)
    info = system.info(inner)
    fields = ("size", "mtime", "ETag", "etag", "LastModified", "last_modified")
    return [path, *(f"{name}={info[name]}" for name in fields if name in info)]


def _open(path: str) -> BinaryIO:
    system, inner = fsspec.core.url_to_fs(path)
    return cast(BinaryIO, system.open(inner, "rb"))


def _as_text(value: bytes) -> str | bytes:
    try:
        return decode_text(value)
    except ValueError:
        return value


def _parsed(line: bytes) -> Row:
    row = parse_json(line)
    if not isinstance(row, dict):
        raise ValueError(f"is not a JSON object: {line[:40]!r}")
    return row
