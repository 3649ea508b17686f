"""`python -m muster.drivers.filesystem`: mounts and unmounts a failover file system (`drivers/volumes/run.py`)."""

import sys

from muster.drivers.volumes.run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
