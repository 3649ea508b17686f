"""A development cluster for measurements: real daemons in a temporary directory, always torn down."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.announcements import Announcements, boottime_us
from bench.figures import Measurement
from muster.client.errors import ClientError
from muster.dev import node_processes
from muster.dev.development_cluster import DevelopmentCluster, create
from muster.dev.endings import undisturbed

Document = dict[str, Any]
BOOT_TIMEOUT_S = 60.0
STEP_TIMEOUT_S = 60.0
STARTED_TOGETHER = 4  # nodes of a large cluster; interpreters that start at once take each other's time
_POLL_S = 0.02

MakeCluster = Callable[[Path, int, str], DevelopmentCluster]  # where it lives, how many nodes, latency profile


class Rig:
    """One cluster with services that announce themselves."""

    def __init__(self, cluster: DevelopmentCluster, announcements: Announcements) -> None:
        self.cluster, self.announcements = cluster, announcements
        self.names = cluster.names

    def boot(self, names: list[str]) -> None:
        """Start these nodes, a few at a time, and wait until they have joined. Raises `ClientError`."""
        for position in range(0, len(names), STARTED_TOGETHER):
            together = names[position : position + STARTED_TOGETHER]
            for name in together:
                self.cluster.start(name)
            self.cluster.wait_joined(together, BOOT_TIMEOUT_S, lambda _text: None)

    def status(self) -> Document:
        """The status as a joined node says it. Raises `ClientError`."""
        return self.cluster.connection().query("status")

    def master(self) -> str:
        """The present master's name, once there is one. Raises `ClientError`."""
        self.until("a master", lambda: bool(self.status()["master"]))
        return str(self.status()["master"])

    def until(self, what: str, done: Callable[[], bool], timeout_s: float = STEP_TIMEOUT_S) -> None:
        """Wait until `done`. Raises `ClientError` when it takes too long."""
        deadline = time.monotonic() + timeout_s
        while not self._is_true(done):
            if time.monotonic() > deadline:
                where = "\n".join(f"{name}: {self.cluster.log_tail(name, 5)}" for name in self.names)
                raise ClientError(f"waited {timeout_s:g} s in vain for {what}", where, "read what the logs say")
            time.sleep(_POLL_S)

    def _is_true(self, done: Callable[[], bool]) -> bool:
        try:
            return done()
        except ClientError:
            return False  # between two masters, or on its way down

    def run_services(self, names: list[str], node: str) -> None:
        """Define these services anew, and wait until all of them run on `node`. Raises `ClientError`."""
        defined = self.status()["services"]
        if defined:
            self.cluster.connection().operate("apply", definitions=[], withdraw=list(defined))
            self.until("the old services to be forgotten", lambda: not self.status()["services"])
        self.announcements.forget()
        began_us = boottime_us()
        definitions = [self.announcements.definition(name, [node]) for name in names]
        self.cluster.connection().operate("apply", definitions=definitions, withdraw=[])
        self.await_services(names, began_us)
        self.until(f"all services to be registered on {node}", lambda: self._all_registered(names, node))

    def await_services(self, names: list[str], since_us: int) -> int:
        """When the last of these services said after `since_us` that it runs. Raises `ClientError`."""
        found = self.announcements.wait_for(names, since_us, STEP_TIMEOUT_S)
        if found is None:
            where = "\n".join(f"{name}: {self.cluster.log_tail(name, 5)}" for name in self.names)
            raise ClientError(f"waited {STEP_TIMEOUT_S:g} s in vain for {len(names)} services", where, "read the logs")
        return max(announcement.at_us for announcement in found)

    def await_registered(self, names: list[str]) -> None:
        """Wait until every service is registered somewhere. Raises `ClientError`."""
        self.until("all services to be registered", lambda: self._all_registered(names, ""))

    def _all_registered(self, names: list[str], node: str) -> bool:
        services = self.status()["services"]
        return all(
            name in services and services[name]["state"] == "registered" and node in ("", services[name]["node"])
            for name in names
        )

    def cut_power(self, name: str) -> int:
        """SIGKILL to the node's guard, then to whatever it runs; when the first one was sent. Raises `ClientError`."""
        guard = node_processes.processes_of(self.cluster.home(name))[0]
        at_us = boottime_us()
        node_processes.send(guard, signal.SIGKILL)
        self.cluster.kill(name)
        return at_us

    def timeline(self, since_index: int, since_us: int) -> list[Document]:
        """What the nodes that answer have recorded since then, in the order of time, each with its `node`."""
        events: list[Document] = []
        for name in self.cluster.running():
            try:
                answer = self.cluster.connection_to(name, 10.0).query("timeline", since=since_index)
            except ClientError:
                continue  # it has just ended
            events += [event | {"node": name} for event in answer["events"] if event["at_us"] >= since_us]
        return sorted(events, key=lambda event: int(event["at_us"]))


def development_cluster(directory: Path, nodes: int, profile: str) -> DevelopmentCluster:
    """The cluster of most measurements. Raises `ClientError`."""
    return create(directory, nodes, profile, name="bench")


@contextmanager
def rig(
    directory: Path,
    nodes: int,
    profile: str = "fast",
    *,
    boots: bool = True,
    make_cluster: MakeCluster = development_cluster,
    kind: type[Rig] = Rig,
) -> Iterator[Rig]:
    """A cluster below `directory`, with all nodes joined if it `boots`; nothing of it is left afterwards."""
    number = 1
    while (directory / f"c{number}").exists():
        number += 1
    place = directory / f"c{number}"
    place.mkdir()
    announcements = Announcements(place / "started")
    announcements.start()
    cluster: DevelopmentCluster | None = None
    try:
        cluster = make_cluster(place / "d", nodes, profile)
        made = kind(cluster, announcements)
        if boots:
            made.boot(made.names)
        yield made
    finally:
        with undisturbed():
            if cluster is not None:
                cluster.stop_everything()
                cluster.remove()
            announcements.stop()


def repeated(
    runs: int, make: Callable[[], Any], once: Callable[[Rig], None], measurement: Measurement, what: str
) -> None:
    """Carry `once` out so many times on one rig; one that fails is noted, and the others get a new rig.

    `make` returns a context manager that yields a `Rig`.
    """
    left = runs
    while left:
        left -= 1  # also of a rig that cannot be made
        try:
            with make() as made:
                once(made)
                while left:
                    left -= 1
                    once(made)
        except (ClientError, OSError, TimeoutError) as error:
            measurement.failed(f"{what}: {type(error).__name__}: {error}")


def settle(seconds: float) -> None:
    """Let pass what a change leaves behind; nothing is waited for, so nothing can be missed."""
    time.sleep(seconds)
