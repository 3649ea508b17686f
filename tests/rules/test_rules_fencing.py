"""Fence agents prove an end between machines: the rules P7.22 to P7.29 (SPEC 7.1)."""

import pytest
from msgspec.structs import replace

from core_cluster import CoreCluster
from muster.core.draft import Draft, Facts
from muster.core.effects import CallFenceAgent, CancelFenceCall
from muster.core.fencing import asker as asking
from muster.core.fencing import fencing
from muster.core.fencing.asker import Asker
from muster.core.fencing.proofs import proofs_of
from muster.core.inputs import FenceAnswered, StripRead
from muster.core.leases.observer import Observer
from muster.core.links.links import Links
from muster.core.needs.machine import suspicions
from muster.core.needs.need import Need, Seen
from muster.core.node import insight
from muster.core.outbox import Outbox
from muster.core.this_node import ThisNode
from muster.records.database import Database
from muster.records.fencing import (
    FenceDevice,
    FenceMethod,
    FenceNow,
    FenceOutcome,
    FencePast,
    FencePhase,
    FencePlan,
    FenceStep,
    Fencing,
    ReleaseNode,
    RemoveFenceDevice,
    SetFenceDevice,
    SetFenceMethods,
    device_problem,
    methods_problem,
)
from muster.records.levels import NodeState
from muster.records.messages import Report
from muster.records.nodes import Cluster, NodeConfig
from muster.records.registers import Deadman, Lease, LeaseState, ProofKind, Strip
from muster.records.services import ApplyServices, Definition, SetMaintenance
from muster.records.terms import NO_TERM, Stamp
from muster.records.timing import FAST

MS = 1000


def power(name: str = "power", device: str = "pdu", action: str = "reboot") -> FenceMethod:
    """A method with one device."""
    return FenceMethod(name, action, (FenceStep(device, (("plug", "2"),)),))


def fenced_cluster(*methods: FenceMethod, version: int = 5) -> CoreCluster:
    """n0, n1, n2 on machines of their own; n2 has a service, and is fenced by these methods; n0 leads."""
    cluster = CoreCluster(3, deadman=Deadman.NONE, active_version=version)
    cluster.shared = True
    cluster.boot(0)
    cluster.until_joined(0)
    cluster.boot(1, 2)
    cluster.until_joined(0, 1, 2)
    cluster.do(0, ApplyServices((Definition("web", ordered=("n2", "n1"), start_command=("/bin/start",)),)))
    cluster.until("it runs", lambda: cluster.service().node == 2)
    for device in {step.device: 0 for method in methods for step in method.steps}:
        cluster.do(0, SetFenceDevice(device, "fence_x"))
    if methods:
        cluster.do(0, SetFenceMethods("n2", methods))
    return cluster


def calls(cluster: CoreCluster) -> list[tuple[int, str, str]]:
    """Who has called which device to do what, but for `monitor`."""
    return [(node, each.device.name, each.action) for node, each in cluster.fence_calls if each.action != "monitor"]


def until_lost(cluster: CoreCluster, within_ms: int = 20_000) -> None:
    cluster.until("n2 is lost", lambda: cluster.database.member(2).last_proof is not None, within_ms)


def test_p7_22_a_silent_node_is_proven_dead_without_a_person_and_its_service_goes_on() -> None:
    cluster = fenced_cluster(power())
    incarnation = cluster.database.member(2).incarnation
    cluster.kill(2)
    until_lost(cluster)
    proof = cluster.database.member(2).last_proof
    assert proof is not None
    assert (proof.kind, proof.incarnation) == (ProofKind.FENCE_AGENT, incarnation)
    cluster.until("the service is on n1", lambda: cluster.service().node == 1)
    cluster.until("it is turned on", lambda: cluster.database.fencing[2].phase is FencePhase.IDLE)
    assert calls(cluster) == [(0, "pdu", "off"), (0, "pdu", "status"), (0, "pdu", "on")]
    assert [past.outcome for past in cluster.database.fencing[2].past] == [FenceOutcome.OFF, FenceOutcome.ON]


def test_p7_22_no_agent_is_called_before_the_request_is_committed() -> None:
    cluster = fenced_cluster(power())
    seen: list[Fencing | None] = []

    def agent(node: int, call: CallFenceAgent) -> bool:
        record = cluster.core(node).database.fencing.get(2)
        seen.append(record)
        assert record is not None
        assert (call.node, call.incarnation, call.number) == (2, record.incarnation, record.number)
        assert record.asker == node
        return True

    cluster.agent = agent
    cluster.kill(2)
    until_lost(cluster)
    assert seen


def test_p7_22_nothing_is_fenced_before_its_version_is_active() -> None:
    cluster = fenced_cluster(version=4)
    refused = cluster.do(0, SetFenceDevice("pdu", "fence_x"))
    assert refused.refused
    assert "needs version 5" in refused.outcome
    cluster.kill(2)
    cluster.run(3000)
    assert cluster.database.member(2).last_proof is None


def test_p7_22_on_one_kernel_no_device_is_taken() -> None:
    cluster = CoreCluster(2)
    cluster.boot(0, 1)
    cluster.until_joined(0, 1)
    reply = cluster.do(0, SetFenceDevice("pdu", "fence_x"))
    assert reply.refused
    assert "scope host" in reply.outcome


def test_p7_22_a_node_in_maintenance_is_not_turned_off_and_an_operator_still_can() -> None:
    cluster = fenced_cluster(power())
    cluster.do(0, SetMaintenance("node", "n2", cause="cables"))
    cluster.kill(2)
    cluster.run(3000)
    assert not calls(cluster)
    assert not cluster.do(0, FenceNow("n2")).refused
    until_lost(cluster)


def test_p7_22_the_next_master_goes_on_with_the_request() -> None:
    cluster = fenced_cluster(power())
    cluster.agent = lambda _node, _call: None  # hangs
    cluster.kill(2)
    cluster.until("it is called", lambda: calls(cluster))
    asked = cluster.fence_calls[-1][0]
    cluster.agent = lambda _node, _call: True
    cluster.restart_daemon(asked)
    until_lost(cluster)
    assert [each for each in calls(cluster) if each[2] == "off"]


def test_p7_23_what_has_booted_since_is_not_turned_off() -> None:
    cluster = fenced_cluster(power())
    cluster.agent = lambda _node, call: call.action != "off"
    cluster.kill(2)
    cluster.until("it is called", lambda: calls(cluster))
    cluster.boot(2)
    before = len(calls(cluster))
    cluster.until("n2 is back", lambda: cluster.state(2) is NodeState.JOINED)
    cluster.run(2000)
    assert not [each for each in calls(cluster)[before + 1 :] if each[2] == "off"]
    proof = cluster.database.member(2).last_proof
    assert proof is not None
    assert proof.kind is ProofKind.NEXT_INCARNATION


class Desk:
    """An asker alone, with an observer that is shown what a test wants."""

    def __init__(self) -> None:
        self.now_us = 10_000_000
        self.out = Outbox(frozenset())
        self.me = ThisNode(0, "n0", 7, FAST)
        self.asker = Asker(self.me, self.out)
        self.links = Links(0, FAST, self.now_us, 0)
        self.beat, self.incarnation = 1, 5
        self.own = 1
        self.observer = Observer(0, 7, FAST, self.strip(), one_machine=False, started_us=self.now_us)
        self.database = Database(
            Cluster("test", "0" * 32, "fast", ""), nodes={n: NodeConfig(n, f"n{n}", (), "") for n in (0, 2)}
        )
        self.database.fence_devices = {"pdu": FenceDevice("pdu", "fence_x"), "board": FenceDevice("board", "fence_y")}
        steps = (FenceStep("pdu"), FenceStep("board"))
        self.database.fence_plans = {2: FencePlan(2, (FenceMethod("both", "reboot", steps),))}
        self.record = Fencing(2, 5, FencePhase.OFF, number=3, asker=0, asker_incarnation=7)
        self.database.fencing = {2: self.record}
        self.read()
        self.read()

    def strip(self) -> Strip:
        """What the store holds."""
        own = Lease(Stamp(0, 7, NO_TERM, self.own), LeaseState.LIVE, Deadman.NONE, 600, 120, bytes(16), "")
        there = Lease(
            Stamp(2, self.incarnation, NO_TERM, self.beat), LeaseState.LIVE, Deadman.NONE, 600, 120, bytes(16), ""
        )
        return Strip((own, None, there), (None,) * 3, (None,) * 3, (None,) * 3)

    def read(self, took_ms: int = 1) -> list[CallFenceAgent]:
        """A read that begins now; the calls that follow from it."""
        self.own += 1
        started_us = self.now_us
        self.now_us += took_ms * MS
        self.observer.see(StripRead(1, self.strip(), started_us, self.now_us))
        self.asker.look(self.observer, self.links, self.now_us)
        return self.drain()

    def drain(self) -> list[CallFenceAgent]:
        """What is to be called."""
        return [each for each in self.out.drain() if isinstance(each, CallFenceAgent)]

    def follow(self) -> None:
        """The replica has advanced."""
        self.asker.follow(self.database, self.now_us, fences=True)

    def answer(self, call: CallFenceAgent, *, succeeded: bool = True) -> None:
        """The agent has ended."""
        self.now_us += 50 * MS
        self.asker.answered(FenceAnswered(call.call, succeeded, "" if succeeded else "no route"), self.now_us)

    def until_done(self, before_last: str = "") -> None:
        """Answer every call; `before_last` says what the node does after the last one."""
        for _ in range(10):
            found = self.read()
            if not found:
                return
            self.answer(found[0])
            if before_last == "beats" and found[0].action == "status":
                self.beat += 1


def test_p7_23_each_call_waits_for_a_read_that_began_after_what_was_heard_before() -> None:
    desk = Desk()
    desk.follow()
    assert desk.asker.take_wish()
    desk.now_us += 1
    (first,) = desk.read()
    assert first.action == "off"
    started_us = desk.now_us
    desk.answer(first)
    desk.own += 1
    desk.observer.see(StripRead(1, desk.strip(), started_us, desk.now_us))  # it began before the answer
    desk.asker.look(desk.observer, desk.links, desk.now_us)
    assert not desk.drain()
    assert desk.asker.take_wish()
    assert [each.device.name for each in desk.read()] == ["board"]


def test_p7_23_a_read_that_took_longer_than_the_gap_and_one_without_an_own_beat_allow_no_call() -> None:
    desk = Desk()
    desk.follow()
    assert not desk.read(took_ms=FAST.gap_ms + 1)
    desk.own -= 1
    frozen = desk.own
    for _ in range(20):  # the own lease stands still in these reads
        desk.own = frozen - 1
        desk.now_us += 100 * MS
        desk.read()
    assert not desk.observer.may_lead(desk.now_us)
    assert not desk.read() or desk.observer.may_lead(desk.now_us)


def test_p7_23_a_later_incarnation_ends_the_request_here() -> None:
    desk = Desk()
    desk.follow()
    desk.incarnation = 6
    assert not desk.read()
    assert [each.outcome for each in desk.asker.answers] == [FenceOutcome.NOT_NEEDED]


def test_p7_24_all_devices_are_turned_off_before_any_is_asked_and_all_must_say_off() -> None:
    desk = Desk()
    desk.follow()
    said = []
    for _ in range(4):
        (call,) = desk.read()
        said.append((call.action, call.device.name))
        desk.answer(call)
    assert said == [("off", "pdu"), ("off", "board"), ("status", "pdu"), ("status", "board")]
    assert not desk.asker.answers, "a read after the last status is waited for"
    assert not desk.read()
    (answer,) = desk.asker.answers
    assert (answer.outcome, answer.number, answer.incarnation) == (FenceOutcome.OFF, 3, 5)


@pytest.mark.parametrize("failing", range(4))
def test_p7_24_one_call_that_fails_is_no_proof(failing: int) -> None:
    desk = Desk()
    desk.follow()
    for number in range(failing + 1):
        (call,) = desk.read()
        desk.answer(call, succeeded=number < failing)
    (answer,) = desk.asker.answers
    assert answer.outcome is FenceOutcome.FAILED
    assert "no route" in answer.detail
    assert not desk.read()


def test_p7_24_a_beat_after_the_status_shows_that_the_devices_lie() -> None:
    desk = Desk()
    desk.follow()
    desk.until_done(before_last="beats")
    (answer,) = desk.asker.answers
    assert answer.outcome is FenceOutcome.FAILED
    assert "its lease advances" in answer.detail


def test_p7_24_a_frame_after_the_status_shows_it_too() -> None:
    desk = Desk()
    desk.links.connect(2, 5, desk.now_us)
    desk.follow()
    for _ in range(4):
        (call,) = desk.read()
        desk.answer(call)
    desk.links.hear(2, desk.now_us)
    desk.read()
    (answer,) = desk.asker.answers
    assert answer.outcome is FenceOutcome.FAILED
    assert "it is heard" in answer.detail


def test_p7_24_a_status_that_says_on_is_followed_by_the_next_try_and_nothing_is_recovered() -> None:
    cluster = fenced_cluster(power())
    cluster.agent = lambda _node, call: call.action != "status"  # off claims to have worked
    cluster.kill(2)
    cluster.run(4000)
    assert cluster.database.member(2).last_proof is None
    assert cluster.service().node == 2
    assert len([each for each in calls(cluster) if each[2] == "off"]) >= 2
    cluster.agent = lambda _node, _call: True
    until_lost(cluster, 90_000)


def test_p7_25_another_asker_then_the_next_method() -> None:
    cluster = fenced_cluster(power("one", "board"), power("two", "pdu"))
    cluster.agent = lambda _node, call: call.device.name == "pdu"
    cluster.kill(2)
    until_lost(cluster)
    offs = [(node, device) for node, device, action in calls(cluster) if action == "off"]
    assert offs == [(0, "board"), (1, "board"), (0, "pdu")]


def test_p7_25_pauses_grow_from_round_to_round() -> None:
    database = Database(Cluster("test", "0" * 32, "fast", ""), nodes={2: NodeConfig(2, "n2", (), "")})
    database.fence_plans = {2: FencePlan(2, (power("one"), power("two")))}
    draft = Draft(database)
    pauses = [fencing._pause_ms(draft, Fencing(2, phase=FencePhase.OFF, attempt=each)) for each in range(0, 40, 4)]
    assert pauses[:6] == [0, 2000, 4000, 8000, 16000, 32000]
    assert set(pauses[6:]) == {fencing.LONGEST_PAUSE_MS}
    between = [fencing._pause_ms(draft, Fencing(2, phase=FencePhase.OFF, attempt=each)) for each in (1, 2, 3, 5)]
    assert between == [0, 0, 0, 0]


def test_p7_25_an_asker_that_dies_is_followed_by_another_one() -> None:
    cluster = fenced_cluster(power())
    cluster.do(0, SetFenceDevice("pdu", "fence_x", askers=("n1", "n2", "n0")))
    cluster.agent = lambda node, _call: None if node == 0 else True
    cluster.kill(2)
    cluster.until("n0 calls", lambda: calls(cluster))
    cluster.kill(0)
    cluster.until("n1 leads", lambda: cluster.masters() == [1])
    until_lost(cluster, 60_000)
    assert (1, "pdu", "status") in calls(cluster)


def test_p7_25_one_who_says_nothing_is_given_up_after_its_whole_time() -> None:
    cluster = fenced_cluster(power())
    cluster.do(0, SetFenceDevice("pdu", "fence_x", askers=("n1",)))
    cluster.loses = lambda envelope: isinstance(envelope.message, Report) and envelope.sender == 1
    cluster.kill(2)
    cluster.until("it is given up", lambda: 2 in cluster.database.fencing and cluster.database.fencing[2].past, 120_000)
    assert "has said nothing in time" in cluster.database.fencing[2].past[0].detail
    assert (1, "pdu", "status") in calls(cluster)
    assert cluster.database.member(2).last_proof is None
    cluster.loses = lambda _envelope: False
    until_lost(cluster)


def test_p7_25_where_nobody_reaches_the_device_the_request_waits() -> None:
    cluster = fenced_cluster(power())
    cluster.do(0, SetFenceDevice("pdu", "fence_x", askers=("n1",)))
    cluster.kill(1)
    cluster.kill(2)
    cluster.run(3000)
    assert cluster.database.fencing[2].asker == -1
    assert not calls(cluster)


def test_p7_26_it_is_turned_on_only_after_its_death_is_recorded() -> None:
    cluster = fenced_cluster(power())
    states = []

    def agent(node: int, call: CallFenceAgent) -> bool:
        if call.action == "on":
            states.append((cluster.core(node).database.member(2).last_proof, cluster.state(2)))
        return True

    cluster.agent = agent
    cluster.kill(2)
    cluster.until("it is turned on", lambda: states)
    assert states[0][0] is not None


def test_p7_26_a_method_that_only_turns_off_leaves_it_off() -> None:
    cluster = fenced_cluster(power(action="off"))
    cluster.kill(2)
    until_lost(cluster)
    cluster.run(2000)
    assert "on" not in [action for *_, action in calls(cluster)]
    assert cluster.database.fencing[2].phase is FencePhase.IDLE


def test_p7_26_a_node_that_cannot_be_turned_on_is_left_to_a_person() -> None:
    cluster = fenced_cluster(power())
    cluster.agent = lambda _node, call: call.action != "on"
    cluster.kill(2)
    until_lost(cluster)
    cluster.until("it is given up", lambda: cluster.database.fencing[2].phase is FencePhase.IDLE, 60_000)
    assert len([each for each in calls(cluster) if each[2] == "on"]) == fencing.TRIES_ON
    needs = [each.kind for each in _suspicions(cluster.database)]
    assert "fencing fails" in needs


def test_p7_27_the_fourth_time_within_an_hour_it_stays_off_and_does_not_join() -> None:
    cluster = fenced_cluster(power())
    for _ in range(fencing.QUARANTINE_AFTER):
        cluster.kill(2)
        cluster.until("it is on", lambda: _is_on_again(cluster), 30_000)
        cluster.boot(2)
        cluster.until_joined(2)
    cluster.kill(2)
    cluster.until("it is off", lambda: cluster.database.member(2).last_proof is not None and _is_idle(cluster))
    assert cluster.database.fencing[2].quarantined
    ons = len([each for each in calls(cluster) if each[2] == "on"])
    assert ons == fencing.QUARANTINE_AFTER
    cluster.boot(2)
    cluster.until("its join is refused", lambda: "muster fence release n2" in cluster.database.member(2).refusal)
    assert cluster.do(0, ReleaseNode("n2")).outcome.startswith("n2 may join again")
    cluster.until_joined(2)


def _is_on_again(cluster: CoreCluster) -> bool:
    past = cluster.database.fencing[2].past if 2 in cluster.database.fencing else ()
    return bool(past) and past[-1].outcome is FenceOutcome.ON and cluster.state(2) is NodeState.INACTIVE


def _is_idle(cluster: CoreCluster) -> bool:
    return cluster.database.fencing[2].phase is FencePhase.IDLE and cluster.state(2) is NodeState.INACTIVE


def test_p7_27_what_is_older_than_an_hour_does_not_count() -> None:
    database = Database(Cluster("test", "0" * 32, "fast", "", active_version=5), index=50)
    database.nodes = {2: NodeConfig(2, "n2", (), "")}
    database.fence_plans = {2: FencePlan(2, (power(),))}
    database.fencing = {2: Fencing(2, 4, fenced=(10, 20, 30))}
    database.members = {2: replace(database.member(2), incarnation=5)}
    draft = Draft(database)
    hour_us = 3600 * 1_000_000
    ages = {10: hour_us, 20: 5, 30: 5}
    facts = Facts(0, 0, {}, lambda *_: None, lambda _: True, {}, {}, True, lambda index: ages.get(index, 0))
    fencing.begin(draft, facts, 2, "silent")
    assert draft.fencing[2].fenced == (20, 30, 51)
    assert not draft.fencing[2].quarantined


def test_p7_28_a_device_with_a_secret_among_its_parameters_is_refused() -> None:
    for name in ("passwd", "password", "Secret", "api_key", "community"):
        problem = device_problem(SetFenceDevice("pdu", "fence_x", ((name, "hunter2"),)))
        assert "is a secret" in problem
        assert "hunter2" not in problem
    assert not device_problem(SetFenceDevice("pdu", "/opt/fence", (("ip", "192.0.2.1"),), ("passwd",)))


@pytest.mark.parametrize(
    ("device", "what"),
    [
        (SetFenceDevice("", "fence_x"), "cannot be called"),
        (SetFenceDevice("a/../b", "fence_x"), "cannot be called"),
        (SetFenceDevice("pdu", ""), "is no agent"),
        (SetFenceDevice("pdu", "sbin/fence"), "begins at the root"),
        (SetFenceDevice("pdu", "fence x"), "is no agent"),
        (SetFenceDevice("pdu", "fence_x", (("action", "off"),)), "is said by Muster itself"),
        (SetFenceDevice("pdu", "fence_x", (("ip", "a\naction=on"),)), "not of one line"),
        (SetFenceDevice("pdu", "fence_x", (("ip", "1"), ("ip", "2"))), "given twice"),
        (SetFenceDevice("pdu", "fence_x", (("ip=x", "1"),)), "name of a parameter"),
        (SetFenceDevice("pdu", "fence_x", (), ("a", "a")), "named once"),
        (SetFenceDevice("pdu", "fence_x", (("a", "b"),), ("a",)), "as a secret only"),
        (SetFenceDevice("pdu", "fence_x", timeout_ms=5), "may take"),
    ],
)
def test_p7_28_wrong_devices_are_refused_with_what_is_wrong(device: SetFenceDevice, what: str) -> None:
    assert what in device_problem(device)


def test_p7_28_methods_name_known_devices_and_a_device_in_use_stays() -> None:
    cluster = fenced_cluster(power())
    assert "no fence device" in cluster.do(0, SetFenceMethods("n1", (power(device="nope"),))).outcome
    assert "is fenced by it" in cluster.do(0, RemoveFenceDevice("pdu")).outcome
    assert "a node does not fence itself" in _own_device(cluster)
    cluster.do(0, SetFenceMethods("n2", ()))
    assert not cluster.do(0, RemoveFenceDevice("pdu")).refused
    assert "its action is" in methods_problem((power(action="cycle"),))
    assert "same name" in methods_problem((power(), power()))
    assert "has 0 devices" in methods_problem((FenceMethod("a", "off", ()),))


def _own_device(cluster: CoreCluster) -> str:
    cluster.do(0, SetFenceDevice("own", "fence_x", askers=("n1",)))
    return cluster.do(0, SetFenceMethods("n1", (power(device="own"),))).outcome


def test_p7_28_a_device_that_fails_its_monitor_twice_is_told_and_asked_last() -> None:
    cluster = fenced_cluster(power())
    cluster.agent = lambda node, call: node != 0 or call.action != "monitor"
    cluster.until("n0 is in trouble", lambda: "pdu" in cluster.core(0).account.asker.troubles, 60_000)
    cluster.until(
        "n1 hears of it", lambda: insight.fence_troubles(cluster.core(1)) == {0: {"pdu": "it does not answer"}}
    )
    cluster.agent = lambda _node, _call: True
    cluster.kill(2)
    until_lost(cluster)
    assert calls(cluster)[0] == (1, "pdu", "off"), "who could not use it lately is asked last"


def test_p7_28_needs_say_which_device_fails_and_who_is_not_fenced() -> None:
    database = Database(Cluster("test", "0" * 32, "fast", ""))
    database.nodes = {n: NodeConfig(n, f"n{n}", (), "") for n in (1, 2)}
    database.members = {n: replace(database.member(n), state=NodeState.JOINED) for n in (1, 2)}
    database.fence_devices = {"pdu": FenceDevice("pdu", "fence_x")}
    database.fence_plans = {2: FencePlan(2, (power(),))}
    failed = FencePast(3, 5, FencePhase.OFF, "power", 1, FenceOutcome.FAILED, "no route", 9)
    database.fencing = {2: Fencing(2, 5, FencePhase.OFF, past=(failed,))}
    seen = Seen(1, 4, live=frozenset({1, 2}), fences=True, fence_troubles={1: {"pdu": "no route"}})
    needs = {each.kind: each for each in _needs(database, seen)}
    assert "n1 cannot use fence device pdu; no route" in needs["fence device"].words
    assert needs["fence device"].next_step == "muster fence test pdu"
    assert "n2 could not be fenced yet" in needs["fencing fails"].words
    assert "nothing says how n1 is fenced" in needs["not fenced"].words


def _needs(database: Database, seen: Seen) -> list[Need]:
    return [need for each in suspicions(database, seen) if (need := each.tell()) is not None]


def _suspicions(database: Database) -> list[Need]:
    return _needs(database, Seen(0, 0, live=frozenset({0, 1}), fences=True))


def test_p7_28_while_something_is_fenced_no_device_is_monitored() -> None:
    desk = Desk()
    desk.database.fencing = {}
    desk.follow()
    desk.database.fencing = {2: desk.record}
    desk.follow()
    desk.now_us += asking.FIRST_HEALTH_US + 1
    desk.asker.tick(desk.now_us)
    assert not desk.drain()


def test_p7_29_a_request_that_is_over_ends_its_call_and_a_late_agent_has_failed() -> None:
    desk = Desk()
    desk.follow()
    (call,) = desk.read()
    desk.now_us += 30_000 * MS + asking.LATE_CALL_US
    desk.asker.tick(desk.now_us)
    assert CancelFenceCall(call.call) in desk.out.drain()
    assert [each.outcome for each in desk.asker.answers] == [FenceOutcome.FAILED]
    fresh = Desk()
    fresh.follow()
    (call,) = fresh.read()
    fresh.database.fencing = {}
    fresh.follow()
    assert CancelFenceCall(call.call) in fresh.out.drain()
    assert not fresh.asker.answers


def test_p7_26_what_is_asked_next_waits_for_the_end_of_what_was_cancelled() -> None:
    desk = Desk()
    desk.follow()
    (off,) = desk.read()
    desk.database.fencing = {2: replace(desk.record, number=4, phase=FencePhase.ON)}
    desk.follow()
    desk.out.drain()
    assert not desk.read(), "`on` does not overtake `off`"
    desk.answer(off, succeeded=False)
    (on,) = desk.read()
    assert on.action == "on"


def test_p7_29_what_is_asked_of_an_earlier_incarnation_is_not_done() -> None:
    desk = Desk()
    desk.database.fencing = {2: replace(desk.record, asker_incarnation=6)}
    desk.follow()
    assert not desk.read()
    assert not desk.asker.answers


def test_p7_22_proofs_in_words() -> None:
    database = Database(Cluster("test", "0" * 32, "fast", ""))
    database.fence_plans = {2: FencePlan(2, (power(), power("board")))}
    assert proofs_of(database, 2, one_machine=False).words == "fence agents (power, board)"
    assert proofs_of(database, 1, one_machine=False).words == "a person's word only"
    assert proofs_of(database, 2, one_machine=True).words == "the kernel's word"
