"""Looking at a file that a service names: in a process of its own, for its file system may hang (P7.9).

The runner waits for no disk. So how a program's ready file is before the program is started is looked at by the
program's keeper, which runs nothing before it knows; and whether it has come since, by a looker: a small fork of the
runner that looks again and again, says `.` after its first look and `y` once the file has come, and ends.
"""

import os
import signal
import time
from typing import NoReturn

from muster.drivers.image.deadman import die_with_parent, set_process_name
from muster.drivers.image.process_tree import close_descriptors_except, fork_into
from muster.drivers.image.processes import KEEPER

LOOKED, FOUND = b".", b"y"
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.2

Stamp = tuple[int, int]  # inode and time of change: another one is another file, or other contents


def stamp_of(path: str) -> Stamp | None:
    """The file as it is now; None where there is none. It may never return."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns)


def written(stamp: Stamp | None) -> bytes:
    """A stamp as a keeper says it, without spaces; nothing for no file."""
    return b"%d,%d" % stamp if stamp is not None else b""


def read(text: bytes) -> Stamp | None:
    """Inverse of `written`."""
    if not text:
        return None
    inode, _comma, changed = text.partition(b",")
    return int(inode), int(changed)


def start_looker(path: str, before: Stamp | None, says_fd: int) -> int:
    """Fork a looker; its pid. The descriptor is the end to write to, here still to be closed. Raises `OSError`."""
    runner = os.getpid()
    return fork_into(lambda: _look(path, before, says_fd, runner))


def _look(path: str, before: Stamp | None, says_fd: int, runner: int) -> NoReturn:
    signal.set_wakeup_fd(-1)  # shared with the runner
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    die_with_parent(signal.SIGKILL)
    if os.getppid() != runner:
        os._exit(1)
    set_process_name(KEEPER)  # by which a boot finds what an earlier run has left
    close_descriptors_except((says_fd,))
    pause_s, said = _FIRST_PAUSE_S, False
    while True:
        found = stamp_of(path) not in (None, before)
        if found or not said:
            os.write(says_fd, FOUND if found else LOOKED)
            said = True
        if found:
            os._exit(0)
        time.sleep(pause_s)
        pause_s = min(pause_s + 0.001, _LONGEST_PAUSE_S)
