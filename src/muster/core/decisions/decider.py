"""Who decides on services: the master's rules about that (P6.42-P6.45; SPEC 6.4, 2.7).

Theory of operation. While there are lockspaces, each member asks its lock process for one lock, and says in its report
by which grant it has it. The master commits who has the highest grant as the decider; from then on only that one's
decisions are committed, each as one entry, and only if it was made from the very index that is the newest. The master
may withdraw the decider at any moment, by an entry as well: then it decides itself, as where there are no locks, until
somebody has a higher grant. So who decides is always known from the log, and a holder that was paused, or has lost the
lock without knowing it, is refused by what is committed, and not by anybody's clock.
"""

from collections.abc import Iterable

from msgspec.structs import replace

from muster.core.draft import Draft, Facts, is_up
from muster.records.database import Change, Database, Forget
from muster.records.deciders import NO_GRANT, SERVICES, Decider, Grant, grant_text
from muster.records.members import Member
from muster.records.messages import Proposal
from muster.records.services import Service
from muster.records.terms import NO_NODE, Term
from muster.records.versions import DECIDERS

NOBODY_YET = "no node has the decision lock yet"
_FORGOTTEN = ("service", "maintenance", "standby")  # kinds of record that a round of services may forget
OVERTAKEN = "the cluster changes, and its snapshot is no longer the newest"


def recorded(database: Database) -> Decider | None:
    """The decider that is in force; None where the master decides itself."""
    known = database.deciders.get(SERVICES)
    return known if known is not None and known.node != NO_NODE else None


def grant_of(database: Database, facts: Facts) -> Grant | None:
    """By which grant the master decides on services itself; None where it has none, or another node decides."""
    known = recorded(database)
    return known.grant if known is not None and _is_own(known, database.member(facts.me).incarnation, facts) else None


def _is_own(known: Decider, incarnation: int, facts: Facts) -> bool:
    return (known.node, known.incarnation) == (facts.me, incarnation)


def follow(draft: Draft, facts: Facts) -> None:
    """Record who has the lock now, or that nobody is known to (P6.42, P6.43)."""
    known, spaces = draft.deciders.get(SERVICES), draft.cluster.lockspaces
    if known is None and not spaces:
        return
    if draft.cluster.active_version < DECIDERS:
        return
    newest = _newest(draft, facts, known.grant if known is not None else NO_GRANT) if spaces else None
    if newest is not None:
        what = f"{draft.name(newest.node)} decides on services, by grant {grant_text(newest.grant)}"
        draft.put(newest, what)
    elif known is None:
        draft.put(Decider(SERVICES, NO_NODE, 0, since=draft.index, cause=NOBODY_YET))
    elif known.node != NO_NODE and (why := _why_over(known, draft, facts)):
        over = replace(known, node=NO_NODE, incarnation=0, since=draft.index, cause=why)
        draft.put(over, f"the master decides on services: {why}")


def _newest(draft: Draft, facts: Facts, above: Grant) -> Decider | None:
    """Who says that it has the lock, by the highest grant, if that is above the recorded one."""
    found: Decider | None = None
    for member in draft.members.values():
        report = facts.report(member) if is_up(member) else None
        if report is None or report.grant is None or report.grant <= above or facts.why_no_decider(member.node):
            continue
        above = report.grant
        found = Decider(SERVICES, member.node, member.incarnation, report.grant, draft.index)
    return found


def _why_over(known: Decider, draft: Draft, facts: Facts) -> str:
    """Why the recorded decider is none any more, in words; empty while it is."""
    name, member = draft.name(known.node), draft.member(known.node)
    if not draft.cluster.lockspaces:
        return "there are no lockspaces any more"
    if member.incarnation != known.incarnation or not is_up(member):
        return f"{name}, which had the decision lock, is no joined member any more"
    report = facts.report(member)
    if report is None and not facts.services_open:
        return ""  # a new master hears of all of them before anybody decides (P6.2)
    if report is None or report.grant != known.grant:
        return f"{name} has the decision lock no more"
    return facts.why_no_decider(known.node)


def is_the_masters(draft: Draft, facts: Facts) -> bool:
    """Whether the master decides in this very round: nobody else is recorded, and it has not just lost the lock."""
    known = draft.database.deciders.get(SERVICES)
    if known is None or known.node == NO_NODE:
        return True
    is_own = _is_own(known, draft.database.member(facts.me).incarnation, facts)
    return is_own and draft.deciders.get(SERVICES) == known


def refusal(proposal: Proposal, sender: int, term: Term, database: Database, facts: Facts) -> str:
    """Why a decision is not committed, in words; empty where it is (P6.44, SPEC 2.7)."""
    if proposal.term != term:
        return f"it was made in term {proposal.term.number}"
    if not is_by_the_recorded(proposal, sender, database):
        return f"grant {grant_text(proposal.grant)} is not the one that is recorded"
    if is_overtaken(proposal, database):
        return OVERTAKEN
    member = database.member(sender)
    if not is_up(member) or member.incarnation != proposal.incarnation:
        return "it is no joined member any more"
    report = facts.report(member)
    if report is None or report.grant != proposal.grant:
        return "it has the decision lock no more"
    if not facts.services_open:
        return "not every member has shown what it runs yet"
    return _why_no_decision(proposal.changes, database)


def is_overtaken(proposal: Proposal, database: Database) -> bool:
    """Whether anything was committed since its snapshot: so nothing that it read has changed where nothing was."""
    return proposal.index != database.index


def is_by_the_recorded(proposal: Proposal, sender: int, database: Database) -> bool:
    """Whether the sender is the recorded decider, by the very grant that is recorded."""
    known = recorded(database)
    return known is not None and known == replace(
        known, node=sender, incarnation=proposal.incarnation, grant=proposal.grant
    )


def _why_no_decision(changes: Iterable[Change], database: Database) -> str:
    """What in it is nothing that follows for services, in words: so much, and no more, is a decider's."""
    for change in changes:
        match change:
            case Service():
                continue
            case Forget(kind=kind) if kind in _FORGOTTEN:
                continue
            case Member() if replace(database.member(change.node), eviction=change.eviction) == change:
                continue  # its stop policy forces a node out (P6.12)
            case _:
                return "it changes what is not for it to decide"
    return "" if changes else "it changes nothing"
