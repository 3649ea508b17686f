"""What clients of real locks saw, as a history, and whether it can have been (P12.2-P12.6).

    lock_histories.py DIRECTORY NODE SEED NAME...       lock, convert and write at random until its input ends

Each line that it says is one event, with the moment of the monotonic clock, which all processes of a machine share. A
holding counts from when its client knew of it until it began to give it up, which is less than it was held: where two
overlap that exclude each other, both were granted at one moment. `judge` raises `Impossible`.

What a lost client heard last, it may have heard when it was over: the answer waited in its socket, or the client for a
processor. Whatever it heard before counts, for its node has answered it since.
"""

import contextlib
import json
import random
import select
import sys
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from muster.core.locks.modes import COMPATIBLE, GIVES_UP, KNOWS, WRITES
from muster.locks import NL, ClientError, Grant, Locks, Mode, NotGranted, connect

SPACE = "orders"
LONGEST_HELD_S = 0.004
PAUSE_S = 0.05
Event = dict[str, Any]


class Impossible(AssertionError):
    """No lock manager that keeps its word gives such a history."""


class Fault(NamedTuple):
    """A node was struck, not earlier than this: from then on nothing that its clients have counts."""

    node: str
    at_ns: int


class Holding(NamedTuple):
    """One mode that one client had."""

    begin_ns: int
    end_ns: int
    client: str
    mode: Mode
    token: tuple[int, int]
    value: str
    valid: bool


class Write(NamedTuple):
    """Of a value block; `said`: whether the writer was told that it is done."""

    token: tuple[int, int]
    at_ns: int
    value: str
    said: bool


# ---- judging


def judge(events: Iterable[Event], faults: Iterable[Fault]) -> int:
    """How many holdings there were; raises `Impossible` where they cannot have been."""
    told, struck = list(events), sorted(faults, key=lambda fault: fault.at_ns)
    for name in {each["name"] for each in told}:
        of_name = [each for each in told if each["name"] == name]
        holdings = sorted(_holdings(of_name, struck))
        _never_both(name, holdings)
        _tokens_rise(name, holdings)
        _values(name, holdings, _writes(of_name), struck)
    return sum(1 for each in told if each["what"] == "has")


def _holdings(events: list[Event], faults: list[Fault]) -> list[Holding]:
    """What was held, cut off where the client's node was struck."""
    found: list[Holding] = []
    unconfirmed = _heard_last(events)
    open_: dict[str, Event] = {}
    for event in events:
        before = open_.pop(event["client"], None)
        if before is not None:
            found += _holding(before, event["at_ns"], faults, unconfirmed)
        if event["what"] == "has":
            open_[event["client"]] = event
    return found + [each for event in open_.values() for each in _holding(event, event["at_ns"], faults, unconfirmed)]


def _heard_last(events: list[Event]) -> dict[tuple[str, int], int]:
    """When a client was lost that had this, without an answer of its node to anything since; by client and moment."""
    heard: dict[str, int] = {}
    found: dict[tuple[str, int], int] = {}
    for event in events:
        client, what = event["client"], event["what"]
        if what == "has":
            heard[client] = event["at_ns"]
        elif what == "wrote":
            heard.pop(client, None)
        elif what == "lost" and client in heard:
            found[client, heard.pop(client)] = event["at_ns"]
    return found


def _holding(event: Event, end_ns: int, faults: list[Fault], unconfirmed: dict[tuple[str, int], int]) -> list[Holding]:
    """None, where it may have been over when its client knew of it."""
    begin_ns, since_ns = event["at_ns"], event["since_ns"]
    lost_ns = unconfirmed.get((event["client"], begin_ns), 0)
    struck = [fault.at_ns for fault in faults if fault.node == event["node"] and fault.at_ns > since_ns]
    if lost_ns and not (struck and min(struck) <= lost_ns):
        return []  # its node has ended by itself, or was struck before: at any time after it was asked
    end_ns = min([end_ns, *struck])
    if end_ns < begin_ns:
        return []  # it came to know of it when its node was struck already
    token = (event["token"][0], event["token"][1])
    return [Holding(begin_ns, end_ns, event["client"], Mode(event["mode"]), token, event["value"], event["valid"])]


def _never_both(name: str, holdings: list[Holding]) -> None:
    running: list[Holding] = []
    for holding in holdings:
        running = [each for each in running if each.end_ns > holding.begin_ns]
        for each in running:
            if not COMPATIBLE[each.mode][holding.mode]:
                raise Impossible(f"{name}: {each} and {holding} at one moment")
        running.append(holding)


def _tokens_rise(name: str, holdings: list[Holding]) -> None:
    highest = dict.fromkeys(Mode, ((0, 0), ""))
    for holding in holdings:
        for mode in Mode:
            token, client = highest[mode]
            repeats = token == holding.token and client != holding.client  # who gains nothing keeps its own
            if not COMPATIBLE[mode][holding.mode] and (token > holding.token or repeats):
                raise Impossible(f"{name}: the token of {holding} is not above {token} of {client} before")
        highest[holding.mode] = max(highest[holding.mode], (holding.token, holding.client))


def _writes(events: list[Event]) -> list[Write]:
    said = {(each["client"], each["value"]) for each in events if each["what"] == "wrote"}
    return sorted(
        Write(
            (each["token"][0], each["token"][1]), each["at_ns"], each["value"], (each["client"], each["value"]) in said
        )
        for each in events
        if each["what"] == "gives" and each["value"]
    )


def _values(name: str, holdings: list[Holding], writes: list[Write], faults: list[Fault]) -> None:
    """Who keeps writers out reads what was written last, or is told that nobody knows."""
    for holding in holdings:
        if not KNOWS[holding.mode]:
            continue
        if not holding.valid:
            if not any(fault.at_ns <= holding.end_ns for fault in faults):
                raise Impossible(f"{name}: {holding} has no valid block, and nothing was lost")
            continue
        before = [each for each in writes if (each.token, each.at_ns) < (holding.token, holding.begin_ns)]
        last = max((place for place, each in enumerate(before) if each.said), default=-1)
        possible = {each.value for each in before[max(last, 0) :]} | ({""} if last < 0 else set())
        if holding.value not in possible:
            raise Impossible(f"{name}: {holding}, where {sorted(possible)} may have been written last")


# ---- locking


class Client:
    """Locks at random."""

    def __init__(self, directory: str, node: str, seed: str, names: list[str]) -> None:
        self._directory, self._node, self._names = directory, node, names
        self._random = random.Random(seed)
        self._locks: Locks | None = None
        self._life = 0
        self._values = 0

    def say(self, what: str, name: str, **more: object) -> None:
        """Write one event, with its moment, for the judge."""
        event = {
            "what": what, "name": name, "node": self._node, "client": f"{self._node}/{name}/{self._life}",
            "at_ns": time.monotonic_ns(), **more,
        }  # fmt: skip
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()

    def run(self) -> None:
        """Until its input ends."""
        while not (select.select([sys.stdin], [], [], 0)[0] and sys.stdin.readline() == ""):
            try:
                locks = self._connected()
                name = self._random.choice(self._names)
                try:
                    self._lock(locks, name)
                except NotGranted:
                    continue
                except ClientError:
                    self.say("lost", name)
                    raise
            except ClientError:  # its node is away
                self._close()
                time.sleep(PAUSE_S)
        self._close()

    def _connected(self) -> Locks:
        if self._locks is None or self._locks.is_lost:
            self._close()
            self._life += 1
            self._locks = connect(directory=self._directory, node=self._node, timeout_s=2.0)
            for name in self._names:
                self._locks.space(SPACE).acquire(name, NL, timeout_s=5.0)  # so that the block lasts
        return self._locks

    def _close(self) -> None:
        if self._locks is not None:
            with contextlib.suppress(ClientError):
                self._locks.close()
        self._locks = None

    def _lock(self, locks: Locks, name: str) -> None:
        since_ns = time.monotonic_ns()
        mode = self._random.choice(list(Mode)[1:])
        grant = locks.space(SPACE).acquire(name, mode, timeout_s=5.0)
        self._has(name, grant, since_ns)
        try:
            while self._random.random() < 0.4:
                self._convert(name, grant)
        finally:
            value = self._gives(name, grant)
            grant.unlock(value.encode() or None)
            self.say("wrote", name, value=value)

    def _convert(self, name: str, grant: Grant) -> None:
        mode = self._random.choice(list(Mode))
        before, since_ns = grant.mode, time.monotonic_ns()
        down = GIVES_UP[before][mode]
        value = self._gives(name, grant) if down else ""
        if not down:
            self.say("gives", name, token=grant.token, value="")
        try:
            grant.convert(mode, value=value.encode() or None, timeout_s=0.5)
            if down:
                self.say("wrote", name, value=value)
        finally:
            if not grant.is_lost:
                self._has(name, grant, since_ns)

    def _has(self, name: str, grant: Grant, since_ns: int) -> None:
        self.say(
            "has", name, mode=int(grant.mode), token=grant.token, value=grant.value.decode(), valid=grant.valid,
            since_ns=since_ns,
        )  # fmt: skip
        time.sleep(self._random.random() * LONGEST_HELD_S)

    def _gives(self, name: str, grant: Grant) -> str:
        """It begins to give up, and may write."""
        value = ""
        if WRITES[grant.mode] and self._random.random() < 0.7:
            self._values += 1
            value = f"{self._node}.{self._life}.{self._values}"
        self.say("gives", name, token=grant.token, value=value)
        return value


if __name__ == "__main__":
    Client(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]).run()
