"""`python -m muster.drivers.guard`: an entry over `drivers/image/guard.py` (docs/ARCHITECTURE.md)."""

from muster.drivers.image.guard import main

if __name__ == "__main__":
    main()
