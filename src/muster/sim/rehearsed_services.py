"""Services in a rehearsal: their tables in a scenario, the ends of their commands, and what an observer sees of them.

A `[[service]]` table is that of a service file with one key more, `rehearsal`: how long each command takes, or that it
fails, on every node or on one.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from msgspec.structs import replace

from muster.core.effects import RunCommand
from muster.records.limits import shown
from muster.records.service_file import services_of
from muster.records.service_keys import Key, Wrong
from muster.records.state import Definition, Service, ServiceState
from muster.records.toml_lines import Place, Problem, duration_of
from muster.sim.events import US_PER_MS
from muster.sim.history import Applied, CommandEnded, LifeEnded, Observation
from muster.sim.runner import Outcome

ACTIONS = ("start", "stop", "recovery", "notify")
FAILS = "fail"
DEFAULT_US = 100 * US_PER_MS  # of a command of which the scenario says nothing, and of one that fails
MAXIMUM_COMMAND_MS = 60 * 60 * 1000
_ASSUMED = ("rehearsed",)  # the command of a service that the scenario gives none but says how long it takes
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
        """How long all its commands take together, each where it takes longest."""
        return sum(
            max((outcome.duration_us for outcome in self.outcomes.get(action, {}).values()), default=DEFAULT_US)
            for action in ACTIONS
        )


def read_services(
    document: dict[str, Any], lines: dict[Place, int], source: str, nodes: tuple[str, ...]
) -> tuple[tuple[RehearsedService, ...], list[Problem]]:
    """The `[[service]]` tables of a scenario, and everything wrong with them."""
    key = Key(lambda value, _: _read_rehearsal(value, nodes), "table", "none", "how its commands end in a rehearsal")
    tables, problems = services_of(document, lines, source, nodes, None, {"rehearsal": key})
    found = []
    for table in tables:
        outcomes: dict[str, dict[str, Outcome]] = table.added.get("rehearsal", {})
        missing = {
            f"{action}_command": _ASSUMED
            for action in outcomes
            if not getattr(table.definition, f"{action}_command") and not (action == "start" and table.definition.run)
        }
        found.append(RehearsedService(_supervised(replace(table.definition, **missing)), outcomes))
    return tuple(found), problems


def _supervised(definition: Definition) -> Definition:
    """In a rehearsal the end of every service is seen, as of a program that Muster supervises (SPEC 5.4, 8.4)."""
    if definition.run or not definition.start_command:
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
    """What becomes of a command: a timeout ends it as a failure. Instances do as their service does."""
    if command.action == "act":  # an action function, which the scenario says nothing about
        return Outcome(DEFAULT_US, True)
    outcome = services[command.service.partition("@")[0]].outcome(command.action, node)
    limit_us = command.timeout_ms * US_PER_MS
    return outcome if outcome.duration_us <= limit_us else Outcome(limit_us, False)


class ServiceAccount:
    """What is known of the services of a run: fold observations in, take documents out."""

    def __init__(self, services: tuple[RehearsedService, ...], names: tuple[str, ...]) -> None:
        self._names = names
        self._services = {
            service.definition.name: Service(service.definition, 0, wanted=service.definition.auto_register)
            for service in services
        }
        self._notified: dict[str, set[int]] = {}  # service -> nodes whose notify command has succeeded
        self._living: set[int] = set()

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
        for name, service in newest.state.services.items():
            before = self._services.get(name)
            if before is None or _is_assigned_anew(before, service):
                self._notified.pop(name, None)
            if before is None or _shown(before) != _shown(service):
                yield f"{name}: " + self._words(service)
        self._services = dict(newest.state.services)

    def _words(self, service: Service) -> str:
        where = f" on {self._names[service.node]}" if service.node >= 0 else ""
        flags = _flags(service)
        why = f"; {service.cause}" if service.cause else f" ({service.reason})" if service.reason else ""
        return f"{service.state}{where}" + (f" [{','.join(flags)}]" if flags else "") + why

    def documents(self) -> dict[str, dict[str, Any]]:
        """Every service: `state`, `flags`, and what each node's own state for it is."""
        return {
            name: {
                "state": str(service.state),
                "flags": _flags(service),
                "nodes": {word: self._on(service, node) for node, word in enumerate(self._names)},
            }
            for name, service in sorted(self._services.items())
        }

    def _on(self, service: Service, node: int) -> str | None:
        if node not in self._living:
            return None
        if service.node == node and service.state is not ServiceState.DEREGISTERED:
            return str(service.state)
        return "notified" if node in self._notified.get(service.name, ()) else None

    def unrest(self) -> str:
        """What is not at its end, in words; empty where everything is."""
        for name, service in self._services.items():
            if service.cause or (service.definition.on_all and not service.template):
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
    return service.state, service.node, service.cause, *_flags(service)
