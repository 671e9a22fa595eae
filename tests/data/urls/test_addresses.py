"""The addresses that count as public; only these are contacted."""

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from typing import Any

import pytest

from rfdit.data.skips import SkipReason
from rfdit.data.urls.addresses import (
    AddressRule,
    CheckedResolver,
    RefusedAddressError,
    checked_socket,
    is_public,
)
from rfdit.data.urls.fetch import Fetcher, FetchError
from tests.support.servers.misbehaving_server import MisbehavingServer, encoded_image

# The first and the last address of each network of IANA's special-purpose registries, and forms that wrap one.
NOT_PUBLIC = [
    *("0.0.0.0", "0.255.255.255", "10.0.0.0", "10.255.255.255", "100.64.0.0", "100.127.255.255"),
    *("127.0.0.0", "127.255.255.255", "169.254.0.0", "169.254.169.254", "169.254.255.255"),
    *("172.16.0.0", "172.31.255.255", "192.168.0.0", "192.168.255.255"),
    *("192.0.0.0", "192.0.0.8", "192.0.0.100", "192.0.0.192", "192.0.0.255"),  # unknown to Python 3.11.7
    *("192.0.2.0", "192.0.2.255", "192.88.99.0", "192.88.99.255", "198.18.0.0", "198.19.255.255"),
    *("198.51.100.0", "198.51.100.255", "203.0.113.0", "203.0.113.255"),
    *("224.0.0.0", "239.255.255.255", "240.0.0.0", "255.255.255.255"),
    "168.63.129.16",  # where Azure's machines are served from
    *("::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:0:8.8.8.8", "64:ff9b:1::", "64:ff9b:1::808:808"),
    *("100::", "100:0:0:1::1", "1fff::1", "4000::1", "5f00::1"),
    *("2001::", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:2::1", "2001:10::1", "2001:1ff:ffff::1"),
    *("2001:db8::1", "2001:db8:ffff::1", "2002::", "2002:7f00:1::", "2002:808:808::"),
    *("3fff::1", "3fff:fff::1"),
    *("fc00::1", "fdff::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "febf::1", "fec0::1", "ff02::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:168.63.129.16", "::ffff:192.0.0.192"),
    *("64:ff9b::7f00:1", "64:ff9b::c000:c0"),
]


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_what_is_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    with pytest.raises(RefusedAddressError, match="is not a public address; allow_networks can allow it"):
        AddressRule().check(address)


@pytest.mark.parametrize(
    "address",
    [
        *("1.0.0.0", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0"),
        *("168.63.129.17", "172.15.255.255", "172.32.0.0", "191.255.255.255", "192.0.1.0", "192.88.98.255"),
        *("198.17.255.255", "198.20.0.0", "223.255.255.255", "::ffff:8.8.8.8", "64:ff9b::808:808"),
        *("2001:200::1", "2001:dc8::1", "2606:4700::1111", "3ffe::1", "3fff:1000::1"),
    ],
)
def test_what_is_public(address: str) -> None:
    AddressRule().check(address)


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0177.0.0.1", "localhost", "", "127.0.0.1%eth0"])
def test_an_address_in_no_usual_form_is_refused(host: str) -> None:
    with pytest.raises(RefusedAddressError, match="is not an address in its usual form"):
        AddressRule().check(host)


def test_networks_can_be_allowed_and_nothing_beside_them() -> None:
    rule = AddressRule(["10.0.0.0/8", "127.0.0.1", "fd00::/8"])
    for address in ("10.9.9.9", "127.0.0.1", "::ffff:127.0.0.1", "fd12::1", "8.8.8.8"):
        rule.check(address)
    for address in ("192.168.0.1", "127.0.0.2", "fe80::1"):
        with pytest.raises(RefusedAddressError):
            rule.check(address)


def test_an_invalid_network_is_named() -> None:
    with pytest.raises(ValueError, match=r"allow_networks=\['home'\]: 'home' does not appear to be"):
        AddressRule(["home"])
    with pytest.raises(
        ValueError, match=r"data\.reader\.fetcher\.allow_networks=\['10\.0\.0\.1/8'\]: .* host bits"
    ):
        Fetcher(allow_networks=["10.0.0.1/8"])


def answers(*addresses: str) -> Any:
    """A DNS that gives this answer to every question."""

    def lookup(host: str, port: int, family: int) -> Sequence[tuple[Any, ...]]:
        kinds = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
        return [(kind, socket.SOCK_STREAM, 6, "", (address, port)) for kind, address in zip(kinds, addresses)]

    return lookup


def test_of_several_addresses_only_the_allowed_are_used() -> None:
    resolver = CheckedResolver(AddressRule(), lookup=answers("127.0.0.1", "8.8.8.8", "::1"))
    found = asyncio.run(resolver.resolve("host", 80))
    assert [result["host"] for result in found] == ["8.8.8.8"]


def test_a_name_with_no_allowed_address_is_refused() -> None:
    resolver = CheckedResolver(AddressRule(), lookup=answers("10.0.0.1", "::ffff:127.0.0.1"))
    with pytest.raises(RefusedAddressError, match=r"inner\.example: ::ffff:127\.0\.0\.1 is not a public"):
        asyncio.run(resolver.resolve("inner.example", 80))
    with pytest.raises(OSError, match="nobody has no address"):
        asyncio.run(CheckedResolver(AddressRule(), lookup=answers()).resolve("nobody", 80))


def test_the_last_check_is_on_the_socket() -> None:
    create = checked_socket(AddressRule(["127.0.0.1"]))
    create((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))).close()
    with pytest.raises(RefusedAddressError):
        create((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", 80)))


def reason_and_detail(url: str, *, lookup: Any = None, allow: Sequence[str] = ()) -> tuple[SkipReason, str]:
    async def fetch() -> None:
        async with Fetcher(allow_networks=allow, retries=0).session(lookup=lookup) as session:
            await session.fetch(url)

    with pytest.raises(FetchError) as error:
        asyncio.run(fetch())
    return error.value.reason, str(error.value)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0.0.0.0",
    ],
)
def test_no_way_of_writing_this_machine_reaches_it(host: str) -> None:
    with MisbehavingServer() as server:
        reason, _ = reason_and_detail(f"http://{host}:{server.port}/ok/0")
        assert (reason, server.connections) == (SkipReason.FETCH_REFUSED, 0)


def test_a_public_name_for_a_private_address_is_refused() -> None:
    with MisbehavingServer() as server:
        url = server.url("/ok/0", host="photos.example")
        reason, detail = reason_and_detail(url, lookup=answers("127.0.0.1"))
        assert (reason, server.connections) == (SkipReason.FETCH_REFUSED, 0)
        assert "photos.example: 127.0.0.1 is not a public address" in detail


def test_a_name_that_changes_its_address_after_the_check_gains_nothing() -> None:
    """DNS rebinding: the address that was checked is the one that is connected to, without another lookup."""
    lookups: list[str] = []

    def rebinding(host: str, port: int, family: int) -> Sequence[tuple[Any, ...]]:
        lookups.append(host)
        return answers("127.0.0.1" if len(lookups) == 1 else "127.0.0.2")(host, port, family)

    async def fetch_twice(url: str) -> None:
        async with Fetcher(allow_networks=["127.0.0.1"]).session(lookup=rebinding) as session:
            for seed in (0, 1):
                assert await session.fetch(f"{url}{seed}") == encoded_image(seed)

    with MisbehavingServer("127.0.0.2") as inner, MisbehavingServer() as server:
        asyncio.run(fetch_twice(server.url("/ok/", host="rebinding.example")))
        assert inner.connections == 0
    assert lookups == ["rebinding.example"]
