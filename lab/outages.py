"""Outages of a power cut in the lab, for the benchmark: the link goes down, then the node is killed.

Nobody hears of the end: a node that is killed on one kernel resets its connections, which the others hear at once; one
whose power is cut says nothing. The measurement is that of `bench/moves.py`, on nodes in namespaces of their own, with
the store as a plain file.
"""

from pathlib import Path

import msgspec

from bench.announcements import boottime_us
from bench.cluster import Rig
from bench.figures import Figure, Measurement
from bench.moves import measure_cases_of_power_cuts
from bench.scales import SCALES
from lab.machines import LabCluster, make_cluster


class Found(msgspec.Struct):
    """What a run of the lab has measured, for the benchmark that asked for it."""

    figures: list[Figure]
    failures: list[str]


class LabRig(Rig):
    """A cluster in the lab's namespaces."""

    def cut_power(self, name: str) -> int:
        """Link down, then SIGKILL; when that began. Raises `ClientError`, `OSError`."""
        assert isinstance(self.cluster, LabCluster)
        at_us = boottime_us()
        self.cluster.cut_power(name)
        return at_us


def _make(directory: Path, nodes: int, profile: str) -> LabCluster:
    directory.mkdir()
    return make_cluster(directory, nodes, profile, {}, faulty_stores=False)


def measure(scale: str, directory: Path, output: Path) -> bool:
    """Measure at this scale; whether nothing failed. Raises `OSError`, `ClientError`."""
    measurement = Measurement("lab-power-cut")
    measure_cases_of_power_cuts(SCALES[scale].lab_power_cuts, directory, measurement, _make, LabRig)
    output.write_bytes(msgspec.json.encode(Found(measurement.figures, measurement.failures)))
    return not measurement.failures
