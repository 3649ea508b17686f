"""All that can be asked of a cluster; each is in the file of its subject."""

from muster.records.configuration import ConfigureCluster, FinishUpgrade, RollBack
from muster.records.events import ApplyEvents, EnableEvents
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
    DeregisterService,
    FailService,
    RegisterService,
    RestartService,
    SetMaintenance,
    SetStandby,
    TransferService,
)

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
)
