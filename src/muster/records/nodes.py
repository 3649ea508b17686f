"""The configured cluster, its nodes, their certificates and authority (SPEC 1.3 a, P1.1 to P1.8); what changes them."""

import hashlib
from enum import IntEnum
from typing import NamedTuple

from msgspec import Struct

from muster.records.access import Groups
from muster.records.levels import Required
from muster.records.numbers import Count, Moment, NodeNumber
from muster.records.versions import LOWEST


class Rotation(IntEnum):
    """How far the replacement of the cluster's authority has come (P1.7)."""

    NONE = 0
    TRUSTING = 1  # the incoming authority is committed; every member must have heard of it
    CERTIFYING = 2  # the master issues every node's certificate anew
    SETTLING = 3  # every member must have heard of its new certificate; then the old authority goes

    def __str__(self) -> str:
        return self.name.lower()


DEFAULT_CERTIFICATE_LIFETIME_S = 365 * 24 * 3600
DEFAULT_REQUIRED_WITHIN_MS = 60_000


def fingerprint(pem: str) -> str:
    """A short name of a certificate, from its PEM text."""
    return hashlib.sha256(pem.encode()).hexdigest()[:32]


class Unasked(NamedTuple):
    """A life that the restored store gives a node in place of all that it had before (P11.8)."""

    node: NodeNumber
    incarnation: Count


class Cluster(Struct, frozen=True, array_like=True, tag="cluster"):
    """What the whole cluster shares (SPEC 1.3 a)."""

    name: str
    identity: str  # 32 hexadecimal digits, never reused
    profile: str
    authority: str  # PEM certificate of the cluster's authority
    timers: tuple[tuple[str, int], ...] = ()  # those of the profile's timers that are set otherwise (SPEC 7.6)
    incoming: str = ""  # PEM certificate of the authority that is about to replace it; empty where none is
    rotation: Rotation = Rotation.NONE
    rotation_index: int = 0  # of the entry that every member must have applied before the rotation's next step
    certificate_lifetime_s: int = DEFAULT_CERTIFICATE_LIFETIME_S  # of a node's certificate; renewed before its end
    active_version: int = LOWEST  # of what is sent and written; raised by `muster upgrade finish` (P10.1)
    groups: Groups = Groups()
    required_levels: tuple[Required, ...] = ()  # that a node must have before it joins; of version 3 (P3.17)
    required_within_ms: Count = DEFAULT_REQUIRED_WITHIN_MS  # after so long without them an alarm is raised
    lockspaces: tuple[str, ...] = ()  # locks are switched on while there is one (P12.15)
    unasked: tuple["Unasked", ...] = ()  # lives that may run anything, since a restore did not ask them; of version 6
    watchdog: str = ""  # which device stands behind each node's lease (`watchdogs.parse`); of version 6 (P7.34)
    kernel_locks: bool = False  # each node's kernel is driven as a lock manager, too; of version 6 (P12.33)

    @property
    def has_locks(self) -> bool:
        """Whether level 10 is the lock manager's (P12.15, P12.33)."""
        return bool(self.lockspaces) or self.kernel_locks


class Enrolment(Struct, frozen=True, array_like=True):
    """A one-time token that a machine may become this node with: its verifier, never the token itself (P1.4)."""

    verifier: str  # SHA-256 of the token, hexadecimal
    expires_s: int  # seconds since 1970, by the clock of the node that is asked


class NodeConfig(Struct, frozen=True, array_like=True, tag="node"):
    """Persistent configuration of one node (SPEC 1.3 a). `addresses` are HOST:PORT.

    `generation` is the index of the entry that added it (0: `muster init`), so that a slot used again holds another
    node (SPEC 9.1).
    """

    node: int
    name: str
    addresses: tuple[str, ...]
    certificate: str  # PEM; empty until the node is enrolled. Peers accept its public key, and no other (P1.1)
    generation: int = 0
    enrolment: Enrolment | None = None
    issuer: str = ""  # fingerprint of the authority that issued the certificate; empty: the one of `muster init`
    required_levels: tuple[Required, ...] | None = None  # in place of the cluster's; None: those of the cluster (P3.17)
    watchdog: str | None = None  # likewise (P7.34)


class AddNode(Struct, frozen=True, array_like=True, tag="add_node"):
    """Configure a new node, and allow the machine that knows the token of `verifier` to become it (P1.2, P1.4)."""

    node: str
    addresses: tuple[str, ...]
    verifier: str
    expires_s: Moment


class RemoveNode(Struct, frozen=True, array_like=True, tag="remove_node"):
    """Forget a node that is no member and does not run (P1.3)."""

    node: str


class SetAddresses(Struct, frozen=True, array_like=True, tag="set_addresses"):
    """The node is reached at these addresses from now on, in place of all that it had (P1.8)."""

    node: str
    addresses: tuple[str, ...]


class IssueToken(Struct, frozen=True, array_like=True, tag="issue_token"):
    """A new token for a configured node that does not run: it may be enrolled anew (P1.4)."""

    node: str
    verifier: str
    expires_s: Moment


class EnrolNode(Struct, frozen=True, array_like=True, tag="enrol_node"):
    """A member has checked the token and signed the certificate: use the token up (P1.4). Nodes only ask for it."""

    node: NodeNumber
    generation: Count
    verifier: str
    certificate: str
    issuer: str


class Certified(Struct, frozen=True, array_like=True):
    """A new certificate in place of the one with fingerprint `replaces`, of the same key."""

    node: NodeNumber
    generation: Count
    replaces: str
    certificate: str


class CertifyNodes(Struct, frozen=True, array_like=True, tag="certify_nodes"):
    """Certificates issued anew: renewed before they expire, or by the incoming authority (P1.6, P1.7)."""

    certificates: tuple[Certified, ...]
    issuer: str


class RotateAuthority(Struct, frozen=True, array_like=True, tag="rotate_authority"):
    """Begin to replace the authority by the one in `incoming` (PEM), whose key the asking node holds (P1.7).

    `restart`: also where another one is on its way already.
    """

    incoming: str
    restart: bool = False


class AbandonRotation(Struct, frozen=True, array_like=True, tag="abandon_rotation"):
    """Give a rotation up, as long as no certificate of the incoming authority is in use (P1.7)."""
