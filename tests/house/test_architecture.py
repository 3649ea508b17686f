"""docs/ARCHITECTURE.md is true: names that must stay, packages that stay empty, no circle of files."""

import importlib.util
import re
from pathlib import Path
from typing import get_args

import grimp
import pytest

from muster.core.effects import Effect
from muster.core.inputs import Input
from muster.sim.checkers.checkers import CHECKERS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "muster"
DOCUMENT = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
SECTION = DOCUMENT.partition("## Names that must stay")[2].partition("\n## ")[0]
NAMES = re.findall(r"`(muster\.[a-z_.]+)`", SECTION)
IMPORTED = ("muster.drivers.disk_file", "muster.drivers.image.watcher", "muster.locks")
EXECUTED = [name for name in NAMES if name not in IMPORTED]
FOLDERS = sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent.parent == PACKAGE)


def test_the_names_that_must_stay_are_listed() -> None:
    assert {"muster.daemon.main", "muster.daemon.run", "muster.drivers.guard", "muster.drivers.signing"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_must_stay_is_there(name: str) -> None:
    found = importlib.util.find_spec(name)
    assert found is not None and found.origin is not None
    if name in EXECUTED:
        assert '__name__ == "__main__"' in Path(found.origin).read_text(), f"python -m {name} would do nothing"


def test_packages_are_empty_but_for_the_client() -> None:
    full = {path.parent for path in PACKAGE.rglob("__init__.py") if path.stat().st_size}
    assert full == {PACKAGE, PACKAGE / "client"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_each_layer_is_in_the_document(folder: Path) -> None:
    assert f"| `{folder.name}/` |" in DOCUMENT


def test_each_folder_of_the_core_is_in_the_document() -> None:
    section = DOCUMENT.partition("## Folders of the core")[2].partition("\n## ")[0]
    folders = [path.parent.name for path in (PACKAGE / "core").glob("*/__init__.py")]
    assert sorted(folders) == sorted(re.findall(r"^\| `([a-z]+)/`", section, re.MULTILINE))
    named = set(re.findall(r"`([a-z_]+\.py)`", section))
    files = {path.name for path in (PACKAGE / "core").rglob("*.py") if path.name != "__init__.py"}
    assert files - named <= {"membership.py"}, "say what these are"
    assert named <= files


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = grimp.build_graph("muster", cache_dir=None)
    graph.remove_module("muster.client")  # its package names its own files, as they are loaded when first asked for
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    while free := [module for module, others in imports.items() if not others & imports.keys()]:
        for module in free:
            del imports[module]
    while ends := [module for module in imports if not any(module in others for others in imports.values())]:
        for module in ends:
            del imports[module]
    assert sorted(imports) == []


def test_every_checker_of_the_simulator_is_run() -> None:
    files = [path for path in (PACKAGE / "sim" / "checkers").glob("*.py") if path.name != "checker.py"]
    text = "\n".join(path.read_text() for path in files)
    judging = re.findall(r"(?m)^class (\w+)\(Checker\):", text)
    assert sorted(judging) == sorted(checker.__name__ for checker in CHECKERS)


def test_the_worked_loop_of_the_effect_protocol_has_every_effect_and_names_none_that_is_not() -> None:
    section = DOCUMENT.partition("## The effect protocol, as a worked loop")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:4] for line in section.splitlines() if line.startswith("| `")]
    effects = {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    answers = {name for row in rows for name in re.findall(r"`(\w+)`", row[2])}
    assert effects == {effect.__name__ for effect in get_args(Effect)}
    assert answers < {happened.__name__ for happened in get_args(Input)}


@pytest.mark.parametrize(
    ("machine", "run_by"),
    [
        ("muster.core.launching.ledger", ("muster.drivers.image.runner", "muster.sim.world.runner")),
        ("muster.core.leases.predecessor", ("muster.drivers.image.guard", "muster.sim.world.guard")),
        ("muster.core.leases.vigil", ("muster.drivers.image.guard", "muster.sim.world.guard")),
    ],
)
def test_the_simulator_runs_the_machines_that_guard_and_runner_run(machine: str, run_by: tuple[str, ...]) -> None:
    graph = grimp.build_graph("muster", cache_dir=None)
    assert machine in DOCUMENT.replace("/", ".").replace("`core", "`muster.core").replace(".py`", "`")
    for module in run_by:
        assert machine in graph.find_modules_directly_imported_by(module)


def test_the_node_stays_a_composition_that_can_be_read() -> None:
    """`At most 330 lines` (docs/ARCHITECTURE.md, "How a node is cut"): what makes it longer lacks a machine."""
    bound = re.search(r"`node\.py` has at most (\d+) lines", DOCUMENT)
    assert bound is not None
    assert len((PACKAGE / "core" / "node" / "node.py").read_text().splitlines()) <= int(bound[1])
