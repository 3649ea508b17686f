"""What the committed records ask of this node: to go on, to leave, to be started anew, or to end (P1.3, SPEC 3.11).

Theory of operation. The records are the master's word, and this node has the last say only about when: before it leaves
or is started anew it hands a mastership over, and it is not started anew while its successor could not do what it does
(P10.3). A record that shows that the others go on without it ends it at once: it may hold what they start elsewhere.
"""

from enum import Enum, auto

from muster.core.draft import is_silent
from muster.core.effects import Restart
from muster.core.outbox import Outbox
from muster.core.this_node import ThisNode
from muster.records.database import Database
from muster.records.levels import NodeState
from muster.records.members import Member


class Asked(Enum):
    """What the records ask of this node now."""

    NOTHING = auto()  # it goes on
    TO_LEAVE = auto()  # its leave is complete: it ends, once it has handed a mastership over
    TO_RESTART = auto()  # its daemon is to be started anew, once it has handed a mastership over
    TO_END = auto()  # it ends already, or has panicked over this


class Presence:
    """Whether this node goes on."""

    def __init__(self, me: ThisNode, generation: int, started_index: int, out: Outbox) -> None:
        """`generation`: of its node's configuration at its boot; `started_index`: of the database at its start."""
        self._me, self._generation, self._started_index, self._out = me, generation, started_index, out
        self._is_leaving = False
        self._is_restarting = False
        self._held = ""  # why the daemon is not started anew, though that may be asked for
        self._told_held = ""

    @property
    def is_going(self) -> bool:
        """Whether it leaves, or is about to be started anew: it decides and claims nothing any more."""
        return self._is_leaving or self._is_restarting

    def hold_restart(self, cause: str) -> None:
        """Its successor could not do what this daemon does, for this cause; it could, where that is empty (P10.3)."""
        self._held = cause

    def look(self, database: Database, lost: int) -> Asked:
        """What a confirmed replica asks of this node. `lost`: a required level whose program has ended, or 0."""
        config = database.nodes.get(self._me.node)
        if config is None or config.name != self._me.name or config.generation != self._generation:
            self._out.panic("this node was removed from the cluster")  # P1.3
            return Asked.TO_END
        own = database.member(self._me.node)
        if own.incarnation != self._me.incarnation:
            return Asked.NOTHING
        if cause := _why_it_must_end(own):
            self._out.panic(cause)
            return Asked.TO_END
        if own.state is NodeState.INACTIVE:
            return self._leave(own)
        if lost:
            cause = f"the program of level {lost} has ended, and its node has joined by that level"  # P3.18
            self._out.panic(cause)
            return Asked.TO_END
        if own.restart_asked > self._started_index:
            return self._restart_unless_held()
        return Asked.NOTHING

    def finish(self) -> None:
        """Nothing of a mastership is left: do what this waited for, if anything did."""
        if self._is_leaving:
            self._out.trace("left", f"{self._me.name} has left the cluster")
            self._out.left()
        elif self._is_restarting:
            self._out.put(Restart())

    def _leave(self, own: Member) -> Asked:
        """The own leave is complete: give up what is left of a mastership, then end (SPEC 3.11)."""
        if self._is_leaving:
            return Asked.TO_END
        if own.last_proof is not None and own.last_proof.incarnation == self._me.incarnation:
            self._out.panic("the others have forced this node out")  # a live node that reads that of itself must stop
            return Asked.TO_END
        self._is_leaving = True
        return Asked.TO_LEAVE

    def _restart_unless_held(self) -> Asked:
        """Go on, mastership and all, while the successor could not do what this daemon does (P10.3)."""
        if self._is_restarting:
            return Asked.NOTHING
        if not self._held:
            self._is_restarting = True
            self._out.trace("daemon restarts", "it was asked to; the services go on")
            return Asked.TO_RESTART
        if self._told_held != self._held:
            self._told_held = self._held
            self._out.trace("daemon restart waits", self._held)
        return Asked.NOTHING


def _why_it_must_end(own: Member) -> str:
    if own.state is NodeState.FORCED_LEAVING:
        return "the others have forced this node out"
    if is_silent(own):
        return "it had fallen silent, and the others have gone on without it"  # P4.7, P4.13
    return ""
