"""A runner process for tests, with the daemon's and guard's ends of its channels."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from muster.drivers.image.environment import NODE_HOME
from muster.drivers.image.process_tree import descendants, read_environment, read_name, read_parents, send
from muster.drivers.image.runner_packets import PACKET_BYTES
from real_node import DEADLINE_S, SOURCE, wait_for

PROGRAM = """
import os, socket, sys
from muster.drivers.image.deadman import Leash
from muster.drivers.image.runner import run_runner
from muster.records.registers import Deadman
guard, daemon = (socket.socket(fileno=int(word)) for word in sys.argv[1:])
run_runner(guard, daemon, Leash(Deadman.PROCESS_TREE), os.getppid(), 50, dict(os.environ))
"""


class RealRunner:
    """A runner process, and the daemon's and guard's ends of its channels."""

    def __init__(self, home: Path, first: str = "") -> None:
        """`first`: what its process executes before it becomes a runner."""
        self.home = home
        self.daemon, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.guard, pulses = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds = (pulses.fileno(), theirs.fileno())
        self.process = subprocess.Popen(
            [sys.executable, "-c", first + PROGRAM, *map(str, fds)],
            env={**os.environ, "PYTHONPATH": str(SOURCE), NODE_HOME: str(home)},
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
        )
        self.inits_end = theirs.dup()  # as init keeps the daemon's end: the channel outlives any one of its users
        theirs.close()
        pulses.close()
        self.heard: list[dict[str, Any]] = []

    def send(self, packet: object) -> None:
        """Send one packet as the daemon does."""
        self.daemon.send(packet if isinstance(packet, bytes) else json.dumps(packet).encode())

    def ask(
        self, generation: int, action: str, *command: str, service: str = "s", timeout_ms: int = 20_000, **more: Any
    ) -> None:
        """Ask for a command."""
        request = {"do": "run", "service": service, "uid": 7, "generation": generation, "action": action}
        known = {"command": command, "timeout_ms": timeout_ms, "environment": {"COLOUR": "blue"}}
        self.send({**request, **known, **more})

    def run(self, generation: int, action: str, *command: str, **how: Any) -> dict[str, Any]:
        """Ask for a command and wait for its result."""
        self.ask(generation, action, *command, **how)
        return self.result(generation, action)

    def result(self, generation: int, action: str) -> dict[str, Any]:
        """The next result of this generation and action that has not been taken yet."""

        def is_it(packet: dict[str, Any]) -> bool:
            return packet["say"] == "finished" and (packet["generation"], packet["action"]) == (generation, action)

        return self.take(is_it)

    def take(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first packet that is wanted, out of those heard; waits for it."""

        def probe() -> dict[str, Any] | None:
            while select.select([self.daemon], [], [], 0)[0]:
                self.heard.append(json.loads(self.daemon.recv(PACKET_BYTES + 1)))
            return next(filter(wanted, self.heard), None)

        packet = wait_for("a packet of the runner", probe)
        self.heard.remove(packet)
        return packet

    def below(self) -> dict[int, str]:
        """What runs below the runner, but for keepers, and its forks that look at environments: pid and name."""
        found = {pid: read_name(pid) for pid in descendants([self.process.pid], read_parents())}
        return {pid: name for pid, name in found.items() if name not in ("", "muster-keeper", "muster-runner")}

    def keepers(self) -> list[int]:
        """The process ids of its keepers that run now."""
        return [pid for pid in descendants([self.process.pid], read_parents()) if read_name(pid) == "muster-keeper"]

    def pulses(self) -> int:
        """How many pulses have arrived since the last call."""
        count = 0
        while select.select([self.guard], [], [], 0)[0]:
            assert self.guard.recv(100) == b"pulse"
            count += 1
        return count

    def resident_kib(self) -> int:
        """The runner's resident memory."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

    def left(self) -> list[int]:
        """Every process on this machine that this runner or what it ran has started."""
        mark = os.fsencode(self.home)
        return [pid for pid in read_parents() if read_environment(pid).get(NODE_HOME.encode()) == mark]

    def close(self) -> None:
        """End the runner and all below it."""
        doomed = descendants([self.process.pid], read_parents())
        self.process.kill()
        self.process.wait(DEADLINE_S)
        send(doomed, signal.SIGKILL)
        for end in (self.daemon, self.guard, self.inits_end):
            end.close()
        while pids := self.left():
            send(pids, signal.SIGKILL)


def shell(text: str) -> tuple[str, ...]:
    """A command of the shell."""
    return ("/bin/sh", "-c", text)
