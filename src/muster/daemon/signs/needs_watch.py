"""Looks what needs a person, and tells those who do not ask: the log, events, the service manager (P10.12).

Queries and metrics ask for the same list. It has no timer of its own: the daemon calls `look` after each of its ticks.
It does not look at every entry: with a transition under way that would be most of what a daemon does.
"""

import time
from collections.abc import Mapping
from functools import partial

from msgspec.structs import replace

from muster.core.fencing.proofs import is_unarmed, proves_by_expiry
from muster.core.needs.machine import Needs, Told, well
from muster.core.needs.need import Need, Path, Seen, Straggler
from muster.core.node import insight
from muster.daemon.shell.daemon import Daemon, boottime_us
from muster.daemon.signs.evidence import conditions
from muster.daemon.trust.certificate_ends import Advice, certificates_that_end
from muster.records.database import Database
from muster.records.nodes import Cluster, NodeConfig
from muster.records.terms import NO_NODE

PAUSE_US = 250_000  # between two looks
CALM_PAUSE_US = 1_000_000  # the same while the replica stays as it was, and nothing is even suspected
CERTIFICATES_US = 2_000_000  # between two looks at certificates and keys: they are on a disk, and last for days
FRESH_US = 20_000  # what is so old is good enough for whoever asks
US_PER_S = 1_000_000
NEEDED, OVER = "needs you", "need over"  # in the log


class NeedsWatch:
    """The needs of one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon, self._machine = daemon, Needs()
        self._told = Told()
        self._looked_us, self._index = 0, -1
        self._known: dict[tuple[str, str], Need] = {}
        self._certificates = _Certificates(daemon)
        daemon.needs = self.now

    def now(self) -> Told:
        """What needs a person now."""
        now_us, index = boottime_us(), self._daemon.node.database.index
        if index != self._index or now_us - self._looked_us >= FRESH_US:
            self._looked_us, self._index = now_us, index
            self._look(now_us)
        return self._told

    def look(self) -> None:
        """Look, unless that was done a moment ago."""
        is_calm = self._daemon.node.database.index == self._index and not self._machine.suspects
        if boottime_us() - self._looked_us >= (CALM_PAUSE_US if is_calm else PAUSE_US):
            self.now()

    def _look(self, now_us: int) -> None:
        node = self._daemon.node
        seen = seen_by(self._daemon, self._certificates.ending(now_us))
        found = self._machine.look(node.database, seen, now_us)
        offset_s = time.time() - now_us / US_PER_S
        needs = tuple(self._dated(need, offset_s) for need in found)
        self._told = Told(needs, self._machine.beyond, well(node.database, seen, needs))
        self._tell({need.key: need for need in needs})

    def _dated(self, need: Need, offset_s: float) -> Need:
        before = self._known.get(need.key)
        same = before is not None and before.since_us == need.since_us
        at_s = before.since_s if before is not None and same else round(offset_s + need.since_us / US_PER_S)
        return replace(need, since_s=at_s)

    def _tell(self, needs: dict[tuple[str, str], Need]) -> None:
        before, self._known = self._known, needs
        if before == needs:
            return
        for key, need in needs.items():
            was = before.get(key)
            if was is None or was.words != need.words:
                self._daemon.note(NEEDED, need.line)
        for key, need in before.items():
            if key not in needs:
                self._daemon.note(OVER, need.words)
        self._daemon.events.needs_changed(tuple(needs.values()))
        self._daemon.tell_of_change()


class _Certificates:
    """What is the matter with certificates and keys, looked at as rarely as that changes."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._looked_us: int | None = None
        self._of: tuple[Cluster, Mapping[int, NodeConfig]] | None = None
        self._found: tuple[Advice, ...] = ()

    def ending(self, now_us: int) -> tuple[Advice, ...]:
        """Sentences and next steps."""
        database = self._daemon.node.database
        of = database.cluster, database.nodes
        is_same = self._of is not None and all(a is b for a, b in zip(of, self._of, strict=True))
        if self._looked_us is None or not is_same or now_us - self._looked_us >= CERTIFICATES_US:
            self._looked_us, self._of = now_us, of
            holds_key = self._daemon.keys.holds_all(database.cluster)
            self._found = tuple(certificates_that_end(database, time.time(), self._daemon.node.me, holds_key=holds_key))
        return self._found


def seen_by(daemon: Daemon, certificates: tuple[Advice, ...]) -> Seen:
    """What the daemon's node sees beside its replica."""
    node, database = daemon.node, daemon.node.database
    master = insight.master(node)
    return Seen(
        node=node.me,
        incarnation=node.incarnation,
        confirmed=node.replica.confirmed,
        master=NO_NODE if master is None else master,
        trouble=node.replica.trouble,
        live=frozenset(each for each in database.nodes if node.observer.is_live(each)),
        conditions={other: found[0] for other, found in conditions(daemon).items()},
        waiting={each.node: each for each in insight.required_levels(node)},
        unable=insight.unable_to_lead(node),
        barred=daemon.barred(),
        lacking=daemon.lacking,
        fence_troubles=insight.fence_troubles(node),
        fences=not node.observer.one_machine,
        watched=frozenset(each for each in database.nodes if proves_by_expiry(node.observer.strip.lease(each))),
        unarmed=frozenset(each for each in database.nodes if is_unarmed(node.observer.strip.lease(each))),
        fullness=insight.fullness(node),
        paths=_paths(daemon, database),
        stragglers=_stragglers(daemon, database),
        certificates=certificates,
        age_ms=partial(insight.age_ms, node),
        explain=insight.explainer(node),
        boots=node.setup.boots,
    )


def _paths(daemon: Daemon, database: Database) -> tuple[Path, ...]:
    others = [other for other in database.nodes if other != daemon.node.me and len(database.nodes[other].addresses) > 1]
    return tuple(
        Path(other, str(path["address"]), str(path["state"])) for other in others for path in daemon.paths(other)
    )


def _stragglers(daemon: Daemon, database: Database) -> tuple[Straggler, ...]:
    found = []
    for identity, (waiting, elapsed_us) in insight.waited_for(daemon.node).items():
        transition = database.transitions.get(identity)
        for node in waiting if transition is not None else ():
            assert transition is not None
            level = next((each for each in database.member(node).levels if each.number == transition.level), None)
            if level is not None and not transition.awaits:
                hung = 0 < level.deadline_ms * 1000 < elapsed_us
                found.append(Straggler(node, level.number, level.name, transition.node, str(transition.kind), hung))
    return tuple(found)
