"""Whether the interfaces that carry this node's own addresses have a link (SPEC 7.4).

Asked of the kernel's network namespace of this process, by ioctl: /sys may show another namespace's interfaces. An
address that no interface holds decides nothing: a node is taken for cut off only where every interface that carries an
address of it is known, and none has a carrier. When to ask is told by the kernel (rtnetlink): asking again and again
would be a tenth of what an idle daemon costs.
"""

import array
import contextlib
import fcntl
import socket
import struct
from collections.abc import Iterable

_SIOCGIFCONF, _SIOCGIFFLAGS = 0x8912, 0x8913
_IFF_UP, _IFF_RUNNING = 0x1, 0x40  # RUNNING: the interface is operational, so it has a carrier
_NAME_BYTES, _REQUEST_BYTES = 16, 40
_MAXIMUM_INTERFACES = 1024
_IPV6_TABLE = "/proc/net/if_inet6"
_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x1, 0x10, 0x100
_READ_BYTES = 65_536


class OwnLinks:
    """Watches the interfaces of the addresses that it is told to watch; until it is told of some, nothing is known."""

    def __init__(self, addresses: Iterable[str] = ()) -> None:
        self._addresses = set(addresses)
        self._found: dict[str, str] = {}  # address -> interface, as last seen
        self.changes = _subscribed()  # readable when links or addresses may have changed; None: look now and then

    def watch(self, addresses: set[str]) -> None:
        """Go by these numeric addresses from now on (P1.8)."""
        self._addresses, self._found = addresses, {}

    def drain(self) -> None:
        """Take what `changes` has told: that something has changed, and no more. Never raises."""
        with contextlib.suppress(OSError):  # nothing more, or more than the kernel could keep: something has changed
            while self.changes is not None and self.changes.recv(_READ_BYTES):
                pass

    def close(self) -> None:
        """Hear of nothing more; harmless when done before."""
        if self.changes is not None:
            self.changes.close()
            self.changes = None

    def cut_off(self) -> bool:
        """Whether every interface that carries an own address is without a link. Never raises."""
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
                known = _ipv4_interfaces(handle) | _ipv6_interfaces()
                # An IPv6 address goes with its link: what held it last stands for it.
                self._found.update({address: known[address] for address in self._addresses & known.keys()})
                if not self._found or self._found.keys() != self._addresses:
                    return False
                return not any(_is_running(handle, interface) for interface in set(self._found.values()))
        except OSError:
            return False  # what cannot be known decides nothing


def addresses_of(hosts: tuple[str, ...]) -> set[str]:
    """The numeric addresses of hosts; asking for that of a name may take its time."""
    return {address for host in hosts for address in _resolved(host)}


def _subscribed() -> socket.socket | None:
    """A socket that the kernel writes to whenever a link or an address changes; None where it offers none."""
    handle = None
    try:
        handle = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        handle.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
    except OSError:
        if handle is not None:
            handle.close()
        return None
    return handle


def _resolved(host: str) -> set[str]:
    try:
        return {
            str(found[4][0]).partition("%")[0]
            for found in socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM)
        }
    except OSError:
        return {host}


def _ipv4_interfaces(handle: socket.socket) -> dict[str, str]:
    buffer = array.array("B", bytes(_MAXIMUM_INTERFACES * _REQUEST_BYTES))
    request = struct.pack("iL", len(buffer), buffer.buffer_info()[0])
    used = struct.unpack("iL", fcntl.ioctl(handle, _SIOCGIFCONF, request))[0]
    data = buffer.tobytes()[:used]
    found = {}
    for start in range(0, used, _REQUEST_BYTES):
        name = data[start : start + _NAME_BYTES].partition(b"\0")[0].decode(errors="replace")
        address = socket.inet_ntoa(data[start + 20 : start + 24])
        found[address] = name.partition(":")[0]  # an alias has its interface's link
    return found


def _ipv6_interfaces() -> dict[str, str]:
    found = {}
    try:
        with open(_IPV6_TABLE) as file:
            for line in file:
                words = line.split()
                found[socket.inet_ntop(socket.AF_INET6, bytes.fromhex(words[0]))] = words[-1]
    except OSError:
        return {}  # a kernel without IPv6
    return found


def _is_running(handle: socket.socket, interface: str) -> bool:
    request = struct.pack("16sH22x", interface.encode()[: _NAME_BYTES - 1], 0)
    try:
        flags = struct.unpack("16sH22x", fcntl.ioctl(handle, _SIOCGIFFLAGS, request))[1]
    except OSError:
        return False  # the interface is gone
    return bool(flags & _IFF_UP and flags & _IFF_RUNNING)
