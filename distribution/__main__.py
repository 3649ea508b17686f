"""`python distribution`: write all of it, as `make dist` does; see `build.py`."""

import sys
from pathlib import Path

if not __package__:  # run as `python distribution`: the folder itself stands first on the path then
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from distribution.build import main

if __name__ == "__main__":
    main()
