"""A node's metrics in Prometheus's form (SPEC 9.4): what `daemon/metrics/measures.py` counted, and the state now.

The library is imported when a page is made: a node whose metrics nobody wants does not pay for it in memory.
"""

import resource
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from muster.core.draft import is_silent
from muster.core.needs.machine import NOTHING, Told
from muster.core.node import insight
from muster.core.node.node import Node
from muster.daemon.metrics.measures import BOUNDS_S, Durations, Measures
from muster.records.happenings import FAILURE, MOVE, RESTART
from muster.records.levels import NodeState
from muster.records.services import ServiceState

if TYPE_CHECKING:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class Collector:
    """Turns the measures and the present state of a node into families of metrics."""

    def __init__(
        self, node: Node, measures: Measures, version: str, needs: Callable[[], Told] = lambda: NOTHING,
        counts: Callable[[], Mapping[tuple[str, str], int]] = dict,
    ) -> None:  # fmt: skip
        """`counts`: how often something happened, by kind and `service/NAME`, since this daemon began."""
        self._counts = counts
        self._node, self._measures, self._version, self._needs = node, measures, version, needs

    def page(self) -> bytes:
        """What a scraper reads."""
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator["Family"]:
        """What one scrape shows."""
        yield from self._state()
        yield from self._people()
        yield from self._counters()
        yield from self._durations()
        yield from self._process()

    def _gauge(
        self, name: str, text: str, values: Iterable[tuple[Sequence[str], float]], labels: tuple[str, ...]
    ) -> "Family":
        from prometheus_client.core import GaugeMetricFamily

        family = GaugeMetricFamily(f"muster_{name}", text, labels=labels)
        for key, value in values:
            family.add_metric(key, value)
        return family

    def _state(self) -> Iterator["Family"]:
        node, database = self._node, self._node.database
        build = {(self._version, database.cluster.name, node.setup.name): 1.0}
        yield self._gauge("info", "Release, cluster and node.", build.items(), ("version", "cluster", "node"))
        yield self._gauge("master", "1 if this node is master.", [((), float(node.is_master))], ())
        yield self._gauge(
            "term", "Number of the term that this node follows.", [((), float(node.replica.accepted.number))], ()
        )
        yield self._gauge("commit_index", "Commit index of this node's replica.", [((), float(database.index))], ())
        states = dict.fromkeys(((str(state),) for state in NodeState), 0.0)
        for number in database.nodes:
            member = database.member(number)
            states[(str(NodeState.SILENT if is_silent(member) else member.state),)] += 1
        yield self._gauge("nodes", "Configured nodes by their state.", states.items(), ("state",))
        found = dict.fromkeys(((str(state),) for state in ServiceState), 0.0)
        for service in database.services.values():
            found[(str(service.state),)] += 1
        yield self._gauge("services", "Services of the cluster by their state.", found.items(), ("state",))
        here = sum(1.0 for service in database.services.values() if service.node == node.me)
        yield self._gauge("services_here", "Services that are assigned to this node.", [((), here)], ())
        stuck = sum(1.0 for each in database.services.values() if each.cause or each.unclean)
        yield self._gauge("services_with_cause", "Services that say why they are not as wanted.", [((), stuck)], ())
        yield self._gauge("transitions_open", "Transitions in progress.", [((), float(len(database.transitions)))], ())
        heard = insight.heard(node)
        others = [number for number in database.nodes if number != node.me]
        links = {(database.name_of(number),): float(number in heard) for number in others}
        yield self._gauge("link_up", "1 if the peer is heard on the interconnect.", links.items(), ("peer",))
        leases = {(database.name_of(number),): float(node.observer.is_live(number)) for number in others}
        yield self._gauge("lease_live", "1 if the peer's lease in the store is renewed.", leases.items(), ("peer",))
        full = insight.fullness(node)
        text = "What definitions and nodes may grow to, and the most that the store has room for."
        room = {("used",): float(full.used_bytes), ("limit",): float(full.growth_bytes)}
        yield self._gauge("store_room_bytes", text, room.items(), ("kind",))
        unable = float(node.me in insight.unable_to_lead(node))
        text = "1 if this node cannot lead: its own journal or a register of its own cannot be written."
        yield self._gauge("unable_to_lead", text, [((), unable)], ())
        troubles = {(name,): 1.0 for name in node.account.asker.troubles}
        text = "1 for each fence device that this node cannot use."
        yield self._gauge("fence_device_troubled", text, troubles.items(), ("device",))
        waiting = insight.required_levels(node)
        count = {("all",): float(len(waiting)), ("overdue",): float(sum(each.is_overdue for each in waiting))}
        text = "Nodes that wait for required levels before they join, and those of them that have waited too long."
        yield self._gauge("nodes_waiting_for_levels", text, count.items(), ("which",))
        if self._measures.margin_s is not None:
            text = "Least time that a renewal of the own lease left before its deadman, in the last second."
            yield self._gauge("lease_margin_seconds", text, [((), self._measures.margin_s)], ())

    def _people(self) -> Iterator["Family"]:
        """What needs a person (P10.12), and each service and node by its name."""
        database, told = self._node.database, self._needs()
        text = "1 for each thing that needs a person: `muster status` says what to do."
        needs = {need.key: 1.0 for need in told.needs}
        yield self._gauge("needs_you", text, needs.items(), ("kind", "subject"))
        count = float(len(told.needs) + told.beyond)
        yield self._gauge("needs", "How many things need a person.", [((), count)], ())
        unproven = {need.subject for need in told.needs if need.kind in ("unproven", "former life")}
        names = [database.name_of(number) for number in database.nodes]
        found = {(name,): float(f"node/{name}" in unproven) for name in names}
        text = "1 if the node is silent or condemned, and nothing proves that it has stopped."
        yield self._gauge("node_unproven", text, found.items(), ("node",))
        joined = {(database.name_of(n),): float(database.member(n).state is NodeState.JOINED) for n in database.nodes}
        yield self._gauge("node_joined", "1 if the node is joined.", joined.items(), ("node",))
        text = "1 if the service is registered; `node` is where it is, empty where it is nowhere."
        up = {
            (name, "" if service.node < 0 else database.name_of(service.node)): float(
                service.state is ServiceState.REGISTERED
            )
            for name, service in database.services.items()
        }
        yield self._gauge("service_registered", text, up.items(), ("service", "node"))
        yield from self._happened()
        wanted = {(name,): float(service.wanted) for name, service in database.services.items()}
        yield self._gauge("service_wanted", "1 if the service is to run.", wanted.items(), ("service",))

    def _happened(self) -> Iterator["Family"]:
        """Failures, restarts and moves of each service."""
        from prometheus_client.core import CounterMetricFamily

        for kind, name, text in (
            (FAILURE, "service_failures", "Failures of a service, of its starts too, since this daemon began."),
            (RESTART, "service_restarts", "Starts of a service where it ran before, since this daemon began."),
            (MOVE, "service_moves", "Starts of a service on another node than before, since this daemon began."),
        ):
            family = CounterMetricFamily(f"muster_{name}", text, labels=("service",))
            for (each, subject), count in self._counts().items():
                if each == kind:
                    family.add_metric((subject.removeprefix("service/"),), count)
            yield family

    def _counters(self) -> Iterator["Family"]:
        from prometheus_client.core import CounterMetricFamily

        measures = self._measures
        for name, text, label, values in (
            ("entries", "Committed entries that this node has applied.", "", {"": measures.entries}),
            ("elections", "Masterships that this node has won.", "", {"": measures.elections}),
            ("link_losses", "Links that were lost.", "", {"": measures.link_losses}),
            ("frames", "Frames on the interconnect, by what became of them.", "outcome", measures.frames),
            ("lease_renewals", "Cycles of the lease writer.", "outcome", measures.renewals),
            ("store_failures", "Operations that the store refused.", "operation", measures.store_failures),
        ):
            family = CounterMetricFamily(f"muster_{name}", text, labels=(label,) if label else ())
            for key, value in values.items():
                family.add_metric((key,) if label else (), value)
            yield family

    def _durations(self) -> Iterator["Family"]:
        measures = self._measures
        transitions = {(kind,): durations for kind, durations in measures.transitions.items()}
        text = "Transitions that this node saw from their opening to their end."
        yield _histogram("transition_seconds", text, transitions.items(), ("kind",))
        yield _histogram(
            "command_seconds", "Service commands on this node.", measures.commands.items(), ("action", "outcome")
        )
        store = {(operation,): durations for operation, durations in measures.store.items()}
        yield _histogram(
            "store_seconds", "Operations of the store, as the daemon waited.", store.items(), ("operation",)
        )

    def _process(self) -> Iterator["Family"]:
        text = "Turns of the daemon's event loop: meanwhile nothing else happens."
        yield _histogram("loop_turn_seconds", text, [((), self._measures.turns)], ())
        text = "The longest turn of the daemon's event loop since it started."
        yield self._gauge("loop_longest_turn_seconds", text, [((), self._measures.turns.longest_s)], ())
        used = resource.getrusage(resource.RUSAGE_SELF)
        from prometheus_client.core import CounterMetricFamily

        family = CounterMetricFamily("muster_daemon_cpu_seconds", "Processor time of the daemon process.")
        family.add_metric((), used.ru_utime + used.ru_stime)
        yield family
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident = float(pages * resource.getpagesize())
        yield self._gauge("daemon_resident_bytes", "Resident memory of the daemon process.", [((), resident)], ())


def _histogram(
    name: str, text: str, found: Iterable[tuple[Sequence[str], Durations]], labels: tuple[str, ...]
) -> "Family":
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(f"muster_{name}", text, labels=labels)
    for key, durations in found:
        buckets: list[tuple[str, float]] = []
        below = 0
        for bound, count in zip(map(str, (*BOUNDS_S, "+Inf")), durations.counts, strict=True):
            below += count
            buckets.append((bound, below))
        family.add_metric(key, buckets, durations.total_s)
    return family
