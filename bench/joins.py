"""Joins of many nodes together, and one transition without work, on real daemons (SPEC 3.4, 3.5).

Theory of operation. Interpreters that start share two or eight cores, so the moment at which a node is ready to join
says little about joining. Therefore a gate: one more node, `n0`, is the master, and its program at the lowest level
acknowledges nothing while the gate is closed. The others have a program there too, for a level is told only of the
nodes that are in it. All levels are required, so no join is opened before the programs of its node have registered;
then it stops at the gate. When all joins wait for the gate alone, it is opened: the common release. What is measured
ends with the commit of the last join, in the master's own timeline.

The work is that of a cluster's usual layers below the event manager, on each node a program at each of the levels 10,
20 and 30 (lock manager, volumes, file system), which takes 50 ms for a notification: the same for the single join, to
which the others are compared, and for the simultaneous ones.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from bench.announcements import boottime_us
from bench.cluster import STARTED_TOGETHER, STEP_TIMEOUT_S, Document, Rig, repeated, rig
from bench.figures import Measurement
from bench.programs import Program, start_program
from bench.scales import Scale
from muster.client import ClientError

GATE_LEVEL = 5
LEVELS_WITH_WORK = (10, 20, 30)
WORK_S = 0.05
GATE = "n0"
LEVELS_WITHOUT_WORK = (10, 20, 30, 50)  # and the event manager's own level 40: five
US_PER_MS = 1000
_LOOK_S = 0.02
_LOOK_AFTER_S = 0.25  # while something is measured: each look takes time of the master, and the end is in its timeline


def measure(scale: Scale, directory: Path, measurement: Measurement) -> None:
    """Simultaneous joins with work; `ratio` is to the median of single joins."""
    levels = ", ".join(map(str, LEVELS_WITH_WORK))
    measurement.about = f"each join through the levels {levels}, with {WORK_S * 1000:.0f} ms of work at each"
    for joining, runs in scale.joins:
        title = f"{joining} node{'s' if joining > 1 else ''}"
        for _ in range(runs):  # each on a cluster of its own: these nodes have never joined before
            make = partial(rig, directory, joining + 1, boots=False)
            repeated(1, make, partial(_run, partial(_join_once, title, measurement)), measurement, title)


def measure_transition(scale: Scale, directory: Path, measurement: Measurement) -> None:
    """A join and a leave of the third node through five levels, none of which has work to do."""
    once = partial(_run, partial(_transitions, scale.transition_runs, measurement))
    repeated(1, partial(rig, directory, 3, boots=False), once, measurement, "transition")


def _run(once: Callable[[Rig, "Programs"], Awaitable[None]], rig_: Rig) -> None:
    """Carry an asynchronous run out on a rig, and end its programs. Raises `ClientError`."""

    async def run() -> None:
        programs = Programs(rig_)
        try:
            await once(rig_, programs)
        finally:
            await programs.end()

    try:
        asyncio.run(run())
    except ClientError as error:
        raise ClientError(error.what, error.where, error.next_step) from error


class Programs:
    """The programs of one run."""

    def __init__(self, rig_: Rig) -> None:
        self._rig = rig_
        self._programs: dict[tuple[str, int], Program] = {}
        self.gate: Program

    async def start(self, node: str, level: int, work_s: float = 0.0) -> Program:
        """Start a program on a node. Raises `ClientError`."""
        program = await start_program(f"level-{level}", level, self._rig.cluster.socket(node), work_s)
        old = self._programs.get((node, level))  # of an earlier life of the node
        self._programs[node, level] = program
        if old is not None:
            await old.end()
        return program

    async def end(self) -> None:
        """End all of them."""
        await asyncio.gather(*(program.end() for program in self._programs.values()))

    async def until(self, what: str, done: Callable[[], bool], look_s: float = _LOOK_S) -> None:
        """Wait until `done`, without keeping the programs from their work. Raises `ClientError`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + STEP_TIMEOUT_S
        while not await asyncio.to_thread(self._is_true, done):
            failures = [program.failure for program in self._programs.values() if program.failure is not None]
            if loop.time() > deadline:
                where = str(failures[:1] or self._rig.cluster.log(GATE))
                raise ClientError(f"waited {STEP_TIMEOUT_S:g} s in vain for {what}", where, "read what the logs say")
            await asyncio.sleep(look_s)

    @staticmethod
    def _is_true(done: Callable[[], bool]) -> bool:
        try:
            return done()
        except ClientError:
            return False


def _ask(rig_: Rig, query: str) -> Document:
    return rig_.cluster.connection_to(GATE, 10.0).query(query)


def _has_levels(rig_: Rig, node: str, levels: tuple[int, ...]) -> bool:
    known = _ask(rig_, "nodes")["nodes"][node]
    return set(levels) <= {level["level"] for level in known["levels"]}


async def _begin(rig_: Rig, programs: Programs, levels: tuple[int, ...], work_s: float) -> None:
    """The first node with its gate, which is open, and its other programs."""
    await asyncio.to_thread(rig_.boot, [GATE])
    programs.gate = await programs.start(GATE, GATE_LEVEL)
    for level in levels:
        await programs.start(GATE, level, work_s)
    settled = (GATE_LEVEL, *levels)
    await programs.until(
        "the first node's levels", lambda: _has_levels(rig_, GATE, settled) and not _ask(rig_, "status")["transitions"]
    )
    required = ",".join(map(str, settled))
    connection = rig_.cluster.connection_to(GATE, 30.0)
    await asyncio.to_thread(partial(connection.operate, "configure", setting="required_levels", value=required))


async def _bring_to_gate(
    rig_: Rig, programs: Programs, joining: list[str], levels: tuple[int, ...], work_s: float
) -> None:
    """Boot nodes whose joins then wait for nothing but the gate, with all their programs registered."""
    programs.gate.close_gate()
    for position in range(0, len(joining), STARTED_TOGETHER):
        together = joining[position : position + STARTED_TOGETHER]
        for name in together:
            await asyncio.to_thread(rig_.cluster.start, name)
        for name in together:
            await programs.start(name, GATE_LEVEL)
            for level in levels:
                await programs.start(name, level, work_s)

    def all_wait() -> bool:
        waiting = _ask(rig_, "status")["transitions"]
        ready = [found for found in waiting if found["level"] == GATE_LEVEL and found["waiting_for"] == [GATE]]
        return len(ready) == len(joining) and all(_has_levels(rig_, name, levels) for name in joining)

    await programs.until("the joins to wait for the gate", all_wait)


async def _release(rig_: Rig, programs: Programs, joining: list[str]) -> float:
    """Open the gate; milliseconds until the last join is committed. Raises `ClientError`."""
    released_us = boottime_us()
    programs.gate.open_gate()

    def all_joined() -> bool:
        nodes = _ask(rig_, "status")["nodes"]
        return all(nodes[name]["state"] == "joined" for name in joining)

    await programs.until("the joins", all_joined, _LOOK_AFTER_S)
    done = [
        _moment(rig_, "transition done", f"{name} joining", released_us) for name in joining
    ]  # fmt: skip
    return (max(done) - released_us) / US_PER_MS


def _moment(rig_: Rig, event: str, detail: str, since_us: int) -> int:
    """When the master recorded an event for the first time since then. Raises `ClientError` if it has not."""
    for found in rig_.cluster.connection_to(GATE, 10.0).query("timeline", since=0)["events"]:
        if found["at_us"] >= since_us and found["event"] == event and str(found["detail"]).startswith(detail):
            return int(found["at_us"])
    raise ClientError(f"there is no event {event!r} about {detail}", f"timeline of {GATE}", "look at its log")


async def _join_once(title: str, measurement: Measurement, rig_: Rig, programs: Programs) -> None:
    joining = [name for name in rig_.names if name != GATE]
    await _begin(rig_, programs, LEVELS_WITH_WORK, WORK_S)
    await _bring_to_gate(rig_, programs, joining, LEVELS_WITH_WORK, WORK_S)
    duration_ms = await _release(rig_, programs, joining)
    measurement.add(title, "duration_ms", duration_ms)
    single_ms = measurement.median("1 node", "duration_ms")
    if single_ms:
        measurement.add(title, "ratio", duration_ms / single_ms)


async def _transitions(runs: int, measurement: Measurement, rig_: Rig, programs: Programs) -> None:
    second, third = (name for name in rig_.names if name != GATE)
    await _begin(rig_, programs, LEVELS_WITHOUT_WORK, 0.0)
    await _bring_to_gate(rig_, programs, [second], LEVELS_WITHOUT_WORK, 0.0)
    await _release(rig_, programs, [second])
    for _ in range(runs):
        await _bring_to_gate(rig_, programs, [third], LEVELS_WITHOUT_WORK, 0.0)
        measurement.add("join", "duration_ms", await _release(rig_, programs, [third]))
        asked_us = boottime_us()
        connection = rig_.cluster.connection_to(GATE, 30.0)
        await asyncio.to_thread(partial(connection.operate, "leave", node=third))
        if not await asyncio.to_thread(rig_.cluster.wait_ended, third, 30.0):
            raise ClientError(f"{third} has not ended after its leave", str(rig_.cluster.log(third)), "read that log")
        opened_us = _moment(rig_, "transition opened", f"{third} leaving", asked_us)
        done_us = _moment(rig_, "transition done", f"{third} leaving", asked_us)
        measurement.add("leave", "duration_ms", (done_us - opened_us) / US_PER_MS)
