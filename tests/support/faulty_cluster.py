"""A development cluster whose processes are killed and stopped, and whose services keep their own record.

Theory of operation. A `Fault` is a signal to some processes of one node, chosen by what they are; a stop may be
followed by a SIGCONT. After every fault `settle` waits until the cluster is whole again: it boots what has died, and
wants to see each service run by its own record, on the node that the cluster says. Whenever it looks, the record is
judged first.
"""

import contextlib
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from dev_cluster import FAST, DevCluster
from lab.exclusive_record import RecordReader
from lab.machines import SERVICE_PROGRAM, role_of
from muster.client.control import ControlClient
from muster.client.errors import ClientError
from muster.dev import node_processes
from muster.dev.development_cluster import DevelopmentCluster, open_cluster
from muster.dev.node_processes import NodeProcess
from muster.drivers.image.process_tree import read_environment, read_parents

DEADLINE_S = 90.0  # far beyond what anything here takes: other tests share the machine
ANSWER_S = 2.0
PAUSE_S = 0.02
US_PER_S = 1_000_000

# What each process of a node is, and which of them the node cannot lose or miss without ending.
CORE_ROLES = ("guard", "lease", "init", "runner")
ROLES = (*CORE_ROLES, "daemon", "keeper", "service")

Document = dict[str, Any]


class Fault(NamedTuple):
    """SIGKILL or SIGSTOP to the processes of `roles` of one node; all of them if there are none."""

    node: str
    number: signal.Signals
    roles: tuple[str, ...]
    resume_after_s: float | None = None  # for a stop: when SIGCONT follows


class Hit(NamedTuple):
    """What a fault met."""

    fault: Fault
    processes: dict[NodeProcess, str]  # everything that the node ran, and its role
    struck: list[NodeProcess]
    guard: int  # a pidfd, or -1

    @property
    def must_end_node(self) -> bool:
        """Whether nothing of the incarnation that was hit can go on."""
        struck = {self.processes[process] for process in self.struck}
        if "guard" not in self.processes.values() or not struck:
            return False
        if self.fault.number == signal.SIGKILL:
            return bool(struck & set(CORE_ROLES))
        # before its deadman is armed a node runs nothing, and may hang as long as it is stopped
        armed = "init" in self.processes.values()
        return armed and self.fault.resume_after_s is None and bool(struck & {*CORE_ROLES, "daemon"})


class FaultyCluster:
    """Nodes n0, n1, ... with services; the test's own names for what is done to them go into `told`."""

    def __init__(self, dev: DevCluster, nodes: int = 3) -> None:
        self.names = tuple(f"n{number}" for number in range(nodes))
        self.told: list[str] = []
        self._started: set[str] = set()  # nodes of which this very process started the guard
        self._dev = dev
        self._folder = dev.directory.with_name("services")
        self._folder.mkdir()
        self.record = RecordReader(self._folder / "record")
        self.services: tuple[str, ...] = ()
        self.hurt: set[str] = set()  # services of which a fault may have ended a process, or failed a command
        self.cluster: DevelopmentCluster

    def up(self, *options: str) -> None:
        """Bring it up, with its services applied; hasty, unless `options` name another profile."""
        definitions = self._folder / "services.toml"
        definitions.write_text(self._definitions())
        self._dev.up(len(self.names), *FAST, *options, "--services", str(definitions))
        self.cluster = open_cluster(self._dev.directory)

    def _definitions(self) -> str:
        tables = []
        acts = ["act", "100"]
        for name, forms, stop, recovery in (
            ("plain", ["plain"], [], []),
            ("daemon", ["daemon"], ["act", "20"], []),
            ("parent", ["parent"], [], ["act", "50"]),
            ("slow", ["slow", "250"], acts, []),
        ):
            self.services += (name,)
            commands = {"start": forms, "stop": stop, "recovery": recovery}
            lines = [f"{kind}_command = {self._command(words)}" for kind, words in commands.items() if words]
            tables.append("\n".join(("[[service]]", f'name = "{name}"', *lines)))
        return "\n\n".join(tables) + "\n"

    def _command(self, words: list[str]) -> str:
        program = [sys.executable, "-I", "-S", "-B", str(SERVICE_PROGRAM), words[0]]
        return str([*program, str(self._folder / "record"), str(self._folder), *words[1:]])

    def close(self) -> None:
        """End everything, whatever has become of it, and let go of all that is held."""
        self.record.close()
        if (self._dev.directory / "cluster.json").exists():
            cluster = open_cluster(self._dev.directory)
            self._dev.down()
            for name in self.names:
                assert not node_processes.processes_of(cluster.home(name)), f"{name} has survived `dev down`"
                if hasattr(self, "cluster"):
                    self.cluster.ended(name)  # reaps what was started here

    # ---- looking -------------------------------------------------------------------------------------------------

    def client(self, name: str, timeout_s: float = ANSWER_S) -> ControlClient:
        """A client of one node."""
        return ControlClient(self.cluster.socket(name), timeout_s)

    def views(self) -> dict[str, Document]:
        """The status as each node that answers sees it."""
        found = {}
        for name in self.names:
            with contextlib.suppress(ClientError):
                found[name] = self.client(name).query("status")
        return found

    def processes(self, name: str) -> dict[NodeProcess, str]:
        """Everything that a node runs, and what it is."""
        found = node_processes.processes_of(self.cluster.home(name))
        roles = {process: role_of(process.pid) for process in found}
        pids = {process.pid for process in found}
        for process, role in roles.items():
            if role == "guard" and process.parent in pids:
                roles[process] = "other"  # has only just been forked, and will be something else
        return roles

    def wait(self, what: str, probe: Any, deadline_s: float = DEADLINE_S) -> Any:
        """The first truthy value of `probe`; the record is judged before each look."""
        deadline = time.monotonic() + deadline_s
        while True:
            self.record.read()
            if value := probe():
                return value
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {deadline_s} s: {what}\n{self.describe()}")
            time.sleep(PAUSE_S)

    def node_of(self, service: str) -> str:
        """Where a service runs now, by its record."""
        newest = self.record.judge.newest(service)
        assert newest is not None, f"{service} has never run"
        return newest.node

    def describe(self) -> str:
        """Everything that helps to find the cause of a failure."""
        parts = ["what was done:", *self.told[-12:]]
        for name in self.names:
            listed = [f"{role} {process.pid} {process.state}" for process, role in self.processes(name).items()]
            try:
                seen: object = self.client(name, 2.0).query("status")
            except ClientError as error:
                seen = error
            parts += [f"--- {name}: {', '.join(listed)}", str(seen), self.cluster.log_tail(name, 40)]
        newest = {service: self.record.judge.newest(service) for service in self.services}
        return "\n".join([*parts, f"--- record: {newest}", f"now {now_us()}"])

    # ---- faults --------------------------------------------------------------------------------------------------

    def strike(self, fault: Fault) -> Hit:
        """Send the fault's signal to what the node runs now."""
        processes = self.processes(fault.node)
        found = [process for process, role in processes.items() if not fault.roles or role in fault.roles]
        guards = [process.pid for process, role in processes.items() if role == "guard"]
        handle = -1
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(guards[0]) if guards else -1
        struck = [process for process in found if node_processes.send(process, fault.number)]
        if {processes[process] for process in struck} & {"keeper", "service"}:
            self.hurt |= set(self.services)
        self.told.append(f"{now_us()}: {fault}: {[(processes[one], one.pid) for one in struck]}")
        return Hit(fault, processes, struck, handle)

    def resume(self, hit: Hit) -> None:
        """SIGCONT to what a fault has stopped, as far as it still exists."""
        for process in hit.struck:
            node_processes.send(process, signal.SIGCONT)
        self.told.append(f"{now_us()}: {hit.fault.node}: SIGCONT")

    def await_end(self, hit: Hit) -> None:
        """Where the fault must end the node: wait until nothing of what it met is left."""
        try:
            if hit.must_end_node:
                self.wait(f"the end of {hit.fault.node} by {hit.fault}", lambda: has_ended(hit.guard))
                self.assert_nothing_is_left(hit)
        finally:
            if hit.guard >= 0:
                os.close(hit.guard)

    def assert_nothing_is_left(self, hit: Hit) -> None:
        """Everything that the node ran when it was hit has ended (SPEC 7.1)."""

        def none_left() -> bool:
            return not any(is_same(process) for process in hit.processes)

        self.wait(f"the end of every process of {hit.fault.node}: {hit.processes}", none_left)

    def assert_no_strays(self, name: str) -> None:
        """All that carries the node's mark comes to descend from one guard, and to be of one incarnation (SPEC 7.1).

        Not at once: a node that ends or begins just now has processes that are nothing yet, or not any more.
        """
        self.wait(f"{name} to have no processes of an earlier life", lambda: self._is_one_life(name))

    def _is_one_life(self, name: str) -> bool:
        parents = read_parents()
        processes = self.processes(name)
        guards = {process.pid for process, role in processes.items() if role == "guard"}
        incarnations = set()
        for process in processes:
            pid = process.pid
            incarnation = read_environment(pid).get(b"MUSTER_INCARNATION")
            while pid and pid not in guards:
                pid = parents.get(pid, 0)
            if not pid:
                return False
            if incarnation is not None:
                incarnations.add(incarnation)
        return max(len(guards), len(incarnations)) <= 1

    # ---- recovery ------------------------------------------------------------------------------------------------

    def boot(self, name: str) -> bool:
        """Start a node if nothing of it runs; whether it was started."""
        if name in self._started and self.cluster.ended(name) is None:
            return False  # its guard may be on its way out, when it shows nothing any more
        if node_processes.is_running(self.cluster.home(name)):
            return False
        self.cluster.start(name)
        self._started.add(name)
        self.told.append(f"{now_us()}: boot {name}")
        return True

    def boot_what_is_down(self, views: dict[str, Document]) -> None:
        """Start every node that neither answers nor runs."""
        for name in self.names:
            if name not in views:
                self.boot(name)

    def settle(self, *, whole: bool = True) -> dict[str, Document]:
        """Boot what is down, until every service runs; `whole`: and all nodes are joined and agree. What they say."""
        since_us = now_us()

        def settled() -> dict[str, Document] | None:
            views = self.views()
            self.boot_what_is_down(views)
            joined = {name: view for name, view in views.items() if view["node_state"] == "joined"}
            if not joined:
                return None
            newest = max(joined.values(), key=lambda view: int(view["index"]))
            self._mend(newest, next(name for name, view in joined.items() if view is newest))
            if not all(self.runs(service, newest, since_us) for service in self.services):
                return None
            if whole and not (len(joined) == len(self.names) and agree(joined)):
                return None
            return views

        found: dict[str, Document] = self.wait("the cluster to settle", settled)
        self.hurt.clear()
        return found

    def runs(self, service: str, view: Document, since_us: int) -> bool:
        """Whether a service is registered, and its record shows that it runs there, after `since_us`."""
        state = view["services"][service]
        newest = self.record.judge.newest(service)
        return (
            newest is not None
            and state["state"] == "registered"
            and not state["flags"]
            and newest.holder == (state["node"], view["nodes"][state["node"]]["incarnation"])
            and newest.time_us > since_us
        )

    def _mend(self, view: Document, node: str) -> None:
        """Do what an operator would for a service that a fault itself has ended or whose command it has failed."""
        for service in sorted(self.hurt):
            state = view["services"][service]
            newest = self.record.judge.newest(service)
            silent = newest is None or now_us() - newest.time_us > US_PER_S
            if state["state"] == "stopping" and state["cause"]:
                self.operate(node, "deregister", service=service)
            elif state["state"] == "de-registered" and (state["cause"] or not state["wanted"]):
                self.operate(node, "register", service=service)
            elif state["state"] == "registered" and not state["flags"] and silent:
                self.operate(node, "deregister", service=service)

    def operate(self, node: str, operation: str, /, **arguments: object) -> str:
        """Ask for an operation; what became of it, also when it was refused or nobody could answer."""
        try:
            outcome = str(self.client(node, 2.0).operate(operation, **arguments)["outcome"])
        except ClientError as error:
            outcome = error.what
        self.told.append(f"{now_us()}: {operation} {arguments} at {node}: {outcome}")
        return outcome


def agree(views: dict[str, Document]) -> bool:
    """Whether all views show the same cluster."""
    return len({str(outline(view)) for view in views.values()}) == 1


def outline(view: Document) -> Document:
    """What all nodes must agree on: a status without what each node sees for itself."""
    nodes = {name: (node["state"], node["incarnation"], node["services"]) for name, node in view["nodes"].items()}
    same = {key: view[key] for key in ("cluster", "index", "epoch", "master", "term")}
    # since when something is so, each node tells by its own clock, and from when it heard of it
    told = {name: service | {"since_s": 0, "failures": None} for name, service in view["services"].items()}
    return same | {"nodes": nodes, "services": told}


def now_us() -> int:
    """CLOCK_BOOTTIME in microseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


def is_same(process: NodeProcess) -> bool:
    """Whether this very process still lives."""
    now = node_processes._process(process.pid)
    return now is not None and now.started == process.started


def has_ended(handle: int) -> bool:
    """Whether the process of a pidfd has ended."""
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(0))


Kind = TypeVar("Kind", bound=FaultyCluster)


@contextlib.contextmanager
def running_cluster(kind: type[Kind], nodes: int = 3, *options: str) -> Iterator[Kind]:
    """A cluster with its services running; afterwards its record is judged to the end, and nothing of it is left."""
    with tempfile.TemporaryDirectory(prefix="muster-test-", ignore_cleanup_errors=True) as folder:
        cluster = kind(DevCluster(Path(folder) / "cluster"), nodes)
        try:
            cluster.up(*options)
            cluster.settle()
            yield cluster
            cluster.settle()
        finally:
            cluster.close()


def faulty_cluster(nodes: int = 3, *options: str) -> AbstractContextManager[FaultyCluster]:
    """A running cluster with services of four forms, each by itself."""
    return running_cluster(FaultyCluster, nodes, *options)
