"""Runs the measurements that were asked for, one after the other, prints a table of each, writes all runs as JSON.

    python bench [--scale whole|quick|least] [--only NAME ...] [--json FILE] [--directory DIR]

Everything that is started runs below one temporary directory and is ended and removed in the end, also after Ctrl-C or
SIGTERM. The exit status is 1 if a run failed; a target that is missed is shown, and is no failure of the benchmark.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import (
    crashes,
    idle,
    joins,
    lab_power_cuts,
    lock_machine,
    locks,
    machine,
    moves,
    placements,
    simulated_joins,
    slots,
    store,
)
from bench.figures import Measurement, table
from bench.scales import SCALES, Scale
from muster.client.errors import ClientError
from muster.dev.endings import undisturbed, unwinding

FORMAT = 1
Measure = Callable[[Scale, Path, Measurement], None]
MEASUREMENTS: dict[str, tuple[str, Measure]] = {
    "store": ("a commit, an election, a read of all registers, on a store of its own", store.measure),
    "slots": ("what grows with a store's slots: reads and the guard's memory", slots.measure),
    "power-cut": ("outage when the serving node loses its power, and its parts", moves.measure_power_cuts),
    "lab-power-cut": ("the same in the network lab: link down, then kill; needs root", lab_power_cuts.measure),
    "leave": ("graceful leave of the serving node", moves.measure_leaves),
    "cold-boot": ("from starting musterd on three nodes to all services started", moves.measure_cold_boots),
    "crash": ("from SIGKILL to a supervised program until it is acted upon and runs again", crashes.measure),
    "idle": ("CPU seconds a minute and memory of a node that has nothing to do", idle.measure),
    "steady": ("evictions of healthy nodes, idle and beside four busy loops", idle.measure_steadiness),
    "joins": ("nodes that join together through three levels of 50 ms work each", joins.measure),
    "transition": ("one join and one leave through five levels without work", joins.measure_transition),
    "placement": ("choosing nodes for many services, and deciding to start them all", placements.measure),
    "lock-machine": ("the lock manager's rules alone: a pair, memory, a recovery", lock_machine.measure),
    "locks": ("pairs of lock and unlock, one lock handed around, recovery, beside etcd", locks.measure),
    "simulated-joins": ("the same as joins, many nodes, in the simulator", simulated_joins.measure),
}
LABORATORIES = {  # what needs machines of its own, and how it is measured, in the same form
    "vms-watchdog": ("outage of what a machine ran that its watchdog resets", "make vms-watchdog"),
}


def main() -> None:
    """Entry of `python bench`."""
    options = _parse()
    scale = SCALES[options.scale]
    with unwinding():
        directory = Path(tempfile.mkdtemp(prefix="muster-bench-", dir=options.directory))
        try:
            failed = _run(scale, options.only or list(MEASUREMENTS), directory, options.json)
        finally:
            with undisturbed():
                shutil.rmtree(directory, ignore_errors=True)
    raise SystemExit(1 if failed else 0)


def _parse() -> argparse.Namespace:
    listed = "\n".join(f"  {name:16} {text}" for name, (text, _) in MEASUREMENTS.items())
    listed += "".join(f"\n  {name:16} {text}: {command}" for name, (text, command) in LABORATORIES.items())
    parser = argparse.ArgumentParser(
        prog="bench",
        description="Measure Muster on this machine.",
        epilog=f"measurements:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scale", choices=SCALES, default="whole", help="how much is measured [whole]")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, metavar="NAME", help="only these measurements")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run here")
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="put the stores below DIR, on the disk to measure"
    )
    options = parser.parse_args()
    if options.json is not None and not options.json.resolve().parent.is_dir():
        parser.error(f"--json {options.json}: there is no directory {options.json.resolve().parent}; make it first")
    if options.directory is not None and not options.directory.is_dir():
        parser.error(f"--directory {options.directory}: there is no such directory; make it first")
    return options


def _run(scale: Scale, names: list[str], directory: Path, json_path: Path | None) -> bool:
    """Carry out the measurements; whether anything failed. What there is is written after each of them."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "scale": scale.name,
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(directory),
        "measurements": [],
    }
    about = document["machine"]
    print(
        f"{about['cores']} cores ({about['processor']}), kernel {about['kernel']}, Python {about['python']}, "
        f"store on {about['file_system']}; scale {scale.name}"
    )
    failed = False
    for name in names:
        measurement = _measure(name, scale, directory)
        failed = failed or bool(measurement.failures) or not measurement.figures
        document["measurements"].append(measurement.document())
        if json_path is not None:
            json_path.write_text(json.dumps(document, indent=1) + "\n")
        print()
        print("\n".join(table(measurement)), flush=True)
        before, after = measurement.notes["load_before"], measurement.notes["load_after"]
        print(f"  ({measurement.notes['seconds']} s; load {before} before, {after} after)", flush=True)
    return failed


def _measure(name: str, scale: Scale, directory: Path) -> Measurement:
    measurement = Measurement(name)
    place = directory / name
    place.mkdir()
    before, began_s = machine.load(), time.monotonic()
    try:
        MEASUREMENTS[name][1](scale, place, measurement)
    except (ClientError, OSError, TimeoutError) as error:
        measurement.failed(f"{type(error).__name__}: {error}")
    measurement.notes = {
        "seconds": round(time.monotonic() - began_s, 1),
        "load_before": before,
        "load_after": machine.load(),
    }
    return measurement
