"""Files that are elsewhere: behind http(s), s3, gs (through fsspec), or the output of a `pipe:` command."""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar, cast

import aiohttp
import fsspec
import webdataset

from rfdit.data.shards import is_remote

PAUSES = (1.0, 4.0)  # seconds before a second and a third try
PIECE = 1 << 20
SLOWEST, PATIENCE = 1 << 16, 60.0  # bytes that a server must send of a shard, and in how many seconds
TRANSIENT = (408, 425, 429)  # that servers answer for a while, beside their own errors
# What servers and filesystems say of a file that changes when the file does.
MARKS = (
    "size", "ETag", "Last-Modified", "LastModified", "last_modified", "mtime", "created", "md5Hash", "Content-MD5",
)  # fmt: skip
T = TypeVar("T")


class UnreadableShardError(Exception):
    """A shard that cannot be had; the message begins with its name and says why."""


class AnotherShardError(UnreadableShardError):
    """A shard whose bytes are not those that its index describes."""


def identity(url: str) -> list[Any]:
    """What changes when a shard does, as plain data: its name, its size if that is known, and more.

    The output of a command has no such thing: it is taken to be always the same.
    Raises UnreadableShardError without the shard.
    """
    if url.startswith("pipe:"):
        return [url]
    if not is_remote(url):
        try:
            status = os.stat(url)
        except OSError as error:
            raise UnreadableShardError(f"{url}: {reason(error)}") from error
        return [os.path.realpath(url), status.st_size, status.st_mtime_ns]

    def ask() -> dict[str, Any]:
        filesystem, path = fsspec.core.url_to_fs(url, **_options(url))
        return cast(dict[str, Any], filesystem.info(path))

    about = _insistent(url, ask)
    return [url, *(str(about.get(mark)) for mark in MARKS)]


def size_of(identity: list[Any]) -> int | None:
    """The bytes of the shard that `identity` is of; None if they are not known."""
    return int(identity[1]) if len(identity) > 1 and str(identity[1]).isdigit() else None


def copy(url: str, file: BinaryIO, *, digest: str | None = None) -> None:
    """Copies a shard to an open file.

    digest: what `digest_of` has to say of the copy, if it is known.
    Raises UnreadableShardError if it cannot be had whole, AnotherShardError if it has another digest,
    OSError if the file cannot be written.
    """

    def attempt() -> None:
        file.seek(0)
        file.truncate()
        hashed = hashlib.blake2b(digest_size=16)
        since, came = time.monotonic(), 0
        with _opened(url) as remote:
            while piece := remote.read(PIECE):
                came += len(piece)
                if came >= SLOWEST:
                    since, came = time.monotonic(), 0
                # A command may think for minutes; a server that drips would hold the copy's lock for ever.
                elif url.startswith("http") and time.monotonic() - since > PATIENCE:
                    raise _TooSlowError
                hashed.update(piece)
                try:
                    file.write(piece)
                except OSError as error:
                    raise _WriteError(error) from error
        if digest is not None and hashed.hexdigest() != digest:
            raise _AnotherFileError

    try:
        _insistent(url, attempt)
    except _WriteError as error:
        raise error.cause from error


def digest_of(file: BinaryIO) -> str:
    """Of a whole file, which is left at its beginning."""
    file.seek(0)
    digest = hashlib.file_digest(cast(Any, file), lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    file.seek(0)
    return digest


def read_small(place: str, *, limit: int) -> bytes | None:
    """The bytes of a small file, at most `limit` of them; None if there is no such file, or none for us.

    place: a URL or a path. Raises UnreadableShardError if it cannot be read for another reason.
    """

    def attempt() -> bytes | None:
        try:
            found = bytearray()
            with _opened(place) as file:
                # One read gives what has arrived.
                while len(found) < limit and (piece := file.read(limit - len(found))):
                    found += piece
            return bytes(found)
        except Exception as error:
            if _missing(error):
                return None
            raise

    return _insistent(place, attempt)


def reason(error: BaseException) -> str:
    """What a library's error says, in one line."""
    error = _network_error(error) or error
    if isinstance(error, aiohttp.ClientResponseError):
        return f"the server answers {error.status} {error.message}".strip()
    if isinstance(error, OSError) and error.strerror and not isinstance(error, aiohttp.ClientError):
        return error.strerror
    if isinstance(error, _AnotherFileError):
        return "its bytes are not those that its index describes; write the index anew"
    if isinstance(error, _TooSlowError):
        return f"the server sends less than {SLOWEST / 1000:.0f} kB in {PATIENCE:g} seconds"
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


class _WriteError(Exception):
    """The copy could not be written, which is no fault of the shard's."""

    def __init__(self, cause: OSError) -> None:
        self.cause = cause


class _AnotherFileError(Exception):
    """What came is not what the index was made of."""


class _TooSlowError(Exception):
    """A server that sends next to nothing."""


def _insistent(url: str, attempt: Callable[[], T]) -> T:
    """What an attempt gives, if need be a second and a third; raises UnreadableShardError if all fail."""
    for pause in (*PAUSES, None):
        try:
            return attempt()
        except _WriteError:
            raise
        except Exception as error:  # whatever the filesystem's library raises
            if pause is None or _final(error):
                kind = AnotherShardError if isinstance(error, _AnotherFileError) else UnreadableShardError
                raise kind(f"{url}: {reason(error)}") from error
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _final(error: Exception) -> bool:
    """Whether the next attempt would end the same."""
    network = _network_error(error)
    if isinstance(network, aiohttp.ClientResponseError):
        return network.status < 500 and network.status not in TRANSIENT
    return network is None and isinstance(error, FileNotFoundError | ImportError | PermissionError)


def _missing(error: Exception) -> bool:
    """Whether there is no such file, or we may not know of it: some stores say so of what is missing."""
    network = _network_error(error)
    if isinstance(network, aiohttp.ClientResponseError):
        return network.status in (401, 403, 404, 410)
    return network is None and isinstance(error, FileNotFoundError | PermissionError)


def _network_error(error: BaseException) -> aiohttp.ClientError | TimeoutError | None:
    """What went wrong on the way; fsspec calls every failure of an http server a missing file."""
    for each in (error, error.__cause__):
        if isinstance(each, aiohttp.ClientError | TimeoutError):
            return each
    return None


@contextlib.contextmanager
def _opened(url: str) -> Iterator[BinaryIO]:
    """A file that is read sequentially; at its end a command that failed raises."""
    file = _open(url)
    try:
        yield file
    except BaseException:
        if url.startswith("pipe:"):
            file.proc.kill()  # it would be waited for
        with contextlib.suppress(Exception):  # what Ctrl-C does to a command must not hide the Ctrl-C
            file.close()
        raise
    file.close()


def _open(url: str) -> Any:
    if url.startswith("pipe:"):
        return webdataset.gopen(url)
    filesystem, path = fsspec.core.url_to_fs(url, **_options(url))
    # Not every server knows ranges. Where a size is given, fsspec does not ask for it.
    sequentially = {"block_size": 0, "size": 1} if url.startswith("http") else {}
    return filesystem.open(path, "rb", **sequentially)


def _options(url: str) -> dict[str, Any]:
    """A server that falls silent is given up after a minute."""
    if not url.startswith("http"):
        return {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)
    return {"client_kwargs": {"timeout": timeout}}
