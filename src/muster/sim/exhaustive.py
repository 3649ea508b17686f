"""`python -m muster.sim.exhaustive`: an entry over `sim/search/exhaustive.py` (docs/ARCHITECTURE.md)."""

import sys

from muster.sim.search.exhaustive import main

if __name__ == "__main__":
    sys.exit(main())
