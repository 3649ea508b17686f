"""`python -m muster.sim.transition_search`: an entry over `sim/search/transition_search.py` (docs/ARCHITECTURE.md)."""

import sys

from muster.sim.search.transition_search import main

if __name__ == "__main__":
    sys.exit(main())
