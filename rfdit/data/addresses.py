"""Which network addresses may be contacted: by default public ones, whatever a URL or DNS says."""

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import ClientError
from aiohttp.abc import AbstractResolver, ResolveResult

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# A gateway turns the last four bytes of these into an IPv4 address (RFC 6052).
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Not public, although Python's lists (all, or those of some versions) do not say so.
ALSO_SPECIAL = [
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # the endpoint by which Azure's hosts serve their machines
        "192.88.99.0/24",  # relays of 6to4 (RFC 7526)
        "3fff::/20",  # documentation (RFC 9637)
    )
]

# What the system's resolver answers: (family, type, protocol, name, (address, port, ...)) each.
Lookup = Callable[[str, int, int], Sequence[tuple[Any, ...]]]


class RefusedAddressError(ClientError):
    """An address that the rule does not allow."""


class AddressRule:
    """Allows public addresses, and those of the networks that it is given.

    networks: such as ["10.0.0.0/8", "127.0.0.1", "fd00::/8"].
    Raises ValueError, naming `setting`, for what is no network.
    """

    def __init__(self, networks: Sequence[str] = (), *, setting: str = "allow_networks") -> None:
        try:
            self.networks = [ipaddress.ip_network(network) for network in networks]
        except ValueError as error:
            raise ValueError(f"{setting}={list(networks)}: {error}; write 10.0.0.0/8 or fd00::/8") from None

    def check(self, host: str) -> None:
        """Raises RefusedAddressError unless `host`, an address as text, may be contacted."""
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            raise RefusedAddressError(f"{host} is no address in its usual form") from None
        if not is_public(address) and not self._is_listed(address):
            raise RefusedAddressError(f"{host} is no public address; allow_networks can allow it")

    def _is_listed(self, address: Address) -> bool:
        plain = _inner_ipv4(address) or address
        return any(plain in network or address in network for network in self.networks)


def is_public(address: Address) -> bool:
    """Whether it is on the internet: not loopback, private, link-local, multicast, reserved, a cloud's own, ...

    An IPv6 address that only wraps an IPv4 one (mapped, NAT64) is what that one is; those that lead
    through a tunnel (6to4, Teredo) are not public.
    """
    inner = _inner_ipv4(address)
    if inner is not None:
        return is_public(inner)
    if isinstance(address, ipaddress.IPv6Address) and (
        address.is_site_local or address.sixtofour is not None or address.teredo is not None
    ):
        return False
    if any(address in network for network in ALSO_SPECIAL):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _inner_ipv4(address: Address) -> ipaddress.IPv4Address | None:
    if not isinstance(address, ipaddress.IPv6Address):
        return None
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped


class CheckedResolver(AbstractResolver):
    """Resolves names to the allowed ones of their addresses.

    aiohttp connects to what its resolver answers and asks nobody else, so a name that resolves
    differently the next time (DNS rebinding) gains nothing. Addresses written in URLs do not pass
    here; `checked_socket` sees them.

    Raises RefusedAddressError if a name has addresses, none of them allowed; OSError if it has none.
    """

    def __init__(self, rule: AddressRule, *, lookup: Lookup | None = None) -> None:
        self.rule, self.lookup = rule, lookup or _system_lookup

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        infos = await _in_a_thread(lambda: self.lookup(host, port, family))
        allowed: dict[str, ResolveResult] = {}
        refusal: RefusedAddressError | None = None
        for found, _, proto, _, sockaddr in infos:
            address = str(sockaddr[0])
            try:
                self.rule.check(address)
            except RefusedAddressError as error:
                refusal = error
                continue
            allowed[address] = ResolveResult(
                hostname=host, host=address, port=port, family=found, proto=proto, flags=socket.AI_NUMERICHOST
            )
        if not allowed:
            if refusal is not None:
                raise RefusedAddressError(f"{host}: {refusal}")
            raise OSError(f"{host} has no address")
        return list(allowed.values())

    async def close(self) -> None:
        """Holds nothing."""


def checked_socket(rule: AddressRule) -> Callable[[tuple[Any, ...]], socket.socket]:
    """Makes aiohttp's sockets; the last check, on the very address that is connected to next."""

    def create(info: tuple[Any, ...]) -> socket.socket:
        family, kind, proto, _, sockaddr = info
        rule.check(str(sockaddr[0]))
        return socket.socket(family, kind, proto)

    return create


def _system_lookup(host: str, port: int, family: int) -> Sequence[tuple[Any, ...]]:
    return socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)


async def _in_a_thread(look_up: Callable[[], Sequence[tuple[Any, ...]]]) -> Sequence[tuple[Any, ...]]:
    """The lookup's result, from a thread of its own.

    Lookups of dead names take long. In asyncio's thread pool a handful of them would hold up all
    others, and the process could not end before they do.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Sequence[tuple[Any, ...]]] = loop.create_future()

    def tell(result: Sequence[tuple[Any, ...]] | None, error: Exception | None) -> None:
        if answer.done():  # nobody waits any more
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result or [])

    def work() -> None:
        result, error = None, None
        try:
            result = look_up()
        except Exception as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=work, daemon=True, name="rfdit-dns").start()
    return await answer
