"""`python -m lab.vms`: a developer's tool; needs root and QEMU. Everything runs in namespaces of its own.

python -m lab.vms                            a short run: a boot, a power cut, a stall
python -m lab.vms random --minutes M         a random campaign
python -m lab.vms watchdog --runs N          a watchdog behind each lease, which resets what hangs; its figures
python -m lab.vms kernel-locks               GFS2 on the kernel's locks, power cuts, rejoins
python -m lab.vms images                     only make the base, for later
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator

from bench.figures import Measurement, table
from lab.sandbox import LabRefused
from lab.vms import kernel_locks_run, short_run, watchdog_run
from lab.vms.campaign import Campaign
from lab.vms.images import make_base
from lab.vms.laboratory import BUILD, Laboratory, Settings, laboratory, missing

EXIT_FOUND, EXIT_REFUSED, EXIT_INTERRUPTED = 1, 3, 130
BUDGET_S = 12 * 60.0  # of the short run, on two cores without hardware virtualisation


class Progress:
    """Lines with the time since the beginning."""

    def __init__(self) -> None:
        self.began_s = time.monotonic()

    def __call__(self, text: str) -> None:
        """Print a line."""
        print(f"{time.monotonic() - self.began_s:7.1f} s  {text}", flush=True)


def main() -> None:
    """Entry: 0 all went well, 1 it did not, 2 a mistake in the command, 3 the laboratory cannot run."""
    options = _parse()
    tell = Progress()
    try:
        _carry_out(options, tell)
    except LabRefused as error:
        _fail(str(error), EXIT_REFUSED)
    except (OSError, RuntimeError) as error:
        _fail(str(error), EXIT_FOUND)
    except KeyboardInterrupt:
        _fail("interrupted", EXIT_INTERRUPTED)


def _carry_out(options: argparse.Namespace, tell: Progress) -> None:
    if options.what == "images":
        if reason := missing():
            raise LabRefused(reason)
        make_base(BUILD, tell)
        return
    disks = (kernel_locks_run.DISK,) if options.what == "kernel-locks" else ()
    settings = Settings(profile=options.profile or "virtualised", accelerator=options.accelerator, disks=disks)
    if options.what == "watchdog":
        timers = watchdog_run.TIMERS.get(settings.profile, ())
        settings = settings._replace(machines=watchdog_run.MACHINES, timers=timers)
    with laboratory(settings, tell) as lab, _accounted(lab):
        if options.what == "random":
            _random(lab, options, tell)
        elif options.what == "kernel-locks":
            kernel_locks_run.run(lab)
            tell("all went well")
        elif options.what == "watchdog":
            _watchdog(lab, options, tell)
        else:
            print(f"a short run; its budget is {BUDGET_S / 60:.0f} minutes", flush=True)
            short_run.run(lab)
            tell("all went well")


@contextlib.contextmanager
def _accounted(lab: Laboratory) -> Iterator[None]:
    """Where something fails, what each node says of itself is told before it goes."""
    try:
        yield
    except (OSError, RuntimeError):
        print(lab.account(), flush=True)
        raise


def _random(lab: Laboratory, options: argparse.Namespace, tell: Progress) -> None:
    kept = BUILD / f"campaign-{options.seed}.jsonl"
    kept.write_text("")
    lab.boot_all()
    lab.form_cluster()
    lab.start_service()
    Campaign(lab, options.seed, kept).run(options.minutes * 60)
    tell(f"no violation; the rounds are in {kept}")


def _watchdog(lab: Laboratory, options: argparse.Namespace, tell: Progress) -> None:
    measured = Measurement(watchdog_run.MEASUREMENT)
    try:
        watchdog_run.run(lab, measured, options.runs)
    finally:
        _keep(measured)
    tell("all went well")


def _keep(measured: Measurement) -> None:
    """Print what was measured, as `make bench` prints it, with what else this machine had to do; keep it as JSON."""
    measured.about = f"emulated machines on {os.cpu_count()} processors, load {os.getloadavg()[2]:.1f}"
    print("\n".join(table(measured)), flush=True)
    (BUILD / f"{measured.name}.json").write_text(json.dumps(measured.document(), indent=1) + "\n")


def _fail(text: str, status: int) -> None:
    print(f"vms: {text}", file=sys.stderr)
    raise SystemExit(status)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lab.vms", description="Muster's package in virtual machines, under faults.")
    parser.add_argument("--profile", help="the cluster's latency profile [virtualised]")
    parser.add_argument(
        "--accelerator", choices=("tcg", "kvm"), default="tcg", help="tcg works everywhere; kvm where there is /dev/kvm"
    )
    commands = parser.add_subparsers(dest="what")
    commands.add_parser("short", help="a boot, a power cut, a stall [this]")
    watchdog = commands.add_parser("watchdog", help="a watchdog behind each lease, which resets what hangs")
    watchdog.add_argument("--runs", type=int, default=1, metavar="N", help="of each outage [1]")
    commands.add_parser("kernel-locks", help="GFS2 on the kernel's lock manager, a power cut, a rejoin")
    commands.add_parser("images", help="only make the base, for later")
    random = commands.add_parser("random", help="a random campaign")
    random.add_argument("--minutes", type=float, default=20.0, metavar="M", help="how long [20]")
    random.add_argument("--seed", type=int, default=1, metavar="N", help="names the choices [1]")
    return parser.parse_args()
