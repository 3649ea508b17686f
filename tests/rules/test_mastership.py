"""Mastership and the commit rule: the rules P2.x one by one, the exhaustive search, and machines it must reject."""

import itertools
import sys
from collections.abc import Callable
from typing import Any

import pytest

from muster.core.effects import ReadStrip, WriteClaim
from muster.core.mastership import machine as mastership
from muster.core.mastership.machine import (
    Became,
    Checkpoint,
    Compact,
    Decided,
    Halt,
    Load,
    Mastership,
    Phase,
    Read,
    Withdrawn,
    Write,
    WriteFrame,
)
from muster.core.mastership.tenure import Tenure, patience_of
from muster.records.registers import NO_MARK, Claim, ClaimFlag, Mark, Strip
from muster.records.terms import NO_TERM, Stamp, Term
from muster.records.timing import FAST
from muster.sim.search import exhaustive, mastership_model
from muster.sim.search.exhaustive import MastershipResult, run
from muster.sim.search.mastership_model import Bounds, Mode
from muster.sim.search.too_large import SearchTooLarge

OWN_MARK = Mark(Term(3, 0), 0, 4)
SILENT = Bounds(claims=2, frames=1, crashes=0, compactions=0, withdrawals=0, stale_claims=0, hangs=2)
BUSY = [
    Bounds(claims=3, frames=2, crashes=1, compactions=1, withdrawals=0, stale_claims=0),
    Bounds(claims=4, frames=2, crashes=0, compactions=2, withdrawals=0, stale_claims=0),
]


def alive(_node: int, _incarnation: int) -> bool:
    return False


def dead(_node: int, _incarnation: int) -> bool:
    return True


def claim_of(node: int, term: Term, flag: ClaimFlag, mark: Mark = NO_MARK) -> Claim:
    return Claim(Stamp(node, 1, term, 5), flag, mark)


def strip_of(*claims: Claim | None) -> Strip:
    return Strip((), claims, (), ())


def withdrawn(node: int, term: Term = NO_TERM, mark: Mark = NO_MARK) -> Claim:
    return claim_of(node, term, ClaimFlag.WITHDRAWN, mark)


def idle_machine(term: Term = OWN_MARK.term, mark: Mark = OWN_MARK) -> Mastership:
    """Node 0's machine, booted, its withdrawal durable."""
    state, _ = mastership.written(mastership.boot(withdrawn(0, term, mark), 1)[0])
    return state


def claiming_machine(other: Claim) -> Mastership:
    """Node 0's machine, its claim durable, before the read of all claims."""
    state, _ = mastership.claim(idle_machine(), strip_of(idle_machine().claim, other))
    return mastership.written(state)[0]


def master_machine() -> Mastership:
    """Node 0's machine as master of 4.0, its journal in half 1."""
    other = withdrawn(1)
    state, action = mastership.read(claiming_machine(other), strip_of(claiming_machine(other).claim, other), alive)
    assert isinstance(action, Load)
    state, action = mastership.loaded(state, b"database")
    for _ in range(8):
        if isinstance(action, Read):
            state, action = mastership.read(state, strip_of(state.claim, other), alive)
        elif isinstance(action, Checkpoint | Write):
            state, action = mastership.written(state)
    assert action == Became(Term(4, 0))
    return state


def checking_machine() -> Mastership:
    """Node 0's machine with a durable frame, before the read that decides it."""
    state, action = mastership.propose(master_machine(), b"frame")
    assert isinstance(action, WriteFrame)
    state, action = mastership.written(state)
    assert isinstance(action, Read)
    return state


# ---- the rules -------------------------------------------------------------------------------------------------------


def test_p2_1_a_boot_withdraws_what_an_earlier_life_claimed_and_keeps_term_and_mark() -> None:
    state, action = mastership.boot(claim_of(0, Term(7, 0), ClaimFlag.MASTER, OWN_MARK), 2)
    assert action == Write(Claim(Stamp(0, 2, Term(7, 0), 6), ClaimFlag.WITHDRAWN, OWN_MARK))
    assert not state.is_master
    state, action = mastership.written(state)
    assert isinstance(action, Withdrawn)
    assert (state.phase, state.term) == (Phase.IDLE, Term(7, 0))


def test_p2_1_an_abdication_keeps_term_and_mark() -> None:
    master = master_machine()
    state, action = mastership.abdicate(master)
    assert isinstance(action, Write)
    assert (action.claim.flag, action.claim.stamp.term) == (ClaimFlag.WITHDRAWN, Term(4, 0))
    assert action.claim.mark == master.claim.mark
    assert not state.is_master


def test_p2_1_an_abdication_waits_for_the_frame_in_flight() -> None:
    state, action = mastership.abdicate(checking_machine())
    assert action is None
    state, action = mastership.read(state, strip_of(state.claim, withdrawn(1)), alive)
    assert action == Decided(b"frame")
    assert state.abdicating


def test_p2_2_a_claim_is_above_all_terms_seen_whatever_their_flags() -> None:
    for flag in ClaimFlag:
        _, action = mastership.claim(idle_machine(), strip_of(idle_machine().claim, claim_of(1, Term(9, 1), flag)))
        assert isinstance(action, Write)
        assert action.claim.flag is ClaimFlag.CLAIMING
        assert action.claim.stamp.term == Term(10, 0)
        assert action.claim.mark == OWN_MARK


def test_p2_2_a_claim_is_above_the_own_term_even_by_an_old_read() -> None:
    _, action = mastership.claim(idle_machine(Term(12, 0)), strip_of(withdrawn(0), withdrawn(1)))
    assert isinstance(action, Write)
    assert action.claim.stamp.term == Term(13, 0)


def test_p2_2_nobody_claims_while_a_predecessor_may_act_or_a_claim_is_unknown() -> None:
    own = idle_machine().claim
    for flag in (ClaimFlag.CLAIMING, ClaimFlag.MASTER):
        assert not mastership.may_claim(strip_of(own, claim_of(1, Term(3, 1), flag)), 0, alive)
        assert mastership.may_claim(strip_of(own, claim_of(1, Term(3, 1), flag)), 0, dead)
    assert mastership.may_claim(strip_of(own, withdrawn(1)), 0, alive)
    assert not mastership.may_claim(strip_of(own, None), 0, dead)


def test_p2_3_a_claimer_withdraws_from_a_higher_term_however_dead_or_withdrawn_its_writer() -> None:
    state = claiming_machine(withdrawn(1))
    for flag in ClaimFlag:
        after, action = mastership.read(state, strip_of(state.claim, claim_of(1, Term(4, 1), flag)), dead)
        assert isinstance(action, Write)
        assert action.claim.flag is ClaimFlag.WITHDRAWN
        assert action.claim.stamp.term == Term(4, 0)
        assert after.phase is Phase.SETTLING


def test_p2_3_a_master_that_notices_a_higher_term_stops_at_once() -> None:
    master = master_machine()
    state, action = mastership.observe(master, strip_of(None, claim_of(1, Term(4, 1), ClaimFlag.WITHDRAWN)))
    assert isinstance(action, Write)
    assert not state.is_master
    assert mastership.observe(master, strip_of(None, claim_of(1, Term(3, 1), ClaimFlag.CLAIMING))) == (master, None)


def test_p2_4_a_claimer_waits_for_a_lower_claim_until_it_withdraws_or_is_proven_dead() -> None:
    lower = claim_of(1, Term(3, 1), ClaimFlag.CLAIMING)
    state = claiming_machine(lower)
    assert mastership.read(state, strip_of(state.claim, lower), alive) == (state, Read(again=True))
    for strip, is_dead in ((strip_of(state.claim, lower), dead), (strip_of(state.claim, withdrawn(1)), alive)):
        assert isinstance(mastership.read(state, strip, is_dead)[1], Load)


def test_p2_4_an_unknown_register_decides_nothing() -> None:
    for state in (claiming_machine(withdrawn(1)), checking_machine()):
        assert mastership.read(state, strip_of(state.claim, None), dead) == (state, Read(again=True))


def test_p2_5_the_newest_mark_is_adopted_whoever_wrote_it() -> None:
    newest = Mark(Term(3, 1), 1, 2)
    marks = [NO_MARK, OWN_MARK, newest, Mark(Term(3, 1), 0, 1), Mark(Term(2, 2), 0, 99)]
    claims = tuple(withdrawn(node, Term(5, node), mark) for node, mark in enumerate(marks))
    assert mastership.newest_mark(strip_of(*claims)) == (2, newest)


def test_p2_5_an_adoption_writes_the_other_half_first_and_its_mark_last() -> None:
    other = withdrawn(1)
    state = claiming_machine(other)
    state, action = mastership.read(state, strip_of(state.claim, other), alive)
    assert action == Load(0, OWN_MARK)
    state, action = mastership.loaded(state, b"database")
    while isinstance(action, Read):
        state, action = mastership.read(state, strip_of(state.claim, other), alive)
    new = Mark(Term(4, 0), 1 - OWN_MARK.half, OWN_MARK.generation + 1)
    assert action == Checkpoint(new, b"database")
    assert state.claim.mark == OWN_MARK
    state, action = mastership.written(state)
    assert isinstance(action, Write)
    assert (action.claim.flag, action.claim.mark) == (ClaimFlag.MASTER, new)
    state, action = mastership.written(state)
    assert isinstance(action, Read)
    assert not state.is_master
    state, action = mastership.read(state, strip_of(state.claim, other), alive)
    assert action == Became(Term(4, 0))
    assert state.is_master


def test_p2_5_a_journal_that_cannot_be_read_whole_is_not_adopted_and_no_older_one_instead() -> None:
    state = claiming_machine(withdrawn(1))
    state, _ = mastership.read(state, strip_of(state.claim, withdrawn(1)), alive)
    _, action = mastership.failed(state)
    assert isinstance(action, Write)
    assert (action.claim.flag, action.claim.mark) == (ClaimFlag.WITHDRAWN, OWN_MARK)


def test_p2_6_a_frame_is_decided_only_by_a_read_after_its_write_that_shows_no_higher_term() -> None:
    state = checking_machine()
    assert mastership.read(state, strip_of(state.claim, claim_of(1, Term(3, 1), ClaimFlag.CLAIMING)), alive)[
        1
    ] == Decided(b"frame")
    for flag in ClaimFlag:
        _, action = mastership.read(state, strip_of(state.claim, claim_of(1, Term(4, 1), flag)), dead)
        assert isinstance(action, Write)
        assert action.claim.flag is ClaimFlag.WITHDRAWN


def test_p2_6_each_frame_of_a_journal_comes_behind_the_one_before_it() -> None:
    state, numbers = master_machine(), []
    for _ in range(3):
        state, action = mastership.propose(state, b"frame")
        assert isinstance(action, WriteFrame)
        numbers.append(action.number)
        state = mastership.written(state)[0]
        state, action = mastership.read(state, strip_of(state.claim, withdrawn(1)), alive)
        assert action == Decided(b"frame")
    assert numbers == [0, 1, 2]


def committing_tenure(own: Claim) -> Tenure:
    """A mastership machine whose frame has been appended, and not answered yet."""
    tenure = Tenure(own, own.stamp.incarnation, 1000, itertools.count(1), patience_of(FAST))
    tenure.state = checking_machine()._replace(phase=Phase.COMMIT_WRITE)
    return tenure


@pytest.mark.parametrize("number", [3, 4])
def test_p2_6_claims_read_with_the_append_decide_as_a_read_of_its_own_does(number: int) -> None:
    own = checking_machine().claim
    claims = strip_of(own, claim_of(1, Term(number, 1), ClaimFlag.CLAIMING)).claims
    tenure = committing_tenure(own)
    tenure.done(1, claims, dead)
    effects, outcomes = tenure.drain()
    if number < own.stamp.term.number:
        assert (effects, outcomes) == ([], [Decided(b"frame")])
    else:  # a higher term, however dead its writer
        assert outcomes == []
        assert [type(effect) for effect in effects] == [WriteClaim]


def test_p2_6_without_such_claims_or_with_an_unknown_one_the_machine_reads_for_itself() -> None:
    own = checking_machine().claim
    tenure = committing_tenure(own)
    tenure.done(1, (), dead)
    assert [type(effect) for effect in tenure.drain()[0]] == [ReadStrip]
    tenure = committing_tenure(own)
    tenure.done(1, (own, None), dead)
    assert tenure.drain() == ([], [])
    assert tenure.retry_us is not None
    tenure.retry(tenure.retry_us)
    assert [type(effect) for effect in tenure.drain()[0]] == [ReadStrip]


def test_p2_6_a_foreign_record_in_the_own_register_halts_whatever_else_was_read() -> None:
    for state in (claiming_machine(withdrawn(1)), checking_machine()):
        foreign = state.claim._replace(stamp=state.claim.stamp._replace(incarnation=77))
        for other in (withdrawn(1), claim_of(1, Term(9, 1), ClaimFlag.MASTER), None):
            assert isinstance(mastership.read(state, strip_of(foreign, other), dead)[1], Halt)


def test_p2_7_a_full_journal_goes_on_in_the_other_half_and_the_frame_after_the_mark() -> None:
    master = master_machine()
    state = master._replace(frame_number=3)
    state, action = mastership.propose(state, b"frame")
    assert action == WriteFrame(master.claim.mark, 3, b"frame")
    state, action = mastership.full(state)
    assert action == Compact()
    state, action = mastership.compact(state, b"database")
    old = master.claim.mark
    new = Mark(Term(4, 0), 1 - old.half, old.generation + 1)
    assert action == Checkpoint(new, b"database")
    assert state.claim.mark == old
    state, action = mastership.written(state)
    assert isinstance(action, Write)
    assert action.claim.mark == new
    state, action = mastership.written(state)
    assert action == WriteFrame(new, 0, b"frame")


def test_p2_7_a_frame_that_fits_into_no_half_is_given_up() -> None:
    state, _ = mastership.propose(master_machine(), b"frame")
    assert state.frame_number == 0
    _, action = mastership.full(state)
    assert isinstance(action, Write)
    assert action.claim.flag is ClaimFlag.WITHDRAWN


def test_p2_8_what_was_loaded_counts_only_after_a_read_that_shows_no_higher_term() -> None:
    state = claiming_machine(withdrawn(1))
    state, _ = mastership.read(state, strip_of(state.claim, withdrawn(1)), alive)
    state, action = mastership.loaded(state, b"database")
    assert isinstance(action, Read)
    _, action = mastership.read(state, strip_of(state.claim, claim_of(1, Term(5, 1), ClaimFlag.CLAIMING)), dead)
    assert isinstance(action, Write)
    assert (action.claim.flag, action.claim.mark) == (ClaimFlag.WITHDRAWN, OWN_MARK)


# ---- the search ------------------------------------------------------------------------------------------------------


def search(
    nodes: int, mode: Mode, capfd: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    """Search the default suite; print the number of states past pytest's capture, also under xdist."""
    reached: set[str] = set()
    for position, bounds in enumerate(exhaustive.suite(nodes, mode)):
        # The widest bounds come first; that a master can be found from all of their states is left to `make soak`.
        result = run(nodes, bounds, mode, check_progress=nodes == 2 and mode is not Mode.CLONE and position > 0)
        line = f"{nodes} nodes, {mode.value}, {bounds}: {str(result).splitlines()[0]}"
        record_property("exhaustive", line)
        with capfd.disabled():
            sys.stderr.write(f"\nexhaustive search, {line}\n")
        assert not result.violations, f"\n{result}"
        reached |= result.reached
    assert {phase.name for phase in Phase} - reached <= (
        {"COMPACT_CHECKPOINT", "COMPACT_MARK"} if mode is Mode.CLONE else set()
    )
    assert "decided 1" in reached
    assert ("halted" in reached) is (mode is Mode.CLONE)


@pytest.mark.parametrize(
    "mode",
    [mode if mode is Mode.SILENCE else pytest.param(mode, marks=pytest.mark.long) for mode in Mode],
    ids=lambda mode: mode.value,
)
def test_every_run_of_two_nodes_is_safe_and_finds_a_master(
    mode: Mode, capfd: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    search(2, mode, capfd, record_property)


@pytest.mark.soak
@pytest.mark.parametrize("mode", [Mode.SILENCE, Mode.ALWAYS_OUT], ids=lambda mode: mode.value)
def test_from_every_state_of_two_nodes_a_master_can_be_found(mode: Mode) -> None:
    result = run(2, exhaustive.suite(2, mode)[0], mode, check_progress=True)
    assert not result.violations, f"\n{result}"


@pytest.mark.soak
@pytest.mark.parametrize("mode", Mode, ids=lambda mode: mode.value)
def test_every_run_of_three_nodes_is_safe(
    mode: Mode, capfd: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    search(3, mode, capfd, record_property)


# ---- machines that the search must reject ----------------------------------------------------------------------------

Patch = Callable[[pytest.MonkeyPatch], None]
original = {name: getattr(mastership, name) for name in dir(mastership) if not name.startswith("__")}


def ignoring_dead_writers(patch: pytest.MonkeyPatch) -> None:
    def read(state: Mastership, strip: Strip, is_out: mastership.IsOut, **given: bool) -> Any:
        def lowered(claim: Claim | None) -> Claim | None:
            if (
                claim is None
                or claim.stamp.owner == state.node
                or not is_out(claim.stamp.owner, claim.stamp.incarnation)
            ):
                return claim
            return claim._replace(stamp=claim.stamp._replace(term=NO_TERM))

        claims = tuple(lowered(claim) for claim in strip.claims)
        return original["read"](state, strip._replace(claims=claims), is_out, **given)

    patch.setattr(mastership, "read", read)


def lowering_the_term_on_withdrawal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mastership, "withdrawn_term", lambda state: state.claim.mark.term)


def claiming_the_highest_term_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mastership, "next_term", lambda highest, node: Term(highest.number, node))


def committing_without_the_read(patch: pytest.MonkeyPatch) -> None:
    def written(state: Mastership) -> Any:
        if state.phase is not Phase.COMMIT_WRITE:
            return original["written"](state)
        decided = state._replace(phase=Phase.MASTER, frame_number=state.frame_number + 1, frame=b"")
        return decided, Decided(state.frame)

    patch.setattr(mastership, "written", written)


def becoming_master_without_the_read(patch: pytest.MonkeyPatch) -> None:
    def written(state: Mastership) -> Any:
        if state.phase is not Phase.ADOPT_MARK:
            return original["written"](state)
        return state._replace(phase=Phase.MASTER), Became(state.term)

    patch.setattr(mastership, "written", written)


def reading_before_the_claim_is_written(patch: pytest.MonkeyPatch) -> None:
    def claim(state: Mastership, strip: Strip) -> Any:
        state, action = original["claim"](state, strip)
        return state._replace(next_mark=mastership.newest_mark(strip)[1]), action

    def written(state: Mastership) -> Any:
        if state.phase is not Phase.CLAIM_WRITE:
            return original["written"](state)
        return state._replace(phase=Phase.LOADING), Load(state.next_mark.term.node, state.next_mark)

    patch.setattr(mastership, "claim", claim)
    patch.setattr(mastership, "written", written)


def overwriting_the_own_marked_half(patch: pytest.MonkeyPatch) -> None:
    def same_half(state: Mastership) -> Mark:
        own = state.claim.mark
        return Mark(state.term, own.half, own.generation + 1)

    patch.setattr(mastership, "_other_half", same_half)


def marking_before_the_checkpoint(patch: pytest.MonkeyPatch) -> None:
    def loaded(state: Mastership, blob: bytes) -> Any:
        state, _ = original["loaded"](state, blob)
        return mastership._write(
            state._replace(phase=Phase.ADOPT_MARK, frame=b""),
            ClaimFlag.MASTER,
            state.term,
            original["_other_half"](state),
        )

    patch.setattr(mastership, "loaded", loaded)


def taking_an_unknown_register_for_an_empty_one(patch: pytest.MonkeyPatch) -> None:
    def read(state: Mastership, strip: Strip, is_out: mastership.IsOut, **given: bool) -> Any:
        claims = tuple(withdrawn(node) if claim is None else claim for node, claim in enumerate(strip.claims))
        return original["read"](state, strip._replace(claims=claims), is_out, **given)

    patch.setattr(mastership, "read", read)


def adopting_an_older_mark(patch: pytest.MonkeyPatch) -> None:
    def oldest_mark(strip: Strip) -> tuple[int, Mark]:
        claims = [claim for claim in strip.claims if claim is not None and claim.mark != NO_MARK]
        oldest = min(claims, key=lambda claim: claim.mark)
        return oldest.stamp.owner, oldest.mark

    patch.setattr(mastership, "newest_mark", oldest_mark)


def adopting_by_generation_instead_of_term(patch: pytest.MonkeyPatch) -> None:
    def most_written(strip: Strip) -> tuple[int, Mark]:
        claims = [claim for claim in strip.claims if claim is not None]
        newest = max(claims, key=lambda claim: (claim.mark.generation, claim.mark.term))
        return newest.stamp.owner, newest.mark

    patch.setattr(mastership, "newest_mark", most_written)


def not_waiting_for_a_live_claim(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mastership, "_live_claims", lambda _strip, _node, _is_dead: [])


def waiting_for_withdrawn_claims_too(patch: pytest.MonkeyPatch) -> None:
    def live_claims(strip: Strip, node: int, is_out: mastership.IsOut) -> list[int]:
        return [
            claim.stamp.owner
            for claim in strip.claims
            if claim is not None
            and claim.stamp.owner != node
            and claim.stamp.term != NO_TERM
            and not is_out(claim.stamp.owner, claim.stamp.incarnation)
        ]

    patch.setattr(mastership, "_live_claims", live_claims)


def compacting_away_what_was_decided(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mastership, "compact", lambda state, _blob: original["compact"](state, b""))


def adopting_what_was_loaded_without_the_read(patch: pytest.MonkeyPatch) -> None:
    def loaded(state: Mastership, blob: bytes) -> Any:
        mark = mastership._other_half(state)
        return state._replace(phase=Phase.ADOPT_CHECKPOINT, next_mark=mark), Checkpoint(mark, blob)

    patch.setattr(mastership, "loaded", loaded)


def compacting_twice_for_one_frame(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mastership, "full", lambda state: (state._replace(phase=Phase.COMPACT_CHECKPOINT), Compact()))


def overlooking_a_clone(patch: pytest.MonkeyPatch) -> None:
    def read(state: Mastership, strip: Strip, is_out: mastership.IsOut, **given: bool) -> Any:
        claims = tuple(state.claim if node == state.node else claim for node, claim in enumerate(strip.claims))
        return original["read"](state, strip._replace(claims=claims), is_out, **given)

    patch.setattr(mastership, "read", read)


def waiting_for_proof_of_death(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mastership_model, "is_out_of", lambda slot: slot.gone)


def leading_on_a_lease_that_has_run_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mastership, "read", lambda state, strip, is_out, **_given: original["read"](state, strip, is_out))
    patch.setattr(mastership, "observe", lambda state, strip, **_given: original["observe"](state, strip))


def acting_on_as_soon_as_the_beats_go_on(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mastership_model, "lapse_of", lambda _process: 0)


MUTANTS: list[tuple[Patch, Mode, str]] = [
    (ignoring_dead_writers, Mode.ALWAYS_OUT, "had adopted|had decided"),
    (lowering_the_term_on_withdrawal, Mode.SILENCE, "gets lower"),
    (claiming_the_highest_term_again, Mode.SILENCE, "second time"),
    (committing_without_the_read, Mode.ALWAYS_OUT, "had adopted|had decided"),
    (becoming_master_without_the_read, Mode.ALWAYS_OUT, "had adopted|had decided"),
    (reading_before_the_claim_is_written, Mode.ALWAYS_OUT, "had adopted|had decided"),
    (overwriting_the_own_marked_half, Mode.SILENCE, "overwrites its own journal"),
    (marking_before_the_checkpoint, Mode.SILENCE, "not whole"),
    (taking_an_unknown_register_for_an_empty_one, Mode.SILENCE, "acts as master|had adopted|had decided"),
    (adopting_an_older_mark, Mode.SILENCE, "had adopted|had decided"),
    (adopting_by_generation_instead_of_term, Mode.SILENCE, "had adopted|had decided"),
    (not_waiting_for_a_live_claim, Mode.SILENCE, "acts as master"),
    (waiting_for_withdrawn_claims_too, Mode.SILENCE, "lead for good"),
    (compacting_away_what_was_decided, Mode.SILENCE, "had adopted|had decided"),
    (adopting_what_was_loaded_without_the_read, Mode.ALWAYS_OUT, "had adopted|had decided"),
    (compacting_twice_for_one_frame, Mode.ALWAYS_OUT, "had adopted|had decided"),
    (overlooking_a_clone, Mode.CLONE, "did not write"),
    (waiting_for_proof_of_death, Mode.SILENCE, "lead for good"),
    (leading_on_a_lease_that_has_run_out, Mode.SILENCE, "leads on"),
    (acting_on_as_soon_as_the_beats_go_on, Mode.SILENCE, "acts as master"),
]


@pytest.mark.parametrize(("mutant", "mode", "finding"), MUTANTS, ids=lambda value: getattr(value, "__name__", ""))
def test_the_search_rejects_a_machine(mutant: Patch, mode: Mode, finding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    result: MastershipResult | None = None
    silent = mutant in (
        waiting_for_proof_of_death, leading_on_a_lease_that_has_run_out, acting_on_as_soon_as_the_beats_go_on,
    )  # fmt: skip
    for bounds in [SILENT] if silent else exhaustive.suite(2, mode) if mode is Mode.CLONE else BUSY:
        result = run(2, bounds, mode, check_progress=mode is Mode.SILENCE)
        if result.violations:
            break
    assert result is not None
    assert len(result.violations) == 1, "the mutant passes: the search does not see what it breaks"
    assert any(words in result.violations[0] for words in finding.split("|")), f"\n{result}"
    assert result.counterexample


def test_a_counterexample_is_told_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    committing_without_the_read(monkeypatch)
    result = run(2, BUSY[0], Mode.ALWAYS_OUT)
    assert [int(line.split(".")[0]) for line in result.counterexample] == list(range(1, len(result.counterexample) + 1))
    assert all(": " in line for line in result.counterexample)
    assert str(result).splitlines()[1:] == list(result.counterexample)


def test_bounds_out_of_range_and_searches_too_large_are_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 15"):
        run(2, BUSY[0]._replace(claims=16), Mode.SILENCE)
    with pytest.raises(ValueError, match="2 to 4"):
        run(5, BUSY[0], Mode.SILENCE)
    with pytest.raises(SearchTooLarge, match="lower the other bounds"):
        run(2, BUSY[0]._replace(states=1000), Mode.SILENCE)
