"""Random access to the wanted rows of many tables, in little memory."""

from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from rfdit.data.folder_cache import FolderCache
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.data.table_index import TableIndex
from rfdit.data.tables import Row

OPEN_PIECES = 64  # memory-mapped by each process


class WantedRows:
    """Rows by number, through one table's pieces after the other.

    Parquet is compressed and has no way to a single row. So a piece is unpacked when it is first used
    on a machine, its wanted rows alone, into a file that all processes map into their memory.

    unpacked: where these files are.
    """

    def __init__(self, tables: Sequence[TableIndex], unpacked: FolderCache) -> None:
        self.tables, self.unpacked = tables, unpacked
        self._pieces = [(t, p) for t, table in enumerate(tables) for p, kept in enumerate(table.kept) if kept]
        self.piece_sizes = [tables[t].kept[p] for t, p in self._pieces]
        self._ends = np.cumsum(self.piece_sizes)
        self._open: OrderedDict[int, tuple[pa.Table, np.ndarray]] = OrderedDict()

    def __len__(self) -> int:
        return sum(self.piece_sizes)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_open": OrderedDict()}

    def __getitem__(self, number: int) -> tuple[str, Row]:
        """The key and the row.

        Raises SkippedSampleError for a row that is damaged, or whose table cannot be read now.
        """
        piece = int(np.searchsorted(self._ends, number, side="right"))
        loaded, rows = self._piece(piece)
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
        """How many rows are not wanted, by reason."""
        counts: Counter[str] = Counter()
        for table in self.tables:
            counts.update(table.skipped)
        return dict(counts)

    def image_sizes(self) -> Int[np.ndarray, "n 2"]:
        """(height, width) of each row's image. Raises ValueError if the index was made without."""
        sizes: list[np.ndarray] = []
        for table in self.tables:
            found = table.sizes()
            if found is not None:
                sizes.append(found)
            elif sum(table.kept):
                raise ValueError("this source was opened without image sizes; open it with image_sizes=True")
        return np.concatenate(sizes)

    def _piece(self, number: int) -> tuple[pa.Table, np.ndarray]:
        """The wanted rows of a piece, and their numbers in it."""
        if number not in self._open:
            t, p = self._pieces[number]
            try:
                self._open[number] = self._mapped(self.tables[t], p), self.tables[t].rows(p)
            except (OSError, pa.ArrowInvalid) as error:
                path = self.tables[t].table.path
                raise SkippedSampleError(SkipReason.UNREADABLE_SHARD, f"{path}: {error}") from error
        self._open.move_to_end(number)
        if len(self._open) > OPEN_PIECES:
            self._open.popitem(last=False)
        return self._open[number]

    def _mapped(self, table: TableIndex, piece: int) -> pa.Table:
        def unpack() -> pa.Table:
            loaded = table.table.load(table.pieces[piece])
            whole = table.kept[piece] == table.pieces[piece].rows
            return (loaded if whole else loaded.take(table.rows(piece))).combine_chunks()

        def write(file: BinaryIO) -> None:
            rows = unpack()
            with pa.ipc.new_file(file, rows.schema) as writer:
                writer.write_table(rows)

        try:
            path = self.unpacked.get_or_put(f"{table.name}/{piece}", write, check=False)
            return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (OSError, pa.ArrowInvalid):  # no room, or evicted or damaged just now
            return unpack()
