"""Linux's lock manager (DLM) of this machine, driven through configfs, sysfs and its uevents (P12.30).

The kernel waits for user space in two places: who makes a lockspace waits to be let in, who gives it up waits to be let
go; a uevent says so, and `event_done` answers. Between the two a lockspace is stopped and started by `control`, and
configfs says with which nodes. The kernel stops all lockspaces when `/dev/dlm-monitor` is closed, so whoever holds it
must live as long as the node. No corosync and no dlm_controld: there is room for one such program on a machine.

All of it blocks, so it is for a thread of its own. What a lockspace that has gone meanwhile lacks is passed over.
"""

import contextlib
import os
import re
import socket
import struct
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, assert_never

from muster.core.locks.kernel import Command, End, Reach, Refuse, Start, Stop
from muster.drivers.image.kernel_spaces import held

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")  # of a lockspace: it becomes part of paths
_MONITORS = ("dev/dlm-monitor", "dev/misc/dlm-monitor")
_CONFIG = "sys/kernel/config"
_SPACES = "sys/kernel/dlm"
_ADDRESS_BYTES = 128  # of a sockaddr_storage
_UEVENTS, _FROM_KERNEL = 15, 1  # netlink's protocol and group
_BUFFER_BYTES = 16 * 1024 * 1024
_SO_RCVBUFFORCE = 33
_PREFIX = "/kernel/dlm/"
_REFUSED = "-1"


class Asked(NamedTuple):
    """What the kernel waits for: a lockspace to be entered, or to be let go."""

    name: str
    enters: bool


class CannotDrive(Exception):
    """The kernel's lock manager cannot be driven here; the message says why, and what to do."""


def id_of(node: int) -> int:
    """What the kernel calls a node: a small number above 0, the same for as long as the node is configured (P12.37)."""
    return node + 1


class KernelLocks:
    """Those of this machine. `addresses` gives the HOST of each node by its number."""

    def __init__(self, cluster: str, node: int, hosts: Callable[[], Mapping[int, str]], root: Path = Path("/")) -> None:
        self._cluster, self._node, self._hosts, self._root = cluster, node, hosts, root
        self._monitor = -1
        self._reached: dict[int, str] = {}  # node -> its life
        self.events: socket.socket | None = None

    def open(self) -> None:
        """Take the kernel's lock manager over. Raises `CannotDrive`."""
        if os.geteuid() != 0:
            raise CannotDrive("only root drives the kernel's lock manager: run the node as root")
        with contextlib.suppress(OSError):  # a machine without modules has no program for them
            subprocess.run(["modprobe", "--all", "configfs", "dlm"], check=False, capture_output=True)
        if not self._at(_CONFIG, "dlm").is_dir():
            raise CannotDrive(
                "there is no /sys/kernel/config/dlm: modprobe dlm; mount -t configfs configfs /sys/kernel/config"
            )
        if left := held(str(self._at(_SPACES))):
            raise CannotDrive(f"the kernel has lockspaces of an earlier node ({', '.join(left)}): restart this machine")
        self.events = _listen()
        try:
            self._monitor = self._open_monitor()
            self._set_up()
        except OSError as error:
            self.close()
            raise CannotDrive(
                f"the kernel's lock manager: {error}; does another program drive it (dlm_controld)?"
            ) from error

    def close(self) -> None:
        """Let go of it: the kernel stops what lockspaces there are."""
        if self.events is not None:
            self.events.close()
            self.events = None
        if self._monitor >= 0:
            os.close(self._monitor)
            self._monitor = -1

    def _open_monitor(self) -> int:
        for name in _MONITORS:
            with contextlib.suppress(FileNotFoundError):
                return os.open(self._at(name), os.O_RDONLY | os.O_CLOEXEC)
        raise FileNotFoundError("there is no /dev/dlm-monitor")

    def _set_up(self) -> None:
        """Forget what an earlier node has left, and name the cluster: file systems carry its name."""
        cluster = self._at(_CONFIG, "dlm/cluster")
        if cluster.is_dir():
            for kind in ("spaces", "comms"):
                for each in list((cluster / kind).iterdir()):
                    self._remove_space(each) if kind == "spaces" else each.rmdir()
        cluster.mkdir(exist_ok=True)
        (cluster / "cluster_name").write_text(self._cluster)
        (cluster / "recover_callbacks").write_text("1")

    # ---- what the kernel waits for

    def read_asked(self) -> list[Asked]:
        """All that it has asked for since; `events` becomes readable with that."""
        assert self.events is not None
        found: list[Asked] = []
        while True:
            try:
                data = self.events.recv(1 << 16)
            except BlockingIOError:
                return found
            except OSError:  # some were lost: what waits to be let in shows all the same, by its folder
                found += [Asked(name, enters=True) for name in held(str(self._at(_SPACES)))]
                continue
            action, _, path = data.partition(b"\0")[0].decode(errors="replace").partition("@")
            if path.startswith(_PREFIX) and action in ("online", "offline"):
                found.append(Asked(path.removeprefix(_PREFIX), action == "online"))

    def carry_out(self, command: Command) -> None:
        """Do what a command says. Raises `OSError` where the kernel refuses it."""
        match command:
            case Reach(seats):
                self._reach(dict(seats))
            case Stop(name):
                self._tell(name, "control", "0")
            case Start():
                self._start(command)
            case End(name):
                self._tell(name, "control", "0")
                self._remove_space(self._space(name))
                self._tell(name, "event_done", "0")
            case Refuse(name):
                self._tell(name, "event_done", _REFUSED)
            case _:
                assert_never(command)

    def _start(self, start: Start) -> None:
        nodes = self._space(start.name) / "nodes"
        nodes.parent.mkdir(exist_ok=True)
        wanted = {id_of(node) for node in start.nodes}
        there = {int(each.name) for each in nodes.iterdir()}
        for gone in there - wanted:
            (nodes / str(gone)).rmdir()
        for new in sorted(wanted - there):
            (nodes / str(new)).mkdir()
            (nodes / str(new) / "nodeid").write_text(str(new))
        if start.enters:
            self._tell(start.name, "id", str(start.identity))
        self._tell(start.name, "control", "1")
        if start.enters:
            self._tell(start.name, "event_done", "0")

    def _reach(self, seats: dict[int, str]) -> None:
        """The nodes that the kernel may connect to: one that has booted since is another one."""
        hosts = self._hosts()
        comms = self._at(_CONFIG, "dlm/cluster/comms")
        for node in [node for node, incarnation in self._reached.items() if seats.get(node) != incarnation]:
            (comms / str(id_of(node))).rmdir()
            del self._reached[node]
        for node in sorted(seats.keys() - self._reached.keys()):
            folder = comms / str(id_of(node))
            folder.mkdir()
            (folder / "nodeid").write_text(str(id_of(node)))
            (folder / "addr").write_bytes(address_of(hosts[node]))
            if node == self._node:
                (folder / "local").write_text("1")
            self._reached[node] = seats[node]

    def _tell(self, name: str, file: str, value: str) -> None:
        """Write a file of a lockspace; one that has gone meanwhile needs nothing more."""
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(self._at(_SPACES, name, file), os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, value.encode())
            finally:
                os.close(descriptor)

    def _space(self, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise OSError(f"no name of a lockspace that can be driven: {name!r}")
        return self._at(_CONFIG, "dlm/cluster/spaces", name)

    @staticmethod
    def _remove_space(space: Path) -> None:
        if space.is_dir():
            for each in list((space / "nodes").iterdir()):
                each.rmdir()
            space.rmdir()

    def _at(self, *parts: str) -> Path:
        return self._root.joinpath(*parts)


def address_of(host: str) -> bytes:
    """A HOST as the kernel's `addr` has it: a whole sockaddr_storage. Raises `OSError`."""
    family, _, _, _, address = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)[0]
    if family == socket.AF_INET6:
        packed = struct.pack("=H2xI", family, 0) + socket.inet_pton(family, str(address[0])) + struct.pack("=I", 0)
    else:
        packed = struct.pack("=H2x", family) + socket.inet_pton(family, str(address[0]))
    return packed.ljust(_ADDRESS_BYTES, b"\0")


def _listen() -> socket.socket:
    """Uevents of the kernel, from now on."""
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, _UEVENTS)
    with contextlib.suppress(OSError):
        events.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
    events.bind((0, _FROM_KERNEL))
    return events
