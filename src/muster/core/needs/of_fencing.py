"""What of fencing needs a person: devices, failures, quarantines, watchdogs that wait for a boot (P10.12, P7.25)."""

from collections.abc import Iterator

from muster.core.fencing.proofs import watchdog_of
from muster.core.needs.need import NOTICE, Need, Seen, Suspicion, certain
from muster.records.database import Database
from muster.records.fencing import FenceOutcome, FencePhase, Fencing
from muster.records.levels import NodeState
from muster.records.terms import NO_NODE
from muster.records.watchdogs import NONE

LIST = "muster fence list"


def of_fencing(database: Database, seen: Seen) -> Iterator[Suspicion]:
    """What may be wrong with fence devices, and with what was asked of them."""
    for name in sorted(database.fence_devices):
        troubled = {node: told[name] for node, told in sorted(seen.fence_troubles.items()) if name in told}
        if troubled:
            yield certain(_of_device(database, name, troubled), name)
    for node, record in sorted(database.fencing.items()):
        if node in database.nodes:
            yield from _of_request(database, record)
    if seen.fences and database.fence_plans:
        for node in sorted(database.nodes.keys() - database.fence_plans.keys() - seen.watched):
            if database.member(node).state is NodeState.JOINED:
                yield certain(_unfenced(database, node))
    for node in sorted(seen.unarmed & database.nodes.keys()) if seen.fences else ():
        if database.member(node).state is NodeState.JOINED and watchdog_of(database, node) != NONE:
            yield certain(_unarmed(database, node))


def _of_device(database: Database, name: str, troubled: dict[int, str]) -> Need:
    first = next(iter(troubled))
    others = f" (and {len(troubled) - 1} more)" if len(troubled) > 1 else ""
    words = f"{database.name_of(first)}{others} cannot use fence device {name}; {troubled[first]}"
    return Need("fence device", f"node/{database.name_of(first)}", words, f"muster fence test {name}")


def _of_request(database: Database, record: Fencing) -> Iterator[Suspicion]:
    name = database.name_of(record.node)
    subject = f"node/{name}"
    if record.quarantined:
        words = f"{name} is in quarantine: it was fenced {len(record.fenced)} times within an hour; it stays off and "
        words += "does not join; find out why"
        yield certain(Need("quarantine", subject, words, f"muster fence release {name}"))
    failed = _failed(record)
    if record.phase is FencePhase.OFF and record.asker == NO_NODE and not failed:
        words = f"{name} is to be fenced, and no member can reach its devices"
        yield certain(Need("fencing fails", subject, words, LIST))
    elif record.phase is FencePhase.OFF and failed:
        words = f"{name} could not be fenced yet, and it is tried again; {failed}"
        yield certain(Need("fencing fails", subject, words, f"muster fence history {name}"))
    elif record.phase is FencePhase.IDLE and failed and _failed_on(record):
        words = f"{name} is off, and could not be turned on again; {failed}"
        yield certain(Need("fencing fails", subject, words, f"muster fence history {name}", NOTICE))


def _failed(record: Fencing) -> str:
    """Why the last request about this incarnation has failed, in words; empty where it has not."""
    past = record.past[-1] if record.past else None
    if past is None or past.incarnation != record.incarnation or past.outcome is not FenceOutcome.FAILED:
        return ""
    return f"method {past.method}, {past.phase.word}: {past.detail}"


def _failed_on(record: Fencing) -> bool:
    return record.past[-1].phase is FencePhase.ON


def _unfenced(database: Database, node: int) -> Need:
    name = database.name_of(node)
    words = f"nothing says how {name} is fenced; if it falls silent, only a person can say that it has stopped"
    return Need("not fenced", f"node/{name}", words, f"muster fence method {name} --help", NOTICE)


def _unarmed(database: Database, node: int) -> Need:
    name = database.name_of(node)
    words = f"a watchdog is set for {name}, and proves nothing yet; it counts once {name} has left and boots"
    return Need("watchdog", f"node/{name}", words, f"muster node leave {name}", NOTICE)
