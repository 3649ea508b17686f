"""Whether a node can lead: what its own journal and registers refused, and what the others say of theirs (P2.11)."""

from collections.abc import Collection

from muster.core.mastership.tenure import patience_of
from muster.records.timing import Profile
from muster.records.units import US_PER_MS

FIRST_PAUSE_READS = 20  # before a node that could not lead tries again; twice as long after each further attempt
LONGEST_PAUSE_MS = 60_000
MAXIMUM_CHARACTERS = 300


class Inability:
    """Why this node cannot lead, if so, and what the others have said."""

    def __init__(self, profile: Profile) -> None:
        self.own = ""  # why this node cannot lead, in words; empty where nothing speaks against it
        self.told: dict[int, str] = {}  # the same of each peer, by its last heartbeat
        self._patience_us = patience_of(profile).failing_us
        self._first_pause_us = FIRST_PAUSE_READS * profile.read_ms * US_PER_MS
        self._pause_us = self._first_pause_us
        self._refused_us: dict[str, int] = {}  # kind of register -> since when the store refuses it
        self._by_register = ""  # the kind of register that `own` is about

    def everywhere(self, me: int, connected: Collection[int]) -> dict[int, str]:
        """Who says that it cannot lead, and why: this node, and its peers that are connected."""
        said = {node: why for node, why in self.told.items() if why and node in connected}
        return said | ({me: self.own} if self.own else {})

    def found(self, why: str) -> int:
        """An attempt to lead has failed: for how long (us) not to try again."""
        self.own = why[:MAXIMUM_CHARACTERS]
        pause_us, self._pause_us = self._pause_us, min(2 * self._pause_us, LONGEST_PAUSE_MS * US_PER_MS)
        return pause_us

    def over(self) -> None:
        """This node has become master: what it takes can be written."""
        if not self._by_register:
            self.own = ""
        self._pause_us = self._first_pause_us

    def refused(self, kind: str, now_us: int) -> bool:
        """The store has refused a view or marks; whether it has done so for longer than the bound."""
        since_us = self._refused_us.setdefault(kind, now_us)
        too_long = now_us - since_us >= self._patience_us
        if too_long:
            self._by_register = kind
        return too_long

    def written(self, kind: str) -> None:
        """The store has taken a view or marks."""
        self._refused_us.pop(kind, None)
        if kind and kind == self._by_register:
            self.own = self._by_register = ""
