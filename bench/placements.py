"""Placing many services: choosing alone, and the whole decision from the snapshot to the entry (SPEC 6.2).

Counted is processor time: nothing here waits for anything. Each run is a process of its own, so that its peak memory
is that of this work: interpreter, rules, database and the decision. `growth` compares the time for one service with
that of a quarter of the services: 1 is linear.
"""

import gc
import json
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

if not __package__:  # run as `python bench/placements.py`, by `measure`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.figures import Measurement
from bench.scales import Scale
from muster.client.errors import ClientError
from muster.core.draft import Draft, Facts
from muster.core.services import table as service
from muster.core.services.placement import Placement
from muster.records.database import Database, Entry, encode_entry
from muster.records.levels import EVENT_MANAGER_LEVEL, NodeState
from muster.records.members import Member
from muster.records.messages import Report
from muster.records.nodes import Cluster, NodeConfig
from muster.records.services import Definition, Performance, Service
from muster.records.terms import Term

EQUAL, VARIED = "equal", "varied"
QUARTER = 4
TIMEOUT_S = 120
START = ("/usr/lib/service", "start")


def measure(scale: Scale, directory: Path, measurement: Measurement) -> None:  # noqa: ARG001 - as all measurements
    """Each size beside a quarter of it; a growth of 1 is linear. Raises `ClientError` if a run fails."""
    for services, nodes in scale.placements:
        for kind in (EQUAL, VARIED):
            case = f"{services} services, {nodes} nodes, {kind}"
            for _ in range(scale.placement_runs):
                found = _run(services, nodes, kind)
                measurement.add_all(case, found)
                fewer = _run(services // QUARTER, nodes, kind)
                for quantity in ("choose_ms", "decide_ms"):
                    growth = found[quantity] / max(fewer[quantity], 1e-6) / QUARTER
                    measurement.add(case, quantity.replace("_ms", "_growth"), growth)


def _run(services: int, nodes: int, kind: str) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).resolve()), str(services), str(nodes), kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        raise ClientError("placing failed", " ".join(command), done.stderr[-1000:] or "run it by hand")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def definitions(services: int, nodes: int, kind: str) -> list[Definition]:
    """Equal ones, or such that hardly two have the same parameters, of every sort of parameter."""
    if kind == EQUAL:
        return [Definition(f"s{number}", start_command=START) for number in range(services)]
    found = []
    chance, all_names = Random(1), [f"n{node}" for node in range(nodes)]
    for number in range(services):
        names = tuple(chance.sample(all_names, chance.randint(1, nodes)))
        lists: dict[str, tuple[str, ...]] = [
            {"ordered": names},
            {"unordered": names},
            {"allowable_nodes": names},
            {"disallowable_nodes": names[: nodes // 2]},
        ][number % 4]
        found.append(Definition(f"s{number}", start_command=START, **lists))
    return found


def choose(defined: list[Definition], nodes: int) -> float:
    """Milliseconds for placing all, each counted before the next."""
    configured = {node: NodeConfig(node, f"n{node}", (), "") for node in range(nodes)}
    performance = {node: Performance(node * 29 % 1000, 300, 0) for node in range(nodes)}
    began_ns = time.process_time_ns()
    placement = Placement(configured, configured, {}, performance)
    for definition in defined:
        chosen = placement.choose(definition)
        if chosen is None:
            raise AssertionError(f"no node for {definition}")
        placement.assigned(chosen)
    return (time.process_time_ns() - began_ns) / 1e6


def decide(defined: list[Definition], nodes: int) -> float:
    """Milliseconds from the snapshot in which all are to start to the encoded entry that starts them."""
    database = Database(Cluster("bench", "0" * 32, "fast", ""))
    reports = {}
    for node in range(nodes):
        database.nodes[node] = NodeConfig(node, f"n{node}", (), "")
        database.members[node] = Member(node, NodeState.JOINED, 1, (EVENT_MANAGER_LEVEL,))
        reports[node] = Report(Term(1, 0), 0, 1, "", (), (), (), performance=Performance(node * 29 % 1000, 300, 0))
    for number, definition in enumerate(defined):
        database.services[definition.name] = Service(definition, number + 1, wanted=True)
    began_ns = time.process_time_ns()
    draft = Draft(database)
    service.advance(draft, _facts(reports))
    encode_entry(Entry(draft.index, Term(1, 0), "; ".join(draft.causes)[:2000], draft.changes))
    elapsed_ms = (time.process_time_ns() - began_ns) / 1e6
    started = sum(record.node >= 0 for record in draft.services.values())
    if started != len(defined):
        raise AssertionError(f"{started} of {len(defined)} were started")
    return elapsed_ms


def _facts(reports: dict[int, Report]) -> Facts:
    return Facts(
        now_us=0,
        me=0,
        reports=reports,
        evidence=lambda _node, _incarnation: None,
        alive=lambda _node: True,
        unreachable={},
        hung={},
        services_open=True,
    )


def _peak_mib() -> float:
    """The most memory that this process has had, since it began."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("the kernel does not tell VmHWM")


def _alone(services: int, nodes: int, kind: str) -> dict[str, Any]:
    defined = definitions(services, nodes, kind)
    gc.collect()
    return {"choose_ms": choose(defined, nodes), "decide_ms": decide(defined, nodes), "peak_mib": _peak_mib()}


if __name__ == "__main__":
    print(json.dumps(_alone(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
