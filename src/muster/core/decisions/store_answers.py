"""What the store has answered: which answer is whose, and what a read of the strip shows (P2.11, P11.3, SPEC 2.2, 7.1).

Theory of operation. Three things of a node ask the store, all by numbers of one sequence: its claim or mastership
(`Leadership`), the registers beside it (`OwnRegisters`), and the read that a node does by itself every `read_ms`
(`Reads`, which is kept here). An answer goes to the one whose number it bears; one that nobody waits for any more is
dropped. Every read, whoever asked for it, is first judged: a store that went back in time, or is another one, ends the
node before anything in it is believed (P11.3). Then what it shows is noted, before a claim is judged by it.
"""

from collections.abc import Iterator
from typing import NamedTuple

from muster.core.decisions.leadership import Beside, Leadership
from muster.core.decisions.term import Told
from muster.core.inputs import StoreAnswer, StoreDone, StoreRefused, StripRead, StripUnread
from muster.core.leases import sightings
from muster.core.leases.memory import Memory
from muster.core.leases.reads import Reads
from muster.core.outbox import Outbox
from muster.core.this_node import ThisNode


class Answered(NamedTuple):
    """What has become of an answer."""

    told: Told  # whom to answer after it
    shows_strip: bool = False  # it is a periodic read: links and claims are to be judged by it


class StoreAnswers:
    """The reads that this node does by itself, and what it knows of its store."""

    def __init__(self, me: ThisNode, terms: dict[int, int], numbers: Iterator[int], now_us: int, out: Outbox) -> None:
        """`terms`: slot -> number of its highest term that the node's home remembers."""
        self.memory = Memory(terms)
        self.reads = Reads(me.profile, now_us)
        self._me, self._numbers, self._out = me, numbers, out

    def begin_read_if_due(self, now_us: int, *, at_once: bool = False) -> int:
        """Ask for the next read if it is due; how early (us) what else is due soon may go along with it.

        `at_once`: something waits for one that begins now.
        """
        if at_once:
            self.reads.soon(now_us)
        return self.reads.begin_if_due(self._numbers, now_us, self._out)

    def take(self, answer: StoreAnswer, leadership: Leadership, beside: Beside, now_us: int) -> Answered:
        """Give an answer to whoever waits for it."""
        match answer:
            case StripRead() if another := self.memory.another_store(answer, self._me):
                self._out.panic(f"its store went back in time, or is another one: {another}")
            case StripRead() if leadership.awaits(answer):
                self._note(answer, beside, now_us)
                leadership.take(answer, beside, now_us)
            case StripRead(read=read) if self.reads.awaits(read):
                self.reads.done(answer.started_us, now_us)
                self._note(answer, beside, now_us)
                beside.links.see_views(answer.strip, now_us)
                return Answered(leadership.look(answer, beside.observer, now_us), shows_strip=True)
            case StripUnread(read=read) if self.reads.awaits(read):
                self.reads.failed(now_us)
                beside.observer.lose_sight(now_us)
            case StoreRefused(kind="foreign"):
                self._out.panic(answer.error)
            case _ if leadership.awaits(answer):
                leadership.take(answer, beside, now_us)
            case StoreDone(operation=operation):
                _register_written(beside.registers.ended(operation), leadership, beside)
            case StoreRefused(operation=operation):
                _register_refused(beside.registers.ended(operation), answer.error, leadership, beside, now_us)
            case _:
                pass  # an answer that nobody waits for any more
        return Answered([])

    def _note(self, read: StripRead, beside: Beside, now_us: int) -> None:
        database = beside.replica.database
        sightings.take_read(beside.observer, beside.links, read, database, now_us, self._out)


def _register_written(kind: str, leadership: Leadership, beside: Beside) -> None:
    leadership.inability.written(kind)
    if kind == "marks":
        leadership.publish_marks(beside)


def _register_refused(kind: str, error: str, leadership: Leadership, beside: Beside, now_us: int) -> None:
    """The view or the marks could not be written: again soon (P2.11)."""
    if kind == "marks":
        beside.registers.publish_anew()
    elif kind == "view":
        beside.links.view_refused(now_us)
    if kind:
        leadership.register_refused(kind, error, now_us)
