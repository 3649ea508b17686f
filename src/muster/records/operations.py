"""All that can be asked of a cluster: one row each; the structs are in the files of their subjects.

The name of an operation is its tag: so the wire, the control socket and the audit call it. A new one is a struct, a
member of `OperationRequest`, a row here, and an arm of `core/operations/operations.py`. Nothing has a default role.
"""

from typing import NamedTuple

from msgspec import Struct

from muster.records.access import Role
from muster.records.configuration import BreakLock, ConfigureCluster, FinishUpgrade, RollBack
from muster.records.events import ApplyEvents, EnableEvents
from muster.records.fencing import FenceNow, ReleaseNode, RemoveFenceDevice, SetFenceDevice, SetFenceMethods
from muster.records.members import EvictNode, LeaveNode, RestartDaemon
from muster.records.nodes import (
    AbandonRotation,
    AddNode,
    CertifyNodes,
    EnrolNode,
    IssueToken,
    RemoveNode,
    RotateAuthority,
    SetAddresses,
)
from muster.records.services import (
    ApplyServices,
    ClearService,
    ConfirmClean,
    ConfirmStopped,
    DeregisterService,
    FailService,
    RegisterService,
    RestartService,
    SetMaintenance,
    SetStandby,
    TransferService,
)
from muster.records.tables import check_rows, members_of

OperationRequest = (
    ApplyServices
    | RegisterService
    | DeregisterService
    | TransferService
    | LeaveNode
    | EvictNode
    | FailService
    | RestartService
    | ClearService
    | SetMaintenance
    | SetStandby
    | ApplyEvents
    | EnableEvents
    | AddNode
    | SetAddresses
    | RemoveNode
    | IssueToken
    | EnrolNode
    | CertifyNodes
    | RotateAuthority
    | AbandonRotation
    | RollBack
    | ConfigureCluster
    | FinishUpgrade
    | RestartDaemon
    | ConfirmClean
    | ConfirmStopped
    | BreakLock
    | SetFenceDevice
    | RemoveFenceDevice
    | SetFenceMethods
    | FenceNow
    | ReleaseNode
)


class OperationKind(NamedTuple):
    """One kind of operation. `role` is the lowest that may ask for it; None: nodes ask for it by themselves only."""

    name: str
    struct: type[Struct]
    since: int  # the version that added it; what its fields ask for may be newer (`upgrade.since`)
    role: Role | None
    shown: tuple[str, ...]  # the fields that the audit shows; names only, never a secret
    former: str  # what older releases called it at the control socket: still taken there
    is_read: bool  # from arguments at the control socket; else the node that is asked makes it
    is_long: bool  # its arguments may be of any length
    only_removes: bool  # it never adds to what the database may grow to, so it needs no room (P9.3)


def _kind(
    struct: type[Struct],
    role: Role | None,
    *shown: str,
    since: int,
    former: str = "",
    is_read: bool = True,
    is_long: bool = False,
    only_removes: bool = False,
) -> OperationKind:
    name = str(struct.__struct_config__.tag)
    unknown = set(shown) - set(struct.__struct_fields__)
    if unknown:
        raise TypeError(f"records/operations.py shows {', '.join(unknown)} of {name}, which it does not have")
    return OperationKind(name, struct, since, role, shown, former, is_read, is_long, only_removes)


_NODES_ONLY: None = None

OPERATIONS: tuple[OperationKind, ...] = (
    _kind(ApplyServices, Role.ADMINISTRATOR, since=1, is_long=True),
    _kind(RegisterService, Role.OPERATOR, "service", since=1),
    _kind(DeregisterService, Role.OPERATOR, "service", "override", since=1, only_removes=True),
    _kind(TransferService, Role.OPERATOR, "service", "target", "override", since=1),
    _kind(LeaveNode, Role.OPERATOR, "node", "override", since=1, only_removes=True),
    _kind(EvictNode, Role.ADMINISTRATOR, "node", "cause", "confirmed_dead", since=1, only_removes=True),
    _kind(FailService, Role.OPERATOR, "service", since=2, only_removes=True),
    _kind(RestartService, Role.OPERATOR, "service", "cause", since=2, only_removes=True),
    _kind(ClearService, Role.OPERATOR, "service", since=2, only_removes=True),
    _kind(ConfirmClean, Role.ADMINISTRATOR, "service", "node", "cause", since=3, only_removes=True),
    _kind(ConfirmStopped, Role.ADMINISTRATOR, "service", "cause", since=4, only_removes=True),
    _kind(SetMaintenance, Role.OPERATOR, "kind", "subject", "cause", "end", since=2),
    _kind(SetStandby, Role.OPERATOR, "node", "cause", "end", "override", since=2),
    _kind(ApplyEvents, Role.ADMINISTRATOR, since=2, former="apply_events", is_long=True),
    _kind(EnableEvents, Role.OPERATOR, "group", "enabled", since=2, former="enable_events"),
    _kind(RollBack, Role.ADMINISTRATOR, "version", since=2),
    _kind(ConfigureCluster, Role.ADMINISTRATOR, "node", "setting", "value", since=2),
    _kind(FinishUpgrade, Role.ADMINISTRATOR, "version", since=2),
    _kind(RestartDaemon, Role.OPERATOR, "node", since=2),
    _kind(BreakLock, Role.ADMINISTRATOR, "space", "name", "by", since=4, only_removes=True),
    _kind(AddNode, Role.ADMINISTRATOR, "node", since=2),
    _kind(SetAddresses, Role.ADMINISTRATOR, "node", since=3),
    _kind(RemoveNode, Role.ADMINISTRATOR, "node", since=2, only_removes=True),
    _kind(IssueToken, Role.ADMINISTRATOR, "node", since=2),
    _kind(RotateAuthority, Role.ADMINISTRATOR, since=2, is_read=False),
    _kind(AbandonRotation, Role.ADMINISTRATOR, since=2),
    _kind(SetFenceDevice, Role.ADMINISTRATOR, "name", "agent", since=5),
    _kind(RemoveFenceDevice, Role.ADMINISTRATOR, "name", since=5, only_removes=True),
    _kind(SetFenceMethods, Role.ADMINISTRATOR, "node", since=5),
    _kind(FenceNow, Role.ADMINISTRATOR, "node", "cause", since=5, only_removes=True),
    _kind(ReleaseNode, Role.OPERATOR, "node", since=5, only_removes=True),
    _kind(EnrolNode, _NODES_ONLY, "node", since=2),
    _kind(CertifyNodes, _NODES_ONLY, since=2),
)
_BY_TYPE: dict[type, OperationKind] = {kind.struct: kind for kind in OPERATIONS}
_BY_NAME = {name: kind for kind in OPERATIONS for name in (kind.name, kind.former) if name}
check_rows("records/operations.py", (kind.struct for kind in OPERATIONS), members_of(OperationRequest))


def kind_of(operation: OperationRequest) -> OperationKind:
    """The row of an operation."""
    return _BY_TYPE[type(operation)]


def kind_named(name: str) -> OperationKind | None:
    """The row of an operation by its name, or by the one that it had; None where there is none."""
    return _BY_NAME.get(name)
