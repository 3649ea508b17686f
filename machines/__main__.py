"""`python machines`: see `command_line.py`."""

import sys
from pathlib import Path

if not __package__:  # run as `python machines`: the folder itself stands first on the path then
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from machines.command_line import main

if __name__ == "__main__":
    main()
