"""A guarded node for tests: real guard, namespace, runner and store; only the daemon is a small program of the tests.

The daemon of these tests pulses, carries out orders that a test appends to HOME/orders, and appends all that it hears
to HOME/heard, a JSON object a line.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from muster.drivers.image.environment import NODE_HOME
from muster.drivers.image.guard import Options, empty_home, guard_command
from muster.drivers.image.process_tree import read_command_line, read_environment, read_name, read_parents, send
from muster.drivers.store.disk.geometry import new_header
from muster.drivers.store.disk.lease_store import GuardStore
from muster.drivers.store.disk.store import create_store
from muster.drivers.store.identity import Scope
from muster.records.database import encode_database, initial_database
from muster.records.nodes import Cluster
from muster.records.registers import Lease
from muster.records.timing import Profile
from muster.records.versions import HIGHEST

SOURCE = Path(__file__).parents[2] / "src"
DEADLINE_S = 30.0

# Slower than `fast`, because many nodes of one test share a machine.
PROFILE = Profile("test", 150, 2400, 480, 60, 400, 240, 100, 40, 5, 60, 3000, 12_000, 150, 1000)

T = TypeVar("T")
OUTSIDE = ("muster-log", "muster-cleanup")

DAEMON = """
import json, os, socket, sys, time
home = sys.argv[1]
guard = socket.socket(fileno=int(os.environ["MUSTER_GUARD_FD"]))
runner = socket.socket(fileno=int(os.environ["MUSTER_RUNNER_FD"]))
init = socket.socket(fileno=int(os.environ["MUSTER_INIT_FD"]))
guard.setblocking(False)
runner.setblocking(False)
heard = open(home + "/heard", "a", buffering=1)
orders = open(home + "/orders", "a+")
orders.seek(int(open(home + "/done").read()) if os.path.exists(home + "/done") else 0)
print(json.dumps({"from": "daemon", "incarnation": os.environ["MUSTER_INCARNATION"], "pid": os.getpid()}), file=heard)
while True:
    guard.send(b"pulse")
    for name, end in (("guard", guard), ("runner", runner)):
        try:
            while True:
                print(json.dumps({"from": name, "text": end.recv(65536).decode()}), file=heard)
        except BlockingIOError:
            pass
    while line := orders.readline():
        open(home + "/done", "w").write(str(orders.tell()))
        order = json.loads(line)
        {"guard": guard, "runner": runner, "init": init}[order["to"]].send(order["text"].encode())
    time.sleep(0.02)
"""


def wait_for(what: str, probe: Callable[[], T | None]) -> T:
    """The first truthy value of `probe`."""
    deadline = time.monotonic() + DEADLINE_S
    while not (value := probe()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.01)
    return value


def kill_at_once(pids: Iterable[int]) -> None:
    """Kill several processes so that none of them sees the end of another."""
    doomed = list(pids)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        send(doomed, number)


def make_store(folder: Path, scope: Scope = Scope.HOST, slots: int = 16) -> Path:
    """A store without configured nodes, which a guard does not ask about."""
    path = folder / "store"
    database = initial_database(Cluster("test", "00" * 16, "fast", ""), ())
    header = new_header(secrets.token_bytes(16), "test", scope, slots=slots, store_bytes=4 << 20)
    create_store(str(path), header, encode_database(database))
    return path


class RealNode:
    """One node under its guard. `close` leaves nothing of it behind, whatever has happened."""

    def __init__(self, store: Path, folder: Path, node: int, deadman: str = "auto", profile: Profile = PROFILE) -> None:
        self.store, self.node, self.name = store, node, f"n{node}"
        self.home = folder / self.name
        self.home.mkdir(exist_ok=True)
        self.profile, self.deadman = profile, deadman
        self.guard: subprocess.Popen[bytes] | None = None
        self._register = GuardStore(str(store), node)

    def start(
        self,
        *daemon: str,
        predecessor_stopped: bool = False,
        home: Path | None = None,
        interpreter: str = sys.executable,
        source: Path = SOURCE,
        version: int = HIGHEST,
        **how: Any,
    ) -> None:
        """Start the guard; `how` goes to `Popen`."""
        argv = daemon or (interpreter, "-c", DAEMON, str(self.home))
        options = Options(
            str(self.store),
            self.node,
            self.name,
            str(home or self.home),
            self.profile,
            argv,
            self.deadman,
            predecessor_stopped,
            version,
        )
        environment = {**os.environ, "PYTHONPATH": str(source)}
        with (self.home / "log").open("ab") as log:
            command = [interpreter, *guard_command(options)[1:]]
            how = {"stderr": log, **how}
            self.guard = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, **how)

    def up(self) -> dict[str, Any]:
        """Wait for the daemon's first pulse; the content of guard.json."""

        def probe() -> dict[str, Any] | None:
            assert self.guard is not None and self.guard.poll() is None, f"the guard ended: {self.log()}"
            state = self.state()
            ready = state and state["pid"] == self.guard.pid and state["daemon_pid"] and state["runner_pid"]
            return state if ready and self.heard("daemon") else None

        return wait_for(f"{self.name} is up", probe)

    def state(self) -> dict[str, Any]:
        """guard.json, or nothing."""
        try:
            state: dict[str, Any] = json.loads((self.home / "guard.json").read_bytes())
        except FileNotFoundError:
            return {}
        return state

    def state_after(self, killed: int) -> dict[str, Any] | None:
        """The same once it names another daemon than the one that was killed: another process writes it, later."""
        state = self.state()
        return state if state and state["daemon_pid"] not in (0, killed) else None

    def says(self, *words: str) -> None:
        """Wait until the log has these words: its writer is a process of its own, for which nobody waits long."""
        wait_for(f"{words} in the log of {self.name}", lambda: all(each in self.log() for each in words))

    def log(self) -> str:
        """What the node wrote to its standard error."""
        return (self.home / "log").read_text(errors="replace")

    def lease(self) -> Lease:
        """The node's lease register."""
        return wait_for("the lease register", self._register.read_own)

    def order(self, to: str, text: str) -> None:
        """Have the daemon send a packet to guard, init or runner."""
        with (self.home / "orders").open("a") as file:
            file.write(json.dumps({"to": to, "text": text}) + "\n")

    def run(self, generation: int, action: str, *command: str) -> dict[str, Any]:
        """Have the runner run a command of service `s`; its result."""
        self.ask(generation, action, *command)
        return wait_for(f"{action} {generation}", lambda: self.result(generation))

    def ask(self, generation: int, action: str, *command: str) -> None:
        """Have the runner run a command of service `s`."""
        request = {"do": "run", "service": "s", "uid": 1, "generation": generation, "action": action}
        rest = {"command": command, "timeout_ms": 20_000, "environment": {}}
        self.order("runner", json.dumps({**request, **rest}))

    def result(self, generation: int) -> dict[str, Any] | None:
        """The result of a command, if the daemon has heard it."""
        for item in self.heard("runner"):
            packet: dict[str, Any] = json.loads(item["text"])
            if packet["say"] == "finished" and packet["generation"] == generation:
                return packet
        return None

    def heard(self, sender: str) -> list[dict[str, Any]]:
        """What the daemons have heard from `sender`, or their own first words for `daemon`."""
        try:
            lines = (self.home / "heard").read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        items = [json.loads(line) for line in lines if line.endswith("\n")]
        return [item for item in items if item["from"] == sender]

    def processes(self) -> dict[int, str]:
        """Everything that this node runs now, the guard included: pid and name. Zombies are nothing any more.

        Log writer and caretaker are not of the node: they outlive it, and one may hang for as long as the log does.
        """
        return {pid: name for pid, name in self._all_processes().items() if name not in OUTSIDE}

    def _all_processes(self) -> dict[int, str]:
        found = {}
        home, inside = os.fsencode(self.home), os.fsencode(self.home) + b"/"
        for pid in read_parents():
            words = read_command_line(pid)
            named = any(word == home or word.startswith(inside) for word in words)
            if named or read_environment(pid).get(NODE_HOME.encode()) == home:
                found[pid] = read_name(pid)
        return found

    def pid_of(self, name: str) -> int:
        """The process of this node with this name."""
        pids = [pid for pid, found in self.processes().items() if found == name]
        assert len(pids) == 1, f"{name}: {pids}"
        return pids[0]

    def ended(self) -> int:
        """Wait for the guard's end; its exit status."""
        assert self.guard is not None
        return self.guard.wait(DEADLINE_S)

    def gone(self) -> None:
        """Wait until nothing of the node is left."""
        wait_for(f"{self.name} is gone", lambda: not self.processes())

    def forget(self) -> None:
        """Remove what earlier lives of the node recorded."""
        for path in self.home.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "log":
                path.unlink()

    def close(self) -> None:
        """End everything, what outlives a node too: its caretaker tries for minutes to reach the store of a test."""
        self.halt()
        self._register.close()
        deadline = time.monotonic() + DEADLINE_S
        while left := self._all_processes():  # the standby of one that is killed takes its place
            assert time.monotonic() < deadline, f"{self.name} is not gone: {left}"
            for pid, name in left.items():
                if name in OUTSIDE:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def halt(self) -> None:
        """End every process of the node."""
        if self.guard is not None:
            if self.guard.poll() is None:
                self.guard.send_signal(signal.SIGKILL)
                self.guard.wait(DEADLINE_S)
            empty_home(str(self.home))
