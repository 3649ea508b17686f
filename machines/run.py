"""One whole run: the root, the sandbox, the machines, the script, random faults, the verdict."""

import contextlib
import itertools
import os
import random
import subprocess
import time
from pathlib import Path

from lab.campaign import SHOWN_FINDINGS, show_finding
from lab.programs import Programs
from lab.sandbox import enter, scratch
from machines.base_root import base_root
from machines.campaign import Campaign, Plan, Settings
from machines.faults import KINDS, draw
from machines.machine import MachineFailed, enter_groups, remove_stale_groups
from machines.script import LAST, PARTS, set_up
from machines.systems import Systems
from muster.client.errors import ClientError

SHARED = Path("/run/shared")
GROUP_PREFIX = "muster-lab-"
S_PER_MINUTE = 60


def carry_out(settings: Settings) -> bool:
    """All of it; whether nothing was found. Raises `LabRefused`, `MachineFailed`, `ClientError`, `OSError`."""
    began_s = time.monotonic()
    base, is_new = base_root(settings.output)
    made_s = time.monotonic() - began_s
    enter()
    enter_groups()
    with contextlib.ExitStack() as ending:
        place = ending.enter_context(scratch(settings.output))
        remove_stale_groups(GROUP_PREFIX, place.name)
        directory = _new_directory(settings)
        SHARED.mkdir()
        subprocess.run(["mount", "--bind", str(directory), str(SHARED)], check=True)
        systems = Systems(base, place, SHARED)
        ending.callback(systems.close)
        run = Campaign(settings, systems, directory, began_s)
        ending.callback(run.close)
        run.say(f"the history is kept in {directory}")
        run.say(f"the root is {'made, in' if is_new else 'there, after'} {made_s:.1f} s: {base.name}")
        systems.make(settings.package)
        try:
            _carry_out(run, ending)
        except (MachineFailed, ClientError) as error:
            run.judgement.add("Soundness", str(error), 0)
        return report(run)


def _carry_out(run: Campaign, ending: contextlib.ExitStack) -> None:
    """Raises `MachineFailed`, `ClientError`, `OSError`."""
    set_up(run)
    programs = Programs({name: run.systems.socket(name) for name in run.systems.names}, f"programs {run.settings.seed}")
    programs.start()
    ending.callback(programs.stop)
    run.begin_services()
    for part in (each for each in run.settings.scripted if each in PARTS):
        if wrong := PARTS[part](run):
            run.judgement.add(part, wrong, 0)
        if run.judgement.findings:
            return
    deadline_s = time.monotonic() + run.settings.minutes * S_PER_MINUTE
    while time.monotonic() < deadline_s:
        plan = draw_plan(random.Random(f"{run.settings.seed} {run.rounds + 1}"), run.systems.names)
        if not run.run_round(plan):
            return
    for part in (each for each in run.settings.scripted if each in LAST):
        if wrong := LAST[part](run):
            run.judgement.add(part, wrong, 0)
            return


def draw_plan(choices: random.Random, names: list[str]) -> Plan:
    """A random round: some faults, apart or on top of each other."""
    count = choices.choices((1, 2, 3), (4, 3, 2))[0]
    spread_s = choices.choice((0.2, 2.0, 8.0))
    return sorted(
        ((choices.uniform(0.0, spread_s), draw(choices, names)) for _ in range(count)), key=lambda one: one[0]
    )


def _new_directory(settings: Settings) -> Path:
    """Where this run's history goes: a run with the same seed takes nothing from an earlier one."""
    for number in itertools.count(1):
        directory = settings.output / (f"{settings.seed}" if number == 1 else f"{settings.seed}.{number}")
        with contextlib.suppress(FileExistsError):
            directory.mkdir(parents=True)
            return directory
    raise AssertionError


def report(run: Campaign) -> bool:
    """Print and write the verdict; whether nothing was found."""
    judgement, patient = run.judgement, run.patient
    for kind, known in KINDS.items():
        if kind in run.done:
            print(f"{kind:14} {run.done[kind]:4}  {known.words}")
    for what in patient.mended:
        print(f"an operator had to {what}")
    for finding in judgement.findings[:SHOWN_FINDINGS]:
        show_finding(finding)
    seconds = time.monotonic() - run.began_s
    print(f"\n{sum(run.done.values())} faults, {sum(judgement.counts.values())} observations judged")
    over = " OVER ITS BUDGET" if seconds > run.settings.budget_s else ""
    print(f"{seconds:.0f} s of {run.settings.budget_s:.0f} s{over}")
    verdict = "no violation" if not judgement.findings else f"{len(judgement.findings)} findings"
    print(f"verdict: {verdict} (seed {run.settings.seed}; {run.directory})", flush=True)
    about: dict[str, object] = {
        "seed": run.settings.seed,
        "nodes": len(run.systems.names),
        "seconds": round(seconds, 1),
        "rounds": run.rounds,
        "faults": run.done,
        "mended": patient.mended,
        "load": os.getloadavg(),
    }
    judgement.write(run.directory / "verdict.json", about)
    return not judgement.findings
