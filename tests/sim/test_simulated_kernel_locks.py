"""Random histories of the kernels' lockspaces, judged at every command (P12.30-P12.36; see `kernel_world.py`)."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from kernel_world import KernelWorld
from lock_world import Broken
from muster.core.locks.kernel import KernelSpaces

SEEDS = 2 * int(os.environ.get("MUSTER_SIM_SEEDS", "96"))
BATCHES = 4
FOUND = (134, 227, 597, 652, 695, 748, 1940)  # seeds that once showed a fault


@pytest.mark.random_faults
@pytest.mark.parametrize("batch", range(BATCHES))
def test_p12_30_p12_31_p12_32_all_stop_before_any_starts_and_nobody_starts_before_proof(batch: int) -> None:
    """Started only when all members have stopped, with the same members, without nobody that is not proven dead.

    And in the end everybody who waits has been let in or let go, wherever a death has come between.
    """
    entered = ends = faults = 0
    for seed in sorted({*range(batch, SEEDS, BATCHES), *FOUND[batch::BATCHES]}):
        world = KernelWorld(seed, faults=20 if seed // BATCHES % 2 else 8)
        try:
            world.run()
        except (AssertionError, KeyError) as error:
            pytest.fail(f"seed {seed}: {error!r}")
        entered, ends = entered + world.entered_spaces, ends + world.ends
        faults += sum(world.told.values())
    assert entered > SEEDS // BATCHES * 4 and ends > SEEDS // BATCHES and faults > SEEDS // BATCHES * 3


def _answers_at_once(self: KernelSpaces, message: Any) -> None:
    self._send(self.coordinator, message)


def _stops_nothing(self: KernelSpaces, _name: str) -> None:
    del self


def _leaves_out_who_is_silent(original: Callable[..., None]) -> Callable[..., None]:
    def ask(self: KernelSpaces, seats: Any, message: Any) -> None:
        original(self, seats, message)
        if self._change is not None and len(self._change.awaited) > 1:
            self._change.awaited.pop()

    return ask


def _is_always_done(_self: KernelSpaces) -> bool:
    return True


MUTANTS: dict[str, tuple[str, Any]] = {
    "it answers before its kernel has stopped": ("_answer", _answers_at_once),
    "a round stops nothing": ("_stop", _stops_nothing),
    "the coordinator does not wait for all": ("_ask", _leaves_out_who_is_silent(KernelSpaces._ask)),
    "barriers do not wait for the kernel": ("has_done_all", property(_is_always_done)),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_checker_notices_every_way_to_start_too_early(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attribute, wrong = MUTANTS[name]
    monkeypatch.setattr(KernelSpaces, attribute, wrong)
    for seed in range(60):
        try:
            KernelWorld(seed, faults=20).run()
        except (Broken, AssertionError, KeyError, RuntimeError):
            return
    pytest.fail(f"nobody notices: {name}")
