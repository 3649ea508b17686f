"""docs/DIAGRAMS.md is what the tables say now, and the table of services says where its rules really lead."""

import pytest

import diagrams
from muster.core.services import table
from muster.core.services.round import Round
from muster.records.services import Service, ServiceState
from muster.sim.faults.campaign import run_seed


def test_the_diagrams_are_fresh() -> None:
    assert diagrams.DIAGRAMS.read_text(encoding="utf-8") == diagrams.diagrams(), (
        "docs/DIAGRAMS.md is stale, since a table has changed: run `make docs`, and commit it"
    )


def test_a_step_has_its_phases_in_their_order() -> None:
    assert tuple(diagrams.phases_of_a_step()) == diagrams.PHASES


def test_rules_lead_where_the_table_says_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[ServiceState, table.Event, ServiceState]] = set()

    def watched(state: ServiceState, event: table.Event, row: table.Row) -> table.Row:
        def rule(service: Service, round_: Round, detail: str) -> None:
            row.rule(service, round_, detail)
            after = round_.draft.services[service.name].state
            assert after in row.leads_to, f"{state} {event.name} leads to {after}"
            seen.add((state, event, after))

        return row._replace(rule=rule)

    rows = {(state, event): watched(state, event, row) for (state, event), row in table.RULES.items()}
    monkeypatch.setattr(table, "RULES", rows)
    for seed in (3, 8):
        run_seed(seed)
    assert len(seen) >= 12
