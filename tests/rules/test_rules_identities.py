"""Which identities are remembered, and which store a node may boot on: single decisions (P9.4, P11.2, P6.32)."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from muster.core.draft import Draft, Facts
from muster.core.operations.operations import carry_out
from muster.core.services.table import advance
from muster.daemon import main
from muster.records.database import Database
from muster.records.levels import NodeState
from muster.records.members import Eviction, Member
from muster.records.messages import Report, Request
from muster.records.nodes import Cluster, NodeConfig
from muster.records.services import Definition, FailService, RegisterService, Service, ServiceState
from muster.records.terms import Term
from muster.records.versions import HIGHEST

WEB = Service(
    Definition("web", restarts=5), 1, ServiceState.REGISTERED, wanted=True, node=0, incarnation=5, generation=7
)


def draft_of(*services: Service, version: int = HIGHEST) -> Draft:
    cluster = Cluster("test", "0" * 32, "fast", "", active_version=version)
    members = {0: Member(0, NodeState.JOINED, 5)}
    named = {each.name: each for each in services}
    return Draft(Database(cluster, 10, nodes={0: NodeConfig(0, "n0", (), "")}, members=members, services=named))


def facts() -> Facts:
    reports = {0: Report(Term(1, 0), 10, 5, "", ())}
    return Facts(0, 0, reports, lambda _n, _i: None, lambda _n: True, {}, {}, services_open=True)


def test_p9_4_a_failure_that_names_its_generation_is_remembered_by_older_releases_only() -> None:
    failed = FailService("web", "it has ended", 7)
    for version, remembered in ((HIGHEST, False), (2, True)):
        draft = draft_of(WEB, version=version)
        assert carry_out(Request("failed", failed), draft, facts()) is not None
        assert draft.services["web"].failures
        assert ("failed" in draft.operations) is remembered
    draft = draft_of(WEB)
    assert carry_out(Request("anything", replace(failed, generation=0)), draft, facts()) is not None
    assert "anything" in draft.operations
    down = replace(WEB, state=ServiceState.DEREGISTERED, wanted=False, node=-1)
    draft = draft_of(down)
    assert carry_out(Request("wanted", RegisterService("web")), draft, facts()) is not None
    assert "wanted" in draft.operations


def test_p6_27_a_withdrawn_parent_stays_as_long_as_any_child_of_it_is_defined() -> None:
    down = replace(WEB, state=ServiceState.DEREGISTERED, wanted=False, node=-1, removed=True)
    child = Service(Definition("child", parent="web"), 2, ServiceState.DEREGISTERED)
    draft = draft_of(down, child)
    advance(draft, facts())
    assert "web" in draft.services
    alone = draft_of(down)
    advance(alone, facts())
    assert "web" not in alone.services


def test_p11_2_a_store_that_shows_less_is_refused_only_when_it_still_does_after_several_looks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = cast("Any", SimpleNamespace(header=SimpleNamespace(cluster_id=bytes(16))))
    answers: list[str] = []
    monkeypatch.setattr(main, "MEMORY_PAUSE_S", 0)
    monkeypatch.setattr(main, "newest_record", lambda _store: record)
    monkeypatch.setattr(main, "refusal", lambda *_given: answers.pop(0) if answers else "")
    answers[:] = ["index 9 was committed"]  # for a moment, while its newest journal is moved
    main._check_memory(record, 0, "store", tmp_path)
    assert answers == []
    answers[:] = ["index 9 was committed"] * 100
    with pytest.raises(main.BootRefused, match="index 9"):
        main._check_memory(record, 0, "store", tmp_path)


def test_p4_9_a_wish_about_what_a_silent_node_holds_changes_nothing_before_its_proof() -> None:
    for silent in (False, True):
        draft = draft_of(replace(WEB, wanted=False))
        eviction = Eviction(5, "its lease has run out", silent=True) if silent else None
        draft.put(replace(draft.member(0), eviction=eviction))
        advance(draft, facts())
        assert (draft.services["web"].state is ServiceState.REGISTERED) is silent
