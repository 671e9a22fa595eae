"""Settings for fetching images from untrusted servers, and the errors of fetching."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from rfdit.data.skips import SkippedSampleError, SkipReason
from rfdit.data.urls.addresses import AddressRule, Lookup
from rfdit.limits import Count, Index, NotNegative, Positive

if TYPE_CHECKING:
    from rfdit.data.urls.session import FetchSession


class FetchError(SkippedSampleError):
    """A URL that gave no image.

    retry: True if another attempt may help. wait: least number of seconds before it.
    """

    def __init__(self, reason: SkipReason, detail: str, *, retry: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason, detail)
        self.retry, self.wait = retry, wait


class Fetcher:
    """Settings of fetching; `session` opens the connections.

    concurrency: simultaneous requests. per_host: those to one host. A request that waits for memory yields
        its turn to others.
    connect_timeout: seconds for DNS, TCP and TLS. read_timeout: seconds without a byte.
    total_timeout: seconds for one URL with its redirects, retries and pauses; waiting for its turn
        does not count.
    retries: further attempts after server errors (5xx), 408, 425, 429, failed or broken connections and
        timeouts.
    backoff: seconds before the first retry, doubled before each next one.
    max_redirects: redirects that are followed.
    max_bytes: size limit of one image.
    user_agent: the header of this name.
    opt_out: directives of the header X-Robots-Tag for which an image is skipped.
    allow_networks: networks that may be contacted although they are not public, as `AddressRule` takes
        them; for intranets and tests.

    Raises ValueError, naming the setting, for numbers out of range.
    """

    def __init__(
        self,
        *,
        concurrency: Count = 64,
        per_host: Count = 4,
        connect_timeout: Positive = 5.0,
        read_timeout: Positive = 10.0,
        total_timeout: Positive = 30.0,
        retries: Index = 2,
        backoff: NotNegative = 0.5,
        max_redirects: Index = 5,
        max_bytes: Count = 32 * 2**20,
        user_agent: str = "Mozilla/5.0 (compatible; rfdit)",
        opt_out: Sequence[str] = ("noai", "noimageai", "noindex", "noimageindex"),
        allow_networks: Sequence[str] = (),
    ) -> None:
        self.concurrency, self.per_host = concurrency, per_host
        self.connect_timeout, self.read_timeout = connect_timeout, read_timeout
        self.total_timeout, self.max_bytes = total_timeout, max_bytes
        for name, value in vars(self).items():  # those that are set so far
            if value <= 0:
                raise ValueError(f"data.reader.fetcher.{name}={value} must be more than 0")
        self.retries, self.backoff, self.max_redirects = retries, backoff, max_redirects
        for name in ("retries", "backoff", "max_redirects"):
            if vars(self)[name] < 0:
                raise ValueError(f"data.reader.fetcher.{name}={vars(self)[name]} must not be negative")
        self.user_agent, self.opt_out = user_agent, [directive.lower() for directive in opt_out]
        self.rule = AddressRule(allow_networks, setting="data.reader.fetcher.allow_networks")

    @property
    def rules(self) -> list[Any]:
        """The settings that decide, besides servers and time limits, whether a URL is alive."""
        networks = [str(network) for network in self.rule.networks]
        return [self.max_redirects, self.max_bytes, self.user_agent, self.opt_out, networks]

    @asynccontextmanager
    async def session(self, *, lookup: Lookup | None = None) -> AsyncIterator["FetchSession"]:
        """Connections of the running event loop. lookup: replaces the system's DNS."""
        from rfdit.data.urls.session import FetchSession, open_client

        async with open_client(self, lookup) as client:
            yield FetchSession(self, client)
