"""Operations: the rule P9.1 of docs/PROTOCOL.md (SPEC 7.8, 9.1)."""

from random import Random

import pytest
from msgspec.structs import replace

from core_cluster import CoreCluster, Envelope, joined_cluster
from muster.core.effects import AppendFrame
from muster.core.operations.clients import MAXIMUM_PENDING
from muster.core.operations.operations import digest_of
from muster.records.access import ITSELF, Author
from muster.records.configuration import Operation, RollBack
from muster.records.database import Entry, decode_entry
from muster.records.members import EvictNode, LeaveNode
from muster.records.messages import Append, Request, Response
from muster.records.nodes import RotateAuthority
from muster.records.operations import OperationRequest
from muster.records.services import (
    ApplyServices,
    Definition,
    DeregisterService,
    FailService,
    RegisterService,
    Service,
    ServiceState,
    TransferService,
)

WEB = Definition("web", ordered=("n1",), start_command=("/bin/start",), stop_command=("/bin/stop",))
IDLE = Definition("idle", auto_register=False)


def serving_cluster() -> CoreCluster:
    """Three nodes with a service on n1."""
    cluster = joined_cluster(3)
    cluster.do(0, ApplyServices((WEB,)))
    cluster.until("web is on n1", lambda: cluster.service().state is ServiceState.REGISTERED)
    cluster.run(500)
    return cluster


def entries(cluster: CoreCluster) -> list[Entry]:
    """Every entry that was made durable."""
    return [decode_entry(item.effect.frame) for item in cluster.history if isinstance(item.effect, AppendFrame)]


def carried_out(cluster: CoreCluster, identity: str) -> list[Entry]:
    """The entries in which an operation was carried out."""
    return [
        entry
        for entry in entries(cluster)
        if any(isinstance(change, Operation) and change.identity == identity for change in entry.changes)
    ]


def test_p9_1_an_operation_is_carried_out_in_the_entry_that_records_its_identity_and_outcome() -> None:
    cluster = joined_cluster(2)
    reply = cluster.do(1, ApplyServices((IDLE,)))
    assert (reply.refused, reply.outcome) == (False, "1 defined, 0 changed, 0 withdrawn")
    (entry,) = carried_out(cluster, reply.identity)
    assert entry.index == reply.index
    assert [change.name for change in entry.changes if isinstance(change, Service)] == ["idle"]
    recorded = cluster.database.operations[reply.identity]
    assert (recorded.index, recorded.outcome, recorded.refused) == (reply.index, reply.outcome, False)


def test_p9_1_what_was_asked_is_recorded_and_tells_one_operation_from_another() -> None:
    cluster = joined_cluster(2)
    reply = cluster.do(1, ApplyServices((IDLE,)))
    assert cluster.database.operations[reply.identity].asked == digest_of(ApplyServices((IDLE,)))
    different: list[OperationRequest] = [
        ApplyServices((IDLE,)), ApplyServices((WEB,)), ApplyServices((IDLE, WEB)), ApplyServices((), ("idle",)),
        RegisterService("web"), RegisterService("idle"), DeregisterService("web"), TransferService("web"),
        TransferService("web", "n1"), LeaveNode("n1"), EvictNode("n1", "broken"), EvictNode("n1", "burns"),
        RotateAuthority(""), RotateAuthority("", True),
    ]  # fmt: skip
    assert len({digest_of(each) for each in different}) == len(different)


def test_p9_1_what_a_repeat_cannot_know_makes_no_other_operation() -> None:
    assert digest_of(ApplyServices((WEB,), expect=4)) == digest_of(ApplyServices((WEB,)))
    assert digest_of(RollBack(3, 4)) == digest_of(RollBack(3, 5))
    assert digest_of(RotateAuthority("one")) == digest_of(RotateAuthority("another"))


def test_p9_1_asked_again_it_is_answered_from_its_record() -> None:
    cluster = serving_cluster()
    reply = cluster.do(2, TransferService("web"))
    cluster.until("web has moved", lambda: cluster.is_quiet() and cluster.service().state is ServiceState.REGISTERED)
    moved_to, before = cluster.service().node, cluster.database.index
    assert moved_to != 1
    for asker in (2, 1, 0):
        cluster.deliver(Envelope(asker, 0, Request(reply.identity, TransferService("web"))))
    cluster.run(1000)
    assert (cluster.service().node, cluster.database.index) == (moved_to, before)
    assert len(carried_out(cluster, reply.identity)) == 1
    responses = [response for response in cluster.sent(Response, 0) if response.identity == reply.identity]
    assert {response.outcome for response in responses} == {reply.outcome}


def test_p9_1_a_request_that_comes_several_times_before_its_commit_is_carried_out_once() -> None:
    cluster = serving_cluster()
    cluster.holds_store = lambda _node, effect: isinstance(effect, AppendFrame)
    other = cluster.ask(0, ApplyServices((IDLE,)))  # so that the next wait for the frame in flight
    asked = cluster.ask(2, DeregisterService("web"))
    cluster.run(1000)  # n2 repeats it all the while
    assert len(cluster.sent(Request, 2)) > 3
    cluster.holds_store = lambda _node, _effect: False
    cluster.release_store()
    cluster.until("both are answered", lambda: cluster.reply(asked) and cluster.reply(other))
    cluster.run(500)
    assert len(carried_out(cluster, asked)) == 1


def test_p9_1_a_request_that_is_repeated_while_its_own_frame_is_in_flight_is_carried_out_once() -> None:
    cluster = serving_cluster()
    cluster.holds_store = lambda _node, effect: isinstance(effect, AppendFrame)
    asked = cluster.ask(2, DeregisterService("web"))
    cluster.run(1000)
    assert len(cluster.sent(Request, 2)) > 3
    cluster.release_store()
    cluster.until("it is answered", lambda: cluster.reply(asked))
    cluster.run(500)
    assert len(carried_out(cluster, asked)) == 1


def test_p9_1_when_the_answer_is_lost_with_the_master_the_next_one_answers_from_the_record() -> None:
    cluster = serving_cluster()
    cluster.loses = lambda envelope: isinstance(envelope.message, Response)
    asked = cluster.ask(2, TransferService("web", "n2"))
    cluster.until("web has moved", lambda: cluster.service().node == 2 and cluster.is_quiet())
    cluster.run(1000)
    assert cluster.reply(asked) is None
    cluster.kill(0)
    cluster.loses = lambda _envelope: False
    cluster.until("it is answered", lambda: cluster.reply(asked))
    reply = cluster.reply(asked)
    assert reply is not None and not reply.refused
    assert len(carried_out(cluster, asked)) == 1
    assert cluster.service().node == 2


def test_p9_1_a_request_that_is_lost_is_repeated_until_it_is_answered() -> None:
    cluster = serving_cluster()
    cluster.loses = lambda envelope: isinstance(envelope.message, Request)
    asked = cluster.ask(2, DeregisterService("web"))
    cluster.run(1000)
    assert cluster.reply(asked) is None
    cluster.loses = lambda _envelope: False
    cluster.until("it is answered", lambda: cluster.reply(asked))
    sent = len(cluster.sent(Request, 2))
    cluster.run(1000)
    assert len(cluster.sent(Request, 2)) == sent


LARGE = tuple(Definition(f"s{n}", start_command=(Random(n).randbytes(12_000).hex(),)) for n in range(60))
REFUSED: list[tuple[OperationRequest, str]] = [
    (RegisterService("nothing"), "there is no service 'nothing'; defined are: idle, web"),
    (DeregisterService("nothing"), "there is no service 'nothing'"),
    (TransferService("idle"), "only a registered service can be moved"),
    (TransferService("web", "n9"), "there is no node 'n9'; configured are: n0, n1, n2"),
    (LeaveNode("n9"), "there is no node 'n9'"),
    (EvictNode("n9", ""), "there is no node 'n9'"),
    (EvictNode("n2", "", confirmed_dead=True), "n2 renews its lease"),
    (ApplyServices((IDLE, replace(WEB, allowable_nodes=("n7",)))), "service web names node n7"),
    (ApplyServices((replace(IDLE, ordered=("n1",)),), withdraw=("nothing",)), "there is no service 'nothing'"),
    (ApplyServices(LARGE), "the store has no room"),
]


@pytest.mark.parametrize(("operation", "says"), REFUSED, ids=[f"{number}" for number in range(len(REFUSED))])
def test_p9_1_a_refused_operation_changes_nothing_and_says_what_to_do(operation: OperationRequest, says: str) -> None:
    cluster = serving_cluster()
    cluster.do(0, ApplyServices((IDLE,)))
    cluster.run(300)
    before = cluster.database.index
    reply = cluster.do(2, operation)
    assert reply.refused and says in reply.outcome
    cluster.run(500)
    assert cluster.database.index == before
    assert reply.identity not in cluster.database.operations


def test_p9_1_a_refused_operation_beside_a_good_one_leaves_nothing_behind() -> None:
    cluster = serving_cluster()
    cluster.holds_store = lambda _node, effect: isinstance(effect, AppendFrame)
    first = cluster.ask(0, ApplyServices((IDLE,)))
    bad = cluster.ask(0, ApplyServices((Definition("bad", allowable_nodes=("n7",)),)))
    good = cluster.ask(0, ApplyServices((Definition("good", auto_register=False),)))
    cluster.settle()
    cluster.release_store()
    cluster.until("all are answered", lambda: all(cluster.reply(each) for each in (first, bad, good)))
    answers = [cluster.reply(each) for each in (first, bad, good)]
    assert [answer.refused for answer in answers if answer is not None] == [False, True, False]
    assert set(cluster.database.services) == {"web", "idle", "good"}


def test_p9_1_a_client_is_answered_only_by_a_node_whose_own_replica_has_reached_the_entry() -> None:
    cluster = serving_cluster()
    cluster.holds = lambda envelope: envelope.to == 2 and isinstance(envelope.message, Append)
    asked = cluster.ask(2, ApplyServices((IDLE,)))
    cluster.until("the master has answered", lambda: cluster.sent(Response, 0))
    cluster.settle()
    assert "idle" in cluster.core(0).database.services
    assert "idle" not in cluster.core(2).database.services
    assert cluster.reply(asked) is None
    cluster.release()
    cluster.settle()
    reply = cluster.reply(asked)
    assert reply is not None
    assert cluster.core(2).database.index >= reply.index
    assert "idle" in cluster.core(2).database.services


def test_p9_1_more_operations_than_a_node_can_hold_are_refused_and_not_forgotten() -> None:
    cluster = joined_cluster(2)
    cluster.loses = lambda envelope: isinstance(envelope.message, Request)
    waiting = [cluster.ask(1, ApplyServices((IDLE,))) for _ in range(MAXIMUM_PENDING)]
    reply = cluster.do(1, ApplyServices((IDLE,)))
    assert reply.refused and "ask again when they are done" in reply.outcome
    own = cluster.ask(1, FailService("idle", "it has ended"), author=Author(user=ITSELF, node="n1"))
    waiting.append(own)  # what the node asks for by itself is not turned away (P8.7)
    cluster.run(100)
    assert cluster.reply(own) is None
    cluster.loses = lambda _envelope: False
    cluster.until("all others are answered", lambda: all(cluster.reply(identity) for identity in waiting))
