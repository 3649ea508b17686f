"""What the control socket takes for an operation is bounded before the core sees it (SPEC 7.8)."""

from typing import Any

import pytest

from muster.daemon.socket.operations import read_operation
from muster.records.refusal import ControlRefused
from muster.records.service_limits import MAXIMUM_DURATION_MS
from muster.records.services import SetMaintenance, SetStandby

MAINTAIN = {"kind": "service", "subject": "web"}


def test_the_duration_of_a_maintenance_or_a_standby_is_taken_as_it_is() -> None:
    maintenance = read_operation("maintain", {**MAINTAIN, "duration_ms": MAXIMUM_DURATION_MS})
    assert isinstance(maintenance, SetMaintenance)
    assert maintenance.duration_ms == MAXIMUM_DURATION_MS
    standby = read_operation("standby", {"node": "n0"})
    assert isinstance(standby, SetStandby)
    assert standby.duration_ms == 0


@pytest.mark.parametrize("duration_ms", [-1, MAXIMUM_DURATION_MS + 1, 1 << 70])
@pytest.mark.parametrize(("name", "arguments"), [("maintain", MAINTAIN), ("standby", {"node": "n0"})])
def test_a_duration_that_cannot_be_is_refused_with_what_is_allowed(
    name: str, arguments: dict[str, Any], duration_ms: int
) -> None:
    with pytest.raises(ControlRefused, match="allowed are 0"):
        read_operation(name, {**arguments, "duration_ms": duration_ms})
