"""How soon the crash of a supervised program is acted upon: SIGKILL to it, on an otherwise idle cluster (SPEC 5.4).

Each run kills the program of a `run` service and takes, from then on, when

    noticed      the node's daemon heard of it
    acted_upon   its node was told to stop the service: the first command that the failure policy gives
    executed     the new program said that it runs
    registered   the service was registered again
"""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

from bench.announcements import boottime_us
from bench.cluster import Rig, repeated, rig, settle
from bench.figures import Measurement
from bench.scales import Scale
from muster.client.errors import ClientError

SERVICE = "supervised"
NODES = 3
SETTLE_S = 1.0
US_PER_MS = 1000
_PROGRAM = 'echo "$MUSTER_SERVICE $MUSTER_NODE $MUSTER_GENERATION" >"$1"; exec sleep 86400'
_EVENTS = {"program ended": "noticed_ms", "service stopping": "acted_upon_ms", "service registered": "registered_ms"}

Document = dict[str, Any]


def measure(scale: Scale, directory: Path, measurement: Measurement) -> None:
    """Crashes on the node that is master and on one that is not."""
    for role in ("master", "other"):
        title = f"{NODES} nodes, fast, program on {'the master' if role == 'master' else 'another'}"
        make = partial(rig, directory, NODES)
        repeated(scale.crash_runs, make, partial(_crash, role, title, measurement), measurement, title)


def _crash(role: str, title: str, measurement: Measurement, rig_: Rig) -> None:
    master = rig_.master()
    node = master if role == "master" else next(name for name in rig_.names if name != master)
    services = rig_.status()["services"]
    if SERVICE not in services or services[SERVICE]["node"] != node:
        _define(rig_, node)
    settle(SETTLE_S)
    index = int(rig_.status()["index"])
    pid = _program()
    killed_us = boottime_us()
    os.kill(pid, signal.SIGKILL)
    executed_us = rig_.await_services([SERVICE], killed_us)
    rig_.until("its registration", lambda: len(_times(rig_, node, index, killed_us)) == len(_EVENTS))
    found = {"executed_ms": (executed_us - killed_us) / US_PER_MS}
    for event, at_us in _times(rig_, node, index, killed_us).items():
        found[_EVENTS[event]] = (at_us - killed_us) / US_PER_MS
    measurement.add_all(title, found)


def _define(rig_: Rig, node: str) -> None:
    program = ["/bin/sh", "-c", _PROGRAM, "sh", str(rig_.announcements.path)]
    definition = {
        "name": SERVICE, "allowable_nodes": [node], "run": program, "restarts": 100, "restart_window_ms": 1000,
    }  # fmt: skip
    began_us = boottime_us()
    rig_.cluster.connection().operate("apply", definitions=[definition], withdraw=[])
    rig_.await_services([SERVICE], began_us)
    rig_.await_registered([SERVICE])


def _times(rig_: Rig, node: str, index: int, since_us: int) -> dict[str, int]:
    """When each event was first recorded on the service's node."""
    found: dict[str, int] = {}
    for event in rig_.timeline(index, since_us):
        if event["node"] == node and event["event"] in _EVENTS and str(event["detail"]).startswith(SERVICE):
            found.setdefault(str(event["event"]), int(event["at_us"]))
    return found


def _program() -> int:
    """The process of the service. Raises `ClientError`."""
    wanted = f"MUSTER_SERVICE={SERVICE}".encode()
    for name in os.listdir("/proc"):
        try:
            if not name.isdigit() or Path(f"/proc/{name}/comm").read_bytes() != b"sleep\n":
                continue
            if wanted in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                return int(name)
        except OSError:
            continue  # it has just ended, or is another user's
    raise ClientError(f"no process of {SERVICE} is found", "/proc", "see the log of its node")
