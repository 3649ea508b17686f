"""The node's side of services: which commands this node must run now, derived from its replica (SPEC 7.7).

It remembers no orders: it compares the committed records with what was begun already, so that lost, repeated or
reordered messages, a restarted daemon and a new master all come to the same.
"""

from typing import NamedTuple

from msgspec.structs import replace

from muster.core.effects import Cleanup, Readiness, RunCommand, Surroundings
from muster.core.launching import ledger
from muster.core.services.placement import choosing_of, is_allowable
from muster.records.database import Database
from muster.records.levels import NodeState
from muster.records.services import CommandState, Definition, Service, ServiceState, token_text
from muster.records.terms import NO_NODE

ACTIONS = {ServiceState.STARTING: "start", ServiceState.STOPPING: "stop", ServiceState.RECOVERING: "recovery"}


class Executor:
    """Runs the commands of the services assigned to this node, each generation once."""

    def __init__(self, node: int, incarnation: int, inventory: tuple[CommandState, ...]) -> None:
        self._node, self._incarnation = node, incarnation
        in_order = sorted(inventory, key=lambda command: command.generation)  # of a notify command beside another
        self._commands = {command.service: command for command in in_order}  # of the highest generation seen

    def due(self, database: Database) -> list[RunCommand]:
        """The commands to run now; each is returned once."""
        due = [self._begin(service, database) for service in self._assigned(database) if self._is_due(service)]
        return due + [self._begin(service, database) for service in self._to_notify(database) if self._is_due(service)]

    def finished(self, command: CommandState) -> None:
        """A command has ended."""
        known = self._commands.get(command.service)
        if known is None or command.generation >= known.generation:
            self._commands[command.service] = command

    def states(self, database: Database) -> tuple[CommandState, ...]:
        """The node's inventory for its report: what became of the command of each service at work here."""
        assigned = [service.name for service in self._assigned(database)]
        assigned += [service.name for service in self._to_notify(database) if service.definition.free_transfer]
        return tuple(self._commands[name] for name in assigned if name in self._commands)

    def _to_notify(self, database: Database) -> list[Service]:
        """The services whose place this node is to hear of (P6.29): joined, allowable, and not the place itself."""
        own = database.member(self._node)
        if own.incarnation != self._incarnation or own.state is not NodeState.JOINED:
            return []
        name = database.name_of(self._node)
        return [
            service
            for service in database.services.values()
            if service.definition.notify_command
            and service.state is ServiceState.REGISTERED
            and service.node != self._node
            and is_allowable(choosing_of(service.definition, database.services), name)
        ]

    def _assigned(self, database: Database) -> list[Service]:
        return [
            service
            for service in database.services.values()
            if service.node == self._node and service.incarnation == self._incarnation and service.state in ACTIONS
        ]

    def _is_due(self, service: Service) -> bool:
        known = self._commands.get(service.name)
        return ledger.is_newer(service.generation, known.generation if known else 0)

    def _begin(self, service: Service, database: Database) -> RunCommand:
        action = ACTIONS.get(service.state, "notify")
        self._commands[service.name] = CommandState(service.name, service.generation, action, False)
        definition = service.definition
        own = command_of(definition, "cleanup" if is_cleanup(service) else action)
        if service.cleaning and not service.owes:
            own = own._replace(words=())  # an operator has cleared its machine: only what still runs of it is ended
        # where it runs now, is to go if that was asked for, or was before
        other = {"notify": service.node, "stop": service.target}.get(action, service.previous)
        if action == "stop" and other == self._node:
            other = NO_NODE  # it is restarted
        given = _given(definition)
        environment = given | _said(service, database, self._node, self._incarnation, action, other)
        program = action == "start" and bool(definition.run)
        ready = Readiness(
            definition.ready_command, definition.ready_port, definition.ready_file, definition.ready_notify
        )
        cleanup = _cleanup_of_start(definition) if action == "start" and service.owes else None
        is_start = action == "start"
        return RunCommand(
            service.name, service.uid, service.generation, action, own.words, own.timeout_ms, environment, own.retries,
            definition.retry_pause_ms, definition.grace_ms, program, ready if is_start else Readiness(), cleanup,
            is_cleanup(service), is_start and follows(definition),
            (*definition.hard_exit_status, *definition.fatal_exit_status) if is_start else (),
            None if is_cleanup(service) else Surroundings.of(definition), definition.stop_signal,
            definition.extend_limit_ms,
        )  # fmt: skip


def _cleanup_of_start(definition: Definition) -> Cleanup:
    words, timeout_ms, retries = command_of(definition, "cleanup")
    given = _given(definition)
    return Cleanup(words, timeout_ms, retries, definition.retry_pause_ms, given, definition.probe_command)


class Probe(NamedTuple):
    """What a node asks its machine about a service before each join, and how it clears that (P7.45)."""

    service: str
    uid: int
    cleanup: Cleanup  # with what the service and the cluster say to a probe in its environment


def probes_of(database: Database, node: int) -> tuple[Probe, ...]:
    """What the node is to ask before its next join: of each service that may run there (P7.45)."""
    name = database.name_of(node)
    said = {"MUSTER_CLUSTER": database.cluster.name, "MUSTER_NODE": name}
    found = []
    for service in database.services.values():
        definition = service.definition
        if not definition.probe_command or definition.on_all:
            continue  # of a template, its instances are asked about
        if is_allowable(choosing_of(definition, database.services), name):
            cleanup = _cleanup_of_start(definition)
            own = said | {"MUSTER_SERVICE": service.name, "MUSTER_UID": str(service.uid)}
            found.append(Probe(service.name, service.uid, replace(cleanup, environment=cleanup.environment | own)))
    return tuple(found)


def follows(definition: Definition) -> bool:
    """Whether what its start leaves running is the service (P8.18): of a start command, unless it says otherwise; of
    `run`, if it says so, or where a check would tell if that does not do its work.
    """
    if definition.forking is not None:
        return definition.forking
    return bool(definition.check_command) if definition.run else True


def _given(definition: Definition) -> dict[str, str]:
    """What the administrator gave, but never over what Muster itself says."""
    return {key: value for key, value in definition.environment if not key.startswith("MUSTER_")}


def _said(service: Service, database: Database, node: int, incarnation: int, action: str, other: int) -> dict[str, str]:
    """What Muster tells a command. Its token only where the record is of the owner that is spoken of (P6.41)."""
    is_owner = (service.node, service.incarnation) == (node, incarnation)
    token = service.token if is_owner or action == "notify" else 0
    return {
        "MUSTER_CLUSTER": database.cluster.name,
        "MUSTER_SERVICE": service.name,
        "MUSTER_UID": str(service.uid),
        "MUSTER_NODE": database.name_of(node),
        "MUSTER_INCARNATION": str(incarnation),
        "MUSTER_ACTION": action,
        "MUSTER_REASON": service.reason.replace("\0", "?"),  # it may hold what a check wrote
        "MUSTER_GENERATION": str(service.generation),
        "MUSTER_EPOCH": str(database.epoch),
        "MUSTER_TOKEN": token_text(token),
        "MUSTER_OTHER_NODE": database.name_of(other) if other >= 0 else "",
    }


def last_stop(name: str, generation: int, database: Database, node: int, incarnation: int) -> RunCommand:
    """The stop of a service whose node ends by itself, which no entry orders (P4.12): no start of a cluster follows it.

    Of one that is no longer defined, what runs is ended.
    """
    service = database.services.get(name) or Service(Definition(name), 0)
    service = replace(service, generation=generation, reason="its node ends: no master answers")
    definition, own = service.definition, command_of(service.definition, "stop")
    environment = _given(definition) | _said(service, database, node, incarnation, "stop", NO_NODE)
    return RunCommand(
        name, service.uid, generation, "stop", own.words, own.timeout_ms, environment, own.retries,
        definition.retry_pause_ms, definition.grace_ms, surroundings=Surroundings.of(definition),
        stop_signal=definition.stop_signal, extend_limit_ms=definition.extend_limit_ms,
    )  # fmt: skip


def is_cleanup(service: Service) -> bool:
    """Whether the stop of the service is the cleanup of its start (P6.32): it has no stop command, or that or its start
    has failed.
    """
    stopping = service.state is ServiceState.STOPPING
    return stopping and service.owes and (service.cleaning or not service.definition.stop_command)


def cleanup_of(command: RunCommand, kept: tuple[str, ...] | None) -> tuple[str, ...]:
    """What a stop that clears runs: what the home keeps of the newest start, whatever is defined by now (P6.34)."""
    return command.command if kept is None else kept


class Command(NamedTuple):
    """One of a service's commands: no words where it has none."""

    words: tuple[str, ...]
    timeout_ms: int
    retries: int


def command_of(definition: Definition, action: str) -> Command:
    """What a service runs for `action` (SPEC 6.6): a program that Muster supervises stands for the start command."""
    d = definition
    return {
        "start": Command(d.run or d.start_command, d.start_timeout_ms, d.start_retries),
        "stop": Command(d.stop_command, d.stop_timeout_ms, d.stop_retries),
        "recovery": Command(d.recovery_command, d.recovery_timeout_ms, d.recovery_retries),
        "notify": Command(d.notify_command, d.notify_timeout_ms, d.notify_retries),
        "cleanup": Command(d.cleanup_command, d.cleanup_timeout_ms, d.cleanup_retries),
    }[action]
