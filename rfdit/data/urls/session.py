"""Requests for images to untrusted servers: many at once, each of bounded time and size."""

import asyncio
import hashlib
import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
from yarl import URL

from rfdit.data.pixels import image_extension
from rfdit.data.skips import SkipReason
from rfdit.data.urls.addresses import CheckedResolver, Lookup, RefusedAddressError, checked_socket
from rfdit.data.urls.fetch import Fetcher, FetchError
from rfdit.data.urls.request_limits import Clock, RequestSlots, Reservation

REDIRECTS = (301, 302, 303, 307, 308)
NOT_FOUND = (404, 410)
# Client errors that may be temporary.
RETRIED = {
    408: SkipReason.FETCH_TIMEOUT,
    425: SkipReason.FETCH_SERVER_ERROR,
    429: SkipReason.FETCH_TOO_MANY_REQUESTS,
}
# Errors of the system's resolver for names that do not exist; not every system has the second.
UNKNOWN_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
# Types of bodies whose kind the server does not know.
UNKNOWN_TYPES = ("application/octet-stream", "binary/octet-stream")
ACCEPT = "image/jpeg, image/png, image/webp, image/gif, image/bmp, image/tiff, image/*;q=0.5"


def open_client(settings: Fetcher, lookup: Lookup | None) -> aiohttp.ClientSession:
    """An aiohttp client that connects to allowed addresses only. lookup: replaces the system's DNS."""
    resolver: Any = CheckedResolver(settings.rule, lookup=lookup)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0,  # RequestSlots limit requests, so that one that waits for its turn has no clock running
            resolver=resolver,
            ttl_dns_cache=300,
            socket_factory=checked_socket(settings.rule),
        ),
        timeout=aiohttp.ClientTimeout(
            total=None,
            connect=settings.connect_timeout,
            sock_connect=settings.connect_timeout,
            sock_read=settings.read_timeout,
        ),
        # Bodies are not decompressed: a small one could unfold to any size.
        headers={"User-Agent": settings.user_agent, "Accept": ACCEPT, "Accept-Encoding": "identity"},
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


class FetchSession:
    """Fetches images over the connections of one event loop; made by `Fetcher.session`."""

    def __init__(self, settings: Fetcher, client: aiohttp.ClientSession) -> None:
        self._settings, self._client = settings, client
        self._slots = RequestSlots(total=settings.concurrency, per_host=settings.per_host)

    async def fetch(
        self, url: str, *, digests: Mapping[str, str] | None = None, memory: Reservation | None = None
    ) -> bytes:
        """The image's bytes as they were sent.

        digests: those that it must have, as {"md5": "0123..."}. memory: the budget that the bytes are taken
            from; waiting for it does not count as time.
        Raises FetchError with the cause.
        """
        clock, memory = Clock(self._settings.total_timeout), memory or Reservation()
        pause = self._settings.backoff
        for retries in reversed(range(self._settings.retries + 1)):
            try:
                data = await self._follow(_checked(URL(url.strip())), clock, memory)
                break
            except (aiohttp.ClientError, OSError, ValueError) as raised:
                error = _explained(raised)
            except FetchError as raised:
                error = raised
            memory.give_back()
            pause, wait = 2 * pause, max(pause, error.wait)
            if not retries or not error.retry or wait >= clock.left:
                raise error
            clock.left -= wait
            await asyncio.sleep(wait)
        _check_digests(data, digests or {})
        return data

    async def _follow(self, url: URL, clock: Clock, memory: Reservation) -> bytes:
        """One attempt, through redirects; each is checked and takes a slot of its host like the first request."""
        visited: set[URL] = set()
        while True:
            visited.add(url)
            async with (
                self._slots.slot(url.host or "") as slot,
                clock.running(),
                self._client.get(url, allow_redirects=False) as response,
            ):
                if response.status not in REDIRECTS:
                    return await self._body(response, clock, memory, slot)
                location = response.headers.get("Location", "")
            if not location:
                raise FetchError(SkipReason.FETCH_REDIRECTS, "a redirect without a location")
            url = _checked(url.join(URL(location)))
            if url in visited:
                raise FetchError(SkipReason.FETCH_REDIRECTS, "a loop")
            if len(visited) > self._settings.max_redirects:
                raise FetchError(SkipReason.FETCH_REDIRECTS, f"more than {self._settings.max_redirects}")

    async def _body(
        self, response: aiohttp.ClientResponse, clock: Clock, memory: Reservation, slot: AsyncExitStack
    ) -> bytes:
        self._check_headers(response)
        limit = self._settings.max_bytes
        data = bytearray()
        async for chunk in response.content.iter_any():
            if len(data) + len(chunk) > limit:
                raise FetchError(SkipReason.FETCH_TOO_LARGE, f"more than {limit} bytes")
            if not memory.has_room(len(chunk)):
                await slot.aclose()  # this waits for the due sample, which may need the slot
            with clock.paused():
                await memory.take(len(chunk))
            data += chunk
        if image_extension(data) is None:
            start = (
                f"{response.content_type} that begins with {bytes(data[:8])!r}" if data else "an empty body"
            )
            raise FetchError(SkipReason.FETCH_NOT_AN_IMAGE, start)
        return bytes(data)

    def _check_headers(self, response: aiohttp.ClientResponse) -> None:
        """Raises FetchError for a body that must not or need not be read."""
        _check_status(response)
        robots = response.headers.getall("X-Robots-Tag", [])
        if opted_out(robots, self._settings.opt_out):
            raise FetchError(SkipReason.FETCH_OPTED_OUT, ", ".join(robots))
        kind = response.content_type
        if not kind.startswith("image/") and kind not in UNKNOWN_TYPES:
            raise FetchError(SkipReason.FETCH_NOT_AN_IMAGE, kind)
        if (response.content_length or 0) > self._settings.max_bytes:
            raise FetchError(SkipReason.FETCH_TOO_LARGE, f"{response.content_length} bytes")


def opted_out(robots: list[str], directives: list[str]) -> bool:
    """True if an X-Robots-Tag header has one of the directives, addressed to all agents."""
    found = {directive.strip() for line in robots for directive in line.lower().split(",")}
    return bool(found & set(directives)) or ("none" in found and "noindex" in directives)


def _checked(url: URL) -> URL:
    if url.scheme not in ("http", "https") or not url.host:
        raise FetchError(SkipReason.FETCH_REFUSED, f"{str(url)[:80]} is not an http or https URL")
    return url.with_fragment(None)


def _check_status(response: aiohttp.ClientResponse) -> None:
    status, detail = response.status, f"{response.status} {response.reason}"
    if status in RETRIED or status >= 500:
        after = response.headers.get("Retry-After", "")
        wait = float(after) if after.isascii() and after.isdigit() else 0.0
        raise FetchError(RETRIED.get(status, SkipReason.FETCH_SERVER_ERROR), detail, retry=True, wait=wait)
    if status in NOT_FOUND:
        raise FetchError(SkipReason.FETCH_NOT_FOUND, detail)
    if status >= 400:
        raise FetchError(SkipReason.FETCH_FORBIDDEN, detail)
    if not 200 <= status < 300:
        raise FetchError(SkipReason.FETCH_SERVER_ERROR, detail)


def _check_digests(data: bytes, digests: Mapping[str, str]) -> None:
    for algorithm, expected in digests.items():
        digest = hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()
        if digest != expected.strip().lower():
            raise FetchError(SkipReason.FETCH_HASH, f"{algorithm} is {digest}, not {expected}")


def _explained(error: Exception) -> FetchError:
    """The cause behind an error of aiohttp or of the system."""
    detail = f"{type(error).__name__}: {error}"
    match error:
        case RefusedAddressError():
            return FetchError(SkipReason.FETCH_REFUSED, str(error))
        case TimeoutError():
            return FetchError(SkipReason.FETCH_TIMEOUT, detail, retry=True)
        case aiohttp.ClientPayloadError():
            return FetchError(SkipReason.FETCH_TRUNCATED, detail, retry=True)
        case aiohttp.ClientConnectorDNSError():
            # A name that does not exist will not exist in a second.
            unknown = getattr(error.os_error, "errno", None) in UNKNOWN_NAME
            return FetchError(SkipReason.FETCH_CONNECTION, detail, retry=not unknown)
        case aiohttp.ClientConnectorCertificateError():
            return FetchError(SkipReason.FETCH_CONNECTION, detail)
        case aiohttp.ClientResponseError():
            return FetchError(SkipReason.FETCH_SERVER_ERROR, detail)
        case aiohttp.ClientConnectionError() | OSError():
            return FetchError(SkipReason.FETCH_CONNECTION, detail, retry=True)
    return FetchError(SkipReason.FETCH_REFUSED, detail)  # yarl and idna: not a URL, not a host name
