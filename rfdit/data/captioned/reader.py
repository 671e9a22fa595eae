"""Captioned images as people have them: beside text files, named by a table, or inside parquet files."""

import importlib.util
import itertools
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence

from rfdit.counted import counted
from rfdit.data.captioned.caption_files import list_captioned
from rfdit.data.captioned.columns import Named, check_named
from rfdit.data.captioned.file_table import WANTED, list_named
from rfdit.data.captioned.files import FileSource, ListedImages
from rfdit.data.captioned.image_table import ImageTableSource, image_columns
from rfdit.data.contents import METADATA, TABLES, contents_of
from rfdit.data.filters import Filters
from rfdit.data.joined import joined
from rfdit.data.skips import listed
from rfdit.data.source import Source
from rfdit.data.tables.table import ParquetTable
from rfdit.limits import Count
from rfdit.processes.rank import is_rank_zero


class CaptionedImages:
    """Opens captioned images in any of four forms, which it tells apart itself.

    - a folder with NAME.txt (and optionally NAME.json) beside each image;
    - a folder with metadata.csv, metadata.jsonl or metadata.parquet, as Hugging Face's imagefolder has it;
    - a table of file names and captions: .csv, .tsv, .json, .jsonl or .parquet;
    - parquet files, or a folder of them, with the images in a column.

    An image may have several captions: a list in a column, several columns, several rows about one file, or with
    captions_by_line the lines of its text. All of them are in `json.captions` of a sample, and the first is its
    txt.

    caption_key: what the decoder reads as the caption; None takes images without captions too.
    columns: names of the columns with file names (`file`), images (`image`) and captions (`caption`, one or
        several), where they are not usual ones.
    root: folder of the images that a table names; None is the table's own folder.
    captions_by_line: every line of NAME.txt is a caption of its own, instead of the whole text.
    max_row_bytes: bytes of rows of parquet files with images that are unpacked under `cache_root()`, for random
        access.

    A list of several is read as one set. Every opening lists the folders and reads the tables; text files are read
    with their images, or at once where filters need them.
    """

    suffixes = ()

    def __init__(
        self,
        *,
        caption_key: str | None = "json.captions",
        columns: Named | None = None,
        root: str | None = None,
        captions_by_line: bool = False,
        max_row_bytes: Count = 20 * 10**9,
    ) -> None:
        self.needs_captions, self.named = caption_key is not None, check_named(columns)
        self.root = None if root is None else os.path.expanduser(root)
        self.captions_by_line, self.max_row_bytes = captions_by_line, max_row_bytes

    def __call__(self, shards: Sequence[str], *, filters: Filters, image_sizes: bool = False) -> Source:
        """The samples of folders and tables.

        Raises ValueError, naming the setting, for what is none of the forms, and where no sample is left.
        """
        sources: list[Source] = []
        for has_images, group in itertools.groupby(self._expanded(shards), key=self._has_images):
            if has_images:
                paths = list(group)
                tables = ImageTableSource(
                    paths,
                    named=self.named,
                    needs_captions=self.needs_captions,
                    max_row_bytes=self.max_row_bytes,
                    filters=filters,
                    image_sizes=image_sizes,
                )
                _announce_rows(paths, tables)
                sources.append(tables)
            else:
                sources += [
                    FileSource(self._listed(path), filters=filters, image_sizes=image_sizes) for path in group
                ]
        return joined(sources)

    def _expanded(self, shards: Sequence[str]) -> Iterator[str]:
        """The paths, with the parquet files of a folder that has nothing else to read in its place."""
        for path in map(os.path.expanduser, shards):
            if not os.path.exists(path):
                raise ValueError(
                    f"data.shards: {path} does not exist; data=folder reads local folders and tables"
                )
            names = sorted(os.listdir(path)) if os.path.isdir(path) else []
            parquet = [name for name in names if name.endswith(".parquet") and name not in METADATA]
            if parquet and not any(name in METADATA for name in names):
                yield from (os.path.join(path, name) for name in parquet)
            else:
                yield path

    def _has_images(self, path: str) -> bool:
        """True for a parquet file with images in it."""
        if not path.lower().endswith(".parquet"):
            return False
        if importlib.util.find_spec("pyarrow") is None:
            raise ValueError(f"data.shards: {path} needs pyarrow: pip install 'rfdit[urls]'")
        from pyarrow import ArrowInvalid

        try:
            return bool(image_columns(ParquetTable(path), self.named))
        except (OSError, ArrowInvalid) as error:
            raise ValueError(f"data.shards: {path} cannot be read: {error}") from None

    def _listed(self, path: str) -> ListedImages:
        """The images of a folder or a table of file names."""
        if os.path.isfile(path):
            if not path.lower().endswith(TABLES):
                raise ValueError(
                    f"data.shards: {path} is neither a folder nor {WANTED}; for tar shards write data=laion"
                )
            return self._of_table(path, self.root or os.path.dirname(path) or ".", whole_folder=False)
        metadata = [file for name in METADATA if os.path.isfile(file := os.path.join(path, name))]
        if metadata:
            return self._of_table(metadata[0], self.root or path, whole_folder=self.root is None)
        images, others = list_captioned(
            path, needs_captions=self.needs_captions, by_line=self.captions_by_line
        )
        if not len(images):
            raise ValueError(f"data.shards: {path} has no image with a caption; it holds {contents_of(path)}")
        if others:
            warnings.warn(
                f"data.shards: {path}: leaving out what is neither an image nor a caption: {listed(others)}",
                stacklevel=3,
            )
        _announce_files(path, images)
        return images

    def _of_table(self, table: str, root: str, *, whole_folder: bool) -> ListedImages:
        images = list_named(
            table, root=root, named=self.named, needs_captions=self.needs_captions, whole_folder=whole_folder
        )
        if not len(images):
            raise ValueError(f"data.shards: {table}: none of its rows can be used: {listed(images.left_out)}")
        _announce_files(table, images)
        return images


def _announce_files(path: str, images: ListedImages) -> None:
    _announce(
        f"{path} has {counted(len(images), 'captioned image')}: {listed(images.kinds)}", images.left_out
    )


def _announce_rows(paths: Sequence[str], tables: Source) -> None:
    has = "has" if len(paths) == 1 else f"and {len(paths) - 1:,} more have"
    found = f"{paths[0]} {has} {counted(sum(tables.shard_sizes), 'captioned image')} in rows of parquet"
    _announce(found, tables.skipped())


def _announce(found: str, skipped: Mapping[str, int]) -> None:
    if is_rank_zero():
        print(found + (f"; left out: {listed(skipped)}" if skipped else ""), flush=True)
