"""A campaign: rounds of faults on a running cluster, each followed by rest and judgement.

Theory of operation. A round is a plan: faults, each with the moment at which it begins. While it runs, nodes that have
ended are booted again after a while, and the services' own record is judged. At its end everything is healed and the
cluster must come to rest; then all that was recorded up to there is given to the checkers. The first finding ends the
campaign: what it left is kept, and the plan that led to it is printed, ready to be carried out again as a script.
"""

import contextlib
import heapq
import itertools
import json
import os
import random
import shutil
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from lab.examination import REST_S, Examination
from lab.exclusive_record import Violation
from lab.faults import CHANGES, KINDS, Fault, Faults, draw
from lab.histories import HistoryIncomplete, HistoryReader
from lab.judgement import Finding, Judgement
from lab.machines import LabCluster, make_cluster
from lab.patient import Patient, definitions, now_us
from lab.programs import Programs
from lab.sandbox import scratch
from muster.client.errors import ClientError
from muster.daemon.history.observations import DIRECTORY
from muster.setup.errors import Mistaken

LOOK_S = 0.05
SHOWN_FINDINGS = 5  # the others are in verdict.json
SHOWN_CHARACTERS = 240
HEAD_S = 1.0  # from the end of the last fault to healing what has not ended by itself
Plan = list[tuple[float, Fault]]  # seconds from the beginning of the round


class Settings(NamedTuple):
    """What a campaign is."""

    seed: int
    nodes: int
    profile: str
    output: Path  # where the histories of all campaigns are kept


class Campaign:
    """One cluster, and what is done to it."""

    def __init__(self, settings: Settings, cluster: LabCluster, directory: Path) -> None:
        self.settings, self.cluster, self.directory = settings, cluster, directory
        self.choices = random.Random(f"campaign {settings.seed}")
        self.faults = Faults(cluster, self.choices)
        locks = directory / "locks"
        locks.mkdir()
        record = directory / "record"
        services = definitions(cluster.names, cluster.service_program, record, locks)
        self.patient = Patient(cluster, self.faults, record, services)
        self.examination = Examination(cluster, self.patient, directory / "observations", record)
        self.judgement = self.examination.judgement
        self.done: dict[str, int] = {}  # faults that met something, by kind
        self.rounds = 0
        self.began_s = time.monotonic()
        self._diary = (directory / "faults.jsonl").open("a")

    @property
    def total(self) -> int:
        """Faults that met something, without what an operator does."""
        return sum(count for kind, count in self.done.items() if kind not in CHANGES)

    def close(self) -> None:
        """Let go of the files."""
        self._diary.close()
        self.patient.record.close()

    def settle(self, deadline_s: float = REST_S) -> bool:
        """Heal, wait for rest, judge; False where something is wrong."""
        self.faults.heal()
        return self.examination.settle(deadline_s, self.directory / "state")

    def run_round(self, plan: Plan) -> bool:
        """Carry a plan out, heal, and judge; False where something is wrong. Raises where the lab itself fails."""
        self.rounds += 1
        began_s = time.monotonic()
        try:
            self._carry_out(plan, began_s)
        except Violation as violation:
            self.examination.broken(violation)
        healed_s = time.monotonic()
        fine = self.settle()
        listed = "; ".join(str(fault) for _at_s, fault in plan)
        self._say(
            f"round {self.rounds:3}  {healed_s - began_s:4.1f} s + {time.monotonic() - healed_s:4.1f} s to rest"
            f"  {self.total:4} faults  {listed}"
        )
        return fine

    def _carry_out(self, plan: Plan, began_s: float) -> None:
        order = itertools.count()
        due: list[tuple[float, int, str, Callable[[], None]]] = []

        def at(moment_s: float, what: str, action: Callable[[], None]) -> None:
            heapq.heappush(due, (moment_s, next(order), what, action))

        for at_s, fault in plan:
            at(at_s, f"begin {fault}", lambda fault=fault: self._begin(fault))  # type: ignore[misc]
            if KINDS[fault.kind].end is not None:
                at(at_s + fault.duration_s, f"end {fault}", lambda fault=fault: self.faults.end(fault))  # type: ignore[misc]
        boot_s = began_s + self.choices.uniform(0.2, 2.0)
        while due:
            moment_s, _, what, action = due[0]
            wait_s = began_s + moment_s - time.monotonic()
            if wait_s <= 0:
                heapq.heappop(due)
                action()
                self._note(what)
                continue
            self.patient.record.read()
            if time.monotonic() >= boot_s:
                self.patient.boot_what_has_ended()
                boot_s = time.monotonic() + self.choices.uniform(0.1, 2.0)
            time.sleep(min(wait_s, LOOK_S))
        time.sleep(self.choices.choice((0.0, self.choices.uniform(0.0, HEAD_S))))

    def _begin(self, fault: Fault) -> None:
        if self.faults.begin(fault):
            self.done[fault.kind] = self.done.get(fault.kind, 0) + 1

    def _note(self, what: str) -> None:
        self._diary.write(json.dumps({"at_us": now_us(), "round": self.rounds, "what": what}) + "\n")
        self._diary.flush()

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began_s:7.1f}  {text}", flush=True)


def draw_plan(choices: random.Random, names: list[str]) -> Plan:
    """A random round: some faults, apart or on top of each other."""
    count = choices.choices((1, 2, 3, 4, 6), (2, 3, 3, 2, 1))[0]
    spread_s = choices.choice((0.2, 1.0, 3.0, 6.0))
    return sorted(
        ((choices.uniform(0.0, spread_s), draw(choices, names)) for _ in range(count)), key=lambda one: one[0]
    )


def run_random(settings: Settings, duration_s: float) -> bool:
    """A random campaign of at least `duration_s`; whether nothing was found. Raises `OSError`, `ClientError`."""
    with campaign(settings) as running:
        deadline_s = time.monotonic() + duration_s
        fine = True
        while fine and time.monotonic() < deadline_s:
            choices = random.Random(f"{settings.seed} {running.rounds + 1}")
            plan = draw_plan(choices, running.cluster.names)
            fine = running.run_round(plan)
            if not fine:
                _show_plan(plan, running)
        return report(running)


def run_script(settings: Settings, plan: Plan) -> bool:
    """One round as it was written; whether nothing was found. Raises as `run_random`."""
    with campaign(settings) as running:
        running.run_round(plan)
        return report(running)


def _show_plan(plan: Plan, running: Campaign) -> None:
    print(f"seed {running.settings.seed}, round {running.rounds}; the same again: python lab script FILE, with")
    for at_s, fault in plan:
        print(f"    {at_s:.3f} {fault}")


@contextlib.contextmanager
def campaign(settings: Settings) -> Iterator[Campaign]:
    """A cluster at rest, with services and programs; all of it is gone afterwards. Raises `OSError`, `ClientError`."""
    directory = _new_directory(settings)
    with contextlib.ExitStack() as ending:
        place = ending.enter_context(scratch())
        (directory / "observations").mkdir()
        environment = {DIRECTORY: str(directory / "observations")}
        cluster = make_cluster(place, settings.nodes, settings.profile, environment)
        ending.callback(cluster.close)
        ending.callback(_keep_logs, cluster, directory)
        running = Campaign(settings, cluster, directory)
        ending.callback(running.close)
        programs = Programs({name: cluster.socket(name) for name in cluster.names}, f"programs {settings.seed}")
        print(f"the history is kept in {directory}")
        print(
            f"{settings.nodes} nodes, profile {settings.profile}; late frames by {cluster.network.delays_by}",
            flush=True,
        )
        running.patient.boot_all(REST_S)
        programs.start()
        ending.callback(programs.stop)
        running.patient.apply_services()
        if not running.settle():
            report(running)
            what = "the cluster did not come to rest before the first fault"
            raise ClientError(what, str(directory), "read the logs and `state` there")
        yield running


def _new_directory(settings: Settings) -> Path:
    """Where this campaign's history goes: a run with the same seed takes nothing from an earlier one."""
    for number in itertools.count(1):
        directory = settings.output / (f"{settings.seed}" if number == 1 else f"{settings.seed}.{number}")
        with contextlib.suppress(FileExistsError):
            directory.mkdir(parents=True)
            return directory
    raise AssertionError


def _keep_logs(cluster: LabCluster, directory: Path) -> None:
    for name in cluster.names:
        with contextlib.suppress(OSError):
            shutil.copyfile(cluster.log(name), directory / f"{name}.log")


def report(running: Campaign) -> bool:
    """Print and write the verdict; whether nothing was found."""
    print(f"\n{'fault':16} {'number':>6}")
    for kind, known in KINDS.items():
        print(f"{kind:16} {running.done.get(kind, 0):6}  {known.words}")
    kinds = sum(1 for kind in running.done if kind not in CHANGES)
    seconds = time.monotonic() - running.began_s
    judgement, patient = running.judgement, running.patient
    for what in patient.mended:
        print(f"an operator had to {what}")
    for finding in judgement.findings[:SHOWN_FINDINGS]:
        show_finding(finding)
    observed = sum(judgement.counts.values())
    print(
        f"\n{running.total} faults of {kinds} kinds in {running.rounds} rounds, {seconds:.0f} s; {patient.boots} boots;"
        f" {observed} observations judged"
    )
    verdict = "no violation" if not judgement.findings else f"{len(judgement.findings)} findings"
    print(f"verdict: {verdict} (seed {running.settings.seed}; {running.directory})", flush=True)
    about: dict[str, object] = {
        "seed": running.settings.seed,
        "nodes": running.settings.nodes,
        "profile": running.settings.profile,
        "seconds": round(seconds, 1),
        "rounds": running.rounds,
        "faults": running.done,
        "boots": patient.boots,
        "mended": patient.mended,
        "load": os.getloadavg(),
    }
    judgement.write(running.directory / "verdict.json", about)
    return not judgement.findings


def judge_again(directory: Path) -> bool:
    """Give a kept history to the checkers of today, as a whole; whether nothing was found. Raises `Mistaken`."""
    try:
        about = json.loads((directory / "verdict.json").read_text())
        nodes = {f"n{number}": number for number in range(int(about["nodes"]))}
        reader = HistoryReader(directory / "observations", directory / "record", nodes)
        judgement = Judgement()
        judgement.take(reader.whole())
    except (OSError, ValueError, KeyError, HistoryIncomplete) as error:
        raise Mistaken(f"no history can be read: {error}", str(directory), "name a folder of build/lab") from error
    for finding in judgement.findings[:SHOWN_FINDINGS]:
        show_finding(finding)
    verdict = "no violation" if not judgement.findings else f"{len(judgement.findings)} findings"
    print(f"{sum(judgement.counts.values())} observations judged: {verdict} ({directory})")
    return not judgement.findings


def show_finding(finding: Finding) -> None:
    """What was found, and the observations before it."""
    print(f"\nVIOLATION of {finding.rule} at {finding.at_us / 1e6:.6f} s: {finding.message}")
    for line in finding.context:
        print(f"    {textwrap.shorten(line, SHOWN_CHARACTERS)}")
