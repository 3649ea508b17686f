"""One pass over all services: the snapshot that its decisions are made from (SPEC 6.4, 2.7).

Whoever has the decision lock of SPEC 6.4 works out a `Round`: the master, on the draft of its next entry, or another
node, which proposes what follows from its own replica (`core/decisions/deciding.py`). The master refuses what was made
from a snapshot that is no longer the newest (P6.44).
"""

from collections.abc import Iterable
from functools import cached_property

from msgspec.structs import replace

from muster.core.draft import Draft, Facts, is_up
from muster.core.services.placement import Placement, load_of
from muster.records.levels import NodeState
from muster.records.messages import Report
from muster.records.placements import Decision, PlacedTogether, Wish
from muster.records.required_levels import words_of
from muster.records.service_limits import MAXIMUM_GENERATIONS
from muster.records.services import CommandState, Definition, Ended, Service, ServiceState
from muster.records.terms import NO_NODE
from muster.records.units import US_PER_MS

_NOT_UP = {
    NodeState.INACTIVE: "it is not a member now",
    NodeState.JOINING: "its join is not complete",
    NodeState.LEAVING: "it is leaving",
    NodeState.FORCED_LEAVING: "it is being forced out",
}


class Round:
    """The draft, the facts, and where services go while the load grows."""

    def __init__(self, draft: Draft, facts: Facts) -> None:
        self.draft, self.facts = draft, facts
        self._wishes: dict[str, tuple[Wish, int | None]] = {}  # by service: what was asked last, and the answer
        self.decisions: list[Decision] = []  # where this round puts services, and why, for those who ask later
        self._commands: dict[int, dict[str, CommandState]] = {}  # by identity: the facts keep the reports alive
        self.present = [
            member.node for member in draft.members.values() if is_up(member) and facts.report(member) is not None
        ]
        withheld = {node: words for node in self.present if (words := self.withheld(node))}
        self.up = [node for node in self.present if node not in withheld]
        """The nodes that may be chosen: present, and neither on standby nor in maintenance."""
        performance = {node: report.performance for node, report in facts.reports.items()}
        nodes = dict(draft.database.nodes)
        self.placement = Placement(nodes, self.present, load_of(draft.database), performance, withheld)

    # ---- what is --------------------------------------------------------------------------------------------------

    def name(self, node: int) -> str:
        """The node's name."""
        return self.draft.name(node)

    def withheld(self, node: int) -> str:
        """Why an operator keeps services away from the node, in words; empty where nobody does."""
        if node in self.draft.standby:
            return "it is on standby"
        return "it is in maintenance" if f"node/{self.name(node)}" in self.draft.maintenance else ""

    def why_down(self, node: int) -> str:
        """Why a configured node may not be chosen at all, in words; empty if it may."""
        member = self.draft.member(node)
        if member.eviction is not None:
            return f"it is to be forced out: {member.eviction.cause}"
        if member.waits is not None:
            waited_s = self.age_ms(member.waits.since) / 1000
            return f"it waits for {words_of(member.waits.missing)}, for {waited_s:.0f} s, and does not join before"
        if member.state is not NodeState.JOINED:
            return _NOT_UP[member.state]
        return "" if self.facts.report(member) is not None else "it has not yet shown the present master what it runs"

    def age_ms(self, index: int) -> int:
        """How long ago entry `index` was committed."""
        return 0 if index >= self.draft.index else self.facts.age_us(index) // US_PER_MS

    def is_leaving(self, node: int) -> bool:
        """Whether the node takes a graceful leave."""
        return self.draft.member(node).state is NodeState.LEAVING

    def parent(self, service: Service) -> Service | None:
        """The parent of its group, if it has one and that is defined (SPEC 6.5)."""
        name = service.definition.parent
        return self.draft.services.get(name) if name else None

    def ancestors(self, service: Service) -> Iterable[Service]:
        """Its parent, that one's parent, and so on."""
        for _ in range(MAXIMUM_GENERATIONS):
            parent = self.parent(service)
            if parent is None:
                return
            yield parent
            service = parent

    @cached_property
    def _names_of_children(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for service in self.draft.services.values():
            if service.definition.parent:
                found.setdefault(service.definition.parent, []).append(service.name)
        return found

    def children(self, service: Service) -> list[Service]:
        """Its children in a group, as they are now; those that this round has forgotten are gone."""
        services = self.draft.services
        return [services[name] for name in self._names_of_children.get(service.name, ()) if name in services]

    def at_work_beside(self, service: Service, state: ServiceState) -> int:
        """How many other children of its parent are in `state`."""
        parent = self.parent(service)
        if parent is None:
            return 0
        return sum(child.state is state and child.name != service.name for child in self.children(parent))

    # ---- what the nodes say ---------------------------------------------------------------------------------------

    def command(self, service: Service, node: int) -> CommandState | None:
        """What the node's present incarnation says of its command of this service's generation."""
        report = self.facts.report(self.draft.member(node))
        if report is None:
            return None
        command = self._commands_of(report).get(service.name)
        return command if command is not None and command.generation == service.generation else None

    def _commands_of(self, report: Report) -> dict[str, CommandState]:
        """A node reports one command a service."""
        if id(report) not in self._commands:
            self._commands[id(report)] = {command.service: command for command in report.commands}
        return self._commands[id(report)]

    # ---- choosing -------------------------------------------------------------------------------------------------

    def place(self, service: Service) -> int | None:
        """Choose a node: the operator's target once, else by the definition; away from a transfer's origin (P6.19).

        A child goes where its parent is (SPEC 6.5).
        """
        parent = self.parent(service)
        if service.definition.parent and service.state is not ServiceState.RECOVERING:
            registered = parent is not None and parent.state is ServiceState.REGISTERED
            node = parent.node if parent is not None and registered else NO_NODE
            return node if node in self.present and node not in self.shunned(service) else None
        wish = self.wish(service)
        chosen = self.placement.choose(*wish)
        self._wishes[service.name] = (wish, chosen)
        return chosen

    def wish(self, service: Service) -> Wish:
        """What is asked of placement for the service."""
        return Wish(self.choosing(service), self.shunned(service), service.origin, service.target)

    def shunned(self, service: Service) -> dict[int, str]:
        """The nodes on which it has failed, and how, in words: they are passed over."""
        if service.ended is Ended.FATAL:
            return dict.fromkeys(self.draft.nodes, "its exit status said that another try does not help")
        return dict.fromkeys(self.exhausted(service), "it has failed there too often") | dict.fromkeys(
            service.failed, "its start failed there"
        )

    def elsewhere(self, service: Service) -> int | None:
        """A node that the service could move to from where it is."""
        return self.place(replace(service, origin=service.node, failed=(*service.failed, service.node), target=NO_NODE))

    def choosing(self, service: Service) -> Definition:
        """The choosing parameters that apply: of a child those of the parent of all, of an instance's recovery those
        of the whole service (SPEC 6.5).
        """
        eldest = [service, *self.ancestors(service)][-1]
        if eldest.template and service.state is ServiceState.RECOVERING and eldest.template in self.draft.services:
            return self.draft.services[eldest.template].definition
        return eldest.definition

    def exhausted(self, service: Service) -> set[int]:
        """The nodes on which its failure policy has given it up, within its window (SPEC 5.4)."""
        window_ms = service.definition.restart_window_ms
        return {found.node for found in service.exhausted if self.age_ms(found.entry) <= window_ms}

    # ---- deciding -------------------------------------------------------------------------------------------------

    def put(self, service: Service, cause: str) -> None:
        """Keep a new record; causes name the service."""
        before = self.draft.services.get(service.name)
        if before is None or before.state is not service.state:
            service = replace(service, since=self.draft.index)
        if service.node != NO_NODE and (before is None or before.node != service.node):
            self._decided(service, cause)
            self.placement.assigned(service.node)
        elif service.node == NO_NODE and service.cause and (before is None or before.cause != service.cause):
            self._decided(service, cause)
        self.draft.put(service, f"{service.name}: {cause}" if cause else "")

    def _decided(self, service: Service, cause: str) -> None:
        """Keep what the place of the service follows from."""
        parent = service.definition.parent
        if parent and service.state is not ServiceState.RECOVERING:
            wish = Wish(service.definition, {})
        else:
            parent = ""
            asked, chosen = self._wishes.get(service.name, (None, None))
            answered = asked is not None and service.node == (NO_NODE if chosen is None else chosen)
            wish = asked if asked is not None and answered else self.wish(service)
        self.decisions.append(Decision(service.name, service.node, str(service.state), cause, wish, parent))

    @property
    def placed(self) -> PlacedTogether | None:
        """What this round has placed, for those who ask later."""
        if not self.decisions:
            return None
        down = {node: words for node in self.draft.database.nodes if (words := self.why_down(node))}
        return PlacedTogether(self.placement.snapshot, down, tuple(self.decisions))
