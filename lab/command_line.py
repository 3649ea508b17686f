"""`python lab`: a developer's tool; everything runs in namespaces of its own and needs root.

python lab random [--minutes M] [--seed N]     a random campaign
python lab script FILE                         one round as written: lines `SECONDS FAULT`, `-` for standard input
python lab kinds                               the faults, and how they are written
"""

import argparse
import sys
from pathlib import Path

from lab.campaign import Plan, Settings, judge_again, run_random, run_script
from lab.faults import KINDS, parse_fault, written
from lab.machines import ROOT
from lab.sandbox import LabRefused, enter
from muster.client.errors import ClientError
from muster.records.timing import PROFILES
from muster.setup.errors import Mistaken

EXIT_FOUND, EXIT_USAGE, EXIT_REFUSED, EXIT_INTERRUPTED = 1, 2, 3, 130
MAXIMUM_NODES = 8


def main() -> None:
    """Entry of `python lab`: 0 nothing found, 1 a violation, 2 a mistake in the command, 3 the lab cannot run."""
    options = _parse()
    if options.what == "kinds":
        _show_kinds()
        return
    try:
        fine = _carry_out(options)
    except Mistaken as error:
        _fail(f"{error.what} ({error.where}): {error.next_step}", EXIT_USAGE)
    except ClientError as error:
        _fail(f"{error.what}\n{error.where}\n{error.next_step}", EXIT_REFUSED)
    except (LabRefused, OSError) as error:
        _fail(str(error), EXIT_REFUSED)
    except KeyboardInterrupt:
        _fail("interrupted; what was recorded is kept, and not judged to its end", EXIT_INTERRUPTED)
    else:
        raise SystemExit(0 if fine else EXIT_FOUND)


def _carry_out(options: argparse.Namespace) -> bool:
    """Do what was asked for, mostly in the sandbox; whether nothing was found."""
    if options.what == "outages":
        from lab.outages import measure

        enter()
        return measure(options.scale, options.directory.resolve(), options.output.resolve())
    if options.what == "judge":
        return judge_again(options.directory)
    plan = _read_plan(options.file, _names(options.nodes)) if options.what == "script" else []
    settings = Settings(options.seed, options.nodes, options.profile, options.output.resolve())
    enter()
    return run_script(settings, plan) if options.what == "script" else run_random(settings, _duration_s(options))


def _fail(text: str, status: int) -> None:
    print(f"lab: {text}", file=sys.stderr)
    raise SystemExit(status)


def _names(nodes: int) -> list[str]:
    return [f"n{number}" for number in range(nodes)]


def _duration_s(options: argparse.Namespace) -> float:
    return float(options.seconds if options.seconds is not None else options.minutes * 60)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lab", description="Real daemons in network namespaces under real faults.")
    commands = parser.add_subparsers(dest="what", required=True)
    random = commands.add_parser("random", help="a random campaign")
    random.add_argument("--minutes", type=_positive, default=5.0, metavar="M", help="how long [5]")
    random.add_argument("--seconds", type=_positive, metavar="S", help="the same, shorter")
    script = commands.add_parser("script", help="one round of faults as written")
    script.add_argument(
        "file", metavar="FILE", help="lines `SECONDS FAULT`, see `python lab kinds`; - reads standard input"
    )
    for command in (random, script):
        command.add_argument("--seed", type=int, default=1, metavar="N", help="names the choices and the history [1]")
        command.add_argument("--nodes", type=_count, default=3, metavar="N", help="how many nodes [3]")
        command.add_argument("--profile", choices=PROFILES, default="fast", help="the cluster's latency profile [fast]")
        output = ROOT / "build" / "lab"
        command.add_argument(
            "--output", type=Path, default=output, metavar="DIR", help="keep histories here [build/lab]"
        )
    outages = commands.add_parser("outages", help="measure power cuts, for the benchmark")
    outages.add_argument(
        "--scale", default="quick", metavar="SCALE", help="how much, as `python bench --scale` [quick]"
    )
    outages.add_argument("--directory", type=Path, default=Path(), metavar="DIR", help="put the stores below DIR [.]")
    outages.add_argument("--output", type=Path, required=True, metavar="FILE", help="write the figures here")
    judge = commands.add_parser("judge", help="judge a kept history again")
    judge.add_argument("directory", type=Path, metavar="DIR", help="as build/lab/1")
    commands.add_parser("kinds", help="the faults that there are")
    return parser.parse_args()


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is no duration: give a number above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if not 2 <= value <= MAXIMUM_NODES:
        raise argparse.ArgumentTypeError(f"{text} nodes: choose 2 to {MAXIMUM_NODES}")
    return value


def _show_kinds() -> None:
    for kind, known in KINDS.items():
        print(f"{written(kind):42} {known.words}")
    print(
        "\nNODES: n0, or several as n0,n1, or all. A script has lines as `1.5 cut n0 for 2`: 1.5 s after its beginning."
    )


def _read_plan(file: str, names: list[str]) -> Plan:
    """The script. Raises `Mistaken`, `OSError`."""
    text = sys.stdin.read() if file == "-" else Path(file).read_text()
    plan: Plan = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        where = f"{file}, line {number}"
        try:
            at_s = float(words[0])
        except ValueError as error:
            raise Mistaken(
                f"{words[0]!r} is no moment", where, "begin the line with seconds, as `1.5 cut n0 for 2`"
            ) from error
        plan.append((at_s, parse_fault(words[1:], names, where)))
    if not plan:
        raise Mistaken("there is nothing to do", file, "write lines `SECONDS FAULT`; see `python lab kinds`")
    return sorted(plan, key=lambda one: one[0])
