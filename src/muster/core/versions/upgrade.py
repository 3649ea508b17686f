"""Which versions the nodes understand, which one is active, and what may be sent at it (SPEC 9.2, P10.1).

Theory of operation. Each node's reports say what it runs; the master keeps that in the node's member record, where it
outlives the node. The active version is raised by an operator, once every configured node can; from the entry that
raises it on, what the version added may be recorded and sent. Before, a node refuses to ask its master for it: a master
of an older release could not even read the question.
"""

from collections.abc import Iterable

from msgspec.structs import replace

from muster.core.draft import Draft, Facts
from muster.core.versions import revisions
from muster.records.configuration import ConfigureCluster, FinishUpgrade
from muster.records.database import Database
from muster.records.members import Member
from muster.records.nodes import NodeConfig
from muster.records.operations import OperationRequest, kind_of
from muster.records.services import ApplyServices, FailService, version_of_definition
from muster.records.versions import HIGHEST, KEEPS_HISTORY, KERNELS_WORD, LOWEST, OWNERS_KEYS, WATCHDOGS, Software


def follow_reports(draft: Draft, facts: Facts) -> None:
    """Keep what each node says that it runs."""
    for node, report in facts.reports.items():
        if draft.is_full:
            return
        member = draft.members.get(node)
        if member is None or member.incarnation != report.incarnation or member.software == report.software:
            continue
        draft.put(replace(member, software=report.software), f"{draft.name(node)}: runs {words(report.software)}")


def words(software: Software) -> str:
    """What a node runs, in words."""
    if not software.is_known:
        return "nothing that is known"
    release = f"release {software.release}, " if software.release else ""
    return f"{release}versions {software.lowest} to {software.highest}"


def obstacles(nodes: Iterable[NodeConfig], members: dict[int, Member], version: int) -> dict[str, str]:
    """Why `version` cannot become active: node -> what it lacks and what to do."""
    found = {}
    for config in nodes:
        software = (members.get(config.node) or Member(config.node)).software
        if not software.is_known:
            found[config.name] = "it has never said what it runs: boot it once with this release"
        elif not software.lowest <= version <= software.highest:
            found[config.name] = f"it runs {words(software)}: install a release that knows version {version} there"
    return found


def finish_problem(operation: FinishUpgrade, database: Database) -> str:
    """Why the upgrade cannot be finished, in words; empty where it can."""
    active, version = database.cluster.active_version, operation.version
    if not LOWEST <= version <= HIGHEST:
        return f"version {version} is not known to this release, which knows {LOWEST} to {HIGHEST}"
    if version == active:
        return f"version {active} is active already: there is nothing to finish"
    if version < active:
        return f"version {active} is active, and records of it are written: it is never lowered"
    lacking = obstacles(database.nodes.values(), database.members, version)
    if operation.despite_unknown:
        unknown = {
            config.name
            for config in database.nodes.values()
            if not database.member(config.node).software.is_known
        }  # fmt: skip
        lacking = {name: text for name, text in lacking.items() if name not in unknown}
    if lacking:
        listed = "; ".join(f"{name}: {text}" for name, text in sorted(lacking.items()))
        return f"version {version} cannot become active yet: {listed}"
    return ""


def refusal(operation: OperationRequest, database: Database) -> str:
    """Why the operation may not even be sent to the master at the version that is active; empty where it may."""
    if isinstance(operation, FinishUpgrade):
        return finish_problem(operation, database)
    active, needed = database.cluster.active_version, since(operation)
    if active >= needed:
        return ""
    return (
        f"this needs version {needed}, and version {active} is active: see `muster upgrade status`, "
        "then `muster upgrade finish`"
    )


def since(operation: OperationRequest) -> int:
    """The version that added what the operation asks for."""
    needed = kind_of(operation).since
    if getattr(operation, "expect", -1) >= 0:
        needed = max(needed, KEEPS_HISTORY)
    if isinstance(operation, ConfigureCluster) and operation.setting.startswith("required_levels"):
        needed = max(needed, KERNELS_WORD)
    if isinstance(operation, ConfigureCluster) and operation.setting == revisions.LOCKSPACES:
        needed = max(needed, OWNERS_KEYS)
    if isinstance(operation, ConfigureCluster) and operation.setting in (revisions.PROFILE, revisions.WATCHDOG):
        needed = max(needed, WATCHDOGS)
    if isinstance(operation, FailService) and operation.has_own_action:  # an older master would restart or move it
        needed = max(needed, OWNERS_KEYS)
    if isinstance(operation, ApplyServices):
        needed = max(needed, *map(version_of_definition, operation.definitions), LOWEST)
    return needed
