"""Persistent reservations: keys, boot, repair, preemption, audit (P7.37 to P7.44)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.core.reservations.audit import Findings, Standing, audit
from muster.core.reservations.keys import (
    ALL_REGISTRANTS,
    Answer,
    Capabilities,
    Command,
    Owner,
    Status,
    Verb,
    View,
    key_of,
    owner_of,
    tag_of,
    why_no_proof,
)
from muster.core.reservations.preemption import Preemption, Report, Request, Step, handed_on, with_report
from muster.core.reservations.registrant import PathState, Registrant, Stage

TAG = tag_of("this cluster")
ME, OTHER, THIRD = Owner(0, 3), Owner(1, 5), Owner(2, 1)
MINE, THEIRS = key_of(TAG, ME), key_of(TAG, OTHER)
ABLE = Capabilities(frozenset({ALL_REGISTRANTS}), aborts=True, keeps=True)
GOOD, CONFLICT, LOST = Answer(Status.GOOD), Answer(Status.CONFLICT), Answer(Status.LOST)
CAN = Answer(Status.GOOD, capabilities=ABLE)


def _seen(*keys: int, kind: int = ALL_REGISTRANTS) -> Answer:
    return Answer(Status.GOOD, View(keys, kind))


def _told(machine: Registrant, *answers: Answer) -> list[Command]:
    """What it has asked for, each answered so."""
    asked = []
    for answer in answers:
        command = machine.wanted()
        assert command is not None
        asked.append(command)
        machine.answered(command, answer)
    return asked


def _booted(*paths: str) -> Registrant:
    machine = Registrant(TAG, ME, paths)
    _told(machine, CAN, _seen(THEIRS), *(GOOD for _ in paths), GOOD, _seen(THEIRS, MINE))
    assert machine.may_record and machine.held == sorted(paths)
    return machine


# ---- P7.37 keys ------------------------------------------------------------------------------------------------------


@given(st.text(), st.integers(0, 65_535), st.integers(1, 2**32 - 1))
def test_p7_37_a_key_says_whose_it_is(cluster: str, node: int, incarnation: int) -> None:
    tag, owner = tag_of(cluster), Owner(node, incarnation)
    key = key_of(tag, owner)
    assert 0 < key < 1 << 64 and owner_of(tag, key) == owner
    assert owner_of(tag % 65_535 + 1, key) is None


@pytest.mark.parametrize("owner", [Owner(-1, 1), Owner(65_536, 1), Owner(0, 0), Owner(0, 1 << 32)])
def test_p7_37_what_has_no_room_in_a_key_is_refused(owner: Owner) -> None:
    with pytest.raises(ValueError, match="no key has room"):
        key_of(TAG, owner)
    assert owner_of(TAG, TAG << 48) is None


# ---- P7.38 disks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (ABLE._replace(types=frozenset({1, 3, 5})), "all registrants"),
        (ABLE._replace(aborts=False), "preempt-and-abort"),
        (ABLE._replace(keeps=False), "loses its power"),
    ],
)
def test_p7_38_a_disk_that_cannot_do_it_is_refused_by_what_it_lacks(found: Capabilities, words: str) -> None:
    assert not why_no_proof(ABLE) and words in why_no_proof(found)
    machine = Registrant(TAG, ME, ("a",))
    _told(machine, Answer(Status.GOOD, capabilities=found))
    assert machine.stage is Stage.REFUSED and words in machine.why and machine.wanted() is None


def test_p7_38_a_disk_without_reservations_is_refused() -> None:
    machine = Registrant(TAG, ME, ("a",))
    _told(machine, Answer(Status.REFUSED))
    assert machine.stage is Stage.REFUSED and "no persistent reservations" in machine.why


# ---- P7.39 the boot --------------------------------------------------------------------------------------------------


def test_p7_39_each_path_is_registered_once_before_the_lease_is_recorded() -> None:
    machine, asked = Registrant(TAG, ME, ("b", "a")), []
    for answer in (CAN, _seen(), GOOD, GOOD, GOOD, _seen(MINE, MINE)):
        assert not machine.may_record
        asked += _told(machine, answer)
    verbs = [Verb.CAPABILITIES, Verb.READ, Verb.REGISTER, Verb.REGISTER, Verb.RESERVE, Verb.READ]
    assert [command.verb for command in asked] == verbs
    assert [command.path for command in asked[2:4]] == ["a", "b"] and {command.key for command in asked} == {MINE}
    assert machine.may_record and machine.wanted() is None


def test_p7_39_a_path_without_an_answer_takes_no_writes_and_another_one_reserves() -> None:
    machine = Registrant(TAG, ME, ("a", "b", "c"))
    _told(machine, LOST, CAN, _seen(), GOOD, LOST, GOOD)
    asked = _told(machine, LOST, GOOD, _seen(MINE))
    assert [command.path for command in asked[:2]] == ["a", "c"]  # `a` is lost between register and reserve
    assert machine.held == ["a", "c"] and machine.paths["b"] is PathState.UNSURE


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ((LOST, LOST), "no path"),
        ((CAN, _seen(0x1234)), "0x0000000000001234"),
        ((CAN, _seen(key_of(TAG, Owner(0, 4)))), "later incarnation"),
        ((CAN, _seen(kind=1)), "reserved in another way"),
        ((CAN, _seen(), LOST, CONFLICT), "by none of its paths"),
        ((CAN, _seen(), GOOD, GOOD, CONFLICT), "another way"),
        ((CAN, _seen(), GOOD, LOST, LOST), "no path"),
        ((CAN, _seen(), GOOD, GOOD, GOOD, _seen(MINE, kind=0)), "reservation has gone"),
        ((CAN, _seen(), GOOD, GOOD, GOOD, _seen(THEIRS)), "key of this node has gone"),
        ((CAN, _seen(), GOOD, GOOD, GOOD, _seen(MINE, 77)), "not of this cluster"),
    ],
)
def test_p7_39_a_boot_is_refused_in_words(answers: tuple[Answer, ...], words: str) -> None:
    machine = Registrant(TAG, ME, ("a", "b"))
    _told(machine, *answers)
    assert machine.stage is Stage.REFUSED and words in machine.why
    assert not machine.may_record and not machine.held and machine.wanted() is None


def test_p7_39_keys_of_earlier_lives_and_of_others_are_no_obstacle() -> None:
    machine = Registrant(TAG, ME, ("a",))
    _told(machine, CAN, _seen(key_of(TAG, Owner(0, 2)), THEIRS), GOOD, GOOD, _seen(MINE, THEIRS))
    assert machine.may_record


# ---- P7.42 preempted -------------------------------------------------------------------------------------------------


def test_p7_42_all_keys_gone_ends_the_node_and_nothing_is_registered_again() -> None:
    machine = _booted("a", "b")
    machine.look()
    asked = _told(machine, CONFLICT, CONFLICT)
    assert [(command.verb, command.path) for command in asked] == [(Verb.PROBE, "a"), (Verb.PROBE, "b")]
    assert "preempted" in machine.why and not machine.held and not machine.may_record
    machine.look()
    machine.path_is_up("a")
    assert machine.wanted() is None and machine.is_gone


def test_p7_42_without_an_answer_or_with_one_key_left_it_goes_on() -> None:
    machine = _booted("a", "b")
    machine.look()
    _told(machine, LOST, LOST)
    assert machine.held == ["a", "b"]
    machine.look()
    _told(machine, CONFLICT, GOOD)
    assert machine.held == ["b"] and not machine.is_gone


# ---- P7.43 repair ----------------------------------------------------------------------------------------------------


def _with_a_bare_path() -> Registrant:
    machine = _booted("a", "b")
    machine.look()
    _told(machine, CONFLICT, GOOD)
    machine.path_is_up("a")
    return machine


def test_p7_43_a_path_is_registered_between_two_questions_and_takes_writes_after_the_marks() -> None:
    machine = _with_a_bare_path()
    asked = _told(machine, GOOD, GOOD)
    assert not machine.wants_marks and machine.held == ["b"]
    machine.marks_read(condemned=False)  # one that began too early counts for nothing
    asked += _told(machine, GOOD)
    whom = [(command.verb, command.path) for command in asked]
    assert whom == [(Verb.PROBE, "b"), (Verb.REGISTER, "a"), (Verb.PROBE, "b")]
    held_before_the_marks = machine.held
    machine.marks_read(condemned=False)
    assert held_before_the_marks == ["b"]
    assert machine.held == ["a", "b"] and machine.wanted() is None


def test_p7_43_who_was_preempted_before_registers_nothing() -> None:
    machine = _with_a_bare_path()
    _told(machine, CONFLICT)
    assert machine.is_gone and machine.wanted() is None


def test_p7_43_who_was_preempted_meanwhile_stops_and_its_new_key_takes_no_writes() -> None:
    machine = _with_a_bare_path()
    _told(machine, GOOD, GOOD, CONFLICT)
    assert machine.is_gone and not machine.held


def test_p7_43_a_mark_ends_a_node_that_repairs() -> None:
    machine = _with_a_bare_path()
    _told(machine, GOOD, GOOD, GOOD)
    machine.marks_read(condemned=True)
    assert machine.is_gone and not machine.held and "mark" in machine.why


@pytest.mark.parametrize(
    ("answers", "state"),
    [
        ((LOST,), PathState.BARE),
        ((GOOD, LOST), PathState.UNSURE),
        ((GOOD, CONFLICT), PathState.BARE),
        ((GOOD, GOOD, LOST), PathState.UNSURE),
    ],
)
def test_p7_43_without_an_answer_it_is_left_and_tried_again(answers: tuple[Answer, ...], state: PathState) -> None:
    machine = _with_a_bare_path()
    _told(machine, *answers)
    assert machine.wanted() is None and machine.paths["a"] is state and machine.held == ["b"]
    machine.path_is_up("a")
    _told(machine, GOOD, GOOD, GOOD)
    machine.marks_read(condemned=False)
    assert machine.held == ["a", "b"]


def test_p7_43_a_look_in_the_midst_of_a_repair_takes_no_answer_of_it() -> None:
    machine = _with_a_bare_path()
    command = machine.wanted()
    assert command == Command(Verb.PROBE, "b", MINE)
    machine.look()
    machine.answered(command, GOOD)
    assert [each.verb for each in _told(machine, GOOD, GOOD, GOOD)] == [Verb.PROBE, Verb.REGISTER, Verb.PROBE]
    assert machine.wants_marks


# ---- P7.40 the preemption --------------------------------------------------------------------------------------------


def _preempt(*answers: Answer) -> tuple[Preemption, list[Command]]:
    machine, asked = Preemption(MINE, THEIRS), []
    for turn, answer in enumerate(answers):
        machine.begun()
        command = machine.wanted(["a", "b"], turn)
        assert command is not None
        asked.append(command)
        machine.answered(answer)
    return machine, asked


def test_p7_40_it_looks_preempts_with_abort_and_looks_again() -> None:
    machine, asked = _preempt(_seen(MINE, THEIRS, THEIRS), GOOD, _seen(MINE))
    assert machine.step is Step.DONE and machine.wanted(["a"]) is None
    assert asked[1] == Command(Verb.PREEMPT_ABORT, "b", MINE, THEIRS)
    assert [asked[0].verb, asked[2].verb] == [Verb.READ, Verb.READ]


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ((_seen(MINE),), "no answer says"),
        ((_seen(MINE, THEIRS), LOST), "was lost"),
        ((_seen(MINE, THEIRS), CONFLICT, _seen(MINE)), "no answer says"),
        ((_seen(MINE, THEIRS), GOOD, _seen(MINE, THEIRS), CONFLICT, _seen(MINE)), "no answer says"),
        ((_seen(MINE, THEIRS), Answer(Status.REFUSED)), "preempt-and-abort"),
        ((Answer(Status.REFUSED),), "cannot be read"),
        ((_seen(THEIRS),), "key of this node has gone"),
        ((_seen(MINE, THEIRS), GOOD, _seen()), "key of this node has gone"),
        ((_seen(MINE, THEIRS, kind=0),), "not reserved"),
        ((_seen(MINE, THEIRS), GOOD, _seen(MINE, kind=1)), "not reserved"),
    ],
)
def test_p7_40_what_is_no_proof_says_why(answers: tuple[Answer, ...], words: str) -> None:
    machine, _ = _preempt(*answers)
    assert machine.step is Step.NO_PROOF and words in machine.why and machine.wanted(["a"]) is None


def test_p7_40_a_look_without_an_answer_is_repeated_and_a_key_that_is_back_goes_again() -> None:
    machine, asked = _preempt(
        LOST, _seen(MINE, THEIRS), CONFLICT, _seen(MINE, THEIRS), GOOD, LOST, _seen(MINE, THEIRS), GOOD, _seen(MINE)
    )
    assert machine.step is Step.DONE and [command.path for command in asked] == [*"abababab", "a"]
    assert [command.verb for command in asked].count(Verb.PREEMPT_ABORT) == 3
    assert Preemption(MINE, THEIRS).wanted([]) is None


def test_p7_40_nothing_is_preempted_before_it_is_committed_that_it_begins() -> None:
    machine = Preemption(MINE, THEIRS)
    machine.begun()  # nothing is to begin yet
    machine.answered(_seen(MINE, THEIRS))
    assert machine.wanted(["a"]) is None
    machine.begun()
    assert machine.wanted(["a"]) == Command(Verb.PREEMPT_ABORT, "a", MINE, THEIRS)


def test_p7_40_the_proof_needs_all_disks_and_reports_of_this_very_request() -> None:
    request = Request(OTHER, 7, ME, ("pool", "store"))
    assert not request.is_proven and not request._replace(disks=()).is_proven
    request = with_report(request, Report(OTHER, 7, done=frozenset({"pool", "elsewhere"})))
    assert request.done == {"pool"} and not request.is_proven
    asked_anew = handed_on(request, THIRD)
    assert asked_anew.asker == THIRD and asked_anew.number == 8 and asked_anew.done == {"pool"}
    late = Report(OTHER, 7, done=frozenset({"store"}))
    assert not with_report(asked_anew, late).is_proven
    assert not with_report(asked_anew, Report(THIRD, 8, done=frozenset({"store"}))).is_proven
    assert with_report(asked_anew, late._replace(number=8)).is_proven


def test_p7_40_what_one_asker_has_begun_no_other_begins_again() -> None:
    request = with_report(Request(OTHER, 7, ME, ("pool", "store")), Report(OTHER, 7, begun=frozenset({"pool", "x"})))
    assert request.begun == {"pool"} and handed_on(request, THIRD).untouched == ["store"]


# ---- P7.41, P7.44 the audit ------------------------------------------------------------------------------------------


def test_p7_44_what_members_find_among_the_keys() -> None:
    standing = {OTHER: Standing.ISOLATED, THIRD: Standing.STOPPED}
    keys = (THEIRS, 0x99, MINE, key_of(TAG, THIRD), THEIRS, key_of(TAG, Owner(7, 1)))
    found = audit(TAG, MINE, View(keys, ALL_REGISTRANTS), lambda owner: standing.get(owner, Standing.LIVES))
    assert found == Findings((THEIRS,), (key_of(TAG, THIRD),), (0x99,))
    assert audit(TAG, MINE, View((MINE,)), lambda _owner: Standing.LIVES) == Findings(is_unreserved=True)


def test_p7_41_nobody_takes_out_its_own_key_so_the_reservation_stays() -> None:
    everybody_stopped = audit(TAG, MINE, View((MINE, THEIRS), ALL_REGISTRANTS), lambda _owner: Standing.STOPPED)
    assert everybody_stopped == Findings(left=(THEIRS,))
