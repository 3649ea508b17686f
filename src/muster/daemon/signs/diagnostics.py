"""What a node says of itself for a bug report: release, surroundings, timing, measures; no secret (SPEC 9.4)."""

import os
import platform
import sys
import time
from typing import Any

from muster.daemon.shell.daemon import Daemon, boottime_us
from muster.daemon.shell.releases import release
from muster.drivers.image.log_lines import FILE
from muster.drivers.store.disk.sectors import FORMATS
from muster.records.messages import WIRE_VERSIONS


def diagnostics(daemon: Daemon) -> dict[str, Any]:
    """The answer to the query `diagnostics`, without its head."""
    node = daemon.node
    return {
        "release": release(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "kernel": platform.release(),
        "wire_versions": list(WIRE_VERSIONS),
        "disk_format": FORMATS[-1],
        "process": os.getpid(),
        "incarnation": node.incarnation,
        "started_ms_ago": (boottime_us() - daemon.started_us) // 1000,
        "boottime_us": boottime_us(),
        "time": time.time(),
        "store": daemon.store_path,
        "home": str(daemon.home),
        "log_file": os.environ.get(FILE),
        "profile": node.setup.profile._asdict(),
        "scope": "host" if node.setup.one_machine else "shared",
        "measures": daemon.measures.document(),
    }
