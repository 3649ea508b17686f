"""The links of this node: whom it hears, what its view register says of that, and who must go (SPEC 1.6, 7.4).

A node writes its view at least every `view_ms`, and at once when it changes. The master looks at all views: a pair of
members that do not hear each other, in views that both were written after the loss was first seen and for longer than
the link bound, makes it compute the surviving set. Nobody else decides (P4.4).
"""

from collections.abc import Callable, Iterable
from typing import assert_never

from muster.core.draft import counts
from muster.core.inputs import LinkChange, OwnLinksChanged, PeerConnected, PeerLost
from muster.core.links.connectivity import Candidate, broken_pairs, surviving_set
from muster.core.outbox import Outbox
from muster.records.database import Database
from muster.records.levels import NodeState
from muster.records.registers import Strip
from muster.records.timing import Profile
from muster.records.units import US_PER_MS

NEWER_VIEWS = 2  # the first view written after a loss may have been composed before it


class Links:
    """What this node hears, and what all views together mean."""

    def __init__(self, me: int, profile: Profile, started_us: int, view_sequence: int) -> None:
        self._me, self._profile, self._started_us = me, profile, started_us
        self.connected: dict[int, int] = {}  # peer -> its incarnation
        self.view_sequence = view_sequence
        self.said: frozenset[int] | None = None  # the nodes heard, as last written into the own view
        self.cut_off = False  # the own interfaces have no link
        self.store_lost_ms: dict[int, int] = {}  # for how long each peer says that it cannot read the store
        self._said_cut_off = False
        self.late: frozenset[int] = frozenset()  # the nodes heard after their lease had run out (P4.6)
        self._said_late: frozenset[int] = frozenset()
        self._views_us: dict[int, tuple[int, int]] = {}  # each node's view: its sequence, and when that was first seen
        self.next_view_us = started_us
        self._heard_us: dict[int, int] = {}
        self._broken_since: dict[tuple[int, int], tuple[int, int, int]] = {}
        self._judged: dict[int, int] = {}  # each node's view: its sequence when links were judged last
        self._may_have_changed = True  # something has happened that may change whom this node hears

    def take(self, change: LinkChange, database: Database, now_us: int, out: Outbox) -> None:
        """A connection has come or gone, or the own interfaces have."""
        self.look_again()
        match change:
            case PeerConnected(node=node, incarnation=incarnation):
                self.connect(node, incarnation, now_us)
            case PeerLost(node=node, cause=cause):
                if self.lose(node):
                    out.trace("link lost", f"{database.name_of(node)}: {cause}", about=node)
            case OwnLinksChanged(cut_off=cut_off):
                self.cut_off = cut_off
                out.trace("own links", "no interface of this node has a link" if cut_off else "they are up again")
            case _:
                assert_never(change)

    def look_again(self) -> None:
        """Time has passed, or something has happened: whom this node hears is to be looked at in this step."""
        self._may_have_changed = True

    def is_due(self, now_us: int, early_us: int) -> bool:
        """Whether to look now at whom this node hears: it may have changed, or a view is due within `early_us`."""
        due = self._may_have_changed or now_us + early_us >= self.next_view_us
        self._may_have_changed = False
        return due

    def connect(self, node: int, incarnation: int, now_us: int) -> None:
        """A peer is connected. However short that is: the link is not the one that was lost before (P4.4)."""
        self.connected[node] = incarnation
        self._broken_since.pop((min(self._me, node), max(self._me, node)), None)
        self.hear(node, now_us)

    def lose(self, node: int) -> bool:
        """A peer's connection has ended; whether it was connected."""
        return self.connected.pop(node, None) is not None

    def hear(self, node: int, now_us: int) -> None:
        """A frame of `node` arrived."""
        self._heard_us[node] = now_us

    def heard_since(self, node: int, since_us: int) -> bool:
        """Whether a frame of a connected node has arrived at `since_us` or later."""
        return node in self.connected and self._heard_us.get(node, -1) >= since_us

    def frame_age_us(self, node: int, now_us: int) -> int:
        """Time since the last frame of `node`, or since this daemon began."""
        return now_us - self._heard_us.get(node, self._started_us)

    def see_views(self, strip: Strip, now_us: int) -> None:
        """Note which views have advanced."""
        for node, view in enumerate(strip.views):
            sequence = view.stamp.sequence if view else 0
            if self._views_us.get(node, (-1, 0))[0] != sequence:
                self._views_us[node] = (sequence, now_us)

    def view_age_us(self, node: int, now_us: int) -> int:
        """Time since the view of `node` was first seen as it is."""
        return now_us - self._views_us.get(node, (0, self._started_us))[1]

    def heard(self, nodes: int, now_us: int) -> frozenset[int]:
        """The connected nodes whose frames arrived within the link bound, in a cluster of `nodes` nodes."""
        bound_us = self._profile.link_loss_ms(nodes) * US_PER_MS
        return frozenset(node for node in self.connected if now_us - self._heard_us.get(node, -bound_us) <= bound_us)

    def view_due(self, nodes: int, live: Iterable[int], now_us: int, early_us: int = 0) -> frozenset[int] | None:
        """What to write into the own view now, or None. What is due within `early_us` is due.

        A daemon that has just started says nothing of links that it could not have made yet: what the view register
        still holds from before its start is no row newer than a loss (SPEC 7.4).
        """
        heard = self.heard(nodes, now_us)
        settled_us = self._started_us + self._profile.link_loss_ms(nodes) * US_PER_MS
        if now_us < settled_us and not set(live) <= heard | {self._me}:
            self.next_view_us = min(settled_us, now_us + self._profile.heartbeat_ms * US_PER_MS)
            return None
        news = heard != self.said or self.cut_off != self._said_cut_off or self.late != self._said_late
        if now_us + early_us < self.next_view_us and not news:
            return None
        return heard

    def view_written(self, heard: frozenset[int], now_us: int) -> int:
        """The own view is being written with `heard`: as which record of its register."""
        self.view_sequence += 1
        self.said, self._said_cut_off, self._said_late = heard, self.cut_off, self.late
        self.next_view_us = now_us + self._profile.view_ms * US_PER_MS
        return self.view_sequence

    def view_waits(self, now_us: int) -> None:
        """The last view is still being written: the next one comes a little later."""
        self.next_view_us = now_us + self._profile.read_ms * US_PER_MS

    def note_late(self, late: frozenset[int]) -> frozenset[int]:
        """Who is heard though its lease has run out; returns those who were not before (P4.6)."""
        fresh, self.late = late - self.late, late
        return fresh

    def view_refused(self, now_us: int) -> None:
        """The store did not take the own view: what it says is not said yet, and is to be written again soon."""
        self.next_view_us = min(self.next_view_us, now_us + self._profile.read_ms * US_PER_MS)

    def candidates(
        self, database: Database, strip: Strip, is_live: Callable[[int], bool], now_us: int
    ) -> dict[int, Candidate]:
        """The live members as their views describe them, the own one as it is now."""
        work: dict[int, int] = {}
        for service in database.services.values():
            work[service.node] = work.get(service.node, 0) + 1
        found = {}
        for member in database.members.values():
            if not counts(member) or member.eviction is not None or not is_live(member.node):
                continue
            view = strip.view(member.node)
            own = self.heard(len(database.nodes), now_us) if member.node == self._me else None
            heard = own if own is not None else view.heard if view else frozenset()
            joined = member.state is NodeState.JOINED
            alone = not heard and (self.cut_off if own is not None else view is not None and view.cut_off)
            found[member.node] = Candidate(member.node, joined, work.get(member.node, 0), heard, alone)
        return found

    def judge(
        self, candidates: dict[int, Candidate], strip: Strip, nodes: int, now_us: int
    ) -> dict[int, frozenset[int]]:
        """Who is outside the surviving set, and which links each of them has lost; nobody while it is not certain."""
        broken = broken_pairs(candidates)
        unseen = self._with_unseen_views(candidates, strip)
        self._broken_since = {
            pair: since for pair, since in self._broken_since.items() if pair in broken and unseen.isdisjoint(pair)
        }
        bound_us = self._profile.link_loss_ms(nodes) * US_PER_MS
        certain = False
        for a, b in broken:
            beats = self._view_beat(a, strip), self._view_beat(b, strip)
            since_us, *seen = self._broken_since.setdefault((a, b), (now_us, *beats))
            newer = all(beat >= before + NEWER_VIEWS for beat, before in zip(beats, seen, strict=True))
            certain = certain or (newer and now_us - since_us >= bound_us)
        if not certain:
            return {}
        outside = candidates.keys() - surviving_set(candidates)
        return {node: frozenset(b if a == node else a for a, b in broken if node in (a, b)) for node in outside}

    def _with_unseen_views(self, nodes: Iterable[int], strip: Strip) -> set[int]:
        """The others that have written more than one view since the last judgement: one that was not seen may have said
        that a lost link was there again.
        """
        judged, self._judged = self._judged, {node: self._view_beat(node, strip) for node in nodes}
        return {node for node, beat in self._judged.items() if node != self._me and beat > judged.get(node, beat) + 1}

    def _view_beat(self, node: int, strip: Strip) -> int:
        if node == self._me:
            return self.view_sequence
        view = strip.view(node)
        return view.stamp.sequence if view else 0
