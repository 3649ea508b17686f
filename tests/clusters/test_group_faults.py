"""Groups of services on real daemons: whatever a node suffers while they start, stop and move, none runs twice, none is
lost, and children run only where and while their parent does (SPEC 6.5, 6.7, 7.1; P6.27).

The services keep their own record (`lab/exclusive_service.py`); it alone is judged.

    MUSTER_GROUP_ROUNDS   how many random rounds, in all parts together [6; `.ci/run`: 20; `make soak`: 200]
    MUSTER_FAULT_SEED     an integer, to repeat the choices of a run; a failure prints it
"""

import os
import random
import signal
import time
from collections.abc import Iterable, Iterator

import pytest

from dev_cluster import DevCluster
from faulty_cluster import Fault, FaultyCluster, running_cluster
from lab.exclusive_record import Judge, Line, Violation

ROUNDS = int(os.environ.get("MUSTER_GROUP_ROUNDS", "4"))
PARTS = 2
SEED = int(os.environ.get("MUSTER_FAULT_SEED") or int.from_bytes(os.urandom(4), "little"))
PARENTS = {"database": "disk", "web": "database", "mail": "database", "backup": "disk"}


class GroupJudge(Judge):
    """As `Judge`; and a child begins where its parent runs, and says nothing once its parent begins to stop."""

    def take(self, lines: Iterable[Line]) -> None:
        """Judge the next lines. Raises `Violation`."""
        for line in lines:
            known = self.is_known(line)
            super().take([line])
            parent = PARENTS.get(line.service)
            if line.action != "start" or parent is None:
                continue
            newest = self.newest(parent)
            if not known and (newest is None or newest.holder != line.holder):
                raise Violation(f"{line.service} begins without its parent {parent}:\n  {line}\nparent:\n  {newest}")
            stopped = self.stopping(parent)
            if stopped is not None and stopped.holder == line.holder and stopped.generation > line.generation:
                raise Violation(f"{line.service} runs after its parent began to stop:\n  {stopped}\nthen\n  {line}")


class GroupedCluster(FaultyCluster):
    """Three nodes with one group of three generations."""

    def __init__(self, dev: DevCluster, nodes: int = 3) -> None:
        super().__init__(dev, nodes)
        self.record.judge = GroupJudge()

    def _definitions(self) -> str:
        tables = []
        acts = ["act", "30"]
        for name, form, parent in (
            ("disk", "plain", ""),
            ("database", "daemon", "disk"),
            ("web", "plain", "database"),
            ("mail", "slow", "database"),
            ("backup", "plain", "disk"),
        ):
            self.services += (name,)
            start = [form, "150"] if form == "slow" else [form]
            lines = [f"{kind}_command = {self._command(words)}" for kind, words in (("start", start), ("stop", acts))]
            lines += [f'parent = "{parent}"'] if parent else [f"recovery_command = {self._command(acts)}"]
            tables.append("\n".join(("[[service]]", f'name = "{name}"', *lines)))
        return "\n\n".join(tables) + "\n"


@pytest.fixture(scope="module")
def grouped() -> Iterator[GroupedCluster]:
    """The cluster, through all rounds: what one has left, the next one has to live with."""
    with running_cluster(GroupedCluster) as running:
        yield running


def one_round(cluster: FaultyCluster, choices: random.Random) -> None:
    """Something under way for the group, a random moment, and a node that is killed, hung or asked to leave."""
    nodes = list(cluster.names)
    choices.shuffle(nodes)
    under_way = choices.random()
    if under_way < 0.4:
        cluster.operate(nodes[0], "transfer", service="disk")
    elif under_way < 0.6:
        cluster.operate(nodes[0], "deregister", service="disk")
        cluster.operate(nodes[0], "register", service="disk")
    elif under_way < 0.75:
        cluster.operate(nodes[0], "restart", service=choices.choice(("disk", "database", "web")))
    elif under_way < 0.9:
        cluster.operate(nodes[0], "leave", node=choices.choice(nodes))
    time.sleep(choices.uniform(0.0, 0.8))
    what = choices.choice(("kill", "kill", "hang", "leave"))
    if what == "leave":
        cluster.operate(nodes[1], "leave", node=nodes[2])
    else:
        number = signal.SIGKILL if what == "kill" else signal.SIGSTOP
        hit = cluster.strike(Fault(nodes[2], number, ()))
        if what == "hang" and not hit.must_end_node:
            cluster.resume(hit)  # it had not come so far that anything would end it
        cluster.await_end(hit)
    cluster.settle(whole=choices.random() < 0.5)


@pytest.mark.random_faults
@pytest.mark.parametrize("part", range(PARTS))
def test_p6_27_a_group_runs_once_and_in_order_whatever_its_nodes_suffer(grouped: GroupedCluster, part: int) -> None:
    print(f"to repeat these choices: MUSTER_FAULT_SEED={SEED}")
    choices = random.Random(f"{SEED} groups {part}")
    grouped.settle()
    for number in range(part, ROUNDS, PARTS):
        grouped.told.append(f"round {number} of seed {SEED}")
        one_round(grouped, choices)
    grouped.settle()


def line(service: str, action: str, generation: int, instance: str, node: str = "n0") -> Line:
    """A line as the record has them, each later than the last."""
    return Line(generation * 1000, service, instance, node, 1, generation, 1, action, 9, "begins")


def test_the_judge_of_groups_sees_a_child_without_its_parent_and_one_that_outlives_its_stop() -> None:
    judge = GroupJudge()
    judge.take([line("disk", "start", 1, "a"), line("database", "start", 2, "b")])
    with pytest.raises(Violation, match="without its parent"):
        judge.take([line("backup", "start", 3, "c", "n1")])
    judge.take([line("disk", "stop", 4, "d")])
    with pytest.raises(Violation, match="after its parent began to stop"):
        judge.take([line("database", "start", 2, "b")._replace(time_us=9000, event="runs")])
