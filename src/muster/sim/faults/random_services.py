"""Random services of every sort: groups, instances, maturity, notify, free transfers, policies (SPEC 6.2 to 6.6)."""

from random import Random
from typing import NamedTuple

from msgspec.structs import replace

from muster.records.operations import OperationRequest
from muster.records.services import (
    ClearService,
    Definition,
    RestartService,
    SetMaintenance,
    SetStandby,
    TransferService,
)

TIMEOUT_MS = 1500
LONGEST_HOLD_MS = 2500  # of maintenance and standby: they end by themselves, long before progress is demanded


class Watched(NamedTuple):
    """Who sees that a service fails; it stays so when the service is defined anew, for what runs is not started anew.

    Its program is supervised; a check looks at it; what its check finds is mended by an action function.
    """

    supervised: bool
    checked: bool
    mended: bool
    often: bool  # it fails often: its policy allows for more

    def applied_to(self, definition: Definition, random: Random) -> Definition:
        """The definition with its program, its check and its action function."""
        interval_ms = int(20 + random.random() * random.random() * 400)
        return replace(
            definition,
            run=("serve",) if self.supervised else (),
            start_command=() if self.supervised else definition.start_command,
            check_command=("check",) if self.checked else (), check_interval_ms=interval_ms,
            on_failure=("mend", "{in.service}") if self.mended else (),
            restarts=definition.restarts + (2 if self.often else 0),
        )  # fmt: skip


def watched(random: Random, often: bool) -> Watched:
    """Who sees that one service fails; `often`: it does so often."""
    supervised, checked = random.random() < (0.8 if often else 0.6), random.random() < (0.6 if often else 0.3)
    return Watched(supervised, checked, checked and not supervised and random.random() < 0.4, often)


def definition(random: Random, name: str, nodes: list[str], older: list[str]) -> Definition:
    """A service; `older` are the names of those defined before it, one of which may be its parent."""
    draw = random.random
    base = Definition(
        name,
        environment=(("STAGE", "blue" if draw() < 0.5 else "green"),),
        auto_register=draw() < 0.85,
        start_command=("start",) if draw() < 0.9 else (),
        stop_command=("stop",) if draw() < 0.8 else (),
        recovery_command=("recover",) if draw() < 0.4 else (),
        notify_command=("notify",) if draw() < 0.4 else (),
        start_timeout_ms=TIMEOUT_MS, stop_timeout_ms=TIMEOUT_MS, recovery_timeout_ms=TIMEOUT_MS,
        notify_timeout_ms=TIMEOUT_MS, cleanup_timeout_ms=TIMEOUT_MS,
        siblings=1 if draw() < 0.3 else 0,
        child_failure="group" if draw() < 0.5 else "alone",
        stop_failure="evict" if draw() < 0.15 else "block",
        restarts=int(draw() * 3),
        restart_window_ms=4000 if draw() < 0.5 else 20_000,
    )  # fmt: skip
    if older and draw() < 0.5:
        return replace(base, parent=older[int(draw() * len(older))])
    return _placed(base, random, nodes)


def _placed(base: Definition, random: Random, nodes: list[str]) -> Definition:
    draw = random.random
    everywhere = draw() < 0.6
    allowable = ("*",) if everywhere else tuple(n for n in nodes if draw() < 0.7) or (nodes[0],)
    refused = tuple(n for n in nodes[1:] if everywhere and draw() < 0.1)
    if draw() < 0.15:
        return replace(base, allowable_nodes=allowable, disallowable_nodes=refused, on_all=True)
    allowed = [n for n in (nodes if everywhere else allowable) if n not in refused]
    preferred = tuple(n for n in reversed(allowed) if draw() < 0.5)
    is_ordered = draw() < 0.7
    matures = draw() < 0.3
    return replace(
        base, allowable_nodes=allowable, disallowable_nodes=refused,
        ordered=preferred if is_ordered else (), unordered=() if is_ordered else preferred,
        free_transfer=draw() < 0.6,
        maturity_count=1 + int(draw() * len(allowed)) if matures else 0,
        maturity_time_ms=int(200 + draw() * 2000) if matures and draw() < 0.7 else 0,
    )  # fmt: skip


def upkeep(random: Random, service: str, node: str) -> OperationRequest:
    """Something that an operator does about a service that fails often."""
    draw = random.random()
    if draw < 0.1:
        return RestartService(service)
    if draw < 0.5:
        return TransferService(service, node)
    if draw < 0.9:
        return ClearService(service)
    return SetMaintenance("service", service, int(100 + random.random() * 400), "the operator mends it")


def operation(random: Random, service: str, node: str) -> OperationRequest:
    """Something that an operator does about services."""
    draw = random.random()
    duration_ms = int(100 + random.random() * LONGEST_HOLD_MS)
    if draw < 0.35:
        return RestartService(service)
    if draw < 0.6:
        return ClearService(service)
    if draw < 0.8:
        return SetStandby(node, duration_ms, "the operator looks after it", end=random.random() < 0.2)
    kind = ("cluster", "node", "service")[int(random.random() * 3)]
    subject = {"cluster": "", "node": node, "service": service}[kind]
    return SetMaintenance(kind, subject, duration_ms, "the operator works on it", end=random.random() < 0.2)
