"""Operations on the cluster as a whole: settings, going back to an earlier configuration, versions, daemons anew.

As in `operations.py`, each puts records into the draft or refuses and changes nothing (P9.1, P10.1-P10.3).
"""

import re
from collections.abc import Callable

from msgspec.structs import replace

from muster.core.draft import Draft
from muster.core.refusal import Refused, configured
from muster.core.versions import revisions, upgrade
from muster.records import lockspaces, required_levels, watchdogs
from muster.records.access import MAXIMUM_GROUP_CHARACTERS, Groups
from muster.records.configuration import BreakLock, ConfigureCluster, FinishUpgrade, RollBack
from muster.records.durations import duration_of, duration_text
from muster.records.events import ApplyEvents
from muster.records.levels import LOCK_MANAGER_LEVEL, NodeState
from muster.records.members import RestartDaemon
from muster.records.names import shown
from muster.records.nodes import DEFAULT_REQUIRED_WITHIN_MS
from muster.records.operations import OperationRequest
from muster.records.profiles import profile_with
from muster.records.services import ApplyServices
from muster.records.timing import PROFILES, InconsistentProfile, Profile
from muster.records.versions import KERNEL_LOCKS

GROUPS = {
    "observer_group": "observer",
    "operator_group": "operator",
    "administrator_group": "administrator",
}
SETTINGS = (
    *(*GROUPS, revisions.REQUIRED, revisions.REQUIRED_WITHIN, revisions.LOCKSPACES, revisions.PROFILE),
    *(revisions.WATCHDOG, revisions.KERNEL_LOCKS),
)
AS_THE_CLUSTER = "cluster"  # of a node's own setting: it has none
LONGEST_WITHIN_MS = 24 * 60 * 60 * 1000
KERNEL_LOCKS_IMAGE = 5  # whose guard knows that a kernel with lockspaces has not ended (P12.34)
_GROUP = re.compile(rf"[a-z_][a-z0-9_.-]{{0,{MAXIMUM_GROUP_CHARACTERS - 1}}}")

Administration = RollBack | ConfigureCluster | FinishUpgrade | RestartDaemon | BreakLock


def check_expected(operation: OperationRequest, draft: Draft) -> None:
    """Compare-and-set: refuse what was made from another version of the configuration (P10.2)."""
    expect = getattr(operation, "expect", -1)
    newest = max(draft.revisions, default=0)
    if expect < 0 or expect == newest:
        return
    there = draft.revisions.get(newest)
    by = f", made by {there.user or 'the cluster itself'} at {there.node or 'no node'} ({there.what})" if there else ""
    raise Refused(
        f"the configuration is at version {newest}{by}, and you expected version {expect}; look at what has changed "
        f"(muster config diff {expect} {newest}), then repeat it with --expect {newest}"
    )


def carry_out(operation: Administration, draft: Draft, do: Callable[[OperationRequest], str]) -> str:
    """What has been done, in words; `do` carries another operation out. Raises `Refused`."""
    match operation:
        case RollBack(version=version):
            return _roll_back(version, draft, do)
        case ConfigureCluster():
            return _configure(operation, draft)
        case FinishUpgrade(version=version):
            if problem := upgrade.finish_problem(operation, draft.database):
                raise Refused(problem)
            draft.put(replace(draft.cluster, active_version=version), f"version {version} is active")
            return f"version {version} is active"
        case RestartDaemon(node=name):
            return _restart(name, draft)
        case BreakLock(space=space, name=name):
            if space not in draft.cluster.lockspaces:
                raise Refused(f"there is no lockspace {shown(space)}")
            return f"the holders of {space}:{name} are taken for dead"


def _roll_back(version: int, draft: Draft, do: Callable[[OperationRequest], str]) -> str:
    try:
        plan = revisions.rollback_of(draft.database, version)
    except revisions.UnknownVersion as error:
        raise Refused(f"{error}; see `muster config history`") from error
    outcomes = []
    if plan.definitions or plan.withdraw:
        outcomes.append("services: " + do(ApplyServices(tuple(plan.definitions), tuple(plan.withdraw))))
    if plan.event_groups or plan.withdraw_groups:
        outcomes.append("event groups: " + do(ApplyEvents(tuple(plan.event_groups), tuple(plan.withdraw_groups))))
    if plan.settings is not None or plan.nodes:
        _restore_settings(plan, draft)
        outcomes.append("settings restored")
    if not outcomes:
        return f"nothing differs from version {version} that a rollback restores"
    return f"back to version {version}: {'; '.join(outcomes)}"


def _restore_settings(plan: revisions.Rollback, draft: Draft) -> None:
    if (settings := plan.settings) is not None:
        within = duration_of(settings.get(revisions.REQUIRED_WITHIN))
        restored = replace(
            draft.cluster,
            groups=Groups(**settings["groups"]),
            required_levels=required_levels.parse(settings.get(revisions.REQUIRED, "")),
            required_within_ms=within or DEFAULT_REQUIRED_WITHIN_MS,
            lockspaces=lockspaces.parse(settings.get(revisions.LOCKSPACES, "")),
            kernel_locks=revisions.KERNEL_LOCKS in settings,
        )
        draft.put(restored, "settings restored")
    for node, text in plan.nodes.items():
        own = None if text is None else required_levels.parse(text)
        draft.put(replace(draft.nodes[node], required_levels=own), f"{draft.name(node)}: settings restored")


def _configure(operation: ConfigureCluster, draft: Draft) -> str:
    if operation.setting not in SETTINGS:
        raise Refused(f"there is no setting {operation.setting!r}; there are {', '.join(SETTINGS)}")
    if operation.setting == revisions.REQUIRED:
        return _require(operation, draft)
    if operation.setting == revisions.WATCHDOG:
        return _set_watchdog(operation, draft)
    if operation.node:
        raise Refused(f"{operation.setting} is a setting of the whole cluster: name no node")
    if operation.setting == revisions.REQUIRED_WITHIN:
        return _require_within(operation.value, draft)
    if operation.setting == revisions.PROFILE:
        return _set_profile(operation.value, draft)
    if operation.setting == revisions.LOCKSPACES:
        return _name_lockspaces(operation.value, draft)
    if operation.setting == revisions.KERNEL_LOCKS:
        return _drive_kernel(operation.value, draft)
    return _give(operation, draft)


def _require(operation: ConfigureCluster, draft: Draft) -> str:
    """Name the levels that a node must have before it joins (P3.17)."""
    try:
        clears = bool(operation.node) and operation.value == AS_THE_CLUSTER
        required = None if clears else required_levels.parse(operation.value)
    except ValueError as error:
        raise Refused(f"required_levels cannot be {operation.value!r}: {error}") from error
    if not operation.node:
        draft.put(replace(draft.cluster, required_levels=required or ()), f"{revisions.REQUIRED} set")
        return f"{revisions.REQUIRED} is {required_levels.text_of(required or ())}; it binds the next join of each node"
    config = configured(draft, operation.node)
    draft.put(replace(config, required_levels=required), f"{config.name}: {revisions.REQUIRED} set")
    words = "that of the cluster" if required is None else required_levels.text_of(required)
    return f"{revisions.REQUIRED} of {config.name} is {words}; it binds its next join"


def _require_within(value: str, draft: Draft) -> str:
    within_ms = duration_of(value)
    if within_ms is None or not 1 <= within_ms <= LONGEST_WITHIN_MS:
        raise Refused(f"{revisions.REQUIRED_WITHIN} cannot be {value!r}: write a duration, as 90s or 5m, at most 24h")
    draft.put(replace(draft.cluster, required_within_ms=within_ms), f"{revisions.REQUIRED_WITHIN} set")
    return f"{revisions.REQUIRED_WITHIN} is {duration_text(within_ms)}"


def _set_watchdog(operation: ConfigureCluster, draft: Draft) -> str:
    """Say which device stands behind a node's lease (P7.34)."""
    clears = bool(operation.node) and operation.value == AS_THE_CLUSTER
    try:
        setting = None if clears else watchdogs.parse(operation.value)
    except ValueError as error:
        raise Refused(f"watchdog cannot be {operation.value[:60]!r}: {error}") from error
    profile = PROFILES.get(draft.cluster.profile)
    timers = dict(draft.cluster.timers)
    if setting is not None and not timers.get("watchdog_ms", profile.watchdog_ms if profile is not None else 0):
        raise Refused(
            f"profile {draft.cluster.profile} has no room for a watchdog: first `muster config set profile shared`; "
            "see `muster profile show shared`"
        )
    text = watchdogs.text_of(setting)
    if not operation.node:
        draft.put(replace(draft.cluster, watchdog="" if setting is None else text), "watchdog set")
        return f"watchdog is {text}; it binds the next boot of each node"
    config = configured(draft, operation.node)
    draft.put(replace(config, watchdog=None if clears else text), f"{config.name}: watchdog set")
    return f"watchdog of {config.name} is {'that of the cluster' if clears else text}; it binds its next boot"


def _set_profile(value: str, draft: Draft) -> str:
    """Another profile, while the cluster runs (P7.35)."""
    name, *words = value.replace(",", " ").split() or [""]
    try:
        base = PROFILES.get(name)
        if base is None:
            raise InconsistentProfile(f"there is no profile {shown(name)}; there are {', '.join(PROFILES)}")
        timers = tuple((key, int(number)) for key, _equals, number in (word.partition("=") for word in words))
        new = profile_with(base, timers)
        old = profile_with(PROFILES[draft.cluster.profile], draft.cluster.timers)
    except (InconsistentProfile, ValueError, KeyError) as error:
        raise Refused(f"profile cannot be {shown(value)}: {error}; see `muster profile show`") from error
    if (name, timers) == (draft.cluster.profile, draft.cluster.timers):
        return f"profile is {value} already"
    _refuse_false_alarms(old, new)
    common = draft.cluster.watchdog
    set_for = [each.name for each in draft.nodes.values() if (each.watchdog or common) not in ("", watchdogs.NONE)]
    if set_for and not new.watchdog_ms:
        raise Refused(
            f"profile {name} has no room for the watchdogs that are set ({', '.join(set_for)}): first "
            "`muster config set watchdog none`, and boot the nodes"
        )
    draft.put(replace(draft.cluster, profile=name, timers=timers), "profile set")
    return (
        f"profile is {value}: leases, deadmen and watchdogs between machines go over to it now; for all other timers: "
        "muster node restart-daemon --all"
    )


def _refuse_false_alarms(old: Profile, new: Profile) -> None:
    """Until the last daemon is restarted, some go by the old profile: none may take another for silent for that."""
    for slow, quick in ((old, new), (new, old)):
        if 2 * slow.heartbeat_ms > quick.link_loss_beats * quick.heartbeat_ms:
            raise Refused(
                f"profiles {old.name} and {new.name} are too far apart to change while the cluster runs (heartbeat_ms "
                f"{slow.heartbeat_ms}; a link counts as lost after {quick.link_loss_beats * quick.heartbeat_ms} ms); "
                "go by one in between, or stop all nodes"
            )
        if 2 * slow.pulse_ms > quick.pulse_loss_ms:
            raise Refused(
                f"profiles {old.name} and {new.name} are too far apart to change while the cluster runs (pulse_ms "
                f"{slow.pulse_ms}); go by one in between, or stop all nodes"
            )


def _name_lockspaces(value: str, draft: Draft) -> str:
    """Switch locks on, off, or say in which spaces they are (P12.15)."""
    try:
        spaces = lockspaces.parse(value)
    except ValueError as error:
        raise Refused(f"{revisions.LOCKSPACES} cannot be {value!r}: {error}") from error
    if spaces:
        _refuse_another_at_the_level(draft)
    before, words = draft.cluster.lockspaces, lockspaces.text_of(spaces)
    if spaces == before:
        return f"{revisions.LOCKSPACES} is {words} already"
    draft.put(replace(draft.cluster, lockspaces=spaces), f"{revisions.LOCKSPACES} set")
    if before and not spaces:
        return f"{revisions.LOCKSPACES} is {words}: locks are off, and all that was locked is free"
    return f"{revisions.LOCKSPACES} is {words}"


def _refuse_another_at_the_level(draft: Draft) -> None:
    own = LOCK_MANAGER_LEVEL
    for member in draft.members.values():
        for level in member.levels:
            if level.number == own.number and level.name != own.name:
                what = f"level {own.number} is the {own.name}'s, and on {draft.name(member.node)} {level.name} has it"
                raise Refused(f"with locks, {what}: let that program take another level first")


def _drive_kernel(value: str, draft: Draft) -> str:
    """Have every node drive its kernel's lock manager, or no more (P12.33)."""
    if value not in (revisions.ON, revisions.OFF):
        raise Refused(f"{revisions.KERNEL_LOCKS} is {revisions.ON} or {revisions.OFF}, not {shown(value)}")
    is_on = value == revisions.ON
    if is_on == draft.cluster.kernel_locks:
        return f"{revisions.KERNEL_LOCKS} is {value} already"
    if is_on:
        if draft.cluster.active_version < KERNEL_LOCKS:
            raise Refused(
                f"{revisions.KERNEL_LOCKS} needs version {KERNEL_LOCKS}: finish the upgrade first (muster upgrade)"
            )
        _refuse_another_at_the_level(draft)
        older = [
            draft.name(member.node)
            for member in draft.members.values()
            if member.state is not NodeState.INACTIVE and member.software.image < KERNEL_LOCKS_IMAGE
        ]
        if older:
            raise Refused(
                f"{', '.join(older)}: an image from before the kernel's locks runs there; leave and boot it first"
            )
    draft.put(replace(draft.cluster, kernel_locks=is_on), f"{revisions.KERNEL_LOCKS} set")
    if is_on:
        return (
            f"{revisions.KERNEL_LOCKS} is on: each node's kernel takes part in locks; no corosync and no dlm_controld"
        )
    return f"{revisions.KERNEL_LOCKS} is off: what has a lockspace goes on, and nothing enters one any more"


def _give(operation: ConfigureCluster, draft: Draft) -> str:
    role = GROUPS[operation.setting]
    if operation.value and not _GROUP.fullmatch(operation.value):
        raise Refused(
            f"{operation.value!r} cannot be the name of a Unix group; use a-z, 0-9, dot, underscore and hyphen, with a "
            f"letter or underscore first, at most {MAXIMUM_GROUP_CHARACTERS} characters; or nothing, for nobody"
        )
    groups = draft.cluster.groups._replace(**{role: operation.value})
    if groups == draft.cluster.groups:
        return f"{operation.setting} is {operation.value or 'nobody'} already"
    draft.put(replace(draft.cluster, groups=groups), f"{operation.setting} set")
    return f"{operation.setting} is {operation.value or 'nobody'}"


def _restart(name: str, draft: Draft) -> str:
    config = next((config for config in draft.nodes.values() if config.name == name), None)
    if config is None:
        known = ", ".join(config.name for config in draft.nodes.values())
        raise Refused(f"there is no node {name!r}; configured are: {known}")
    member = draft.member(config.node)
    if member.state is not NodeState.JOINED:
        raise Refused(f"{name} is {member.state}: only a joined node can restart its daemon; boot the node")
    draft.put(replace(member, restart_asked=draft.index), f"{name}: its daemon is to be restarted")
    return f"the daemon of {name} is restarted; its services go on"
