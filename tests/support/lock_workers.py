"""A program that counts under a lock, as a user of locks would write it; and clients that misbehave (docs/LOCKS.md).

    lock_workers.py count DIRECTORY NODE FILE       one increment after the other, until its input ends
    lock_workers.py hold DIRECTORY NODE NAME HOW    lock it, then HOW: `sleep`, or `close` the connection and live
    lock_workers.py under FILE COUNT PAUSE          the command of a `muster lock run`: so many increments, and a stop
                                                    between check and write where it finds the file PAUSE

The counter's file holds a value and the token of who claimed it last. An increment claims it first, then computes, then
writes, and a claim or write of an older token than the file's is refused: each is one step under the file's own flock.
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from muster.locks import EX, ClientError, Locks, connect

PAUSE_S = 0.05


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[str]]:
    """The file, for one step."""
    with path.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def replace(file: IO[str], document: dict[str, Any]) -> None:
    """Write it anew, in this step."""
    file.seek(0)
    file.truncate()
    json.dump(document, file)
    file.flush()


def claim(path: Path, token: str) -> int | None:
    """The counter's value, which only this token may change from now on; None: a newer one has claimed it."""
    with opened(path) as file:
        found = json.load(file)
        if found["token"] > token:
            return None
        replace(file, {**found, "token": token})
        return int(found["value"])


def write(path: Path, token: str, value: int) -> bool:
    """Write the value, if nobody with a newer token has claimed it since."""
    with opened(path) as file:
        found = json.load(file)
        if found["token"] != token:
            return False
        replace(file, {"value": value, "token": token})
        return True


def say(word: str) -> None:
    """For the test."""
    sys.stdout.write(f"{word}\n")  # in one piece: another thread may say something, too
    sys.stdout.flush()


def is_to_end() -> bool:
    """Whether the test has closed this program's input."""
    return bool(select.select([sys.stdin], [], [], 0)[0]) and sys.stdin.readline() == ""


def count(directory: str, node: str, file: str) -> None:
    """Increment until it is to end; each increment that was acknowledged is said."""
    path, locks = Path(file), None
    while not is_to_end():
        try:
            if locks is None or locks.is_lost:
                locks = connect(directory=directory, node=node, timeout_s=2.0)
            increment(locks, path)
        except ClientError as error:  # its node is away
            say(f"without {type(error).__name__}")
            if locks is not None:
                with contextlib.suppress(ClientError):
                    locks.close()
            locks = None
            time.sleep(PAUSE_S)


def increment(locks: Locks, path: Path) -> None:
    """Lock, claim, compute, write: one increment."""
    with locks.space("orders").lock("counter", EX, timeout_s=5.0) as grant:
        token = str(grant.token)
        value = claim(path, token)
        say(f"claimed {token}")
        if value is not None:
            time.sleep(0.001)  # whoever has the lock twice is found out here, and a pause hits here
            say("acknowledged" if write(path, token, value + 1) else "refused")


def hold(directory: str, node: str, name: str, how: str) -> None:
    """Lock, and never unlock."""
    locks = connect(directory=directory, node=node, on_lost=lambda _why: None if how == "close" else say("lost"))
    grant = locks.space("orders").acquire(name, EX)
    say(f"holds {grant.token}")
    if how == "close":
        loop: Any = locks.parts[0]
        exchange: Any = locks.parts[1].exchange
        loop._loop.call_soon_threadsafe(exchange._transport.abort)
        say("closed")
    time.sleep(600)


def under(file: str, times: str, pause: str) -> None:
    """Increment so often under the lock that this command has, as its token says."""
    path, token = Path(file), os.environ["MUSTER_LOCK_TOKEN"]
    for _ in range(int(times)):
        value = claim(path, token)
        if value is None:
            say("refused")
            return
        with contextlib.suppress(FileNotFoundError):
            Path(pause).unlink()
            say(f"stops {os.getpid()} {os.getppid()}")
            os.kill(os.getpid(), signal.SIGSTOP)
        say("acknowledged" if write(path, token, value + 1) else "refused")


if __name__ == "__main__":
    modes: dict[str, Callable[..., None]] = {"count": count, "hold": hold, "under": under}
    modes[sys.argv[1]](*sys.argv[2:])
