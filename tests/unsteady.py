"""Run again, alone, the few tests that failed in a whole run: `.ci/run` calls this, `make test` does not.

    MUSTER_FAILURES=FILE make test || .venv/bin/python tests/unsteady.py FILE

Thousands of tests, hundreds of them with real nodes, share two cores with whatever else the machine does. A test
that loses a race once in a thousand runs would hold up work that has nothing to do with it. So up to `MOST` failed
tests are run again, each `TIMES` times, and every time they must pass. What was unsteady is named at the end: it is
a fault, of the test or of Muster, and whoever reads its name mends it. More failures than that, a run that did not
come to its end, and a skip where nothing may be skipped stay what they are: red. FILE is written by `conftest.py`
at the end of a run with failed tests only.
"""

import os
import subprocess
import sys
from pathlib import Path

MOST = 4  # more tests than this fail for one reason
TIMES = 3


def main(file: Path) -> int:
    """0 if the tests that `file` names pass now, each time; 1 if not, or if there is nothing that may be run again."""
    failed = file.read_text().splitlines() if file.exists() else []
    if not 0 < len(failed) <= MOST:
        print(f"unsteady: {len(failed)} failed tests are known; 1 to {MOST} are run again", file=sys.stderr)
        return 1
    environment = {name: value for name, value in os.environ.items() if name != "MUSTER_FAILURES"}
    for turn in range(1, TIMES + 1):
        print(f"unsteady: run {turn} of {TIMES}: {' '.join(failed)}", flush=True)
        # a list of arguments, and each test by its whole name
        if subprocess.run([sys.executable, "-m", "pytest", "-m", "", *failed], env=environment, check=False).returncode:
            return 1
    for name in failed:
        print(f"UNSTEADY: {name} failed in the whole run and passed {TIMES} times alone; find out why")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
