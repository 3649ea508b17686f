"""What was measured: every run of every figure, medians, targets, and how they are shown.

A figure is named by the situation (`case`) and by what was measured in it (`quantity`, with its unit at the end). All
targets are upper bounds.
"""

from collections.abc import Iterable
from statistics import median
from typing import Any, NamedTuple

Document = dict[str, Any]

# (measurement, case, quantity) -> at most so much. An empty case stands for every case.
TARGETS: dict[tuple[str, str, str], float] = {
    ("crash", "", "acted_upon_ms"): 20.0,
    ("vms-watchdog", "1 service, short, all of it stopped", "outage_s"): 9.0,
    **{("power-cut", f"1 service, fast, {role}", "outage_ms"): 1000 for role in ("other", "master")},
    **{("power-cut", f"100 services, fast, {role}", "outage_ms"): 1500 for role in ("other", "master")},
    **{("power-cut", f"1 service, fast, {role}", "after_proof_ms"): 60 for role in ("other", "master")},
    **{("power-cut", f"100 services, fast, {role}", "after_proof_ms"): 500 for role in ("other", "master")},
    **{("power-cut", f"1 service, standard, {role}", "outage_ms"): 3500 for role in ("other", "master")},
    **{("lab-power-cut", f"1 service, fast, {role}", "outage_ms"): 1000 for role in ("other", "master")},
    **{("lab-power-cut", f"100 services, fast, {role}", "outage_ms"): 1500 for role in ("other", "master")},
    **{("lab-power-cut", f"1 service, fast, {role}", "after_proof_ms"): 60 for role in ("other", "master")},
    **{("lab-power-cut", f"100 services, fast, {role}", "after_proof_ms"): 500 for role in ("other", "master")},
    **{("lab-power-cut", f"1 service, standard, {role}", "outage_ms"): 3500 for role in ("other", "master")},
    **{("leave", f"100 services, fast, {role}", "moved_ms"): 800 for role in ("other", "master")},
    ("cold-boot", "", "services_ms"): 3000,
    ("idle", "3 nodes, fast", "cpu_s_per_minute"): 1.5,
    ("idle", "3 nodes, standard", "cpu_s_per_minute"): 0.5,
    ("idle", "16 nodes, fast", "cpu_s_per_minute"): 3.0,
    ("idle", "", "pss_mib"): 45,
    ("idle", "", "evictions"): 0,
    ("steady", "", "evictions"): 0,
    ("joins", "16 nodes", "ratio"): 2.5,
    ("simulated-joins", "16 nodes", "ratio"): 1.5,
    ("simulated-joins", "256 nodes", "ratio"): 1.5,
    **{("placement", f"1000 services, 3 nodes, {kind}", "choose_ms"): 15 for kind in ("equal", "varied")},
    **{("placement", f"5000 services, 32 nodes, {kind}", "choose_ms"): 250 for kind in ("equal", "varied")},
    **{("placement", f"5000 services, 32 nodes, {kind}", "decide_ms"): 250 for kind in ("equal", "varied")},
    **{("placement", f"5000 services, 32 nodes, {kind}", "peak_mib"): 150 for kind in ("equal", "varied")},
    **{("placement", f"5000 services, 32 nodes, {kind}", "choose_growth"): 1.5 for kind in ("equal", "varied")},
    ("lock-machine", "one node", "pair_us"): 12.5,
    ("lock-machine", "one node", "bytes_per_lock"): 768,
    ("lock-machine", "100000 locks, one of 3 nodes lost", "node_ms"): 2000,
    ("lock-machine", "100000 locks, one of 3 nodes lost", "longest_ms"): 50,
    ("locks", "local, 64 at a time", "pair_us"): 50,
    ("locks", "local, one at a time", "p99_ms"): 1.0,
    ("locks", "remote, 64 at a time", "pair_us"): 200,
    ("locks", "remote, one at a time", "p50_ms"): 1.2,
    ("locks", "one lock handed between three nodes", "grant_us"): 1000,
    ("locks", "etcd, one at a time", "ratio"): 0.5,
    ("locks", "etcd, 64 at a time", "ratio"): 0.2,
    ("locks", "", "recovered_after_proof_ms"): 4000,
    ("locks", "", "others_held_up_ms"): 100,
    ("locks", "", "bytes_per_lock"): 1024,
    ("transition", "join", "duration_ms"): 25,
    ("transition", "leave", "duration_ms"): 25,
}


class Figure(NamedTuple):
    """All runs of one quantity in one case."""

    case: str
    quantity: str
    runs: list[float]


class Measurement:
    """What one measurement has found, and what failed meanwhile."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.about = ""  # what the figures cannot say by themselves
        self.failures: list[str] = []
        self.notes: Document = {}
        self._figures: dict[tuple[str, str], Figure] = {}

    def add(self, case: str, quantity: str, value: float) -> None:
        """One run's value."""
        figure = self._figures.setdefault((case, quantity), Figure(case, quantity, []))
        figure.runs.append(round(value, 4))

    def add_all(self, case: str, values: dict[str, float]) -> None:
        """One run's values, by quantity."""
        for quantity, value in values.items():
            self.add(case, quantity, value)

    def failed(self, what: str) -> None:
        """A run that gave no value: it stays visible, and is not silently repeated."""
        self.failures.append(what)

    def median(self, case: str, quantity: str) -> float | None:
        """The median so far, if there is any run."""
        figure = self._figures.get((case, quantity))
        return median(figure.runs) if figure else None

    @property
    def figures(self) -> list[Figure]:
        """In the order in which they were first measured."""
        return list(self._figures.values())

    def document(self) -> Document:
        """Ready for JSON."""
        return {
            "name": self.name,
            "about": self.about,
            "figures": [self._figure_document(figure) for figure in self.figures],
            "failures": self.failures,
            **self.notes,
        }

    def _figure_document(self, figure: Figure) -> Document:
        return {
            "case": figure.case,
            "quantity": figure.quantity,
            "median": median(figure.runs),
            "lowest": min(figure.runs),
            "highest": max(figure.runs),
            "runs": figure.runs,
            "target": target_of(self.name, figure),
        }


def target_of(measurement: str, figure: Figure) -> float | None:
    """The bound that the figure's median should keep, if there is one."""
    exact = TARGETS.get((measurement, figure.case, figure.quantity))
    return exact if exact is not None else TARGETS.get((measurement, "", figure.quantity))


def table(measurement: Measurement) -> Iterable[str]:
    """The measurement as lines of text, its targets beside the figures."""
    yield f"{measurement.name}: {measurement.about}" if measurement.about else measurement.name
    rows: list[tuple[str, ...]] = [("", "", "median", "lowest", "highest", "runs", "target", "")]
    before = ""
    for figure in measurement.figures:
        middle, target = median(figure.runs), target_of(measurement.name, figure)
        verdict = "" if target is None else "ok" if middle <= target else "MISSED"
        shown = [_number(value) for value in (middle, min(figure.runs), max(figure.runs))]
        bound = "" if target is None else f"<= {_number(target)}"
        case = figure.case if figure.case != before else ""
        before = figure.case
        rows.append((case, figure.quantity, *shown, str(len(figure.runs)), bound, verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            text.ljust(width) if column < 2 or column == 7 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield ("  " + "  ".join(cells)).rstrip()
    for failure in measurement.failures:
        yield f"  FAILED: {failure}"


def _number(value: float) -> str:
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.3f}"
