"""What a node can say when it is asked: functions that read it and change nothing.

The driver asks between two steps; nothing that anybody asks may decide when a deadline began, what a report says, or
what is acknowledged. A test compares a copy of the node with the node after each of these functions.
"""

from collections.abc import Callable

from muster.core.draft import Draft, Facts, counts, is_up
from muster.core.links.connectivity import Candidate
from muster.core.node.node import Node
from muster.core.nodes import authority
from muster.core.operations.plan import Plan
from muster.core.room import Fullness, Room
from muster.core.room import fullness as fullness_of
from muster.core.services.explanation import Explanation
from muster.core.services.explanation import explain as explained_by
from muster.core.services.places import AwaitedThere
from muster.core.services.round import Round
from muster.core.transitions import registration, required
from muster.records.deciders import SERVICES
from muster.records.members import Member
from muster.records.messages import Report
from muster.records.terms import Term
from muster.records.versions import DECIDERS


def master(node: Node) -> int | None:
    """The node that this one takes for master, if any."""
    if node.is_master:
        return node.me
    holder = node.account.holder()
    return holder.node if holder is not None and node.observer.leads(holder.node) else None


def heard(node: Node) -> frozenset[int]:
    """The nodes whose frames arrived within the link bound."""
    return node.links.heard(len(node.database.nodes), node.now_us)


def connectivity(node: Node) -> dict[int, Candidate]:
    """The live members as the choice of the surviving set sees them."""
    return node.links.candidates(node.database, node.observer.strip, node.observer.is_live, node.now_us)


def store_lost_ms(node: Node) -> int:
    """For how long no read of the store has succeeded, if that is longer than a gap; else 0 (SPEC 7.5)."""
    return node.observer.lost_ms(node.now_us)


def last_words(node: Node, other: int) -> str:
    """Why the last incarnation of a node panicked, as its tombstone says; empty where none was read (P7.18)."""
    incarnation, words = node.observer.last_words.get(other, (0, ""))
    return words if incarnation == node.database.member(other).incarnation else ""


def unable_to_lead(node: Node) -> dict[int, str]:
    """The nodes that say that they cannot lead, and why: their own area cannot be written (P2.11)."""
    return node.leadership.inability.everywhere(node.me, node.links.connected)


def fence_troubles(node: Node) -> dict[int, dict[str, str]]:
    """By node: the fence devices that it cannot use, and why; of those that are connected (P7.28)."""
    told = node.heartbeats.fence_troubles
    found = {other: dict(told[other]) for other in node.links.connected if told.get(other)}
    own = node.account.asker.troubles
    return found | {node.me: own} if own else found


def remembered(node: Node) -> tuple[int, Term, dict[int, int]]:
    """What a node knows for certain, for its home: an index, its entry's term, durable terms (P11.2)."""
    return *node.replica.known, node.store.memory.terms


def age_ms(node: Node, index: int) -> int:
    """How long ago entry `index` was committed, as far as this node knows."""
    return node.replica.ages.age_ms(index, node.now_us)


def fullness(node: Node) -> Fullness:
    """How full the store is, as far as this node's replica knows."""
    return fullness_of(node.leadership.room, node.database)


def places_awaited(node: Node) -> dict[int, AwaitedThere]:
    """What waits for a place, by node, as far as this node hears of it (P8.12)."""
    return node.heartbeats.places.everywhere(node.me, node.links.connected, node.now_us)


def waited_for(node: Node) -> dict[int, tuple[tuple[int, ...], int]]:
    """Who has not acknowledged the present step of each transition, and for how long it has been at work (us).

    The master knows; the others know what it told them last, and before that take all participants.
    """
    told = (
        node.heartbeats.waiting.told
        if node.leading is None
        else node.leading.waited_for(node.database, node.account.report())
    )
    return node.heartbeats.waiting.since(node.database, told, node.now_us)


def required_levels(node: Node) -> list[required.AwaitingLevels]:
    """The nodes that wait for required levels, as this node knows it (P3.17)."""
    return required.waiting(node.database, lambda index: age_ms(node, index), waited_for(node))


def why_not_deregistered(node: Node, number: int) -> str:
    """Why the end of a program that registers this level could not be its level's alone, in words (P3.18)."""
    names = {each.number for each in required.required_of(node.database.cluster, node.database.nodes.get(node.me))}
    if number in names:
        return f"nodes join only with level {number} (required_levels)"
    return registration.why_loss_fails(number, node.subsystems.levels, node.replica.own_now)


def behind_rotation(node: Node) -> tuple[int, ...]:
    """On the master: the members that the present step of a rotation waits for (P1.7); nobody on others."""
    cluster = node.database.cluster
    if node.leading is None or not cluster.incoming:
        return ()
    reports = node.leading.reports(node.account.report())

    def report(member: Member) -> Report | None:
        found = reports.get(member.node)
        return found if found is not None and found.incarnation == member.incarnation else None

    return authority.behind(node.database.members.values(), report, cluster)


def wants_decision_lock(node: Node) -> bool:
    """Whether this node is to have the decision lock, or to wait for it (P6.42).

    A joined member wants it. By a grant that is over it decides nothing any more: it gives that up.
    """
    own, cluster, grant = node.replica.own_now, node.database.cluster, node.reporting.grant
    if own is None or not is_up(own) or not cluster.lockspaces or cluster.active_version < DECIDERS:
        return False
    known = node.database.deciders.get(SERVICES)
    if grant is None or known is None or known.grant < grant:
        return True
    return (known.node, known.incarnation, known.grant) == (node.me, node.incarnation, grant)


def plan(node: Node) -> Plan:
    """A copy of what this node knows, to try a change on; on the master with how busy the nodes are."""
    reports = node.leading.reports(node.account.report()) if node.leading is not None else {}
    performance = {number: report.performance for number, report in reports.items()}
    ages = dict(node.replica.ages.told(node.database, node.now_us))
    return Plan(node.database, ages, performance, Room(node.setup.region_bytes))


def explain(node: Node, name: str) -> Explanation | None:
    """Why the service is where it is, or is not anywhere, as this node knows it; None if there is none such."""
    return explainer(node)(name)


def explainer(node: Node) -> Callable[[str], Explanation | None]:
    """Explains services as they are now, several of them from one snapshot.

    Only the master has the nodes' reports: another node takes every joined member for one that has reported.
    """
    rounds: list[Round] = []

    def explained(name: str) -> Explanation | None:
        service = node.database.services.get(name)
        if service is None:
            return None
        if not rounds:
            rounds.append(_round_of_now(node))
        return explained_by(service, rounds[0], node.setup.boots)

    return explained


def _round_of_now(node: Node) -> Round:
    leading, observer = node.leading, node.observer
    if leading is not None:
        reports = leading.reports(node.account.report())
    else:
        members = node.database.members.values()
        reports = {
            m.node: Report(node.replica.accepted, 0, m.incarnation, "", (), (), ()) for m in members if counts(m)
        }
    facts = Facts(
        node.now_us, node.me, reports, observer.evidence, observer.is_live,
        leading.unreachable if leading is not None else {}, {},
        leading is None or leading.services_open,
        lambda index: node.replica.ages.age_us(index, node.now_us),
        unclean=observer.unclean,
    )  # fmt: skip
    return Round(Draft(node.database), facts)
