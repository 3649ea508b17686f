"""The cluster under study: its services and programs, what its nodes say, and bringing it to rest (SPEC 2.4, 6.9).

After the last fault the cluster must come to rest by itself, with what any operator's machines do for it: a node that
has ended is started again, and a service that says that it is stuck is registered again.
"""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from lab.exclusive_record import RecordReader
from lab.programs import LEVELS
from muster.client.control import ControlClient
from muster.client.errors import ClientError
from muster.setup.nodes import Connection

ANSWER_S = 0.5
PAUSE_S = 0.05
BOOT_PAUSE_S = 0.5  # between two attempts to boot one node
US_PER_S = 1_000_000
SERVICE_PERIOD_MS = 20
_DEFECT = "the daemon has failed"  # what a guard logs when the daemon met what it cannot be in

Document = dict[str, Any]


def now_us() -> int:
    """CLOCK_BOOTTIME in microseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


class Studied(Protocol):
    """What a cluster under study is asked: processes in namespaces, or whole machines."""

    names: list[str]

    @property
    def service_program(self) -> Sequence[str]:
        """The words that run `exclusive_service.py` on a node."""

    def connection(self, timeout_s: float = ...) -> Connection:
        """A connection to whichever node answers."""

    def states(self) -> dict[str, str]:
        """The state of each node, as any of them tells it."""

    def socket(self, name: str) -> Path:
        """A node's control socket."""

    def log(self, name: str) -> Path:
        """A node's log."""

    def log_tail(self, name: str, lines: int = ...) -> str:
        """The end of it."""

    def ended(self, name: str) -> int | None:
        """The status with which its guard has ended; None while it is on its way out."""

    def runs(self, name: str) -> bool:
        """Whether the node runs anything, or somebody else starts it."""

    def start(self, name: str) -> None:
        """Boot a node that runs nothing."""

    def describe(self, name: str) -> str:
        """What it runs, in words."""


class Doing(Protocol):
    """What a patient knows of the faults that strike it."""

    services: list[str]  # those that may be moved
    hurt: bool  # a fault may have ended a service, or failed a command


class Patient:
    """The cluster, its services, and their record."""

    def __init__(self, cluster: Studied, faults: Doing, record: Path, definitions: list[Document]) -> None:
        self.cluster, self.faults = cluster, faults
        self.record = RecordReader(record)
        self.definitions = definitions
        self.services = [str(definition["name"]) for definition in self.definitions]
        faults.services = [name for name in self.services if not name.startswith("witness")]
        self.boots = 0
        self.mended: list[str] = []
        self._booted_s: dict[str, float] = {}
        self._log_offsets: dict[str, int] = {}

    def apply_services(self) -> None:
        """Define all services. Raises `ClientError`."""
        self.cluster.connection().operate("apply", definitions=self.definitions, withdraw=[])

    # ---- looking -------------------------------------------------------------------------------------------------

    def views(self) -> dict[str, Document]:
        """The status as each node that answers sees it."""
        found = {}
        for name in self.cluster.names:
            with contextlib.suppress(ClientError):
                found[name] = ControlClient(self.cluster.socket(name), ANSWER_S).query("status")
        return found

    def boot_what_has_ended(self, *, but: set[str] | None = None) -> None:
        """Start every node that runs nothing, but these."""
        now_s = time.monotonic()
        for name in self.cluster.names:
            if name in (but or ()) or now_s - self._booted_s.get(name, 0.0) < BOOT_PAUSE_S:
                continue
            if name in self._booted_s and self.cluster.ended(name) is None:
                continue  # its guard may be on its way out, when it shows nothing any more
            if not self.cluster.runs(name):
                self.cluster.start(name)
                self._booted_s[name] = now_s
                self.boots += 1

    def boot_all(self, deadline_s: float) -> None:
        """Boot all nodes, and wait until they have joined; one that gives up on a busy machine is booted again.

        Raises `ClientError`.
        """
        deadline = time.monotonic() + deadline_s
        while any(self.cluster.states().get(name) != "joined" for name in self.cluster.names):
            self.boot_what_has_ended()
            if time.monotonic() > deadline:
                what = f"not all nodes have joined within {deadline_s:g} s"
                raise ClientError(what, self.describe(), "read what the logs say; is the machine overloaded?")
            time.sleep(PAUSE_S)

    def defects(self) -> list[str]:
        """New lines of the nodes' logs that tell of an invariant that did not hold."""
        found = []
        for name in self.cluster.names:
            with contextlib.suppress(FileNotFoundError), self.cluster.log(name).open("rb") as file:
                file.seek(self._log_offsets.get(name, 0))
                data = file.read()
                whole = data.rfind(b"\n") + 1
                self._log_offsets[name] = self._log_offsets.get(name, 0) + whole
                lines = data[:whole].decode(errors="replace").splitlines()
                found += [f"{name}: {line}" for line in lines if _DEFECT in line]
        return found

    def describe(self) -> str:
        """Everything that helps to find the cause of what is wrong."""
        parts = []
        for name in self.cluster.names:
            try:
                seen: object = ControlClient(self.cluster.socket(name), 2.0).query("status")
            except ClientError as error:
                seen = error
            parts += [f"--- {name}: {self.cluster.describe(name)}", str(seen), self.cluster.log_tail(name, 40)]
        newest = {service: self.record.judge.newest(service) for service in self.services}
        return "\n".join([*parts, f"--- record: {newest}", f"now {now_us()}"])

    # ---- rest ----------------------------------------------------------------------------------------------------

    def rest(self, deadline_s: float) -> dict[str, Document] | None:
        """Wait until the cluster is at rest: what its nodes say then; None after `deadline_s`.

        Raises `exclusive_record.Violation`.
        """
        deadline = time.monotonic() + deadline_s
        since_us = now_us()
        while True:
            self.record.read()
            self.boot_what_has_ended()
            views = self.views()
            if not self._missing(views, since_us):
                self.faults.hurt = False
                return views
            if time.monotonic() > deadline:
                return None
            time.sleep(PAUSE_S)

    def _missing(self, views: dict[str, Document], since_us: int) -> str:
        """What is not yet as it must be at rest, or nothing."""
        joined = {name: view for name, view in views.items() if view["node_state"] == "joined"}
        if joined:
            newest = max(joined, key=lambda name: int(joined[name]["index"]))
            self._mend(joined[newest], newest)
        if set(joined) != set(self.cluster.names):
            return "not all nodes have joined"
        if len({str(_outline(view)) for view in joined.values()}) != 1:
            return "the nodes do not agree"
        view = next(iter(joined.values()))
        if view["master"] is None or view["transitions"]:
            return "there is no master, or a transition is at work"
        if any(set(LEVELS) - {level["level"] for level in found["levels"]} for found in self._nodes().values()):
            return "not all programs have registered"
        silent = [service for service in self.services if not self._runs(service, view, since_us)]
        return f"{silent[0]} does not run" if silent else ""

    def _nodes(self) -> Document:
        try:
            found: Document = self.cluster.connection(ANSWER_S).query("nodes")["nodes"]
        except ClientError:
            return {"": {"levels": []}}
        return found

    def _runs(self, service: str, view: Document, since_us: int) -> bool:
        """Whether a service is registered, and its record shows that it runs there, after `since_us`."""
        state = view["services"].get(service)
        newest = self.record.judge.newest(service)
        return (
            newest is not None
            and state is not None
            and state["state"] == "registered"
            and not state["flags"]
            and newest.holder == (state["node"], view["nodes"][state["node"]]["incarnation"])
            and newest.time_us > since_us
        )

    def _mend(self, view: Document, node: str) -> None:
        """What an operator does for a service that says that it is stuck, or that a fault itself has ended."""
        for service, state in view["services"].items():
            newest = self.record.judge.newest(service)
            silent = newest is None or now_us() - newest.time_us > US_PER_S
            if state["state"] == "stopping" and state["cause"]:
                operation = "deregister"
            elif state["state"] == "de-registered" and (state["cause"] or not state["wanted"]):
                operation = "register"
            elif self.faults.hurt and state["state"] == "registered" and not state["flags"] and silent:
                operation = "deregister"
            else:
                continue
            self.mended.append(f"{operation} {service}: {state['state']}, {state['cause'] or 'silent or unwanted'}")
            with contextlib.suppress(ClientError):
                ControlClient(self.cluster.socket(node), 2.0).operate(operation, service=service)


def _outline(view: Document) -> Document:
    """What all nodes must agree on: a status without what each node sees for itself."""
    nodes = {name: (node["state"], node["incarnation"], node["services"]) for name, node in view["nodes"].items()}
    same = {key: view[key] for key in ("cluster", "index", "epoch", "master", "term")}
    # since when something is so, each node tells by its own clock, and from when it heard of it
    told = {name: service | {"since_s": 0, "failures": None} for name, service in view["services"].items()}
    return same | {"nodes": nodes, "services": told}


def definitions(names: list[str], program: Sequence[str], record: Path, locks: Path) -> list[Document]:
    """Services of all forms that may run anywhere, and on each node a witness that only it may run.

    `program` runs `exclusive_service.py` on a node; the paths are those that the node sees.
    """

    def command(*words: str) -> list[str]:
        period = f"EXCLUSIVE_PERIOD_MS={SERVICE_PERIOD_MS}"
        return ["/usr/bin/env", period, *program, words[0], str(record), str(locks), *words[1:]]

    found: list[Document] = [
        {"name": "plain", "start_command": command("plain"), "stop_command": command("act", "100")}
    ]
    found += [
        {"name": "daemon", "start_command": command("daemon"), "stop_command": command("act", "20"), "grace_ms": 200},
        {"name": "parent", "start_command": command("parent"), "recovery_command": command("act", "50")},
        {"name": "slow", "start_command": command("slow", "250")},
    ]
    found += [
        {"name": f"witness-{name}", "start_command": command("plain"), "allowable_nodes": [name]} for name in names
    ]
    return found
