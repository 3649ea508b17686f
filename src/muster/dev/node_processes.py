"""What a node of a development cluster runs, found on this machine, and signals to all of it (SPEC 8.3).

Theory of operation. Every process of a node descends from its guard, and inherits an environment in which
`MUSTER_DEVELOPMENT_HOME` names the node's directory. A process belongs to the node if it carries that variable, if the
node's `guard.json` names it and its command line names the directory, or if it descends from one that belongs. So a
service that cleared its environment is found by its descent, and one that lost its parent by its environment.
A process is known by its pid and start time together, and signalled through a pidfd: a pid that was given to another
process meanwhile is never touched.
"""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from muster.drivers.image.processes import BYSTANDERS as NAMES_OF_BYSTANDERS

COOKIE = "MUSTER_DEVELOPMENT_HOME"
GUARD_FILE = "guard.json"
BYSTANDERS = tuple(name.encode() for name in NAMES_OF_BYSTANDERS)
_PASSES = 50  # a pass that finds no new process ends the search; processes that fork can delay it only so long
_PAUSE_S = 0.005
_EXEC_LOOKS = 20
_EXEC_PAUSE_S = 0.002
_KERNEL_THREAD = 0x00200000  # PF_KTHREAD


class NodeProcess(NamedTuple):
    """One live process, as /proc shows it."""

    pid: int
    parent: int
    state: str  # one letter, see proc(5); T is stopped
    started: int  # clock ticks since boot
    flags: int = 0  # of the kernel

    @property
    def stopped(self) -> bool:
        """Whether SIGSTOP holds it."""
        return self.state in "Tt"

    @property
    def is_kernel_thread(self) -> bool:
        """Whether it is the kernel's own, which has no environment."""
        return bool(self.flags & _KERNEL_THREAD)


def processes_of(home: Path, *, with_bystanders: bool = False) -> list[NodeProcess]:
    """Everything that the node with directory `home` runs, its guard first, then in the order of descent.

    Its caretaker, with what that runs, and its log writer are no part of it: they are there for when all the others
    have ended, and the next start of the node ends a log writer that hangs.
    """
    processes = _all_processes()
    if not with_bystanders:
        bystanders = {pid for pid in processes if _read(pid, "comm").strip() in BYSTANDERS}
        grown = -1
        while grown != len(bystanders):
            grown = len(bystanders)
            bystanders |= {pid for pid, process in processes.items() if process.parent in bystanders}
        processes = {pid: process for pid, process in processes.items() if pid not in bystanders}
    mark = os.fsencode(f"{COOKIE}={home}")
    guard = _recorded(home).get("pid", 0)
    own = {pid for pid, process in processes.items() if mark in _environment(process).split(b"\0")}
    if guard in processes and os.fsencode(home) in _read(guard, "cmdline").split(b"\0"):
        own.add(guard)
    children: dict[int, list[int]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process.pid)
    ordered: dict[int, None] = {}
    waiting = sorted(own, key=lambda pid: (pid != guard, processes[pid].started, pid))
    while waiting:
        pid = waiting.pop(0)
        if pid not in ordered and pid != os.getpid():
            ordered[pid] = None
            waiting.extend(children.get(pid, ()))
    return [processes[pid] for pid in ordered]


def is_running(home: Path) -> bool:
    """Whether the node with directory `home` runs anything at all."""
    return bool(processes_of(home))


def kill_all(home: Path, timeout_s: float, *, with_bystanders: bool = False) -> list[NodeProcess]:
    """SIGKILL to everything the node runs, its guard first; returns what is still alive after `timeout_s`.

    The guard's death takes the node's PID namespace with it; where there is none, every process that was seen is
    killed by itself.
    """
    deadline = time.monotonic() + timeout_s
    seen: dict[tuple[int, int], NodeProcess] = {}
    while True:
        found = processes_of(home, with_bystanders=with_bystanders)
        seen |= {(process.pid, process.started): process for process in found}
        alive = [process for process in seen.values() if _is_alive(process)]
        if not alive or time.monotonic() > deadline:
            return alive
        for process in alive:
            send(process, signal.SIGKILL)
        time.sleep(_PAUSE_S)


def stop_all(home: Path) -> list[NodeProcess]:
    """SIGSTOP to everything the node runs, its guard first; returns what was found stopped."""
    return _signal_until(home, signal.SIGSTOP, lambda process: process.stopped)


def continue_all(home: Path) -> list[NodeProcess]:
    """SIGCONT to everything the node runs, its guard first; returns what was found running."""
    return _signal_until(home, signal.SIGCONT, lambda process: not process.stopped)


def _signal_until(home: Path, number: signal.Signals, done: Callable[[NodeProcess], bool]) -> list[NodeProcess]:
    found: list[NodeProcess] = []
    for _ in range(_PASSES):
        found = processes_of(home)
        open_ones = [process for process in found if not done(process)]
        if not open_ones:
            break
        for process in open_ones:
            send(process, number)
        time.sleep(_PAUSE_S)
    return found


def send(process: NodeProcess, number: signal.Signals) -> bool:
    """Signal exactly this process; False if it has ended. Raises `PermissionError` for another user's."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not _is_alive(process):
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, number)
            return True
        return False
    finally:
        os.close(handle)


def _is_alive(process: NodeProcess) -> bool:
    now = _process(process.pid)
    return now is not None and now.started == process.started


def recorded_incarnation(home: Path) -> int | None:
    """The incarnation that the node's live guard has recorded; None while it has not, or does not run."""
    recorded = _recorded(home)
    found = processes_of(home)
    return recorded.get("incarnation") if found and found[0].pid == recorded.get("pid") else None


def recorded_tie(home: Path) -> tuple[str, str]:
    """What the node's guard has recorded of how the kernel ends it: its deadman, and its control group if it has one.

    Empty where it has recorded nothing.
    """
    texts = {key: value for key, value in _document(home).items() if isinstance(value, str)}
    return texts.get("deadman", ""), texts.get("control_group", "")


def _recorded(home: Path) -> dict[str, int]:
    """The numbers in the guard's file; none where there is no such file, or a power cut has torn it."""
    return {key: value for key, value in _document(home).items() if isinstance(value, int)}


def _document(home: Path) -> dict[str, object]:
    try:
        recorded = json.loads((home / GUARD_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return recorded if isinstance(recorded, dict) else {}


def _all_processes() -> dict[int, NodeProcess]:
    found = (_process(int(entry)) for entry in os.listdir("/proc") if entry.isdigit())  # names only
    return {process.pid: process for process in found if process is not None}


def _process(pid: int) -> NodeProcess | None:
    """The process, or None when it has ended (a zombie runs nothing)."""
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    if len(fields) < 20:
        return None
    state = fields[0].decode()
    return None if state in "ZX" else NodeProcess(pid, int(fields[1]), state, int(fields[19]), int(fields[6]))


def _environment(process: NodeProcess) -> bytes:
    """The environment of a process.

    A process in the midst of exec shows neither environment nor command line for a moment: without a second look, a
    node whose guard is just being executed would pass for one that runs nothing. One that twice shows a command line
    and no environment has none.
    """
    bare = 0
    for _ in range(_EXEC_LOOKS):
        found = _read(process.pid, "environ")
        if found or process.is_kernel_thread or not _is_alive(process):
            return found
        bare += bool(_read(process.pid, "cmdline"))
        if bare == 2:
            return b""
        time.sleep(_EXEC_PAUSE_S)
    return b""


def _read(pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:  # many small reads
            return file.read()
    except OSError:  # ended, or another user's
        return b""
