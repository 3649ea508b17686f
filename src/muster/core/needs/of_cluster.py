"""What of the cluster as a whole needs a person: mastership, links, levels, the store, what is left alone (P10.12)."""

from collections.abc import Iterator

from muster.core.needs.need import NOTICE, TROUBLE, US_PER_S, Need, Path, Seen, Suspicion, certain
from muster.core.needs.of_nodes import held_by, named
from muster.core.services.instances import is_template
from muster.records.database import Database
from muster.records.deciders import SERVICES
from muster.records.levels import EVENT_MANAGER_LEVEL, NodeState
from muster.records.lockspaces import RESERVED
from muster.records.services import Maintenance, Service, ServiceState, Standby
from muster.records.terms import NO_NODE

CLUSTER = "cluster"
WITHOUT_DECIDER_US = 60 * US_PER_S  # elections and recoveries have passed by then
_KEPT = "nothing is started, moved or restarted"


def of_cluster(database: Database, seen: Seen) -> Iterator[Suspicion]:
    """What may be wrong with the cluster as this node sees it."""
    me = database.name_of(seen.node)
    if seen.master == NO_NODE:
        yield certain(Need("no master", CLUSTER, "no node leads the cluster: nothing is decided", "muster links"))
    if seen.trouble:
        words = f"{me} does not follow the cluster: {seen.trouble}"
        yield certain(Need("not following", f"node/{me}", words, "muster upgrade status"))
    if seen.fullness.words:
        words, _, advice = seen.fullness.words.rpartition("; ")
        yield certain(Need("store", CLUSTER, words, advice))
    for number, (words, next_step) in enumerate(seen.certificates):
        yield certain(Need("certificate", CLUSTER, words, next_step), str(number))
    yield from _of_links(database, seen)
    yield from _of_levels(database, seen)
    yield from _of_decider(database, seen)
    yield from _left_alone(database, seen)


def _of_decider(database: Database, seen: Seen) -> Iterator[Suspicion]:
    """Nobody has the decision lock for long: the master decides, so nothing waits for it (P6.43)."""
    known = database.deciders.get(SERVICES)
    if known is None or known.node != NO_NODE or not database.cluster.lockspaces:
        return  # somebody has it, or nobody is to have it
    words = f"no node decides on services by the decision lock, and the master does: {known.cause}"
    need = Need("decision lock", CLUSTER, words, f"muster lock show {RESERVED}:{SERVICES}", NOTICE)
    yield certain(need, age_ms=seen.age_ms(known.since))._replace(holds_us=WITHOUT_DECIDER_US)


def _of_links(database: Database, seen: Seen) -> Iterator[Suspicion]:
    """A path that is lost while others of the same link are up: nobody notices before the last one goes."""
    paths: dict[int, list[Path]] = {}
    for path in seen.paths:
        paths.setdefault(path.peer, []).append(path)
    me = database.name_of(seen.node)
    for peer, found in paths.items():
        lost = [path.address for path in found if path.state != "up"]
        if not lost or len(lost) == len(found) or database.member(peer).state is NodeState.INACTIVE:
            continue  # a link that is lost as a whole is told as what ails the node
        name = database.name_of(peer)
        words = f"{len(lost)} of {len(found)} paths between {me} and {name} are down: {', '.join(lost)}"
        yield certain(Need("link", f"link/{name}", words, "muster links"))


def _of_levels(database: Database, seen: Seen) -> Iterator[Suspicion]:
    for each in seen.stragglers:
        if each.level <= EVENT_MANAGER_LEVEL.number and each.name in ("membership", EVENT_MANAGER_LEVEL.name):
            continue  # Muster's own levels wait for services, which say themselves what they wait for
        name, about = database.name_of(each.node), database.name_of(each.about)
        words = f"{each.name} (level {each.level}) on {name} has not acknowledged that {about} is {each.kind}"
        kind, severity = ("overdue level", TROUBLE) if each.is_hung else ("level", NOTICE)
        yield certain(Need(kind, f"level/{each.level}@{name}", words, "muster transitions", severity))


def _left_alone(database: Database, seen: Seen) -> Iterator[Suspicion]:
    """What an operator has taken out of Muster's hands: to be ended by the same, who may have forgotten it."""
    for key in sorted(database.maintenance):
        record = database.maintenance[key]
        yield certain(_of_maintenance(database, record), age_ms=seen.age_ms(record.since))
    for node, standby in sorted(database.standby.items()):
        yield certain(_of_standby(database, node, standby), age_ms=seen.age_ms(standby.since))


def _of_maintenance(database: Database, record: Maintenance) -> Need:
    what = f"{record.kind} {record.subject}".strip()
    words = f"{what} is in maintenance{_said(record.cause)}: {_KEPT} there"
    down = _down_in(database, record)
    words += f"; not running: {named(down)}" if down else ""
    option = {"cluster": "--cluster", "node": f"--of-node {record.subject}"}.get(
        record.kind, f"--service {record.subject}"
    )
    subject = f"{record.kind}/{record.subject}".removesuffix("/")
    return Need("maintenance", subject, words, f"muster maintenance end {option} --yes", NOTICE, affects=down)


def _down_in(database: Database, record: Maintenance) -> tuple[str, ...]:
    """The wanted services that are not started because of it; of a node nobody knows which those are."""
    return tuple(
        name
        for name, service in sorted(database.services.items())
        if service.wanted
        and not (service.removed or is_template(service))
        and service.state is ServiceState.DEREGISTERED
        and (record.kind == "cluster" or (record.kind == "service" and record.subject in (name, service.template)))
    )


def _of_standby(database: Database, node: int, standby: Standby) -> Need:
    name, held = database.name_of(node), held_by(database, node)
    words = f"{name} is on standby{_said(standby.cause)}: it gets no services"
    words += f", and still has {named(held)}" if held else ""
    return Need("standby", f"node/{name}", words, f"muster node active {name}", NOTICE)


def _said(cause: str) -> str:
    return f" ({cause})" if cause else ""


def maintenance_words(database: Database, service: Service) -> str:
    """In which maintenance a service is by itself, its node or the cluster, in words; empty where in none."""
    keys = ["cluster/", f"service/{service.name}", f"service/{service.template}"]
    if service.node != NO_NODE:
        keys.append(f"node/{database.name_of(service.node)}")
    found = next((database.maintenance[key] for key in keys if key in database.maintenance), None)
    if found is None:
        return ""
    return "it is in maintenance" if found.kind == "service" else f"its {found.kind} is in maintenance"
