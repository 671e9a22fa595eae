"""Random access to the selected rows of many tables, in little memory."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from jaxtyping import Int

from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.data.tables.index import TableIndex
from rfdit.data.tables.table import Row
from rfdit.storage.disk_cache import DiskCache
from rfdit.storage.lru import LRU

if TYPE_CHECKING:
    import pyarrow as pa

OPEN_PIECES = 64  # memory-mapped by each process


class SelectedRows:
    """Rows by number, through all pieces of the tables in turn.

    Parquet is compressed and has no access to a single row. When a piece is first used on a machine, its
    selected rows are therefore unpacked into a file that all processes memory-map.

    unpacked: the cache of these files.
    """

    def __init__(self, tables: Sequence[TableIndex], unpacked: DiskCache) -> None:
        self.tables, self.unpacked = tables, unpacked
        self._pieces = [
            (t, p) for t, table in enumerate(tables) for p, rows in enumerate(table.selected) if rows
        ]
        self.piece_sizes = [tables[t].selected[p] for t, p in self._pieces]
        self._ends = np.cumsum(self.piece_sizes)
        self._open: LRU[int, tuple[pa.Table, np.ndarray]] = LRU(OPEN_PIECES)

    def __len__(self) -> int:
        return sum(self.piece_sizes)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_open": LRU(OPEN_PIECES)}

    def __getitem__(self, number: int) -> tuple[str, Row]:
        """The row's key (the number of its table and its number in it), and the row.

        Raises SkippedSampleError for a damaged row, or if its table cannot be read now.
        """
        piece = int(np.searchsorted(self._ends, number, side="right"))
        loaded, rows = self._load(piece)
        inside = number - int(self._ends[piece]) + self.piece_sizes[piece]
        t, p = self._pieces[piece]
        table = self.tables[t]
        try:
            row = table.table.row(loaded, inside)
        except ValueError as error:
            raise SkippedSampleError(SkipReason.CORRUPT_METADATA, str(error)) from error
        first = sum(each.rows for each in table.pieces[:p])
        return f"{t:05d}{first + int(rows[inside]):09d}", row

    def skipped(self) -> dict[str, int]:
        """Numbers of the rows that are not selected, by reason."""
        counts: Counter[str] = Counter()
        for table in self.tables:
            counts.update(table.skipped)
        return dict(counts)

    def image_sizes(self) -> Int[np.ndarray, "n 2"]:
        """(height, width) of each row's image. Raises ValueError if the index was built without sizes."""
        sizes: list[np.ndarray] = []
        for table in self.tables:
            found = table.sizes()
            if found is not None:
                sizes.append(found)
            elif sum(table.selected):
                raise ValueError("this source was opened without image sizes; open it with image_sizes=True")
        return np.concatenate(sizes)

    def _load(self, piece: int) -> tuple["pa.Table", np.ndarray]:
        """The selected rows of a piece, and their numbers in it."""
        import pyarrow as pa

        if piece not in self._open:
            t, p = self._pieces[piece]
            try:
                self._open[piece] = self._unpacked(self.tables[t], p), self.tables[t].rows(p)
            except (OSError, pa.ArrowInvalid) as error:
                path = self.tables[t].table.path
                raise SkippedSampleError(SkipReason.UNREADABLE_SHARD, f"{path}: {error}") from error
        return self._open[piece]

    def _unpacked(self, table: TableIndex, piece: int) -> "pa.Table":
        """A piece's selected rows, memory-mapped, or in memory where the cache cannot hold them."""
        import pyarrow as pa

        def unpack() -> pa.Table:
            loaded = table.table.load(table.pieces[piece])
            whole = table.selected[piece] == table.pieces[piece].rows
            return (loaded if whole else loaded.take(table.rows(piece))).combine_chunks()

        def write(file: BinaryIO) -> None:
            rows = unpack()
            with pa.ipc.new_file(file, rows.schema) as writer:
                writer.write_table(rows)

        try:
            path = self.unpacked.get_or_put(f"{table.name}/{piece}", write)
            return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (OSError, pa.ArrowInvalid):  # no room, or evicted or damaged just now
            return unpack()
