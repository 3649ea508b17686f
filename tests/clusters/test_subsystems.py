"""Programs that take part in the transitions of real development clusters (SPEC 3.2, 3.4, 3.6, 3.9-3.11, 3.13)."""

import contextlib
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from core_cluster import joined_cluster
from dev_cluster import DevCluster
from lab.machines import role_of
from muster.client import Barriers, ClientError, Kind, Lost, Notification, Refused, Subsystem, register
from muster.client.control import ControlClient
from muster.core.inputs import LevelRegistered
from muster.daemon.levels.programs import MAXIMUM_UNFETCHED, KeptRegistration, Registration
from muster.dev.node_processes import processes_of
from muster.records.levels import Level, NodeState, TransitionKind
from muster.records.members import LeaveNode
from patience import DEADLINE_S, wait

NODES = ("n0", "n1", "n2")

# One line is appended for each beginning and end: their order in the file is the order in which they happened.
SCRIPT = """#!/bin/sh
line="$1 $2 $MUSTER_TRANSITION $MUSTER_KIND $MUSTER_ABOUT_NODE $MUSTER_BARRIER $MUSTER_EPOCH"
echo "begin $line" >> "$3"
case "$MUSTER_VECTOR" in *"\\"$MUSTER_ABOUT_NODE\\": \\"$MUSTER_KIND\\""*) ;; *) echo "bad vector" >> "$3" ;; esac
sleep 0.05
echo "end $line" >> "$3"
"""

HOLDER = """
import sys
from muster.client import register
subsystem = register("victim", 60, directory=sys.argv[1], node=sys.argv[2], on_loss=sys.argv[3])
print("registered", flush=True)
for told in subsystem:
    print("told", told.kind, told.node, flush=True)
"""


class Record(NamedTuple):
    """One line of the scripts' record."""

    edge: str  # begin or end
    level: int
    node: str
    transition: int
    kind: str
    about: str
    barrier: int
    epoch: int


class Cluster:
    """A cluster with programs, all of which are ended with the test."""

    def __init__(self, dev: DevCluster, stack: contextlib.ExitStack) -> None:
        self.dev, self._stack = dev, stack

    def query(self, node: str, name: str, **arguments: Any) -> Any:
        """Ask this very node."""
        return ControlClient(self.dev.directory / "nodes" / node / "control.sock", 5.0).query(name, **arguments)

    def levels(self, asked: str, node: str) -> dict[int, str]:
        """What is registered on `node`, as `asked` has it."""
        found = self.query(asked, "nodes")["nodes"][node]["levels"]
        return {level["level"]: level["name"] for level in found}

    def events(self, node: str, event: str) -> list[str]:
        """The particulars of each such event in the node's record."""
        return [each["detail"] for each in self.query(node, "timeline")["events"] if each["event"] == event]

    def settled(self) -> bool:
        """Whether no node knows of a transition, and none is behind another: it may not have heard of one yet."""
        told = [self.query(node, "transitions") for node in NODES]
        return all(each["transitions"] == [] and each["index"] == told[0]["index"] for each in told)

    def joins(self, name: str, level: int, node: str, **options: Any) -> Subsystem:
        """Register this process as a program of `node`, until the end of the test."""
        subsystem = register(name, level, directory=self.dev.directory, node=node, **options)
        self._stack.callback(self._deregister, subsystem)
        return subsystem

    @staticmethod
    def _deregister(subsystem: Subsystem) -> None:
        with contextlib.suppress(ClientError):  # its node may be gone
            subsystem.deregister()

    def runs(self, *words: str) -> "subprocess.Popen[str]":
        """A program of this test's; killed at its end if it is still there."""
        process = subprocess.Popen(
            [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"MUSTER_DIR": str(self.dev.directory)},
        )  # fmt: skip
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        assert process.stdout is not None
        self._stack.callback(process.stdout.close)
        return process

    def command(self, *words: str) -> "subprocess.Popen[str]":
        """A command of `muster` that stays."""
        return self.runs("-m", "muster.ui.command_line", *words)


@pytest.fixture
def cluster(dev_cluster: DevCluster) -> Iterator[Cluster]:
    """Three joined nodes."""
    dev_cluster.up(3)
    with contextlib.ExitStack() as stack:
        yield Cluster(dev_cluster, stack)


def acknowledge_in_background(subsystem: Subsystem, but: str = "") -> list[Notification]:
    """Everything that the program hears from now on, acknowledged as it comes, `but` for what is about this node."""
    heard: list[Notification] = []

    def work() -> None:
        with contextlib.suppress(Lost, Refused):  # refused: its registration is over
            for told in subsystem:
                heard.append(told)
                if told.node != but:
                    told.acknowledge()

    threading.Thread(target=work, daemon=True).start()
    return heard


def ends_in_order(records: list[Record], first: int, then: int) -> None:
    """Every end at level `first` comes before every beginning at level `then`."""
    ends = [place for place, record in enumerate(records) if record.level == first and record.edge == "end"]
    begins = [place for place, record in enumerate(records) if record.level == then and record.edge == "begin"]
    assert ends and begins, records
    assert max(ends) < min(begins), records


def test_scripts_at_two_levels_are_taken_through_joins_leaves_and_forced_leaves_in_order(
    cluster: Cluster, tmp_path: Path
) -> None:
    script, record = tmp_path / "script", tmp_path / "record"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    record.touch()
    programs = []
    for level in (30, 60):
        for node in NODES:
            command = f"{script} {level} {node} {record}"
            options = [f"--on-{kind}={command}" for kind in ("joining", "leaving", "forced-leaving")]
            words = ["--node", node, "--level", str(level), "--name", f"layer{level}", "--barriers-leaving", "2"]
            programs.append(cluster.command("subsystem", "run", *words, *options))
    everybody = {30: "layer30", 40: "event manager", 60: "layer60"}
    wait("all to be registered", lambda: all(cluster.levels("n0", node) == everybody for node in NODES))
    wait("the late joins to be over", cluster.settled)
    before = len(record.read_text().splitlines())
    cluster.dev.succeed("dev", "leave", "n2")
    cluster.dev.succeed("dev", "boot", "n2")
    wait("n2 to take part again", lambda: cluster.levels("n0", "n2") == everybody and cluster.settled())
    cluster.dev.succeed("dev", "kill", "n1")
    wait("n1 to be out", lambda: cluster.query("n0", "status")["nodes"]["n1"]["state"] == "inactive")
    lines = record.read_text().splitlines()[before:]
    assert "bad vector" not in lines
    found = [Record(e, int(le), n, int(t), k, a, int(b), int(ep)) for e, le, n, t, k, a, b, ep in map(str.split, lines)]
    leaving = [each for each in found if each.kind == "leaving"]
    forced = [each for each in found if each.kind == "forced-leaving"]
    assert {each.about for each in leaving} == {"n2"}
    assert {each.about for each in forced} == {"n1"}
    for level in (30, 60):  # everyone took part, the leaving node too, at every barrier; the dead one in nothing
        for barrier in (0, 1):
            took_part = [e.node for e in leaving if (e.edge, e.level, e.barrier) == ("end", level, barrier)]
            assert sorted(took_part) == list(NODES)
        assert sorted(e.node for e in forced if (e.edge, e.level) == ("end", level)) == ["n0", "n2"]
    ends_in_order(leaving, 60, 30)
    ends_in_order(forced, 30, 60)
    for level in (30, 60):
        ends = [place for place, e in enumerate(leaving) if (e.edge, e.level, e.barrier) == ("end", level, 0)]
        begins = [place for place, e in enumerate(leaving) if (e.edge, e.level, e.barrier) == ("begin", level, 1)]
        assert max(ends) < min(begins)
    assert max(each.epoch for each in leaving) < min(each.epoch for each in forced)
    assert_recorded_order(cluster, "n1 forced-leaving")
    for program in programs:
        program.send_signal(signal.SIGTERM)
    for program in programs:
        assert program.wait(DEADLINE_S) == 0
    wait("the levels to go", lambda: cluster.levels("n0", "n0").keys() == cluster.levels("n0", "n2").keys() == {40})


def assert_recorded_order(cluster: Cluster, what: str) -> None:
    """The nodes' own records say the same: level 60 was told after every acknowledgement of level 30."""
    events = [each for node in ("n0", "n2") for each in cluster.query(node, "timeline")["events"]]

    def moments(event: str, level: int) -> list[int]:
        step = f"{what} level {level} barrier 0"
        return [each["at_us"] for each in events if (each["event"], each["detail"]) == (event, step)]

    acknowledged, told = moments("step acknowledged", 30), moments("step told", 60)
    assert len(acknowledged) == len(told) == 2
    assert max(acknowledged) < min(told)


def test_a_late_join_is_told_to_its_level_after_the_lower_one_on_every_node_and_its_end_too(cluster: Cluster) -> None:
    """P3.14, P3.15: levels are told of the programs that are in them."""
    low = {node: acknowledge_in_background(cluster.joins("low", 30, node), but="n2") for node in ("n0", "n1")}
    high = [acknowledge_in_background(cluster.joins("high", 60, node)) for node in ("n0", "n1")]
    counted = {30, 40, 60}
    wait("all to be counted with", lambda: all(cluster.levels("n0", node).keys() == counted for node in low))
    wait("the late joins to be over", cluster.settled)
    assert all(told.node != "n2" for heard in (*low.values(), *high) for told in heard)
    assert all(heard[-1].vector["n2"] == "inactive" for heard in high)  # it has nothing there
    acknowledge_in_background(cluster.joins("low", 30, "n2"))
    last = cluster.joins("high", 60, "n2")
    acknowledge_in_background(last)
    wait("the lower level to hear", lambda: all(heard[-1].node == "n2" for heard in low.values()))
    first, second = (heard[-1] for heard in low.values())
    assert first.kind is second.kind is Kind.JOINING
    assert first.vector["n2"] == "joining"
    first.acknowledge()
    wait("one to be waited for", lambda: waited_for(cluster, "n0") == ["n1"])
    assert all(told.node != "n2" for heard in high for told in heard)
    second.acknowledge()
    wait("the upper level to hear", lambda: all(any(told.node == "n2" for told in heard) for heard in high))
    # who goes in the middle of its own join is taken through forced-leaving
    wait("the join to be over", cluster.settled)
    last.deregister()
    wait("its peers to hear of its end", lambda: all(heard[-1].kind is Kind.LEAVING for heard in high))
    assert all([told.kind for told in heard if told.node == "n2"] == [Kind.JOINING, Kind.LEAVING] for heard in high)


def waited_for(cluster: Cluster, asked: str) -> list[str]:
    found = cluster.query(asked, "transitions")["transitions"]
    return found[0]["waiting_for"] if found else []


def test_who_registers_in_the_middle_of_another_s_transition_is_told_of_everything_once(cluster: Cluster) -> None:
    first = cluster.joins("first", 60, "n0")
    own = first.next_notification(DEADLINE_S)
    assert own is not None
    assert (own.node, own.kind) == ("n0", Kind.JOINING)
    own.acknowledge()
    wait("its own join to be over", cluster.settled)  # who registers meanwhile would take part in it
    second = cluster.joins("second", 60, "n1")
    join = first.next_notification(DEADLINE_S)  # of n1 at this level; not acknowledged yet
    assert join is not None
    assert join.node == "n1"
    third = cluster.joins("third", 60, "n2")
    heard = {"n1": acknowledge_in_background(second), "n2": acknowledge_in_background(third)}
    wait("the last one to be counted with", lambda: 60 in cluster.levels("n0", "n2"))
    join.acknowledge()
    heard["n0"] = acknowledge_in_background(first)
    wait("all joins to be over", cluster.settled)
    assert [told.node for told in heard["n0"]] == ["n2"]
    assert [told.node for told in heard["n1"]] == ["n1", "n2"]
    assert [told.node for told in heard["n2"]] == ["n1", "n2"]
    assert heard["n2"][0].transition == join.transition
    cluster.dev.succeed("dev", "leave", "n0")
    assert [told.kind for told in heard["n2"]][2:] == [Kind.LEAVING]
    assert first.next_notification(DEADLINE_S) is None  # its node has left: it hears nothing more (SPEC 3.11)


def test_a_program_that_registers_again_at_once_is_told_of_its_join_from_the_first_barrier(cluster: Cluster) -> None:
    """P3.13: with other barriers than its predecessor, which had not acknowledged, or not its last barrier."""
    identities = set()
    for turn, joining in enumerate((3, 1, 2, 3, 1)):
        program = cluster.joins("again", 60, "n0", barriers=Barriers(joining=joining))
        for barrier in range(1 if turn % 2 else joining):
            told = program.next_notification(DEADLINE_S)
            assert told is not None
            assert (told.node, told.kind, told.barrier) == ("n0", Kind.JOINING, barrier)
            identities.add(told.transition)
            if barrier + 1 < joining:
                told.acknowledge()
        program.deregister()
    assert len(identities) == 5
    wait("the level to be gone", lambda: cluster.settled() and 60 not in cluster.levels("n1", "n0"))


def test_p3_16_the_end_of_a_connection_is_no_end_of_a_program_and_its_death_is(cluster: Cluster) -> None:
    """The peers hear nothing of a program that lives without its connection; its process is this very one."""
    heard = acknowledge_in_background(cluster.joins("victim", 60, "n2"))
    cut = cluster.joins("victim", 60, "n0", deadline_s=0.2)
    acknowledge_in_background(cut)
    wait("both to have joined", lambda: 60 in cluster.levels("n2", "n0") and cluster.settled())
    cut.close()
    # of its join, too, it may have been overdue: this machine may have been busy
    alive = f"victim (level 60), process {os.getpid()}: its connection has ended, and its process lives"
    wait("it to be overdue", lambda: any(alive in event for event in cluster.events("n0", "subsystem hung")))
    wait("every node to know all there is", cluster.settled)
    assert 60 in cluster.levels("n2", "n0")
    assert about(heard, "n0") == [Kind.JOINING]
    again = cluster.joins("victim", 60, "n0")
    acknowledge_in_background(again)
    wait("its peer to hear of both", lambda: about(heard, "n0") == [Kind.JOINING, Kind.LEAVING, Kind.JOINING])
    again.deregister()
    wait("it to go", lambda: 60 not in cluster.levels("n2", "n0") and cluster.settled())
    dies = cluster.runs("-c", HOLDER, str(cluster.dev.directory), "n0", "deregister")
    wait("its peer to hear of it", lambda: about(heard, "n0")[4:] == [Kind.JOINING])
    dies.kill()
    wait("its peer to hear of its end", lambda: about(heard, "n0")[5:] == [Kind.FORCED_LEAVING])


def about(heard: list[Notification], node: str) -> list[Kind]:
    return [told.kind for told in heard if told.node == node]


def test_the_death_of_a_program_deregisters_its_level_or_fails_its_node(cluster: Cluster) -> None:
    mild = cluster.runs("-c", HOLDER, str(cluster.dev.directory), "n0", "deregister")
    strict = cluster.runs("-c", HOLDER, str(cluster.dev.directory), "n1", "fail")
    assert mild.stdout is not None and strict.stdout is not None
    assert mild.stdout.readline() == strict.stdout.readline() == "registered\n"
    assert mild.stdout.readline().startswith("told joining")  # it is never acknowledged
    wait("both to be counted with", lambda: all(60 in cluster.levels("n2", node) for node in ("n0", "n1")))
    mild.kill()
    wait("the level to go", lambda: 60 not in cluster.levels("n2", "n0"))
    (event,) = wait("the event", lambda: cluster.events("n0", "subsystem lost"))
    assert f"victim (level 60), process {mild.pid}" in event
    assert cluster.query("n2", "status")["nodes"]["n0"]["state"] == "joined"
    strict.kill()
    out = wait("its node to be out", lambda: inactive(cluster.query("n2", "nodes")["nodes"]["n1"]))
    assert "subsystem victim of level 60 has died" in out["last_proof"]["detail"] or out["last_proof"]["kind"]
    log = cluster.dev.directory / "nodes" / "n1" / "log"  # its writer is a process of its own
    wait("the log", lambda: "subsystem victim of level 60 has died" in log.read_text(errors="replace"))


def inactive(node: Any) -> Any:
    return node if node["state"] == "inactive" else None


def test_a_hung_subsystem_is_named_on_every_node_and_evicted_where_its_policy_says_so(cluster: Cluster) -> None:
    waits = cluster.joins("patient", 50, "n0", deadline_s=0.2)
    assert waits.next_notification(DEADLINE_S) is not None  # never acknowledged
    for node in NODES:
        straggler = wait(f"{node} to name it", functools.partial(hung, cluster, node))
        assert straggler == {"node": "n0", "subsystem": "patient", "deadline_ms": 200, "hung": True}
    page = cluster.dev.run("transitions", "--node", "n2", COLUMNS="160").stdout
    assert "n0 patient (hung)" in page
    assert "50 patient" in page
    assert cluster.query("n1", "status")["nodes"]["n0"]["state"] == "joined"
    waits.deregister()
    wait("the level to go", cluster.settled)
    evicts = cluster.joins("strict", 50, "n1", deadline_s=0.2, on_hang="evict", reconnect_s=0.2)
    assert evicts.next_notification(DEADLINE_S) is not None
    wait("its node to be out", lambda: inactive(cluster.query("n0", "nodes")["nodes"]["n1"]))
    with pytest.raises(Lost):
        evicts.next_notification(DEADLINE_S)


def hung(cluster: Cluster, asked: str) -> Any:
    for transition in cluster.query(asked, "transitions")["transitions"]:
        assert transition["elapsed_ms"] >= 0
        for straggler in transition["stragglers"]:
            if straggler["hung"]:
                return straggler
    return None


def test_unequal_barrier_counts_are_refused_with_both_named(cluster: Cluster) -> None:
    acknowledge_in_background(cluster.joins("cache", 60, "n0", barriers=Barriers(joining=2)))
    wait("every node to know", lambda: all(60 in cluster.levels(node, "n0") for node in NODES))
    with pytest.raises(Refused) as caught:
        register("cache", 60, directory=cluster.dev.directory, node="n1")
    assert "(1, 1, 1) on n1" in caught.value.what
    assert "(2, 1, 1) on n0" in caught.value.what
    ended = cluster.dev.run(
        "subsystem", "run", "--node", "n2", "--level", "60", "--name", "c", "--barriers-joining", "3"
    )
    assert ended.returncode == 1
    assert "(3, 1, 1) on n2" in ended.stderr
    assert "(2, 1, 1) on n0" in ended.stderr
    assert cluster.levels("n0", "n1").keys() == {40}


def test_a_registration_outlives_its_daemon_and_nothing_passes_a_program_at_work(cluster: Cluster) -> None:
    others = acknowledge_in_background(cluster.joins("cache", 60, "n0"))
    busy = cluster.joins("cache", 60, "n1", on_loss="fail")
    above = acknowledge_in_background(cluster.joins("above", 70, "n0"))
    told = until_its_own(busy)
    wait("it alone to be waited for", lambda: waited_for(cluster, "n0") == ["n1"])
    (daemon,) = daemons(cluster, "n1")
    os.kill(daemon, signal.SIGKILL)
    wait("a new daemon", lambda: daemons(cluster, "n1") not in ([], [daemon]) and cluster.query("n1", "status"))
    cluster.joins("later", 65, "n0")
    wait("the cluster to work", lambda: 65 in cluster.levels("n1", "n0"))
    wait("it alone to be waited for again", lambda: waited_for(cluster, "n0") == ["n1"])  # a new master asks anew
    assert cluster.levels("n0", "n1")[60] == "cache"
    told.acknowledge()
    wait("the join to go on", lambda: all(t["level"] != 60 for t in cluster.query("n0", "transitions")["transitions"]))
    assert [each.node for each in others] == ["n0", "n1"]  # once each
    with pytest.raises(TimeoutError):  # what was repeated to the new daemon is the same notification
        busy.next_notification(0.2)
    assert busy.incarnation == cluster.query("n0", "nodes")["nodes"]["n1"]["incarnation"]
    assert above


def until_its_own(subsystem: Subsystem) -> Notification:
    """Acknowledge what is about others; the first notification about the program's own node, not acknowledged."""
    while True:
        told = subsystem.next_notification(DEADLINE_S)
        assert told is not None
        if told.node == subsystem.node:
            return told
        told.acknowledge()


def daemons(cluster: Cluster, node: str) -> list[int]:
    """The process ids of the node's daemon: one, but for the moment of its restart."""
    found = processes_of(cluster.dev.directory / "nodes" / node)
    return [process.pid for process in found if role_of(process.pid) == "daemon"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    """One joined node, for all tests that leave it as it was."""
    dev = DevCluster(tmp_path_factory.mktemp("shared") / "cluster")
    try:
        dev.up(1)
        yield dev
    finally:
        if (dev.directory / "cluster.json").exists():
            dev.down()


@pytest.fixture
def alone(shared: DevCluster) -> Iterator[Cluster]:
    """One joined node, without programs before and after."""
    with contextlib.ExitStack() as stack:
        yield Cluster(shared, stack)
    after = Cluster(shared, contextlib.ExitStack())
    wait("its programs to go", lambda: after.levels("n0", "n0").keys() == {40} and alone_settled(after)())


def test_a_command_that_fails_is_run_again_and_acknowledges_only_when_it_succeeds(
    alone: Cluster, tmp_path: Path
) -> None:
    allowed, tries = tmp_path / "allowed", tmp_path / "tries"
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\necho $MUSTER_BARRIER >> {tries}\ntest -e {allowed}\n")
    script.chmod(0o755)
    program = alone.command(
        "subsystem", "run", "--node", "n0", "--level", "60", "--name", "slow", "--on-joining", str(script)
    )
    wait("a second attempt", lambda: tries.exists() and len(tries.read_text().splitlines()) >= 2)
    assert waited_for(alone, "n0") == ["n0"]
    allowed.touch()
    assert program.stdout is not None
    acknowledged = "n0 joining, barrier 0: acknowledged after"
    said = list(itertools.takewhile(lambda line: acknowledged not in line, program.stdout))
    wait("it to succeed", alone_settled(alone))
    program.terminate()
    assert program.wait(DEADLINE_S) == 0
    assert any(f"n0 joining, barrier 0: {script} ended with status 1; again in 0.1 s" in line for line in said)
    assert "slow: deregistered" in program.stdout.read()
    assert "slow (level 60): as it asked" in alone.events("n0", "subsystem deregistered")


def test_a_command_is_run_by_the_shell_and_a_name_may_be_left_out(alone: Cluster, tmp_path: Path) -> None:
    record = tmp_path / "record"
    command = f'cd {tmp_path} && echo "$MUSTER_KIND $MUSTER_ABOUT_NODE" >> record || exit 1'
    objects = ": it is asked; echo no $MUSTER_CHANGE of $MUSTER_ABOUT_NODE now; exit 3"
    program = alone.command(
        "subsystem", "run", "--node", "n0", "--level", "60", "--on-joining", command, "--on-planned", objects
    )
    wait("the join to be over", lambda: record.exists() and alone_settled(alone)())
    assert record.read_text() == "joining n0\n"
    assert alone.levels("n0", "n0") == {40: "event manager", 60: "level-60"}
    refused = alone.dev.run("node", "leave", "n0")
    assert refused.returncode == 1
    assert "level-60 (level 60) on n0 objects: no leave of n0 now" in refused.stderr
    program.terminate()
    said, _ = program.communicate(timeout=DEADLINE_S)
    assert program.returncode == 0
    assert "level-60: deregistered" in said


def test_a_program_that_is_ended_ends_its_command_with_everything_that_started(alone: Cluster, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\nsleep 1000 &\necho $$ $! > {pids}.new\nmv {pids}.new {pids}\nwait\n")
    script.chmod(0o755)
    words = ["--node", "n0", "--level", "60", "--name", "endless", "--on-joining", str(script)]
    program = alone.command("subsystem", "run", *words)
    started = [int(pid) for pid in wait("the command to run", lambda: pids.exists() and pids.read_text()).split()]
    assert len(started) == 2
    program.send_signal(signal.SIGINT)
    assert program.wait(DEADLINE_S) == 0
    wait("both to have ended", lambda: not any(is_running(pid) for pid in started))
    wait("nobody to wait for it", alone_settled(alone))


def alone_settled(cluster: Cluster) -> Callable[[], bool]:
    return lambda: cluster.query("n0", "transitions")["transitions"] == []


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_dead_node_s_join_is_no_longer_worked_on_when_it_is_forced_out(cluster: Cluster, tmp_path: Path) -> None:
    record = tmp_path / "record"
    stuck = tmp_path / "stuck"  # what the command does about a join of n2: it never gets on
    stuck.write_text(
        "#!/bin/sh\n"
        f'echo begin $MUSTER_KIND $MUSTER_ABOUT_NODE >> {record}\ntest "$MUSTER_ABOUT_NODE" != n2 || exec sleep 1000\n'
    )
    over = tmp_path / "over"
    over.write_text(f"#!/bin/sh\necho begin $MUSTER_KIND $MUSTER_ABOUT_NODE >> {record}\n")
    for script in (stuck, over):
        script.chmod(0o755)
    words = ["--level", "60", "--name", "layer", "--on-joining", str(stuck), "--on-forced-leaving", str(over)]
    cluster.command("subsystem", "run", "--node", "n0", *words)
    wait("it to take part", lambda: 60 in cluster.levels("n0", "n0"))
    wait("its own join to be over", cluster.settled)
    theirs = cluster.joins("layer", 60, "n2")  # its late join: the command on n0 gets stuck at it
    acknowledge_in_background(theirs)
    wait("the command to work", lambda: "begin joining n2" in record.read_text().splitlines())
    cluster.dev.succeed("dev", "kill", "n2")
    wait("n2 to be out", lambda: cluster.query("n0", "status")["nodes"]["n2"]["state"] == "inactive")
    assert "begin forced-leaving n2" in record.read_text().splitlines()


def test_a_program_that_does_not_fetch_is_offered_a_bounded_number_of_notifications() -> None:
    registration = Registration(KeptRegistration("t", Level(60, "slow"), fails=False, pid=1))
    for number in range(MAXIMUM_UNFETCHED):
        assert registration.offer({"transition": number, "barrier": 0})
    assert not registration.offer({"transition": MAXIMUM_UNFETCHED, "barrier": 0})


def test_bad_command_lines_are_refused_before_anything_is_registered(alone: Cluster) -> None:
    run = ["subsystem", "run", "--node", "n0", "--level", "60", "--name", "x"]
    cases = {
        "there is no program 'nowhere'": [*run, "--on-joining", "nowhere --at all"],
        "it is empty": [*run, "--on-leaving", " "],
        "there is no program './nowhere'": [*run, "--on-planned", "./nowhere"],
        "cannot be split into words": [*run, "--on-joining", "true 'open"],
        "is no command for /bin/sh": [*run, "--on-forced-leaving", "if true; then"],
        "is no duration": [*run, "--deadline", "30"],
        "is not in the range": [*run[:4], "--level", "0", "--name", "x"],
        "its nodes are n0": ["subsystem", "run", "--node", "n9", "--level", "60", "--name", "x"],
    }
    for words, arguments in cases.items():
        ended = alone.dev.run(*arguments)
        assert ended.returncode == 2, ended.stderr
        assert words in " ".join(ended.stderr.split())
        assert "Traceback" not in ended.stderr
    refused = alone.dev.run(*run[:4], "--level", "40", "--name", "x")
    assert refused.returncode == 1
    assert "level 40 is the event manager's" in refused.stderr
    assert alone.levels("n0", "n0").keys() == {40}


def test_transitions_can_be_watched(alone: Cluster) -> None:
    watch = alone.command("transitions", "--watch", "--json")
    assert watch.stdout is not None
    assert json.loads(watch.stdout.readline())["transitions"] == []
    holder = alone.joins("cache", 60, "n0")
    told = holder.next_notification(DEADLINE_S)
    assert told is not None
    before = lines_until(watch, lambda found: any(each["stragglers"] for each in found))
    (shown,) = before[-1]["transitions"]
    assert (shown["node"], shown["kind"], shown["level_name"], shown["barrier"]) == ("n0", "joining", "cache", 0)
    assert [straggler["subsystem"] for straggler in shown["stragglers"]] == ["cache"]
    told.acknowledge()
    after = lines_until(watch, lambda found: not found)
    for line in (each for answer in (*before, *after) for each in answer["transitions"]):
        del line["elapsed_ms"]
    assert all(one != other for one, other in itertools.pairwise((*before, *after))), "time alone adds no lines"
    watch.send_signal(signal.SIGINT)
    assert watch.wait(DEADLINE_S) == 130


def lines_until(watch: "subprocess.Popen[str]", holds: Callable[[Any], bool]) -> list[Any]:
    """The answers that a watch prints, up to the first of whose transitions this is true."""
    assert watch.stdout is not None
    found: list[Any] = []
    patience = threading.Timer(DEADLINE_S, watch.kill)  # then its output ends
    patience.start()
    try:
        while not found or not holds(found[-1]["transitions"]):
            found.append(json.loads(watch.stdout.readline()))
    finally:
        patience.cancel()
        patience.join()
    return found


APPLICATION = Level(60, "application")


def test_p3_9_a_program_that_dies_during_its_node_s_leave_no_longer_holds_it_up() -> None:
    cluster = joined_cluster(2, (APPLICATION,))
    cluster.acknowledges = lambda node, _notification: node != 1
    assert not cluster.do(1, LeaveNode("n1")).refused
    cluster.until("the leave to be at the program", lambda: cluster.is_at(1, 60, TransitionKind.LEAVING))
    cluster.run(1000)
    assert cluster.is_at(1, 60, TransitionKind.LEAVING)
    cluster.unregister(1, APPLICATION)
    cluster.until("the leave to be over", lambda: cluster.state(1) is NodeState.INACTIVE)


def test_p3_11_the_event_manager_stays_in_the_record_when_the_daemon_restarts_in_a_join_above_it() -> None:
    cluster = joined_cluster(2, (Level(30, "files"), APPLICATION))
    cluster.kill(1)
    cluster.until("n1 to be out", lambda: cluster.state(1) is NodeState.INACTIVE)
    cluster.acknowledges = lambda _node, notification: notification.level != 60
    cluster.boot(1, levels=(Level(30, "files"), APPLICATION))
    cluster.until("its join to be above", lambda: cluster.is_at(1, 60, TransitionKind.JOINING))
    before = len(cluster.moments)
    cluster.restart_daemon(1)
    cluster.run(1000)
    later = [moment for moment in cluster.moments[before:] if 1 in moment.members]
    assert later
    assert all(40 in [level.number for level in moment.members[1].levels] for moment in later)
    cluster.acknowledge_all()
    cluster.until_joined(1)


def test_a_level_that_cannot_be_taken_is_refused_without_a_trace_in_the_record() -> None:
    cluster = joined_cluster(1, (APPLICATION,))
    expected = {0: "membership", 40: "event manager", 60: "already, by application", -1: "below"}
    for number in expected:
        cluster.give(0, LevelRegistered(Level(number, "other")))
    cluster.run(200)
    assert len(cluster.refusals(0)) == len(expected)
    for reason, words in zip(cluster.refusals(0), expected.values(), strict=True):
        assert words in reason
    assert cluster.levels_in_record(0) == [40, 60]
