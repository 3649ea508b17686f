"""Nothing that ends a node hangs on one process finishing its exit (P7.5, P7.9, P7.10)."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from core_cluster import CoreCluster
from muster.core.effects import Panic
from muster.drivers.image.control_group import ControlGroup
from muster.drivers.image.deadman import boottime_us
from muster.drivers.image.process_tree import Teller, describe, send
from muster.records.registers import LeaseState, Marks
from muster.records.terms import NO_TERM, Stamp
from muster.records.timing import FAST
from muster.records.units import US_PER_MS
from real_node import DEADLINE_S, PROFILE, RealNode, make_store, wait_for

# Seizes a process so that it stops in its exit, and says when it has.
TRACER = """
import ctypes, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
SEIZE, TRACE_EXIT = 0x4206, 0x40
if libc.ptrace(SEIZE, int(sys.argv[1]), None, TRACE_EXIT) != 0:
    sys.exit(f"ptrace: errno {ctypes.get_errno()}")
print("seized", flush=True)
time.sleep(600)
"""
PATIENT = PROFILE._replace(name="patient", lease_ms=60_000)  # no deadline passes while a test runs


@pytest.fixture
def make_node() -> Iterator[Callable[..., RealNode]]:
    nodes: list[RealNode] = []
    folder = Path(tempfile.mkdtemp(prefix="muster-test-"))
    store = make_store(folder)

    def make(number: int = 0, **how: object) -> RealNode:
        nodes.append(RealNode(store, folder, number, **how))  # type: ignore[arg-type]
        return nodes[-1]

    yield make
    for node in nodes:
        node.close()
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def held_in_exit(pid: int) -> Iterator[None]:
    """While this lasts, `pid` stops in its exit, before the kernel tells its children of its death."""
    tracer = subprocess.Popen([sys.executable, "-c", TRACER, str(pid)], stdout=subprocess.PIPE, text=True)
    try:
        assert tracer.stdout is not None
        if tracer.stdout.readline() != "seized\n":
            pytest.skip("not applicable: this user may not trace its own processes")
        yield
    finally:
        tracer.kill()
        tracer.wait()
        if tracer.stdout is not None:
            tracer.stdout.close()


def inside(node: RealNode) -> dict[int, str]:
    """What runs of the node but its guard and lease writer."""
    return {pid: name for pid, name in node.processes().items() if name not in ("muster-guard", "muster-lease")}


def test_p7_9_init_ends_the_node_at_the_deadline_while_its_guard_cannot_finish_its_exit(
    make_node: Callable[..., RealNode],
) -> None:
    node = make_node()
    node.start()
    node.up()
    guard = node.guard
    assert guard is not None
    with held_in_exit(guard.pid):
        guard.kill()
        killed_us = boottime_us()
        wait_for("the end of all but guard and lease writer", lambda: not inside(node))
        assert boottime_us() - killed_us < 4 * PROFILE.lease_ms * US_PER_MS
        assert guard.poll() is None  # it hangs still
        assert node.lease().state is LeaseState.LIVE
    guard.wait(DEADLINE_S)
    node.gone()


def test_p7_9_a_log_that_takes_nothing_holds_up_no_process_of_the_node(make_node: Callable[..., RealNode]) -> None:
    node = make_node()
    unread, log = os.pipe()
    try:
        fcntl.fcntl(log, 1031, 4096)
        os.set_blocking(log, False)
        os.write(log, bytes(4096))
        os.set_blocking(log, True)
        node.start(stderr=log)
        state = node.up()
        os.kill(state["daemon_pid"], signal.SIGKILL)  # the guard says so
        wait_for("another daemon", lambda: len(node.heard("daemon")) == 2)
        node.order("guard", "panic the log hangs")
        begun = time.monotonic()
        assert node.ended() == 70
        assert time.monotonic() - begun < DEADLINE_S / 2
        assert node.lease().cause == "the log hangs"
        node.gone()
    finally:
        os.close(unread)
        os.close(log)


def test_p7_9_the_guard_and_all_below_it_have_no_file_open(make_node: Callable[..., RealNode]) -> None:
    node = make_node()
    node.start()
    node.up()

    def files() -> list[tuple[str, str]]:
        """What is open now; what one of them only looks at, as into /proc, is closed again at once."""
        found = []
        for pid, name in node.processes().items():
            if name.startswith("muster-") and name != "muster-lease":
                with contextlib.suppress(FileNotFoundError):  # closed, or ended, meanwhile
                    found += [(name, os.readlink(entry)) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        return [(name, target) for name, target in found if target.startswith("/") and target != os.devnull]

    wait_for("no file to be open", lambda: not files())


def grouped(node: RealNode) -> Path:
    """The control group of a node that runs; skips where it could have none."""
    folder = node.up()["control_group"]
    if not folder:
        pytest.skip("not applicable: this user may make no control group")
    return Path(folder)


def test_p7_11_a_control_group_holds_all_of_a_process_tree_and_is_ended_at_once_by_the_next_boot(
    make_node: Callable[..., RealNode],
) -> None:
    node = make_node(deadman="process-tree")
    node.start()
    group = grouped(node)
    hides = "import os,time;os.fork() and os._exit(0);os.setsid();os.fork() and os._exit(0);time.sleep(600)"
    assert node.run(1, "start", "/usr/bin/env", "-i", sys.executable, "-c", hides)["succeeded"]
    before = {int(pid) for pid in (group / "cgroup.procs").read_text().split()}
    outside = {pid for pid, name in node.processes().items() if name in ("muster-guard", "muster-lease")}
    assert {pid for pid, name in node.processes().items() if pid not in outside} <= before
    assert not outside & before
    send(before, signal.SIGSTOP)  # nothing can end itself or anything else
    assert node.guard is not None
    node.guard.kill()
    node.guard.wait(DEADLINE_S)
    assert not ControlGroup(str(group), "").is_empty()
    node.start(predecessor_stopped=True)
    second = grouped(node)
    assert not {pid for pid in before if Path(f"/proc/{pid}").exists() and not is_zombie(pid)}
    assert not group.exists()
    node.order("guard", "leave")
    assert node.ended() == 0
    assert node.lease().state is LeaseState.CLEAN
    assert not second.exists()


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_p7_11_init_ends_the_whole_group_at_the_deadline(make_node: Callable[..., RealNode]) -> None:
    node = make_node(deadman="process-tree")
    node.start()
    group = grouped(node)
    guard = node.guard
    assert guard is not None
    with held_in_exit(guard.pid):
        guard.kill()
        wait_for("the kernel's word", ControlGroup(str(group), "").is_empty)
        assert guard.poll() is None
    guard.wait(DEADLINE_S)


def test_p7_12_the_loop_deadline_ends_a_stopped_node_that_the_lease_would_leave_running(
    make_node: Callable[..., RealNode],
) -> None:
    node = make_node()
    node.start()
    node.up()
    assert node.guard is not None
    node.guard.send_signal(signal.SIGSTOP)
    begun_us = boottime_us()
    assert node.ended() == -signal.SIGKILL
    assert boottime_us() - begun_us < PROFILE.store_stall_ms * US_PER_MS, "the lease is longer than that"
    node.gone()


@pytest.mark.parametrize("told", ["init", "runner"])
def test_p7_10_init_and_runner_end_the_node_on_a_panic_without_its_guard(
    told: str, make_node: Callable[..., RealNode]
) -> None:
    node = make_node(profile=PATIENT)
    node.start()
    node.up()
    assert node.guard is not None
    node.guard.send_signal(signal.SIGSTOP)
    node.order(told, "panic" if told == "init" else '{"do": "panic"}')
    wait_for("the end of all but guard and lease writer", lambda: not inside(node))
    assert node.guard.poll() is None
    node.guard.send_signal(signal.SIGCONT)
    assert node.ended() == 70
    assert node.lease().state is LeaseState.PANICKED


def test_lines_that_could_not_be_said_are_counted_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    takes = [True, False, False, True, True]

    def say(line: str) -> bool:
        if taken := takes.pop(0):
            said.append(line)
        return taken

    monkeypatch.setattr("muster.drivers.image.process_tree.say", say)
    teller = Teller()
    assert [teller.say(line) for line in ("a", "b", "c", "d")] == [True, False, False, True]
    assert (said[0], said[-1]) == ("a", "d")
    assert "2 lines could not be written" in said[1]


def test_an_exception_is_described_without_its_source() -> None:
    with pytest.raises(ValueError, match="x") as raised:
        raise ValueError("x")
    assert describe(raised.value).startswith("ValueError('x') at test_hung_guard.py:")


@pytest.mark.parametrize(("other", "ends"), [(0, True), (-1, False)])
def test_p7_10_a_daemon_that_reads_a_mark_for_its_own_incarnation_stops_the_node(other: int, ends: bool) -> None:
    cluster = CoreCluster(2)
    cluster.boot(0, 1)
    cluster.until_joined(0, 1)
    life = cluster.lives[1]
    life.guard_hangs = True  # so it does not obey the mark itself
    cluster.marks[0] = Marks(Stamp(0, 1, NO_TERM, 1000), ((1, life.incarnation + other),))
    cluster.run(3 * FAST.read_ms)
    panics = [item.effect for item in cluster.history if isinstance(item.effect, Panic)]
    assert panics == ([Panic("node 0 forced it out")] if ends else [])
