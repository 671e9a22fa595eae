"""Remote files: behind http(s), s3, gs (through fsspec), or the output of a `pipe:` command."""

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar, cast

import fsspec

from rfdit.data.shards import is_remote
from rfdit.processes.command import output_of

PAUSES = (1.0, 4.0)  # seconds before the second and the third attempt
PIECE = 1 << 20  # bytes read at a time
SLOWEST, PATIENCE = 1 << 16, 60.0  # fewest bytes of a shard that a server may send in that many seconds
TRANSIENT = (408, 425, 429)  # errors that may pass, as 5xx may
# Fields that change when a file does, in the descriptions that servers and file systems give of it.
STATE_FIELDS = (
    "size", "ETag", "Last-Modified", "LastModified", "last_modified", "mtime", "created", "md5Hash", "Content-MD5",
)  # fmt: skip
T = TypeVar("T")


class UnreadableShardError(Exception):
    """A shard that cannot be read; the message begins with its name and gives the reason."""


class ShardMismatchError(UnreadableShardError):
    """A shard whose bytes are not those that its index describes."""


def identity(url: str) -> list[Any]:
    """Plain data that changes when a shard does: its name, its size if known, modification times, tags.

    A command has only its name: its output is assumed never to change.
    Raises UnreadableShardError if the shard is missing.
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

    about = _retried(url, ask)
    return [url, *(str(about.get(name)) for name in STATE_FIELDS)]


def size_of(identity: list[Any]) -> int | None:
    """The size in bytes that an identity records; None if it is not known."""
    return int(identity[1]) if len(identity) > 1 and str(identity[1]).isdigit() else None


def copy(url: str, file: BinaryIO, *, digest: str | None = None) -> None:
    """Copy a shard to an open file.

    digest: the BLAKE2b that the copy must have, if it is known.
    Raises UnreadableShardError if the shard cannot be read to its end, ShardMismatchError if it has
    another digest, OSError if the file cannot be written.
    """

    def attempt() -> None:
        file.seek(0)
        file.truncate()
        hashed = hashlib.blake2b(digest_size=16)
        since, received = time.monotonic(), 0
        with _opened(url) as remote:
            while piece := remote.read(PIECE):
                received += len(piece)
                if received >= SLOWEST:
                    since, received = time.monotonic(), 0
                # A command may be silent for minutes, but a server that only trickles would hold the copy's
                # lock for ever.
                elif url.startswith("http") and time.monotonic() - since > PATIENCE:
                    raise _TooSlowError
                hashed.update(piece)
                try:
                    file.write(piece)
                except OSError as error:
                    raise _WriteError(error) from error
        if digest is not None and hashed.hexdigest() != digest:
            raise _WrongDigestError

    try:
        _retried(url, attempt)
    except _WriteError as error:
        raise error.cause from error


def read_small(place: str, *, limit: int) -> bytes | None:
    """The first `limit` bytes of a file; None if it does not exist or access is denied.

    place: a URL or a path. Raises UnreadableShardError if it cannot be read for another reason.
    """

    def attempt() -> bytes | None:
        try:
            found = bytearray()
            with _opened(place) as file:
                # A read returns what has arrived so far.
                while len(found) < limit and (piece := file.read(limit - len(found))):
                    found += piece
            return bytes(found)
        except Exception as error:
            if _missing(error):
                return None
            raise

    return _retried(place, attempt)


def reason(error: BaseException) -> str:
    """A library's error in one line."""
    error = _network_error(error) or error
    if (status := getattr(error, "status", None)) is not None:
        return f"the server answers {status} {getattr(error, 'message', '')}".strip()
    if isinstance(error, OSError) and error.strerror and not isinstance(error, _client_errors()):
        return error.strerror
    if isinstance(error, _WrongDigestError):
        return "its bytes are not those that its index describes; write the index again"
    if isinstance(error, _TooSlowError):
        return f"the server sends less than {SLOWEST / 1000:.0f} kB in {PATIENCE:g} seconds"
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


class _WriteError(Exception):
    """The copy could not be written, which is not the shard's fault."""

    def __init__(self, cause: OSError) -> None:
        self.cause = cause


class _WrongDigestError(Exception):
    """A copy whose bytes are not those that its index describes."""


class _TooSlowError(Exception):
    """A server that sends next to nothing."""


def _retried(url: str, attempt: Callable[[], T]) -> T:
    """The result of the first of three attempts that succeeds; raises UnreadableShardError if all fail."""
    for pause in (*PAUSES, None):
        try:
            return attempt()
        except _WriteError:
            raise
        except Exception as error:  # whatever the filesystem's library raises
            if pause is None or _final(error):
                kind = ShardMismatchError if isinstance(error, _WrongDigestError) else UnreadableShardError
                raise kind(f"{url}: {reason(error)}") from error
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _final(error: Exception) -> bool:
    """True if another attempt would fail as well."""
    network = _network_error(error)
    if (status := getattr(network, "status", None)) is not None:
        return status < 500 and status not in TRANSIENT
    return network is None and isinstance(error, FileNotFoundError | ImportError | PermissionError)


def _missing(error: Exception) -> bool:
    """True if a file is missing or access is denied, which some stores answer for missing files."""
    network = _network_error(error)
    if (status := getattr(network, "status", None)) is not None:
        return status in (401, 403, 404, 410)
    return network is None and isinstance(error, FileNotFoundError | PermissionError)


def _network_error(error: BaseException) -> BaseException | None:
    """The network's error behind an error: fsspec calls every failure of an http server a missing file."""
    for each in (error, error.__cause__):
        if isinstance(each, (TimeoutError, *_client_errors())):
            return each
    return None


def _client_errors() -> tuple[type[BaseException], ...]:
    """The errors of aiohttp, which fsspec imports for http alone."""
    aiohttp = sys.modules.get("aiohttp")
    return () if aiohttp is None else (aiohttp.ClientError,)


@contextlib.contextmanager
def _opened(url: str) -> Iterator[Any]:
    """A file for sequential reading; closing it raises if its command has failed."""
    if url.startswith("pipe:"):
        with output_of(url.removeprefix("pipe:")) as output:
            yield output
        return
    filesystem, path = fsspec.core.url_to_fs(url, **_options(url))
    # Not every server supports ranges. Given a size, fsspec requests none.
    sequentially = {"block_size": 0, "size": 1} if url.startswith("http") else {}
    with filesystem.open(path, "rb", **sequentially) as file:
        yield file


def _options(url: str) -> dict[str, Any]:
    """Options of fsspec that give up on a silent server after a minute."""
    if not url.startswith("http"):
        return {}
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)
    return {"client_kwargs": {"timeout": timeout}}
