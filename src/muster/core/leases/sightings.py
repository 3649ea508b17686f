"""What a read of the strip shows this node: it is noted, put to the log, and asked about (P4.2, P4.6, P7.15, P7.18)."""

from muster.core.inputs import StripRead
from muster.core.leases.lease import Evidence
from muster.core.leases.observer import Observer
from muster.core.links.links import Links
from muster.core.outbox import Outbox
from muster.records.database import Database


def take_read(observer: Observer, links: Links, read: StripRead, database: Database, now_us: int, out: Outbox) -> None:
    """Take a read in: who is heard late by it, who is proven dead by it, and whether this node has been forced out."""
    observer.see(read)
    note_late(observer, links, database, now_us, out)
    for node, evidence in observer.newly_dead(database):
        _tell_proof(node, evidence, database, out)
    for node in observer.take_last_words(database):
        _incarnation, words = observer.last_words[node]
        out.trace("last words", f"{database.name_of(node)}: {words}", about=node)
    for owner in observer.forced_out_by():  # the guard obeys their marks too, unless it hangs (P7.10)
        out.panic(f"node {owner} forced it out")
    out.extend(observer.to_ask(now_us))


def take_evidence(observer: Observer, node: int, evidence: Evidence, database: Database, out: Outbox) -> None:
    """Somebody vouches for the stop of an incarnation (P7.13, P7.16)."""
    if observer.confirm(node, evidence):
        _tell_proof(node, evidence, database, out)


def note_late(observer: Observer, links: Links, database: Database, now_us: int, out: Outbox) -> None:
    """Note who is heard though its lease has run out; who is so for the first time is shown (P4.6)."""
    heard = links.heard(len(database.nodes), now_us)
    late = observer.late(heard, links)
    for node in sorted(links.note_late(late)):
        detail = f"{database.name_of(node)}: its lease has run out, and it is still heard: no proof by expiry"
        out.trace("heard late", detail, about=node)
    observer.note_heard(heard, late)


def _tell_proof(node: int, evidence: Evidence, database: Database, out: Outbox) -> None:
    detail = f"{database.name_of(node)}: {evidence.kind.words}, {evidence.detail}"
    out.trace("proof of death", detail, about=node)
