"""The event manager of one node: which events are watched for here, and what an occurrence leads to (SPEC 5).

Theory of operation. A value machine: `step(happened, now_us) -> effects`. It compares the replica with what it has had
watched, as `core/services/commands.py` does, so nothing is ever ordered from afar and nothing can be ordered twice.

A group is enabled here while all that its definition names holds (P8.4): by hand, node, service, window, mastership;
and only on a joined node. The events of enabled groups are *active*; each watcher that detects one is told to watch for
it, and told to stop when it is not active any more. Every service that is registered here has a group of its own,
`service/NAME`: the end of its program, and its check (SPEC 5.4). Its events name the service's generation, so a restart
begins to watch anew.

Every watcher is connected, the built-in ones like foreign ones. One that begins anew is asked anew and tells again what
holds already: that a program has ended, how nodes have changed. So those occurrences have a *place* (P8.7, P8.8), which
makes each of them one, however often and by whomever it is told.

An occurrence is recorded whatever becomes of it: acted upon, debounced, over the rate, dropped because too many wait,
or late because the event is not active (P8.5). An action is a command of the node, or a built-in function, which is an
ordinary operation and nothing else (P8.7).
"""

import shlex
from collections import Counter, deque
from collections.abc import Iterable, Mapping

from msgspec import Struct

from muster.core.effects import Surroundings
from muster.core.inputs import AwaitedHere
from muster.records.database import Database
from muster.records.events import REFERENCE, EventDefinition, GroupDefinition, Window, window_of
from muster.records.levels import NodeState
from muster.records.messages import PlaceAwaited
from muster.records.numbers import NO_STATUS
from muster.records.operations import OperationRequest
from muster.records.services import (
    Definition,
    DeregisterService,
    FailService,
    RegisterService,
    RestartService,
    ServiceState,
    TransferService,
)
from muster.records.units import NEVER_US, US_PER_MS
from muster.records.versions import LOWEST, OWNERS_KEYS
from muster.records.watchers import (
    BUILT_IN_WATCHER,
    CHECK_WATCHER,
    MEMBERSHIP_WATCHER,
    PROCESS_WATCHERS,
    PROGRAM_WATCHER,
    UNCHECKED_WATCHER,
)

CAPACITY = 1024  # occurrences that a node remembers
MAXIMUM_AT_WORK = 16  # action commands of a node, of whatever groups
MAXIMUM_WITH_RESERVE = 40  # with one for each group that has none at work (P8.10)
MAXIMUM_WITH_SERVICES = 60  # with one for each service that has none at work; the runner takes a few more
MAXIMUM_WAITING = 256  # of one group
MAXIMUM_WAITING_OF_ALL = 4096
MAXIMUM_RESULT_CHARACTERS = 2000
WAITED_US = 1_000_000  # what has waited for a place for so long is told (P8.12)
MAXIMUM_OUT = 32
MAXIMUM_REMEMBERED = 20_000  # events whose last actions are known
CLOCK_US = 5_000_000  # how often windows are looked at
MAXIMUM_SNAPSHOTS = 64  # of the nodes' states: what a watcher that begins anew can still be told
FAILURE_POLICY = ("muster:fail", "{in.service}", "{out.detail}", "{in.generation}", "{out.code}")
# The end of a program that is left to `on_failure`, so that everyone sees it (P6.40). No definition can name it.
RECORD_ONLY = ("muster:record", *FAILURE_POLICY[1:])

ENDED = "ended"
_STATUSES = frozenset(map(str, range(256)))

Values = tuple[tuple[str, str], ...]
Place = tuple[int, str]  # of an occurrence in the order of all of its event: one that is told again has the same


# ---- what happens ---------------------------------------------------------------------------------------------------


class ReplicaChanged(Struct, frozen=True):
    """The replica of this node, which is confirmed, may have changed."""

    database: Database
    is_master: bool


class ClockRead(Struct, frozen=True):
    """The local clock of people: weekday (0: Monday) and minute of the day."""

    weekday: int
    minute: int


class WatcherCame(Struct, frozen=True):
    """A watcher has connected: it detects what names it, and the events it names."""

    watcher: int
    name: str
    events: frozenset[str] = frozenset()
    members: int | None = None  # it wants the nodes' states, after this entry; -1: from now on; None: not (P8.8)


class WatcherWent(Struct, frozen=True):
    """Its connection is gone."""

    watcher: int


class Occurred(Struct, frozen=True):
    """A watcher has detected an event; `parameters` as it was asked for, where it says so."""

    watcher: int
    event: str
    out: Values
    parameters: Values | None = None


class ActionEnded(Struct, frozen=True):
    """An action function has ended, or an operation was answered."""

    number: int
    succeeded: bool
    detail: str


class TimePassed(Struct, frozen=True):
    """Time has passed."""


class Remembered(Struct, frozen=True):
    """What earlier daemons of this node have recorded, oldest first; what the runner knows of their actions (P8.9)."""

    occurrences: tuple["Occurrence", ...]
    running: frozenset[int] = frozenset()
    ended: tuple[ActionEnded, ...] = ()


Happening = Remembered | ReplicaChanged | ClockRead | WatcherCame | WatcherWent | Occurred | ActionEnded | TimePassed


# ---- what is to be done ---------------------------------------------------------------------------------------------


class Watch(Struct, frozen=True):
    """Have a watcher detect an event."""

    watcher: int
    event: str
    parameters: Values
    environment: Values
    surroundings: Surroundings | None = None  # what a check begins with (P8.19)


class Unwatch(Struct, frozen=True):
    """Have it stop."""

    watcher: int
    event: str


class TellNodeStates(Struct, frozen=True):
    """Tell a watcher the state of every node, as of this entry (P8.8)."""

    watcher: int
    snapshot: "NodeStates"


class RunAction(Struct, frozen=True):
    """Run an action function as a command of this node; answered by `ActionEnded`."""

    number: int
    event: str
    command: tuple[str, ...]
    timeout_ms: int
    environment: dict[str, str]


class RequestOperation(Struct, frozen=True):
    """Issue an ordinary operation, again until it is answered or cancelled; answered by `ActionEnded`."""

    number: int
    identity: str
    operation: OperationRequest


class CancelAction(Struct, frozen=True):
    """End what was begun under this number."""

    number: int
    event: str
    reason: str


Effect = Watch | Unwatch | TellNodeStates | RunAction | RequestOperation | CancelAction


# ---- what it knows --------------------------------------------------------------------------------------------------


class NodeStates(Struct, frozen=True):
    """Name, state and incarnation of every node."""

    index: int
    members: tuple[tuple[str, str, int], ...]


class Active(Struct, frozen=True):
    """An event that is watched for here."""

    event: EventDefinition
    group: str
    service: str = ""
    generation: int = 0
    uid: int = 0
    environment: Values = ()
    surroundings: Surroundings | None = None


class Occurrence(Struct):
    """One occurrence, what was done about it, and what became of that."""

    number: int
    at_us: int
    event: str
    group: str
    parameters: Values
    out: Values
    verdict: str  # acted upon, debounced, over the rate, too many wait, same failure, not enabled
    action: tuple[str, ...] = ()
    result: str = ""  # of the action: waiting, running, succeeded, failed, cancelled, unknown
    detail: str = ""
    ended_us: int = 0
    place: Place | None = None
    identity: str = ""  # of the request that its built-in action function makes


class _Watcher(Struct):
    name: str
    events: frozenset[str]
    members: bool
    watched: dict[str, Active]


class EventManager:
    """The machine of one node."""

    def __init__(self, node: int, incarnation: int, numbers_from: int) -> None:
        """`numbers_from`: above every number that an earlier daemon of this incarnation has given."""
        self._node, self._incarnation, self._number = node, incarnation, numbers_from
        self._database: Database | None = None
        self._is_master = False
        self._clock: tuple[int, int] | None = None
        self._windows: dict[str, Window | None] = {}
        self._active: dict[str, Active] = {}
        self._watchers: dict[int, _Watcher] = {}
        self._snapshots: deque[NodeStates] = deque(maxlen=MAXIMUM_SNAPSHOTS)
        self._remembered: dict[str, Place] = {}  # event -> what an earlier daemon was told of it
        self._told: dict[str, Place] = {}  # active event -> the place of the newest occurrence that was told
        self._acted_us: dict[str, deque[int]] = {}  # event -> when it was acted upon, the newest last
        self._at_work: dict[int, Occurrence] = {}
        self._waiting: dict[str, deque[tuple[Occurrence, Active]]] = {}  # group -> its actions, oldest first
        self._effects: list[Effect] = []
        self._now_us = 0
        self._node_name = ""
        self._is_up = False
        self.history: deque[Occurrence] = deque(maxlen=CAPACITY)
        self.changed: dict[int, Occurrence] = {}  # since the daemon has kept them last
        self.answer: tuple[int, str] = (0, "")  # number and verdict of what was told last

    # ---- for queries ----------------------------------------------------------------------------------------------

    @property
    def active(self) -> Mapping[str, Active]:
        """The events watched for here, by name."""
        return self._active

    @property
    def watchers(self) -> dict[int, tuple[str, tuple[str, ...]]]:
        """The connected watchers: name and what each watches for."""
        return {number: (watcher.name, tuple(watcher.watched)) for number, watcher in self._watchers.items()}

    @property
    def deadline_us(self) -> int:
        """When the clock of people is to be read next."""
        return self._now_us + CLOCK_US if self._windows else NEVER_US

    def is_at_work(self, number: int) -> bool:
        """Whether the action of this number still waits for its end."""
        return number in self._at_work

    def why_not(self, group: GroupDefinition) -> str:
        """What keeps a group from being enabled here, in words; nothing where nothing does (P8.4)."""
        database = self._database
        if database is None or not self._is_up:
            return "this node is not joined"
        known = database.event_groups.get(group.name)
        if known is not None and not known.enabled:
            return f"disabled by hand; enable it: muster event enable {group.name}"
        if "*" not in group.nodes and self._node_name not in group.nodes:
            return f"only on {', '.join(group.nodes)}"
        if group.service and not self._is_registered_here(group.service):
            return f"only where service {group.service} is registered"
        if group.on_master and not self._is_master:
            return "only on the master"
        if group.windows and not self._in_window(group):
            return f"only at {', '.join(group.windows)}"
        return ""

    def waiting(self, now_us: int) -> tuple[list[AwaitedHere], int]:
        """The commands that have waited for a place for long, the first of each group; how many in all (P8.12)."""
        late_us, commands = now_us - WAITED_US, self._commands()
        first, count = [], 0
        for group, queue in self._waiting.items():
            late = sum(1 for occurrence, _ in queue if occurrence.at_us <= late_us)
            if late:
                occurrence, active = queue[0]
                taken, places = commands.total(), _places(group, commands)
                place = PlaceAwaited("action", occurrence.event, active.service, 0, taken, places, "action commands")
                first.append(AwaitedHere(occurrence.at_us, place))
                count += late
        return first, count

    # ---- the machine ----------------------------------------------------------------------------------------------

    def step(self, happened: Happening, now_us: int) -> list[Effect]:
        """Take in what has happened; return what is to be done, in order."""
        self._now_us = max(self._now_us, now_us)
        match happened:
            case Remembered():
                self._remember(happened)
            case ReplicaChanged(database=database, is_master=is_master):
                self._follow(database, is_master)
            case ClockRead(weekday=weekday, minute=minute):
                self._clock = (weekday, minute)
                self._settle()
            case WatcherCame(watcher=number, name=name, events=events, members=members):
                self._watchers[number] = _Watcher(name, events, members is not None, {})
                self._settle()
                self._effects += [TellNodeStates(number, each) for each in self._snapshots_after(members)]
            case WatcherWent(watcher=number):
                self._watchers.pop(number, None)
            case Occurred():
                self._detected(happened)
            case ActionEnded():
                self._ended(happened)
            case TimePassed():
                pass
        self._begin_waiting()
        effects, self._effects = self._effects, []
        return effects

    def _follow(self, database: Database, is_master: bool) -> None:
        own = database.member(self._node)
        self._is_up = own.incarnation == self._incarnation and own.state is NodeState.JOINED
        self._database, self._is_master = database, is_master
        self._node_name = database.name_of(self._node)
        self._settle()
        if own.incarnation == self._incarnation and own.state in (NodeState.LEAVING, NodeState.INACTIVE):
            self._give_up("the node leaves the cluster")
        self._tell_members(database)

    def _tell_members(self, database: Database) -> None:
        """Tell the watchers that want it how the nodes stand, if that has changed (P8.8)."""
        members = tuple(
            (database.name_of(node), str(member.state), member.incarnation)
            for node, member in sorted(database.members.items())
        )
        if self._snapshots and self._snapshots[-1].members == members:
            return
        snapshot = NodeStates(database.index, members)
        self._snapshots.append(snapshot)
        if not any(active.event.watcher == MEMBERSHIP_WATCHER for active in self._active.values()):
            while len(self._snapshots) > 2:  # nobody will ask for what was before
                self._snapshots.popleft()
        self._effects += [TellNodeStates(number, snapshot) for number, each in self._watchers.items() if each.members]

    def _settle(self) -> None:
        """Have exactly the active events watched for."""
        if self._database is None:
            return
        before, self._active = self._active, self._due(self._database)
        for name, active in before.items():
            now = self._active.get(name)
            if active.service and (now is None or now.generation != active.generation):
                self._cancel_requests(name, _record_of(active.service))
            if name not in self._active:
                self._told.pop(name, None)
        # What was before it was enabled is none of an event; what a daemon finds enabled as it begins was so before.
        since = self._database.index if self._snapshots else 0
        for name, active in self._active.items():
            if name not in before or before[name].generation != active.generation:
                place = (active.generation or since, "")
                self._told[name] = max(place, self._remembered.get(name, place))
        for number, watcher in self._watchers.items():
            wanted = {name: active for name, active in self._active.items() if _detects(watcher, active)}
            for name, active in list(watcher.watched.items()):
                if wanted.get(name) != active:
                    self._effects.append(Unwatch(number, name))
                    del watcher.watched[name]
            for name, active in wanted.items():
                if name not in watcher.watched:
                    watcher.watched[name] = active
                    asked = (active.event.parameters, active.environment, active.surroundings)
                    self._effects.append(Watch(number, name, *asked))

    def _snapshots_after(self, entry: int | None) -> list[NodeStates]:
        """What a watcher that has just come is told of the nodes: all that it may not know, at least the newest."""
        if entry is None or not self._snapshots:
            return []
        *past, newest = self._snapshots
        return [*(each for each in past if 0 <= entry < each.index), newest]

    def _due(self, database: Database) -> dict[str, Active]:
        """The events of the groups that are enabled here (P8.4)."""
        self._windows = {
            text: self._windows.get(text) or window_of(text)
            for group in database.event_groups.values()
            for text in group.definition.windows
        }
        if not self._is_up:
            return {}
        found: dict[str, Active] = {}
        for group in database.event_groups.values():
            if not self.why_not(group.definition):
                common = self._environment(database, group.definition.service)
                for event in group.definition.events:
                    found[event.name] = Active(event, group.name, environment=common)
        for service in database.services.values():
            if service.node == self._node and self._is_registered_here(service.name):
                common = self._environment(database, service.name)
                for event in events_of(service.definition, service.generation):
                    found[event.name] = Active(
                        event, f"service/{service.name}", service.name, service.generation, service.uid, common,
                        Surroundings.of_check(service.definition) if event.watcher == CHECK_WATCHER else None,
                    )  # fmt: skip
        return found

    def _is_registered_here(self, name: str) -> bool:
        service = self._database.services.get(name) if self._database else None
        here = service is not None and (service.node, service.incarnation) == (self._node, self._incarnation)
        return here and service is not None and service.state is ServiceState.REGISTERED

    def _in_window(self, group: GroupDefinition) -> bool:
        if self._clock is None:
            return False
        windows = [self._windows.get(text) or window_of(text) for text in group.windows]
        return any(window is not None and window.contains(*self._clock) for window in windows)

    def _environment(self, database: Database, service: str) -> Values:
        """What commands of watchers and actions are told beside their parameters."""
        named = (("MUSTER_SERVICE", service),) if service else ()
        definition = database.services[service].definition if service in database.services else None
        given = (
            tuple(item for item in definition.environment if not item[0].startswith("MUSTER_")) if definition else ()
        )
        own = (("MUSTER_CLUSTER", database.cluster.name), ("MUSTER_NODE", self._node_name))
        return (*given, *own, ("MUSTER_INCARNATION", str(self._incarnation)), *named)

    def _remember(self, remembered: Remembered) -> None:
        """Go on from what an earlier daemon has recorded; what became of an action may be unknown (P8.9)."""
        ended = {each.number: each for each in remembered.ended}
        for occurrence in remembered.occurrences:
            self.history.append(occurrence)
            if occurrence.result in ("waiting", "running"):
                self._take_up(occurrence, occurrence.number in remembered.running, ended.get(occurrence.number))
            # an action of which nothing is known is rather done twice than never, if its event is told again
            if occurrence.place is not None and occurrence.result != "unknown":
                self._remembered[occurrence.event] = occurrence.place

    def _take_up(self, occurrence: Occurrence, runs: bool, ended: ActionEnded | None) -> None:
        self._at_work[occurrence.number] = occurrence
        operation = operation_of(occurrence.action)
        if ended is not None:
            self._ended(ended)
        elif operation is not None and occurrence.identity:  # one and the same request, whoever has asked it (P9.1)
            occurrence.result = "running"
            self._effects.append(RequestOperation(occurrence.number, occurrence.identity, operation))
        elif not runs:
            del self._at_work[occurrence.number]
            occurrence.result, occurrence.detail = "unknown", "the daemon was restarted"
            self.changed[occurrence.number] = occurrence

    # ---- occurrences ----------------------------------------------------------------------------------------------

    def _detected(self, told: Occurred) -> None:
        """A watcher is heard about what it was asked to detect, and about nothing else (P8.6)."""
        watcher, active = self._watchers.get(told.watcher), self._active.get(told.event)
        is_asked = active is not None and watcher is not None and told.event in watcher.watched
        if active is None or not is_asked or not _is_about(told, active):
            self._record(Occurrence(0, self._now_us, told.event[:255], "", (), _bounded(told.out), "not enabled"))
            return
        place = _place_of(active, told.out)
        if place is not None:
            if self._is_known(active, place):
                self.answer = (0, "known already")
                return
            self._told[told.event] = place
        known = active.event.outputs
        out = tuple(item for item in told.out if not known or item[0] in known)
        self._record_the_end(active, out)
        if self._is_of_check(active, told.out) and _action_of(active.event, out) != FAILURE_POLICY:
            parameters, verdict = active.event.parameters, "same failure"
            self._record(
                Occurrence(0, self._now_us, told.event, active.group, parameters, _bounded(out), verdict, place=place)
            )
            return
        self._occurred(active, out, place)

    def _record_the_end(self, active: Active, out: Values) -> None:
        """Ask for a record of a program's end that is left to `on_failure`, beside that action (P6.40)."""
        version = self._database.cluster.active_version if self._database else LOWEST
        is_left = active.event.watcher == PROGRAM_WATCHER and _action_of(active.event, out) != FAILURE_POLICY
        if not is_left or version < OWNERS_KEYS:
            return
        name = _record_of(active.service)
        occurrence = Occurrence(
            0, self._now_us, name, active.group, active.event.parameters, _bounded(out), "acted upon"
        )  # fmt: skip
        self._record(occurrence)
        occurrence.action = substituted(RECORD_ONLY, active.event.parameters, occurrence.out)
        occurrence.identity = f"ended-{active.uid}-{active.generation}-{active.service}"
        self._begin(occurrence, active)

    def _is_known(self, active: Active, place: Place) -> bool:
        """Whether what is told was told before; of a check, whether that failure is dealt with already (P8.15)."""
        name, is_check = active.event.name, active.event.watcher == CHECK_WATCHER
        if place <= self._told[name]:
            return not (is_check and self._was_in_vain(name))
        return is_check and self._is_of_exit(active)

    def _was_in_vain(self, event: str) -> bool:
        """Whether what was asked for at the event's last occurrence was refused: then it is asked again (P8.15)."""
        last = next((each for each in reversed(self.history) if each.event == event), None)
        return last is not None and last.result == "failed" and is_built_in(last.action)

    def _is_of_exit(self, active: Active) -> bool:
        """Whether a failing check only shows again that the program of its service has ended (P8.15)."""
        ended = f"{active.service}:exit"
        return self._told.get(ended) == (active.generation, ENDED) and not self._was_in_vain(ended)

    def _is_of_check(self, active: Active, out: Values) -> bool:
        """Whether the end of a program belongs to a failure that its check has shown before (P8.15)."""
        since = dict(out).get("since", "")
        seen = self._told.get(f"{active.service}:check")
        return active.event.watcher == PROGRAM_WATCHER and bool(since) and seen == (active.generation, since)

    def _occurred(self, active: Active, out: Values, place: Place | None) -> None:
        """Record it; act on it unless it is too soon, too often, or too many wait (P8.5)."""
        event = active.event
        if len(self._acted_us) > MAXIMUM_REMEMBERED:  # of events that were withdrawn long since
            self._acted_us = {name: times for name, times in self._acted_us.items() if name in self._active}
        acted = self._acted(event)
        occurrence = Occurrence(
            0, self._now_us, event.name, active.group, event.parameters, _bounded(out), "acted upon", place=place
        )
        if acted and event.debounce_ms and self._now_us - acted[-1] < event.debounce_ms * US_PER_MS:
            occurrence.verdict = "debounced"
        elif event.rate_count and self._is_over_rate(event, acted):
            occurrence.verdict = "over the rate"
        elif event.watcher != PROGRAM_WATCHER and self._too_many_wait(active):
            # the end of a program is told once, so it waits for as long as it takes: there is one a service at most
            occurrence.verdict = "too many wait"
        self._record(occurrence)
        if occurrence.verdict == "acted upon":
            acted.append(self._now_us)
            if action := _action_of(event, out):
                occurrence.action = substituted(action, event.parameters, occurrence.out)
                occurrence.result = "waiting"
                occurrence.identity = f"event-{self._node}-{self._incarnation}-{occurrence.number}"
                if event.watcher == PROGRAM_WATCHER:
                    # Asked twice, by two daemons, it is done once. Services that were defined together share uid and
                    # generation, so only with its name is it the request of this one.
                    occurrence.identity = f"exit-{active.uid}-{active.generation}-{active.service}"
                if is_built_in(occurrence.action):  # it needs no place, nor waits for what does (P8.10)
                    self._begin(occurrence, active)
                else:
                    self._waiting.setdefault(active.group, deque()).append((occurrence, active))

    def _too_many_wait(self, active: Active) -> bool:
        """Each group has its share of what may wait, so a flood of one is no loss of another's (P8.10)."""
        if is_built_in(active.event.action):
            asked = sum(1 for each in self._at_work.values() if each.group == active.group and is_built_in(each.action))
            return asked >= MAXIMUM_WAITING
        own = len(self._waiting.get(active.group, ()))
        return own >= MAXIMUM_WAITING or (own > 0 and sum(map(len, self._waiting.values())) >= MAXIMUM_WAITING_OF_ALL)

    def _acted(self, event: EventDefinition) -> deque[int]:
        """When the event was acted upon, the newest last, as often as matters; by earlier daemons too."""
        if event.name not in self._acted_us:
            past = [each.at_us for each in self.history if each.event == event.name and each.verdict == "acted upon"]
            self._acted_us[event.name] = deque(past, maxlen=max(1, event.rate_count))
        return self._acted_us[event.name]

    def _is_over_rate(self, event: EventDefinition, acted: deque[int]) -> bool:
        window_us = event.rate_window_ms * US_PER_MS
        return sum(1 for at_us in acted if self._now_us - at_us < window_us) >= event.rate_count

    def _record(self, occurrence: Occurrence) -> None:
        self._number += 1
        occurrence.number = self._number
        self.history.append(occurrence)
        self.changed[occurrence.number] = occurrence
        self.answer = (occurrence.number, occurrence.verdict)

    # ---- actions --------------------------------------------------------------------------------------------------

    def _begin_waiting(self) -> None:
        """Begin the commands for whose groups there is a place (P8.10)."""
        if not self._waiting:
            return
        commands = self._commands()
        begun = True
        while begun:
            begun = False
            for group, queue in list(self._waiting.items()):  # one of each in turn
                if commands.total() >= _places(group, commands):
                    continue
                commands[group] += 1
                begun = True
                self._begin(*queue.popleft())
                if not queue:
                    del self._waiting[group]

    def _commands(self) -> Counter[str]:
        """How many commands of each group are at work."""
        return Counter(each.group for each in self._at_work.values() if not is_built_in(each.action))

    def _begin(self, occurrence: Occurrence, active: Active) -> None:
        self._at_work[occurrence.number] = occurrence
        occurrence.result = "running"
        self.changed[occurrence.number] = occurrence
        if is_built_in(occurrence.action):
            self._request(occurrence)
        else:
            self._effects.append(
                RunAction(
                    occurrence.number, occurrence.event, occurrence.action, active.event.timeout_ms,
                    self._action_environment(occurrence, active),
                )
            )  # fmt: skip

    def _request(self, occurrence: Occurrence) -> None:
        """Built-in action functions: ordinary service requests, and no other path (P8.7, SPEC 5.4)."""
        operation = operation_of(occurrence.action)
        if operation is None:
            detail = f"{' '.join(occurrence.action)} is no built-in action function that can be carried out"
            self._ended(ActionEnded(occurrence.number, False, detail))
            return
        self._effects.append(RequestOperation(occurrence.number, occurrence.identity, operation))

    def _action_environment(self, occurrence: Occurrence, active: Active) -> dict[str, str]:
        epoch = self._database.epoch if self._database else 0
        own = {
            "MUSTER_EVENT": occurrence.event,
            "MUSTER_GROUP": occurrence.group,
            "MUSTER_EPOCH": str(epoch),
            "MUSTER_OCCURRENCE": str(occurrence.number),
        }
        values = {f"MUSTER_IN_{key.upper()}": value for key, value in occurrence.parameters}
        values |= {f"MUSTER_OUT_{key.upper()}": value for key, value in occurrence.out}
        return dict(active.environment) | values | own

    def _ended(self, ended: ActionEnded) -> None:
        occurrence = self._at_work.pop(ended.number, None)
        if occurrence is None:
            return
        if occurrence.result != "cancelled":
            occurrence.result = "succeeded" if ended.succeeded else "failed"
            occurrence.detail = ended.detail[:MAXIMUM_RESULT_CHARACTERS]
        occurrence.ended_us = self._now_us
        self.changed[occurrence.number] = occurrence

    def _cancel_requests(self, *events: str) -> None:
        """The service has moved on: what was to be asked for it is void."""
        for occurrence in self._at_work.values():
            if occurrence.event in events and is_built_in(occurrence.action):
                self._effects.append(CancelAction(occurrence.number, occurrence.event, "the service has moved on"))

    def _give_up(self, reason: str) -> None:
        """End all actions (P8.3)."""
        for occurrence, _ in (each for queue in self._waiting.values() for each in queue):
            occurrence.result, occurrence.detail, occurrence.ended_us = "cancelled", reason, self._now_us
            self.changed[occurrence.number] = occurrence
        self._waiting.clear()
        for occurrence in self._at_work.values():
            if occurrence.result != "cancelled":
                occurrence.result, occurrence.detail = "cancelled", reason
                self._effects.append(CancelAction(occurrence.number, occurrence.event, reason))


def is_built_in(action: tuple[str, ...]) -> bool:
    """Whether it is an operation of Muster's own, which runs nothing that could hang."""
    return bool(action) and action[0].startswith("muster:")


def _record_of(service: str) -> str:
    """The event under whose name a record of its program's end is asked for."""
    return f"{service}:ended"


def _places(group: str, commands: Counter[str]) -> int:
    """How many commands may be at work for one more of the group to begin (P8.10)."""
    if commands[group]:
        return MAXIMUM_AT_WORK
    return MAXIMUM_WITH_SERVICES if group.startswith("service/") else MAXIMUM_WITH_RESERVE


def events_of(definition: Definition, generation: int) -> Iterable[EventDefinition]:
    """The events of a registered service's own group (SPEC 5.4)."""
    action = definition.on_failure or FAILURE_POLICY
    own = (("service", definition.name), ("generation", str(generation)))
    if definition.run or (definition.start_command and definition.forking is not False):
        ended = ("status", "output", "detail", "code")
        done = _listed("success", definition.success_exit_status)
        yield EventDefinition(f"{definition.name}:exit", PROGRAM_WATCHER, (*own, *done), ended, action)
    if definition.check_command:
        how = (
            ("command", shlex.join(definition.check_command)), ("interval", f"{definition.check_interval_ms}ms"),
            ("timeout", f"{definition.check_timeout_ms}ms"), ("failures", str(definition.check_failures)),
            ("of", str(definition.check_of)), *_listed("success", definition.check_success_exit_status),
            *_listed("unknown", definition.check_unknown_exit_status),
        )  # fmt: skip
        if definition.start_grace_ms:
            how = (*how, ("grace", f"{definition.start_grace_ms}ms"))
        out = ("status", "output", "failures", "detail")
        check = f"{definition.name}:check"
        yield EventDefinition(check, CHECK_WATCHER, (*own, *how), out, action)
        yield EventDefinition(
            f"{definition.name}:unchecked", UNCHECKED_WATCHER, (*own, ("check", check)), ("status", "output", "detail")
        )


def _listed(name: str, statuses: tuple[int, ...]) -> Values:
    return ((name, ",".join(map(str, statuses))),) if statuses else ()


def _action_of(event: EventDefinition, out: Values) -> tuple[str, ...]:
    """What is done about an occurrence: a program that has done its work is no failure, whatever `on_failure` is."""
    done = dict(event.parameters).get("success", "").split(",") if event.watcher == PROGRAM_WATCHER else ()
    code = dict(out).get("code", "")
    return FAILURE_POLICY if code and code in done else event.action


def substituted(words: tuple[str, ...], parameters: Values, out: Values) -> tuple[str, ...]:
    """The action function with its references replaced, each word by itself: no value can become two words."""
    values = {("in", key): value for key, value in parameters} | {("out", key): value for key, value in out}
    return tuple(REFERENCE.sub(lambda found: values.get((found[1], found[2]), ""), word) for word in words)


def operation_of(words: tuple[str, ...]) -> OperationRequest | None:
    """The service request that a built-in action function stands for; None where its words make none."""
    function, *rest = words
    if not rest or not rest[0]:
        return None
    service, first, second, third = (*rest, "", "", "")[:4]
    match function:
        case "muster:fail" | "muster:record":
            generation = int(second) if second.isdigit() else 0
            status = int(third) if third in _STATUSES else NO_STATUS
            return FailService(service, first[:200], generation, status, has_own_action=function == RECORD_ONLY[0])
        case "muster:restart":
            return RestartService(service, first[:200])
        case "muster:transfer":
            return TransferService(service, first)
        case "muster:register":
            return RegisterService(service)
        case "muster:deregister":
            return DeregisterService(service)
    return None


def _detects(watcher: _Watcher, active: Active) -> bool:
    named = active.event.watcher
    if watcher.name == BUILT_IN_WATCHER and named in PROCESS_WATCHERS:
        return True
    return active.event.name in watcher.events or (bool(watcher.name) and watcher.name == named)


def _is_about(told: Occurred, active: Active) -> bool:
    """Whether the watcher means the event as it is now, not as it was: an earlier generation's, for instance."""
    return told.parameters is None or dict(told.parameters) == dict(active.event.parameters)


def _place_of(active: Active, out: Values) -> Place | None:
    """Where an occurrence that may be told again stands among all of its event; None for all others (P8.7, P8.8)."""
    if active.event.watcher == PROGRAM_WATCHER:
        return (active.generation, ENDED)
    if active.event.watcher == CHECK_WATCHER and active.service and "since" in dict(out):
        return (active.generation, dict(out)["since"][:20])  # of the failure that it belongs to (P8.15)
    if active.event.watcher == MEMBERSHIP_WATCHER:
        values = dict(out)
        entry = values.get("entry", "")
        return (int(entry), values.get("node", "")) if entry.isdecimal() and len(entry) < 20 else None
    return None


def _bounded(values: Values) -> Values:
    return tuple((key[:64], value[:MAXIMUM_RESULT_CHARACTERS]) for key, value in values[:MAXIMUM_OUT])
