"""The lab's cluster: real nodes, each in its own network and mount namespace, each with its own way to the store.

The store is one file in memory that all daemons share (scope `host`: they share this kernel); each reaches it through
a file of its own that can fail (`faulty_store.py`). A node's services live in the PID namespace that its guard makes.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from lab.network import Network, namespace
from muster.client.errors import ClientError
from muster.dev import node_processes
from muster.dev.development_cluster import NODES_FOLDER, STORE_BYTES_PER_SLOT, STORE_FILE, DevelopmentCluster
from muster.dev.node_processes import NodeProcess
from muster.drivers.image.process_tree import read_command_line, read_name
from muster.setup.initialisation import ClusterPlan, NodePlan, initialise
from muster.setup.nodes import CLUSTER_FILE

ROOT = Path(__file__).parents[1]
MEMORY = Path("/run")  # a file system in memory, the sandbox's own
READY_S = 10.0
SLOTS = 16
ROLES = ("guard", "lease", "init", "runner", "daemon", "keeper", "service")
SERVICE_PROGRAM = Path(__file__).with_name("exclusive_service.py")

Document = dict[str, Any]


class NodeStore:
    """One node's way to the store, through its own FUSE server."""

    def __init__(self, path: Path, backing: Path) -> None:
        """Raises `OSError` where it cannot be mounted."""
        self.path = path
        command = [sys.executable, "-m", "lab.faulty_store", str(path), str(backing)]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True
        )  # Ctrl-C is for the lab, which ends this one last
        assert self._server.stdout is not None
        if self._server.stdout.readline() != b"ready\n":
            raise OSError(f"the store cannot be mounted at {path}")

    def set(self, mode: str) -> None:
        """Give the server a command, as `faulty_store.py` lists them. Raises `OSError` if it has ended."""
        assert self._server.stdin is not None
        self._server.stdin.write(f"{mode}\n".encode())
        self._server.stdin.flush()

    def close(self) -> None:
        """End the server; what still waits for the store fails."""
        if self._server.poll() is None:
            self._server.kill()
        self._server.wait()
        subprocess.run(["umount", "--lazy", str(self.path)], check=False)
        for pipe in (self._server.stdin, self._server.stdout):
            assert pipe is not None
            pipe.close()


class LabCluster(DevelopmentCluster):
    """A cluster in the sandbox; made by `make_cluster`."""

    def __init__(self, directory: Path, described: Document, network: Network, environment: dict[str, str]) -> None:
        super().__init__(directory, described)
        self.network = network
        self.stores: dict[str, NodeStore] = {}
        self._environment = environment

    def start(self, name: str) -> None:
        """Start a node in its namespaces. Raises `ClientError` if it runs already, or cannot be started."""
        home = self.home(name)
        if found := node_processes.processes_of(home):
            raise ClientError(f"{name} already runs, as process {found[0].pid}", str(home), "end it first")
        store = self.stores[name].path if name in self.stores else self.directory / STORE_FILE
        command = ["ip", "netns", "exec", namespace(name), sys.executable, "-m", "muster.daemon.main"]
        command += ["--store", str(store), "--node", name, "--home", str(home)]
        environment = os.environ | self._environment | {node_processes.COOKIE: str(home)}
        with self.log(name).open("ab") as log:
            self._children[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def cut_power(self, name: str) -> None:
        """The link goes down, then everything that the node runs is killed, its guard first. Raises `ClientError`."""
        self.network.cut(name)
        self.kill(name)
        self.network.join(name)

    @property
    def service_program(self) -> list[str]:
        """The words that run `exclusive_service.py` on a node."""
        return [sys.executable, "-I", "-S", "-B", str(SERVICE_PROGRAM)]

    def runs(self, name: str) -> bool:
        """Whether the node runs anything."""
        return node_processes.is_running(self.home(name))

    def describe(self, name: str) -> str:
        """What it runs, in words."""
        return ", ".join(f"{role} {process.pid} {process.state}" for process, role in self.processes(name).items())

    def processes(self, name: str) -> dict[NodeProcess, str]:
        """Everything that a node runs, and what it is, one of `ROLES` or `other`."""
        return {process: role_of(process.pid) for process in node_processes.processes_of(self.home(name))}

    def strike(self, name: str, number: signal.Signals, roles: tuple[str, ...]) -> list[NodeProcess]:
        """Send a signal to the processes of a node with these roles, all of them if none is named; who got it."""
        found = [process for process, role in self.processes(name).items() if not roles or role in roles]
        return [process for process in found if node_processes.send(process, number)]

    def guard_record(self, name: str) -> Document:
        """What the node's guard has written of itself; empty if it cannot be read."""
        try:
            found = json.loads((self.home(name) / node_processes.GUARD_FILE).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def remove(self) -> None:
        """As of every development cluster; the network goes too."""
        super().remove()
        self.network.remove()

    def close(self) -> None:
        """End everything, whatever has become of it."""
        for store in self.stores.values():
            store.close()  # a process that waits for a hung store could not be killed
        for name in self.names:
            self.kill(name)


def role_of(pid: int) -> str:
    """What a process of a node is: by its name, or before it has one by its command line."""
    name = read_name(pid)
    if name.startswith("muster-"):
        return name.removeprefix("muster-")
    words = read_command_line(pid)
    if b"muster.drivers.guard" in words or b"muster.daemon.main" in words:
        return "guard"  # it has only just been started
    if b"muster.daemon.run" in words:
        return "daemon"
    return "service" if os.fsencode(SERVICE_PROGRAM) in words else "other"


def make_cluster(
    directory: Path, nodes: int, profile: str, environment: dict[str, str], *, faulty_stores: bool = True
) -> LabCluster:
    """Network, store and keys of a cluster n0, n1, ..., none of which runs. `environment` is added to the nodes'.

    Without `faulty_stores` all daemons open the one file itself, as in a development cluster. Raises `OSError` or
    `ClientError`.
    """
    names = [f"n{number}" for number in range(nodes)]
    network = Network(names)
    network.make()
    plan = tuple(NodePlan(name, (network.address(name),)) for name in names)
    described: Document = {
        "format": 1,
        "name": "lab",
        "profile": profile,
        "made_directories": [],
        "nodes": [{"name": node.name, "address": node.addresses[0]} for node in plan],
    }
    (directory / CLUSTER_FILE).write_text(json.dumps(described, indent=2))
    backing = (MEMORY if faulty_stores else directory) / STORE_FILE
    initialise(
        backing,
        ClusterPlan("lab", plan, profile, "host", SLOTS, SLOTS * STORE_BYTES_PER_SLOT),
        directory / NODES_FOLDER,
    )
    cluster = LabCluster(directory, described, network, environment)
    if faulty_stores:
        for name in names:
            cluster.stores[name] = NodeStore(cluster.home(name) / STORE_FILE, backing)
    return cluster
