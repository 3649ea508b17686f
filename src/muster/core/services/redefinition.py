"""What follows from another definition of a service: it is tried, and what runs is still as it was (P6.37, P6.39)."""

from msgspec.structs import replace

from muster.core.draft import Draft, counts
from muster.records.services import COUNTS_AT_START, Definition, Ended, Service, ServiceState

_OF_A_STOP = (
    "stop_command", "stop_timeout_ms", "stop_retries", "stop_failure", "retry_pause_ms", "grace_ms", "environment",
    "cleanup_command", "probe_command", "cleanup_timeout_ms", "cleanup_retries", "stop_signal", "extend_limit_ms",
    "user", "group", "working_directory", "umask", "limits", "environment_file",
)  # fmt: skip
_RUNS = (ServiceState.STARTING, ServiceState.REGISTERED, ServiceState.STOPPING)


def redefined(service: Service, definition: Definition, draft: Draft) -> Service:
    """The service with another definition."""
    changed = replace(service, definition=definition, as_started=_as_started(service, definition))
    if service.is_left_to_its_action and not definition.on_failure:
        changed = replace(changed, ended=Ended.FAILED)  # now its failure policy decides (P6.40)
    if service.state is ServiceState.DEREGISTERED and definition != service.definition:
        return tried_again(changed)
    is_blocked = service.state is ServiceState.STOPPING and bool(service.cause)
    if is_blocked and _differs(service.definition, definition, _OF_A_STOP) and counts(draft.member(service.node)):
        return replace(changed, cause="", cleaning=False, generation=draft.index)
    return changed


def tried_again(service: Service) -> Service:
    """The service with all forgotten that keeps it from being tried (P6.37), but not that its program has ended."""
    ended, broken = service.ended, service.broken
    if service.state is not ServiceState.REGISTERED:
        ended = ended if broken else Ended.FAILED  # else what it says has been acted upon
    elif ended is Ended.FATAL and not broken:  # it waits for its children to end, and is started again then (P6.26)
        ended, broken = Ended.FAILED, "its program has ended, and it is to be tried again"
    return replace(
        service, cause="", failed=(), exhausted=(), failures=(), rest=None, rounds=0, ended=ended, broken=broken
    )


def _as_started(service: Service, definition: Definition) -> Definition | None:
    """How what runs was defined, where that is not how it is defined now."""
    if service.state not in _RUNS or not service.launched:
        return None
    before = service.as_started or service.definition
    return before if _differs(before, definition, COUNTS_AT_START) else None


def _differs(before: Definition, after: Definition, fields: tuple[str, ...]) -> bool:
    return any(getattr(before, field) != getattr(after, field) for field in fields)


def pending_words(service: Service) -> str:
    """That what runs is not what is defined by now, in words; empty where it is."""
    keys = ", ".join(pending(service))
    return f"restart pending: it runs as it was defined when it started, before {keys} changed" if keys else ""


def pending(service: Service) -> tuple[str, ...]:
    """The keys that count only when the service is started again, and differ from how it was started (P6.39)."""
    if service.as_started is None:
        return ()
    return tuple(
        field for field in COUNTS_AT_START if getattr(service.as_started, field) != getattr(service.definition, field)
    )
