"""What a change would do, said by the rules that would do it (`core/operations/plan.py`, SPEC 8.2)."""

import pytest
from msgspec.structs import replace

from muster.core.operations.plan import NodeChange, Outlook, Plan, PlanRefused
from muster.core.room import Room
from muster.daemon.socket.planning import Change, assumptions
from muster.records.database import encode_database
from muster.records.operations import OperationRequest
from muster.records.services import ApplyServices, Definition, DeregisterService, SetMaintenance, TransferService
from rounds import Rounds

WEB = Definition("web", start_command=("/bin/start",), stop_command=("/bin/stop",))
GROUP = (replace(WEB, name="disk"), replace(WEB, name="web", parent="disk"))


def settled(*definitions: Definition, nodes: int = 3) -> Rounds:
    rounds = Rounds(nodes)
    rounds.define(*definitions)
    rounds.settle()
    return rounds


def foreseen(rounds: Rounds, *operations: OperationRequest, nodes: tuple[NodeChange, ...] = ()) -> Outlook:
    return Plan(rounds.database, {}, {}, Room(1 << 20)).foresee(operations, nodes)


def steps(outlook: Outlook) -> list[tuple[str, str, int]]:
    return [(step.action, step.service, step.node) for step in outlook.steps]


def test_a_plan_changes_nothing() -> None:
    rounds = settled(*GROUP)
    before = encode_database(rounds.database)
    foreseen(rounds, TransferService("disk"), nodes=(NodeChange("lose", "n1"),))
    assert encode_database(rounds.database) == before


def test_a_plan_says_what_happens_then() -> None:
    rounds = settled(*GROUP)
    outlook = foreseen(rounds, TransferService("disk", "n2"))
    assert steps(outlook) == [("stop", "web", 0), ("stop", "disk", 0), ("start", "disk", 2), ("start", "web", 2)]
    rounds.ask(TransferService("disk", "n2"))
    rounds.settle()
    assert rounds.placed() == outlook.after


@pytest.mark.parametrize("kind", ["leave", "lose"])
def test_a_plan_tells_the_leave_of_a_node_from_its_loss(kind: str) -> None:
    outlook = foreseen(settled(*GROUP), nodes=(NodeChange(kind, "n0"),))
    stops = [("stop", "web", 0), ("stop", "disk", 0)] if kind == "leave" else []
    assert steps(outlook) == [*stops, ("start", "disk", 1), ("start", "web", 1)]
    assert outlook.before == {"disk": 0, "web": 0}
    assert outlook.after == {"disk": 1, "web": 1}


@pytest.mark.parametrize(
    ("one_machine", "told", "not_told"),
    [(True, "the kernel's word proves it here", "--confirmed-dead"), (False, "evict n1 --confirmed-dead", "kernel")],
)
def test_a_plan_of_a_loss_says_what_proves_it_in_this_very_cluster(one_machine: bool, told: str, not_told: str) -> None:
    change = Change((), (NodeChange("lose", "n1"), NodeChange("leave", "n2")))
    (words,) = assumptions(change, one_machine=one_machine)
    assert words.startswith("n1 is taken for proven dead")
    assert told in words
    assert not_told not in words
    (fenced,) = assumptions(change, one_machine=one_machine, fenced={"n1"})
    assert ("its fence agents prove it here" in fenced) is not one_machine


def test_a_plan_of_a_file_that_defines_and_one_that_forbids() -> None:
    rounds = settled(WEB)
    outlook = foreseen(rounds, ApplyServices((replace(WEB, name="mail"),)))
    assert steps(outlook) == [("start", "mail", 1)]
    outlook = foreseen(rounds, ApplyServices((replace(WEB, disallowable_nodes=("n0",)),)))
    assert steps(outlook) == []  # SPEC 6.2: that does not by itself move the service


def test_a_plan_of_the_end_of_maintenance_shows_what_has_gathered() -> None:
    rounds = settled(WEB)
    rounds.ask(SetMaintenance("service", "web"))
    rounds.stop(0)
    rounds.settle()
    assert steps(foreseen(rounds, SetMaintenance("service", "web", end=True))) == [("start", "web", 1)]


def test_a_plan_of_more_losses_than_nodes_shows_what_is_down() -> None:
    losses = tuple(NodeChange("lose", f"n{node}") for node in range(3))
    assert foreseen(settled(WEB), nodes=losses).after == {"web": -1}
    outlook = foreseen(settled(WEB), nodes=(*losses, NodeChange("join", "n1")))
    assert outlook.after == {"web": 1}


def test_a_plan_of_what_would_be_refused_says_why() -> None:
    rounds = settled(WEB)
    changes: list[tuple[tuple[OperationRequest, ...], tuple[NodeChange, ...]]] = [
        ((DeregisterService("wev"),), ()),
        ((), (NodeChange("lose", "n9"),)),
        ((), (NodeChange("join", "n0"),)),
    ]
    for operations, nodes in changes:
        with pytest.raises(PlanRefused, match=r"there is no|already"):
            foreseen(rounds, *operations, nodes=nodes)
