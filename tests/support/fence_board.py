"""A management board for the nodes of a development cluster, and the agent that speaks with it (P7.22-P7.29).

The board stands outside of all nodes, as one in a machine does: it cuts a node's power with SIGKILL to all its
processes, and boots it again. Its agent is a program of the kind of `fence-agents` that tells it what it was told. What
is wrong with both of them, a test says.
"""

import contextlib
import json
import socketserver
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from muster.dev.development_cluster import open_cluster
from muster.dev.node_processes import kill_all, processes_of

AGENT = """#!{python} -I
import json, os, socket, sys, time
if {mode!r} == "hang":
    time.sleep(3600)
if {mode!r} == "garbage":
    os.write(1, bytes(range(256)) * 16)
    sys.exit(0)
told = dict(line.split("=", 1) for line in sys.stdin.read().splitlines() if "=" in line)
if told.get("action") == "metadata":
    print({metadata!r})
    sys.exit(0)
with socket.socket(socket.AF_UNIX) as board:
    board.connect({path!r})
    board.sendall(json.dumps(told).encode() + b"\\n")
    answer = json.loads(board.makefile().readline())
print(answer["words"])
sys.exit(answer["status"])
"""
METADATA = """<?xml version="1.0" ?>
<resource-agent name="fence_board"><parameters><parameter name="action" required="1"/>
<parameter name="plug" required="1"/><parameter name="passwd"/></parameters>
<actions><action name="on"/><action name="off"/><action name="status"/><action name="monitor"/></actions>
</resource-agent>"""
OK, FAILED, BAD, OFF = 0, 1, 2, 2
PASSWORD = "the-boards-own-word"


class Board:
    """The board of a development cluster. `boot(node)` gives a node its power; `wrong` is what its outlets do wrong."""

    def __init__(self, directory: Path, folder: Path, boot: Callable[[str], None]) -> None:
        self.cluster, self.folder, self._boot = open_cluster(directory), folder, boot
        self.wrong = ""  # lie, half, refuse
        self.told: list[dict[str, str]] = []
        self.kills: list[tuple[str, bool]] = []  # whose power was cut, and whether it ran
        path = str(folder / "board")
        board = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                answer = board.answer(json.loads(self.rfile.readline()))
                with contextlib.suppress(BrokenPipeError):
                    self.wfile.write(json.dumps(answer).encode() + b"\n")

        self._server = socketserver.ThreadingUnixStreamServer(path, Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """It answers nobody any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def agent(self, name: str, mode: str = "") -> str:
        """The path of an agent for this board that does what `mode` says: hang, garbage, or nothing wrong."""
        path = self.folder / name
        text = AGENT.format(python=sys.executable, mode=mode, path=str(self.folder / "board"), metadata=METADATA)
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    def _cut(self, node: str) -> bool:
        home = self.cluster.home(node)
        ran = bool(processes_of(home, with_bystanders=True))
        assert not kill_all(home, 10, with_bystanders=True)
        return ran

    def answer(self, told: dict[str, str]) -> dict[str, Any]:
        """What the board says, having done it."""
        self.told.append(told)
        action, node = told.get("action", ""), told.get("plug", "")
        if told.get("passwd") != PASSWORD:
            return {"words": "Failed: wrong password", "status": BAD}
        if self.wrong == "refuse":
            return {"words": "Failed: connection refused", "status": FAILED}
        if action == "monitor":
            return {"words": "", "status": OK}
        if action == "status":
            runs = bool(processes_of(self.cluster.home(node), with_bystanders=True))
            return {"words": f"Status: {'ON' if runs else 'OFF'}", "status": OK if runs else OFF}
        if action == "off":
            if self.wrong != "lie":
                self.kills.append((node, self._cut(node)))
            half = self.wrong == "half"
            return {"words": "Failed: timed out" if half else "Success: Powered OFF", "status": FAILED if half else OK}
        if action == "on":
            self._boot(node)
            return {"words": "Success: Powered ON", "status": OK}
        return {"words": f"Failed: unknown action {action}", "status": BAD}
