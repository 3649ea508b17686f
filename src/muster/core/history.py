"""What a committed entry means in words, for the log and the timeline (SPEC 8.2, 9.4)."""

from muster.core.effects import Trace
from muster.core.transition import IDENTITIES_PER_ENTRY
from muster.records.state import Database, Entry, Forget, Member, NodeState, Service, Transition


def narrate(before: Database, entry: Entry) -> list[Trace]:
    """The events of `entry`, which is about to be applied to `before`."""
    traces: list[Trace] = []
    for change in entry.changes:
        match change:
            case Transition():
                traces += _transition(before, entry, change)
            case Forget(kind="transition", key=key):
                over = before.transitions.get(int(key))
                if over is not None:
                    traces.append(Trace("transition done", f"{before.name_of(over.node)} {over.kind}"))
            case Service():
                traces += _service(before, change)
            case Member(eviction=eviction) if eviction is not None:
                traces.append(Trace("node condemned", f"{before.name_of(change.node)}: {eviction.cause}"))
            case Member(state=NodeState.FORCED_LEAVING, last_proof=proof) if proof is not None:
                traces.append(Trace("forced out", f"{before.name_of(change.node)} on proof: {proof.kind.words}"))
            case Member(refusal=refusal) if refusal:
                traces.append(Trace("join refused", f"{before.name_of(change.node)}: {refusal}"))
            case _:
                pass
    return traces


def _transition(before: Database, entry: Entry, now: Transition) -> list[Trace]:
    name = before.name_of(now.node)
    if now.identity // IDENTITIES_PER_ENTRY == entry.index:
        return [Trace("transition opened", f"{name} {now.kind}: {now.cause}")]
    was = before.transitions.get(now.identity)
    if was is not None and was.position != now.position:
        return [Trace("level done", f"{name} {now.kind} level {was.level}")]
    if was is not None and was.barrier != now.barrier:
        return [Trace("barrier done", f"{name} {now.kind} level {was.level} barrier {was.barrier}")]
    return []


def _service(before: Database, now: Service) -> list[Trace]:
    was = before.services.get(now.name)
    traces = []
    if was is None or was.state is not now.state or was.node != now.node:
        where = f" on {before.name_of(now.node)}" if now.node >= 0 else ""
        traces.append(Trace(f"service {now.state}", f"{now.name}{where}"))
    if now.cause and (was is None or was.cause != now.cause):
        traces.append(Trace("service stuck", f"{now.name}: {now.cause}"))
    return traces
