"""Golden cases of placement: a snapshot and services in, the decisions and every verdict out (P6.19, SPEC 6.2, 8.2).

Each file under tests/golden/placement holds a TOML text, a line of four hyphens, and what comes out of it. To write
what comes out anew, after a wanted change of rules: REWRITE_GOLDEN=1 pytest tests/rules/test_golden_placement.py,
then read the difference.
"""

import os
import tomllib
from pathlib import Path
from typing import Any

import pytest

from muster.core.services.placement import Placement
from muster.files.service_file import services_of
from muster.files.service_keys import Key, Wrong
from muster.files.toml_lines import key_lines
from muster.records.nodes import NodeConfig
from muster.records.services import Definition, Performance
from muster.records.terms import NO_NODE

DIRECTORY = Path(__file__).parents[1] / "golden" / "placement"
CASES = sorted(DIRECTORY.glob("*.txt"))
SEPARATOR = "----\n"
KEYS = {"about", "nodes", "up", "load", "withheld", "down", "performance", "service"}


def _place(value: object, _nodes: object) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() - {"excluded", "origin", "target", "count"}:
        raise Wrong("is no table of excluded, origin, target, count", "correct the case")
    return {"place": value}


PLACE = {
    "place": Key(_place, "table", "{}", "What is asked of placement beside the definition; how many such services.")
}


def outcome(text: str, source: str) -> str:
    """What placement decides and says of a case."""
    document = tomllib.loads(text)
    assert document.keys() <= KEYS, f"{source}: unknown keys {document.keys() - KEYS}"
    names = document["nodes"]
    ids = {name: node for node, name in enumerate(names)}
    tables, problems = services_of(document, key_lines(text), source, names, None, PLACE)
    assert not problems, "\n".join(map(str, problems))
    placement = Placement(
        {node: NodeConfig(node, name, (), "") for node, name in enumerate(names)},
        [ids[name] for name in document["up"]],
        {ids[name]: count for name, count in document.get("load", {}).items()},
        {ids[name]: Performance(**values) for name, values in document.get("performance", {}).items()},
        {ids[name]: words for name, words in document.get("withheld", {}).items()},
    )
    down = {ids[name]: words for name, words in document.get("down", {}).items()}
    lines: list[str] = []
    for table in tables:
        place = table.added.get("place", {})
        excluded = {ids[name]: words for name, words in place.get("excluded", {}).items()}
        origin, target = (ids[place[key]] if key in place else NO_NODE for key in ("origin", "target"))
        taken: list[str] = []
        verdicts: list[str] = []
        for _ in range(place.get("count", 1)):
            verdicts = _explained(placement, table.definition, excluded, origin, target, down)
            chosen = placement.choose(table.definition, excluded, origin, target)
            taken.append("nowhere" if chosen is None else names[chosen])
            if chosen is not None:
                placement.assigned(chosen)
        repeated = f" (the last of {len(taken)}: {' '.join(taken)})" if len(taken) > 1 else ""
        lines += [f"{table.definition.name} -> {taken[-1]}{repeated}", *verdicts]
    return "\n".join(lines) + "\n"


def _explained(
    placement: Placement,
    definition: Definition,
    excluded: dict[int, str],
    origin: int,
    target: int,
    down: dict[int, str],
) -> list[str]:
    rows = []
    for each in placement.explain(definition, excluded, origin, target, down):
        verdict = "chosen" if each.chosen else "possible" if each.possible else "no"
        rows.append(f"    {each.name:<8} {verdict:<8} {each.rule:<24} {each.words}")
    return rows


def test_there_are_a_hundred_cases_at_least_and_each_says_what_it_is_about() -> None:
    abouts = [tomllib.loads(path.read_text().partition(SEPARATOR)[0])["about"] for path in CASES]
    assert len(abouts) >= 100
    assert len(set(abouts)) == len(abouts)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_p6_19_the_decision_and_every_verdict_are_those_of_the_file(path: Path) -> None:
    text, _, expected = path.read_text().partition(SEPARATOR)
    found = outcome(text, path.name)
    if os.environ.get("REWRITE_GOLDEN"):
        path.write_text(text + SEPARATOR + found)
    else:
        assert found == expected, "if this change is meant: REWRITE_GOLDEN=1, and read the difference"
