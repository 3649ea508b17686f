"""Draws docs/DIAGRAMS.md from the tables of the code (`make docs`): states of services and nodes, levels, a step.

    .venv/bin/python tests/diagrams.py

Nothing in a diagram is written by hand but its title: an edge is there because a row of a table is.
"""

import ast
import inspect
import itertools
import textwrap
from collections.abc import Iterable
from pathlib import Path

from muster.core.node.built_in import RESIDENTS
from muster.core.node.node import Node
from muster.core.services.table import RULES
from muster.core.transitions.transition import MAY_FOLLOW, SETTLED_STATE
from muster.drivers.image.processes import PROCESSES
from muster.records.levels import MEMBERSHIP_LEVEL, NodeState

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").exists())
DIAGRAMS = ROOT / "docs" / "DIAGRAMS.md"
PHASES = ("_take", "_follow", "_timers", "_decide", "_report")  # of `Node.step`, in their order

HEAD = """# Diagrams

Drawn from the tables of the code by `make docs`; a test fails when they are stale. They are in the language of Mermaid,
which most viewers of Markdown draw. What each rule says is in docs/PROTOCOL.md, why in docs/SPECIFICATION.md.
"""


def diagrams() -> str:
    """The whole document."""
    parts = (
        ("Services", "`core/services/table.py`, `RULES` (P6.4 and after)", _services()),
        ("Nodes", "`core/transitions/transition.py`, `MAY_FOLLOW` and `SETTLED_STATE` (SPEC 3.6, P3.6)", _nodes()),
        (
            "Levels of a node",
            "`core/node/built_in.py` (SPEC 4, P3.19); programs register between and above them",
            _levels(),
        ),
        ("Processes of a node", "`drivers/image/processes.py`", _processes()),
        ("A step of a node", "`Node.step`: the methods that it calls, in their order (P5.3)", _step()),
    )
    sections = [f"\n## {title}\n\nFrom {source}.\n\n```mermaid\n{drawing}\n```\n" for title, source, drawing in parts]
    return HEAD + "".join(sections)


def _services() -> str:
    edges = [
        (_name(state), _name(after), event.name.lower())
        for (state, event), row in RULES.items()
        for after in row.leads_to
    ]
    return _states(edges, first="deregistered")


def _nodes() -> str:
    edges = [
        (_name(state), _name(NodeState(kind)), f"{kind} is opened")
        for state, kinds in MAY_FOLLOW.items()
        for kind in kinds
    ]
    edges += [(_name(NodeState(kind)), _name(after), "all have acknowledged") for kind, after in SETTLED_STATE.items()]
    return _states(edges, first="inactive")


def _levels() -> str:
    levels = [MEMBERSHIP_LEVEL, *(resident.level for resident in RESIDENTS)]
    boxes = [f'    level{level.number}["{level.number}: {level.name}"]' for level in levels]
    arrows = [f"    level{low.number} --> level{high.number}" for low, high in itertools.pairwise(levels)]
    return "\n".join(("flowchart BT", *boxes, *arrows))


def _processes() -> str:
    boxes = [f'    {_name(each.name)}["{each.name}: {each.does}"]' for each in PROCESSES]
    arrows = [f"    {_name(each.parent)} --> {_name(each.name)}" for each in PROCESSES if each.parent]
    return "\n".join(("flowchart TB", *boxes, *arrows))


def _step() -> str:
    phases = phases_of_a_step()
    boxes = [f'    {name.strip("_")}["{name}: {_first_line(name)}"]' for name in phases]
    arrows = [f"    {low.strip('_')} --> {high.strip('_')}" for low, high in itertools.pairwise(phases)]
    return "\n".join(("flowchart TB", *boxes, *arrows))


def phases_of_a_step() -> list[str]:
    """The methods of its own that `Node.step` calls, in the order of the text."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(Node.step)))
    calls = [
        (each.lineno, each.col_offset, each.func.attr)
        for each in ast.walk(tree)
        if isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute)
        if isinstance(each.func.value, ast.Name) and each.func.value.id == "self"
    ]
    return [name for _, _, name in sorted(calls)]


def _first_line(method: str) -> str:
    return (inspect.getdoc(getattr(Node, method)) or "").partition("\n")[0].rstrip(".").replace('"', "'")


def _states(edges: Iterable[tuple[str, str, str]], first: str) -> str:
    """One arrow for each pair of states, with all that leads from the one to the other."""
    labels: dict[tuple[str, str], list[str]] = {}
    for state, after, label in edges:
        labels.setdefault((state, after), []).append(label)
    arrows = [f"    {state} --> {after}: {', '.join(names)}" for (state, after), names in labels.items()]
    return "\n".join(("stateDiagram-v2", f"    [*] --> {first}", *arrows))


def _name(state: object) -> str:
    return str(state).replace("-", "")


if __name__ == "__main__":
    DIAGRAMS.write_text(diagrams(), encoding="utf-8")
