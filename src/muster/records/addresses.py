"""Addresses of the interconnect, HOST:PORT: what is one, and when two are the same (P1.2).

They are compared as what they mean, never as text: `[::1]:7700` and `[0:0:0:0:0:0:0:1]:07700` are one address, host
names have no case, and an IPv4 address in IPv6 clothes is that IPv4 address.
"""

import ipaddress
import re
from typing import NamedTuple

HIGHEST_PORT = 65_535
_FORM = re.compile(r"(?:\[(?P<bracketed>[^\[\]]*)\]|(?P<bare>[^\[\]:]*)):(?P<port>[0-9]{1,5})")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")
_ZONE = re.compile(r"[A-Za-z0-9._-]{1,15}")  # the name of an interface
_PERCENT = "25"  # the percent sign before a zone, as a URL writes it; no driver names an interface so
_LONGEST_NAME = 253
_ADVICE = "write HOST:PORT with a port from 1 to 65535, an IPv6 address in brackets"


class Address(NamedTuple):
    """What an address means; two that are equal are the same."""

    host: str
    port: int


class NoAddress(ValueError):
    """Why a text is no address that the other nodes can reach, and what to do."""


def address_of(text: str) -> Address:
    """What the address means. Raises `NoAddress`."""
    found = _FORM.fullmatch(text)
    if found is None or not 0 < int(found["port"]) <= HIGHEST_PORT:
        raise NoAddress(_ADVICE)
    port = int(found["port"])
    if found["bracketed"] is not None:
        return Address(_ipv6(found["bracketed"]), port)
    return Address(_name_or_ipv4(found["bare"]), port)


def _ipv6(text: str) -> str:
    literal, percent, zone = text.partition("%")
    try:
        address = ipaddress.IPv6Address(literal)
    except ValueError as error:
        raise NoAddress(f"in the brackets stands no IPv6 address ({error})") from error
    if address.ipv4_mapped is not None and not percent:
        return _usable(address.ipv4_mapped)
    host = _usable(address)
    if not address.is_link_local:
        if percent:
            raise NoAddress("only a link-local address has an interface: leave out what follows the address")
        return host
    if not _ZONE.fullmatch(zone):
        raise NoAddress(f"a link-local address needs its interface on every node: write [{address}%eth0]:PORT")
    if zone.startswith(_PERCENT):
        raise NoAddress(f"this is not part of a URL: write [{address}%{zone.removeprefix(_PERCENT)}]:PORT")
    return f"{host}%{zone}"


def _name_or_ipv4(text: str) -> str:
    host = text.lower().removesuffix(".")
    labels = host.split(".")
    if _NUMERIC.fullmatch(labels[-1]):  # no name ends so: the system would read it as some IPv4 address
        try:
            return _usable(ipaddress.IPv4Address(text))  # not `host`: with a point behind it nobody finds it
        except ValueError as error:
            raise NoAddress(f"it is neither a host name nor an IPv4 address ({error})") from error
    if len(host) > _LONGEST_NAME or not all(map(_LABEL.fullmatch, labels)):
        raise NoAddress(f"that is no host name: {_ADVICE}")
    return host


def _usable(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    if address.is_unspecified:
        raise NoAddress("it stands for every interface: name the address by which the other nodes reach this one")
    if address.is_multicast or address == ipaddress.IPv4Address("255.255.255.255"):
        raise NoAddress("it is no address of one machine: name one by which the other nodes reach this one")
    return str(address)


def host_to_use(host: str) -> str:
    """What the system is given for a host: it neither listens at nor reaches an IPv4 address in IPv6 clothes."""
    try:
        mapped = ipaddress.IPv6Address(host).ipv4_mapped
    except ValueError:
        return host
    return host if mapped is None else str(mapped)


def same_address(texts: tuple[str, ...], others: tuple[str, ...]) -> str:
    """The first of `texts` that is also among `others`; empty where none is. What is no address is compared as text."""
    known = {_meaning(each) for each in others}
    return next((each for each in texts if _meaning(each) in known), "")


def _meaning(text: str) -> Address | str:
    try:
        return address_of(text)
    except NoAddress:
        return text
