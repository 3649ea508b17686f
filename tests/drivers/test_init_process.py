"""Init by itself: what it waits for before it starts anything (P7.14), how it ends the node."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from muster.drivers.image import init_process
from muster.drivers.image.init_process import InitSetup, first_number, run_init
from muster.drivers.image.process_tree import Teller
from muster.records.timing import FAST

US_PER_MS = 1000


class Ended(Exception):
    """In place of the end of this process."""


class Gate:
    """The leash of an init that waits for its guard, and the guard's ends of its channels."""

    def __init__(self, over_after: int = 1000) -> None:
        self.guard, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        alive, self.alive = os.pipe()
        self.setup = cast("InitSetup", SimpleNamespace(guard=theirs, guard_alive=alive))
        self.looks, self._over_after = 0, over_after
        self.go_after = 1000

    def is_over(self) -> bool:
        """Its deadline has passed; asked at each look of init's."""
        self.looks += 1
        if self.looks == self.go_after:
            self.guard.send(b"go")
        return self.looks >= self._over_after

    def wait(self) -> None:
        """As init does."""
        let_go = threading.Timer(5, self.guard.send, (b"go",))  # only where it would wait for ever
        let_go.start()
        try:
            init_process._await_go(self.setup, cast("Any", self))
        finally:
            let_go.cancel()

    def close(self) -> None:
        """All ends."""
        self.guard.close()
        self.setup.guard.close()
        for descriptor in {self.setup.guard_alive, self.alive} - {-1}:
            os.close(descriptor)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A gate; where init would end, `Ended` is raised."""

    def end(status: int) -> None:
        raise Ended(status)

    monkeypatch.setattr(init_process, "_GATE_LOOK_MS", 1)
    monkeypatch.setattr(os, "_exit", end)
    made = Gate()
    yield made
    made.close()


def test_p7_14_init_waits_until_its_guard_lets_it_go_on(gate: Gate) -> None:
    gate.go_after = 3
    gate.wait()
    assert gate.looks >= 3


@pytest.mark.parametrize("end", ["guard", "deadline"])
def test_p7_14_init_that_is_never_let_go_on_ends_with_its_guard_or_its_deadline(end: str, gate: Gate) -> None:
    if end == "guard":
        os.close(gate.alive)
        gate.alive = -1
        gate.guard.send(b"go")  # said with its last breath
    else:
        gate._over_after = 3
    with pytest.raises(Ended):
        gate.wait()


def test_p7_14_nothing_of_the_node_begins_before_and_all_of_it_in_its_control_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []

    def step(name: str) -> Any:
        return lambda *_arguments: order.append(name)

    for name in ("set_process_name", "close_descriptors_except", "adopt_orphans", "mount_own_proc"):
        monkeypatch.setattr(init_process, name, lambda *_arguments: None)
    monkeypatch.setattr(os, "setsid", lambda: None)
    monkeypatch.setattr(signal, "pthread_sigmask", lambda *_arguments: None)
    monkeypatch.setattr(signal, "set_wakeup_fd", lambda _descriptor: -1)
    monkeypatch.setattr(init_process, "_await_go", step("waits"))
    monkeypatch.setattr(init_process, "_Init", lambda *_arguments: SimpleNamespace(loop=step("begins")))
    leash = SimpleNamespace(bind_init=step("is bound"), is_tree=True)
    become = cast("Callable[..., None]", run_init)
    with socket.socket() as channel:
        group = SimpleNamespace(enter=step("enters"))
        setup = InitSetup(
            channel, 0, channel, channel, channel, channel, FAST, "/nowhere", 7, ("true",), cast("Any", group)
        )
        become(setup, leash)
    assert order == ["enters", "is bound", "waits", "begins"]


@pytest.mark.parametrize("is_tree", [True, False])
def test_p7_11_init_that_ends_the_node_ends_its_control_group_and_what_is_below_it(
    is_tree: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[object] = []

    def end(status: int) -> None:
        raise Ended(status)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(init_process, "end_everything_below", lambda *_arguments: order.append("below"))
    monkeypatch.setattr(Teller, "say", lambda _self, _line: None)
    group = SimpleNamespace(kill=lambda: order.append("group")) if is_tree else None
    guard, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    setup = cast("InitSetup", SimpleNamespace(profile=FAST, guard=theirs, group=group))
    init = init_process._Init(setup, cast("Any", SimpleNamespace(is_tree=is_tree)))
    with pytest.raises(Ended):
        init._end("the deadline has passed")
    assert order == (["group", "below"] if is_tree else [])
    assert guard.recv(512) == b"init process has ended the node: the deadline has passed"
    for descriptor in (init._wake_read, init._wake_write):
        os.close(descriptor)
    for each in (init._daemon_end, init._daemons_end, guard, theirs):
        each.close()


def test_p7_21_the_numbers_of_each_incarnation_begin_far_from_those_of_others() -> None:
    for highest in (32_768, 1 << 22):
        begins = [first_number("/srv/n0", incarnation, highest) for incarnation in range(1, 12)]
        assert all(init_process.LOWEST_NUMBER <= number < highest - 1000 for number in begins)
        near = highest // 40
        apart = (abs(one - other) for at, one in enumerate(begins) for other in begins[:at])
        assert min(apart) > near
        assert first_number("/srv/n1", 1, highest) not in begins  # another node has its own
    assert first_number("/srv/n0", 7, 300) == init_process.LOWEST_NUMBER  # a kernel that gives nearly none
