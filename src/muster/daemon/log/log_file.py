"""The file of a node's log, where it has one: opened by `musterd`, kept bounded by the log writer (SPEC 9.4).

Under systemd there is no such file: the journal keeps the log, and bounds it.
"""

import argparse
import asyncio
import os
import stat

from muster.drivers.image.environment import IMAGE
from muster.drivers.image.log_lines import FILE, FILE_BYTES, FORMAT, FORMATS, LEVEL, LEVELS, Log
from muster.drivers.image.log_writer import DEFAULT_BYTES, LEAST_BYTES, rotate

_LOOK_S = 5.0
_KEEPS_LOG_BOUNDED = 2  # the first image whose log writer does that


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
    """Under an image of version 1, which has no log writer: look at the log's size now and then, and rotate it."""
    path = os.environ.get(FILE)
    if path is None or _number(IMAGE, 1) >= _KEEPS_LOG_BOUNDED:
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
