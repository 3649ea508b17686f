"""The services that need a person: what is stuck, and what runs nowhere though it is wanted (P10.12).

The words and the next step are those of `muster why`: both come from `core/services/explanation.py`. What has failed
everywhere is tried again and again, with growing pauses (P6.36): until a start succeeds, it is one and the same need.
So is a program that has ended and is left to an action of its owner's own, until it ends there or starts again (P6.40).
"""

from collections.abc import Callable, Iterator

from muster.core.freezing import is_frozen
from muster.core.needs.need import US_PER_S, Need, Seen, Suspicion
from muster.core.services import instances
from muster.core.services.explanation import Explanation
from muster.records.database import Database
from muster.records.services import Service, ServiceState
from muster.records.terms import NO_NODE

_BEFORE_IT_RUNS = (ServiceState.DEREGISTERED, ServiceState.STARTING)
# Rules that keep a service down for a reason that is told elsewhere (a silent node, a maintenance, its parent), that
# passes by itself, or that a person wanted so.
_TOLD_ELSEWHERE = ("inventory", "definition", "wanted", "silence", "policy", "maintenance")


def of_services(database: Database, seen: Seen) -> Iterator[Suspicion]:
    """What may be wrong with each service."""
    for name, service in database.services.items():
        if not may_need(service) or instances.is_template(service) or is_frozen(service, database):
            continue
        teller = _teller(database, seen, service)
        holds_us = US_PER_S if is_left(service) else 0  # its action may end or restart it at once
        yield Suspicion(
            _kind_of(service), f"service/{name}", teller, goes_on=service.rounds > 0, holds_us=holds_us
        )  # fmt: skip


def may_need(service: Service) -> bool:
    """Whether it is worth being explained: a service that is well is told from others at once."""
    if service.state is ServiceState.DEREGISTERED:
        return service.wanted and not service.removed
    nowhere = service.state is ServiceState.RECOVERING and service.node == NO_NODE
    return bool(service.cause) or nowhere or is_tried_again(service) or is_left(service)


def is_left(service: Service) -> bool:
    """Whether its program has ended, and nobody has asked yet for it to end there or start again (P6.40)."""
    is_asked_for = service.intent or service.target != NO_NODE or not service.wanted
    return service.state is ServiceState.REGISTERED and service.is_left_to_its_action and not is_asked_for


def is_tried_again(service: Service) -> bool:
    """Whether it has failed on every node, and is being started again: nobody knows yet whether that helps."""
    return service.rounds > 0 and not service.cause and service.state in _BEFORE_IT_RUNS


def _kind_of(service: Service) -> str:
    if service.cause:
        return "failed" if service.state is ServiceState.DEREGISTERED else "blocked"
    if is_tried_again(service) or is_left(service):
        return "failed"
    return "unclean" if service.unclean is not None else "nowhere"


def _teller(database: Database, seen: Seen, service: Service) -> Callable[[], Need | None]:
    def tell() -> Need | None:
        explanation = None if is_tried_again(service) else seen.explain(service.name)
        if explanation is None or _passes(database, service, explanation):
            return None
        words, next_step = explanation.summary, explanation.next_step or f"muster why {service.name}"
        return Need(_kind_of(service), f"service/{service.name}", words, next_step, affects=(service.name,))

    return tell


def _passes(database: Database, service: Service, explanation: Explanation) -> bool:
    """Whether it is no trouble of its own: it is about to start, or what keeps it down is told elsewhere."""
    if service.state is not ServiceState.DEREGISTERED:
        is_told = any(not finding.holds and finding.rule in ("maintenance", "stay") for finding in explanation.findings)
        return is_left(service) and is_told
    first = next((finding for finding in explanation.findings if not finding.holds), None)
    if first is None:
        return service.rounds > 0 or any(verdict.chosen for verdict in explanation.verdicts)
    if first.rule == "group":
        return service.definition.parent in database.services
    if first.rule == "maturity":
        return bool(service.definition.maturity_time_ms)
    return first.rule in _TOLD_ELSEWHERE
