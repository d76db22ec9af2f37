"""Where a caller sits, in spite of the proxies between. Pure: who is believed is passed in."""

from collections.abc import Collection, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_SUBNET_BITS: Final = 64


def client_address(peer: str | None, forwarded: Iterable[str], trusted: Collection[Network]) -> Address | None:
    """Tell the address of the client: the right-most that no trusted proxy has.

    `peer` is who has connected to us; `forwarded` are the values of X-Forwarded-For in their order. Each proxy adds on the
    right whom it heard it from, so what stands left of the first stranger may be invented, and is not looked at. An entry
    that is no address ends the search at the proxy that passed it on. None when not even the peer has an address.
    """
    client = _read(peer or "")
    entries = [entry for value in forwarded for entry in value.split(",")] if trusted else []
    while client is not None and entries and any(client in network for network in trusted):
        before = _read(entries.pop())
        if before is None:
            break
        client = before
    return client


def neighbourhood(address: Address | None) -> str:
    """Name what one person may well have: an IPv4 address, or a whole /64 of IPv6."""
    if isinstance(address, IPv6Address):
        return str(ip_network((int(address), _SUBNET_BITS), strict=False))
    return str(address or "")


def _read(entry: str) -> Address | None:
    """Read an address, with or without brackets and port; IPv4 told as IPv6 is IPv4."""
    text = entry.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
