"""One virtual machine: QEMU with its disks, cards and watchdog; what can be done in it, and to it.

    guest.run(["muster", "status"]).stdout      a command in it, by the agent at its serial port
    guest.power_cut()                           its power is gone; `boot()` gives it back
    guest.pause(), guest.resume()               all of it stands still, its clock and its watchdog, too
    guest.cut(), guest.join()                   its cable to the other machines
    guest.stall_store(), guest.heal_store()     its disk that all share does not answer
    guest.wait_event("WATCHDOG", since)         what QEMU tells of it

Its own disk is a layer over the image of the root, written with the host's cache: what the guest has flushed survives
a power cut. The shared disk is written through, without a cache, by way of a file that can fail (`faulty_store.py`).
"""

import contextlib
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lab.machines import NodeStore
from lab.vms import wires
from lab.vms.guest_agent import GuestAgent, GuestSilent
from lab.vms.images import Images
from lab.vms.monitor import Event, Monitor, MonitorFailed

BOOT_S = 240.0  # under emulation, three at once, on a machine that others use as well
COMMAND_S = 120.0
MEMORY_MIB = 512
STORE_DISK = "/dev/disk/by-id/virtio-store"
WATCHDOG_ACTIONS = ("reset", "poweroff", "pause", "none")
# Where a file takes direct I/O of any size, as the shared disk's does, QEMU reads 4096 bytes, changes what the guest
# writes of them, and writes 4096: three of them undo what the others have written beside it. So no guest writes less.
BLOCK_BYTES = 4096
BLOCKS = f"logical_block_size={BLOCK_BYTES},physical_block_size={BLOCK_BYTES}"
_END_S = 20.0
_SYNC_S = 2.0


class Failed(OSError):
    """A command in a guest has failed; the message holds what it wrote."""


class Disk(NamedTuple):
    """A disk that guests share: `file` holds it, `serial` names it in /dev/disk/by-id/virtio-SERIAL."""

    serial: str
    file: Path


class Guest:
    """A machine of the laboratory, off until `boot`."""

    def __init__(self, name: str, number: int, images: Images, folder: Path, sockets: Path, accelerator: str) -> None:
        self.name, self.number, self.folder = name, number, folder
        self.address, self.board_address = wires.host(number), wires.host(number, 1)
        self.console = folder / "console"
        self.boot_id = ""
        self.store: NodeStore | None = None
        self.extra: list[str] = []  # further words for QEMU, as devices
        self._images, self._accelerator = images, accelerator
        self._sockets = sockets
        self._agent = GuestAgent(sockets / f"{name}.agent")
        self._monitor: Monitor | None = None
        self._qemu: subprocess.Popen[bytes] | None = None
        self._disks: list[Disk] = []
        self._switching = threading.RLock()  # the board's switch, and the lab's hand
        self._watchdog_action = "reset"

    # ---- power -------------------------------------------------------------------------------------------------------

    @property
    def is_on(self) -> bool:
        """Whether it has power: it may be paused, stuck or still booting."""
        return self._qemu is not None and self._qemu.poll() is None

    def boot(self) -> None:
        """Give it power, if it has none; `wait_ready` waits for its system. Raises `OSError`."""
        with self._switching:
            if self.is_on:
                return
            self._end_conversations()
            if self.store is not None:
                self.store.set("pass")
            own = self.folder / "own.qcow2"
            if not own.exists():
                backing = ("-b", str(self._images.root), "-F", "raw")
                subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(own)], check=True)
            with (self.folder / "qemu.log").open("ab") as log:
                self._qemu = subprocess.Popen(self._command(own), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            try:
                self._monitor = Monitor(self._sockets / f"{self.name}.monitor")
            except MonitorFailed as error:
                said = (self.folder / "qemu.log").read_text(errors="replace")
                raise Failed(f"{self.name}: QEMU does not start: {error}\n{said[-1500:]}") from error
            self.watchdog_action(self._watchdog_action)

    def power_cut(self) -> None:
        """Take its power away, by the monitor; it may be paused or stuck. It is off when this returns."""
        with self._switching:
            if self._qemu is None:
                return
            if self.store is not None:
                for mode in ("drop", "errors 100", "drop"):
                    self.store.set(mode)  # what is under way to a disk that hangs is lost; else QEMU could not end
            if self._monitor is not None and self.is_on:
                try:
                    self._monitor.ask("quit")
                    self._qemu.wait(_END_S)
                except (MonitorFailed, subprocess.TimeoutExpired):
                    self._qemu.kill()
            self._qemu.wait()
            self._end_conversations()
            self._qemu = None

    def reset(self) -> None:
        """Press its reset button. Raises `OSError` if it is off."""
        self._agent.forget()
        self._ask("system_reset")

    def pause(self) -> None:
        """Stop all of it, its clock and its watchdog too, as a hypervisor does when it moves a machine."""
        self._ask("stop")

    def resume(self) -> None:
        """Let it go on."""
        self._ask("cont")

    def resume_if_on(self) -> None:
        """Let it go on, unless its power was cut meanwhile."""
        with contextlib.suppress(MonitorFailed):
            self.resume()

    # ---- what it is connected to -------------------------------------------------------------------------------------

    def cut(self, card: int = 0) -> None:
        """Pull a cable: 0 the interconnect, 1 management."""
        self._ask("set_link", name=f"card{card}", up=False)

    def join(self, card: int = 0) -> None:
        """Put the cable in again."""
        self._ask("set_link", name=f"card{card}", up=True)

    def join_if_on(self, card: int = 0) -> None:
        """Put the cable in, unless its power was cut meanwhile: a machine that boots has its cables in."""
        with contextlib.suppress(MonitorFailed):
            self.join(card)

    def stall_store(self) -> None:
        """From now on its shared disk answers nothing; what is asked waits."""
        assert self.store is not None
        self.store.set("hang")

    def set_store(self, mode: str) -> None:
        """A mode of `faulty_store.py`, as `slow 50`, `errors 10`, `read-only`."""
        assert self.store is not None
        self.store.set(mode)

    def heal_store(self) -> None:
        """Its shared disk answers again, and carries out what has waited."""
        assert self.store is not None
        self.store.set("pass")

    def attach(self, disks: Sequence[Disk]) -> None:
        """Give it disks that others have, too; before it boots."""
        self._disks = list(disks)

    def watchdog_action(self, action: str) -> None:
        """What its watchdog does when it expires, one of `WATCHDOG_ACTIONS`; kept over boots."""
        self._watchdog_action = action
        self._ask("watchdog-set-action", action=action)

    def wait_event(self, name: str, since_s: float, within_s: float) -> Event | None:
        """An event of QEMU since that moment of `time.monotonic()`: WATCHDOG, RESET, STOP; None if none comes."""
        return self._monitor.wait_event(name, since_s, within_s) if self._monitor is not None else None

    # ---- in it -------------------------------------------------------------------------------------------------------

    def wait_ready(self, within_s: float = BOOT_S) -> float:
        """Wait until commands can be run in it, in a boot that is another than before; how long that took, in s.

        Raises `GuestSilent` with the end of its console.
        """
        began_s = time.monotonic()
        while time.monotonic() - began_s < within_s:
            if not self.is_on:
                raise GuestSilent(f"{self.name} is off\n{self._console_end()}")
            try:
                left_s = within_s - (time.monotonic() - began_s)
                self._agent.ask("guest-ping", min(10.0, max(1.0, left_s)))
                found = self.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout.strip()
            except (GuestSilent, RuntimeError):
                time.sleep(0.2)
                continue
            if found and found != self.boot_id:
                self.boot_id = found
                return time.monotonic() - began_s
            time.sleep(0.2)
        raise GuestSilent(f"{self.name} is not ready within {within_s:.0f} s\n{self._console_end()}")

    def wait_boot(self, within_s: float = BOOT_S) -> bool:
        """Wait until commands can be run in it; whether that is in another boot than before. Raises `GuestSilent`."""
        known = self.boot_id
        self.boot_id = ""
        self.wait_ready(within_s)
        return self.boot_id != known

    def run(
        self, words: Sequence[str], *, data: bytes = b"", check: bool = True, within_s: float = COMMAND_S
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command in it. Raises `Failed` if `check` and it fails, `GuestSilent` if no end comes in time."""
        done = self._agent.run(_found(words), data, within_s)
        if check and done.returncode:
            said = (done.stdout + done.stderr).strip()
            raise Failed(f"{self.name}: {' '.join(words)[:300]}: status {done.returncode}: {said[-2000:]}")
        return done

    def shell(self, script: str, *, check: bool = True, within_s: float = COMMAND_S) -> str:
        """Run a script of its shell; what it prints."""
        return self.run(["sh", "-c", script], check=check, within_s=within_s).stdout

    def put(self, path: str, content: bytes, mode: int = 0o600) -> None:
        """Write a file in it, and its folder."""
        self.run(["mkdir", "-p", str(Path(path).parent)])
        self._agent.write(path, content, COMMAND_S)
        self.run(["chmod", f"{mode:o}", path])

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _ask(self, command: str, **arguments: object) -> None:
        if self._monitor is None or not self.is_on:
            raise MonitorFailed(f"{self.name} is off")
        self._monitor.ask(command, **arguments)

    def _end_conversations(self) -> None:
        self._agent.forget()
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        for kind in ("agent", "monitor"):
            (self._sockets / f"{self.name}.{kind}").unlink(missing_ok=True)

    def _console_end(self) -> str:
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return f"its console: {text[-1500:]}"

    def _command(self, own: Path) -> list[str]:
        # emulated processors have the host's time stamps, which jump; the emulated timer counts the host's clock
        append = "console=ttyS0 quiet loglevel=4 mitigations=off net.ifnames=0 panic=10 no_timer_check"
        append += " tsc=unstable clocksource=hpet"
        append += f" systemd.hostname={self.name} lab.number={self.number} systemd.show_status=0"
        words = ["qemu-system-x86_64", "-name", self.name, "-machine", "q35", "-m", str(MEMORY_MIB), "-smp", "1"]
        words += ["-accel", *_ACCELERATORS[self._accelerator], "-nodefaults", "-no-user-config", "-display", "none"]
        words += ["-kernel", str(self._images.kernel), "-initrd", str(self._images.first_root), "-append", append]
        words += ["-chardev", f"file,id=console,path={self.console},append=on", "-serial", "chardev:console"]
        words += ["-qmp", f"unix:{self._sockets / self.name}.monitor,server=on,wait=off"]
        words += ["-device", "virtio-rng-pci", "-device", "i6300esb,id=watchdog"]
        words += ["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]
        words += ["-chardev", f"socket,id=agent,path={self._sockets / self.name}.agent,server=on,wait=off"]
        words += ["-drive", f"if=none,id=own,format=qcow2,file={own}", "-device", "virtio-blk-pci,drive=own"]
        for disk in self._disks:
            drive = f"if=none,id={disk.serial},format=raw,file={disk.file},cache=none,aio=threads,file.locking=off"
            device = f"virtio-blk-pci,drive={disk.serial},serial={disk.serial},share-rw=on,{BLOCKS}"
            words += ["-drive", drive, "-device", device]
        for card in range(len(wires.CARDS)):
            mac = f"52:54:00:77:0{card}:{self.number:02x}"
            words += ["-netdev", f"tap,id=net{card},ifname={wires.tap(self.number, card)},script=no,downscript=no"]
            words += ["-device", f"virtio-net-pci,id=card{card},netdev=net{card},mac={mac},romfile="]
        return words + self.extra


_ACCELERATORS = {"tcg": ["tcg,thread=multi", "-cpu", "max"], "kvm": ["kvm", "-cpu", "host,arch-capabilities=off"]}


def _found(words: Sequence[str]) -> list[str]:
    """The command by way of env: the agent's own search path is short."""
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return ["/usr/bin/env", path, "LC_ALL=C.UTF-8", "HOME=/root", *words]
