"""Fetching images from servers that one cannot trust: many at once, each for a bounded time and size."""

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from rfdit.data.addresses import AddressRule, CheckedResolver, Lookup, RefusedAddressError, checked_socket
from rfdit.data.request_limits import Clock, Portion, RequestSlots
from rfdit.data.skips import SkippedSampleError, SkipReason

REDIRECTS = (301, 302, 303, 307, 308)
NOT_FOUND = (404, 410)
# Client errors that say: later.
LATER = {
    408: SkipReason.FETCH_TIMEOUT,
    425: SkipReason.FETCH_SERVER_ERROR,
    429: SkipReason.FETCH_TOO_MANY_REQUESTS,
}
# What the system's resolver says of names that do not exist; the second is not known everywhere.
UNKNOWN_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
# What servers call bytes of which they do not know the kind.
UNKNOWN_TYPES = ("application/octet-stream", "binary/octet-stream")
# Directives of X-Robots-Tag with a value; any other name before a colon is a crawler's.
VALUED = ("max-snippet", "max-image-preview", "max-video-preview", "unavailable_after")
# How files of the kinds that are decoded begin, by extension.
MAGIC = {
    "jpg": (b"\xff\xd8\xff",),
    "png": (b"\x89PNG\r\n\x1a\n",),
    "gif": (b"GIF87a", b"GIF89a"),
    "bmp": (b"BM",),
    "tif": (b"II*\x00", b"MM\x00*"),
}
ACCEPT = "image/jpeg, image/png, image/webp, image/gif, image/bmp, image/tiff, image/*;q=0.5"


class FetchError(SkippedSampleError):
    """A URL that gave no image.

    again: whether another attempt may help. wait: after how many seconds at least. url: set by who asked for it.
    """

    def __init__(self, reason: SkipReason, detail: str, *, again: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason, detail)
        self.again, self.wait, self.url = again, wait, ""


class Fetcher:
    """How images are fetched; `session` does it.

    concurrency: requests under way at once, of which per_host to one host. One that waits for memory
        leaves its turn to others.
    connect_timeout: seconds for DNS, TCP and TLS. read_timeout: seconds without a byte.
    total_timeout: seconds for one URL with its redirects, retries and pauses; waiting for its turn
        does not count.
    retries: further attempts after server errors (5xx), 408, 425, 429, failed or broken connections and
        timeouts.
    backoff: seconds before the first retry, twice as many before each next one.
    max_redirects: how many are followed.
    max_bytes: of one image.
    user_agent: what servers are told.
    opt_out: directives of the header X-Robots-Tag for which an image is left alone.
    allow_networks: networks that may be contacted although they are not public, as `AddressRule` takes
        them; for intranets and tests.

    Raises ValueError, naming the setting, for numbers that make no sense.
    """

    def __init__(
        self,
        *,
        concurrency: int = 64,
        per_host: int = 4,
        connect_timeout: float = 5.0,
        read_timeout: float = 10.0,
        total_timeout: float = 30.0,
        retries: int = 2,
        backoff: float = 0.5,
        max_redirects: int = 5,
        max_bytes: int = 32 * 2**20,
        user_agent: str = "Mozilla/5.0 (compatible; rfdit)",
        opt_out: Sequence[str] = ("noai", "noimageai", "noindex", "noimageindex"),
        allow_networks: Sequence[str] = (),
    ) -> None:
        positive = {
            "concurrency": concurrency,
            "per_host": per_host,
            "connect_timeout": connect_timeout,
            "read_timeout": read_timeout,
            "total_timeout": total_timeout,
            "max_bytes": max_bytes,
        }
        for name, value in positive.items():
            if value <= 0:
                raise ValueError(f"data.reader.fetcher.{name}={value} must be more than 0")
        for name, value in {"retries": retries, "backoff": backoff, "max_redirects": max_redirects}.items():
            if value < 0:
                raise ValueError(f"data.reader.fetcher.{name}={value} must not be negative")
        self.concurrency, self.per_host = concurrency, per_host
        self.connect_timeout, self.read_timeout = connect_timeout, read_timeout
        self.total_timeout, self.retries, self.backoff = total_timeout, retries, backoff
        self.max_redirects, self.max_bytes = max_redirects, max_bytes
        self.user_agent, self.opt_out = user_agent, [directive.lower() for directive in opt_out]
        self.rule = AddressRule(allow_networks, setting="data.reader.fetcher.allow_networks")

    @property
    def rules(self) -> list[Any]:
        """On what it depends, besides servers and time limits, whether a URL is alive."""
        networks = [str(network) for network in self.rule.networks]
        return [self.max_redirects, self.max_bytes, self.user_agent, self.opt_out, networks]

    @asynccontextmanager
    async def session(self, *, lookup: Lookup | None = None) -> AsyncIterator["FetchSession"]:
        """Connections of the running event loop. lookup: what is asked instead of the system's DNS."""
        connector = aiohttp.TCPConnector(
            limit=0,  # the slots below are the limit, and a request that waits for them has no clock running
            resolver=CheckedResolver(self.rule, lookup=lookup),
            ttl_dns_cache=300,
            socket_factory=checked_socket(self.rule),
        )
        timeout = aiohttp.ClientTimeout(
            total=None,
            connect=self.connect_timeout,
            sock_connect=self.connect_timeout,
            sock_read=self.read_timeout,
        )
        # Unpacked by nobody: a small compressed body could unfold to any size.
        headers = {"User-Agent": self.user_agent, "Accept": ACCEPT, "Accept-Encoding": "identity"}
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            headers=headers,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as client:
            yield FetchSession(self, client)


class FetchSession:
    """Fetches; made by `Fetcher.session`."""

    def __init__(self, settings: Fetcher, client: aiohttp.ClientSession) -> None:
        self._settings, self._client = settings, client
        self._slots = RequestSlots(total=settings.concurrency, per_host=settings.per_host)

    async def fetch(
        self, url: str, *, digests: Mapping[str, str] | None = None, portion: Portion | None = None
    ) -> bytes:
        """The image's bytes as they were sent.

        digests: what they must hash to, as {"md5": "0123..."}. portion: of memory, into which they go;
        waiting for it does not count as time.
        Raises FetchError with the cause.
        """
        clock, portion = Clock(self._settings.total_timeout), portion or Portion()
        pause = self._settings.backoff
        for left in reversed(range(self._settings.retries + 1)):
            try:
                data = await self._follow(_parsed(url), clock, portion)
                break
            except (aiohttp.ClientError, OSError, ValueError) as raised:
                error = _explained(raised)
            except FetchError as raised:
                error = raised
            portion.reset()
            pause, wait = 2 * pause, max(pause, error.wait)
            if not left or not error.again or wait >= clock.left:
                raise error
            clock.left -= wait
            await asyncio.sleep(wait)
        _check_digests(data, digests or {})
        return data

    async def _follow(self, url: URL, clock: Clock, portion: Portion) -> bytes:
        """One attempt, through redirects. Each hop is a request like the first: checked, and in its host's slot."""
        seen: set[URL] = set()
        while True:
            seen.add(url)
            async with (
                self._slots.one(url.host or "") as slot,
                clock.running(),
                self._client.get(url, allow_redirects=False) as response,
            ):
                if response.status not in REDIRECTS:
                    return await self._body(response, clock, portion, slot)
                location = response.headers.get("Location", "")
            if not location:
                raise FetchError(SkipReason.FETCH_REDIRECTS, "a redirect to nowhere")
            url = _checked(url.join(URL(location)).with_fragment(None))
            if url in seen:
                raise FetchError(SkipReason.FETCH_REDIRECTS, "a loop")
            if len(seen) > self._settings.max_redirects:
                raise FetchError(SkipReason.FETCH_REDIRECTS, f"more than {self._settings.max_redirects}")

    async def _body(
        self, response: aiohttp.ClientResponse, clock: Clock, portion: Portion, slot: AsyncExitStack
    ) -> bytes:
        _check_status(response)
        if self._opted_out(response.headers):
            raise FetchError(SkipReason.FETCH_OPTED_OUT, response.headers["X-Robots-Tag"])
        kind = response.content_type
        if not kind.startswith("image/") and kind not in UNKNOWN_TYPES:
            raise FetchError(SkipReason.FETCH_NOT_AN_IMAGE, kind)
        limit = self._settings.max_bytes
        if (response.content_length or 0) > limit:
            raise FetchError(SkipReason.FETCH_TOO_LARGE, f"{response.content_length} bytes")
        data = bytearray()
        async for chunk in response.content.iter_any():
            if len(data) + len(chunk) > limit:
                raise FetchError(SkipReason.FETCH_TOO_LARGE, f"more than {limit} bytes")
            if not portion.has_room(len(chunk)):
                await slot.aclose()  # it waits for the due one, which may need the slot
            with clock.paused():
                await portion.take(len(chunk))
            data += chunk
        if image_extension(data) is None:
            what = "an empty body" if not data else f"{kind} that begins with {bytes(data[:8])!r}"
            raise FetchError(SkipReason.FETCH_NOT_AN_IMAGE, what)
        return bytes(data)

    def _opted_out(self, headers: CIMultiDictProxy[str]) -> bool:
        agents = self._settings.user_agent.lower()
        for line in headers.getall("X-Robots-Tag", []):
            for word in line.lower().split(","):
                name, colon, rest = (part.strip() for part in word.partition(":"))
                if colon and name not in VALUED and name not in agents:
                    break  # from here on it is about somebody else
                directive = rest if colon and name not in VALUED else name
                if directive in self._settings.opt_out or (
                    directive == "none" and "noindex" in self._settings.opt_out
                ):
                    return True
        return False


def image_extension(data: bytes | bytearray) -> str | None:
    """The file extension of an image, by how it begins; None if it is none that rfdit decodes."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((name for name, starts in MAGIC.items() if data.startswith(starts)), None)


def _parsed(url: str) -> URL:
    return _checked(URL(url.strip()).with_fragment(None))


def _checked(url: URL) -> URL:
    if url.scheme not in ("http", "https") or not url.host:
        raise FetchError(SkipReason.FETCH_REFUSED, f"{str(url)[:80]} is no http or https URL")
    return url


def _check_status(response: aiohttp.ClientResponse) -> None:
    status, said = response.status, f"{response.status} {response.reason}"
    if status in LATER or status >= 500:
        after = response.headers.get("Retry-After", "")
        wait = float(after) if after.isascii() and after.isdigit() else 0.0
        raise FetchError(LATER.get(status, SkipReason.FETCH_SERVER_ERROR), said, again=True, wait=wait)
    if status in NOT_FOUND:
        raise FetchError(SkipReason.FETCH_NOT_FOUND, said)
    if status >= 400:
        raise FetchError(SkipReason.FETCH_FORBIDDEN, said)
    if not 200 <= status < 300:
        raise FetchError(SkipReason.FETCH_SERVER_ERROR, said)


def _check_digests(data: bytes, digests: Mapping[str, str]) -> None:
    for algorithm, wanted in digests.items():
        found = hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()
        if found != wanted.strip().lower():
            raise FetchError(SkipReason.FETCH_HASH, f"{algorithm} is {found}, not {wanted}")


def _explained(error: Exception) -> FetchError:
    """The cause that an error of aiohttp or of the system stands for."""
    detail = f"{type(error).__name__}: {error}"
    match error:
        case RefusedAddressError():
            return FetchError(SkipReason.FETCH_REFUSED, str(error))
        case TimeoutError():
            return FetchError(SkipReason.FETCH_TIMEOUT, detail, again=True)
        case aiohttp.ClientPayloadError():
            return FetchError(SkipReason.FETCH_TRUNCATED, detail, again=True)
        case aiohttp.ClientConnectorDNSError():
            # A name that does not exist will not do so in a second.
            unknown = getattr(error.os_error, "errno", None) in UNKNOWN_NAME
            return FetchError(SkipReason.FETCH_CONNECTION, detail, again=not unknown)
        case aiohttp.ClientConnectorCertificateError():
            return FetchError(SkipReason.FETCH_CONNECTION, detail)
        case aiohttp.ClientResponseError():
            return FetchError(SkipReason.FETCH_SERVER_ERROR, detail)
        case aiohttp.ClientConnectionError() | OSError():
            return FetchError(SkipReason.FETCH_CONNECTION, detail, again=True)
    return FetchError(SkipReason.FETCH_REFUSED, detail)  # of yarl and idna: no URL, no host name
