"""`python lab`: see `command_line.py`."""

import sys
from pathlib import Path

if not __package__:  # run as `python lab`: the folder itself stands first on the path then
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from lab.command_line import main

if __name__ == "__main__":
    main()
