"""The rules of events: groups, occurrences, watchers, actions (SPEC 5, PROTOCOL 8), on the machine itself."""

import re
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from muster.client.watching import Orders
from muster.core.effects import Surroundings
from muster.core.events.manager import (
    MAXIMUM_AT_WORK,
    MAXIMUM_WAITING,
    ActionEnded,
    CancelAction,
    ClockRead,
    Effect,
    EventManager,
    Happening,
    Occurred,
    Occurrence,
    Remembered,
    ReplicaChanged,
    RequestOperation,
    RunAction,
    TellNodeStates,
    Unwatch,
    Watch,
    WatcherCame,
    WatcherWent,
    substituted,
)
from muster.files.event_file import parse_groups
from muster.files.service_file import parse
from muster.records.database import Database
from muster.records.event_limits import problem_of_event, problem_of_group
from muster.records.events import ApplyEvents, EnableEvents, EventDefinition, EventGroup, GroupDefinition, window_of
from muster.records.levels import NodeState
from muster.records.members import Member
from muster.records.nodes import Cluster, NodeConfig
from muster.records.services import Definition, FailService, RestartService, Service, ServiceState
from muster.records.versions import OWNERS_KEYS
from rounds import Rounds

MS = 1000
DISK = EventDefinition(
    "disk-full", "disk", (("path", "/srv"),), ("free",), ("/bin/page", "{in.path} has {out.free}", "now")
)


def database(*groups: GroupDefinition, state: NodeState = NodeState.JOINED, enabled: bool = True) -> Database:
    """Two nodes; n0 is the one whose machine is looked at."""
    found = Database(cluster=Cluster("test", "0" * 32, "fast", "", active_version=2))
    for node in (0, 1):
        found.nodes[node] = NodeConfig(node, f"n{node}", (), "")
        found.members[node] = Member(node, state if node == 0 else NodeState.JOINED, 7)
    for group in groups:
        found.event_groups[group.name] = EventGroup(group, 1, enabled)
    return found


class Machine:
    """A machine with one watcher called `disk`, and a clock of its own."""

    def __init__(self, *groups: GroupDefinition) -> None:
        self.inner = EventManager(0, 7, 0)
        self.now_us = 1_000_000
        self.database = database(*groups)
        self.step(WatcherCame(1, "disk"))
        self.step(WatcherCame(9, "built-in"))

    def step(self, happened: Happening) -> list[Effect]:
        """One step at the present time."""
        return self.inner.step(happened, self.now_us)

    def follow(self, *, is_master: bool = False) -> list[Effect]:
        """The replica may have changed."""
        return self.step(ReplicaChanged(self.database, is_master))

    def occurs(self, event: str = "disk-full", *, watcher: int = 1, **out: str) -> list[Effect]:
        """A watcher detects an event."""
        return self.step(Occurred(watcher, event, tuple(out.items())))

    def verdicts(self) -> list[str]:
        """What was made of each occurrence."""
        return [each.verdict for each in self.inner.history]

    def registers(self, definition: Definition, generation: int, node: int = 0) -> list[Effect]:
        """A service is registered."""
        self.database.services[definition.name] = Service(
            definition, 3, ServiceState.REGISTERED, True, node, 7, generation
        )
        return self.follow()


def watched(effects: list[Effect]) -> list[str]:
    return [effect.event for effect in effects if isinstance(effect, Watch)]


def unwatched(effects: list[Effect]) -> list[str]:
    return [effect.event for effect in effects if isinstance(effect, Unwatch)]


def test_p8_4_a_group_is_enabled_while_all_that_it_names_holds() -> None:
    group = GroupDefinition("g", (DISK,), ("n0",), "web", True, ("mon 08:00-18:00",))
    machine = Machine(group)
    assert machine.follow(is_master=True) == []
    assert "service web" in machine.inner.why_not(group)
    machine.registers(Definition("web"), 5)
    machine.follow(is_master=True)
    assert "only at mon" in machine.inner.why_not(group)
    effects = machine.step(ClockRead(0, 9 * 60))
    assert watched(effects) == ["disk-full"]
    assert "only on the master" in (machine.follow(is_master=False) and machine.inner.why_not(group))
    assert watched(machine.follow(is_master=True)) == ["disk-full"]
    machine.database.event_groups["g"] = EventGroup(group, 1, enabled=False)
    assert unwatched(machine.follow(is_master=True)) == ["disk-full"]
    assert "muster event enable g" in machine.inner.why_not(group)
    machine.database.event_groups["g"] = EventGroup(group, 1)
    assert watched(machine.follow(is_master=True)) == ["disk-full"]
    assert unwatched(machine.step(ClockRead(0, 18 * 60))) == ["disk-full"]


@pytest.mark.parametrize("state", [NodeState.JOINING, NodeState.LEAVING, NodeState.INACTIVE])
def test_p8_4_nothing_is_watched_for_on_a_node_that_is_not_joined(state: NodeState) -> None:
    machine = Machine(GroupDefinition("g", (DISK,)))
    assert watched(machine.follow()) == ["disk-full"]
    assert watched(machine.registers(Definition("web", run=("/bin/web",)), 5)) == ["web:exit"]
    services = machine.database.services
    machine.database = database(GroupDefinition("g", (DISK,)), state=state)
    machine.database.services.update(services)
    assert sorted(unwatched(machine.follow())) == ["disk-full", "web:exit"]


@pytest.mark.parametrize(
    ("window", "weekday", "at", "contains"),
    [
        ("22:00-06:00", 0, "23:00", True),
        ("22:00-06:00", 0, "05:59", True),
        ("22:00-06:00", 0, "06:00", False),
        ("fri 22:00-06:00", 5, "05:00", True),  # Friday's night ends on Saturday
        ("fri 22:00-06:00", 4, "05:00", False),
        ("sat,sun", 6, "00:00", True),
        ("sat-mon", 0, "12:00", True),
        ("sat-mon", 1, "12:00", False),
        ("08:00-24:00", 2, "23:59", True),
    ],
)
def test_p8_4_windows_are_of_days_and_hours(window: str, weekday: int, at: str, contains: bool) -> None:
    found = window_of(window)
    assert found is not None
    hours, minutes = map(int, at.split(":"))
    assert found.contains(weekday, hours * 60 + minutes) is contains


@pytest.mark.parametrize("text", ["", "25:00-26:00", "funday", "mon-", "8-18", "22:70-23:00"])
def test_what_is_no_window_is_refused(text: str) -> None:
    assert window_of(text) is None
    assert "windows has" in problem_of_group(GroupDefinition("g", (DISK,), windows=(text,)))


def test_p8_5_an_occurrence_is_acted_upon_with_its_values_in_single_words() -> None:
    machine = Machine(GroupDefinition("g", (DISK,)))
    machine.follow()
    (action,) = machine.occurs(free="1 MiB; rm -rf {in.path}", stranger="x")
    assert isinstance(action, RunAction)
    assert action.command == ("/bin/page", "/srv has 1 MiB; rm -rf {in.path}", "now")
    assert action.environment["MUSTER_OUT_FREE"] == "1 MiB; rm -rf {in.path}"
    assert action.environment["MUSTER_EPOCH"] == "0"
    assert "MUSTER_OUT_STRANGER" not in action.environment  # not among its OUT parameters
    machine.now_us += 5 * MS
    machine.step(ActionEnded(action.number, False, "ended with status 1"))
    (record,) = machine.inner.history
    assert (record.verdict, record.result, record.detail) == ("acted upon", "failed", "ended with status 1")
    assert record.ended_us - record.at_us == 5 * MS


def test_p8_5_debounce_and_rate_keep_actions_apart_and_record_all() -> None:
    event = EventDefinition("e", "disk", action=("true",), debounce_ms=10, rate_count=2, rate_window_ms=1000)
    machine = Machine(GroupDefinition("g", (event,)))
    machine.follow()
    for wait_ms in (0, 5, 10, 20, 1000, 1):
        machine.now_us += wait_ms * MS
        machine.occurs("e")
    assert machine.verdicts() == [
        "acted upon", "debounced", "acted upon", "over the rate", "acted upon", "debounced",
    ]  # fmt: skip


def test_p8_3_actions_are_bounded_and_the_others_wait_in_their_turn() -> None:
    event = EventDefinition("e", "disk", action=("true",))
    machine = Machine(GroupDefinition("g", (event,)))
    machine.follow()
    begun = [effect for _ in range(MAXIMUM_AT_WORK + MAXIMUM_WAITING + 5) for effect in machine.occurs("e")]
    assert len(begun) == MAXIMUM_AT_WORK
    assert machine.verdicts()[-5:] == ["too many wait"] * 5
    first = begun[0]
    assert isinstance(first, RunAction)
    (following,) = machine.step(ActionEnded(first.number, True, ""))
    assert isinstance(following, RunAction)
    assert following.number == first.number + MAXIMUM_AT_WORK


def test_p8_3_actions_end_when_the_node_leaves() -> None:
    event = EventDefinition("e", "disk", action=("sleep", "100"))
    machine = Machine(GroupDefinition("g", (event,)))
    machine.follow()
    (action,) = machine.occurs("e")
    assert isinstance(action, RunAction)
    machine.database.members[0] = Member(0, NodeState.LEAVING, 7)
    assert CancelAction(action.number, "e", "the node leaves the cluster") in machine.follow()
    machine.step(ActionEnded(action.number, False, "whatever"))
    assert machine.inner.history[0].result == "cancelled"


def test_p8_6_a_watcher_is_heard_about_what_it_was_asked_for_only() -> None:
    other = EventDefinition("e", "other", action=("true",))
    machine = Machine(GroupDefinition("g", (DISK, other)))
    machine.follow()
    assert watched(machine.step(WatcherCame(2, "", frozenset({"e"})))) == ["e"]
    assert machine.occurs("e", watcher=1) == []
    assert machine.occurs("e", watcher=2) != []
    machine.step(WatcherWent(2))
    assert machine.occurs("e", watcher=2) == []
    assert machine.verdicts() == ["not enabled", "acted upon", "not enabled"]


def test_p8_7_what_is_asked_for_a_program_outlives_a_new_definition_of_its_service() -> None:
    """It is watched for anew, and told again as known already: the first request is the only one."""
    machine = Machine()
    machine.registers(WEB, 5)
    (request,) = machine.occurs("web:exit", watcher=9, **KILLED)
    changed = machine.registers(replace(WEB, environment=(("STAGE", "green"),)), 5)
    assert [type(effect) for effect in changed] == [Unwatch, Watch]
    assert machine.occurs("web:exit", watcher=9, **KILLED) == []
    assert isinstance(request, RequestOperation)
    assert machine.inner.is_at_work(request.number)


WEB = Definition("web", run=("/bin/web",))
KILLED = {"status": "was killed by SIGKILL", "output": "last words", "detail": "its program was killed by SIGKILL"}


def test_p8_7_the_end_of_a_program_is_a_request_that_names_its_generation() -> None:
    machine = Machine()
    (watch,) = machine.registers(WEB, 5)  # and the watcher answers at once if it has ended already
    assert isinstance(watch, Watch)
    assert (watch.watcher, watch.event, watch.parameters) == (9, "web:exit", (("service", "web"), ("generation", "5")))
    (request,) = machine.occurs("web:exit", watcher=9, **KILLED)
    assert isinstance(request, RequestOperation)
    assert request.operation == FailService("web", "its program was killed by SIGKILL", 5)
    assert request.identity == "exit-3-5-web"
    assert machine.follow() == []
    # the service has moved on: what was asked for it is void
    cancelled, unwatch, watch = machine.registers(WEB, 9)
    assert cancelled == CancelAction(request.number, "web:exit", "the service has moved on")
    assert unwatch == Unwatch(9, "web:exit")
    assert isinstance(watch, Watch)
    assert dict(watch.parameters)["generation"] == "9"
    machine.step(ActionEnded(request.number, False, "void"))
    # said late, of the program before: the parameters tell it from the present one
    late = Occurred(9, "web:exit", tuple(KILLED.items()), (("service", "web"), ("generation", "5")))
    assert machine.step(late) == []
    assert machine.verdicts() == ["acted upon", "not enabled"]


def test_p8_7_the_end_of_one_program_is_one_occurrence_however_often_it_is_told() -> None:
    machine = Machine()
    machine.registers(replace(WEB, on_failure=("/bin/page", "{in.service}")), 5)
    (action,) = machine.occurs("web:exit", watcher=9, **KILLED)
    assert isinstance(action, RunAction)
    machine.step(ActionEnded(action.number, True, ""))
    # the watcher process is killed: the next one is asked for the same, and tells the same
    machine.step(WatcherWent(9))
    assert watched(machine.step(WatcherCame(10, "built-in"))) == ["web:exit"]
    assert machine.occurs("web:exit", watcher=10, **KILLED) == []
    assert machine.inner.answer == (0, "known already")
    assert machine.verdicts() == ["acted upon"]
    # another program's end is another occurrence
    machine.registers(replace(WEB, on_failure=("/bin/page", "{in.service}")), 6)
    assert machine.occurs("web:exit", watcher=10, **KILLED) != []


def test_p8_7_the_ends_of_programs_that_were_started_by_one_entry_are_requests_of_their_own() -> None:
    machine = Machine()
    identities = set()
    for name in ("web", "db"):  # applied together: the same uid and the same generation
        machine.registers(replace(WEB, name=name), 5)
    for name in ("web", "db"):
        (request,) = machine.occurs(f"{name}:exit", watcher=9, **KILLED)
        assert isinstance(request, RequestOperation)
        assert isinstance(request.operation, FailService)
        assert request.operation.service == name
        identities.add(request.identity)
    assert len(identities) == 2


def test_p8_7_the_end_of_a_program_is_never_dropped_because_too_many_wait() -> None:
    machine = Machine()
    definitions = [Definition(f"web{number}", run=("/bin/web",)) for number in range(MAXIMUM_WAITING + 50)]
    for definition in definitions:
        machine.registers(definition, 5)
    asked = []
    for definition in definitions:
        effects = machine.occurs(f"{definition.name}:exit", watcher=9, **KILLED)
        asked += [effect for effect in effects if isinstance(effect, RequestOperation)]
    assert set(machine.verdicts()) == {"acted upon"}
    assert len(asked) == len(definitions)


def test_p8_10_what_muster_asks_for_itself_needs_no_place_among_commands_that_hang() -> None:
    groups = [
        GroupDefinition(f"g{number}", (EventDefinition(f"e{number}", "disk", action=("sleep", "3600")),))
        for number in range(50)
    ]
    machine = Machine(*groups)
    machine.registers(Definition("web", run=("/bin/web",), restarts=0), 5)
    for group in groups:
        for _ in range(MAXIMUM_WAITING + 2):
            machine.occurs(group.events[0].name)
    begun = machine.occurs("web:exit", watcher=9, **KILLED)
    assert [type(effect) for effect in begun] == [RequestOperation]


def test_p8_10_a_group_that_has_no_command_at_work_gets_a_place_beside_those_that_hang() -> None:
    flood = GroupDefinition("pager", (EventDefinition("page", "disk", action=("sleep", "3600")),))
    other = GroupDefinition("mail", (EventDefinition("send", "disk", action=("true",)),))
    machine = Machine(flood, other)
    machine.registers(Definition("web", check_command=("true",), on_failure=("/bin/mend",)), 5)
    for _ in range(MAXIMUM_AT_WORK + MAXIMUM_WAITING + 5):
        machine.occurs("page")
    assert machine.verdicts()[-1] == "too many wait"
    (sent,) = machine.occurs("send")
    assert isinstance(sent, RunAction) and sent.event == "send"
    assert machine.occurs("send") == [], "its second one waits"
    (mended,) = machine.occurs("web:check", watcher=9, status="failed")
    assert isinstance(mended, RunAction) and mended.command == ("/bin/mend",)
    (following,) = machine.step(ActionEnded(sent.number, True, ""))
    assert isinstance(following, RunAction) and following.event == "send", "each in its turn"


def test_p8_7_a_service_on_another_node_is_none_of_this_nodes_business() -> None:
    machine = Machine()
    machine.step(WatcherCame(2, "check"))
    definition = Definition("web", run=("/bin/web",), check_command=("true",))
    assert machine.registers(definition, 5, node=1) == []
    assert machine.occurs("web:exit", watcher=9, **KILLED) == []
    assert machine.verdicts() == ["not enabled"]


def test_p8_9_a_daemon_that_begins_goes_on_with_what_was_under_way() -> None:
    command = EventDefinition("c", "disk", action=("/bin/page",), debounce_ms=10_000)
    restart = EventDefinition("r", "disk", action=("muster:restart", "web"))
    groups = GroupDefinition("g", (command, restart))
    before = Machine(groups)
    before.registers(WEB, 5)
    before.occurs("r")
    before.occurs("web:exit", watcher=9, **KILLED)
    for event in ("r", "c", "c"):
        before.now_us += 20_000 * MS
        before.occurs(event)
    past = [msgspec.json.decode(msgspec.json.encode(each), type=Occurrence) for each in before.inner.history]
    first, exited, again, ended, running = past
    assert {each.result for each in past} == {"running"}
    lost = Occurrence(1, 5, "c", "g", (), (), "acted upon", ("/bin/page",), "running")
    after = Machine(groups)
    after.now_us = before.now_us + 1
    after.inner = EventManager(0, 7, after.now_us)
    effects = after.step(
        Remembered((lost, *past), frozenset({running.number}), (ActionEnded(ended.number, True, "ended"),))
    )
    # built-in ones are asked again, each as one and the same request
    asked = [each for each in effects if isinstance(each, RequestOperation)]
    own = [f"event-0-7-{each.number}" for each in (first, again)]
    assert [each.identity for each in asked] == [own[0], "exit-3-5-web", own[1]]
    assert lost.result == "unknown"
    assert [each.result for each in past] == ["running", "running", "running", "succeeded", "running"]
    assert exited.place == (5, "ended")
    assert set(after.inner.changed) == {1, ended.number}
    after.step(ActionEnded(running.number, False, "ended with status 1"))
    assert running.result == "failed"
    # it knows what was acted upon
    after.step(WatcherCame(1, "disk"))
    after.step(WatcherCame(9, "built-in"))
    after.database = before.database
    after.follow()
    assert after.occurs("web:exit", watcher=9, **KILLED) == []
    assert after.inner.answer == (0, "known already")
    after.occurs("c")
    assert after.inner.answer[1] == "debounced"


def test_p8_9_the_end_of_a_program_whose_action_has_an_unknown_result_is_acted_upon_when_it_is_told_again() -> None:
    machine = Machine()
    machine.inner = EventManager(0, 7, 100)
    about = (("service", "web"), ("generation", "5"))
    past = Occurrence(3, 5, "web:exit", "service/web", about, (), "acted upon", ("/bin/page",), "running")
    past.place = (5, "ended")
    machine.step(Remembered((past,)))
    assert (past.result, past.detail) == ("unknown", "the daemon was restarted")
    machine.step(WatcherCame(9, "built-in"))
    machine.registers(replace(WEB, on_failure=("/bin/page",)), 5)
    (action,) = machine.occurs("web:exit", watcher=9, **KILLED)
    assert isinstance(action, RunAction)


def test_p8_7_a_check_is_watched_anew_after_each_restart_and_its_action_may_be_the_administrators() -> None:
    machine = Machine()
    definition = Definition("web", check_command=("/bin/probe", "a b"), check_failures=2, check_of=3)
    watch, unchecked = machine.registers(definition, 5)
    assert isinstance(watch, Watch) and isinstance(unchecked, Watch)
    assert dict(unchecked.parameters)["check"] == watch.event
    parameters = dict(watch.parameters)
    assert (parameters["command"], parameters["failures"], parameters["of"]) == ("/bin/probe 'a b'", "2", "3")
    assert ("MUSTER_SERVICE", "web") in watch.environment
    assert machine.registers(definition, 6)[0] == Unwatch(9, "web:check")
    own = Definition(
        "web", check_command=("/bin/probe",), on_failure=("muster:restart", "{in.service}", "{out.output}")
    )
    machine.registers(own, 7)
    (request,) = machine.occurs("web:check", watcher=9, output="no answer")
    assert isinstance(request, RequestOperation)
    assert request.operation == RestartService("web", "no answer")


PAGED = Definition("web", run=("/bin/web",), check_command=("/bin/probe",), on_failure=("/bin/page", "{out.detail}"))
EARLIER, LATER = f"{5:020d}", f"{9:020d}"


def test_p8_15_what_on_failure_names_runs_once_for_a_failure_of_a_check_however_long_it_lasts() -> None:
    machine = Machine()
    machine.registers(PAGED, 5)
    (run,) = machine.occurs("web:check", watcher=9, since=EARLIER)
    assert isinstance(run, RunAction)
    assert machine.occurs("web:check", watcher=9, since=EARLIER) == []
    machine.step(ActionEnded(run.number, False, "nobody answers"))
    assert machine.occurs("web:check", watcher=9, since=EARLIER) == []
    assert machine.verdicts() == ["acted upon"]
    assert len(machine.occurs("web:check", watcher=9, since=LATER)) == 1  # it was well in between
    machine.registers(PAGED, 6)
    assert len(machine.occurs("web:check", watcher=9, since=LATER)) == 1  # a new start


def test_p8_15_a_crash_that_is_seen_by_its_exit_and_by_its_check_is_one_failure() -> None:
    machine = Machine()
    machine.registers(PAGED, 5)
    assert len(machine.occurs("web:exit", watcher=9, status="ended with status 1")) == 1
    assert machine.occurs("web:check", watcher=9, since=EARLIER) == []
    machine.registers(PAGED, 6)
    assert len(machine.occurs("web:check", watcher=9, since=EARLIER)) == 1
    assert machine.occurs("web:exit", watcher=9, status="ended with status 1", since=EARLIER) == []
    assert machine.verdicts() == ["acted upon", "acted upon", "same failure"]


def test_p8_15_an_operation_of_musters_own_that_was_refused_is_asked_for_again() -> None:
    machine = Machine()
    moves = replace(PAGED, on_failure=("muster:transfer", "{in.service}"))
    machine.registers(moves, 5)
    (request,) = machine.occurs("web:check", watcher=9, since=EARLIER)
    assert isinstance(request, RequestOperation)
    assert machine.occurs("web:check", watcher=9, since=EARLIER) == []
    machine.step(ActionEnded(request.number, False, "no other node is up"))
    assert len(machine.occurs("web:check", watcher=9, since=EARLIER)) == 1


def test_p6_38_a_program_that_has_done_its_work_is_no_failure_whatever_on_failure_is() -> None:
    machine = Machine()
    machine.registers(replace(PAGED, success_exit_status=(0, 3)), 5)
    (request,) = machine.occurs("web:exit", watcher=9, detail="its program ended with status 3", code="3")
    assert isinstance(request, RequestOperation)
    assert request.operation == FailService("web", "its program ended with status 3", 5, 3)


def test_p8_16_of_a_check_that_cannot_be_executed_a_record_is_kept_and_nothing_is_done() -> None:
    machine = Machine()
    assert watched(machine.registers(PAGED, 5)) == ["web:exit", "web:check", "web:unchecked"]
    assert machine.occurs("web:unchecked", watcher=9, detail="its check cannot be executed") == []
    assert machine.verdicts() == ["acted upon"]


def test_p8_19_a_check_begins_as_the_other_commands_of_its_service_or_as_the_user_that_it_names() -> None:
    def surroundings(definition: Definition, generation: int) -> list[Surroundings | None]:
        return [each.surroundings for each in Machine().registers(definition, generation) if isinstance(each, Watch)]

    own = replace(PAGED, user="www-data", group="adm", umask=0o077)
    assert surroundings(PAGED, 5) == [None, None, None]
    assert surroundings(own, 5) == [None, Surroundings("www-data", "adm", umask=0o077), None]
    assert surroundings(replace(own, check_user="root"), 5)[1] == Surroundings("root", umask=0o077)
    assert surroundings(replace(PAGED, check_user="root"), 5)[1] == Surroundings("root")


def test_p8_18_the_end_of_what_a_start_command_left_is_watched_for_unless_it_is_no_daemon() -> None:
    machine = Machine()
    started = Definition("web", start_command=("/bin/web",))
    assert watched(machine.registers(started, 5)) == ["web:exit"]
    assert watched(machine.registers(replace(started, forking=False), 6)) == []
    grace = replace(started, forking=False, check_command=("/bin/probe",), start_grace_ms=500)
    watch = machine.registers(replace(grace, check_unknown_exit_status=(3,)), 7)[0]
    assert isinstance(watch, Watch)
    assert (dict(watch.parameters)["grace"], dict(watch.parameters)["unknown"]) == ("500ms", "3")


GONE = EventDefinition("gone", "membership", (("state", "inactive"),), action=("log", "{out.node}", "{out.previous}"))


def test_p8_8_the_membership_watcher_is_told_how_the_nodes_stand_after_what_it_is_asked_for() -> None:
    assert problem_of_event(GONE) == ""
    machine = Machine(GroupDefinition("g", (GONE,)))
    assert watched(machine.step(WatcherCame(2, "", frozenset({"gone"}), members=-1))) == []
    machine.database.index = 40
    watch, other, members = machine.follow()
    assert watched([watch, other]) == ["gone", "gone"]
    assert isinstance(members, TellNodeStates)
    assert (members.watcher, members.snapshot.index) == (2, 40)
    assert members.snapshot.members == (("n0", "joined", 7), ("n1", "joined", 7))
    assert machine.follow() == []
    machine.database.index = 41
    machine.database.members[1] = Member(1, NodeState.INACTIVE, 7)
    (members,) = machine.follow()
    assert isinstance(members, TellNodeStates)
    assert members.snapshot.members[1] == ("n1", "inactive", 7)
    # one that begins anew hears again what others may have had no time to tell of
    for known, told in ((0, [40, 41]), (40, [41]), (41, [41]), (-1, [41]), (None, [])):
        effects = machine.step(WatcherCame(3, "", frozenset({"gone"}), members=known))
        assert [each.snapshot.index for each in effects if isinstance(each, TellNodeStates)] == told
        assert isinstance(effects[0], Watch)


def test_p8_8_a_daemon_that_begins_hears_of_what_changed_while_there_was_none() -> None:
    machine = Machine(GroupDefinition("g", (GONE,)))
    machine.database.index = 50
    machine.follow()
    told = {"node": "n1", "state": "inactive", "previous": "leaving", "incarnation": "7", "entry": "41"}
    assert machine.occurs("gone", watcher=9, **told) != []


def test_p8_8_a_change_is_one_occurrence_however_often_and_by_whomever_it_is_told() -> None:
    machine = Machine(GroupDefinition("g", (GONE,)))
    machine.database.event_groups.clear()
    machine.follow()
    machine.database.event_groups["g"] = EventGroup(GroupDefinition("g", (GONE,)), 1)
    machine.database.index = 40
    machine.follow()
    told = {"node": "n1", "state": "inactive", "previous": "leaving", "incarnation": "7"}
    assert machine.occurs("gone", watcher=9, entry="39", **told) == []  # it was not enabled then
    (action,) = machine.occurs("gone", watcher=9, entry="41", **told)
    assert isinstance(action, RunAction)
    assert action.command == ("log", "n1", "leaving")
    assert machine.occurs("gone", watcher=9, entry="41", **told) == []
    assert machine.occurs("gone", watcher=9, entry="41", **told | {"node": "n0"}) == []
    assert machine.occurs("gone", watcher=9, entry="41", **told | {"node": "n2"}) != []
    assert machine.occurs("gone", watcher=9, entry="50", **told) != []
    assert machine.verdicts() == ["acted upon"] * 3


@pytest.mark.parametrize(
    ("event", "says"),
    [
        (EventDefinition("e", "disk", action=("x", "{in.path}")), "refers to {in.path}, which the event does not have"),
        (EventDefinition("e", "disk", out=("a",), action=("{out.b}",)), "it has {out.a}"),
        (EventDefinition("e", "check"), "needs parameter command"),
        (EventDefinition("e", "program"), "is for services' own groups"),
        (EventDefinition("e", "membership", (("nodes", "n0"),)), "takes no parameter 'nodes'"),
        (EventDefinition("e", "timer", (("interval", "1s"),), out=("when",)), "fills in no 'when'"),
        (EventDefinition("e", action=("muster:explode", "web")), "the built-in ones are muster:fail"),
        (EventDefinition("e", action=("muster:restart",)), "names no service"),
        (EventDefinition("e", rate_count=1), "rate needs both"),
        (EventDefinition("a:b"), "a name has"),
    ],
)
def test_a_wrong_event_is_refused_with_what_is_allowed(event: EventDefinition, says: str) -> None:
    assert says in problem_of_event(event)


def test_references_without_a_value_are_empty_and_values_are_never_expanded_again() -> None:
    assert substituted(("{out.a}{in.b}{x}",), (("b", "{out.a}"),), ()) == ("{out.a}{x}",)


def test_the_examples_of_the_documentation_can_be_applied() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", (Path(__file__).parents[2] / "docs" / "EVENTS.md").read_text(), re.DOTALL)
    text = "\n".join(blocks)
    (web,) = parse(text, "EVENTS.md", ("n0", "n1"), {})
    assert (web.run[0], web.ready_port, web.check_failures, web.check_of) == ("/usr/sbin/nginx", 8080, 2, 3)
    (group,), problems = parse_groups(text, "EVENTS.md", ("n0", "n1"))
    assert not problems
    (event,) = group.events
    assert dict(event.parameters)["failures"] == "2"
    assert (event.rate_count, event.rate_window_ms, event.debounce_ms) == (3, 3_600_000, 600_000)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('windows = ["whenever"]', "windows has 'whenever'"),
        ("nodes = [1]", "a list of texts"),
        ("on_master = 1", "true or false"),
        ('event = "x"', "[[event_group.event]]"),
        ('speed = "x"', "unknown key 'speed'"),
    ],
)
def test_a_wrong_group_in_a_file_is_named_with_its_line(line: str, says: str) -> None:
    text = f'[[event_group]]\nname = "g"\n{line}\n'
    if "event =" not in line:
        text += '[[event_group.event]]\nname = "e"\n'
    groups, problems = parse_groups(text, "file.toml", ("n0",))
    assert not groups
    assert any(says in str(problem) for problem in problems), list(map(str, problems))
    assert str(problems[0]).startswith("file.toml:")


def test_an_event_in_two_groups_is_refused() -> None:
    one = '[[event_group]]\nname = "{}"\n[[event_group.event]]\nname = "e"\n'
    _groups, problems = parse_groups(one.format("a") + one.format("b"), "file.toml")
    assert ["event 'e' is in group 'a' too" in str(problem) for problem in problems] == [True]


def test_a_watcher_that_connects_again_forgets_what_it_is_not_asked_for_any_more() -> None:
    orders = Orders()
    watch = {"in": {"a": "b"}, "environment": {}}
    assert orders.take({"watch": "x", **watch})
    assert orders.take({"watch": "y", **watch})
    orders.begin()
    assert not orders.take({"watch": "x", **watch})  # the same as before
    assert orders.take({"settled": True})
    assert list(orders.asked) == ["x"]
    assert orders.take({"unwatch": "x"})
    assert not orders.take({"unwatch": "x"})
    assert not orders.take({"nonsense": 1})


def test_groups_are_defined_enabled_by_hand_and_withdrawn_by_operations() -> None:
    rounds = Rounds(2)
    group = GroupDefinition("g", (DISK,), enabled=False)
    done = rounds.ask(ApplyEvents((group,)))
    assert (done.refused, done.outcome) == (False, "event groups: 1 defined, 0 changed, 0 withdrawn")
    assert not rounds.database.event_groups["g"].enabled
    assert not rounds.ask(EnableEvents("g", True)).refused
    uid = rounds.database.event_groups["g"].uid
    # what was done by hand stays when the definition changes, and so does its identity
    assert "1 changed" in rounds.ask(ApplyEvents((replace(group, nodes=("n1",)),))).outcome
    changed = rounds.database.event_groups["g"]
    assert (changed.enabled, changed.uid, changed.definition.nodes) == (True, uid, ("n1",))
    assert "0 changed" in rounds.ask(ApplyEvents((changed.definition,))).outcome
    assert "1 withdrawn" in rounds.ask(ApplyEvents((), ("g",))).outcome
    assert not rounds.database.event_groups


@pytest.mark.parametrize(
    ("operation", "says"),
    [
        (ApplyEvents((GroupDefinition("h", (DISK,)),)), "event 'disk-full' is in group g and in group h"),
        (ApplyEvents((GroupDefinition("g", (DISK,), ("n9",)),)), "names node n9, which this cluster does not have"),
        (ApplyEvents((), ("gg",)), "there is no event group 'gg'; did you mean 'g'?"),
        (EnableEvents("disk", False), "there is no event group 'disk'; see `muster event list`"),
        (ApplyEvents((), ("g",), expect=77), "you expected version 77"),
    ],
)
def test_a_wrong_operation_on_groups_changes_nothing(operation: ApplyEvents | EnableEvents, says: str) -> None:
    rounds = Rounds(2)
    rounds.ask(ApplyEvents((GroupDefinition("g", (DISK,)),)))
    before = dict(rounds.database.event_groups)
    done = rounds.ask(operation)
    assert done.refused
    assert says in done.outcome
    assert rounds.database.event_groups == before


def _paged(version: int) -> Machine:
    machine = Machine()
    machine.database = replace(
        machine.database, cluster=replace(machine.database.cluster, active_version=version)
    )  # fmt: skip
    machine.registers(PAGED, 5)
    return machine


def test_p6_40_the_end_of_a_program_is_recorded_beside_what_on_failure_names() -> None:
    machine = _paged(OWNERS_KEYS)
    recorded, action = machine.occurs("web:exit", watcher=9, **KILLED)
    assert isinstance(recorded, RequestOperation)
    assert recorded.operation == FailService("web", KILLED["detail"], 5, has_own_action=True)
    assert isinstance(action, RunAction)
    assert recorded.identity != action.event
    assert machine.occurs("web:exit", watcher=9, **KILLED) == [], "it is one end"
    # the service moves on: a record of the former program's end is void
    assert CancelAction(recorded.number, "web:ended", "the service has moved on") in machine.registers(PAGED, 6)
    done = replace(PAGED, success_exit_status=(3,))
    machine.registers(done, 7)
    (request,) = machine.occurs("web:exit", watcher=9, detail="its program ended with status 3", code="3")
    assert isinstance(request, RequestOperation)
    assert request.operation == FailService("web", "its program ended with status 3", 7, 3)


def test_p6_40_the_end_of_a_program_is_recorded_too_where_its_check_has_failed_before_and_a_check_records_nothing() -> (
    None
):
    machine = _paged(OWNERS_KEYS)
    (run,) = machine.occurs("web:check", watcher=9, since=EARLIER)
    assert isinstance(run, RunAction)
    (recorded,) = machine.occurs("web:exit", watcher=9, **KILLED, since=EARLIER)
    assert isinstance(recorded, RequestOperation)
    assert recorded.operation == FailService("web", KILLED["detail"], 5, has_own_action=True)


def test_p6_40_nothing_is_recorded_while_a_master_of_an_older_release_would_follow_the_policy() -> None:
    (action,) = _paged(OWNERS_KEYS - 1).occurs("web:exit", watcher=9, **KILLED)
    assert isinstance(action, RunAction)
