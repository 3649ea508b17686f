"""What a node remembers of its store, and how it finds out that the store went back in time (P11.2-P11.4).

Theory of operation. Three things in a store never go back: the term of a claim register (P2.1), the incarnation of a
lease register, and the history, in which each index has one entry of one term (the theorem of section 2). What a node
knows of them it knows for certain: terms that were durable when it read or heard of them, and the index of a replica
that was confirmed. A store that shows less, or another term at that index, is an older copy, or one that others went
on with. What was only read from a journal may never have been committed, and is not remembered.
"""

from msgspec import Struct, field

from muster.core.inputs import StripRead
from muster.core.this_node import ThisNode
from muster.records.database import Database
from muster.records.registers import Claim, Strip
from muster.records.terms import NO_TERM, Term


class Remembered(Struct, frozen=True):
    """What a node's home holds of one cluster. All of it was known for certain, and none of it ever goes back."""

    cluster_id: str  # hexadecimal
    store_id: str  # of the store that all this was seen in last
    index: int = 0  # of the newest confirmed replica
    term: Term = NO_TERM  # under which the entry at `index` was committed
    terms: dict[int, int] = field(default_factory=dict)  # slot -> number of its highest term that was durable
    incarnation: int = 0  # this node's last
    slot: int = -1  # in which that ran; -1 in files that do not say so


def holds(database: Database, index: int, term: Term) -> bool:
    """Whether a database has the entry that `term` committed at `index`, as far as its lineage tells."""
    if database.index < index:
        return False
    found = database.term_at(index)
    return found is None or found == term


def problem(remembered: Remembered, store_id: str, strip: Strip, database: Database, node: int) -> str:
    """Why a store may not be booted on, in words; empty where it may. The caller has compared the cluster ids.

    A store id that this node has not met is of a store that was adopted since: there the history may be another one,
    if only everything is above what is remembered (P11.5). Registers that are unknown say nothing.
    """
    met = store_id == remembered.store_id
    for slot, number in sorted(remembered.terms.items()):
        claim = strip.claim(slot)
        if claim is not None and claim.stamp.term.number < number:
            return f"node {slot} had claimed term {number}, and its register shows {claim.stamp.term.number}"
    lease = strip.lease(node)
    # a home of a node that was removed may be that of its successor, which has another slot
    same_slot = remembered.slot in (-1, node)
    if same_slot and lease is not None and lease.stamp.incarnation < remembered.incarnation:
        return f"incarnation {remembered.incarnation} of this node ran, and its register shows no such one"
    if not met and database.index <= remembered.index:
        return f"it was adopted, but not above index {remembered.index}: it is at {database.index}"
    if met and database.index < remembered.index:
        return f"index {remembered.index} was committed, and it holds no more than index {database.index}"
    if met and not holds(database, remembered.index, remembered.term):
        at = database.term_at(remembered.index)
        return f"index {remembered.index} was committed under term {remembered.term}, and it has one of term {at} there"
    return ""


class Memory:
    """What a running node knows to be durable in its store, and the look at each read that must show it (P11.3)."""

    def __init__(self, terms: dict[int, int]) -> None:
        self._known = {slot: (number, -1) for slot, number in terms.items()}  # slot -> number, known since (us)
        self._claims: tuple[Claim | None, ...] = ()  # as judged last
        self._fresh = True  # something was heard since

    @property
    def terms(self) -> dict[int, int]:
        """The highest durable term number of each slot."""
        return {slot: number for slot, (number, _since) in self._known.items()}

    def heard(self, term: Term, now_us: int) -> None:
        """A member has told of this term: it was durable by then (P2.2)."""
        if term != NO_TERM and term.number > self._known.get(term.node, (0, 0))[0]:
            self._known[term.node] = term.number, now_us
            self._fresh = True

    def another_store(self, read: StripRead, me: ThisNode) -> str:
        """Why this read cannot be of the store that this node booted on, in words (P11.3)."""
        lease = read.strip.lease(me.node)
        if lease is not None and lease.stamp.incarnation < me.incarnation:
            return f"its own lease register shows an earlier incarnation, {lease.stamp.incarnation}"
        return self.judge(read)

    def judge(self, read: StripRead) -> str:
        """Take a read in; why it cannot be of the store that this node knows, in words, or nothing."""
        claims = read.strip.claims
        if claims is self._claims and not self._fresh:
            return ""
        self._claims, self._fresh = claims, False
        for slot, (number, since_us) in self._known.items():
            claim = read.strip.claim(slot)
            if since_us >= read.started_us:
                self._fresh = True  # the next read, which begins after it was known, must show it
            elif claim is not None and claim.stamp.term.number < number:
                shown = claim.stamp.term.number
                return f"node {slot} is known to have claimed term {number}, and its register shows {shown}"
        for claim in claims:
            if claim is not None and claim.mark.term != NO_TERM:  # its claim was durable before it was marked
                self.heard(claim.mark.term, read.finished_us)
        return ""
