"""`python bench`: each measurement measures, on real daemons; its figures are not judged here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lab.sandbox import missing

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 600.0
EXPECTED = {  # measurement -> (case, quantities) that a run at the least scale must give
    "store": [("3 nodes", {"strip_read_ms", "election_ms", "commit_ms"})],
    "slots": [("256 slots, 3 nodes", {"read_kib", "read_us", "read_cpu_us", "guard_private_kib", "store_mib"})],
    "power-cut": [
        (
            "2 services, fast, master",
            {"outage_ms", "detection_ms", "proof_ms", "levels_ms", "start_ms", "after_proof_ms", "proof_to_elected_ms"},
        ),
    ],
    "lab-power-cut": [("2 services, fast, master", {"outage_ms", "proof_ms", "start_ms", "after_proof_ms"})],
    "leave": [("2 services, fast, other", {"moved_ms", "ended_ms"})],
    "cold-boot": [
        ("2 services, after a power cut of all", {"services_ms", "joined_ms"}),
        ("2 services, after a stop of all", {"services_ms", "joined_ms"}),
    ],
    "crash": [
        (
            "3 nodes, fast, program on the master",
            {"noticed_ms", "acted_upon_ms", "executed_ms", "registered_ms"},
        ),
    ],
    "idle": [("2 nodes, fast", {"cpu_s_per_minute", "daemon_cpu_s_per_minute", "pss_mib", "evictions"})],
    "steady": [("4 busy loops beside 3 nodes", {"seconds", "evictions", "nodes_not_joined"})],
    "joins": [("1 node", {"duration_ms"}), ("2 nodes", {"duration_ms", "ratio"})],
    "transition": [("join", {"duration_ms"}), ("leave", {"duration_ms"})],
    "lock-machine": [
        ("one node", {"pair_us", "bytes_per_lock"}),
        ("100000 locks, one of 3 nodes lost", {"node_ms", "longest_ms"}),
    ],
    "locks": [
        ("local, one at a time", {"pairs_per_s", "p50_ms", "p99_ms"}),
        ("local, 64 at a time", {"pairs_per_s", "pair_us"}),
        ("remote, one at a time", {"pairs_per_s", "p50_ms", "p99_ms"}),
        ("remote, 64 at a time", {"pairs_per_s", "pair_us"}),
        ("one lock handed between three nodes", {"grants_per_s", "grant_us", "most_to_least"}),
        ("2000 locks, one of three nodes lost", {"recovered_after_proof_ms", "others_held_up_ms"}),
    ],
    "simulated-joins": [("1 node", {"duration_ms"}), ("3 nodes", {"duration_ms", "ratio"})],
}
# phases overlap: the lease may expire before the link counts as lost, and a service start before the last level is done
MAY_BE_ZERO = {
    "evictions",
    "nodes_not_joined",
    "direct_io",
    "detection_ms",
    "proof_ms",
    "levels_ms",
    "start_ms",
    "answer_ms",
    "bytes_per_lock",
}


def _run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "bench"), "--directory", str(directory), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=dict(os.environ))


@pytest.mark.long
@pytest.mark.parametrize("name", EXPECTED)
def test_a_measurement_at_the_least_scale_gives_every_figure(name: str, tmp_path: Path) -> None:
    if name.startswith("lab-") and (reason := missing()):
        pytest.skip(f"not applicable: {reason}" if "/dev/fuse" in reason else reason)
    place, file = tmp_path / "d", tmp_path / "figures.json"
    place.mkdir()
    done = _run(place, "--scale", "least", "--only", name, "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(file.read_text())
    assert document["machine"].keys() >= {"cores", "kernel", "python", "processor", "file_system"}
    (measurement,) = document["measurements"]
    assert measurement["name"] == name
    assert measurement["failures"] == []
    assert measurement.keys() >= {"seconds", "load_before", "load_after"}
    figures = {(figure["case"], figure["quantity"]): figure for figure in measurement["figures"]}
    for case, quantities in EXPECTED[name]:
        for quantity in quantities:
            _check(figures[case, quantity])
            assert quantity in done.stdout
    if name.endswith("power-cut"):
        _check_parts(figures)
    assert list(place.iterdir()) == [], "something of the measurement was left behind"


def _check_parts(figures: dict[tuple[str, str], dict[str, Any]]) -> None:
    """The parts of an outage add up to it."""
    case = "2 services, fast, master"
    values = {quantity: figure["runs"][0] for (where, quantity), figure in figures.items() if where == case}
    parts = sum(values.get(f"{part}_ms", 0.0) for part in ("detection", "proof", "levels", "start", "answer"))
    assert parts == pytest.approx(values["outage_ms"], abs=0.01)


def _check(figure: dict[str, Any]) -> None:
    assert figure["runs"], figure
    assert figure["lowest"] <= figure["median"] <= figure["highest"]
    if figure["quantity"] not in MAY_BE_ZERO:
        assert figure["lowest"] > 0, figure


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["--json", "/nowhere/at/all/figures.json"], "no directory /nowhere/at/all"),
        (["--only", "outrage"], "outrage"),
        (["--scale", "huge"], "huge"),
    ],
)
def test_a_mistaken_command_line_is_refused_before_anything_is_started(
    arguments: list[str], phrase: str, tmp_path: Path
) -> None:
    done = _run(tmp_path, *arguments)
    assert done.returncode == 2
    assert phrase in done.stderr
    assert list(tmp_path.iterdir()) == []
