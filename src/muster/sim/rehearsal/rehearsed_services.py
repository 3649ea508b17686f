"""Services in a rehearsal: their tables in a scenario, the ends of their commands, and what an observer sees of them.

A `[[service]]` table is that of a service file with one key more, `rehearsal`: how long each command takes, or that it
fails, on every node or on one.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from msgspec.structs import replace

from muster.core.effects import RunCommand
from muster.core.services.instances import SEPARATOR, is_template, state_of_all
from muster.core.services.requests import with_inherited_policy
from muster.files.service_file import services_of
from muster.files.service_keys import Key, Wrong
from muster.files.toml_lines import Place, Problem
from muster.records.durations import duration_of, duration_text
from muster.records.levels import NodeState
from muster.records.names import shown
from muster.records.services import Definition, Service, ServiceState
from muster.records.units import US_PER_MS
from muster.sim.history import Applied, CommandEnded, LifeEnded, Observation
from muster.sim.world.surroundings import Outcome

ACTIONS = ("start", "stop", "recovery", "notify")
FAILS = "fail"
DEFAULT_US = 100 * US_PER_MS  # of a command of which the scenario says nothing, and of one that fails
MAXIMUM_COMMAND_MS = 60 * 60 * 1000
_ASSUMED = ("rehearsed",)  # the command of a service that has none in the scenario, which says how long it takes
_EXAMPLE = 'rehearsal = {start = "20s", stop = "fail", notify = {N0 = "fail", default = "1s"}}'


class RehearsedService(NamedTuple):
    """A service of a scenario. `outcomes`: action -> {node or "": what becomes of it there}."""

    definition: Definition
    outcomes: dict[str, dict[str, Outcome]]

    def outcome(self, action: str, node: str) -> Outcome:
        """What becomes of a command on the node of this name."""
        of_action = self.outcomes.get(action, {})
        return of_action.get(node) or of_action.get("") or Outcome(DEFAULT_US, True)

    @property
    def longest_us(self) -> int:
        """How long all its commands take together, each where it takes longest, and as often as it is tried."""
        found_us = 0
        for action in ACTIONS:
            longest_us = max((outcome.duration_us for outcome in self.outcomes.get(action, {}).values()), default=0)
            pause_us = self.definition.retry_pause_ms * US_PER_MS
            tries = 1 + int(getattr(self.definition, f"{action}_retries"))
            found_us += tries * (max(longest_us, DEFAULT_US) + pause_us) - pause_us
        return found_us


def read_services(
    document: dict[str, Any], lines: dict[Place, int], source: str, nodes: tuple[str, ...]
) -> tuple[tuple[RehearsedService, ...], list[Problem]]:
    """The `[[service]]` tables of a scenario, and everything wrong with them."""
    key = Key(lambda value, _: _read_rehearsal(value, nodes), "table", "none", "how its commands end in a rehearsal")
    tables, problems = services_of(document, lines, source, nodes, None, {"rehearsal": key})
    definitions = with_inherited_policy(tuple(table.definition for table in tables))
    found = []
    for table, definition in zip(tables, definitions, strict=True):
        outcomes: dict[str, dict[str, Outcome]] = table.added.get("rehearsal", {})
        found.append(RehearsedService(_supervised(replace(definition, **_assumed(definition, outcomes))), outcomes))
    return tuple(found), problems


def _assumed(definition: Definition, outcomes: dict[str, dict[str, Outcome]]) -> dict[str, tuple[str, ...]]:
    """The commands of a service that names none at all: those of which the scenario says how they end."""
    named = definition.run or any(getattr(definition, f"{action}_command") for action in ACTIONS)
    return {} if named else {f"{action}_command": _ASSUMED for action in outcomes}


def leaves_something(definition: Definition) -> bool:
    """Whether its start leaves something running that has to be stopped: not where there is nothing to stop it with.

    So a rehearsed service without a stop command skips stopping, as SPEC 6.7 has it.
    """
    return bool(definition.stop_command or definition.run)


def _supervised(definition: Definition) -> Definition:
    """In a rehearsal the end of a service is seen, as of a program that Muster supervises (SPEC 5.4, 8.4)."""
    if definition.run or not definition.start_command or not leaves_something(definition):
        return definition
    return replace(definition, run=definition.start_command, start_command=())


def _read_rehearsal(value: object, nodes: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Wrong(f"is {shown(value)}", f"write {_EXAMPLE}")
    found: dict[str, dict[str, Outcome]] = {}
    for action, said in value.items():
        if action not in ACTIONS:
            raise Wrong(f"has the unknown key {shown(action)}", "allowed are " + ", ".join(ACTIONS), (action,))
        by_node = said if isinstance(said, dict) else {"default": said}
        found[action] = {}
        for node, outcome in by_node.items():
            if node != "default" and node not in nodes:
                known = "name one of " + ", ".join((*nodes, "default"))
                raise Wrong(f"has the unknown node {shown(node)} for {action}", known, (action, node))
            found[action]["" if node == "default" else node] = _outcome(action, outcome)
    return {"rehearsal": found}


def _outcome(action: str, said: object) -> Outcome:
    if said == FAILS:
        return Outcome(DEFAULT_US, False)
    duration_ms = duration_of(said)
    if duration_ms is None or not 0 <= duration_ms <= MAXIMUM_COMMAND_MS:
        raise Wrong(
            f"has {shown(said)} for {action}", f'a duration up to 1h, "{FAILS}", or a table of them: {_EXAMPLE}'
        )
    return Outcome(duration_ms * US_PER_MS, True)


def decide(services: Mapping[str, RehearsedService], node: str, command: RunCommand) -> Outcome:
    """What becomes of a command: a timeout ends it as a failure, and what fails is tried again as often as it says.

    Instances do as their service does.
    """
    if command.action == "act":  # an action function, which the scenario says nothing about
        return Outcome(DEFAULT_US, True)
    service = services[command.service.partition(SEPARATOR)[0]]
    outcome = service.outcome(command.action, node)._replace(left=leaves_something(service.definition))
    limit_us = command.timeout_ms * US_PER_MS
    if outcome.duration_us > limit_us:
        detail = f"{command.action} took longer than its timeout of {duration_text(command.timeout_ms)}"
        outcome = Outcome(limit_us, False, detail)
    if outcome.succeeded or not command.retries:
        return outcome
    again_us = command.retries * (command.retry_pause_ms * US_PER_MS + outcome.duration_us)
    return outcome._replace(duration_us=outcome.duration_us + again_us)


class ServiceAccount:
    """What is known of the services of a run: fold observations in, take documents out."""

    def __init__(self, services: tuple[RehearsedService, ...], names: tuple[str, ...]) -> None:
        self._names = names
        self._services = {
            service.definition.name: Service(service.definition, 0, wanted=service.definition.auto_register)
            for service in services
        }
        self._defined = tuple(sorted(self._services))
        self._notified: dict[str, set[int]] = {}  # service -> nodes whose notify command has succeeded
        self._living: set[int] = set()
        self._members: set[int] = set()

    def see(self, seen: Observation, living: set[int]) -> Iterator[str]:
        """Fold an observation in; what happened, in words. `living`: the nodes that run."""
        self._living = living
        match seen:
            case CommandEnded(action="notify", succeeded=True, service=name, node=node, generation=generation):
                service = self._services.get(name)
                if service is not None and service.generation == generation:
                    self._notified.setdefault(name, set()).add(node)
                    yield f"{name}: notified on {self._names[node]}"
            case CommandEnded(succeeded=False, service=name, node=node, action=action):
                yield f"{name}: {action} failed on {self._names[node]}"
            case LifeEnded(node=node):
                for nodes in self._notified.values():
                    nodes.discard(node)
            case _:
                pass

    def applied(self, newest: Applied) -> Iterator[str]:
        """The cluster has committed something."""
        members = newest.state.members.values()
        self._members = {member.node for member in members if member.state is not NodeState.INACTIVE}
        for name, service in newest.state.services.items():
            before = self._services.get(name)
            if before is None or _is_assigned_anew(before, service):
                self._notified.pop(name, None)
            is_news = _shown(before) != _shown(service) if before is not None else not service.template
            if is_news:
                yield f"{name}: " + self._words(service)
        self._services = dict(newest.state.services)

    def _words(self, service: Service) -> str:
        where = f" on {self._names[service.node]}" if service.node >= 0 else ""
        flags = _flags(service)
        why = f"; {service.cause}" if service.cause else f" ({service.reason})" if service.reason else ""
        return f"{service.state}{where}" + (f" [{','.join(flags)}]" if flags else "") + why

    def documents(self) -> dict[str, dict[str, Any]]:
        """Every service of the scenario: `state`, `flags`, and what each node's own state for it is.

        What runs on every node is shown as one service: the flags of any of its instances, and on each node the state
        of the one that is there.
        """
        return {name: self._document(name) for name in self._defined if name in self._services}

    def _document(self, name: str) -> dict[str, Any]:
        service = self._services[name]
        instances = [each for each in self._services.values() if each.template == name]
        state = state_of_all([each.state for each in instances]) if is_template(service) else service.state
        flags = {flag for each in (service, *instances) for flag in _flags(each)}
        nodes = {}
        for node, word in enumerate(self._names):
            states = [self._on(each, node) for each in (service, *instances)]
            nodes[word] = next((state for state in states if state is not None), None)
        return {"state": str(state), "flags": [flag for flag in "TMN" if flag in flags], "nodes": nodes}

    def _on(self, service: Service, node: int) -> str | None:
        if node not in self._living or node not in self._members:
            return None
        if service.node == node and service.state is not ServiceState.DEREGISTERED and not is_template(service):
            return str(service.state)
        return "notified" if node in self._notified.get(service.name, ()) else None

    def held_up(self, node: int) -> str:
        """The service that a leave of this node waits for, in words; empty where it waits for none (SPEC 6.8)."""
        for name, service in self._services.items():
            if service.node == node or (service.origin == node and service.intent):
                return f"{name} is {service.state}" + (f": {service.cause}" if service.cause else "")
        return ""

    def unrest(self) -> str:
        """What is not at its end, in words; empty where everything is."""
        for name, service in self._services.items():
            if service.cause or is_template(service):
                continue
            if service.state in (ServiceState.STARTING, ServiceState.STOPPING, ServiceState.RECOVERING):
                if service.node >= 0:
                    return f"{name} is {service.state} on {self._names[service.node]}"
            elif service.intent:
                return f"{name} is {service.state} and is to move"
            if service.waits_since and service.definition.maturity_time_ms:
                return f"{name} awaits the maturity of the cluster"
        return ""


def _is_assigned_anew(before: Service, after: Service) -> bool:
    """Whether the service was given to a node: with a start, or registered at once where there is none."""
    given = after.state in (ServiceState.STARTING, ServiceState.REGISTERED)
    return given and after.generation != before.generation


def _flags(service: Service) -> list[str]:
    """T transfer intent, M awaiting maturity, N has a notify command (SPEC tables 2 and 3)."""
    flags = (("T", service.intent), ("M", service.waits_since), ("N", service.definition.notify_command))
    return [letter for letter, is_set in flags if is_set]


def _shown(service: Service) -> tuple[object, ...]:
    if is_template(service):
        return tuple(_flags(service))  # the rest is told by its instances
    return service.state, service.node, service.cause, *_flags(service)
