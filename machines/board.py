"""The management boards of all machines, and the agent that speaks with them (docs/FENCING.md).

A board stands outside of its machine: it cuts the power, and says off only when the kernel says that nothing of the
machine runs. The agent has the name and the parameters of `fence_ipmilan`, so the commands of the documents are carried
out as they are written. Its address tells which board is meant.
"""

import contextlib
import json
import socketserver
import threading
from pathlib import Path
from typing import Any

from machines.machine import SHARED, Machine, MachineFailed

AGENT = "fence_ipmilan"
PASSWORD = "the-boards-own-word"  # noqa: S105 - of boards that exist in this lab only
FIRST_ADDRESS = "192.0.2.11"  # of the first machine's board; the others follow
_DOOR = "boards"
_OK, _FAILED, _OFF = 0, 1, 2
_PROGRAM = """#!/usr/bin/python3 -I
# stands where the package fence-agents puts the real one
import json, socket, sys

told = dict(line.split("=", 1) for line in sys.stdin.read().splitlines() if "=" in line)
if told.get("action") == "metadata":
    print({metadata!r})
    sys.exit(0)
with socket.socket(socket.AF_UNIX) as board:
    board.connect({door!r})
    board.sendall(json.dumps(told).encode() + b"\\n")
    answer = json.loads(board.makefile().readline())
print(answer["words"])
sys.exit(answer["status"])
"""
_METADATA = """<?xml version="1.0" ?>
<resource-agent name="fence_ipmilan"><parameters><parameter name="action" required="1"/>
<parameter name="ip" required="1"/><parameter name="username"/><parameter name="password"/><parameter name="lanplus"/>
</parameters><actions><action name="on"/><action name="off"/><action name="reboot"/><action name="status"/>
<action name="monitor"/></actions></resource-agent>"""


class Boards:
    """Answers agents until `close`."""

    def __init__(self, machines: dict[str, Machine], shared: Path) -> None:
        first, _, last = FIRST_ADDRESS.rpartition(".")
        self._machines = {f"{first}.{int(last) + at}": machine for at, machine in enumerate(machines.values())}
        self.told: list[tuple[str, str]] = []  # action, machine
        boards = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                words, status = boards.answer(json.loads(self.rfile.readline()))
                with contextlib.suppress(OSError):
                    self.wfile.write(json.dumps({"words": words, "status": status}).encode() + b"\n")

        self._server = socketserver.ThreadingUnixStreamServer(str(shared / _DOOR), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """They answer nobody any more."""
        self._server.shutdown()
        self._server.server_close()

    def answer(self, told: dict[str, Any]) -> tuple[str, int]:
        """What a board says, having done it: words and exit status."""
        action, machine = str(told.get("action", "")), self._machines.get(str(told.get("ip", "")))
        if told.get("password") != PASSWORD or machine is None:
            return "Failed: Unable to obtain correct plug status or plug is not available", _FAILED
        self.told.append((action, machine.name))
        try:
            return _carry_out(action, machine)
        except (MachineFailed, OSError) as error:
            return f"Failed: {error}", _FAILED


def _carry_out(action: str, machine: Machine) -> tuple[str, int]:
    if action == "monitor":
        return "", _OK
    if action == "status":
        return ("Status: ON", _OK) if machine.is_on() else ("Status: OFF", _OFF)
    if action in ("off", "reboot"):
        machine.off()
    if action in ("on", "reboot"):
        machine.on()
    known = {"off": "Powered OFF", "on": "Powered ON", "reboot": "Rebooted"}
    return (f"Success: {known[action]}", _OK) if action in known else ("Failed: unknown action", _FAILED)


def install_agent(root: Path) -> None:
    """Put the agent into a machine, and the boards' password where the documents have it."""
    program = root / "usr/sbin" / AGENT
    program.write_text(_PROGRAM.format(metadata=_METADATA, door=f"{SHARED}/{_DOOR}"))
    program.chmod(0o755)
    secret = root / "root/board.password"
    secret.write_text(f"{PASSWORD}\n")
    secret.chmod(0o600)
