"""Addresses are what they mean, not how they are written (P1.2)."""

import pytest

from muster.records.addresses import Address, address_of, same_address
from muster.records.names import address_problem, addresses_problem

SAME = [
    ("[::1]:7700", "[0:0:0:0:0:0:0:1]:07700"),
    ("10.0.0.1:7700", "10.0.0.1:07700"),
    ("[FE80::1%eth0]:7700", "[fe80:0::1%eth0]:7700"),
    ("Host.Example.:7700", "host.example:7700"),
    ("[::ffff:10.0.0.1]:7700", "10.0.0.1:7700"),
]
OTHERS = [
    ("[fe80::1%eth0]:7700", "[fe80::1%eth1]:7700"),
    ("10.0.0.1:7700", "10.0.0.1:7701"),
    ("host:7700", "host.example:7700"),
]
NONSENSE = [
    "[:::::]:7700", "[1.2.3]:7700", "999.1.1.1:7700", "1.2.3:7700", "127.1:7700", "0x7f000001:7700", "10.0.0.01:7700",
    "0.0.0.0:7700", "[::]:7700", ":7700", "224.0.0.1:7700", "[ff02::1%eth0]:7700", "255.255.255.255:7700",
    "[fe80::1]:7700", "[2001:db8::1%eth0]:7700", "[fe80::1%]:7700", "[fe80::1%a b]:7700",
    "[fe80::1%" + "x" * 16 + "]:1", "[fe80::1%25eth0]:7700", "10.0.0.1.:7700",
    "host:0", "host:65536", "host:99999999", "host:-1", "host: 1", "host:", "host", "-host:1", "host-:1", "a..b:1",
    "h\u00f6st:1", "host\n:1", "host:1\n", "host:\u0661", "x" * 64 + ":1", ".".join(["x" * 60] * 5) + ":1",
    "::1:7700", "[::1:7700",
    "[10.0.0.1]:7700", "[host]:7700", "host/x:1", "",
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), SAME)
def test_p1_2_one_address_in_two_spellings_is_one_address(one: str, other: str) -> None:
    assert address_of(one) == address_of(other)
    assert "twice" in addresses_problem((one, other))
    assert same_address((one,), (other,)) == one


@pytest.mark.parametrize(("one", "other"), OTHERS)
def test_p1_2_two_addresses_are_two(one: str, other: str) -> None:
    assert addresses_problem((one, other)) == ""
    assert same_address((one,), (other,)) == ""


@pytest.mark.parametrize("text", NONSENSE)
def test_p1_2_what_no_node_can_be_reached_by_is_no_address(text: str) -> None:
    assert "is no address: " in address_problem(text)


def test_p1_2_what_is_one_is_taken() -> None:
    assert address_of("n0.example_1:7700") == Address("n0.example_1", 7700)
    assert address_of("[2001:DB8::1]:1") == Address("2001:db8::1", 1)
    assert "its interface" in address_problem("[fe80::1]:7700")
