"""The lockspaces that the kernel of this machine has: what has one has not ended (P12.34).

A file system on such a lockspace may still write what it had in memory, long after the last process of its node has
gone. So a node does not say that it has ended, and a later one does not begin, while the kernel has one. /sys is no
disk, and is always there. Standard library only.
"""

import os

PLACE = "/sys/kernel/dlm"


def held(place: str = PLACE) -> list[str]:
    """Their names, whoever made them."""
    try:
        return sorted(os.listdir(place))
    except OSError:
        return []
