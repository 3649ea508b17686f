"""How much is measured: the whole, a quick look within five minutes, or the least that shows that it works."""

from typing import NamedTuple


class Case(NamedTuple):
    """One situation in which services move."""

    services: int
    role: str  # of the node that goes: `master` or `other`
    profile: str
    runs: int


class Scale(NamedTuple):
    """Numbers of runs and sizes. Seconds where it says so."""

    name: str
    power_cuts: tuple[Case, ...]
    lab_power_cuts: tuple[Case, ...]
    leaves: tuple[Case, ...]
    boot_runs: int
    boot_services: tuple[int, ...]
    idle: tuple[tuple[int, str], ...]  # nodes, profile
    idle_runs: int
    idle_s: float  # of one run
    steady_s: float  # without and with busy loops beside it; 0: left out
    joins: tuple[tuple[int, int], ...]  # nodes that join together, runs
    simulated_joins: tuple[tuple[int, int], ...]  # nodes that join together, runs
    transition_runs: int
    store_runs: int
    placements: tuple[tuple[int, int], ...]  # services, nodes
    placement_runs: int
    crash_runs: int
    lock_machine_runs: int
    lock_runs: int
    lock_pairs: int  # of one run that pipelines
    lock_recovered: int  # locks, half of them mastered at the node that is lost


def _cases(runs: int, services: tuple[int, ...], profile: str = "fast") -> tuple[Case, ...]:
    return tuple(Case(count, role, profile, runs) for count in services for role in ("other", "master"))


WHOLE = Scale(
    name="whole",
    power_cuts=(*_cases(7, (1, 100)), *_cases(5, (1,), "standard")),
    lab_power_cuts=(*_cases(7, (1, 100)), *_cases(5, (1,), "standard")),
    leaves=_cases(7, (1, 100)),
    boot_runs=5,
    boot_services=(1, 100),
    idle=((1, "fast"), (3, "fast"), (8, "fast"), (16, "fast"), (3, "standard")),
    idle_runs=5,
    idle_s=12.0,
    steady_s=600.0,
    joins=((1, 5), (2, 5), (8, 5), (16, 5)),
    simulated_joins=((1, 9), (2, 5), (8, 5), (16, 5), (64, 5), (256, 1)),
    transition_runs=15,
    store_runs=300,
    placements=((1000, 3), (5000, 32), (10_000, 32), (5000, 256)),
    placement_runs=7,
    crash_runs=21,
    lock_machine_runs=5,
    lock_runs=5,
    lock_pairs=64_000,
    lock_recovered=100_000,
)
QUICK = Scale(
    name="quick",
    power_cuts=_cases(3, (1, 100)),
    lab_power_cuts=(Case(1, "master", "fast", 3), Case(100, "master", "fast", 3)),
    leaves=_cases(2, (1, 100)),
    boot_runs=2,
    boot_services=(100,),
    idle=((3, "fast"), (16, "fast"), (3, "standard")),
    idle_runs=2,
    idle_s=5.0,
    steady_s=0.0,
    joins=((1, 2), (16, 1)),
    simulated_joins=((1, 9), (16, 5), (48, 1)),
    transition_runs=5,
    store_runs=100,
    placements=((1000, 3), (5000, 32)),
    placement_runs=3,
    crash_runs=7,
    lock_machine_runs=2,
    lock_runs=2,
    lock_pairs=16_000,
    lock_recovered=100_000,
)
LEAST = Scale(
    name="least",
    power_cuts=(Case(2, "master", "fast", 1),),
    lab_power_cuts=(Case(2, "master", "fast", 1),),
    leaves=(Case(2, "other", "fast", 1),),
    boot_runs=1,
    boot_services=(2,),
    idle=((2, "fast"),),
    idle_runs=1,
    idle_s=0.5,
    steady_s=0.2,
    joins=((1, 1), (2, 1)),
    simulated_joins=((1, 1), (3, 1)),
    transition_runs=1,
    store_runs=5,
    placements=((8, 2),),
    placement_runs=1,
    crash_runs=1,
    lock_machine_runs=1,
    lock_runs=1,
    lock_pairs=640,
    lock_recovered=2000,
)
SCALES = {scale.name: scale for scale in (WHOLE, QUICK, LEAST)}
