"""Which of what reaches a master may change what it decides: many reports come together, and each round of rules costs.

Rules are laws of the records, the reports and the time. Time has inputs of its own, so what is left out here would have
changed nothing.
"""

from collections.abc import Callable

from muster.core.replica.reporting import without_acknowledgements
from muster.core.transitions.transition import step_of
from muster.records.database import Database
from muster.records.levels import TransitionKind
from muster.records.messages import Report
from muster.records.transitions import Acknowledgement

HasAcknowledged = Callable[[int, Acknowledgement], bool]  # node, step


def may_change_a_decision(
    before: Report | None, now: Report | None, database: Database, has_acknowledged: HasAcknowledged
) -> bool:
    """Whether a node's report differs from its last one by more than acknowledgements that complete no step."""
    if before is None or now is None or without_acknowledgements(before) != without_acknowledgements(now):
        return True
    if any(_is_present(step, database) for step in before.acknowledgements if step not in now.acknowledgements):
        return True
    fresh = tuple(step for step in now.acknowledgements if step not in before.acknowledgements)
    return may_complete(fresh, database, has_acknowledged)


def may_complete(steps: tuple[Acknowledgement, ...], database: Database, has_acknowledged: HasAcknowledged) -> bool:
    """Whether, with these acknowledgements, a transition may have all that it waits for (P3.1, P3.4, P3.7)."""
    if any(record.kind is TransitionKind.LEAVING for record in database.transitions.values()):
        return True  # a leave also waits for what its node owes to others
    return any(
        all(has_acknowledged(node, step) for node in database.transitions[step.transition].participants)
        for step in steps
        if _is_present(step, database)
    )


def _is_present(step: Acknowledgement, database: Database) -> bool:
    record = database.transitions.get(step.transition)
    return record is not None and step_of(record) == step
