"""Waiting for a state of real nodes, with a deadline."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

from muster.client.errors import ClientError

DEADLINE_S = 30.0
PAUSE_S = 0.02


def wait(what: str, probe: Callable[[], Any]) -> Any:
    """Poll until the answer is true; that answer. A node that does not answer is asked again."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        with contextlib.suppress(ClientError):
            if found := probe():
                return found
        assert time.monotonic() < deadline, f"waited {DEADLINE_S} s for {what}"
        time.sleep(PAUSE_S)
