"""Campaigns: many seeds, each a random run that is judged; what a failing one did, and how to see it again."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from itertools import islice
from random import Random
from typing import NamedTuple

from muster.records.units import US_PER_MS
from muster.sim.checkers.checkers import Progress, Violation, judge
from muster.sim.faults.mutants import MUTANTS, mutated
from muster.sim.faults.random_schedule import Plan, plan
from muster.sim.history import GaveUp, History, Raised, describe, fingerprint
from muster.sim.schedule import encode_step
from muster.sim.world.time import US_PER_S
from muster.sim.world.world import World

PROGRESS_US = 20 * US_PER_S  # within which everything must have got to its end after the last fault
LOOK_US = 200 * US_PER_MS
QUEUED_PER_WORKER = 4  # seeds
CONTEXT_BEFORE = 40  # observations shown before a violation
CONTEXT_AFTER = 3


class Run(NamedTuple):
    """One judged run."""

    seed: int
    violations: tuple[Violation, ...]
    events: int
    observations: int
    virtual_us: int
    settled_us: int  # virtual time from the last fault until everything had got to its end


class Failure(NamedTuple):
    """A run that broke a rule, ready to be printed."""

    seed: int
    violations: tuple[Violation, ...]
    events: tuple[str, ...]  # the last observations around the first violation, one a line
    replay: str  # the command that shows it again


class Summary(NamedTuple):
    """What a campaign found."""

    seeds: int
    first: int
    failures: tuple[Failure, ...]
    events: int
    virtual_us: int
    slowest_settled_us: int


def run(
    seeds: int,
    first: int,
    mutant: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    processes: int | None = None,
    stop_at: int = 10,
) -> Summary:
    """Run `seeds` seeds from `first` on, on all processors, and judge each.

    `mutant` names a deliberate error of `mutants.py` to run with. `progress(done, failed)` is called after each seed.
    Ends early after `stop_at` failures. Raises `ValueError` for an unknown mutant.
    """
    _known(mutant)
    failures: list[Failure] = []
    done = events = virtual_us = settled_us = 0
    for result, failure in _results(seeds, first, mutant, processes):
        done += 1
        events += result.events
        virtual_us += result.virtual_us
        settled_us = max(settled_us, result.settled_us)
        if failure is not None:
            failures.append(failure)
        if progress is not None:
            progress(done, len(failures))
        if len(failures) >= stop_at:
            break
    failures.sort(key=lambda failure: failure.seed)
    return Summary(done, first, tuple(failures), events, virtual_us, settled_us)


def _results(seeds: int, first: int, mutant: str | None, processes: int | None) -> Iterator[tuple[Run, Failure | None]]:
    tasks = [(seed, mutant) for seed in range(first, first + seeds)]
    workers = min(processes or os.cpu_count() or 1, seeds)
    if workers <= 1:
        yield from map(_task, tasks)
        return
    # An executor, not a pool: a worker that cannot start is an error here, where a pool would replace it for ever.
    executor = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield from _gather(executor, tasks, workers)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _gather(
    executor: ProcessPoolExecutor, tasks: list[tuple[int, str | None]], workers: int
) -> Iterator[tuple[Run, Failure | None]]:
    """Keep every worker busy with a few seeds; give results as they come."""
    remaining = iter(tasks)
    pending = {executor.submit(_task, task) for task in islice(remaining, workers * QUEUED_PER_WORKER)}
    while pending:
        finished, pending = wait(pending, return_when=FIRST_COMPLETED)
        for future in finished:
            pending |= {executor.submit(_task, task) for task in islice(remaining, 1)}
            yield future.result()


def _known(mutant: str | None) -> None:
    if mutant is not None and mutant not in MUTANTS:
        raise ValueError(f"there is no mutant {mutant!r}; there are: {', '.join(sorted(MUTANTS))}")


def _task(task: tuple[int, str | None]) -> tuple[Run, Failure | None]:
    seed, mutant = task
    result, history = run_seed(seed, mutant)
    return result, _failure(result, history, mutant) if result.violations else None


def _failure(result: Run, history: History, mutant: str | None) -> Failure:
    return Failure(result.seed, result.violations, tuple(context(history, result)), replay_command(result.seed, mutant))


def replay_command(seed: int, mutant: str | None) -> str:
    """The one command that shows a run again."""
    with_mutant = f" --mutant {mutant}" if mutant else ""
    return f"muster sim --seeds 1 --from {seed}{with_mutant} --verbose"


def run_seed(seed: int, mutant: str | None = None) -> tuple[Run, History]:
    """Run and judge one seed. Raises `ValueError` for an unknown mutant."""
    _known(mutant)
    with mutated(mutant):
        random = Random(seed)
        planned = plan(random)
        world = World(planned.settings, random)
        settled_us = _play(world, planned)
    violations = tuple(judge(world.history))
    loop = world.loop
    return Run(seed, violations, loop.events_run, len(world.history), loop.now_us, settled_us), world.history


def _play(world: World, planned: Plan) -> int:
    """Follow the plan, then wait until everything has got to its end; how long that took, in virtual time."""
    world.follow(planned.steps)
    try:
        world.run_until(planned.calm_us)
        outlook = Progress(world.history, planned.settings.nodes)
        missing = "it has just become calm"
        while missing and not world.stopped and world.loop.now_us < planned.calm_us + PROGRESS_US:
            world.run_until(world.loop.now_us + LOOK_US)
            missing = outlook.missing()
        if missing and not world.stopped:
            world.history.append(GaveUp(world.loop.now_us, missing))
    except RuntimeError as error:
        world.history.append(Raised(world.loop.now_us, -1, str(error)))
    return world.loop.now_us - planned.calm_us


def context(history: History, result: Run) -> list[str]:
    """The observations around the first violation, one a line."""
    position = result.violations[0].position if result.violations else len(history) - 1
    start = max(0, position - CONTEXT_BEFORE)
    return [
        ("> " if number == position else "  ") + describe(history[number])
        for number in range(start, min(len(history), position + 1 + CONTEXT_AFTER))
    ]


def account(seed: int, mutant: str | None = None) -> Iterator[str]:
    """Everything about one run, line by line: its plan, its history with the violations where they happened."""
    planned = plan(Random(seed))
    yield f"seed {seed}: {planned.settings}"
    for step in planned.steps:
        yield f"plan {encode_step(step)}"
    result, history = run_seed(seed, mutant)
    broken = {violation.position: violation for violation in reversed(result.violations)}
    for position, observation in enumerate(history):
        yield describe(observation)
        if position in broken:
            yield f"  VIOLATION of {broken[position].rule}: {broken[position].message}"
    yield f"history {fingerprint(history)}: {result.observations} observations, {len(result.violations)} violations"
