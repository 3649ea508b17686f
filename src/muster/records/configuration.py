"""What was asked and by whom, the configuration as versions (SPEC 9.3), and operations on settings and versions."""

from msgspec import Struct

from muster.records.nodes import Cluster
from muster.records.numbers import CountOrNone
from muster.records.versions import KERNELS_WORD

MAXIMUM_OPERATIONS = 512
MAXIMUM_OPERATIONS_BY_BYTES = 8192  # where their bytes are counted (P9.3)


def most_operations(cluster: Cluster) -> int:
    """How many identities are kept at most at the active version."""
    return MAXIMUM_OPERATIONS_BY_BYTES if cluster.active_version >= KERNELS_WORD else MAXIMUM_OPERATIONS


class Operation(Struct, frozen=True, array_like=True, tag="operation"):
    """An operation that was carried out, so that a retried one does not run twice (SPEC 9.1)."""

    identity: str
    index: int
    outcome: str  # in words
    refused: bool = False
    asked: str = ""  # digest of what was asked for (`operations.digest_of`); empty in entries of older releases


class Audit(Struct, frozen=True, array_like=True, tag="audit"):
    """One change that somebody asked for: who, in which role, where, when, what became of it. No secrets."""

    number: int
    index: int
    at_ms: int  # by the wall clock of the node that was asked
    uid: int
    user: str
    role: int
    node: str  # that was asked
    operation: str
    subject: str
    outcome: str


class Revision(Struct, frozen=True, array_like=True, tag="revision"):
    """One version of the configuration (SPEC 9.3), kept as what it takes to undo it."""

    version: int  # 1, 2, ...; 0 is what `muster init` made
    index: int
    at_ms: int
    uid: int
    user: str
    node: str
    what: str
    undo: bytes = b""  # packed, see `core/versions/revisions.py`
    whole: bool = True  # False: what undoes it was too large to keep, so no version below it can be shown


class RollBack(Struct, frozen=True, array_like=True, tag="roll_back"):
    """Give services and settings the definitions they had at `version` of the configuration (SPEC 9.3)."""

    version: CountOrNone
    expect: CountOrNone = -1


class ConfigureCluster(Struct, frozen=True, array_like=True, tag="configure"):
    """Change one setting (`core/versions/requests.py` lists them): of the cluster, or of `node` in its place."""

    setting: str
    value: str
    expect: CountOrNone = -1
    node: str = ""


class FinishUpgrade(Struct, frozen=True, array_like=True, tag="finish_upgrade"):
    """Make `version` the active one; refused while a configured node cannot (SPEC 9.2, P10.1).

    `despite_unknown`: also where a node has never said what it runs; it may join only with a release that can.
    """

    version: CountOrNone
    despite_unknown: bool = False


class BreakLock(Struct, frozen=True, array_like=True, tag="break_lock"):
    """The holders of a lock are dead, by the word of `by`: lock processes ask for it, to have it recorded (P12.21)."""

    space: str
    name: str
    by: str
