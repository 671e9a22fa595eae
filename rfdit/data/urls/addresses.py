"""Rules for network addresses: only public ones are contacted by default, whatever a URL or DNS says."""

import asyncio
import concurrent.futures
import ipaddress
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# A gateway turns the last four bytes of these into an IPv4 address (RFC 6052).
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# IANA has assigned no other IPv6 addresses to the internet.
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
# The special-purpose registries of IANA, whose copies in Python differ from version to version, and what is
# special beside them. The few public services inside these networks serve no images.
SPECIAL = [
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by the customers of a provider
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # the endpoint by which Azure's hosts serve their machines
        "169.254.0.0/16",  # link-local, with the metadata of clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments, with the metadata of a cloud
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks of networks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
        "2001::/23",  # protocol assignments, with Teredo's tunnels
        "2001:db8::/32",  # documentation
        "2002::/16",  # tunnels of 6to4
        "3fff::/20",  # documentation
    )
]

# An answer of the system's resolver: (family, type, protocol, name, (address, port, ...)).
AddressInfo = tuple[Any, ...]
Lookup = Callable[[str, int, int], Sequence[AddressInfo]]


class RefusedAddressError(ValueError):
    """An address that the rule does not allow."""


class AddressRule:
    """Allows public addresses and those of some networks.

    networks: such as ["10.0.0.0/8", "127.0.0.1", "fd00::/8"].
    Raises ValueError, naming `setting`, for anything that is not a network.
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
            raise RefusedAddressError(f"{host} is not an address in its usual form") from None
        if not is_public(address) and not self._is_listed(address):
            raise RefusedAddressError(f"{host} is not a public address; allow_networks can allow it")

    def _is_listed(self, address: Address) -> bool:
        plain = _inner_ipv4(address) or address
        return any(plain in network or address in network for network in self.networks)


def is_public(address: Address) -> bool:
    """True for addresses of the internet: not loopback, private, link-local, multicast, reserved or a cloud's own.

    An IPv6 address that wraps an IPv4 one (mapped, NAT64) is public if that one is; those that lead
    through a tunnel (6to4, Teredo) are not.
    """
    inner = _inner_ipv4(address)
    if inner is not None:
        return is_public(inner)
    if isinstance(address, ipaddress.IPv6Address) and address not in GLOBAL_UNICAST:
        return False
    return not any(address in network for network in SPECIAL)


def _inner_ipv4(address: Address) -> ipaddress.IPv4Address | None:
    if not isinstance(address, ipaddress.IPv6Address):
        return None
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped


class CheckedResolver:
    """Resolves names to those of their addresses that are allowed, as aiohttp's resolvers do.

    aiohttp connects to what its resolver answers and never resolves again, so a name that has another
    address the next time (DNS rebinding) gains nothing. Addresses written in URLs are not resolved;
    `checked_socket` checks them.

    Raises RefusedAddressError if none of a name's addresses is allowed; OSError if it has none.
    """

    def __init__(self, rule: AddressRule, *, lookup: Lookup | None = None) -> None:
        self.rule, self.lookup = rule, lookup or _system_lookup

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[dict[str, Any]]:
        infos = await _in_a_thread(lambda: self.lookup(host, port, family))
        allowed: dict[str, dict[str, Any]] = {}
        refusal: RefusedAddressError | None = None
        for found, _, proto, _, sockaddr in infos:
            address = str(sockaddr[0])
            try:
                self.rule.check(address)
            except RefusedAddressError as error:
                refusal = error
                continue
            allowed[address] = {
                "hostname": host, "host": address, "port": port,
                "family": found, "proto": proto, "flags": socket.AI_NUMERICHOST,
            }  # fmt: skip
        if not allowed:
            if refusal is not None:
                raise RefusedAddressError(f"{host}: {refusal}")
            raise OSError(f"{host} has no address")
        return list(allowed.values())

    async def close(self) -> None:
        """Nothing to close."""


def checked_socket(rule: AddressRule) -> Callable[[AddressInfo], socket.socket]:
    """A factory of aiohttp's sockets that checks the very address that is connected to next."""

    def create(info: AddressInfo) -> socket.socket:
        family, kind, proto, _, sockaddr = info
        rule.check(str(sockaddr[0]))
        return socket.socket(family, kind, proto)

    return create


def _system_lookup(host: str, port: int, family: int) -> Sequence[AddressInfo]:
    return socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)


async def _in_a_thread(look_up: Callable[[], Sequence[AddressInfo]]) -> Sequence[AddressInfo]:
    """The lookup's result, from a thread of its own.

    Lookups of dead names take long. In asyncio's thread pool a few of them would hold up all others,
    and the process could not end before they do.
    """
    answer: concurrent.futures.Future[Sequence[AddressInfo]] = concurrent.futures.Future()
    answer.set_running_or_notify_cancel()  # the thread goes on although its caller may be cancelled

    def work() -> None:
        try:
            answer.set_result(look_up())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True, name="rfdit-dns").start()
    return await asyncio.wrap_future(answer)
