"""The file of a node's log, where it has one: opened by `musterd`, kept bounded by the daemon (SPEC 9.4).

All processes of the node write to it, each with the descriptor that it inherited. So it is not renamed when it is full:
its contents are copied to FILE.1, and it is emptied. What is written between the two is lost; that is some
microseconds, once in megabytes. Under systemd there is no such file: the journal keeps the log, and bounds it.
"""

import argparse
import asyncio
import contextlib
import os
import shutil
import stat

from muster.drivers.log_lines import FILE, FILE_BYTES, FORMAT, FORMATS, LEVEL, LEVELS, Log

DEFAULT_BYTES = 8 << 20
LEAST_BYTES = 64 << 10
KEPT = 2  # older files: FILE.1, FILE.2
_LOOK_S = 5.0


class LogRefused(Exception):
    """The log cannot be opened; the message says what, where and what to do."""


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """The options of `musterd` about its log; each has an environment variable, for unit files."""
    group = parser.add_argument_group("log", "one line an event, to standard error unless a file is named")
    group.add_argument(
        "--log-format", choices=FORMATS, default=_of(FORMAT, FORMATS, "text"), help=f"[{FORMATS[0]}]; or {FORMAT}"
    )
    group.add_argument(
        "--log-level", choices=LEVELS, default=_of(LEVEL, LEVELS, "info"), help=f"the least urgent [info]; or {LEVEL}"
    )
    group.add_argument("--log-file", metavar="FILE", default=os.environ.get(FILE), help=f"append to it; or {FILE}")
    text = f"when FILE is larger, it becomes FILE.1, and that FILE.2 [{DEFAULT_BYTES}]; or {FILE_BYTES}"
    group.add_argument("--log-bytes", type=int, metavar="BYTES", default=_number(FILE_BYTES, DEFAULT_BYTES), help=text)


def _of(variable: str, allowed: tuple[str, ...], default: str) -> str:
    found = os.environ.get(variable, default)
    return found if found in allowed else default


def _number(variable: str, default: int) -> int:
    found = os.environ.get(variable, "")
    return int(found) if found.isascii() and found.isdecimal() else default


def prepare_log(file: str | None, format_: str, level: str, limit_bytes: int) -> None:
    """Let this process and all that follow from it write to the log that is asked for. Raises `LogRefused`."""
    if limit_bytes < LEAST_BYTES:
        raise LogRefused(f"--log-bytes {limit_bytes}: too little to be of use; give at least {LEAST_BYTES}")
    os.environ[FORMAT], os.environ[LEVEL], os.environ[FILE_BYTES] = format_, level, str(limit_bytes)
    if file is None:
        os.environ.pop(FILE, None)
        return
    path = os.path.realpath(file)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o640)
    except OSError as error:
        text = f"--log-file {file}: {error.strerror}; make its directory, or name a file that this user may write"
        raise LogRefused(text) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise LogRefused(f"--log-file {file}: it is no regular file; redirect standard error to it instead")
    os.environ[FILE] = path
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


async def keep_log_bounded(log: Log) -> None:
    """For as long as the daemon runs: look at the log's size now and then, and rotate it when it is too large."""
    path = os.environ.get(FILE)
    if path is None:
        return
    limit_bytes = max(LEAST_BYTES, _number(FILE_BYTES, DEFAULT_BYTES))
    failed = ""
    while True:
        try:
            if os.stat(path).st_size > limit_bytes:
                await asyncio.to_thread(rotate, path, limit_bytes)
            failed = ""
        except OSError as error:
            if error.strerror != failed:  # once each cause; the disk may be full, and this line would add to it
                log.tell("warning", "log not rotated", f"{path}: {error.strerror}; make room")
            failed = error.strerror or ""
        await asyncio.sleep(_LOOK_S)


def rotate(path: str, limit_bytes: int) -> None:
    """Move what `path` holds to FILE.1, at most twice the limit of it, the newest; and empty it. Raises `OSError`."""
    draft = f"{path}.new"
    try:
        with open(path, "rb") as source, open(draft, "wb") as target:
            os.fchmod(target.fileno(), stat.S_IMODE(os.fstat(source.fileno()).st_mode))
            source.seek(max(0, os.fstat(source.fileno()).st_size - 2 * limit_bytes))
            shutil.copyfileobj(source, target)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise
    finally:
        # bounded even where nothing can be kept: a log must not fill the disk that its node needs
        os.truncate(path, 0)
    for number in range(KEPT, 1, -1):
        with contextlib.suppress(FileNotFoundError):
            os.replace(f"{path}.{number - 1}", f"{path}.{number}")
    os.replace(draft, f"{path}.1")
