"""The management board of all machines: who speaks with it can cut a machine's power, give it back, ask for it.

It stands outside of them, as a board in a rack does, at an address of the management network. Its agent `fence_lab` is
a program of the kind of Debian's `fence-agents`; every machine has it. A conversation: `name=value` lines and an empty
one; the answer is the agent's exit status, and words.
"""

import socketserver
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from lab.vms.guest import Guest
from lab.vms.wires import BOARD_HOST

PORT = 6230
PASSWORD = "the-boards-own-word"  # noqa: S105  # of a board that only the lab's machines reach
AGENT_PATH = "/usr/sbin/fence_lab"
_OK, _FAILED, _OFF = 0, 1, 2

AGENT = f"""\
#!/bin/sh
told=$(cat)
case "$told" in
    *action=metadata*)
        cat <<'END'
<?xml version="1.0" ?>
<resource-agent name="fence_lab" shortdesc="Board of Muster's laboratory of virtual machines">
<parameters><parameter name="action" required="1"/><parameter name="plug" required="1"/><parameter name="passwd"/>
</parameters><actions><action name="on"/><action name="off"/><action name="status"/><action name="monitor"/></actions>
</resource-agent>
END
        exit 0 ;;
esac
answer=$(printf '%s\\n\\n' "$told" | busybox nc -w 60 {BOARD_HOST} {PORT}) || exit 1
status=${{answer%% *}}
echo "${{answer#* }}"
exit "${{status:-1}}"
"""


class Asked(NamedTuple):
    """What the board was asked: `at_s` on the monotonic clock, and when it had answered."""

    at_s: float
    answered_s: float
    action: str
    plug: str
    words: str


class Board:
    """Serves until it is closed. `wrong` is what it does wrong: nothing, `lie`, `refuse`, `half` or `hang`."""

    def __init__(self, guests: Mapping[str, Guest], tell: Callable[[str], None]) -> None:
        self.wrong = ""
        self.asked: list[Asked] = []
        self._guests, self._tell = guests, tell
        self._closed = threading.Event()
        board = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                told: dict[str, str] = {}
                while line := self.rfile.readline().decode(errors="replace").strip():
                    name, _, value = line.partition("=")
                    told[name] = value
                status, words = board.answer(told)
                self.wfile.write(f"{status} {words}\n".encode())

        socketserver.ThreadingTCPServer.allow_reuse_address = True
        self._server = socketserver.ThreadingTCPServer((BOARD_HOST, PORT), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """It answers nobody any more."""
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def answer(self, told: dict[str, str]) -> tuple[int, str]:
        """Do what is asked; exit status and words of the agent."""
        began_s = time.monotonic()
        status, words = self._answer(told)
        action, plug = told.get("action", ""), told.get("plug", "")
        self.asked.append(Asked(began_s, time.monotonic(), action, plug, words))
        if action in ("off", "on", "reboot"):
            self._tell(f"board: {action} {plug}: {words}")
        return status, words

    def _answer(self, told: dict[str, str]) -> tuple[int, str]:
        action, guest = told.get("action", ""), self._guests.get(told.get("plug", ""))
        if told.get("passwd") != PASSWORD:
            return _OFF, "Failed: wrong password"
        if self.wrong == "hang":
            self._closed.wait(600)
        if self.wrong == "refuse":
            return _FAILED, "Failed: connection refused"
        if action == "monitor":
            return _OK, "Success: the board is here"
        if guest is None:
            return _FAILED, f"Failed: no plug {told.get('plug')}"
        if action == "status":
            return (_OK, "Status: ON") if guest.is_on else (_OFF, "Status: OFF")
        return self._switch(action, guest)

    def _switch(self, action: str, guest: Guest) -> tuple[int, str]:
        if action == "off":
            if self.wrong != "lie":
                guest.power_cut()
            return (_FAILED, "Failed: timed out") if self.wrong == "half" else (_OK, "Success: Powered OFF")
        if action == "on":
            guest.boot()
            return _OK, "Success: Powered ON"
        return _FAILED, f"Failed: unknown action {action}"
