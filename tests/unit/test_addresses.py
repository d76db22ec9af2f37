"""Whose address counts: the right-most that no trusted proxy has, whatever a client claims."""

from collections.abc import Sequence
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.addresses import client_address, neighbourhood

TRUSTED = tuple(map(ip_network, ("10.0.0.0/8", "fd00::/8", "::1/128")))


def seen(peer: str | None, *forwarded: str) -> str:
    return str(client_address(peer, forwarded, TRUSTED))


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", (), "192.0.2.1"),
        ("10.0.0.1", (), "10.0.0.1"),
        ("10.0.0.1", ("192.0.2.1",), "192.0.2.1"),
        ("10.0.0.1", ("192.0.2.1, 10.9.9.9",), "192.0.2.1"),
        ("10.0.0.1", ("192.0.2.1", " 10.9.9.9 "), "192.0.2.1"),
        ("10.0.0.1", ("10.0.0.7",), "10.0.0.7"),
        ("::1", ("2001:db8::7",), "2001:db8::7"),
        ("::ffff:10.0.0.1", ("::ffff:192.0.2.1",), "192.0.2.1"),
        ("10.0.0.1", ("192.0.2.1:4711",), "192.0.2.1"),
        ("10.0.0.1", ("[2001:db8::7]:4711",), "2001:db8::7"),
        ("10.0.0.1", ("[2001:db8::7]",), "2001:db8::7"),
        ("fe80::1%eth0", (), "fe80::1"),
    ],
)
def test_the_client_is_the_first_stranger_from_the_right(peer: str, forwarded: Sequence[str], client: str) -> None:
    assert seen(peer, *forwarded) == client


@pytest.mark.parametrize("claimed", ["203.0.113.9", "10.0.0.2", "203.0.113.9, 10.0.0.2", "rubbish", "127.0.0.1", ""])
def test_what_a_client_claims_of_itself_counts_for_nothing(claimed: str) -> None:
    """Before the first proxy adds whom it heard it from, and also to a gateway without any."""
    assert seen("10.0.0.1", f"{claimed}, 192.0.2.1") == "192.0.2.1"
    assert seen("10.0.0.1", claimed, "192.0.2.1") == "192.0.2.1"
    assert seen("192.0.2.1", claimed) == "192.0.2.1"


def test_without_trusted_proxies_the_peer_is_the_client() -> None:
    assert str(client_address("10.0.0.1", ["192.0.2.1"], ())) == "10.0.0.1"


@pytest.mark.parametrize("garbage", ["", "unknown", "_hidden", "1.2.3", "1.2.3.4.5", "1.2.3.4:5:6", "[x]", "0x7f.1", "\0"])
def test_what_is_no_address_ends_the_search_at_who_passed_it_on(garbage: str) -> None:
    assert seen("10.0.0.1", f"192.0.2.1, {garbage}, 10.0.0.2") == "10.0.0.2"


@pytest.mark.parametrize("peer", [None, "", "unix:"])
def test_a_peer_without_an_address_is_nobody(peer: str | None) -> None:
    assert client_address(peer, ["192.0.2.1"], TRUSTED) is None
    assert neighbourhood(None) == ""


@given(st.lists(st.text()), st.lists(st.ip_addresses().filter(lambda ip: not any(ip in net for net in TRUSTED)), min_size=1))
def test_no_chain_makes_a_stranger_somebody_else(claimed: list[str], strangers: list[object]) -> None:
    last = strangers[-1]
    expected = client_address(str(last), (), ())

    assert client_address("10.0.0.1", [*claimed, *map(str, strangers)], TRUSTED) == expected


def test_a_whole_64_of_ipv6_is_one_neighbour() -> None:
    one, other, far = (
        neighbourhood(client_address(peer, (), ())) for peer in ("2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:1::1")
    )

    assert one == other == "2001:db8::/64"
    assert far != one
    assert neighbourhood(client_address("192.0.2.1", (), ())) == "192.0.2.1"
