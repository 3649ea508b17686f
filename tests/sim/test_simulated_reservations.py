"""Disks with persistent reservations in virtual time: no write after the proof, and what breaks a rule shows."""

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from key_world import Broken, KeyWorld, Life
from muster.core.reservations.keys import Answer, Command, Status, Verb
from muster.core.reservations.preemption import Preemption, Request, Step
from muster.core.reservations.registrant import PathState, Registrant

SEEDS = 2 * int(os.environ.get("MUSTER_SIM_SEEDS", "96"))
BATCHES = 4
WITHIN = 120  # seeds in which each deliberate error shows


@pytest.mark.random_faults
@pytest.mark.parametrize("batch", range(BATCHES))
def test_p7_37_to_p7_44_no_write_of_a_preempted_incarnation_is_accepted_after_its_proof(batch: int) -> None:
    """And no reservation goes while somebody runs; who is condemned has stopped in the end, by its own doing."""
    told: Counter[str] = Counter()
    for seed in range(batch, SEEDS, BATCHES):
        world = KeyWorld(seed)
        try:
            world.run()
        except AssertionError as error:
            pytest.fail(f"seed {seed}: {error}")
        told += world.told
    assert told["proven"] and told["gone"] and told["repairs"] and told["leaves"] and told["writes refused"]


# ---- deliberate errors -----------------------------------------------------------------------------------------------


def _shows(seeds: int = WITHIN) -> str:
    """How the error in force shows first."""
    for seed in range(seeds):
        try:
            KeyWorld(seed).run()
        except Broken as found:
            return str(found)
    return ""


def test_p7_40_preempt_without_abort_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Preemption.wanted

    def wanted(self: Preemption, held: list[str], turn: int = 0) -> Command | None:
        command = original(self, held, turn)
        is_it = command is not None and command.verb is Verb.PREEMPT_ABORT
        return command._replace(verb=Verb.PREEMPT) if command is not None and is_it else command

    monkeypatch.setattr(Preemption, "wanted", wanted)
    assert "proven to write nothing" in _shows()


def test_p7_40_a_proof_by_one_of_two_disks_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Request, "is_proven", property(lambda self: bool(self.done)))
    assert "proven to write nothing" in _shows()


def test_p7_40_a_key_that_is_not_there_taken_for_the_proof_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., None] = Preemption._seen

    def seen(self: Preemption, answer: Answer) -> None:
        original(self, answer)
        if self.step is Step.NO_PROOF and "no answer says" in self.why:
            self.step = Step.DONE

    monkeypatch.setattr(Preemption, "_seen", seen)
    assert "proven to write nothing" in _shows(4 * WITHIN)


def test_p7_41_release_with_a_single_holder_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(self: KeyWorld, life: Life) -> None:
        for disk in self.disks.values():
            if {nexus[0] for nexus in disk.keys} == {life.owner.node}:
                for nexus in list(disk.keys):
                    disk.unregister(nexus)
        life.end()

    monkeypatch.setattr(KeyWorld, "leave", leave)
    assert "reservation" in _shows(4 * WITHIN)


def test_p7_42_p7_43_a_repair_after_a_preemption_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., None] = Registrant._repair_goes_on

    def probed(self: Registrant, path: str, answer: Answer) -> bool:
        if answer.status is Status.CONFLICT:
            self.paths[path] = PathState.BARE
        return answer.status is Status.GOOD

    def wanted_later(self: Any) -> Command | None:
        if self._look_is_due and not self._look:
            self._look.extend(self.held)
            self._look_is_due = False
        if self._look:
            return Command(Verb.PROBE, self._look[0], self.key)
        return Command(Verb.REGISTER, self._repaired, self.key) if self._repaired else None

    def goes_on(self: Any, command: Command, answer: Answer) -> None:
        if command.verb is not Verb.REGISTER:
            original(self, command, answer)
            return
        self.paths[command.path] = PathState.HELD if answer.status is Status.GOOD else PathState.UNSURE
        self._repaired = ""

    monkeypatch.setattr(Registrant, "_probed", probed)
    monkeypatch.setattr(Registrant, "_wanted_later", wanted_later)
    monkeypatch.setattr(Registrant, "_repair_goes_on", goes_on)
    assert "proven to write nothing" in _shows()
