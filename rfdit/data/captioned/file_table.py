"""Tables of file names and captions: metadata.csv or .jsonl of Hugging Face's imagefolder, and any of your own."""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from rfdit.counted import counted
from rfdit.data.captioned.columns import captions_in, find_columns
from rfdit.data.captioned.files import ListedImages
from rfdit.data.image_files import EXTENSIONS, THREADS, PackedBytes, extension_of, list_images
from rfdit.data.numbers import plain_json
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.data.tables.table import ParquetTable
from rfdit.storage.text import parse_json, read_text

WANTED = "a table of file names and captions, .csv, .tsv, .json, .jsonl or .parquet"
DELIMITERS = ",;\t|"
BROKEN = "__broken__"  # the key of what cannot be read in a row
Row = dict[str, Any]


def list_named(
    table: str, *, root: str, named: Mapping[str, Sequence[str]], needs_captions: bool, whole_folder: bool
) -> ListedImages:
    """The images that the rows of a table name; the captions of several rows about one image are all its own.

    table: the path of a file with a suffix of `WANTED`. root: the folder to which its file names are relative.
    named: columns by what they hold, where their names are not usual.
    whole_folder: count the images below the root that no row names as missing_caption.
    Rows without a file are counted as missing_image, and rows without a caption by the reason.
    Raises ValueError for a table that cannot be read, that lacks a column, or of whose files none exists.
    """
    columns, rows = _rows(table)
    if not rows:
        raise ValueError(f"data.shards: {table} has no rows; give {WANTED}")
    file_column = find_columns("file", columns, named, table)[0]
    caption_columns = find_columns("caption", columns, named, table) if needs_captions else []
    left_out: Counter[str] = Counter()
    about: dict[bytes, Row] = {}
    for row in rows:
        try:
            _add(about, row, file_column, caption_columns)
        except SkippedSampleError as skipped:
            left_out[str(skipped.reason)] += 1
    there = _existing(root, list(about))
    if about and not there:
        raise ValueError(
            f"data.shards: {table} names {counted(len(about), 'image')}, none of which exists below {root}, "
            f"the first of them {os.fsdecode(next(iter(about)))}; give "
            "data.reader.root=FOLDER of the images, or the column of their names as data.reader.columns.file"
        )
    left_out[SkipReason.MISSING_IMAGE] += len(about) - len(there)
    if whole_folder:
        below = {os.path.normpath(path) for path in list_images(os.fsencode(root))[0]}
        left_out[SkipReason.MISSING_CAPTION] += len(below - set(map(os.path.normpath, about)))
    packed = PackedBytes([[_encoded(about[path]) for path in there]])
    return ListedImages(root, PackedBytes([there]), _Rows(packed), +left_out)


def _add(about: dict[bytes, Row], row: Row, file_column: str, caption_columns: Sequence[str]) -> None:
    """Add a row to the metadata of its image; raises SkippedSampleError for one without a file or a caption."""
    name = row.get(file_column)
    if BROKEN in row or (name is not None and not isinstance(name, str)):
        raise SkippedSampleError(SkipReason.CORRUPT_METADATA)
    if not name or not name.strip():
        raise SkippedSampleError(SkipReason.MISSING_IMAGE)
    path = os.fsencode(PurePath(name.strip()))  # ./a.png is a.png
    if extension_of(path) not in EXTENSIONS:
        raise SkippedSampleError(SkipReason.UNKNOWN_SUFFIX)
    captions = captions_in(row, caption_columns) if caption_columns else []
    known = about.setdefault(path, row | ({"captions": []} if caption_columns else {}))
    if caption_columns:
        known["captions"] = list(dict.fromkeys([*known["captions"], *captions]))


def _existing(root: str, paths: Sequence[bytes]) -> list[bytes]:
    """Those of the paths at which there is a file, sorted."""
    encoded = os.fsencode(root)
    with ThreadPoolExecutor(THREADS) as pool:
        there = pool.map(lambda path: os.path.isfile(os.path.join(encoded, path)), paths)
        return sorted(path for path, is_there in zip(paths, there, strict=True) if is_there)


@dataclass(frozen=True)
class _Rows:
    """The metadata of an image by its number, in little memory."""

    packed: PackedBytes

    def __call__(self, number: int) -> Row:
        return json.loads(self.packed[number])


def _encoded(row: Row) -> bytes:
    return json.dumps(plain_json(row), ensure_ascii=False, default=str).encode(errors="replace")


def _rows(table: str) -> tuple[list[str], list[Row]]:
    """(names of the columns, all rows); a row that cannot be read has the key `BROKEN`."""
    suffix = os.path.splitext(table)[1].lower()
    if suffix == ".parquet":
        parquet = ParquetTable(table)
        found = ((piece, parquet.load(piece)) for piece in parquet.pieces())
        return [*parquet.columns], [parquet.row(rows, n) for piece, rows in found for n in range(piece.rows)]
    text = read_text(table, setting="data.shards", wanted=WANTED)
    try:
        rows = list(_csv(text) if suffix in (".csv", ".tsv") else _json(text, suffix))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"data.shards: {table} cannot be read: {error}; give {WANTED}") from None
    return list(dict.fromkeys(name for row in rows for name in row if name != BROKEN)), rows


def _csv(text: str) -> Iterator[Row]:
    header = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=header.count)
    csv.field_size_limit(2**31 - 1)
    rows = csv.DictReader(
        io.StringIO(text, newline=""), restkey=BROKEN, delimiter=delimiter, skipinitialspace=True
    )
    for row in rows:
        yield {name.strip(): value for name, value in row.items()}


def _json(text: str, suffix: str) -> Iterator[Row]:
    """The objects of JSON lines, or of a list, or of an object {file: caption, captions or an object}."""
    if suffix != ".json":
        for line in filter(str.strip, text.split("\n")):
            try:
                row = parse_json(line)
            except ValueError:
                row = None
            yield row if isinstance(row, dict) else {BROKEN: line}
        return
    found = parse_json(text)
    if isinstance(found, dict):
        for name, value in found.items():
            yield {"file_name": name} | (value if isinstance(value, dict) else {"text": value})
    elif isinstance(found, list):
        yield from (row if isinstance(row, dict) else {BROKEN: row} for row in found)
    else:
        raise ValueError(
            f"it is {found!r:.40}, and neither a list of objects nor an object of captions by file name"
        )
