"""One machine: a Debian system under systemd-nspawn, systemd as its first process, control groups of version 2.

Theory of operation. Its root is a layer over the base root, kept on disk through all its boots. Its network namespace
is made by the lab, so that its cables can be pulled from outside. Its disk is a loop device over a file that can fail.
All that runs in it, and systemd-nspawn itself, is in one control group: a power cut is `cgroup.kill` on it, and the
machine is off when the kernel says that the group is empty. So nothing inside has a say in it, as with a machine's
power.
"""

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from lab.machines import NodeStore
from lab.network import Network, namespace
from machines.loop_device import LoopDevice

GROUPS = Path("/sys/fs/cgroup")
DISK = "/dev/disk/by-id/wwn-0x5000c500a1b2c3d4"  # by which name each machine sees the store
SHARED = "/lab"  # the lab's folder, in each machine
EMPTY_S = 60.0
PAUSE_S = 0.02
_INSIDE = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root"}
_BOOTS_AGAIN = 133
_FAILS = "errors 100"  # a machine without power reaches no disk


class MachineFailed(Exception):
    """A machine does not do what it must for the lab to go on; the message says what."""


class Machine:
    """One machine, with what its faults need. All of it is made in the sandbox, and ends with it."""

    def __init__(self, name: str, base: Path, folder: Path, shared: Path, networks: tuple[Network, ...]) -> None:
        """Raises `OSError`. `folder` is for its layer and its console."""
        self.name, self.networks, self._shared = name, networks, shared
        self.root, self.console = Path("/run/machines") / name, folder / f"{name}.console"
        self._layer, self._lower = folder / name, base
        self._group = GROUPS / f"{folder.name}-{name}"
        self._started: subprocess.Popen[bytes] | None = None
        self._power = threading.RLock()  # two members may ask the board at once
        self.store: NodeStore | None = None
        self._disk: LoopDevice | None = None
        self._store_mode = "pass"
        self.cut_cables: set[int] = set()  # numbers of networks
        self.cuts = 0

    # ---- making --------------------------------------------------------------------------------------------------

    def make(self, backing: Path) -> None:
        """Layer, disk and control group. Raises `OSError`."""
        for part in ("upper", "work"):
            (self._layer / part).mkdir(parents=True)
        self.root.mkdir(parents=True)
        layers = f"lowerdir={self._lower},upperdir={self._layer}/upper,workdir={self._layer}/work,volatile"
        _run("mount", "-t", "overlay", "overlay", "-o", layers, str(self.root))
        way = Path("/run/ways")
        way.mkdir(exist_ok=True)
        self.store = NodeStore(way / self.name, backing)
        self._disk = LoopDevice(self.store.path)
        self._group.mkdir()
        hosts = "".join(f"{self.networks[0].host(name)} {name}\n" for name in self.networks[0].names)
        (self.root / "etc/hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        (self.root / "etc/hostname").write_text(f"{self.name}\n")

    def close(self) -> None:
        """End everything of it, whatever has become of it."""
        with contextlib.suppress(MachineFailed, OSError):
            self.off()
        if self.store is not None:
            self.store.close()
        if self._disk is not None:
            self._disk.close()
        for group in sorted(self._group.rglob("*"), key=lambda path: len(path.parts), reverse=True):
            if group.is_dir():
                with contextlib.suppress(OSError):
                    group.rmdir()
        with contextlib.suppress(OSError):
            self._group.rmdir()

    # ---- power ---------------------------------------------------------------------------------------------------

    def on(self) -> None:
        """Give it power: it boots. Nothing happens where it has some. Raises `OSError`."""
        assert self.store is not None and self._disk is not None
        with self._power:
            if self.is_on():
                return
            self.store.set(self._store_mode)
            self._set_cables()
            words = [
                "systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--settings=no",
                "--link-journal=no", "--resolv-conf=off", "--timezone=off", "--capability=all", "--console=read-only",
                f"--machine={self.name}", f"--directory={self.root}", f"--bind={self._shared}:{SHARED}",
                f"--bind={self._disk.path}:{DISK}", f"--network-namespace-path=/run/netns/{namespace(self.name)}",
            ]  # fmt: skip
            # systemd-nspawn ends with this status where the machine boots again: its power stays on
            again = f'while :; do "$@"; [ $? = {_BOOTS_AGAIN} ] || exit; done'
            into = f"echo $$ >{self._group}/cgroup.procs && {again}"
            environment = os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_SECCOMP": "0"}
            with self.console.open("ab") as console:
                self._started = subprocess.Popen(
                    ["sh", "-c", into, "sh", *words], stdin=subprocess.DEVNULL, stdout=console, stderr=console,
                    env=environment, start_new_session=True,
                )  # fmt: skip
            self._wait(self.is_on, "does not start")

    def off(self, *, waiting: str = "drop") -> None:
        """Cut its power; returns when nothing of it runs. What waits for the disk is lost (drop), or lands (pass).

        Raises `MachineFailed`, `OSError`.
        """
        assert self.store is not None
        with self._power:
            for network in self.networks:
                network.cut(self.name)
            if waiting == "pass" and self._store_mode == "pass":
                self.store.set("pass")
            if self.is_on():
                self.cuts += 1
                (self._group / "cgroup.kill").write_text("1")
            deadline_s = time.monotonic() + EMPTY_S
            while self.is_on():
                self.store.set("drop")  # who waits for the disk does not end before it is answered
                self.store.set(_FAILS)
                if time.monotonic() > deadline_s:
                    raise MachineFailed(f"{self.name} is still not off after {EMPTY_S:g} s: {self._processes()}")
                time.sleep(PAUSE_S)
            self.store.set(_FAILS)
            self.thaw()
            if self._started is not None:
                self._started.wait()

    def freeze(self) -> None:
        """All of it stands still."""
        (self._group / "cgroup.freeze").write_text("1")

    def thaw(self) -> None:
        """It goes on."""
        (self._group / "cgroup.freeze").write_text("0")

    def is_on(self) -> bool:
        """Whether anything of it runs, by the kernel's word."""
        return "populated 1" in (self._group / "cgroup.events").read_text()

    # ---- disk and cables -----------------------------------------------------------------------------------------

    def set_store(self, mode: str) -> None:
        """Put its way to the store into a mode of `faulty_store.py`, now and at later boots."""
        assert self.store is not None
        with self._power:
            self._store_mode = mode
            if self.is_on():
                self.store.set(mode)

    def forget_disk(self) -> None:
        """Another disk is in the place of the one before."""
        if self._disk is not None:
            self._disk.forget()

    def set_cable(self, number: int, *, cut: bool) -> None:
        """Pull the cable of a network, or put it in again."""
        with self._power:
            (self.cut_cables.add if cut else self.cut_cables.discard)(number)
            if self.is_on():
                self._set_cables()

    def _set_cables(self) -> None:
        for network in self.networks:
            (network.cut if network.number in self.cut_cables else network.join)(self.name)

    # ---- inside --------------------------------------------------------------------------------------------------

    def first_process(self) -> int:
        """The process that is the machine's own PID 1; 0 where there is none."""
        for listed in self._group.rglob("cgroup.procs"):
            with contextlib.suppress(OSError):
                for pid in listed.read_text().split():
                    if _is_first(pid):
                        return int(pid)
        return 0

    def run(self, script: str, *, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run a shell script in the machine, as root's session there would. Raises `MachineFailed`."""
        first = self.first_process()
        if not first:
            raise MachineFailed(f"{self.name} is off: {script}")
        words = ["nsenter", f"--target={first}", "--mount", "--uts", "--ipc", "--net", "--pid", "--", "sh", "-c"]
        try:
            return subprocess.run(
                [*words, f"cd /root && {script}"], capture_output=True, text=True, env=_INSIDE, timeout=timeout_s,
                stdin=subprocess.DEVNULL, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise MachineFailed(f"{self.name}: not done within {timeout_s:g} s: {script}") from error

    def succeed(self, script: str, *, timeout_s: float = 120.0) -> str:
        """What a script prints. Raises `MachineFailed` where it fails."""
        done = self.run(script, timeout_s=timeout_s)
        if done.returncode:
            raise MachineFailed(f"{self.name}: status {done.returncode} of {script}\n{done.stdout}{done.stderr}")
        return done.stdout

    def wait_until_up(self, timeout_s: float = 120.0) -> None:
        """Return when systemd has started what a boot starts. Raises `MachineFailed`."""
        self._wait(lambda: self.first_process() != 0 and self._has_booted(), "has not booted", timeout_s)

    def _has_booted(self) -> bool:
        with contextlib.suppress(MachineFailed):
            return self.run("systemctl is-active --quiet basic.target").returncode == 0
        return False

    def _wait(self, condition: Callable[[], bool], what: str, timeout_s: float = EMPTY_S) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if self._started is not None and self._started.poll() is not None:
                raise MachineFailed(f"{self.name} has ended: {self.console_tail()}")
            if time.monotonic() > deadline_s:
                raise MachineFailed(f"{self.name} {what} within {timeout_s:g} s: {self.console_tail()}")
            time.sleep(PAUSE_S)

    def console_tail(self, lines: int = 15) -> str:
        """The end of what it has written on its console."""
        try:
            return "\n".join(self.console.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return "it has written nothing"

    def _processes(self) -> str:
        found = []
        for listed in self._group.rglob("cgroup.procs"):
            for pid in listed.read_text().split():
                with contextlib.suppress(OSError):
                    found.append(f"{pid} {Path('/proc', pid, 'comm').read_text().strip()}")
        return ", ".join(found) or "none"


def _is_first(pid: str) -> bool:
    """Whether a process is the first of a namespace just below the sandbox's."""
    for line in Path("/proc", pid, "status").read_text().splitlines():
        if line.startswith("NSpid:"):
            numbers = line.split()[1:]
            return len(numbers) == 2 and numbers[-1] == "1"
    return False


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")


def enter_groups() -> None:
    """In the sandbox: control groups of version 2 alone, as machines of today have them. Raises `OSError`."""
    with contextlib.suppress(OSError):
        _run("umount", "--recursive", "--lazy", str(GROUPS))
    _run("mount", "-t", "cgroup2", "none", str(GROUPS))


def remove_stale_groups(prefix: str, keep: str) -> None:
    """Control groups of runs that were killed: they are empty, since all that ran in them has gone."""
    for stale in GROUPS.glob(f"{prefix}*"):
        if stale.name.startswith(keep) or "populated 1" in (stale / "cgroup.events").read_text():
            continue
        inner = sorted((path for path in stale.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts))
        for group in (*inner, stale):
            with contextlib.suppress(OSError):
                group.rmdir()
