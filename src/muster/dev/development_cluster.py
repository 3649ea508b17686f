"""A cluster of real daemons on this machine, all of it under one directory (SPEC 8.3).

    DIR/cluster.json     what this is: names and addresses; also the claim of the directory
    DIR/store            the store, scope `host` if nothing else is asked for
    DIR/nodes/authority  the cluster's authority
    DIR/nodes/n0/        home of a node: key.pem, certificate.pem, control.sock, log, guard.json, lock ...

A node is started in a session of its own, so that it outlives the command that started it. Whether it runs is found
from processes, never from files: a file may be left from a power cut (`node_processes`).
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import SystemRandom
from typing import Any

from muster.client.errors import ClientError, Unreachable
from muster.core import boot_advice
from muster.dev import node_processes
from muster.drivers.store.disk.geometry import DEFAULT_SLOTS
from muster.records.nodes import DEFAULT_CERTIFICATE_LIFETIME_S
from muster.setup.errors import Mistaken
from muster.setup.initialisation import ClusterPlan, NodePlan, initialise
from muster.setup.log_end import is_log_file, last_lines
from muster.setup.nodes import (
    CLUSTER_FILE,
    PROBE_TIMEOUT_S,
    SOCKET_FILE,
    Connection,
    Document,
    absolute,
    command_about,
    development_homes,
    unknown_node,
)

LOG_FILE = "log"
STORE_FILE = "store"
NODES_FOLDER = "nodes"
LOOPBACK = "127.0.0.1"
MAXIMUM_NODES = 40
STORE_BYTES_PER_SLOT = 4 * 1024 * 1024  # room for some hundred services, and small journals are adopted quickly
STORE_BYTES_PER_NODE = 64 * 1024  # in each slot: every journal holds what all nodes may grow to, and services besides
LOG_TAIL_LINES = 15
GRACE_S = 3.0  # from SIGQUIT to SIGKILL
ENDING_S = 3.0  # until the last processes of a node that has left have ended
KILL_TIMEOUT_S = 10.0
_POLL_S = 0.03
_LOWEST_PORT = 10_000
_PASS = 0o011  # through a directory, for group and others
_PRIVATE = 0o600

Progress = Callable[[str], None]


_STRONGER = "allow this user PID namespaces (kernel.unprivileged_userns_clone=1), or be the superuser"
_TIES = {  # deadman, and whether there is a control group, as the guard records them -> in words
    ("pid_namespace", False): "deadman: a PID namespace, the strongest there is",
    ("process_tree", True): f"deadman: a process tree in a control group; for a PID namespace: {_STRONGER}",
    (
        "process_tree",
        False,
    ): "deadman: a process tree alone: after a killed guard only an operator's word proves "
    f"the node's end; for a PID namespace: {_STRONGER}; or start it in a control group of its own",
}


class DevelopmentCluster:
    """The development cluster in a directory. Make one with `create` or `open_cluster`."""

    def __init__(self, directory: Path, described: Document) -> None:
        self.directory = directory
        self._described = described
        self.names: list[str] = [str(node["name"]) for node in described["nodes"]]
        self._children: dict[str, subprocess.Popen[bytes]] = {}  # those that this very process started

    def home(self, name: str) -> Path:
        """A node's home. Raises `Mistaken` for an unknown node."""
        if name not in self.names:
            raise unknown_node(name, self.directory, self.names)
        return self.directory / NODES_FOLDER / name

    def socket(self, name: str) -> Path:
        """A node's control socket."""
        return self.home(name) / SOCKET_FILE

    def log(self, name: str) -> Path:
        """A node's log."""
        return self.home(name) / LOG_FILE

    def connection(self, timeout_s: float = 30.0) -> Connection:
        """A connection to whichever node answers."""
        return Connection({name: self.socket(name) for name in self.names}, timeout_s)

    def connection_to(self, name: str, timeout_s: float = PROBE_TIMEOUT_S) -> Connection:
        """A connection to this node only."""
        return Connection({name: self.socket(name)}, timeout_s)

    def start(self, name: str) -> None:
        """Start a node, detached. Raises `ClientError` if it runs already, or cannot be started."""
        home = self.home(name)
        if found := self._found_at_start(name):
            next_step = f"to cut its power: {command_about(self.directory, f'dev kill {name}')}"
            raise ClientError(f"{name} already runs, as process {found[0].pid}", str(home), next_step)
        command = [sys.executable, "-m", "muster.daemon.main", "--store", str(self.directory / STORE_FILE)]
        command += ["--node", name, "--home", str(home)]
        boots = command_about(self.directory, f"dev boot {boot_advice.NAME}")
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK  # a pipe that nobody reads holds up nobody
        try:
            with os.fdopen(os.open(self.log(name), flags, _PRIVATE), "ab") as log:
                if is_log_file(log.fileno()):  # a device is written to, as well as that goes, and needs no bound
                    command += ["--log-file", str(self.log(name))]
                self._children[name] = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=os.environ | {node_processes.COOKIE: str(home), boot_advice.VARIABLE: boots},
                    start_new_session=True,
                )
        except OSError as error:
            next_step = "make room or correct the permissions, and boot it again"
            raise ClientError(f"{name} cannot be started: {error.strerror or error}", str(home), next_step) from error

    def _found_at_start(self, name: str) -> list[node_processes.NodeProcess]:
        """What the node runs already; one that is no member any more, as it has just left, gets a moment to end."""
        deadline = time.monotonic() + ENDING_S
        while True:
            found = node_processes.processes_of(self.home(name))
            if not found or self._is_member(name) or time.monotonic() > deadline:
                return found
            time.sleep(_POLL_S)

    def _is_member(self, name: str) -> bool:
        try:
            return bool(self.connection_to(name, PROBE_TIMEOUT_S).query("status")["node_state"] != "inactive")
        except ClientError:
            return False

    def ended(self, name: str) -> int | None:
        """How a node that this process started has ended: its status, negative for a signal; None while it runs."""
        child = self._children.get(name)
        return child.poll() if child else None

    def add(self, name: str, timeout_s: float, progress: Progress) -> None:
        """Add and enrol a node, as on real machines: an operation, a token, `muster enrol`. Raises `ClientError`."""
        from muster.setup.enrolment import become
        from muster.setup.joining import new_token

        if name in self.names or os.path.lexists(self.directory / NODES_FOLDER / name):
            raise Mistaken(f"there is a node {name!r} already", str(self.directory), "choose another name")
        if len(self.names) >= MAXIMUM_NODES:
            what = f"a development cluster cannot have more than {MAXIMUM_NODES} nodes"
            raise Mistaken(what, str(self.directory), "remove one: muster dev remove")
        (address,) = free_addresses(1)
        token, verifier, expires_s = new_token("10m")
        added = self.connection(timeout_s).operate(
            "add_node", node=name, addresses=[address], verifier=verifier, expires_s=expires_s
        )
        progress(str(added["outcome"]))
        home = self.directory / NODES_FOLDER / name
        progress(become(self.directory / STORE_FILE, name, home, lambda: token, timeout_s))
        self._describe([*self._described["nodes"], {"name": name, "address": address}])

    def remove_node(self, name: str, timeout_s: float, progress: Progress) -> None:
        """Have a node leave if it runs, remove it from the cluster, and remove its home. Raises `ClientError`."""
        from muster.setup.joining import remove_node

        home = self.home(name)
        if node_processes.is_running(home):
            self.leave(name, timeout_s, progress)
        others = {other: self.socket(other) for other in self.names if other != name}
        progress(str(remove_node(Connection(others, timeout_s), name)["outcome"]))
        self._describe([node for node in self._described["nodes"] if node["name"] != name])
        shutil.rmtree(home, ignore_errors=True)

    def _describe(self, nodes: list[Document]) -> None:
        """Record which nodes there are."""
        self._described = {**self._described, "nodes": nodes}
        draft = self.directory / f"{CLUSTER_FILE}.new"
        draft.write_text(json.dumps(self._described, indent=2))
        draft.replace(self.directory / CLUSTER_FILE)
        self.names = [str(node["name"]) for node in nodes]

    def running(self) -> list[str]:
        """Names of the nodes that run anything."""
        return [name for name in self.names if node_processes.is_running(self.home(name))]

    def wait_joined(self, names: list[str], timeout_s: float, progress: Progress) -> None:
        """Wait until all `names` are joined. Raises `ClientError` when one ends early, or with what is missing."""
        deadline = time.monotonic() + timeout_s
        connection = self.connection(PROBE_TIMEOUT_S)
        said = ""
        while True:
            for name in names:
                if (status := self.ended(name)) is not None:
                    raise self._ended_early(name, status)
            found = self._members(connection)
            states = {name: self._state_of_this_life(name, found.get(name)) for name in names}
            if all(state == "joined" for state in states.values()):
                return
            text = ", ".join(f"{name} {state}" for name, state in states.items())
            if text != said:
                progress(text)
                said = text
            if time.monotonic() > deadline:
                laggard = next(name for name, state in states.items() if state != "joined")
                what = f"after {timeout_s:g} s: {text}"
                raise ClientError(what, f"{self.log(laggard)}\n{self.log_tail(laggard)}", "read that node's log")
            time.sleep(_POLL_S)

    def states(self, connection: Connection | None = None) -> dict[str, str]:
        """Each node's state as a node that answers sees it; empty when none answers."""
        return {name: str(node["state"]) for name, node in self._members(connection).items()}

    def _members(self, connection: Connection | None = None) -> Document:
        try:
            found: Document = (connection or self.connection(PROBE_TIMEOUT_S)).query("status")["nodes"]
        except ClientError:
            return {}
        return found

    def _state_of_this_life(self, name: str, member: Document | None) -> str:
        """The state of the node's present incarnation: what the cluster still holds of the last one does not count."""
        incarnation = node_processes.recorded_incarnation(self.home(name))
        if member is not None and (missing := member.get("waits_for")) and incarnation is not None:
            words = ", ".join(f"{each['name']} (level {each['level']})".lstrip() for each in missing)
            return f"waits for {words} to register"
        if member is None or incarnation is None or member["incarnation"] != incarnation:
            return "booting"
        return str(member["state"])

    def ties(self, names: list[str]) -> list[str]:
        """How the kernel ends these nodes with their guards, and what makes that stronger: a line for each way.

        Of what the guards have recorded: nothing of one that has not yet.
        """
        found: dict[str, list[str]] = {}
        for name in names:
            deadman, group = node_processes.recorded_tie(self.home(name))
            if words := _TIES.get((deadman, bool(group))):
                found.setdefault(words, []).append(name)
        return [f"{', '.join(who)}: {words}" for words, who in found.items()]

    def wait_ended(self, name: str, timeout_s: float) -> bool:
        """Wait until the node runs nothing; False after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        home = self.home(name)
        while node_processes.is_running(home):
            self.ended(name)  # reaps it, if this process is its parent
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        self.ended(name)
        return True

    def kill(self, name: str) -> bool:
        """Power cut: SIGKILL to everything the node runs. False if it ran nothing. Raises `ClientError`."""
        home = self.home(name)
        ran = node_processes.is_running(home)
        left = _permitted(lambda: node_processes.kill_all(home, KILL_TIMEOUT_S), home)
        self.ended(name)
        if left:
            pids = ", ".join(str(process.pid) for process in left)
            what = f"SIGKILL has not ended processes {pids} of {name}"
            raise ClientError(what, str(home), "they wait for a device: see /proc/PID/wchan; reboot if they never end")
        return ran

    def hang(self, name: str) -> int:
        """SIGSTOP to everything the node runs; how many processes. Raises `ClientError` if it runs nothing."""
        home = self.home(name)
        found = _permitted(lambda: node_processes.stop_all(home), home)
        if not found:
            next_step = f"boot it first: {command_about(self.directory, f'dev boot {name}')}"
            raise ClientError(f"{name} runs nothing that could be hung", str(home), next_step)
        return len(found)

    def resume(self, name: str) -> int:
        """SIGCONT to everything the node runs; how many processes are left of it."""
        home = self.home(name)
        return len(_permitted(lambda: node_processes.continue_all(home), home))

    def leave(self, name: str, timeout_s: float, progress: Progress, override: bool = False) -> None:
        """Graceful leave; returns when the node's last process has ended. Raises `ClientError`.

        `override`: although subsystems object (P4.5).
        """
        home = self.home(name)
        if not node_processes.is_running(home):
            raise ClientError(f"{name} does not run", str(home), f"see {command_about(self.directory, 'dev ls')}")
        if any(process.stopped for process in node_processes.processes_of(home)):
            next_step = f"wake it first: {command_about(self.directory, f'dev resume {name}')}"
            raise ClientError(f"{name} hangs, so it cannot leave", str(home), next_step)
        try:
            answer = self.connection_to(name, timeout_s).operate("leave", node=name, override=override)
            progress(str(answer["outcome"]))
        except Unreachable:
            # it may have left before it could answer, or hangs; its end tells which
            progress(f"{name} does not answer; waiting for its end")
        if not self.wait_ended(name, timeout_s):
            what = f"{name} has not ended {timeout_s:g} s after it was asked to leave"
            next_step = "see `muster transitions` for who holds it up; `muster dev kill` cuts its power"
            raise ClientError(what, f"{self.log(name)}\n{self.log_tail(name)}", next_step)
        if (home / node_processes.GUARD_FILE).exists():  # a guard that ends by itself takes it away
            next_step = f"boot it again: {command_about(self.directory, f'dev boot {name}')}"
            raise ClientError(f"{name} was killed while it left", f"{self.log(name)}\n{self.log_tail(name)}", next_step)

    def stop_everything(self) -> None:
        """End every node at once: SIGQUIT to its guard, SIGKILL to what is left after a grace. Raises `ClientError`."""
        for name in self.names:
            found = node_processes.processes_of(self.home(name))
            if found:
                guard = found[0]
                _permitted(lambda guard=guard: node_processes.send(guard, signal.SIGQUIT), self.home(name))  # type: ignore[misc]
                if any(process.stopped for process in found):
                    node_processes.continue_all(self.home(name))  # a stopped guard cannot obey
        deadline = time.monotonic() + GRACE_S
        for name in self.names:
            if not self.wait_ended(name, max(0.0, deadline - time.monotonic())):
                self.kill(name)
        self._end_bystanders(time.monotonic() + GRACE_S)

    def _end_bystanders(self, deadline: float) -> None:
        """Caretakers clear what services have left here, log writers write their last lines; then they are killed."""
        for name in self.names:
            home = self.home(name)
            while node_processes.processes_of(home, with_bystanders=True) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
            _permitted(lambda home=home: node_processes.kill_all(home, KILL_TIMEOUT_S, with_bystanders=True), home)  # type: ignore[misc]

    def remove(self) -> None:
        """Remove what was made in the directory, and the directory if it was made too. Nothing may run."""
        shutil.rmtree(self.directory / NODES_FOLDER, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self.directory / STORE_FILE).unlink(missing_ok=True)
            (self.directory / CLUSTER_FILE).unlink(missing_ok=True)  # last: until now it is a cluster, half removed
            for made in self._described.get("made_directories", []):
                Path(made).rmdir()  # only if nobody else has put anything there

    def listing(self) -> list[Document]:
        """What `muster dev ls` prints: for each node `name`, `state`, `pids` (guard first) and `socket`."""
        processes = {name: node_processes.processes_of(self.home(name)) for name in self.names}
        awake = [name for name, found in processes.items() if found and not any(one.stopped for one in found)]
        sockets = {name: self.socket(name) for name in awake}
        members = self._members(Connection(sockets, PROBE_TIMEOUT_S)) if sockets else {}
        return [
            {
                "name": name,
                "state": _state(processes[name]) or self._state_of_this_life(name, members.get(name)),
                "pids": [process.pid for process in processes[name]],
                "socket": str(self.socket(name)),
            }
            for name in self.names
        ]

    def log_tail(self, name: str, lines: int = LOG_TAIL_LINES) -> str:
        """The last lines of a node's log."""
        return last_lines(self.log(name), lines)

    def _ended_early(self, name: str, status: int) -> ClientError:
        how = f"by signal {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        where = f"{self.log(name)}\n{self.log_tail(name)}"
        return ClientError(f"{name} ended {how} before it had joined", where, "fix what its log says, and try again")


def _state(processes: list[node_processes.NodeProcess]) -> str:
    """`stopped` or `hung`, as the processes show; empty where they show neither."""
    if not processes:
        return "stopped"
    return "hung" if any(process.stopped for process in processes) else ""


def _permitted(action: Callable[[], Any], home: Path) -> Any:  # returns what the action returns
    try:
        return action()
    except PermissionError as error:
        raise ClientError(
            "another user's processes run here", str(home), "run it as the user who started them"
        ) from error


def open_cluster(directory: Path) -> DevelopmentCluster:
    """The development cluster in `directory`. Raises `Mistaken` where there is none, `ClientError` for a stranger's."""
    development_homes(directory)  # says what is wrong with the file
    owner = (directory / CLUSTER_FILE).stat().st_uid
    if os.geteuid() not in (0, owner):  # whose processes cannot be seen, so nothing said of them would be true
        what, next_step = f"the cluster belongs to another user (user id {owner})", "run it as that user, or as root"
        raise ClientError(what, str(directory), next_step)
    return DevelopmentCluster(absolute(directory), json.loads((directory / CLUSTER_FILE).read_text()))


def create(
    directory: Path,
    nodes: int,
    profile: str,
    name: str = "dev",
    *,
    lifetime_s: int = DEFAULT_CERTIFICATE_LIFETIME_S,
    scope: str = "host",
    slots: int = 0,
) -> DevelopmentCluster:
    """Claim `directory`, and make a store and keys for n0, n1, ... in it. Raises `ClientError`, leaving nothing.

    `scope`: of the store. With `shared` the nodes judge each other as if each had a machine of its own.
    `slots`: for how many nodes there is room; 0: for 16, or for as many as there are.
    """
    directory = absolute(directory)
    made_directories = _claimable(directory)
    plan = [NodePlan(f"n{number}", (address,)) for number, address in enumerate(free_addresses(nodes))]
    described: Document = {
        "format": 1,
        "name": name,
        "profile": profile,
        "made_directories": made_directories,  # deepest first
        "nodes": [{"name": node.name, "address": node.addresses[0]} for node in plan],
    }
    try:
        with (directory / CLUSTER_FILE).open("x") as file:  # exclusive: of two commands at once, one gets the directory
            json.dump(described, file, indent=2)
    except FileExistsError as error:
        raise _in_use(directory) from error
    cluster = DevelopmentCluster(directory, described)
    try:
        slots = slots or max(DEFAULT_SLOTS, nodes)
        size = slots * max(STORE_BYTES_PER_SLOT, nodes * STORE_BYTES_PER_NODE)
        cluster_plan = ClusterPlan(name, tuple(plan), profile, scope, slots, size, certificate_lifetime_s=lifetime_s)
        initialise(directory / STORE_FILE, cluster_plan, directory / NODES_FOLDER)
        _let_pass(cluster)
    except BaseException:
        cluster.remove()
        raise
    return cluster


def _let_pass(cluster: DevelopmentCluster) -> None:
    """Let other users get at the nodes' control sockets; what they may do there follows from the cluster's groups."""
    nodes = cluster.directory / NODES_FOLDER
    for directory in (cluster.directory, nodes, *(nodes / name for name in cluster.names)):
        directory.chmod(directory.stat().st_mode | _PASS)


def _claimable(directory: Path) -> list[str]:
    """Make the directory or find it empty; what was made for it, deepest first. Raises `ClientError`."""
    missing = [str(path) for path in (directory, *directory.parents) if not os.path.lexists(path)]
    try:
        directory.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        made = False
    except OSError as error:
        what = f"the directory cannot be made: {error.strerror or error}"
        raise ClientError(what, str(directory), "name one that you may write, with --dir") from error
    else:
        made = True
    if made:
        return missing
    if not os.path.isdir(directory):
        raise ClientError("this is no directory", str(directory), "name another with --dir")
    if os.path.exists(directory / CLUSTER_FILE):
        raise _in_use(directory)
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ClientError("the directory is not writable", str(directory), "name one that you may write, with --dir")
    if found := sorted(path.name for path in directory.iterdir())[:3]:
        what = f"the directory is not empty (it has {', '.join(found)}), and no development cluster made it"
        raise ClientError(what, str(directory), "name a new or empty directory with --dir")
    return []


def _in_use(directory: Path) -> ClientError:
    next_step = f"look: {command_about(directory, 'dev ls')}; end it: {command_about(directory, 'dev down')}"
    return ClientError("there is a development cluster here already", str(directory), next_step)


def free_addresses(count: int) -> list[str]:
    """Loopback addresses whose ports nobody listens on, below the range that the kernel hands out by itself.

    So no outgoing connection takes the port of a node that is down for a moment, and two clusters hardly ever choose
    the same one.
    """
    with contextlib.ExitStack() as held:
        addresses: list[str] = []
        for port in _candidate_ports():
            if len(addresses) == count:
                break
            probe = held.enter_context(socket.socket())
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue  # in use
            addresses.append(f"{LOOPBACK}:{port}")
        else:
            raise ClientError(f"there are no {count} free ports", LOOPBACK, "end what listens there: see ss -ltn")
        return addresses


def _candidate_ports() -> Iterator[int]:
    try:
        lowest_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        lowest_ephemeral = 32_768
    highest = lowest_ephemeral if lowest_ephemeral > _LOWEST_PORT + 1000 else 60_000
    yield from SystemRandom().sample(range(_LOWEST_PORT, highest), 2000 if highest > 20_000 else 900)


def check_count(nodes: int) -> None:
    """Raise `Mistaken` for a number of nodes that a development cluster cannot have."""
    if not 0 < nodes <= MAXIMUM_NODES:
        raise Mistaken(f"a development cluster cannot have {nodes} nodes", "--nodes", f"choose 1 to {MAXIMUM_NODES}")
