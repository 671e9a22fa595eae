"""Every way in which a server can fail has its cause, and none costs more than its share of time."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from rfdit.data.pixels import image_extension
from rfdit.data.skips import SkipReason
from rfdit.data.urls.fetch import Fetcher, FetchError
from rfdit.data.urls.request_limits import Clock
from rfdit.data.urls.session import opted_out
from tests.support.servers.misbehaving_server import MisbehavingServer, bomb, encoded_image

SETTINGS: dict[str, Any] = {
    "read_timeout": 120.0,
    "total_timeout": 120.0,
    "backoff": 0.01,
    "per_host": 64,
    "max_bytes": 200_000,
    "allow_networks": ["127.0.0.1"],
}


@pytest.fixture
def inner() -> Iterator[MisbehavingServer]:
    """A server at an address that is not allowed."""
    with MisbehavingServer("127.0.0.2") as server:
        yield server


@pytest.fixture
def server(inner: MisbehavingServer) -> Iterator[MisbehavingServer]:
    with MisbehavingServer(elsewhere=inner.url("/ok/0")) as server:
        yield server


def fetch(*urls: str, digests: dict[str, str] | None = None, **settings: Any) -> list[bytes | FetchError]:
    """The result for each URL, all fetched at once."""

    async def one(session: Any, url: str) -> bytes | FetchError:
        try:
            return await session.fetch(url, digests=digests)
        except FetchError as error:
            return error

    async def fetch_all() -> list[bytes | FetchError]:
        async with Fetcher(**(SETTINGS | settings)).session() as session:
            return list(await asyncio.gather(*(one(session, url) for url in urls)))

    return asyncio.run(fetch_all())


@pytest.mark.parametrize(
    "path", ["ok", "octets", "untyped", "lies_png", "redirect", "flaky", "cut_once", "slow", "other_bot"]
)
def test_what_is_alive_arrives(server: MisbehavingServer, path: str) -> None:
    assert fetch(server.url(f"/{path}/7")) == [encoded_image(7)]


def test_the_kinds_of_images_are_told_by_their_bytes(server: MisbehavingServer) -> None:
    paths = ["ok", "lies_png", "png", "webp"]
    found = fetch(*(server.url(f"/{path}/1") for path in paths))
    assert [image_extension(data) for data in found] == ["jpg", "jpg", "png", "webp"]


# The cause, and how many requests reach the server with 2 retries.
CAUSES = {
    "not_found": (SkipReason.FETCH_NOT_FOUND, 1),
    "gone": (SkipReason.FETCH_NOT_FOUND, 1),
    "forbidden": (SkipReason.FETCH_FORBIDDEN, 1),
    "broken": (SkipReason.FETCH_SERVER_ERROR, 3),
    "timed_out": (SkipReason.FETCH_TIMEOUT, 3),
    "too_early": (SkipReason.FETCH_SERVER_ERROR, 3),
    "busy": (SkipReason.FETCH_TOO_MANY_REQUESTS, 3),
    "busy_long": (SkipReason.FETCH_TOO_MANY_REQUESTS, 1),  # it says that it will not help
    "garbage": (SkipReason.FETCH_SERVER_ERROR, 1),
    "hang_up": (SkipReason.FETCH_CONNECTION, 6),  # aiohttp itself tries each once more, on a new connection
    "never": (SkipReason.FETCH_TIMEOUT, 2),  # read_timeout, then what is left of total_timeout
    "drip": (SkipReason.FETCH_TIMEOUT, 1),
    "text": (SkipReason.FETCH_NOT_AN_IMAGE, 1),
    "html": (SkipReason.FETCH_NOT_AN_IMAGE, 1),
    "html_as_jpg": (SkipReason.FETCH_NOT_AN_IMAGE, 1),
    "empty": (SkipReason.FETCH_NOT_AN_IMAGE, 1),
    "opted_out": (SkipReason.FETCH_OPTED_OUT, 1),
    "truncated": (SkipReason.FETCH_TRUNCATED, 3),
    "huge": (SkipReason.FETCH_TOO_LARGE, 1),
    "endless": (SkipReason.FETCH_TOO_LARGE, 1),
    "loop": (SkipReason.FETCH_REDIRECTS, 1),
    "chain": (SkipReason.FETCH_REDIRECTS, 6),  # the first and 5 more
    "redirect_nowhere": (SkipReason.FETCH_REDIRECTS, 1),
    "redirect_file": (SkipReason.FETCH_REFUSED, 1),
    "redirect_elsewhere": (SkipReason.FETCH_REFUSED, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", CAUSES)
def test_each_misbehaviour_has_its_cause(
    server: MisbehavingServer, inner: MisbehavingServer, behaviour: str
) -> None:
    cause, requests = CAUSES[behaviour]
    endless = {"read_timeout": 2.0, "total_timeout": 4.0} if behaviour in ("never", "drip") else {}
    [error] = fetch(server.url(f"/{behaviour}/0"), **endless)
    assert isinstance(error, FetchError)
    assert error.reason == cause
    assert sum(path.startswith(f"/{behaviour}/") for path in server.contacts) == requests
    assert inner.connections == 0


def test_an_absent_server_is_a_failed_connection(server: MisbehavingServer) -> None:
    with MisbehavingServer() as gone:
        url = gone.url("/ok/0")
    [refused, unknown] = fetch(url, "http://no-such-host.invalid/1.jpg")
    assert refused.reason == SkipReason.FETCH_CONNECTION
    assert unknown.reason == SkipReason.FETCH_CONNECTION


@pytest.mark.parametrize(
    "url", ["", "x.jpg", "ftp://h/x", "file:///etc/passwd", "http://", "http://h:99999/", "//h"]
)
def test_a_string_that_is_not_an_http_url_is_refused(url: str) -> None:
    [error] = fetch(url)
    assert error.reason == SkipReason.FETCH_REFUSED


def test_a_bomb_is_small_and_the_decoders_matter(server: MisbehavingServer) -> None:
    assert fetch(server.url("/bomb/0")) == [bomb()]


def test_opting_out_is_a_setting(server: MisbehavingServer) -> None:
    assert fetch(server.url("/opted_out/3"), opt_out=[]) == [encoded_image(3)]


def test_digests_are_compared(server: MisbehavingServer) -> None:
    right = {
        "md5": hashlib.md5(encoded_image(5)).hexdigest(),
        "sha256": hashlib.sha256(encoded_image(5)).hexdigest().upper(),
    }
    assert fetch(server.url("/ok/5"), digests=right) == [encoded_image(5)]
    [error] = fetch(server.url("/ok/6"), digests=right)
    assert error.reason == SkipReason.FETCH_HASH
    assert str(error).startswith("fetch_hash: md5 is ")


@pytest.mark.parametrize(("concurrency", "most"), [(64, 4), (3, 3)])
def test_hosts_and_the_whole_have_their_limits(
    server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch, concurrency: int, most: int
) -> None:
    clocks: list[int] = [0]  # how many run, after each change

    class WatchedClock(Clock):
        @asynccontextmanager
        async def running(self) -> AsyncIterator[None]:
            async with super().running():
                clocks.append(clocks[-1] + 1)
                try:
                    yield
                finally:
                    clocks.append(clocks[-1] - 1)

    monkeypatch.setattr("rfdit.data.urls.session.Clock", WatchedClock)
    server.together = most
    urls = [server.url(f"/together/{i}", host) for host in (None, "localhost") for i in range(6)]
    assert fetch(*urls, per_host=2, concurrency=concurrency) == [encoded_image(i) for i in range(6)] * 2
    assert server.busiest == most
    assert max(clocks) == most  # the time of a URL that waits for its turn does not pass


def test_requests_to_a_slow_host_do_not_hold_up_others(server: MisbehavingServer) -> None:
    slow = [server.url(f"/never/{i}", host="localhost") for i in range(8)]

    async def race() -> bytes:
        async with Fetcher(**(SETTINGS | {"per_host": 1, "concurrency": 2})).session() as session:
            waiting = [asyncio.create_task(session.fetch(url)) for url in slow]
            await asyncio.sleep(0)
            data = await session.fetch(server.url("/ok/1"))
            assert not any(task.done() for task in waiting)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            return data

    assert asyncio.run(race()) == encoded_image(1)


@pytest.mark.slow
def test_64_urls_of_which_a_third_misbehave(server: MisbehavingServer, inner: MisbehavingServer) -> None:
    """All live images arrive, fetched side by side with those that never end; nothing else is contacted."""
    bad = list(CAUSES)[:21]
    paths = [f"/{bad[i // 3]}/{i}" if i % 3 == 0 else f"/together/{i}" for i in range(63)] + [
        "/redirect_elsewhere/63"
    ]
    server.together = 42 + 2  # the live ones, /never and /drip
    found = fetch(*map(server.url, paths), read_timeout=10.0, total_timeout=10.0)
    for i, (path, got) in enumerate(zip(paths, found)):
        if path.startswith("/together/"):
            assert got == encoded_image(i)
        else:
            assert isinstance(got, FetchError)
            assert got.reason == CAUSES[path.split("/")[1]][0]
    timeouts = sum(isinstance(got, FetchError) and got.reason == SkipReason.FETCH_TIMEOUT for got in found)
    assert timeouts >= 2
    assert server.busiest >= server.together
    assert inner.connections == 0
    known = {*paths, "/loop/0", "/loop2/0"}
    assert {path for path in server.contacts if not path.startswith("/chain/")} <= known


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"concurrency": 0}, r"data\.reader\.fetcher\.concurrency=0 must be more than 0"),
        ({"total_timeout": -1.0}, r"data\.reader\.fetcher\.total_timeout=-1\.0 must be more than 0"),
        ({"retries": -1}, r"data\.reader\.fetcher\.retries=-1 must not be negative"),
    ],
)
def test_numbers_that_make_no_sense_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fetcher(**settings)


@pytest.mark.parametrize(
    ("header", "out"),
    [
        ("noai", True),
        ("all", False),
        ("none", True),
        ("noindex, max-image-preview:none", True),
        ("max-snippet:-1, noindex", True),
        ("max-image-preview:none", False),
        ("noai, unavailable_after: 25 Jun 2010 15:00:00 GMT", True),
        ("googlebot: noindex", False),
        ("googlebot: noindex, noai", True),
        ("noindex, googlebot: nofollow", True),
    ],
)
def test_robots_tags(header: str, out: bool) -> None:
    assert opted_out(["all", header], Fetcher().opt_out) is out
