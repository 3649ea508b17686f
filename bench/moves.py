"""How long services are away: power cut, graceful leave, cold boot.

Theory of operation. The services announce themselves (`announcements.py`), so an outage lasts from the SIGKILL of the
node's guard to the last service's own word that it runs again. Its parts come from the survivors' timelines:

    detection    to the first survivor that lost the link
    proof        to the first survivor that has proof of death (the lease must expire: SPEC 7.1)
    levels       to the end of the forced leave through all levels; the election of a new master is in it
    start        to the last service

`after_proof_ms` is from the first recorded proof of death to the commit of the last service's registration.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.announcements import boottime_us
from bench.cluster import Document, MakeCluster, Rig, repeated, rig, settle
from bench.figures import Measurement
from bench.scales import Case, Scale
from muster.client.errors import ClientError
from muster.ui.commands.demonstration import phases

NODES = 3
SETTLE_S = 0.7  # longer than a lease at profile `fast`
US_PER_MS = 1000
Once = Callable[[Case, Measurement, Rig], None]  # carries one run of a case out


def measure_power_cuts(scale: Scale, directory: Path, measurement: Measurement) -> None:
    """Outages and their parts."""
    _measure_cases(scale.power_cuts, directory, measurement, _cut)


def measure_cases_of_power_cuts(
    cases: tuple[Case, ...], directory: Path, measurement: Measurement, make_cluster: MakeCluster, kind: type[Rig]
) -> None:
    """The same on clusters of another kind."""
    _measure_cases(cases, directory, measurement, _cut, partial(rig, make_cluster=make_cluster, kind=kind))


def measure_leaves(scale: Scale, directory: Path, measurement: Measurement) -> None:
    """How long graceful leaves take, in the cases of this scale."""
    _measure_cases(scale.leaves, directory, measurement, _leave)


def _measure_cases(
    cases: tuple[Case, ...], directory: Path, measurement: Measurement, once: Once, make_rig: Callable[..., Any] = rig
) -> None:
    for profile in dict.fromkeys(case.profile for case in cases):
        for case in (case for case in cases if case.profile == profile):
            make = partial(make_rig, directory, NODES, profile)
            repeated(case.runs, make, partial(once, case, measurement), measurement, _title(case))


def _title(case: Case) -> str:
    return f"{case.services} service{'s' if case.services > 1 else ''}, {case.profile}, {case.role}"


def _prepare(case: Case, rig_: Rig) -> tuple[str, list[str], int]:
    """Services at work on a node of the case's role: the node, the services, the commit index."""
    missing = [name for name in rig_.names if name not in rig_.cluster.running()]
    rig_.boot(missing)
    master = rig_.master()
    victim = master if case.role == "master" else next(name for name in rig_.names if name != master)
    services = [f"s{number}" for number in range(case.services)]
    rig_.run_services(services, victim)
    settle(SETTLE_S)
    return victim, services, int(rig_.status()["index"])


def _cut(case: Case, measurement: Measurement, rig_: Rig) -> None:
    victim, services, index = _prepare(case, rig_)
    cut_us = rig_.cut_power(victim)
    served_us = rig_.await_services(services, cut_us)
    rig_.await_registered(services)
    events = rig_.timeline(index, cut_us)
    measurement.add_all(_title(case), parts_of_outage(cut_us, served_us, victim, services, events))


def parts_of_outage(
    cut_us: int, served_us: int, victim: str, services: list[str], events: list[Document]
) -> dict[str, float]:
    """The outage and its parts in milliseconds. Raises `ClientError` where a timeline lacks what it must have."""
    about = [event for event in events if _is_about(str(event["detail"]), victim)]
    proofs = [int(event["at_us"]) for event in about if event["event"] == "proof of death"]
    registered: dict[str, int] = {}  # service -> when its registration was committed, by the first that knew
    for event in events:
        if event["event"] == "service registered":
            registered.setdefault(str(event["detail"]).partition(" ")[0], int(event["at_us"]))
    missing = [service for service in services if service not in registered]
    if not proofs or missing:
        what = f"the timelines lack the proof of death of {victim}" if not proofs else f"they lack {missing[0]}"
        raise ClientError(what, "timelines of the survivors", "look at the events of that run")
    found = {"outage_ms": (served_us - cut_us) / US_PER_MS}
    started = [event for event in events if event["event"] == "service registered"]
    for name, duration_us in phases(cut_us, served_us, [*about, *started]):
        found[f"{name}_ms"] = duration_us / US_PER_MS
    found["after_proof_ms"] = (max(registered[service] for service in services) - min(proofs)) / US_PER_MS
    elected = [int(event["at_us"]) for event in events if event["event"] == "elected"]
    if elected:
        found["proof_to_elected_ms"] = (min(elected) - min(proofs)) / US_PER_MS
    return found


def _is_about(detail: str, node: str) -> bool:
    return detail.startswith((f"{node}:", f"{node} "))


def _leave(case: Case, measurement: Measurement, rig_: Rig) -> None:
    victim, services, _index = _prepare(case, rig_)
    began_us = boottime_us()
    rig_.cluster.connection_to(victim, 30.0).operate("leave", node=victim)
    moved_us = rig_.await_services(services, began_us)
    if not rig_.cluster.wait_ended(victim, 30.0):
        raise ClientError(f"{victim} has not ended after its leave", str(rig_.cluster.log(victim)), "read that log")
    ended_us = boottime_us()
    rig_.await_registered(services)
    found = {"moved_ms": (moved_us - began_us) / US_PER_MS, "ended_ms": (ended_us - began_us) / US_PER_MS}
    measurement.add_all(_title(case), found)


def measure_cold_boots(scale: Scale, directory: Path, measurement: Measurement) -> None:
    """All nodes at once, after a power cut of all of them and after an orderly end."""
    for count in scale.boot_services:
        services = [f"s{number}" for number in range(count)]
        make = partial(rig, directory, NODES)
        for how in ("power cut", "stop"):
            title = f"{count} service{'s' if count > 1 else ''}, after a {how} of all"
            once = partial(_boot, how, services, title, measurement)
            repeated(scale.boot_runs, make, once, measurement, title)


def _boot(how: str, services: list[str], title: str, measurement: Measurement, rig_: Rig) -> None:
    if set(rig_.status()["services"]) != set(services):
        rig_.run_services(services, rig_.names[0])
    rig_.await_registered(services)
    if how == "stop":
        rig_.cluster.stop_everything()
    else:
        for name in rig_.names:
            rig_.cut_power(name)
    rig_.announcements.forget()
    began_us = boottime_us()
    for name in rig_.names:
        rig_.cluster.start(name)
    started_us = rig_.await_services(services, began_us)
    rig_.cluster.wait_joined(rig_.names, 60.0, lambda _text: None)
    rig_.await_registered(services)
    events = rig_.timeline(0, began_us)
    found = {"services_ms": (started_us - began_us) / US_PER_MS}
    for quantity, phrase in (("elected_ms", "elected"), ("joined_ms", "transition done")):
        times: dict[str, int] = {}
        for event in events:
            if event["event"] == phrase:
                times.setdefault(str(event["detail"]), int(event["at_us"]))
        if times:
            found[quantity] = (max(times.values()) - began_us) / US_PER_MS
    measurement.add_all(title, found)
