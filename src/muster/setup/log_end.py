"""The end of a log file, for people: never more than asked for, and never of anything but a regular file.

A log may have been made a link to a device, which has no end, or to a pipe, which nobody writes to.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO

TAIL_BYTES = 64 << 10  # the last lines are looked for in so much


def is_log_file(descriptor: int) -> bool:
    """Whether an open log is a regular file: it has an end, and can be kept bounded and read again."""
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def open_log(path: Path) -> BinaryIO:
    """A log, to be read. Raises `OSError`, also where it is no regular file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe nobody writes to holds up nobody
    if not is_log_file(descriptor):
        os.close(descriptor)
        raise OSError(f"{path} is no regular file: what was written to it cannot be read again")
    return os.fdopen(descriptor, "rb")


def end_of(path: Path, limit_bytes: int) -> str:
    """At most the last `limit_bytes` of a log; a line that this would cut is left out. Raises `OSError`."""
    with open_log(path) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        file.seek(max(0, size_bytes - limit_bytes))
        data = file.read(limit_bytes)
    return (data.partition(b"\n")[2] if size_bytes > limit_bytes else data).decode(errors="replace")


def last_lines(path: Path, lines: int) -> str:
    """The last lines of a log; in brackets, why there are none."""
    try:
        return "\n".join(end_of(path, TAIL_BYTES).splitlines()[-lines:])
    except OSError as error:
        return f"(no log: {error.strerror or error})"
