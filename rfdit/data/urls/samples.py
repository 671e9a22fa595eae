"""Samples from rows of tables: images come from the cache or from servers."""

import asyncio
import hashlib
import itertools
import json
import os
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, BinaryIO

from rfdit.data.numbers import plain_json
from rfdit.data.pixels import image_extension
from rfdit.data.sample import RawSample
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.data.tables.index import first_text
from rfdit.data.tables.selected_rows import SelectedRows
from rfdit.data.tables.table import Row
from rfdit.data.urls.dead_links import LinkStates
from rfdit.data.urls.fetch import FetchError
from rfdit.data.urls.request_limits import Reservation
from rfdit.storage.disk_cache import DiskCache

if TYPE_CHECKING:
    from rfdit.data.urls.session import FetchSession
    from rfdit.data.urls.source import UrlTables

MAX_SUBSTITUTES = 8  # tried for a row before it is due

FetchedSample = RawSample | SkippedSampleError


class RowSampler:
    """Makes samples of rows in one event loop. Files are read and written in threads, to keep it running."""

    def __init__(self, reader: "UrlTables", rows: SelectedRows, links: LinkStates) -> None:
        self._reader, self._rows, self._links = reader, rows, links
        self._reading = asyncio.Lock()  # rows are not read by several threads at once

    async def sample_or_substitute(
        self, session: "FetchSession", number: int, substitutes: Iterable[int], memory: Reservation
    ) -> FetchedSample:
        """The sample, or an error with a substitute, which is fetched as soon as the sample has failed."""
        found = await self.sample(session, number, memory)
        if isinstance(found, SkippedSampleError):
            for other in itertools.islice(substitutes, MAX_SUBSTITUTES):
                substitute = await self.sample(session, other, memory)
                if not isinstance(substitute, SkippedSampleError):
                    found.substitute = substitute
                    break
        return found

    async def sample(self, session: "FetchSession", number: int, memory: Reservation) -> FetchedSample:
        """The sample, or the error that says why there is none."""
        try:
            async with self._reading:
                key, row, url = await asyncio.to_thread(self._look_up, number)
            data = await self._image(session, number, row, url, memory)
            return self._sample(key, row, data)
        except SkippedSampleError as error:
            memory.give_back()
            return error

    def _look_up(self, number: int) -> tuple[str, Row, str]:
        """(key, row, URL) of a row whose URL is not known to be dead."""
        key, row = self._rows[number]
        url = first_text(row, self._reader.columns["url"])
        if url is None:
            raise SkippedSampleError(SkipReason.MISSING_IMAGE, f"row {key} has no URL")
        cause = self._links.cause(number, retry_after=self._reader.retry_after)
        if cause is not None:
            raise FetchError(cause, "when it was last fetched")
        return key, row, url

    async def _image(
        self, session: "FetchSession", number: int, row: Row, url: str, memory: Reservation
    ) -> bytes:
        """The image's bytes, from the cache, or fetched and cached."""
        digests = {
            name: text
            for name in self._reader.digests
            if (text := first_text(row, self._reader.columns[name]))
        }
        name, images = json.dumps([url, digests]), self._reader.images
        if images is not None and (file := await asyncio.to_thread(images.open, name)) is not None:
            with file:
                await memory.take(os.fstat(file.fileno()).st_size)
                data = await asyncio.to_thread(file.read)
            await asyncio.to_thread(self._links.record, number, None)
            return data
        try:
            data = await session.fetch(url, digests=digests, memory=memory)
        except FetchError as error:
            await asyncio.to_thread(self._links.record, number, error.reason)
            raise
        await asyncio.to_thread(self._links.record, number, None)
        if images is not None:
            await asyncio.to_thread(_put, images, name, data)
        return data

    def _sample(self, key: str, row: Row, data: bytes) -> RawSample:
        extension, caption = image_extension(data), first_text(row, self._reader.columns["caption"])
        assert extension is not None, "fetched as an image"
        metadata = _json(row | {"sha256": hashlib.sha256(data).hexdigest()})
        try:
            files: dict[str, str | bytes] = {"__key__": key, extension: data, "json": metadata.encode()}
            return files if caption is None else files | {"txt": caption.encode()}
        except UnicodeEncodeError as error:  # for example half a surrogate pair
            raise SkippedSampleError(SkipReason.CORRUPT_METADATA, str(error)) from error


def _json(row: Row) -> str:
    """A row as JSON; types that it lacks (a date) become text."""
    return json.dumps(plain_json(row), ensure_ascii=False, default=str)


def _put(images: DiskCache, name: str, data: bytes) -> None:
    """Cache an image; if there is no room, training goes on with the image in memory."""

    def write(file: BinaryIO) -> None:
        file.write(data)

    try:
        images.put(name, write)
    except OSError as error:
        warnings.warn(f"data.reader.images: {error}", stacklevel=2)
