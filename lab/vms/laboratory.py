"""Three machines, their networks, their shared disks and their board; and a cluster on them, set up as people do it.

    with laboratory(settings, tell) as lab:
        lab.boot_all()
        lab.form_cluster()
        lab.guests["n0"].power_cut()
        lab.wait_members("n1", "n2")

All of it lives in the sandbox (`lab/sandbox.py`): whatever ends the lab ends the machines, and takes their networks.
"""

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lab.machines import NodeStore
from lab.sandbox import LabRefused, enter, scratch
from lab.vms import board, wires, witness
from lab.vms.guest import BLOCK_BYTES, STORE_DISK, Disk, Failed, Guest
from lab.vms.guest_agent import GuestSilent
from lab.vms.images import Tell, make_base, make_root

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "vms"
SOCKETS = Path("/run")  # a file system in memory, the sandbox's own: short paths
STORE_BYTES = 256 << 20
SLOTS = 16
HOME = "/var/lib/muster"
SERVICE = "web"
MEMBERS_S = 240.0
_LOOK_S = 0.5
_NEEDED_MIB = 4000
TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils", "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs", "ip": "iproute2", "unshare": "util-linux", "dpkg-deb": "dpkg",
}  # fmt: skip

Document = dict[str, Any]


class Settings(NamedTuple):
    """How a laboratory is made."""

    machines: int = 3
    profile: str = "virtualised"
    timers: tuple[str, ...] = ()  # otherwise than the profile has them, as `muster init --set` takes them
    accelerator: str = "tcg"
    package: Path | None = None  # the newest of build/dist without
    disks: tuple[tuple[str, int], ...] = ()  # further shared disks: their serial, and bytes


def missing() -> str:
    """What keeps the laboratory from running on this machine, or nothing."""
    absent = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    if absent:
        return f"the laboratory of virtual machines needs more packages: apt-get install {' '.join(absent)}"
    if os.geteuid() != 0:
        return "the laboratory makes namespaces, taps and mounts: run it as root"
    for device, module in (("/dev/net/tun", "tun"), ("/dev/fuse", "fuse")):
        if not os.path.exists(device):
            return f"the laboratory needs {device}: load the kernel module {module}"
    BUILD.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(BUILD).free >> 20 < _NEEDED_MIB:
        return f"the laboratory needs {_NEEDED_MIB} MiB below {BUILD}: free some, or `make clean`"
    return ""


def find_package(folder: Path) -> Path:
    """The newest Debian package there. Raises `LabRefused`."""
    found = sorted(folder.glob("muster-cluster_*.deb"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise LabRefused(f"there is no Debian package in {folder}: make dist")
    return found[-1]


class Laboratory:
    """Machines n0, n1, ...; made by `laboratory`."""

    def __init__(self, settings: Settings, guests: dict[str, Guest], told: board.Board, tell: Tell) -> None:
        self.settings, self.guests, self.board, self.tell = settings, guests, told, tell
        self.witness = witness.Witness()

    def boot_all(self) -> None:
        """Give all machines their power, and wait for their systems. Raises `OSError`."""
        began_s = time.monotonic()
        for guest in self.guests.values():
            guest.boot()
        for guest in self.guests.values():
            guest.wait_ready()
            found = guest.shell(
                f"cat /sys/class/block/$(basename $(readlink -f {STORE_DISK}))/queue/logical_block_size"
            )
            if int(found) < BLOCK_BYTES:
                raise Failed(f"{guest.name}: its disk takes blocks of {found.strip()} bytes: others' writes are undone")
        self.tell(f"{len(self.guests)} machines are up, after {time.monotonic() - began_s:.0f} s")

    def form_cluster(self, *, fencing: bool = True) -> None:
        """Store, keys, installed nodes, with `fencing` a fence method for each; all join. Raises `OSError`."""
        self._initialise()
        self.tell("the store is made, each machine has its keys")
        for guest in self.guests.values():
            guest.run(["muster", "install", "--store", STORE_DISK, "--node", guest.name, "--yes"])
            guest.run(["systemctl", "enable", "--quiet", "musterd"])
            guest.run(["systemctl", "start", "--no-block", "musterd"])
        self.tell("muster install and systemctl start on all")
        self.wait_members(*self.guests)
        self.tell("all are members")
        if fencing:
            self._configure_fencing()

    def _initialise(self) -> None:
        """The store, made on the first machine; each machine gets its own keys only."""
        first = next(iter(self.guests.values()))
        nodes = ",".join(f"{guest.name}={guest.address}:{wires.PORT}" for guest in self.guests.values())
        first.run(
            ["muster", "init", STORE_DISK, "--name", "vms", "--nodes", nodes, "--profile", self.settings.profile,
             "--slots", str(SLOTS), "--keys", "/root/keys",
             *(word for timer in self.settings.timers for word in ("--set", timer))]
        )  # fmt: skip
        for guest in self.guests.values():
            guest.run(["mkdir", "-p", "-m", "711", HOME])
            for file in first.shell(f"cd /root/keys/{guest.name} && find . -type f").split():
                content = first.run(["cat", f"/root/keys/{guest.name}/{file}"]).stdout
                guest.put(f"{HOME}/{file}", content.encode())

    def _configure_fencing(self) -> None:
        any_one = next(iter(self.guests.values()))
        any_one.run(["muster", "fence", "add", "board", "--agent", "fence_lab", "--secret", "passwd"])
        for guest in self.guests.values():
            guest.run(["muster", "fence", "secret", "board", "passwd"], data=board.PASSWORD.encode() + b"\n")
        for guest in self.guests.values():
            any_one.run(["muster", "fence", "method", guest.name, "power", "--device", f"board:plug={guest.name}"])

    def start_service(self, name: str = SERVICE) -> None:
        """A service that tells the witness that it runs, and wait for its first word. Raises `OSError`."""
        text = f'[[service]]\nname = "{name}"\nrun = ["{witness.PROGRAM_PATH}"]\n'
        any_one = self.a_member()
        any_one.put("/root/service.toml", text.encode())
        any_one.run(["muster", "apply", "/root/service.toml", "--wait"])
        if self.witness.wait_served(name, within_s=MEMBERS_S) is None:
            raise Failed(f"{name} was applied, and says nothing")

    def a_member(self, *, but: str = "") -> Guest:
        """A machine that is on."""
        return next(guest for guest in self.guests.values() if guest.is_on and guest.name != but)

    def status(self, guest: Guest) -> Document:
        """`muster status --json` of a machine's node; empty where it does not answer."""
        with contextlib.suppress(GuestSilent, RuntimeError, ValueError):
            done = guest.run(["muster", "--timeout", "10", "status", "--json"], check=False, within_s=30)
            found = json.loads(done.stdout)
            return found if isinstance(found, dict) else {}
        return {}

    def members(self, guest: Guest) -> set[str]:
        """Who is a member, as a machine's node sees it."""
        nodes = self.status(guest).get("nodes", {})
        return {name for name, node in nodes.items() if node["state"] == "joined"}

    def wait_members(self, *names: str, within_s: float = MEMBERS_S) -> float:
        """Wait until these, and no others, are the members, in the eyes of each of them; seconds. Raises `Failed`."""
        return self.wait(
            f"members {', '.join(names)}",
            lambda: all(self.members(self.guests[name]) == set(names) for name in names),
            within_s,
        )

    def wait(self, what: str, is_so: Callable[[], bool], within_s: float) -> float:
        """Wait for something; how long that took, in s. Raises `Failed`."""
        began_s = time.monotonic()
        while not is_so():
            if time.monotonic() - began_s > within_s:
                raise Failed(f"not within {within_s:.0f} s: {what}")
            time.sleep(_LOOK_S)
        return time.monotonic() - began_s

    def account(self) -> str:
        """What every machine says of its node, for whoever looks for a mistake."""
        parts = []
        for guest in self.guests.values():
            said = "off"
            if guest.is_on:
                script = "muster --timeout 5 status; journalctl -u musterd -n 60 --no-pager -o cat | cut -c1-600"
                try:
                    said = guest.shell(script, check=False, within_s=40)
                except (GuestSilent, RuntimeError) as error:
                    said = str(error)
            parts.append(f"--- {guest.name}\n{said}")
        return "\n".join(parts)

    def close(self) -> None:
        """End the board and the witness, and take the power of all machines."""
        self.board.close()
        for guest in self.guests.values():
            guest.power_cut()
            if guest.store is not None:
                guest.store.close()
        self.witness.close()


@contextlib.contextmanager
def laboratory(settings: Settings, tell: Tell) -> Iterator[Laboratory]:
    """A laboratory whose machines are off. This process goes on inside the sandbox. Raises `LabRefused`, `OSError`."""
    if reason := missing():
        raise LabRefused(reason)
    package = settings.package or find_package(ROOT / "build" / "dist")
    base = make_base(BUILD, tell)
    enter(missing)
    with scratch(BUILD) as folder:
        files = {board.AGENT_PATH: board.AGENT, witness.PROGRAM_PATH: witness.PROGRAM}
        images = make_root(base, package, files, folder, tell)
        wires.make(settings.machines)
        guests: dict[str, Guest] = {}
        for number in range(1, settings.machines + 1):
            name = f"n{number - 1}"
            (folder / name).mkdir()
            guests[name] = Guest(name, number, images, folder / name, SOCKETS, settings.accelerator)
        _attach_disks(guests, settings, folder)
        made = Laboratory(settings, guests, board.Board(guests, tell), tell)
        try:
            yield made
        finally:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)  # it ends already
            made.close()


def _attach_disks(guests: dict[str, Guest], settings: Settings, folder: Path) -> None:
    """The store, in memory, by a way of its own for each machine; further disks as plain files."""
    backing = SOCKETS / "store"
    _make_file(backing, STORE_BYTES)
    further = [Disk(serial, folder / f"disk-{serial}") for serial, _ in settings.disks]
    for disk, (_, size) in zip(further, settings.disks, strict=True):
        _make_file(disk.file, size)
    for guest in guests.values():
        own = guest.folder / "store"
        guest.store = NodeStore(own, backing)
        guest.attach([Disk("store", own), *further])


def _make_file(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)
