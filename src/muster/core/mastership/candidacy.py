"""When this node claims mastership, and to whom it hands it over (P2.2, P2.10, P2.11, P2.13).

It claims only once no predecessor may lead any more; candidates of a better rank have their turn before. After an
attempt that failed it waits: what speaks against this node is for the others a reason to be first.
"""

from collections.abc import Collection, Mapping

from muster.core.draft import is_up
from muster.core.leases.observer import Observer
from muster.core.links.connectivity import surviving_set
from muster.core.links.links import Links
from muster.core.mastership import machine as mastership
from muster.core.mastership.tenure import Tenure
from muster.core.this_node import ThisNode
from muster.records.database import Database
from muster.records.levels import NodeState
from muster.records.messages import Report
from muster.records.units import US_PER_MS

TROUBLE_PAUSE_READS = 10  # after the store has refused something of a claim or a mastership


class Candidacy:
    """Since when this node might claim, and from when on it may."""

    def __init__(self, me: ThisNode) -> None:
        self._me = me
        self._free_since_us: int | None = None  # when it first saw that nobody may lead
        self._not_before_us = 0

    def put_off(self, until_us: int) -> None:
        """An attempt has failed: the next one is not before then."""
        self._free_since_us, self._not_before_us = None, until_us

    def after_trouble(self, now_us: int) -> None:
        """The store has refused something: a short pause."""
        self.put_off(now_us + TROUBLE_PAUSE_READS * self._me.profile.read_ms * US_PER_MS)

    def has_its_turn(
        self,
        tenure: Tenure,
        observer: Observer,
        links: Links,
        database: Database,
        unable: Collection[int],
        now_us: int,
    ) -> bool:
        """Whether no predecessor may lead any more, and no better candidate claims (P2.2, P2.10, P2.13).

        `unable`: the nodes that say that they cannot lead. A member outside the surviving set leaves the claim to that
        set (SPEC 7.4).
        """
        if not tenure.is_idle or now_us < self._not_before_us or not tenure.may_judge(observer.read_started_us):
            return False
        free = mastership.may_claim(observer.strip, self._me.node, observer.is_out)
        if not free or not observer.may_lead(now_us):
            self._free_since_us = None
            return False
        if self._free_since_us is None:
            self._free_since_us = now_us
        waited_us = now_us - self._free_since_us
        if waited_us < observer.rank(database, unable) * self._me.profile.claim_stagger_ms * US_PER_MS:
            return False
        candidates = links.candidates(database, observer.strip, observer.may_claim_soon, now_us)
        return self._me.node not in candidates or self._me.node in surviving_set(candidates)

    def claimed(self) -> None:
        """It claims: its next turn is counted anew."""
        self._free_since_us = None


def has_successor(database: Database, me: int, reports: Mapping[int, Report]) -> bool:
    """Whether this master leaves the cluster, and a joined member is there to take over (SPEC 3.11)."""
    if database.member(me).state is not NodeState.LEAVING:
        return False
    return any(
        is_up(member) and (report := reports.get(member.node)) is not None and report.incarnation == member.incarnation
        for member in database.members.values()
    )
