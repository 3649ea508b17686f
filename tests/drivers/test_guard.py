"""The processes of a node, real ones: guard, lease writer, init, runner, keepers (P7.5-P7.7; SPEC 7.1-7.3, 3.12)."""

import asyncio
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from muster.core.leases.lease import LeaseKeeper, LeaseWatch, Renewal, Stop, next_incarnation
from muster.core.leases.vigil import Vigil
from muster.drivers.image import guard as guard_module
from muster.drivers.image.deadman import boottime_us, read_boot_id
from muster.drivers.image.guard import (
    EXIT_NOT_NOW,
    EXIT_PANIC,
    EXIT_REFUSED,
    EXIT_USAGE,
    Guard,
    Options,
    StartRefused,
    guard_command,
    parse_options,
)
from muster.drivers.image.guard import _Panicked as Panicked
from muster.drivers.image.kernels_word import Place, Witness, read_place
from muster.drivers.image.log_writer import LogWriter
from muster.drivers.image.process_tree import send
from muster.drivers.store.disk.lease_store import GuardStore
from muster.drivers.store.disk.store import DiskStore
from muster.drivers.store.identity import Scope
from muster.drivers.store.lease_store import LeaseStore
from muster.records.registers import (
    LIFE_SINCE,
    Deadman,
    Lease,
    LeaseState,
    Life,
    Marks,
    RegisterKind,
    blank_register,
)
from muster.records.terms import NO_TERM, Stamp
from muster.records.timing import with_drift_ms
from real_node import DEADLINE_S, PROFILE, SOURCE, RealNode, make_store, wait_for

MODES = ("pid-namespace", "process-tree")
NODES = ("muster-guard", "muster-lease", "muster-init", "muster-runner")

# A service that records every 5 ms that it runs; its second, detached half does the same in a session of its own, with
# no environment, as a child of nobody.
TICKING = """
import os, sys, time
def tick(path):
    file = open(path, "a", buffering=1)
    while True:
        file.write(f"{time.clock_gettime_ns(7) // 1000}\\n")
        time.sleep(0.005)
path = sys.argv[1]
if len(sys.argv) > 2:
    tick(path)
if os.fork() == 0:
    tick(path + ".child")
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve(sys.executable, [sys.executable, "-c", os.environ["PROGRAM"], path + ".detached", "alone"], {})
    os._exit(0)
os.wait()
"""


@functools.cache
def has_namespaces() -> bool:
    """Whether a guard of this user finds PID namespaces; asked in a process without threads."""
    program = "from muster.drivers.image.deadman import choose_deadman; print(choose_deadman().name)"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip() == Deadman.PID_NAMESPACE.name


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path that every user may enter."""
    path = Path(tempfile.mkdtemp(prefix="muster-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def make_node(folder: Path) -> Iterator[Callable[..., RealNode]]:
    """Makes nodes on one store; all are ended afterwards."""
    nodes: list[RealNode] = []
    store = make_store(folder)

    def make(node: int = 0, deadman: str = "auto", **how: object) -> RealNode:
        if deadman == "pid-namespace" and not has_namespaces():
            pytest.skip("not applicable: the kernel refuses PID namespaces to this user")
        nodes.append(RealNode(store, folder, node, deadman, **how))  # type: ignore[arg-type]
        return nodes[-1]

    yield make
    for node in nodes:
        node.close()


def ticking(node: RealNode, interpreter: str = sys.executable) -> tuple[str, ...]:
    """The command that starts the ticking service."""
    return ("/usr/bin/env", f"PROGRAM={TICKING}", interpreter, "-c", TICKING, str(node.home / "ticks"))


def start_ticking(node: RealNode, generation: int = 1, interpreter: str = sys.executable) -> Path:
    """Start the ticking service; the path of its record."""
    result = node.run(generation, "start", *ticking(node, interpreter))
    assert result["succeeded"], result["detail"]
    path = node.home / "ticks"
    for half in (".child", ".detached"):
        wait_for(f"ticks{half}", lambda half=half: ticks(path, half))  # type: ignore[misc]
    return path


def ticks(path: Path, half: str) -> list[int]:
    """When (us) a half of the service ran."""
    try:
        text = path.with_name(path.name + half).read_text()
    except FileNotFoundError:
        return []
    return [int(line) for line in text.split("\n")[:-1]]


def prove_stopped(incarnations: dict[RealNode, int]) -> dict[RealNode, int]:
    """Watch the nodes' leases as another node would, and ask the kernel, until there is proof of each; when (us)."""
    watches = {node: LeaseWatch(PROFILE.gap_ms) for node in incarnations}
    here, witnesses = read_place(), dict[RealNode, Witness]()
    proven_us: dict[RealNode, int] = {}

    def probe() -> bool:
        for node, watch in watches.items():
            started_us, lease = boottime_us(), node.lease()
            watch.observe(lease, started_us, boottime_us())
            if lease.life is not None and node not in witnesses:
                witnesses[node] = Witness(lease.life, lease.boot_id, here)
            word = witnesses[node].look() if node in witnesses else ""
            if word or watch.evidence(incarnations[node]) is not None:
                proven_us.setdefault(node, boottime_us())
        return len(proven_us) == len(watches)

    wait_for(f"proof that {', '.join(node.name for node in watches)} have stopped", probe)
    return proven_us


def test_p6_31_a_node_that_has_left_waits_no_longer_than_a_bound_for_its_last_processes() -> None:
    options = Options("store", 0, "n0", "/nowhere", PROFILE, ("true",))
    guard = Guard(options, lambda _path, _node: cast("LeaseStore", None), cast("LogWriter", None), -1)
    guard._vigil.leaving, guard._init = True, os.getppid()
    guard._vigil.lease_deadline_us = boottime_us() + 3600_000_000  # its lease is renewed all the while
    guard._vigil.emptied_by_us = boottime_us() + 60_000_000
    guard._judge(boottime_us())
    assert guard._vigil.judgement_us() == guard._vigil.emptied_by_us  # the loop wakes for it
    with pytest.raises(Panicked, match=rf"do not end 10 s after SIGKILL: .*\b{os.getpid()} \(.*restart this machine"):
        guard._judge(guard._vigil.emptied_by_us)


HERE = Place(b"k" * 16, b"m" * 16, 1, 2)
SILENT = Lease(Stamp(0, 7, NO_TERM, 9), LeaseState.LIVE, Deadman.PID_NAMESPACE, 600, 120, HERE.boot_id, "")


def guard_here(**options: Any) -> Guard:
    """A guard that has not begun, on the machine `HERE`, whose home knows of incarnation 7."""
    made = Guard(
        Options("store", 0, "n0", "/nowhere", PROFILE, ("true",), **options),
        lambda _path, _node: cast("LeaseStore", None), cast("LogWriter", None), -1,
    )  # fmt: skip
    made._here, made._ran_here = HERE, 7
    return made


@pytest.mark.parametrize(
    ("change", "ran_here", "stopped"),
    [
        ({}, 7, True),  # a kernel timer of this very kernel has fired
        ({}, 6, True),
        ({"deadman": Deadman.NONE}, 7, False),
        ({"deadman": Deadman.PROCESS_TREE}, 7, False),  # on the same kernel what it ran may be there still
        ({"boot_id": b"o" * 16}, 7, True),  # it ran on this machine, which has booted since
        ({"boot_id": b"o" * 16}, 6, False),
        ({"boot_id": b"o" * 16, "deadman": Deadman.PROCESS_TREE}, 7, True),
        ({"life": Life(HERE.machine_id, 1, 2, 4711, 99)}, 7, False),  # on this kernel it can be asked
        ({"life": Life(HERE.machine_id, 1, 2, 4711, 99), "boot_id": b"o" * 16}, 6, True),
        ({"life": Life(b"x" * 16, 1, 2, 4711, 99), "boot_id": b"o" * 16}, 6, False),
        ({"life": Life(b"x" * 16, 1, 2, 4711, 99), "boot_id": b"o" * 16}, 7, True),
        ({"life": Life(bytes(16), 1, 2, 4711, 99), "boot_id": b"o" * 16}, 6, False),  # no id is nobody's id
    ],
)
def test_p7_6_a_silent_predecessor_has_stopped_only_where_its_own_kernel_or_machine_says_so(
    change: dict[str, Any], ran_here: int, stopped: bool
) -> None:
    guard = guard_here()
    guard._ran_here = ran_here
    if change.get("life") == Life(bytes(16), 1, 2, 4711, 99):
        guard._here = HERE._replace(machine_id=bytes(16))
    assert guard._has_stopped_here(SILENT._replace(**change)) is stopped


@pytest.mark.parametrize("vouched", [False, True])
def test_p7_6_a_predecessor_is_waited_for_until_its_lease_has_run_out_whoever_vouches(vouched: bool) -> None:
    guard, lease = guard_here(predecessor_stopped=vouched), SILENT._replace(deadman=Deadman.NONE)
    watch = LeaseWatch(PROFILE.gap_ms)
    bound_us = with_drift_ms(lease.lease_ms) * 1000
    moments = [*range(0, bound_us, PROFILE.read_ms * 1000), bound_us]
    for at_us in moments[:-1]:
        watch.observe(lease, at_us, at_us)
        assert not guard._is_settled(lease, watch, "there", asked=False)
    watch.observe(lease, bound_us, bound_us)
    if vouched:
        assert guard._is_settled(lease, watch, "there", asked=False)
    else:
        with pytest.raises(StartRefused, match="nothing proves that it has stopped"):
            guard._is_settled(lease, watch, "there", asked=False)
    fresh = LeaseWatch(PROFILE.gap_ms)
    for state in (LeaseState.NEVER, LeaseState.CLEAN, LeaseState.PANICKED):
        fresh.observe(lease._replace(state=state), 0, 0)
        assert guard._is_settled(lease._replace(state=state), fresh, "there", asked=False)


def test_p7_17_a_guard_that_cannot_read_the_leases_for_a_moment_looks_at_other_kernels_all_the_same() -> None:
    foreign = SILENT._replace(boot_id=b"o" * 16)
    beating = foreign._replace(stamp=foreign.stamp._replace(sequence=10))
    reads = iter([None, (foreign,), None, (beating,)])

    def read_leases() -> tuple[Lease, ...]:
        found = next(reads)
        if found is None:
            raise OSError("it does not answer")
        return found

    guard = guard_here()
    guard._store = cast("LeaseStore", SimpleNamespace(read_leases=read_leases))
    with pytest.raises(StartRefused, match=r"node 0 renews its lease .* under another kernel"):
        guard._refuse_other_kernels()


class Told:
    """In the place of a channel: what was sent on it."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []

    def send(self, packet: bytes, _flags: int = 0) -> None:
        """A packet."""
        self.packets.append(packet)


@pytest.mark.parametrize("version", [LIFE_SINCE, LIFE_SINCE - 1])
def test_p7_14_init_is_let_go_on_once_a_record_that_names_it_is_durable_where_that_may_be_written(version: int) -> None:
    guard, writer, init = guard_here(version=version), Told(), Told()
    guard._channels = cast("Any", {"writer": writer, "init": init})
    guard._life = b"where"
    guard._name_init()
    if version < LIFE_SINCE:
        assert (writer.packets, init.packets) == ([], [b"go"])
        return
    assert (writer.packets, init.packets) == ([b"life where"], [])
    guard._name_init()
    guard._hear_writer("failed", "its disk does not answer")
    assert (len(writer.packets), init.packets) == (1, [])
    guard._hear_writer("renewed", str(boottime_us()))
    guard._hear_writer("renewed", str(boottime_us()))
    assert init.packets == [b"go"]


def test_p7_4_a_guard_that_wakes_after_its_deadline_panics_before_anything_moves_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guard = guard_here()
    heard: list[str] = []
    monkeypatch.setattr(guard, "_hear", heard.append)
    monkeypatch.setattr(guard, "_renew_if_due", lambda: None)
    monkeypatch.setattr(guard, "_tell_state", lambda: None)
    monkeypatch.setattr(guard, "_tell_words", lambda: None)
    monkeypatch.setattr(guard, "_pause_ms", lambda: 0)
    monkeypatch.setattr(guard, "_move_deadline", lambda _now_us: pytest.fail("it has moved its deadline"))
    guard._log_writer = cast("LogWriter", SimpleNamespace(ended=-1))
    guard._vigil.lease_deadline_us = boottime_us() + 60_000_000
    guard._vigil.deadline_us = boottime_us() - 1
    guard._channels = cast("Any", {"writer": None})
    with pytest.raises(Panicked, match="it woke after its deadline had passed"):
        guard._loop()
    assert heard == []


@pytest.mark.parametrize("mode", MODES)
def test_whichever_process_is_killed_or_stopped_nothing_runs_once_there_is_proof(
    mode: str, make_node: Callable[..., RealNode]
) -> None:
    """P7.7: whatever ends or stops, the node ends with it, before there is proof (P7.3)."""
    faults = [(signal.SIGKILL, name) for name in (*NODES, "all")] + [(signal.SIGSTOP, name) for name in NODES]
    faults.append((signal.SIGSTOP, "daemon"))
    if mode == "pid-namespace":  # in a tree what could end the rest is stopped itself: then nothing proves it (P7.11)
        faults += [(number, "node processes") for number in (signal.SIGKILL, signal.SIGSTOP)]
    nodes = [make_node(number, mode) for number in range(len(faults))]
    for node in nodes:
        node.start()
    for node in nodes:
        node.up()
    paths = [start_ticking(node) for node in nodes]
    states = [node.up() for node in nodes]
    if mode == "process-tree" and not states[0]["control_group"]:
        pytest.skip("not applicable: this user may make no control group, so nothing proves the end of a tree (P7.11)")
    for node, (number, name), state in zip(nodes, faults, states, strict=True):
        processes = node.processes()
        if name == "daemon":
            victims = [state["daemon_pid"]]
        elif name == "all":
            victims = list(processes)
        elif name == "node processes":
            victims = [pid for pid, found in processes.items() if found.startswith("muster-")]
        else:
            victims = [pid for pid, found in processes.items() if found == name]
        assert victims, (name, processes)
        send(victims, number)
    proven_us = prove_stopped({node: state["incarnation"] for node, state in zip(nodes, states, strict=True)})
    for node, path, fault in zip(nodes, paths, faults, strict=True):
        node.gone()
        last_us = max(ticks(path, ".child") + ticks(path, ".detached"))
        assert last_us < proven_us[node], f"{fault}: ran {last_us - proven_us[node]} us after the proof"


@pytest.mark.soak
@pytest.mark.parametrize("mode", MODES)
def test_faults_at_any_moment_leave_nothing_running_once_there_is_proof(
    mode: str, make_node: Callable[..., RealNode]
) -> None:
    chance = random.Random(mode)
    ticked = 0
    nodes = [make_node(number, mode) for number in range(6)]
    for round_number in range(20):
        for node in nodes:
            node.forget()
            node.start()
        incarnations = {node: node.up()["incarnation"] for node in nodes}
        moments_us = {node: boottime_us() + chance.randrange(1_500_000) for node in nodes}
        for node in nodes:
            node.ask(1, "start", *ticking(node))
        for node in sorted(nodes, key=moments_us.__getitem__):
            time.sleep(max(0, moments_us[node] - boottime_us()) / 1e6)
            forked = [pid for pid, name in node.processes().items() if name.startswith("muster-")]
            number = chance.choice((signal.SIGKILL, signal.SIGSTOP))
            send(forked if mode == "pid-namespace" and chance.random() < 0.3 else [chance.choice(forked)], number)
            if node.guard is not None:
                node.guard.send_signal(signal.SIGQUIT)  # some faults are survived, and some hold this up too
        proven_us = prove_stopped(incarnations)
        for node in nodes:
            path = node.home / "ticks"
            last_us = max([0, *ticks(path, ".child"), *ticks(path, ".detached")])
            assert last_us < proven_us[node], (round_number, node.name, last_us - proven_us[node])
            ticked += last_us > 0
            node.halt()
    assert ticked > 60  # of 120: the fault may come before the service has begun


@pytest.mark.parametrize("mode", MODES)
def test_a_guard_killed_while_it_starts_leaves_nothing(mode: str, make_node: Callable[..., RealNode]) -> None:
    chance = random.Random(7)
    nodes = [make_node(number, mode) for number in range(8)]
    for node in nodes:
        node.start()
    moments_us = sorted((boottime_us() + chance.randrange(100_000, 900_000), node.node) for node in nodes)
    for moment_us, number in moments_us:
        time.sleep(max(0, moment_us - boottime_us()) / 1e6)
        guard = nodes[number].guard
        assert guard is not None
        guard.kill()
    for node in nodes:
        node.gone()


def test_a_killed_daemon_is_started_again_and_its_services_do_not_notice(make_node: Callable[..., RealNode]) -> None:
    """P7.7: init restarts a daemon that died."""
    node = make_node()
    node.start()
    before = node.up()
    path = start_ticking(node)
    service = {pid for pid, name in node.processes().items() if not name.startswith("muster-")} - {before["daemon_pid"]}
    after = before
    for count in (2, 3):
        killed = after["daemon_pid"]
        os.kill(killed, signal.SIGKILL)
        wait_for("another daemon", lambda count=count: len(node.heard("daemon")) == count)  # type: ignore[misc]
        after = wait_for("its pid", lambda killed=killed: node.state_after(killed))  # type: ignore[misc]
    assert after["incarnation"] == before["incarnation"] == int(node.heard("daemon")[2]["incarnation"])
    assert (after["runner_pid"], after["init_pid"]) == (before["runner_pid"], before["init_pid"])
    assert after["daemon_pid"] != before["daemon_pid"]
    node.order("runner", json.dumps({"do": "inventory", "request": 7}))
    answers = wait_for("inventory", lambda: [item for item in node.heard("runner") if "inventory" in item["text"]])
    (command,) = json.loads(answers[0]["text"])["commands"]
    assert (command["generation"], command["finished"], command["succeeded"]) == (1, True, True)
    assert service <= set(node.processes())
    seen = len(ticks(path, ".child"))
    wait_for("more ticks", lambda: len(ticks(path, ".child")) > seen)
    node.says("was killed by SIGKILL; it is started again")


def test_a_mark_for_its_own_incarnation_ends_a_node_and_one_for_another_does_not(
    make_node: Callable[..., RealNode],
) -> None:
    """P7.1, P4.3."""
    node = make_node(1)
    node.start()
    incarnation = node.up()["incarnation"]
    beat = node.lease().stamp.sequence

    async def publish(*condemned: tuple[int, int]) -> None:
        store = DiskStore(str(node.store), 0)
        marks = (await store.read_strip()).marks[0]
        assert marks is not None
        stamp = Stamp(0, 1, NO_TERM, marks.stamp.sequence + 1)
        await store.write_marks(Marks(stamp, condemned))
        await store.close()

    asyncio.run(publish((1, incarnation - 1), (2, incarnation)))
    wait_for("renewals that have read the marks", lambda: node.lease().stamp.sequence >= beat + 4)
    assert node.guard is not None and node.guard.poll() is None
    asyncio.run(publish((1, incarnation)))
    assert node.ended() == EXIT_PANIC
    lease = node.lease()
    assert (lease.state, lease.cause) == (LeaseState.PANICKED, "node 0 forced it out")
    assert lease.stamp.incarnation == incarnation
    node.gone()


def test_what_it_did_not_write_in_its_own_register_ends_a_node_and_is_left_alone(
    make_node: Callable[..., RealNode],
) -> None:
    node = make_node()
    node.start()
    node.up()
    lease = node.lease()
    stamp = lease.stamp._replace(incarnation=lease.stamp.incarnation + 1, sequence=lease.stamp.sequence + 1000)
    store = GuardStore(str(node.store), 0)
    store.write_lease(lease._replace(stamp=stamp))
    store.close()
    assert node.ended() == EXIT_PANIC
    node.gone()
    assert node.lease().stamp == stamp
    node.says("a second node runs under this name")


@pytest.mark.parametrize("mode", MODES)
def test_a_clean_tombstone_is_written_only_after_everything_has_ended(
    mode: str, make_node: Callable[..., RealNode]
) -> None:
    """P7.5."""
    node = make_node(0, mode)
    node.start()
    incarnation = node.up()["incarnation"]
    start_ticking(node)
    node.order("guard", "leave")
    while (lease := node.lease()).state is LeaseState.LIVE:
        pass
    left = {pid: name for pid, name in node.processes().items() if name != "muster-guard"}
    assert (lease.state, lease.stamp.incarnation) == (LeaseState.CLEAN, incarnation)
    assert not left
    assert node.ended() == 0
    node.gone()
    assert not node.state()


@pytest.mark.parametrize("looks", [4, 1_000_000])
def test_p7_5_a_tombstone_waits_for_the_end_of_init_and_is_not_written_where_that_does_not_come(
    looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Init is the last of its namespace to go: what hangs in its exit is found `looks` times before it has ended."""
    left = iter(range(looks, -1, -1))
    buried: list[int] = []
    said: list[str] = []
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_read, False)
    guard = Guard.__new__(Guard)
    guard._one_kernel, guard._watchdog = True, None
    guard._deadman, guard._profile = Deadman.PID_NAMESPACE, PROFILE
    guard._writer, guard._caretaker, guard._wake_read = 0, None, wake_read
    guard._vigil = Vigil(PROFILE)
    guard._vigil.deadline_us = boottime_us() + (PROFILE.panic_bound_ms // 8 + 300) * 1000
    guard._log_writer = cast("LogWriter", SimpleNamespace(tell_state=lambda _content: True))
    monkeypatch.setattr(guard, "_bury", lambda *_bound, **_words: buried.append(next(left)))
    monkeypatch.setattr(guard, "_say", said.append)

    def has_ended(_child: int) -> bool:
        os.write(wake_write, b"x")  # as for any child's end
        return next(left) == 1

    monkeypatch.setattr(guard_module, "_has_ended", has_ended)
    with subprocess.Popen(["sleep", "600"]) as init:
        guard._init = init.pid
        assert guard._end(clean=False, cause="test") == EXIT_PANIC
    os.close(wake_read)
    os.close(wake_write)
    if looks == 4:
        assert buried == [0]
    else:
        assert not buried
        assert "not everything that it ran has ended" in said[-1]


def test_a_panic_asked_for_by_the_daemon_leaves_a_tombstone_with_its_cause(make_node: Callable[..., RealNode]) -> None:
    node = make_node()
    node.start()
    node.up()
    node.order("guard", "panic the journal disagrees with itself")
    assert node.ended() == EXIT_PANIC
    assert (node.lease().state, node.lease().cause) == (LeaseState.PANICKED, "the journal disagrees with itself")
    node.says("musterd n0: panic: the journal disagrees with itself")
    node.gone()


def test_sigterm_asks_the_daemon_to_leave_and_a_second_one_stops_the_node(make_node: Callable[..., RealNode]) -> None:
    node = make_node()
    node.start()
    node.up()
    assert node.guard is not None
    node.guard.terminate()
    wait_for("term", lambda: [item for item in node.heard("guard") if item["text"] == "term"])
    assert node.guard.poll() is None
    node.guard.terminate()
    assert node.ended() == EXIT_PANIC
    assert node.lease().cause == "it was told to stop at once (SIGTERM)"
    node.gone()


def test_p4_10_a_daemon_that_begins_while_the_node_leaves_is_told_so_and_for_how_long(
    make_node: Callable[..., RealNode],
) -> None:
    node = make_node()
    node.start()
    daemon = node.up()["daemon_pid"]
    assert node.guard is not None
    node.guard.terminate()
    wait_for("term", lambda: [item for item in node.heard("guard") if item["text"] == "term"])
    os.kill(daemon, signal.SIGKILL)
    (again,) = wait_for("again", lambda: [each for each in node.heard("guard") if each["text"].startswith("term ")])
    assert int(again["text"].split()[1]) >= 0
    node.order("guard", "leave")
    assert node.ended() == 0
    assert node.lease().state is LeaseState.CLEAN
    node.gone()


@pytest.mark.parametrize("mode", MODES)
def test_p7_5_a_node_whose_lease_writer_was_killed_leaves_a_tombstone_with_its_cause(
    mode: str, make_node: Callable[..., RealNode]
) -> None:
    node = make_node(0, mode)
    node.start()
    node.up()
    os.kill(node.pid_of("muster-lease"), signal.SIGKILL)
    assert node.ended() == EXIT_PANIC
    wait_for("the tombstone", lambda: node.lease().state is LeaseState.PANICKED)
    assert node.lease().cause == "its lease writer was killed by SIGKILL"
    wait_for("the state's end", lambda: not node.state())
    assert "Traceback" not in node.log()
    node.gone()


def test_the_same_node_started_twice_is_refused_with_the_pid_that_runs(make_node: Callable[..., RealNode]) -> None:
    node = make_node()
    node.start()
    first = node.up()
    running = node.guard
    assert running is not None
    try:
        node.start()
        assert node.ended() == EXIT_NOT_NOW
    finally:
        node.guard = running
    node.says(f"held by process {first['pid']}")
    assert node.state() == first
    assert running.poll() is None


def test_an_advancing_beat_under_its_own_name_refuses_the_start(make_node: Callable[..., RealNode]) -> None:
    """P7.6."""
    node, clone = make_node(), make_node()
    node.start()
    first = node.up()
    elsewhere = node.home.with_name("elsewhere")
    elsewhere.mkdir()
    clone.start(home=elsewhere)
    assert clone.ended() == EXIT_REFUSED
    clone.says("another host runs under this name")
    assert node.guard is not None and node.guard.poll() is None
    assert node.lease().stamp.incarnation == first["incarnation"]


def test_after_a_power_cut_the_next_incarnation_waits_for_the_proof(make_node: Callable[..., RealNode]) -> None:
    """P7.6."""
    node = make_node()
    node.start()
    before = node.up()
    path = start_ticking(node)
    assert node.guard is not None
    node.guard.kill()
    node.guard.wait(DEADLINE_S)
    node.start()
    while (lease := node.lease()).stamp.incarnation == before["incarnation"]:
        time.sleep(0.002)
    proven_us = boottime_us()
    assert lease.stamp.incarnation > before["incarnation"]
    after = node.up()
    assert after["incarnation"] > before["incarnation"]
    assert max(ticks(path, ".child") + ticks(path, ".detached")) < proven_us


def test_what_a_stopped_process_tree_left_is_ended_before_its_node_starts_again(
    make_node: Callable[..., RealNode],
) -> None:
    node = make_node(0, "process-tree")
    node.start()
    before_state = node.up()
    start_ticking(node)
    before = node.processes()
    send([pid for pid, name in before.items() if name != "muster-guard"], signal.SIGSTOP)
    assert node.guard is not None
    node.guard.kill()
    node.guard.wait(DEADLINE_S)
    left = set(before) - {node.guard.pid}
    assert left & set(node.processes())  # stopped, so nothing could end itself
    node.start(predecessor_stopped=not before_state["control_group"])
    node.up()
    assert not left & set(node.processes())


def test_silence_without_a_deadman_proves_nothing_until_the_operator_vouches(
    make_node: Callable[..., RealNode],
) -> None:
    node = make_node()
    store = GuardStore(str(node.store), 0)
    stamp = Stamp(0, next_incarnation(0, 5), NO_TERM, 1)
    store.write_lease(Lease(stamp, LeaseState.LIVE, Deadman.NONE, 200, 50, read_boot_id(), ""))
    store.close()
    node.start()
    assert node.ended() == EXIT_REFUSED
    node.says("start once with --predecessor-stopped")
    assert node.lease().stamp == stamp
    node.start(predecessor_stopped=True)
    assert node.up()["incarnation"] > stamp.incarnation


def silent_on_shared_storage(folder: Path, boot_id: bytes) -> tuple[RealNode, Stamp]:
    """A node on a store of several machines, whose register shows a silent incarnation with a kernel timer."""
    node = RealNode(make_store(folder, Scope.SHARED), folder, 0)
    store = GuardStore(str(node.store), 0)
    stamp = Stamp(0, next_incarnation(0, 5), NO_TERM, 1)
    store.write_lease(Lease(stamp, LeaseState.LIVE, Deadman.PID_NAMESPACE, 200, 50, boot_id, ""))
    store.close()
    return node, stamp


def test_on_shared_storage_a_kernel_timer_of_another_machine_proves_nothing(folder: Path) -> None:
    """P7.6."""
    node, stamp = silent_on_shared_storage(folder, b"another boot id.")
    try:
        node.start()
        assert node.ended() == EXIT_REFUSED
        node.says("nothing proves that it has stopped")
        assert node.lease().stamp == stamp
        (node.home / "guard.json").write_text(json.dumps({"pid": 0, "incarnation": stamp.incarnation}))
        node.start()  # it ran on this machine, which has booted since
        assert node.up()["incarnation"] > stamp.incarnation
    finally:
        node.close()


def test_on_shared_storage_a_timer_of_this_very_kernel_is_proof_for_the_next_incarnation(folder: Path) -> None:
    """P7.6."""
    node, stamp = silent_on_shared_storage(folder, read_boot_id())
    try:
        node.start()
        assert node.up()["incarnation"] > stamp.incarnation
    finally:
        node.close()


def test_a_cycle_that_cannot_read_all_marks_does_not_renew(make_node: Callable[..., RealNode]) -> None:
    """P7.1. On a busy machine the guard must say so before init ends the node at the very deadline: it has 600 ms."""
    node = make_node(profile=PROFILE._replace(renew_ms=600, lease_ms=4800, panic_bound_ms=960))
    node.start()
    node.up()
    store = GuardStore(str(node.store), 0)
    with node.store.open("r+b") as file:
        for copy in range(2):
            file.seek(store.header.register_offset(RegisterKind.MARKS, 5, copy))
            file.write(b"\xaa" * store.header.sector_bytes)
    store.close()
    assert node.ended() == EXIT_PANIC
    assert node.lease().state is LeaseState.PANICKED
    assert "its lease could not be renewed: no copy of the marks register of node 5" in node.lease().cause
    node.gone()


def test_a_daemon_that_cannot_be_executed_ends_the_node_and_is_named(make_node: Callable[..., RealNode]) -> None:
    """P7.7: or else the guard panics the node."""
    node = make_node(profile=PROFILE._replace(restart_ms=3000))
    node.start("/nowhere/musterd")
    assert node.ended() == EXIT_PANIC
    node.says("cannot execute the daemon /nowhere/musterd: No such file or directory")
    assert node.lease().cause == "its daemon gave no sign of life in time"
    node.gone()


def test_p11_1_a_copy_that_is_renamed_over_the_path_ends_the_node_and_a_path_that_is_away_for_a_moment_does_not(
    make_node: Callable[..., RealNode],
) -> None:
    node = make_node()
    node.start()
    node.up()
    aside = node.store.with_name("aside")
    node.store.rename(aside)
    wait_for("a failed cycle is told", lambda: "cannot be opened any more" in node.log())
    aside.rename(node.store)
    wait_for("it goes on", lambda: "the lease is renewed again" in node.log())
    shutil.copy(node.store, aside)
    aside.rename(node.store)
    assert node.ended() == EXIT_PANIC
    node.says("its store was replaced by another file or device while it ran: what is there holds beat")
    assert node.lease().state is LeaseState.PANICKED  # written where it was opened
    node.gone()


def test_a_store_that_is_missing_refuses_the_start(make_node: Callable[..., RealNode]) -> None:
    """P11.6."""
    node = make_node()
    node.store.rename(node.store.with_name("moved"))
    node.start()
    assert node.ended() == EXIT_NOT_NOW
    node.says("does not exist")


def may_run(interpreter: str, source: Path, identity: dict[str, Any]) -> bool:
    """Whether this user may run a guard with this interpreter."""
    check = [interpreter, "-c", "import muster.drivers.guard"]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    try:
        return subprocess.run(check, env=environment, capture_output=True, check=False, **identity).returncode == 0
    except PermissionError:
        return False


def test_an_ordinary_user_runs_a_node(make_node: Callable[..., RealNode], folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("not applicable: the other tests of this file run as an ordinary user already")
    user = 65534
    identity: dict[str, Any] = {"user": user, "group": user, "extra_groups": []}
    source = folder / "src"  # a checkout below the superuser's home is closed to others
    shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__"))
    interpreter = next((path for path in (sys.executable, "/usr/bin/python3") if may_run(path, source, identity)), None)
    if interpreter is None:
        pytest.skip("not applicable: there is no Python 3.11 or newer here that an ordinary user may run")
    node = make_node()
    for path in (node.store, node.home):
        os.chown(path, user, user)
    node.start(interpreter=interpreter, source=source, **identity)
    state = node.up()
    assert Path(f"/proc/{state['init_pid']}").stat().st_uid == user
    start_ticking(node, interpreter=interpreter)
    assert node.guard is not None
    node.guard.kill()
    prove_stopped({node: state["incarnation"]})
    node.gone()


def test_the_deadman_ends_a_stopped_process() -> None:
    program = (
        "import os, signal; from muster.drivers.image.deadman import DeadmanTimer, boottime_us; "
        "timer = DeadmanTimer(); timer.arm(boottime_us() + 1); timer.disarm(); "
        "timer.arm(boottime_us() + 10**12); timer.arm(boottime_us() + 200_000); os.kill(os.getpid(), signal.SIGSTOP)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(SOURCE)})
    try:
        assert process.wait(DEADLINE_S) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()


def test_a_guard_that_is_pid_1_is_refused_because_no_timer_could_kill_it() -> None:
    if not has_namespaces():
        pytest.skip("not applicable: the kernel refuses PID namespaces to this user")
    program = (
        "import os; from muster.drivers.image.deadman import *\n"
        "enter_pid_namespace()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try:\n        DeadmanTimer()\n"
        "    except DeadmanFailed as error:\n        print(error, flush=True)\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
    )
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    assert "not as PID 1" in done.stdout


def test_a_renewal_that_seemed_to_fail_but_arrived_is_its_own_and_its_beat_is_not_used_again() -> None:
    blank = blank_register(RegisterKind.LEASE, 3)
    assert isinstance(blank, Lease)
    keeper = LeaseKeeper(3, next_incarnation(0, 9), blank, PROFILE, Deadman.PID_NAMESPACE, bytes(16))
    first = keeper.begin(0, blank, ())
    assert isinstance(first, Renewal)
    arrived = keeper.begin(1000, first.lease, ())  # `renewed` was never called: the write seemed to fail
    assert isinstance(arrived, Renewal)
    assert arrived.lease.stamp.sequence == first.lease.stamp.sequence + 1
    assert keeper.renewed(arrived.lease, 1000, 2000) is None
    assert isinstance(keeper.begin(3000, first.lease, ()), Stop)  # now it is older than what was durable
    assert keeper.tombstone(True, "").stamp.sequence > arrived.lease.stamp.sequence


def test_the_image_of_guard_init_and_runner_stays_small() -> None:
    command = [sys.executable, "-S", "-c", "import sys, muster.drivers.guard; print(*sys.modules)"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    large = {"asyncio", "msgspec", "dataclasses", "logging", "argparse", "subprocess", "threading", "ssl", "pathlib"}
    assert not large & set(done.stdout.split())


def test_the_options_of_a_guard_survive_its_command_line() -> None:
    options = Options("/s t", 3, "n 3", os.path.realpath("/h"), PROFILE, ("a", "--home", "b"), "process-tree", True)
    assert parse_options(guard_command(options)[3:]) == options


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "missing: --store"),
        (["--store"], "'--store' is unknown or has no value"),
        (["--colour", "red"], "'--colour' is unknown"),
        (["--deadman", "none"], "--deadman is 'none'"),
        (["--profile", "{}"], "--profile, --node-id, --version or --watchdog"),
        (["--profile", json.dumps(PROFILE._replace(renew_ms=5000)._asdict())], "3 * renew_ms <="),
    ],
)
def test_wrong_options_are_named(words: list[str], what: str) -> None:
    good = guard_command(Options("s", 0, "n", "h", PROFILE, ("d",)))[3:-2]
    command = words if len(words) < 2 else [*good, *words, "--daemon", "d"]
    with pytest.raises(ValueError, match=r"^[^\n]+$") as raised:
        parse_options(command)
    assert what in str(raised.value)


def test_a_guard_with_wrong_options_says_so_and_ends() -> None:
    command = [sys.executable, "-m", "muster.drivers.guard", "--colour", "red"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == EXIT_USAGE
    assert "'--colour' is unknown" in done.stderr
