"""What a node's home remembers of its stores: HOME/remembered.json (P11.2; core/leases/memory.py says what and why).

Only its loss or its age can do harm, and only by letting an older copy pass: so it is written at once, but once a
second at most, by a thread that nobody waits for. Nothing is written while nothing is committed.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from muster.core.leases.memory import Remembered, problem
from muster.core.node import insight
from muster.core.node.node import Node
from muster.drivers.store.identity import StoreIdentity
from muster.drivers.store.record import StoreRecord
from muster.drivers.store.remembered_file import FILE, remember

PAUSE_S = 1.0  # between two writings


def refusal(record: StoreRecord, remembered: Remembered | None, node: int, path: str, home: str) -> str:
    """Why this store may not be booted on, and the way on, in words; empty where it may (P11.2)."""
    if remembered is None:
        return ""
    wrong = problem(remembered, record.header.store_id.hex(), record.strip, record.database, node)
    if not wrong:
        return ""
    return (
        f"store {path} went back in time, or other nodes use an older copy of it: {wrong} (remembered in {home}). "
        "Put the newest store back at that path. If there is none, what was committed since may be lost; stop all "
        f"nodes, and see what `muster store adopt {path} --home {home}` would do"
    )


class HomeMemory:
    """Keeps the file in step with what a running node knows."""

    def __init__(self, home: Path, header: StoreIdentity, node: Node, note: Callable[[str, str], None]) -> None:
        self._home, self._node, self._note = home, node, note
        self._ids = header.cluster_id.hex(), header.store_id.hex()
        self._saved: Remembered | None = None
        self._looked_s = -PAUSE_S
        self._writing: threading.Thread | None = None
        self._failure = ""
        self._told = ""

    def keep(self) -> None:
        """Write what is known, if it is more than what was written, and if it is time."""
        if self._failure != self._told:
            self._told = self._failure
            if self._failure:
                self._note("memory not written", self._failure)
        now_s = time.monotonic()
        if now_s - self._looked_s < PAUSE_S or (self._writing is not None and self._writing.is_alive()):
            return
        self._looked_s = now_s
        index, term, terms = insight.remembered(self._node)
        known = Remembered(*self._ids, index, term, terms, self._node.incarnation, self._node.me)
        if known == self._saved:
            return
        self._saved = known
        self._writing = threading.Thread(target=self._write, args=(known,), name="home-memory", daemon=True)
        self._writing.start()

    def _write(self, known: Remembered) -> None:
        try:
            remember(self._home, known)
            self._failure = ""
        except OSError as error:
            self._failure, self._saved = f"{self._home / FILE}: {error.strerror}; make room or replace the disk", None
