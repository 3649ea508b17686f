"""What a person, or the power company, does for the machines under study: as little as can be, all of it counted."""

import contextlib
import time
from pathlib import Path
from typing import Any

from lab.patient import Patient, definitions
from machines.faults import Faults
from machines.machine import SHARED, MachineFailed
from machines.systems import ANSWER_S, Systems
from muster.client.errors import ClientError

LOOK_S = 2.0
OFF_S = 90.0  # a member turns a machine on again well before: after its lease, its agent and its record
FAILED_S = 20.0

Document = dict[str, Any]


class Attendant(Patient):
    """The patient, whose machines systemd and their peers start again."""

    def __init__(self, systems: Systems, faults: Faults) -> None:
        listed = definitions(systems.names, systems.service_program, Path(SHARED, "record"), Path(SHARED, "locks"))
        super().__init__(systems, faults, systems.shared / "record", listed)
        self.systems = systems
        self._off_since_s: dict[str, float] = {}
        self._looked_s = 0.0

    def boot_what_has_ended(self, *, but: set[str] | None = None) -> None:
        """Power for the room, where all machines are off; an end of quarantines; a hand where nobody turns one on."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        off = [
            name for name, machine in self.systems.machines.items() if not machine.is_on() and name not in (but or ())
        ]
        self._off_since_s = {name: self._off_since_s.get(name, now_s) for name in off}
        if len(off) == len(self.systems.names):
            for name in off:
                self.systems.machines[name].on()
        self._end_quarantines()
        for name in off:
            if now_s - self._off_since_s[name] > OFF_S:
                self.mended.append(f"turn {name} on: nobody did within {OFF_S:g} s")
                self.systems.machines[name].on()

    def _end_quarantines(self) -> None:
        with contextlib.suppress(ClientError, MachineFailed):
            connection = self.systems.connection(ANSWER_S)
            for name, node in connection.query("fencing")["nodes"].items():
                if node["quarantined"]:
                    connection.operate("release_node", node=name)
                    self.mended.append(f"release {name}: it was fenced more than three times within an hour")
                    self.systems.machines[name].on()
