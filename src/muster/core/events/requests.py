"""Event groups in the database: defined, withdrawn, enabled and disabled by hand (SPEC 1.3 c, 5.3)."""

from difflib import get_close_matches

from msgspec.structs import replace

from muster.core.draft import Draft
from muster.core.refusal import Refused
from muster.records.event_limits import MAXIMUM_GROUPS
from muster.records.events import ApplyEvents, EnableEvents, EventGroup, GroupDefinition


def apply(operation: ApplyEvents, draft: Draft) -> str:
    """Define, change and withdraw groups. Raises `Refused` before the first change."""
    after = {name: group.definition for name, group in draft.event_groups.items()}
    for name in operation.withdraw:
        _known(draft, name)
        after.pop(name, None)
    after |= {definition.name: definition for definition in operation.groups}
    _check(after, operation.groups, draft)
    defined = changed = 0
    for definition in operation.groups:
        before = draft.event_groups.get(definition.name)
        if before is None:
            defined += 1
            group = EventGroup(definition, draft.index, definition.enabled)
            draft.put(group, f"event group {definition.name}: defined")
        elif before.definition != definition:
            changed += 1
            draft.put(replace(before, definition=definition), f"event group {definition.name}: redefined")
    for name in operation.withdraw:
        draft.forget("event_group", name, f"event group {name}: withdrawn")
    return f"event groups: {defined} defined, {changed} changed, {len(operation.withdraw)} withdrawn"


def enable(operation: EnableEvents, draft: Draft) -> str:
    """Enable or disable a group by hand. Raises `Refused`."""
    group = _known(draft, operation.group)
    word = "enabled" if operation.enabled else "disabled"
    if group.enabled == operation.enabled:
        return f"event group {group.name} is {word} already"
    draft.put(replace(group, enabled=operation.enabled), f"event group {group.name}: {word} by hand")
    return f"event group {group.name} is {word}"


def _known(draft: Draft, name: str) -> EventGroup:
    group = draft.event_groups.get(name)
    if group is None:
        close = get_close_matches(name, list(draft.event_groups), n=1)
        advice = f"did you mean {close[0]!r}?" if close else "see `muster event list`"
        raise Refused(f"there is no event group {name!r}; {advice}")
    return group


def _check(after: dict[str, GroupDefinition], new: tuple[GroupDefinition, ...], draft: Draft) -> None:
    if len(after) > MAXIMUM_GROUPS:
        raise Refused(f"there would be {len(after)} event groups: at most {MAXIMUM_GROUPS} are allowed; withdraw some")
    owners: dict[str, str] = {}
    for group in after.values():
        for event in group.events:
            if event.name in owners:
                raise Refused(
                    f"event {event.name!r} is in group {owners[event.name]} and in group {group.name}: "
                    "its name must be unique in the cluster"
                )
            owners[event.name] = group.name
    known = {config.name for config in draft.database.nodes.values()} | {"*"}
    for group in new:
        unknown = sorted(set(group.nodes) - known)
        if unknown:
            raise Refused(f"event group {group.name} names node {unknown[0]}, which this cluster does not have")
