"""`python machines`: a developer's tool; everything runs in namespaces of its own and needs root.

python machines [--minutes M] [--seed N]       the script, then random faults for so long
python machines --short                        one boot, one power cut, one storage stall
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

from lab.machines import ROOT
from lab.sandbox import LabRefused, missing
from machines.campaign import Settings
from machines.faults import KINDS
from machines.machine import MachineFailed
from machines.next_package import next_package
from machines.run import carry_out
from machines.script import LAST, PARTS, SHORT
from muster.client.errors import ClientError
from muster.setup.errors import Mistaken

EXIT_FOUND, EXIT_REFUSED, EXIT_INTERRUPTED = 1, 3, 130
TOOLS = {"systemd-nspawn": "systemd-container", "mmdebstrap": "mmdebstrap", "nsenter": "util-linux"}
BUDGETS_S = {True: 420.0, False: 900.0}  # short, whole; random faults come on top
S_PER_MINUTE = 60


def main() -> None:
    """Entry of `python machines`: 0 nothing found, 1 a violation, 2 a mistake in the command, 3 it cannot run here."""
    options = _parse()
    if options.kinds:
        for kind, known in KINDS.items():
            print(f"{kind:14} {known.words}")
        return
    try:
        fine = carry_out(_settings(options))
    except Mistaken as error:
        _fail(f"{error.what} ({error.where}): {error.next_step}", EXIT_REFUSED)
    except ClientError as error:
        _fail(f"{error.what}\n{error.where}\n{error.next_step}", EXIT_REFUSED)
    except (LabRefused, MachineFailed, OSError) as error:
        _fail(str(error), EXIT_REFUSED)
    except KeyboardInterrupt:
        _fail("interrupted; what was recorded is kept, and not judged to its end", EXIT_INTERRUPTED)
    else:
        raise SystemExit(0 if fine else EXIT_FOUND)


def _fail(text: str, status: int) -> None:
    print(f"machines: {text}", file=sys.stderr, flush=True)
    raise SystemExit(status)


def _settings(options: argparse.Namespace) -> Settings:
    """Raises `LabRefused` where it cannot run here."""
    if reason := missing() or _missing():
        raise LabRefused(reason)
    parts = (
        tuple(options.parts.split(",")) if options.parts is not None else SHORT if options.short else (*PARTS, *LAST)
    )
    if unknown := set(parts) - {*PARTS, *LAST, ""}:
        raise LabRefused(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    package = options.package or _newest_package()
    budget_s = BUDGETS_S[options.short] + options.minutes * S_PER_MINUTE
    listed = tuple(part for part in parts if part)
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    following = next_package(package, output) if "upgrade" in listed else package
    return Settings(options.seed, options.minutes, listed, package.resolve(), following, output, budget_s)


def _missing() -> str:
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        packages = " ".join(sorted({TOOLS[tool] for tool in absent}))
        return f"machines need {', '.join(absent)}: apt-get install {packages}"
    if not os.path.exists("/dev/loop-control"):
        return "machines need loop devices: load the kernel module loop"
    if "overlay" not in Path("/proc/filesystems").read_text():
        return "machines need overlay file systems: load the kernel module overlay"
    return ""


def _newest_package() -> Path:
    found = sorted((ROOT / "build/dist").glob("*.deb"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise LabRefused("there is no package: make dist")
    newest = max(path.stat().st_mtime for path in (ROOT / "src").rglob("*.py"))
    if newest > found[-1].stat().st_mtime:
        raise LabRefused(f"{found[-1]} is older than the source, which the checkers are of: make dist")
    return found[-1]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="machines", description="Debian systems that lose power, links and storage.")
    parser.add_argument("--minutes", type=float, default=0.0, metavar="M", help="random faults for so long [0]")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="names the choices and the history [1]")
    parser.add_argument("--short", action="store_true", help=f"only the parts {' and '.join(SHORT)} of the script")
    parser.add_argument(
        "--parts", metavar="PART,...", help=f"parts of the script, or none [{','.join((*PARTS, *LAST))}]"
    )
    parser.add_argument("--package", type=Path, metavar="FILE", help="the Debian package [the newest of build/dist]")
    output = ROOT / "build" / "machines"
    parser.add_argument("--output", type=Path, default=output, metavar="DIR", help="keep all there [build/machines]")
    parser.add_argument("--kinds", action="store_true", help="list the faults that there are")
    return parser.parse_args()
