"""The lease writer's cycle and the last record of an incarnation, without a disk (P7.1, P7.2, P7.5, P11.1)."""

from collections.abc import Callable

import pytest

from muster.core.leases.lease import LeaseKeeper, Stop
from muster.drivers.image import lease_writer
from muster.drivers.image.lease_writer import CycleFailed, renew, write_tombstone
from muster.drivers.store.failures import StoreFailed
from muster.records.registers import Deadman, Lease, LeaseState, Marks
from muster.records.terms import NO_TERM, Stamp
from muster.records.timing import FAST

MS = 1000
BEFORE = Lease(Stamp(0, 6, NO_TERM, 40), LeaseState.CLEAN, Deadman.PID_NAMESPACE, 600, 120, bytes(16), "")


class FakeStore:
    """The own lease register and the marks, and what the store's path shows after a write."""

    one_machine = True

    def __init__(self, now: list[int]) -> None:
        self.own: Lease | None = BEFORE
        self.marks: tuple[Marks | None, ...] = (self.mark(0), self.mark(1))
        self.shown: str | None = ""
        self.writes = self.closed = 0
        self.takes_ms = 0
        self.failure: Exception | None = None
        self._now = now

    @staticmethod
    def mark(owner: int, *condemned: tuple[int, int]) -> Marks:
        """The marks register of a node."""
        return Marks(Stamp(owner, 5, NO_TERM, 1), condemned)

    def read_own(self) -> Lease | None:
        """As the guard reads it."""
        return self.own

    def read_leases(self) -> tuple[Lease | None, ...]:
        """The same, of all."""
        return (self.own,)

    def read_marks(self) -> tuple[Marks | None, ...]:
        """The same."""
        return self.marks

    def write_lease(self, lease: Lease) -> None:
        """Takes as long as it takes."""
        self._now[0] += self.takes_ms * MS
        if self.failure is not None:
            raise self.failure
        self.own, self.writes = lease, self.writes + 1

    def replaced(self, _written: Lease) -> str | None:
        """What is at the path."""
        return self.shown

    def close(self) -> None:
        """Nothing is open."""
        self.closed += 1


class Trial:
    """A keeper of incarnation 7, its store, and a clock of their own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = [1_000_000]
        monkeypatch.setattr(lease_writer, "boottime_us", lambda: self.now[0])
        self.store = FakeStore(self.now)
        self.keeper = LeaseKeeper(0, 7, BEFORE, FAST, Deadman.PID_NAMESPACE, bytes(16))

    def renew(self) -> int | Stop:
        """One cycle."""
        return renew(self.store, self.keeper)

    def bury(self, *, clean: bool = False) -> None:
        """The last record."""
        write_tombstone(self.store, self.keeper, clean=clean, cause="why")


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> Trial:
    """A node that has not renewed yet."""
    return Trial(monkeypatch)


def test_p7_1_the_deadline_counts_from_before_the_reads_however_long_the_write_takes(trial: Trial) -> None:
    began_us, trial.store.takes_ms = trial.now[0], 100
    assert trial.renew() == began_us + (FAST.lease_ms - FAST.panic_bound_ms) * MS
    assert trial.store.own is not None and trial.store.own.stamp == Stamp(0, 7, NO_TERM, 41)


def test_p7_1_a_renewal_that_took_longer_than_its_lease_stops_the_node(trial: Trial) -> None:
    trial.store.takes_ms = FAST.lease_ms
    assert isinstance(trial.renew(), Stop)


def _own_unknown(store: FakeStore) -> None:
    store.own = None


def _marks_unknown(store: FakeStore) -> None:
    store.marks = (store.marks[0], None)


def _nothing_shown(store: FakeStore) -> None:
    store.shown = None


def _disk_fails(store: FakeStore) -> None:
    store.failure = OSError("it is full")


def _store_fails(store: FakeStore) -> None:
    store.failure = StoreFailed("it is gone")


@pytest.mark.parametrize("happens", [_own_unknown, _marks_unknown, _nothing_shown, _disk_fails, _store_fails])
def test_p7_2_a_cycle_that_cannot_read_or_write_what_it_must_moves_no_deadline(
    happens: Callable[[FakeStore], None], trial: Trial
) -> None:
    before = trial.renew()
    happens(trial.store)
    with pytest.raises(CycleFailed):
        trial.renew()
    assert trial.keeper.deadline_us == before


def test_p7_2_before_anything_is_written_a_mark_or_a_foreign_record_stops_the_node(trial: Trial) -> None:
    trial.renew()
    written = trial.store.own
    assert written is not None
    trial.store.marks = (trial.store.mark(0), trial.store.mark(1, (0, 6)))
    assert isinstance(trial.renew(), int)  # it is about an incarnation that is gone
    trial.store.marks = (trial.store.mark(0), trial.store.mark(1, (0, 7)))
    stopped, writes = trial.renew(), trial.store.writes
    assert isinstance(stopped, Stop) and "node 1 forced it out" in stopped.cause
    trial.store.marks = (trial.store.mark(0), trial.store.mark(1))
    trial.store.own = written._replace(stamp=Stamp(0, 8, NO_TERM, 99))
    stopped = trial.renew()
    assert isinstance(stopped, Stop) and "a second node runs under this name" in stopped.cause
    assert trial.store.writes == writes


def test_p11_1_another_store_at_the_path_stops_the_node(trial: Trial) -> None:
    trial.renew()
    deadline_us = trial.keeper.deadline_us
    trial.now[0] += 100 * MS
    trial.store.shown = "beat 40, where 42 was written"
    stopped = trial.renew()
    assert isinstance(stopped, Stop) and "replaced by another file or device" in stopped.cause
    assert trial.keeper.deadline_us == deadline_us


@pytest.mark.parametrize(("clean", "state"), [(True, LeaseState.CLEAN), (False, LeaseState.PANICKED)])
def test_p7_5_a_tombstone_says_how_the_incarnation_has_ended(clean: bool, state: LeaseState, trial: Trial) -> None:
    trial.renew()
    trial.bury(clean=clean)
    found = trial.store.own
    assert found is not None
    assert (found.state, found.cause, found.stamp) == (state, "why", Stamp(0, 7, NO_TERM, 42))
    asked = f"bury {'clean' if clean else 'panic its store is gone'}"
    assert lease_writer._bury(trial.store, trial.keeper, asked) == "buried"
    found = trial.store.own
    assert found is not None
    assert (found.state, found.cause) == (state, "" if clean else "its store is gone")


def test_p7_5_no_tombstone_is_written_over_what_another_has_written(trial: Trial) -> None:
    trial.renew()
    for other in (BEFORE._replace(stamp=Stamp(0, 8, NO_TERM, 41), state=LeaseState.LIVE), None):
        trial.store.own = other
        with pytest.raises(CycleFailed, match="what this node did not write"):
            trial.bury()
        assert trial.store.own == other
    assert lease_writer._bury(trial.store, trial.keeper, "bury clean").startswith("unburied ")
