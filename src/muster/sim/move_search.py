"""`python -m muster.sim.move_search`: an entry over `sim/search/move_search.py` (docs/ARCHITECTURE.md)."""

import sys

from muster.sim.search.move_search import main

if __name__ == "__main__":
    sys.exit(main())
