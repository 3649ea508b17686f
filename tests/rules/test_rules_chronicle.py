"""P10.13: what an entry means for people, the same from every node, kept over restarts and merged."""

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from test_rules_needs import database_with

from muster.core.transitions.chronicle import MAXIMUM_OF_ONE, chronicle
from muster.daemon.events.kept_history import KeptHistory
from muster.daemon.history.happenings import FILE_NAME, Happenings, merged, question_of
from muster.records.access import ITSELF
from muster.records.configuration import Audit
from muster.records.database import Database, Entry
from muster.records.happenings import FAILURE, KINDS, Happening
from muster.records.levels import NodeState
from muster.records.members import Eviction, Member, Proof
from muster.records.refusal import ControlRefused
from muster.records.registers import ProofKind
from muster.records.services import Definition, Service, ServiceState
from muster.records.terms import Term

TERM = Term(12, 0)
WEB = Service(Definition("web"), 1, ServiceState.REGISTERED, wanted=True, node=1, incarnation=7, generation=1)
CHILD_OF_ALL = Service(Definition("all", on_all=True), 1, ServiceState.REGISTERED)


def told(*changes: Any, before: Database | None = None, term: Term = TERM) -> list[tuple[str, str]]:
    """Kind and words of what an entry with these changes tells."""
    database = before or database_with()
    entry = Entry(database.index + 1, term, "", changes)
    return [(each.kind, each.words) for each in chronicle(database, entry)]


def audit(user: str, operation: str) -> Audit:
    """Somebody has asked for something."""
    return Audit(1, 2, 0, 0, user, 3, "n0", operation, "web", "web will move")


DOWN = replace(WEB, state=ServiceState.DEREGISTERED, node=-1, previous=1)
CASES: dict[str, tuple[Any, str, str]] = {
    "join": (Member(1, NodeState.JOINED, 8), "join", "n1 has joined"),
    "leave": (Member(1, NodeState.LEAVING, 7), "leave", "n1 leaves"),
    "condemned": (
        Member(1, NodeState.JOINED, 7, eviction=Eviction(7, "no heartbeat", silent=True)), "condemned",
        "n1 is silent, and nobody waits for it: no heartbeat",
    ),
    "lost": (
        Member(1, NodeState.FORCED_LEAVING, 7, last_proof=Proof(ProofKind.OPERATOR, 1, 7, "root")), "lost",
        f"n1 is lost, on proof of its death: {ProofKind.OPERATOR.words}, root",
    ),
    "failure": (replace(WEB, broken="it crashed"), "failure", "web has failed on n1: it crashed"),
    "acted upon at once": (
        replace(WEB, state=ServiceState.STOPPING, failures=(2,), reason="it failed on n1"), "failure",
        "web has failed: it failed on n1",
    ),
    "stuck": (
        replace(WEB, state=ServiceState.STOPPING, cause="stop failed"), "stuck", "web is stuck: stop failed",
    ),
    "stop": (DOWN, "stop", "web has ended on n1"),
    "change": (audit("alice", "transfer"), "change", "alice@n0: transfer web: web will move"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_p10_13_each_thing_is_told_once_in_words(name: str) -> None:
    change, kind, words = CASES[name]
    assert told(change) == [(kind, words)]


def test_p10_13_a_start_elsewhere_is_a_move_and_one_at_the_same_place_a_restart() -> None:
    before = database_with(replace(DOWN, state=ServiceState.STARTING, node=2))
    assert told(replace(WEB, node=2), before=before) == [("move", "web has moved from n1 to n2")]
    before = database_with(replace(DOWN, state=ServiceState.STARTING, node=1))
    assert told(WEB, before=before) == [("restart", "web runs again on n1")]
    before = database_with(replace(DOWN, state=ServiceState.STARTING, node=1, previous=-1))
    assert told(WEB, before=before) == [("start", "web runs on n1")]


def test_p10_13_a_failed_start_is_a_failure_and_no_end() -> None:
    before = database_with(replace(WEB, state=ServiceState.STARTING))
    after = replace(DOWN, failed=(1,))
    assert told(after, before=before) == [("failure", "a start of web has failed on n1")]


def test_p10_13_a_new_master_is_told_and_what_watchers_ask_for_and_templates_are_not() -> None:
    assert told(term=Term(13, 2)) == [("master", "n2 leads the cluster, term 13")]
    assert told(audit(ITSELF, "fail"), CHILD_OF_ALL, WEB) == []


def test_p10_13_what_an_entry_tells_is_bounded() -> None:
    many = [replace(WEB, definition=Definition(f"s{number}"), cause="x") for number in range(MAXIMUM_OF_ONE + 5)]
    found = told(*many)
    assert len(found) == MAXIMUM_OF_ONE
    assert found[-1][1] == f"and {2 * (MAXIMUM_OF_ONE + 5) - MAXIMUM_OF_ONE + 1} more of the same entry"


def kept(home: Path) -> Happenings:
    """The history of a node with this home."""
    return Happenings(KeptHistory(home / FILE_NAME, lambda _why: None))


def test_p10_13_it_is_kept_over_a_restart_filtered_before_it_is_cut_and_counted(tmp_path: Path) -> None:
    first = kept(tmp_path)
    first.add(3, (Happening(FAILURE, "service/web", "web has failed"), Happening("join", "node/n1", "n1 has joined")))
    first.add(3, (Happening(FAILURE, "service/web", "told again"),))
    assert first.counts == {(FAILURE, "service/web"): 1}
    first.close()
    second = kept(tmp_path)
    second.add(2, (Happening("join", "node/n0", "of an entry that is known"),))
    second.add(4, (Happening("move", "service/db", "db has moved"),))
    assert [each["index"] for each in second.answer("")["happened"]] == [3, 3, 4]
    (only,) = second.answer(question_of({"subject": "web"}))["happened"]
    assert only["words"] == "web has failed"
    (only,) = second.answer(question_of({"kind": "move"}))["happened"]
    assert only["subject"] == "service/db"
    assert second.counts == {("move", "service/db"): 1}
    second.forget(["web"])
    assert not second.counts
    second.close()


def test_p10_13_what_one_node_has_missed_another_fills_in_and_nothing_is_told_twice() -> None:
    def line(index: int, words: str, at_s: float) -> dict[str, Any]:
        return {"index": index, "at_s": at_s, "kind": "join", "subject": "node/n1", "words": words}

    answers = {
        "n0": {"happened": [line(1, "a", 5.0), line(2, "b", 6.0), line(2, "c", 6.0)]},
        "n1": {"happened": [line(2, "b", 5.5), line(2, "c", 7.0), line(3, "d", 8.0)]},
        "n2": {},
    }
    found = merged(answers)
    assert [(each["words"], each["at_s"]) for each in found] == [("a", 5.0), ("b", 5.5), ("c", 6.0), ("d", 8.0)]


def test_p10_13_a_wrong_question_is_refused() -> None:
    for arguments in ({"kind": "nonsense"}, {"about": "web"}, {"subject": 5}):
        with pytest.raises(ControlRefused):
            question_of(arguments)
    assert set(KINDS) >= {case[1] for case in CASES.values()}
