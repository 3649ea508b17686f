"""What a node is told at its boot."""

import msgspec

from muster.core.boot_advice import SYSTEMD
from muster.core.leases.memory import Remembered
from muster.core.leases.observer import KernelIdentity
from muster.core.node.built_in import RESIDENTS
from muster.core.transitions.resident import Resident
from muster.records.timing import Profile
from muster.records.versions import HIGHEST, LOWEST, Software


class Setup(msgspec.Struct, frozen=True):
    """What a node is told at boot. `region_bytes`: of one region of a journal of its store."""

    node: int
    name: str
    incarnation: int
    profile: Profile
    region_bytes: int = 1 << 20
    one_machine: bool = True  # all daemons share one kernel: scope `host` (SPEC 1.5, 7.1)
    residents: tuple[Resident, ...] = RESIDENTS  # the built-in levels
    software: Software = Software(LOWEST, HIGHEST)
    kernel: KernelIdentity = KernelIdentity()  # that this node runs under
    boots: str = SYSTEMD  # what a person types to boot a node
    remembered: Remembered | None = None  # what this node's home holds of the store that it has booted on (P11.2)
