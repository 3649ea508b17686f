"""How busy a node has been of late, in coarse grades (SPEC 6.2).

The daemon measures and smooths; what is told to the master and decided by is the grade alone. A node tells a new
measurement only when its grade has changed, and has changed for good: a worse grade must be left behind by a margin
before a better one is told. So noise at a bound neither moves services nor makes traffic (P5.3).
"""

from muster.records.services import Performance

GRADES = ("idle", "light", "moderate", "busy", "overloaded")
MARGIN = 50  # thousandths by which every value must be below a bound before the better grade is told

# Bounds of the grades, in thousandths: a value at or above the n-th bound has grade n at least.
CPU_BOUNDS = (250, 500, 750, 900)
MEMORY_BOUNDS = (500, 700, 850, 950)
PRESSURE_BOUNDS = (20, 100, 250, 500)


def grade_of(performance: Performance | None) -> int:
    """The grade, an index of `GRADES`: that of the scarcest thing. A node of which nothing is known counts as idle."""
    if performance is None:
        return 0
    return _grade(performance, 0)


def is_news(told: Performance | None, measured: Performance) -> bool:
    """Whether the master must hear of a measurement, `told` being what it heard last (P5.3)."""
    if told is None:
        return True
    before, now = grade_of(told), grade_of(measured)
    return now > before or (now < before and _grade(measured, MARGIN) < before)


def described(performance: Performance | None) -> str:
    """A measurement in words, with its grade first."""
    if performance is None:
        return "not known yet"
    parts = (("CPU", performance.cpu), ("memory", performance.memory), ("pressure", performance.pressure))
    return f"{GRADES[grade_of(performance)]} ({', '.join(f'{name} {value / 10:.0f} %' for name, value in parts)})"


def _grade(performance: Performance, margin: int) -> int:
    values = (
        (performance.cpu, CPU_BOUNDS),
        (performance.memory, MEMORY_BOUNDS),
        (performance.pressure, PRESSURE_BOUNDS),
    )
    # a margin must not lift a value over a bound that is smaller than the margin: half the bound is left then
    return max(sum(value + min(margin, bound // 2) >= bound for bound in bounds) for value, bounds in values)
