"""The cluster of machines, as the lab's campaign asks any cluster under study."""

import contextlib
import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lab.machines import SERVICE_PROGRAM
from lab.network import Network
from machines.board import Boards, install_agent
from machines.machine import SHARED, Machine, MachineFailed
from muster.client.errors import ClientError
from muster.setup.nodes import SOCKET_FILE, Connection

NAMES = ["n0", "n1", "n2"]
SUBNETS = ("10.0.0", "10.1.0")
STORE_BYTES = 256 << 20
BACKING = Path("/run/store")
HOME = "var/lib/muster"
ANSWER_S = 2.0
PAUSE_S = 0.05
_FOLDERS = ("observations", "locks", "log")
_DROP_IN = "etc/systemd/system/musterd.service.d/lab.conf"

Document = dict[str, Any]


class Systems:
    """Machines, networks, disk and boards, made in the sandbox."""

    def __init__(self, base: Path, folder: Path, shared: Path) -> None:
        """`folder` is for the machines' layers, `shared` is seen by each of them. Raises `OSError`."""
        self.names, self.shared = list(NAMES), shared
        self.networks = tuple(Network(self.names, number, subnet) for number, subnet in enumerate(SUBNETS))
        self.machines = {name: Machine(name, base, folder, shared, self.networks) for name in self.names}
        self.boards: Boards | None = None

    def make(self, package: Path) -> None:
        """Make all of it; the package is carried to each machine, and nothing runs yet. Raises `OSError`."""
        for name in _FOLDERS:
            (self.shared / name).mkdir()
        shutil.copy(SERVICE_PROGRAM, self.shared)
        for network in self.networks:
            network.make()
        self.empty_disk()
        for machine in self.machines.values():
            machine.make(BACKING)
            install_agent(machine.root)
            shutil.copy(package, machine.root / "root")
            self._watch(machine)
        self.boards = Boards(self.machines, self.shared)

    def empty_disk(self) -> None:
        """The disk that all of them see holds nothing."""
        with BACKING.open("wb") as file:
            file.truncate(STORE_BYTES)
        for machine in self.machines.values():
            machine.forget_disk()

    def _watch(self, machine: Machine) -> None:
        """What a developer adds to the unit: the daemon tells what it does, its log is kept outside."""
        drop_in = machine.root / _DROP_IN
        drop_in.parent.mkdir(parents=True)
        log = f"{SHARED}/log/{machine.name}.log"
        settings = {"MUSTER_OBSERVATIONS": f"{SHARED}/observations", "MUSTER_LOG_FILE": log}
        lines = "".join(f"Environment={key}={value}\n" for key, value in settings.items())
        drop_in.write_text(f"[Service]\n{lines}")

    def close(self) -> None:
        """End everything, whatever has become of it."""
        if self.boards is not None:
            self.boards.close()
        for machine in self.machines.values():
            with contextlib.suppress(OSError):
                machine.close()

    # ---- what a patient asks -------------------------------------------------------------------------------------

    @property
    def service_program(self) -> list[str]:
        """The words that run `exclusive_service.py` on a node."""
        return ["/usr/bin/python3", "-I", "-S", "-B", f"{SHARED}/{SERVICE_PROGRAM.name}"]

    def home(self, name: str) -> Path:
        """A node's home, seen from outside."""
        return self.machines[name].root / HOME

    def socket(self, name: str) -> Path:
        """A node's control socket, seen from outside."""
        return self.home(name) / SOCKET_FILE

    def connection(self, timeout_s: float = 30.0) -> Connection:
        """A connection to whichever node answers."""
        return Connection({name: self.socket(name) for name in self.names}, timeout_s)

    def states(self) -> dict[str, str]:
        """The state of each node, as any of them tells it; empty where none answers."""
        try:
            nodes = self.connection(ANSWER_S).query("status")["nodes"]
        except ClientError:
            return {}
        return {name: str(node["state"]) for name, node in nodes.items()}

    def log(self, name: str) -> Path:
        """A node's log."""
        return self.shared / "log" / f"{name}.log"

    def log_tail(self, name: str, lines: int = 40) -> str:
        """The end of it."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log(name).read_text(errors="replace").splitlines()[-lines:])
        return "no log"

    def ended(self, name: str) -> int | None:
        """Of no concern here: systemd starts a node that has ended."""
        return None if self.runs(name) else 0

    def runs(self, name: str) -> bool:
        """Whether somebody else starts what has ended: systemd its node, a member a machine that it has fenced."""
        return bool(name)

    def start(self, name: str) -> None:
        """Give a machine its power."""
        self.machines[name].on()

    def describe(self, name: str) -> str:
        """What it runs, in words."""
        machine = self.machines[name]
        if not machine.is_on():
            return f"off; its console: {machine.console_tail()}"
        with contextlib.suppress(MachineFailed):
            return machine.run("systemctl status musterd --no-pager --lines 0 2>&1; ps -e -o pid,stat,comm").stdout
        return f"no answer; its console: {machine.console_tail()}"

    def guard_record(self, name: str) -> Document:
        """What the node's guard has written of itself; empty if it cannot be read."""
        try:
            found = json.loads((self.home(name) / "guard.json").read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    # ---- all machines --------------------------------------------------------------------------------------------

    def on_all(self, action: Callable[[Machine], object]) -> None:
        """Do something with all machines at the same time. Raises what one of them raises."""
        with ThreadPoolExecutor(len(self.machines)) as pool:
            for done in [pool.submit(action, machine) for machine in self.machines.values()]:
                done.result()

    def wait(self, what: str, condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
        """Wait for a condition. Raises `MachineFailed` with what all machines say."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline_s:
                said = "\n".join(f"--- {name}: {self.describe(name)}\n{self.log_tail(name)}" for name in self.names)
                raise MachineFailed(f"not within {timeout_s:g} s: {what}\n{said}")
            time.sleep(PAUSE_S)

    def all_joined(self) -> bool:
        """Whether every node is a member, as one of them tells it."""
        states = self.states()
        return all(states.get(name) == "joined" for name in self.names)
