"""Parquet files with the images in them, as Hugging Face's datasets have them: bytes, or {bytes, path}."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from rfdit.counted import counted
from rfdit.data.captioned.columns import COLUMNS, captions_in, find_columns
from rfdit.data.captioned.files import metadata_files
from rfdit.data.decode import image_size
from rfdit.data.filters import Filters, Size
from rfdit.data.pixels import FORMATS, open_image
from rfdit.data.sample import RawSample
from rfdit.data.skips import SkippedSampleError, SkipReason, listed
from rfdit.data.tables.index import TableIndexer
from rfdit.data.tables.selected_rows import SelectedRows
from rfdit.data.tables.table import ParquetTable, Row, Table
from rfdit.storage.disk_cache import DiskCache, cache_root


def image_columns(table: ParquetTable, named: Mapping[str, Sequence[str]]) -> list[str]:
    """The columns of a parquet file that hold images: that which is named, or those with bytes under a usual name.

    Raises ValueError if the named one does not exist.
    """
    if "image" in named:
        return find_columns("image", table.columns, named, table.path)
    return [name for name in table.binary_columns if name.lower() in COLUMNS["image"]]


class ImageTableSource:
    """The rows of parquet files that pass the filters. A `Source`; a logical shard is a row group.

    Samples have the keys "__key__" (the numbers of the file and the row), the image under the suffix of its
    format, "txt" (the first caption), and "json" (the other columns, with all captions in `captions`).

    paths: local files. named: columns by what they hold, where their names are not usual.
    max_row_bytes: size limit of the rows that are unpacked for random access; see `SelectedRows`.
    Raises ValueError for a table without the columns, and if no row is left.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        named: Mapping[str, Sequence[str]],
        needs_captions: bool,
        max_row_bytes: int,
        filters: Filters,
        image_sizes: bool,
    ) -> None:
        tables = [ParquetTable(path) for path in paths]
        self._images = [image_columns(table, named)[0] for table in tables]
        self._captions = [
            find_columns("caption", table.columns, named, table.path) if needs_captions else []
            for table in tables
        ]
        folder = cache_root() / "image_tables"
        index = [
            self._indexer(folder, number, filters, image_sizes)(path) for number, path in enumerate(paths)
        ]
        self._rows = SelectedRows(index, DiskCache(folder=str(folder / "rows"), max_bytes=max_row_bytes))
        self.shard_sizes: Sequence[int] = self._rows.piece_sizes
        if not len(self._rows):
            raise ValueError(
                f"data.shards: no row of {counted(len(paths), 'table')}, the first of them {paths[0]}, is left: "
                f"{listed(self._rows.skipped()) or 'they are empty'}"
            )

    def _indexer(self, folder: Path, number: int, filters: Filters, image_sizes: bool) -> TableIndexer:
        image = self._images[number]

        def measure(row: Row) -> Size | None:
            found = _bytes_of(row.get(image))
            return None if found is None else image_size(found)

        def check(table: Table) -> None:
            """The columns are known already."""

        return TableIndexer(
            folder=folder,
            filters=filters,
            caption_columns=self._captions[number],
            check=check,
            depends=[image],
            image_sizes=image_sizes,
            measure=measure,
            measured_columns=[image],
        )

    def samples(self, numbers: Iterable[int]) -> Iterator[RawSample | SkippedSampleError]:
        for number in numbers:
            try:
                yield self._read(number)
            except SkippedSampleError as skipped:
                yield skipped

    def _read(self, number: int) -> RawSample:
        key, row = self._rows[number]
        table = int(key[:5])
        image, columns = self._images[table], self._captions[table]
        try:
            about: dict[str, Any] = {name: value for name, value in row.items() if name != image}
            if columns:
                about["captions"] = captions_in(row, columns)
            data = _bytes_of(row.get(image))
            if data is None:
                raise SkippedSampleError(SkipReason.MISSING_IMAGE, f"its {image} has no bytes")
            files: dict[str, str | bytes] = {"__key__": key, _extension(data): data}
            return files | metadata_files(about)
        except SkippedSampleError as skipped:
            skipped.sample = f"row {int(key[5:])} of {os.path.basename(self._rows.tables[table].table.path)}"
            raise

    def skipped(self) -> Mapping[str, int]:
        return self._rows.skipped()

    def image_sizes(self) -> Int[np.ndarray, "n 2"]:
        return self._rows.image_sizes()


def _bytes_of(value: object) -> bytes | None:
    found = value.get("bytes") if isinstance(value, dict) else value
    return found.encode() if isinstance(found, str) else found if isinstance(found, bytes) else None


def _extension(data: bytes) -> str:
    """The suffix of an image's format; raises SkippedSampleError if it is none that is read."""
    try:
        with open_image(data) as image:
            return FORMATS[str(image.format)][0]
    except SkippedSampleError:
        raise
    except Exception as error:  # Pillow's parsers raise many kinds of errors
        raise SkippedSampleError(SkipReason.CORRUPT_IMAGE, str(error)) from error
