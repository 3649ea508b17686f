"""What the core makes of a store in banks: the slots of banks that nobody uses are as good as blank (P11.7)."""

import pytest

from muster.core.draft import Draft, Facts
from muster.core.inputs import StripRead
from muster.core.leases.memory import Memory
from muster.core.leases.observer import Observer
from muster.core.mastership import machine as mastership
from muster.core.mastership.machine import Read
from muster.core.nodes.requests import carry_out
from muster.core.refusal import Refused
from muster.records.database import Database
from muster.records.nodes import AddNode, Cluster, NodeConfig
from muster.records.registers import (
    BANK_ENDS,
    MAXIMUM_SLOTS,
    Armed,
    Deadman,
    Lease,
    LeaseState,
    RegisterKind,
    Strip,
    bank_of,
    blank_register,
)
from muster.records.terms import NO_TERM, Stamp, Term
from muster.records.timing import FAST, STANDARD, WatchdogTimes

VERIFIER = "ab" * 32
MS = 1000
LEASE_MS = 2600


def strip(shown: int, slots: int = MAXIMUM_SLOTS, incarnation: int = 7) -> Strip:
    """A read of a store in banks that shows the registers of the first slots."""
    blank = [tuple(blank_register(kind, node) for node in range(shown)) for kind in RegisterKind]
    leases = tuple(lease(node, incarnation) for node in range(shown))
    return Strip(leases, blank[1], blank[2], blank[3], slots)  # type: ignore[arg-type]


def lease(node: int, incarnation: int = 7, beat: int = 1) -> Lease:
    stamp = Stamp(node, incarnation, NO_TERM, beat)
    armed = Armed("a watchdog", WatchdogTimes(1000, 1000, 0, late_excluded=True), proves=True)
    return Lease(stamp, LeaseState.LIVE, Deadman.WATCHDOG, LEASE_MS, 2000, bytes(16), "", armed=armed)


def observer_of(node: int, seen: Strip) -> Observer:
    return Observer(node, 7, FAST, seen, one_machine=False)


def see(observer: Observer, seen: Strip, at_ms: int) -> None:
    observer.see(StripRead(1, seen, at_ms * MS, at_ms * MS + 100))


def test_p11_7_banks_grow_and_the_first_is_as_large_as_a_store_ever_was_by_default() -> None:
    assert BANK_ENDS[0] == 16 and BANK_ENDS[-1] == MAXIMUM_SLOTS == 256
    assert [bank_of(slot) for slot in (0, 15, 16, 31, 32, 63, 64, 127, 128, 255)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_p11_7_a_node_of_a_shut_bank_is_neither_live_nor_dead_nor_heard() -> None:
    observer = observer_of(0, strip(16))
    see(observer, strip(16), 100)
    assert not observer.is_live(200)
    assert observer.evidence(200, 0) is None and not observer.ran_out(200, 0)
    assert observer.silent_us(200) == 0 and observer.owed(200, 7) is None
    assert observer.unclean(200, 7, 1) == "its lease register does not show that incarnation"
    assert observer.holder(Term(3, 200)) == Term(3, 200)  # accepted from a master whom this read does not show yet
    assert list(observer.shut_slots()) == list(range(16, 256))
    assert set(observer.slots()) == set(range(16))


def test_p11_7_a_node_is_watched_from_the_first_read_that_shows_its_bank() -> None:
    observer = observer_of(0, strip(16))
    see(observer, strip(16), 100)
    see(observer, strip(32), 200)
    assert observer.is_live(20) and list(observer.shut_slots()) == list(range(32, 256))
    still_ms = 200
    while still_ms < 200 + 2 * LEASE_MS:  # its first beat is counted from that read on, never from an earlier one
        assert observer.evidence(20, 7) is None or still_ms >= 200 + LEASE_MS
        still_ms += 100
        see(observer, strip(32), still_ms)
    assert observer.evidence(20, 7) is not None


def test_p11_7_a_store_that_shows_a_bank_shut_again_is_another_one() -> None:
    memory = Memory({})
    memory.heard(Term(5, 20), 100)
    assert not memory.judge(StripRead(1, strip(16), 50, 60))  # it began before
    assert "node 20 is known to have claimed term 5" in memory.judge(StripRead(1, strip(16), 101, 110))
    observer = observer_of(0, strip(32))
    see(observer, strip(32), 100)
    see(observer, strip(16), 200)
    assert not observer.is_live(20)


def test_p11_7_claims_without_the_own_one_decide_nothing() -> None:
    own = strip(32).claims[20]
    assert own is not None
    state, _action = mastership.boot(own, 7)
    without = Strip((), strip(16).claims, (), ())  # read with a frame: its own bank seemed shut
    assert mastership.read(state, without, lambda _node, _incarnation: True)[1] == Read(again=True)


def test_p4_6_nobody_beats_more_slowly_than_the_slots_tell_that_a_read_shows() -> None:
    for profile in (FAST, STANDARD):
        observer = Observer(0, 7, profile, strip(16), one_machine=False)
        assert observer.beat_ms(200) == profile.heartbeat_interval_ms(16)
        assert observer.beat_ms(3) == profile.heartbeat_interval_ms(3)
        see(observer, strip(256), 100)
        assert observer.beat_ms(200) == profile.heartbeat_interval_ms(200)


def added_slot(shown: dict[int, int], shut: range, alive: tuple[int, ...] = ()) -> int:
    """Which slot a new node gets."""
    nodes = {0: NodeConfig(0, "n0", ("127.0.0.1:7000",), "")}
    facts = Facts(
        0, 0, {}, lambda _n, _i: None, lambda node: node in alive, {}, {}, services_open=True, slots=shown, shut=shut
    )  # fmt: skip
    draft = Draft(Database(Cluster("test", "0" * 32, "fast", ""), 5, nodes=nodes))
    carry_out(AddNode("n9", ("127.0.0.1:7009",), VERIFIER, 9), draft, facts)
    return next(iter(draft.nodes.keys() - nodes.keys()))


def test_p1_2_a_slot_of_a_shut_bank_is_taken_only_where_no_other_is_free() -> None:
    used = dict.fromkeys(range(16), 7)
    assert added_slot({**used, 5: 0}, range(16, 256)) == 5  # unused ones first
    assert added_slot(used, range(16, 256)) == 1  # used ones next: a further bank costs everybody reading
    assert added_slot(used, range(16, 256), tuple(range(16))) == 16
    assert added_slot(dict.fromkeys(range(32), 7), range(32, 256), tuple(range(32))) == 32
    with pytest.raises(Refused, match="no free slot: 16 slots"):
        added_slot(used, range(0), tuple(range(16)))
