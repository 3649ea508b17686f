"""The daemon's side of the lock process: has it run while there are lockspaces, tells it what it needs (P12.15-P12.18).

The process is a client of the daemon. It asks on the control socket, by `query lock_manager`, for a stream of settings:
who the nodes are, whom to trust, which lockspaces there are; a line whenever that has changed. With its request it says
at which ports it listens, and daemons ask each other for them (`query lock_channels`).
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from muster.core.node.node import Node
from muster.daemon.history.gathering import Gathering
from muster.daemon.trust.trust import authorities_of, own_certificate, pin_of
from muster.drivers.certificates.certificates import CertificateRefused
from muster.drivers.runner_client import RunnerClient
from muster.records.lockspaces import RESERVED, text_of
from muster.records.names import MAXIMUM_LINKS
from muster.records.nodes import Cluster
from muster.records.refusal import ControlRefused
from muster.records.versions import DECIDERS

MODULE = "muster.daemon.locks.run"
QUESTION = "lock_channel"
HIGHEST_PORT = 65_535
FIRST_IMAGE = 4  # whose runner knows of lock processes
CARRIED = ("PYTHONPATH",)  # of this process's environment: where the release is that is at work

Document = dict[str, Any]
Changes = Callable[[], Any]  # `Daemon.changes`


class LockService:
    """Follows the setting of the cluster. `note` is the daemon's."""

    def __init__(self, node: Node, home: Path, note: Callable[[str, str], None]) -> None:
        self._node, self._home, self._note = node, home, note
        self._runner: RunnerClient | None = None
        self._wanted: bool | None = None  # whether the process was wanted; none: as below
        self._spaces: tuple[str, ...] | None = None  # as last followed; none: an earlier daemon may have followed some
        self._ports: list[int] = []  # of the process that is connected, in the order of this node's addresses
        self.is_on = asyncio.Event()  # there are lockspaces

    def start(self, runner: RunnerClient) -> None:
        """Begin, with what the record says; what an earlier daemon has begun goes on."""
        self._runner = runner
        self.follow()

    def follow(self) -> None:
        """Have the process run, or end, as the setting says (P12.15)."""
        cluster = self._node.database.cluster
        spaces, wanted = cluster.lockspaces, cluster.has_locks
        if self._runner is None or (spaces, wanted) == (self._spaces, self._wanted):
            return
        before, self._spaces = self._spaces, spaces
        wanted_before, self._wanted = self._wanted, wanted
        (self.is_on.set if spaces else self.is_on.clear)()
        image = self._node.setup.software.image
        if image < FIRST_IMAGE:  # of an earlier boot: a guard outlives an upgrade (P10.3)
            if wanted:
                self._note(
                    "locks wait", f"image {image} runs here, and locks need {FIRST_IMAGE}: leave and boot this node"
                )
            return
        if wanted or wanted_before is not False:
            silence_ms = self._node.setup.profile.restart_ms
            command = [sys.executable, "-m", MODULE, "--home", str(self._home), "--node", self._node.setup.name]
            command += ["--silence", str(silence_ms)]
            environment = {name: os.environ[name] for name in CARRIED if name in os.environ}
            self._runner.want_locks(tuple(command) if wanted else (), environment, silence_ms)
        if before is not None and before != spaces:
            self._note("lockspaces", text_of(spaces))

    # ---- what the process asks

    async def settings(self, arguments: Document, changes: Changes) -> AsyncIterator[Document]:
        """What it needs to know, at once and again whenever that has changed. Raises `ControlRefused`."""
        ports = _ports_in(arguments)
        if arguments.keys() - {"ports"} or ports is None:
            raise ControlRefused("`ports` must be those of TCP listeners", "query lock_manager", "send them, or none")
        self._ports = ports or self._ports
        told: tuple[object, ...] = ()
        with changes() as changed:
            while True:
                changed.clear()
                database = self._node.database
                now = (database.cluster, tuple(database.nodes.values()))
                if now != told:  # few changes of the replica are of these
                    told = now
                    yield self._settings()
                await changed.wait()

    def _settings(self) -> Document:
        database = self._node.database
        cluster, me = database.cluster, self._node.me
        authorities = authorities_of(database)
        try:
            certificate = own_certificate(database.nodes[me], self._home, authorities)
        except CertificateRefused:
            certificate = database.nodes[me].certificate  # who cannot use it says why
        return {
            "cluster": cluster.identity,
            "name": cluster.name,
            "node": me,
            "incarnation": self._node.incarnation,
            "profile": self._node.setup.profile._asdict(),
            "certificate": certificate,
            "authorities": authorities,
            "nodes": {
                str(each.node): {"name": each.name, "addresses": list(each.addresses), "key": pin_of(each)}
                for each in database.nodes.values()
            },
            "spaces": _spaces(cluster),
            "daemon": os.getpid(),  # who may lock in Muster's own lockspace
            "kernel_locks": cluster.kernel_locks and not self._node.setup.one_machine,
            "groups": list(cluster.groups),
        }

    # ---- where the processes of the other nodes are

    def known_here(self) -> Document:
        """What this node answers to other daemons."""
        return {"ports": self._ports, "incarnation": self._node.incarnation}

    async def channels(self, gathering: Gathering) -> Document:
        """The ports of all nodes that answer, by the node's number. No proof of anything (P12.18)."""
        answers, _unanswered = await gathering.ask(QUESTION, "")
        numbers = {config.name: config.node for config in self._node.database.nodes.values()}
        found: dict[str, list[int]] = {}
        for name, answer in answers.items():
            if (ports := _ports_in(answer)) and name in numbers:
                found[str(numbers[name])] = ports
        return {"ports": found}


def _spaces(cluster: Cluster) -> list[str]:
    own = [RESERVED] if cluster.lockspaces and cluster.active_version >= DECIDERS else []
    return [*cluster.lockspaces, *own]


def _ports_in(document: Mapping[str, object]) -> list[int] | None:
    """The ports that somebody says, 0 for one that is not there yet; None for what cannot be ports."""
    ports = document.get("ports", [])
    if not isinstance(ports, list) or len(ports) > MAXIMUM_LINKS:
        return None
    return ports if all(type(port) is int and 0 <= port <= HIGHEST_PORT for port in ports) else None
