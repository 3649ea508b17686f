"""Power cuts in the network lab (link down, then kill): `lab/outages.py` in a process of its own, in its namespaces."""

import subprocess
import sys
from pathlib import Path

import msgspec

from bench.figures import Measurement
from bench.scales import Scale
from lab.outages import Found
from lab.sandbox import missing

LAB = Path(__file__).resolve().parents[1] / "lab"


def measure(scale: Scale, directory: Path, measurement: Measurement) -> None:
    """Outages and their parts, as `moves.measure_power_cuts`."""
    if reason := missing():
        measurement.failed(reason)
        return
    output = directory / "figures.json"
    command = [sys.executable, str(LAB), "outages", "--scale", scale.name]
    command += ["--directory", str(directory), "--output", str(output)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as lab:
        try:
            _nothing, errors = lab.communicate()
        finally:
            lab.terminate()  # whatever interrupts this ends the lab, which takes everything of its own along
    if not output.exists():
        measurement.failed(f"the lab ended with status {lab.returncode}: {errors.strip()}")
        return
    found = msgspec.json.decode(output.read_bytes(), type=Found)
    for figure in found.figures:
        for value in figure.runs:
            measurement.add(figure.case, figure.quantity, value)
    for failure in found.failures:
        measurement.failed(failure)
