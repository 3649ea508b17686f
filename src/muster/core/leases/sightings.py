"""What a read of the strip shows this node: it is noted, put to the log, and asked about (P4.2, P4.6, P7.15, P7.18)."""

from typing import assert_never

from muster.core.inputs import FenceConfirmed, KernelsWord, StripRead
from muster.core.leases.lease import Evidence
from muster.core.leases.observer import Observer
from muster.core.links.links import Links
from muster.core.outbox import Outbox
from muster.records.database import Database
from muster.records.messages import Report
from muster.records.registers import ProofKind


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


def take_word(observer: Observer, word: FenceConfirmed | KernelsWord, database: Database, out: Outbox) -> bool:
    """A fence agent has stopped an incarnation, or the own guard has asked the kernel about it (P7.13, P7.15).

    Whether that is evidence: the kernel may be one that cannot be asked.
    """
    match word:
        case KernelsWord(given=False):
            observer.cannot_ask(word.node, word.incarnation, word.detail)
            return False
        case KernelsWord():
            kind = ProofKind.KERNELS_WORD
        case FenceConfirmed():
            kind = ProofKind.FENCE_AGENT
        case _:
            assert_never(word)
    _take_evidence(observer, word.node, Evidence(kind, word.incarnation, word.detail), database, out)
    return True


def take_testimony(observer: Observer, sender: int, report: Report, database: Database, out: Outbox) -> None:
    """What the kernel has told another node of those that it shares it with (P7.16)."""
    for word in report.words:
        detail = f"{database.name_of(sender)} has asked: {word.detail}"
        evidence = Evidence(ProofKind.KERNELS_WORD, word.incarnation, detail)
        _take_evidence(observer, word.node, evidence, database, out)


def _take_evidence(observer: Observer, node: int, evidence: Evidence, database: Database, out: Outbox) -> None:
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
