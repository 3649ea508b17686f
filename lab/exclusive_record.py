"""Judges the record that `exclusive_service.py` keeps: did any service ever run twice at the same time (SPEC 6.1, 7)?

Theory of operation. The kernel appends the lines of all processes in one order, so that order is evidence beside the
times in the lines. The lines of one instance span an interval. When an instance begins, the earlier ones of its service
must be over: a line of one that comes later in the file, or whose time is later than the beginning, is a violation; so
is a lock that was not free. A stop command runs beside the instance that it is to end, but on no other node.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from lab.exclusive_service import LINE_BYTES

_READ_LINES = 8192


class Line(NamedTuple):
    """One line of the record."""

    time_us: int  # CLOCK_BOOTTIME
    service: str
    instance: str  # random, one for each command that was begun
    node: str
    incarnation: int
    generation: int
    epoch: int
    action: str  # start, stop or recovery
    pid: int  # as the process itself sees it
    event: str  # begins, runs, overlaps
    token: int = 0  # of its owner; 0: it has none

    @property
    def holder(self) -> tuple[str, int]:
        """The node and its incarnation."""
        return (self.node, self.incarnation)


class Violation(AssertionError):
    """A service ran twice, or out of order; the message has the lines that show it."""


def parse_line(data: bytes) -> Line:
    """A line from its bytes. Raises `ValueError`."""
    time_us, service, instance, token, node, *numbers, action, pid, event = data.decode().split()
    incarnation, generation, epoch = (int(number) for number in numbers)
    return Line(
        int(time_us), service, instance, node, incarnation, generation, epoch, action, int(pid), event, int(token)
    )


class _Instance:
    """What is known of one instance."""

    def __init__(self, first: Line) -> None:
        self.first = self.last = first
        self.ended_by: Line | None = None  # the first line of the instance that it must not outlive


class _History:
    """All instances of one service."""

    def __init__(self) -> None:
        self.instances: dict[str, _Instance] = {}
        self.running: _Instance | None = None  # the newest one of a start command
        self.newest: Line | None = None  # first line of the newest instance


class Judge:
    """Takes lines in their order in the file. Raises `Violation` at the first that shows one."""

    def __init__(self) -> None:
        self._histories: dict[str, _History] = {}

    def take(self, lines: Iterable[Line]) -> None:
        """Judge the next lines."""
        for line in lines:
            history = self._histories.setdefault(line.service, _History())
            instance = history.instances.get(line.instance)
            if instance is None:
                self._begin(history, line)
                continue
            if instance.ended_by is not None:
                raise Violation(f"{line.service} runs twice: after\n  {instance.ended_by}\ncame\n  {line}")
            instance.last = line
            if line.event == "overlaps":
                before = [item.last for item in history.instances.values() if item is not instance][-3:]
                raise Violation(
                    f"{line.service} runs twice: its lock is not free for\n  {line}\nbefore it:\n  {before}"
                )

    def newest(self, service: str) -> Line | None:
        """The newest line of the newest start of a service."""
        history = self._histories.get(service)
        return history.running.last if history and history.running else None

    def is_known(self, line: Line) -> bool:
        """Whether the instance that a line is of has begun before it."""
        history = self._histories.get(line.service)
        return history is not None and line.instance in history.instances

    def stopping(self, service: str) -> Line | None:
        """The first line of the newest stop command of a service."""
        history = self._histories.get(service)
        stops = [each.first for each in history.instances.values() if each.first.action == "stop"] if history else []
        return stops[-1] if stops else None

    def instances(self, service: str) -> int:
        """How many commands of the service were begun."""
        return len(self._histories[service].instances) if service in self._histories else 0

    def starts(self, service: str) -> int:
        """How many starts of the service were begun."""
        firsts = [instance.first for instance in self._histories[service].instances.values()]
        return sum(1 for first in firsts if first.action == "start")

    def _begin(self, history: _History, line: Line) -> None:
        for instance in history.instances.values():
            beside = line.action == "stop" and instance.first.holder == line.holder
            if instance.ended_by is not None or beside:
                continue
            if instance.last.time_us > line.time_us:
                raise Violation(f"{line.service} runs twice:\n  {instance.last}\nis later than\n  {line}")
            instance.ended_by = line
        newest = history.newest
        if newest is not None and line.generation <= newest.generation:
            raise Violation(f"{line.service} has no newer generation: after\n  {newest}\ncame\n  {line}")
        if newest is not None and line.epoch < newest.epoch:
            raise Violation(f"{line.service} has an older epoch: after\n  {newest}\ncame\n  {line}")
        if newest is not None and line.action != "stop" and newest.token and line.token <= newest.token:
            raise Violation(f"{line.service} has a new owner without a higher token: after\n  {newest}\ncame\n  {line}")
        history.newest = line
        history.instances[line.instance] = _Instance(line)
        if line.action == "start":
            history.running = history.instances[line.instance]


class RecordReader:
    """Reads a record file as it grows, and has every line judged once."""

    def __init__(self, path: Path) -> None:
        self.judge = Judge()
        self._file = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
        self._offset = 0

    def read(self) -> None:
        """Judge what has come. Raises `Violation`."""
        while data := os.pread(self._file, _READ_LINES * LINE_BYTES, self._offset):
            whole = len(data) // LINE_BYTES * LINE_BYTES
            self._offset += whole
            self.judge.take(parse_line(data[at : at + LINE_BYTES]) for at in range(0, whole, LINE_BYTES))
            if whole < _READ_LINES * LINE_BYTES:
                return

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
