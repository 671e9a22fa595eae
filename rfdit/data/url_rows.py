"""Rows of tables as samples: their images come from the cache, or from servers."""

import asyncio
import hashlib
import itertools
import json
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from rfdit.data.fetch import FetchError, FetchSession, image_extension
from rfdit.data.folder_cache import FolderCache
from rfdit.data.outcomes import Outcomes
from rfdit.data.request_limits import Portion
from rfdit.data.rot import RotLog
from rfdit.data.sample import RawSample
from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.data.table_index import caption_of
from rfdit.data.tables import Row
from rfdit.data.wanted_rows import WantedRows

SPARES = 8  # substitutes that are tried for a row before it is due

Found = RawSample | SkippedSampleError


@dataclass(frozen=True, kw_only=True)
class RowSettings:
    """What `UrlTables` was told, as far as single rows go.

    columns: where URLs, captions and digests are. digests: those that are compared.
    ask_again: seconds for which a URL is left alone whose server failed.
    """

    columns: Mapping[str, Sequence[str]]
    digests: Sequence[str]
    images: FolderCache | None
    rot: RotLog | None
    ask_again: float


class UrlRows:
    """Makes samples of rows, in one event loop. Files are touched off it, since it must not wait.

    outcomes: where it is looked up and written down whether a row's URL is alive.
    """

    def __init__(self, settings: RowSettings, rows: WantedRows, outcomes: Outcomes) -> None:
        self._settings, self._rows, self._outcomes = settings, rows, outcomes
        self._reading = asyncio.Lock()  # rows are not read by several threads at once

    async def sample_or_substitute(
        self, session: FetchSession, number: int, substitutes: Iterable[int], portion: Portion
    ) -> Found:
        """The sample, or why there is none, with a substitute that is looked for as soon as that is known."""
        found = await self.sample(session, number, portion)
        if isinstance(found, SkippedSampleError):
            for other in itertools.islice(substitutes, SPARES):
                spare = await self.sample(session, other, portion)
                if not isinstance(spare, SkippedSampleError):
                    found.substitute = spare
                    break
        return found

    async def sample(self, session: FetchSession, number: int, portion: Portion) -> Found:
        """The sample, or why there is none."""
        try:
            async with self._reading:
                key, row, url = await asyncio.to_thread(self._look_up, number)
            data = await self._image(session, number, row, url, portion)
            return self._made(key, row, data)
        except SkippedSampleError as error:
            portion.reset()
            return error

    def _look_up(self, number: int) -> tuple[str, Row, str]:
        """(key, row, URL) of a row that is worth asking for."""
        key, row = self._rows[number]
        url = _text(row, self._settings.columns["url"])
        if url is None:
            raise SkippedSampleError(SkipReason.MISSING_IMAGE, f"row {key} has no URL")
        cause = self._outcomes.cause(number, ask_again=self._settings.ask_again)
        if cause is not None:
            raise FetchError(cause, "as it was when it was last asked for")
        return key, row, url

    async def _image(self, session: FetchSession, number: int, row: Row, url: str, portion: Portion) -> bytes:
        """From the cache, or fetched and put there."""
        columns, images = self._settings.columns, self._settings.images
        digests = {name: digest for name in self._settings.digests if (digest := _text(row, columns[name]))}
        name = json.dumps([url, digests])
        if images is not None and (file := await asyncio.to_thread(images.open, name)) is not None:
            with file:
                await portion.take(os.fstat(file.fileno()).st_size)
                data = await asyncio.to_thread(file.read)
            await asyncio.to_thread(self._put_down, number, url, None)
            return data
        try:
            data = await session.fetch(url, digests=digests, portion=portion)
        except FetchError as error:
            await asyncio.to_thread(self._put_down, number, url, error.reason)
            error.url = url
            raise
        await asyncio.to_thread(self._put_down, number, url, None)
        if images is not None:
            await asyncio.to_thread(_keep, images, name, data)
        return data

    def _put_down(self, number: int, url: str, cause: SkipReason | None) -> None:
        before = self._outcomes.put(number, cause)
        rot, rows = self._settings.rot, self._outcomes.path
        if rot is not None and rows is not None:
            rot.add(url, cause, before=before, rows=rows)

    def _made(self, key: str, row: Row, data: bytes) -> RawSample:
        extension, caption = image_extension(data), caption_of(row, self._settings.columns["caption"])
        assert extension is not None, "fetched as an image"
        about = row | {"sha256": hashlib.sha256(data).hexdigest()}
        try:
            files: dict[str, str | bytes] = {"__key__": key, extension: data, "json": _json(about)}
            return files if caption is None else files | {"txt": caption.encode()}
        except UnicodeEncodeError as error:  # half a surrogate pair, say
            raise SkippedSampleError(SkipReason.CORRUPT_METADATA, str(error)) from error


def _text(row: Row, columns: Sequence[str]) -> str | None:
    return next((row[column] for column in columns if isinstance(row.get(column), str)), None)


def _json(row: Row) -> bytes:
    """Without NaN, which is no JSON; what JSON has no form for (a date) becomes text."""
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(plain, ensure_ascii=False, default=str).encode()


def _keep(images: FolderCache, name: str, data: bytes) -> None:
    """A cache with no room is no reason to stop: the image is here."""

    def write(file: BinaryIO) -> None:
        file.write(data)

    try:
        images.put(name, write)
    except OSError as error:
        warnings.warn(f"data.reader.images: {error}", stacklevel=2)
