"""Everything of the lab lives in namespaces of its own, so that nothing of it can outlive it.

Theory of operation. `enter` forks three times over: this process stays outside and only passes signals on; its child is
PID 1 of a new PID namespace, in new mount and network namespaces; and the lab itself is that one's child. The bridge,
the node's network namespaces, the mounts and all processes exist in there only. Whatever ends the lab, SIGKILL
included, ends PID 1, and the kernel then ends every process and takes apart every namespace, mount and link. What
remains is the scratch directory; the next lab finds those whose lock is free, by their prefix, and removes them.
"""

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

SCRATCH_PREFIX = "muster-lab-"
TOOLS = {"ip": "iproute2", "tc": "iproute2", "nft": "nftables"}
_CLONE_NEWNS, _CLONE_NEWPID, _CLONE_NEWNET = 0x00020000, 0x20000000, 0x40000000
_MS_REC, _MS_PRIVATE, _MS_NOSUID = 16384, 1 << 18, 2
_PR_SET_PDEATHSIG = 1
_BEING_MADE_S = 60.0  # a directory without its lock file is younger than that, or a remainder
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP)
_libc = ctypes.CDLL(None, use_errno=True)


class LabRefused(Exception):
    """The lab cannot run here; the message says why and what to do."""


def missing() -> str:
    """What keeps the lab from running on this machine, or nothing."""
    if os.geteuid() != 0:
        return "the lab makes namespaces and mounts: run it as root"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        packages = " ".join(sorted({TOOLS[tool] for tool in absent}))
        return f"the lab needs {', '.join(absent)}: apt-get install {packages}"
    if not os.path.exists("/dev/fuse"):
        return "the lab's store faults need /dev/fuse: load the kernel module fuse"
    return ""


def enter(what_is_missing: Callable[[], str] = missing) -> None:
    """Go on inside the sandbox; the process that called exits with the status of the lab. Raises `LabRefused`."""
    if reason := what_is_missing():
        raise LabRefused(reason)
    sys.stdout.flush()
    sys.stderr.flush()
    if first := os.fork():
        _pass_signals_on(first)
        _exit_as(first)
    _die_with_parent()
    for what, flag in (("mount", _CLONE_NEWNS), ("network", _CLONE_NEWNET), ("PID", _CLONE_NEWPID)):
        _call(_libc.unshare(flag), f"a {what} namespace cannot be made")
    if init := os.fork():
        _pass_signals_on(init)
        _exit_as(init)
    _die_with_parent()
    if lab := os.fork():
        _pass_signals_on(lab)
        _be_init(lab)
    _call(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "mounts cannot be made private")
    _call(_libc.mount(b"proc", b"/proc", b"proc", _MS_NOSUID, None), "/proc cannot be mounted")
    _call(_libc.mount(b"tmpfs", b"/run", b"tmpfs", _MS_NOSUID, None), "/run cannot be mounted")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for number in _PASSED_ON:
        signal.signal(number, _unwind)


def _unwind(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _call(result: int, what: str) -> None:
    if result:
        raise LabRefused(f"{what}: {os.strerror(ctypes.get_errno())}")


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _pass_signals_on(child: int) -> None:
    """Signals for the lab reach it; Ctrl-C reaches it by itself, with its whole process group."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in _PASSED_ON:
        signal.signal(number, lambda number, _frame: os.kill(child, number))


def _exit_as(child: int) -> NoReturn:
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) % 256)


def _be_init(lab: int) -> NoReturn:
    """Reap what nobody else does; end with the lab, and everything with it."""
    while True:
        pid, status = os.wait()
        if pid == lab:
            os._exit(os.waitstatus_to_exitcode(status) % 256)


@contextlib.contextmanager
def scratch(parent: Path | None = None) -> Iterator[Path]:
    """A directory of this run, removed afterwards; those of runs that were killed are removed first.

    It is below `parent`, or where temporary files are.
    """
    for stale in (parent or Path(tempfile.gettempdir())).glob(f"{SCRATCH_PREFIX}*"):
        _remove_unless_in_use(stale)
    directory = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=parent))
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield directory
    finally:
        os.close(lock)
        shutil.rmtree(directory, ignore_errors=True)


def _remove_unless_in_use(directory: Path) -> None:
    try:
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            if time.time() - directory.stat().st_mtime > _BEING_MADE_S:  # or half removed
                shutil.rmtree(directory, ignore_errors=True)
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)
