"""A run on machines: they are set up as the documents say, then struck, and judged by the simulator's checkers.

Theory of operation. Everything before the first fault is done by the commands of docs/THREE_MACHINES.md, carried out as
they stand there. Then come scripted faults, one at a time, and random ones until the time is over. After each of them
everything is healed and the cluster must come to rest; then all that daemons and services have recorded up to there is
given to the checkers. The first finding ends the run.
"""

import functools
import heapq
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from lab.examination import REST_S, Examination
from lab.exclusive_record import Line, Violation, parse_line
from lab.exclusive_service import LINE_BYTES
from lab.patient import now_us
from machines.attendant import Attendant
from machines.faults import KINDS, Fault, Faults
from machines.machine import MachineFailed
from machines.page import Block
from machines.systems import Systems

LOOK_S = 0.05
ELSEWHERE_S = 120.0
Plan = list[tuple[float, Fault]]


class Settings(NamedTuple):
    """What a run is."""

    seed: int
    minutes: float  # of random faults
    scripted: tuple[str, ...]  # the parts of the script
    package: Path
    next_package: Path  # of the release after it
    output: Path  # where the histories of all runs are kept
    budget_s: float  # how long all of it may take; longer is told, and no failure


class Campaign:
    """The machines of one run, and what is done to them."""

    def __init__(self, settings: Settings, systems: Systems, directory: Path, began_s: float) -> None:
        self.settings, self.systems, self.directory, self.began_s = settings, systems, directory, began_s
        self.faults = Faults(systems)
        self.patient = Attendant(systems, self.faults)
        shared = systems.shared
        self.examination = Examination(systems, self.patient, shared / "observations", shared / "record")
        self.judgement = self.examination.judgement
        self.done: dict[str, int] = {}
        self.rounds = 0
        self._diary = (directory / "faults.jsonl").open("a")

    def close(self) -> None:
        """Let go of the files."""
        self._diary.close()
        self.patient.record.close()

    def say(self, text: str) -> None:
        """A line of progress: seconds since the beginning, of those that it may take."""
        print(f"{time.monotonic() - self.began_s:7.1f} of {self.settings.budget_s:.0f} s  {text}", flush=True)

    # ---- setting up ----------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Give all machines power, and wait for systemd. Raises `MachineFailed`."""
        self.systems.on_all(lambda machine: machine.on())
        self.systems.on_all(lambda machine: machine.wait_until_up())
        self.say("three machines have booted")

    def carry_out(self, listed: list[Block], names: tuple[str, ...] = ()) -> None:
        """Type what the documents say, where they say it, or on these machines. Raises `MachineFailed`."""
        heading = ""
        for block in listed:
            if block.heading != heading:
                heading = block.heading
                self.say(f"docs/THREE_MACHINES.md: {heading}")
            where = [block.where] if block.where in self.systems.names else self.systems.names
            for name in names or where:
                self._type(name, block.script)

    def _type(self, name: str, script: str) -> None:
        """Each command must succeed."""
        printed = self.systems.machines[name].succeed(f"set -e\n{script}", timeout_s=240.0)
        with (self.directory / "typed").open("a") as file:
            file.write(f"--- {name}\n{script}{printed}")

    def begin_services(self) -> None:
        """The services under study, and programs at two levels. Raises `ClientError`, `MachineFailed`."""
        self.patient.apply_services()
        if not self.settle():
            raise MachineFailed("the cluster did not come to rest before the first fault")
        self.say("services run, the cluster is at rest")

    # ---- faults --------------------------------------------------------------------------------------------------

    def settle(self) -> bool:
        """Heal, wait for rest, judge; whether nothing was found."""
        self.faults.heal()
        return self.examination.settle(REST_S, self.directory / "state")

    def run_round(self, plan: Plan) -> bool:
        """Carry a plan out, heal, judge; whether nothing was found. Raises where the lab itself fails."""
        self.rounds += 1
        began_s, began_us = time.monotonic(), now_us()
        try:
            self._carry_out(plan, began_s)
        except Violation as violation:
            self.examination.broken(violation)
        healed_s = time.monotonic()
        fine = self.settle()
        listed = "; ".join(str(fault) for _at_s, fault in plan)
        rest_s = time.monotonic() - healed_s
        self.say(f"round {self.rounds}: {listed}; {rest_s:.1f} s to rest; {self.worst_outage(began_us)}")
        return fine

    def _carry_out(self, plan: Plan, began_s: float) -> None:
        order = itertools.count()
        due: list[tuple[float, int, str, Callable[[], None]]] = []

        def at(moment_s: float, what: str, action: Callable[[], None]) -> None:
            heapq.heappush(due, (moment_s, next(order), what, action))

        for at_s, fault in plan:
            at(at_s, f"begin {fault}", functools.partial(self._begin, fault))
            if KINDS[fault.kind].end is not None:
                at(at_s + fault.duration_s, f"end {fault}", functools.partial(self.faults.end, fault))
        while due:
            moment_s, _, what, action = due[0]
            wait_s = began_s + moment_s - time.monotonic()
            if wait_s > 0:
                self.patient.record.read()
                time.sleep(min(wait_s, LOOK_S))
                continue
            heapq.heappop(due)
            self._note(what)
            action()

    def strike(self, fault: Fault) -> None:
        """One fault, from its beginning to its end. Raises as `run_round`."""
        try:
            self._carry_out([(0.0, fault)], time.monotonic())
        except Violation as violation:
            self.examination.broken(violation)

    def _begin(self, fault: Fault) -> None:
        self.faults.begin(fault)
        self.done[fault.kind] = self.done.get(fault.kind, 0) + 1

    def _note(self, what: str) -> None:
        self._diary.write(json.dumps({"at_us": now_us(), "round": self.rounds, "what": what}) + "\n")
        self._diary.flush()

    # ---- what was measured ---------------------------------------------------------------------------------------

    def worst_outage(self, since_us: int) -> str:
        """The longest time in which one of the movable services gave no sign of life, in words."""
        last: dict[str, int] = {}
        worst = (0, "nothing")
        for line in self._lines():
            if line.action != "start" or line.service.startswith("witness"):
                continue
            before = last.get(line.service)
            if before is not None and line.time_us > since_us:
                worst = max(worst, (line.time_us - before, line.service))
            last[line.service] = max(line.time_us, before or 0)
        return f"longest outage {worst[0] / 1e6:.2f} s ({worst[1]})"

    def _lines(self) -> Iterator[Line]:
        data = (self.systems.shared / "record").read_bytes()
        for at in range(0, len(data) - LINE_BYTES + 1, LINE_BYTES):
            yield parse_line(data[at : at + LINE_BYTES])
