"""What services leave in a machine's kernel: the rules P6.32 to P6.34 of docs/PROTOCOL.md, and the caretaker itself."""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace
from test_guard import has_namespaces

from muster.core.draft import Draft, Facts
from muster.core.effects import RunCommand
from muster.core.inputs import StripRead
from muster.core.launching.clearing import RETRY_US
from muster.core.leases.lease import statement
from muster.core.leases.observer import Observer
from muster.core.membership.membership import admit, why_unclean
from muster.core.operations.operations import carry_out
from muster.core.services.commands import Executor
from muster.core.services.table import advance
from muster.core.versions.upgrade import refusal
from muster.daemon.main import main
from muster.daemon.shell.cleanups import Cleanups
from muster.drivers.clearing import clear
from muster.drivers.image import caretaker
from muster.drivers.image.deadman import boottime_us, read_boot_id
from muster.drivers.image.guard import Guard, NotNow, StartRefused
from muster.drivers.image.kept_cleanups import (
    Kept,
    all_kept,
    keep,
    last_run,
    lock_folder,
    lock_kept,
    path_of,
    record_run,
)
from muster.drivers.image.process_tree import read_command_line, read_name, read_parents
from muster.drivers.store.disk.lease_store import GuardStore
from muster.drivers.store.lease_store import LeaseStore
from muster.records.database import Database
from muster.records.levels import NodeState
from muster.records.members import Member
from muster.records.messages import Report, Request
from muster.records.nodes import Cluster, NodeConfig
from muster.records.registers import (
    Claim,
    ClaimFlag,
    Deadman,
    Lease,
    LeaseState,
    Mark,
    Owed,
    RegisterKind,
    Strip,
    decode_register,
    encode_register,
    identity_of,
)
from muster.records.services import (
    ApplyServices,
    CommandState,
    ConfirmClean,
    Definition,
    Service,
    ServiceState,
    Unclean,
)
from muster.records.terms import NO_NODE, NO_TERM, Stamp, Term
from muster.records.timing import FAST
from muster.setup.installation import InstallationSettings, unit_file
from real_node import RealNode, kill_at_once, make_store, wait_for

DEREGISTERED, STARTING, REGISTERED, STOPPING, RECOVERING = ServiceState
VIP = Definition(
    "vip", start_command=("start",), stop_command=("stop",), recovery_command=("recover",), cleanup_command=("clear",)
)
PLAIN = replace(VIP, recovery_command=())
INDEX = 10
UP = Member(0, NodeState.JOINED, 5)
GONE = {0: Member(0, NodeState.INACTIVE, 5)}
ON_N0 = Service(VIP, 3, REGISTERED, wanted=True, node=0, incarnation=5, generation=8, launched=True, owes=True)
LEFT = Unclean(0, 5)
NO_WORD = "nobody has said so"
LONG_S = 5.0  # no test that passes waits for so long
VIPS = identity_of(3, "vip")


def database_of(*services: Service, members: dict[int, Member] | None = None) -> Database:
    nodes = {node: NodeConfig(node, f"n{node}", (), "") for node in range(3)}
    everyone = {node: replace(UP, node=node) for node in range(3)} | (members or {})
    database = Database(Cluster("test", "0" * 32, "fast", "", active_version=3), INDEX, nodes=nodes, members=everyone)
    database.services.update({service.name: service for service in services})
    return database


def facts_of(*commands: CommandState, unclean: str = "", owed: Owed | None = None, node: int = 0) -> Facts:
    reports = {each: Report(Term(1, 0), INDEX, 5, "", ()) for each in range(3)}
    reports[node] = replace(reports[node], commands=commands)
    facts = Facts(0, 0, reports, lambda _n, _i: None, lambda _n: True, {}, {}, services_open=True)
    facts.unclean, facts.owed = (lambda _n, _i, _u: unclean), (lambda _n, _i: owed)
    return facts


def after(*services: Service, unclean: str = "", result: bool | None = None, lost: bool = False) -> dict[str, Service]:
    """The services after one round of the master; `result` is that of the first one's command."""
    first = services[0]
    commands = []
    if result is not None:
        action = {STARTING: "start", STOPPING: "stop", RECOVERING: "recovery"}[first.state]
        commands = [CommandState(first.name, first.generation, action, True, result, "exit status 1")]
    draft = Draft(database_of(*services, members=GONE if lost else None))
    advance(draft, facts_of(*commands, unclean=unclean, node=max(0, first.node)))
    return draft.services


# ---- P6.32 -----------------------------------------------------------------------------------------------------------


def test_p6_32_a_start_with_a_cleanup_owes_it_whatever_is_defined_afterwards() -> None:
    starting = after(Service(VIP, 3, wanted=True))["vip"]
    assert (starting.state, starting.owes) == (STARTING, True)
    (command,) = Executor(0, 5, ()).due(database_of(replace(starting, node=0)))
    assert command.cleanup is not None
    assert command.cleanup.command == ("clear",)
    without = replace(ON_N0, definition=replace(VIP, cleanup_command=()))
    assert after(without, lost=True, unclean=NO_WORD)["vip"].unclean == LEFT
    assert not after(Service(replace(VIP, cleanup_command=()), 3, wanted=True))["vip"].owes
    started_without = replace(ON_N0, owes=False)  # a key that came later counts from the next start on
    assert after(started_without, lost=True, unclean=NO_WORD)["vip"].unclean is None


@pytest.mark.parametrize("definition", [VIP, PLAIN], ids=["recovery", "plain"])
def test_p6_32_what_was_lost_goes_on_only_once_its_machine_is_clean(definition: Definition) -> None:
    lost = after(replace(ON_N0, definition=definition), lost=True, unclean=NO_WORD)["vip"]
    assert (lost.node, lost.unclean, lost.owes) == (NO_NODE, LEFT, False)
    assert lost.state is (RECOVERING if definition is VIP else DEREGISTERED)
    assert after(lost, lost=True, unclean=NO_WORD)["vip"] == lost  # as long as it takes
    going = after(lost, lost=True)["vip"]
    assert (going.state, going.node) in {(RECOVERING, 1), (STARTING, 1)}
    assert going.unclean is None
    if definition is VIP:  # a machine that is clean already by then is not waited for at all
        assert after(ON_N0, lost=True)["vip"].state is RECOVERING


def test_p6_32_a_loss_while_starting_is_no_other_loss() -> None:
    lost = after(replace(ON_N0, state=STARTING), lost=True, unclean=NO_WORD)["vip"]
    assert (lost.state, lost.unclean) == (DEREGISTERED, LEFT)
    assert after(lost, lost=True, unclean=NO_WORD)["vip"] == lost


def test_p6_32_all_others_wait_for_the_proof_of_death_only_a_parent_not_for_its_child() -> None:
    parent = Service(Definition("db", start_command=("start",)), 2, REGISTERED, True, 0, 5, 7, launched=True)
    child = replace(ON_N0, definition=replace(PLAIN, parent="db"))
    lost = after(parent, child, lost=True, unclean=NO_WORD)
    assert lost["vip"].unclean == LEFT
    going = after(*lost.values(), lost=True, unclean=NO_WORD)
    assert going["db"].state is STARTING
    registered = replace(going["db"], state=REGISTERED)
    assert after(registered, going["vip"], lost=True, unclean=NO_WORD)["vip"].state is DEREGISTERED
    assert after(registered, going["vip"], lost=True)["vip"].state is STARTING


def test_p6_32_what_a_failed_start_has_left_is_cleared_before_the_next_node_is_tried() -> None:
    failed = after(replace(ON_N0, state=STARTING), result=False)["vip"]
    assert (failed.state, failed.node, failed.cleaning, failed.generation) == (STOPPING, 0, True, INDEX + 1)
    (command,) = Executor(0, 5, ()).due(database_of(failed))
    assert (command.action, command.command, command.clears) == ("stop", ("clear",), True)
    given_up = after(failed, result=True)["vip"]
    assert (given_up.state, given_up.failed, given_up.owes) == (DEREGISTERED, (0,), False)
    assert after(given_up)["vip"].node == 1
    blocked = after(failed, result=False)["vip"]
    assert (blocked.state, blocked.node) == (STOPPING, 0)
    assert "cleanup failed on n0: exit status 1" in blocked.cause
    assert "muster service confirm-clean vip" in blocked.cause


def test_p6_32_a_stop_that_failed_is_none_where_the_cleanup_succeeds() -> None:
    stopping = replace(ON_N0, state=STOPPING, intent=True, origin=0)
    cleaning = after(stopping, result=False)["vip"]
    assert (cleaning.state, cleaning.cleaning, cleaning.cause) == (STOPPING, True, "")
    assert after(cleaning, result=True)["vip"].state is DEREGISTERED
    assert after(cleaning, result=True)["vip"].intent
    assert "cleanup failed" in after(cleaning, result=False)["vip"].cause
    assert after(cleaning, lost=True, unclean=NO_WORD)["vip"].unclean == LEFT  # the node dies while it clears


def test_p6_32_without_a_stop_command_the_cleanup_is_the_stop_even_where_nothing_runs() -> None:
    service = replace(ON_N0, definition=replace(PLAIN, stop_command=()), launched=False, wanted=False)
    stopping = after(service)["vip"]
    assert stopping.state is STOPPING
    (command,) = Executor(0, 5, ()).due(database_of(stopping))
    assert (command.command, command.clears) == (("clear",), True)
    assert not after(stopping, result=True)["vip"].owes


def test_p6_32_a_withdrawn_service_and_its_node_are_not_forgotten_before() -> None:
    withdrawn = Service(VIP, 3, wanted=False, removed=True, unclean=LEFT)
    assert "vip" in after(withdrawn, unclean=NO_WORD)
    assert "vip" not in after(withdrawn)


def test_p6_32_it_is_defined_only_where_version_3_is_active() -> None:
    database = database_of()
    database.cluster = replace(database.cluster, active_version=2)
    assert "this needs version 3" in refusal(ApplyServices((VIP,)), database)
    assert refusal(ApplyServices((replace(VIP, cleanup_command=()),)), database) == ""
    assert "this needs version 3" in refusal(ConfirmClean("vip"), database)


# ---- P6.33 -----------------------------------------------------------------------------------------------------------


def lease(incarnation: int, state: LeaseState, owed: Owed | None) -> Lease:
    stamp = Stamp(0, incarnation, NO_TERM, 7)
    return Lease(stamp, state, Deadman.PID_NAMESPACE, 600, 120, bytes(16), "", owed=owed)


def verdict(record: Lease | None, incarnation: int, uid: int = 3) -> str:
    claim = Claim(Stamp(0, 0, NO_TERM, 0), ClaimFlag.WITHDRAWN, Mark(NO_TERM, 1, 0))
    strip = Strip((record, None), (claim, claim), (None, None), (None, None))
    observer = Observer(1, 1, FAST, strip, one_machine=True)
    observer.see(StripRead(1, strip, 0, 1))
    return observer.unclean(0, incarnation, uid)


def test_p6_33_a_machine_is_clean_only_where_the_register_says_so() -> None:
    clean = Owed(5)
    assert verdict(lease(5, LeaseState.PANICKED, clean), 5) == ""
    assert verdict(lease(5, LeaseState.CLEAN, clean), 5) == ""
    assert verdict(lease(6, LeaseState.LIVE, clean), 5) == ""  # a later run has cleared it at its boot
    for unknown in (
        lease(5, LeaseState.LIVE, clean),  # it runs: what it says is of earlier runs
        lease(5, LeaseState.PANICKED, None),  # stopped, and no word of clean
        lease(6, LeaseState.LIVE, Owed(6)),  # it booted on another machine
        lease(6, LeaseState.LIVE, None),  # with an older image
        lease(4, LeaseState.PANICKED, Owed(1)),
        None,
    ):
        assert verdict(unknown, 5) != ""
    assert "failed" in verdict(lease(5, LeaseState.PANICKED, Owed(5, (3,))), 5)
    assert "has not ended" in verdict(lease(5, LeaseState.PANICKED, Owed(5, (), (3,))), 5)
    assert verdict(lease(5, LeaseState.PANICKED, Owed(5, (2,), (4,))), 5) == ""  # others block nobody but themselves
    assert "has not ended" in verdict(lease(5, LeaseState.PANICKED, Owed(5, (2,), (), True)), 5)


def test_p6_33_the_statement_survives_the_register_and_names_as_many_as_fit() -> None:
    record = lease(5, LeaseState.PANICKED, Owed(5, (3, 1 << 40), (9,)))._replace(cause="x" * 120)
    for each in (record, record._replace(owed=None), record._replace(owed=Owed(5)), record._replace(cause="")):
        assert decode_register(RegisterKind.LEASE, each.stamp, encode_register(each)) == each
    many = record._replace(owed=Owed(5, tuple(range(20)), tuple(range(20, 60))))
    found = decode_register(RegisterKind.LEASE, many.stamp, encode_register(many))
    assert isinstance(found, Lease) and found.owed is not None
    assert found.owed.failed == tuple(range(20)) and found.owed.more
    assert len(encode_register(many)) <= 512 - 88


def test_p6_33_a_killed_guards_record_becomes_its_tombstone_others_keep_their_state() -> None:
    told = Owed(5, (3,))
    for before, state in ((LeaseState.LIVE, LeaseState.PANICKED), (LeaseState.CLEAN, LeaseState.CLEAN)):
        said = statement(lease(5, before, None), told, "its guard has ended it")
        assert (said.state, said.owed, said.stamp.sequence) == (state, told, 8)


def test_p6_33_a_node_does_not_join_before_its_machine_is_clean_unless_an_operator_says_so() -> None:
    draft = Draft(database_of(Service(VIP, 3, unclean=LEFT)))
    joining = Member(0, NodeState.INACTIVE, 5)
    said = why_unclean(draft, facts_of(owed=Owed(5, (VIPS, 77))), joining, 6)
    assert "the cleanup of vip, a service that is gone failed" in said
    assert "muster node confirm-clean n0" in said
    assert "has not ended" in why_unclean(draft, facts_of(owed=Owed(5, (), (3,))), joining, 6)
    assert why_unclean(draft, facts_of(owed=Owed(5)), joining, 6) == ""
    assert why_unclean(draft, facts_of(), joining, 6) == ""  # an older image says nothing, and has no cleanups
    assert why_unclean(draft, facts_of(owed=Owed(5, (3,))), replace(joining, vouched_clean=6), 6) == ""
    assert why_unclean(draft, facts_of(owed=Owed(5, (3,))), replace(joining, vouched_clean=6), 7) != ""


def test_p6_33_a_report_that_comes_before_the_record_of_its_run_is_read_waits_for_that() -> None:
    for services, slots, joins in (((ON_N0,), {0: 5}, False), ((ON_N0,), {0: 6}, True), ((), {0: 5}, True)):
        draft = Draft(database_of(*services, members=GONE))
        facts = facts_of()
        facts.slots = slots
        facts.reports[0] = Report(NO_TERM, INDEX, 6, "join", ())
        admit(draft, facts)
        assert (draft.member(0).state is NodeState.JOINING) is joins


def confirm(operation: ConfirmClean, *services: Service, slots: dict[int, int] | None = None) -> tuple[str, Draft]:
    draft = Draft(database_of(*services, members=GONE))
    facts = facts_of(unclean=NO_WORD)
    facts.slots = slots or {}
    done = carry_out(Request("x", operation), draft, facts)
    assert done is not None
    return ("refused: " if done.refused else "") + done.outcome, draft


def test_p6_33_an_operator_vouches_for_a_service_or_for_a_node_under_audit() -> None:
    waiting, other = Service(VIP, 3, unclean=LEFT), Service(replace(PLAIN, name="b"), 4, unclean=LEFT)
    said, draft = confirm(ConfirmClean("vip", cause="looked at it"), waiting, other)
    assert "vip may go on" in said
    assert (draft.services["vip"].unclean, draft.services["b"].unclean) == (None, LEFT)
    assert [audit.operation for audit in draft.audit.values()] == ["confirm_clean"]
    said, draft = confirm(ConfirmClean(node="n0"), waiting, other, slots={0: 9})
    assert [draft.services[name].unclean for name in ("vip", "b")] == [None, None]
    assert draft.member(0).vouched_clean == 9  # the run that waits to join, too
    for wrong in (ConfirmClean(), ConfirmClean("vip", "n0"), ConfirmClean("nobody"), ConfirmClean(node="nowhere")):
        assert confirm(wrong, waiting)[0].startswith("refused: ")
    assert "nothing to confirm" in confirm(ConfirmClean("vip"), ON_N0)[0]


def test_p6_33_a_cleanup_that_failed_in_place_is_ended_on_an_operators_word() -> None:
    stuck = replace(ON_N0, state=STOPPING, cleaning=True, cause="cleanup failed on n0", node=1, incarnation=5)
    _said, draft = confirm(ConfirmClean("vip"), stuck)
    freed = draft.services["vip"]
    assert (freed.state, freed.owes, freed.cause, freed.generation) == (STOPPING, False, "", INDEX + 1)
    (command,) = Executor(1, 5, ()).due(database_of(freed))
    assert (command.command, command.clears) == ((), False)  # only what still runs of it is ended


# ---- P6.34: the home -------------------------------------------------------------------------------------------------


def test_p6_33_services_that_were_defined_together_are_told_apart(tmp_path: Path) -> None:
    together = [kept_of(3, "clear")._replace(service=name) for name in ("a", "b", "b@n0")]
    for kept in together:
        keep(str(tmp_path), kept)
    assert sorted(all_kept(str(tmp_path))) == together
    assert len({kept.identity for kept in together}) == 3
    assert replace(ON_N0, uid=3).identity == VIPS


def kept_of(uid: int, *command: str, generation: int = 8, **how: Any) -> Kept:
    boot_id = read_boot_id().hex()
    names = {"MUSTER_SERVICE": f"s{uid}", "MUSTER_NODE": "n0", "MUSTER_GENERATION": str(generation)}
    return Kept(f"s{uid}", uid, generation, 1, boot_id, command, 20_000, 0, 0, names)._replace(**how)


def command_of(generation: int, action: str, **fields: object) -> RunCommand:
    database = database_of(replace(ON_N0, state=STARTING if action == "start" else STOPPING, generation=generation))
    (command,) = Executor(0, 5, ()).due(database)
    return replace(command, **fields)


def test_p6_34_a_cleanup_is_kept_as_it_was_and_void_after_a_stop_that_succeeded(tmp_path: Path) -> None:
    async def run() -> None:
        failed: list[CommandState] = []
        given: list[RunCommand] = []
        cleanups = Cleanups(tmp_path, 5, bytes(16), failed.append, lambda _event, _detail: None)
        await cleanups.prepare(command_of(8, "start"), given.append)
        (kept,) = all_kept(str(tmp_path))
        assert (kept.command, kept.uid, kept.generation, kept.incarnation) == (("clear",), 3, 8, 5)
        assert "MUSTER_EPOCH" not in kept.environment and "MUSTER_TOKEN" not in kept.environment
        changed = command_of(9, "stop", command=("another",), clears=True)
        await cleanups.prepare(changed, given.append)
        assert given[1].command == ("clear",)  # that of the start, whatever is defined by now
        assert given[1].environment["MUSTER_GENERATION"] == "8"
        assert given[1].environment["MUSTER_ACTION"] == "cleanup"
        assert "MUSTER_EPOCH" not in given[1].environment and "MUSTER_TOKEN" not in given[1].environment
        cleanups.ended((CommandState("vip", 8, "stop", True, True), CommandState("vip", 9, "stop", True, False)))
        await cleanups.prepare(changed, given.append)  # its thread has done what was asked before
        assert len(all_kept(str(tmp_path))) == 1
        cleanups.ended((CommandState("vip", 9, "stop", True, True),))
        await cleanups.prepare(changed, given.append)
        assert all_kept(str(tmp_path)) == []
        assert given[-1].command == ("another",) and "MUSTER_TOKEN" not in given[-1].environment  # nothing is kept
        assert failed == []
        cleanups.close()

    asyncio.run(run())


def test_p6_34_a_start_whose_cleanup_cannot_be_kept_has_failed(tmp_path: Path) -> None:
    async def run() -> None:
        (tmp_path / "cleanups").write_text("in the way")
        failed: list[CommandState] = []
        given: list[RunCommand] = []
        cleanups = Cleanups(tmp_path, 5, bytes(16), failed.append, lambda _event, _detail: None)
        await cleanups.prepare(command_of(8, "start"), given.append)
        assert given == []
        assert [(each.generation, each.action, each.succeeded) for each in failed] == [(8, "start", False)]
        assert "cannot be kept" in failed[0].detail and str(tmp_path) in failed[0].detail
        cleanups.close()

    asyncio.run(run())


def test_p6_34_a_start_is_given_to_the_runner_once_its_cleanup_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write, order = threading.Event(), list[str]()

    def slow(home: str, kept: Kept) -> None:
        may_write.wait(LONG_S)
        keep(home, kept)
        order.append("kept")

    async def run() -> None:
        cleanups = Cleanups(tmp_path, 5, bytes(16), lambda _state: None, lambda _event, _detail: None)
        work = asyncio.create_task(cleanups.prepare(command_of(8, "start"), lambda _command: order.append("run")))
        for _ in range(10):
            await asyncio.sleep(0)
        assert order == []
        may_write.set()
        await work
        assert order == ["kept", "run"]
        assert [kept.generation for kept in all_kept(str(tmp_path))] == [8]
        cleanups.close()

    monkeypatch.setattr("muster.daemon.shell.cleanups.keep", slow)
    asyncio.run(run())


def test_p6_34_a_start_whose_homes_disk_does_not_answer_has_failed_and_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write = threading.Event()

    async def run() -> None:
        failed: list[CommandState] = []
        given: list[RunCommand] = []
        cleanups = Cleanups(tmp_path, 5, bytes(16), failed.append, lambda _event, _detail: None)
        await cleanups.prepare(command_of(8, "start"), given.append)
        assert (given, [each.succeeded for each in failed]) == ([], [False])
        assert "has not answered for" in failed[0].detail
        may_write.set()
        monkeypatch.setattr("muster.daemon.shell.cleanups.DISK_S", LONG_S)
        await cleanups.prepare(command_of(9, "start"), given.append)
        assert [command.generation for command in given] == [9]
        cleanups.close()

    monkeypatch.setattr("muster.daemon.shell.cleanups.DISK_S", 0.02)
    monkeypatch.setattr("muster.daemon.shell.cleanups.keep", lambda _home, _kept: may_write.wait(LONG_S))
    asyncio.run(run())


def test_p6_34_a_kept_cleanup_that_cannot_be_read_is_owed_and_one_half_written_is_none(tmp_path: Path) -> None:
    home = str(tmp_path)
    for generation in (12, 9):
        keep(home, kept_of(1, "clear", generation=generation))
    Path(path_of(home, "4.7.broken")).write_text("{")
    Path(path_of(home, "4.8.begun.new")).write_text("{")  # its start was never given
    Path(path_of(home, "4.9")).write_text("{")
    found = all_kept(home)
    assert [(kept.uid, kept.generation) for kept in found] == [(4, 7), (1, 9), (1, 12)]
    assert "4.7.broken cannot be read" in found[0].problem and not found[1].problem
    assert found[0].identity == identity_of(4, "broken")
    held = lock_kept(home, found[1], 0.0)
    assert held is not None and lock_kept(home, found[1], 0.0) is None
    os.close(held)
    again = lock_kept(home, found[1], 0.0)
    assert again is not None
    os.close(again)
    os.remove(path_of(home, found[1].file_name))
    assert lock_kept(home, found[1], 0.0) is None


def test_p6_34_a_node_that_has_joined_owes_nothing_of_earlier_runs(tmp_path: Path) -> None:
    async def run() -> None:
        keep(str(tmp_path), kept_of(3, "clear", incarnation=4))
        keep(str(tmp_path), kept_of(4, "clear", incarnation=5))
        cleanups = Cleanups(tmp_path, 5, bytes(16), lambda _state: None, lambda _event, _detail: None)
        cleanups.member_is(joining=False)
        cleanups.member_is(joining=True)
        await cleanups.prepare(command_of(9, "stop", clears=True), lambda _command: None)
        assert [kept.uid for kept in all_kept(str(tmp_path))] == [4]
        cleanups.close()

    asyncio.run(run())


# ---- P6.34: the caretaker --------------------------------------------------------------------------------------------


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RealNode]:
    made = RealNode(make_store(tmp_path), tmp_path, 0)
    yield made
    made.close()
    wait_for("the caretaker's end", lambda: not caretakers(made))


def caretakers(of: RealNode) -> list[int]:
    """The caretaker, its standby and cleaners."""
    found = [pid for pid in read_parents() if read_name(pid) == "muster-cleanup"]
    return [pid for pid in found if os.fsencode(of.home) in read_command_line(pid)]


def said(of: RealNode, state: LeaseState = LeaseState.PANICKED) -> Callable[[], Owed | None]:
    """What the register says is owed, once nothing is waited for any more."""

    def probe() -> Owed | None:
        record = of.lease()
        done = record.state is state and record.owed is not None and not record.owed.waiting
        return record.owed if done else None

    return probe


@pytest.mark.skipif(not has_namespaces(), reason="after a killed guard only a namespace shows its end")
def test_p6_34_a_killed_guards_machine_is_cleared_and_what_fails_keeps_the_next_run_out(
    node: RealNode, tmp_path: Path
) -> None:
    shell = ("sh", "-c")
    node.start()
    up = node.up()
    home = str(node.home)
    keep(home, kept_of(1, *shell, f"env > {tmp_path}/ran"))
    keep(home, kept_of(2, *shell, f"[ -e {tmp_path}/mended ] || {{ echo it is so; exit 3; }}"))
    keep(home, kept_of(3, "sleep", "1000", timeout_ms=200))
    keep(home, kept_of(4, *shell, f"setsid sleep 1000 & echo $! > {tmp_path}/left"))
    keep(home, kept_of(5, "/nowhere/clear"))
    keep(home, kept_of(6, *shell, f"echo x >> {tmp_path}/tries; [ $(wc -l < {tmp_path}/tries) = 3 ]", retries=2))
    Path(path_of(home, "7.8.s7")).write_text("damaged")
    os.kill(up["pid"], signal.SIGKILL)
    assert node.ended() == -signal.SIGKILL
    owed = wait_for("the statement", said(node))
    named = tuple(sorted(identity_of(uid, f"s{uid}") for uid in (2, 3, 5, 7)))
    assert (owed.failed, owed.since, owed.more) == (named, up["incarnation"], False)
    ran = (tmp_path / "ran").read_text()
    assert all(f"{line}\n" in ran for line in ("MUSTER_ACTION=cleanup", "MUSTER_SERVICE=s1", "MUSTER_GENERATION=8"))
    assert "MUSTER_EPOCH" not in ran and "MUSTER_REASON=" in ran
    assert int((tmp_path / "left").read_text()) not in read_parents()  # what it started has ended with it
    assert [kept.uid for kept in all_kept(home)] == [2, 3, 5, 7]
    node.says("s2 (generation 8) failed: ended with status 3; it wrote: it is so", "did not end within 200 ms")
    node.says("cannot execute /nowhere/clear", "level=error")
    wait_for("its end", lambda: not caretakers(node))

    (tmp_path / "mended").touch()
    for uid in (3, 5, 7):  # as the join does where an operator vouched
        Path(path_of(home, f"{uid}.8.s{uid}")).unlink()
    node.start()
    node.up()
    owed = wait_for("the boot's statement", said(node, LeaseState.LIVE))
    assert owed.is_empty
    assert owed.since == up["incarnation"]  # the same home: it answers for the run before, too
    assert all_kept(home) == []


@pytest.mark.parametrize("mode", ["auto", "process-tree"])
def test_p6_34_a_panicking_nodes_machine_is_cleared_after_it_is_empty(mode: str, tmp_path: Path) -> None:
    node = RealNode(make_store(tmp_path), tmp_path, 0, mode)
    try:
        node.start()
        node.up()
        assert node.run(1, "start", "sh", "-c", "sleep 1000 & echo started")["succeeded"]
        look = f"for p in /proc/[0-9]*; do tr '\\0' '\\n' < $p/environ | grep -q NODE_HOME={node.home}$ && exit 9; done"
        keep(str(node.home), kept_of(1, "sh", "-c", f"{look} 2>/dev/null; touch {tmp_path}/cleared"))
        node.order("guard", "panic for a test")
        assert node.ended() == 70
        owed = wait_for("the statement", said(node))
        assert owed.is_empty  # and so nothing of the node ran when it was cleared
        assert node.lease().cause == "for a test"
        assert (tmp_path / "cleared").exists()
    finally:
        node.close()


@pytest.mark.skipif(not has_namespaces(), reason="after a killed guard only a namespace shows its end")
def test_p6_34_the_next_run_ends_a_caretaker_at_work_and_does_its_work(node: RealNode, tmp_path: Path) -> None:
    node.start()
    up = node.up()
    home = str(node.home)
    keep(home, kept_of(1, "sh", "-c", f"echo $$ >> {tmp_path}/runs; [ -e {tmp_path}/go ] || exec sleep 1000"))
    keep(home, kept_of(2, "false", boot_id="00" * 16))  # of an earlier boot of the machine: its kernel has gone
    os.kill(up["pid"], signal.SIGKILL)
    assert node.ended()
    first = int(wait_for("the first run", lambda: _text(tmp_path / "runs")))
    (tmp_path / "go").touch()
    node.start()
    node.up()
    assert wait_for("the boot's statement", said(node, LeaseState.LIVE)).is_empty  # it waits for no end of that sleep
    assert len((tmp_path / "runs").read_text().split()) == 2
    assert first not in read_parents() or read_name(first) != "sleep"
    assert all_kept(home) == []


def _text(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def test_p6_34_a_home_answers_for_the_runs_that_began_with_it_without_a_gap(tmp_path: Path) -> None:
    assert last_run(str(tmp_path)) == (0, 0)
    record_run(str(tmp_path), 7, 5)
    assert last_run(str(tmp_path)) == (7, 5)
    lock = lock_folder(str(tmp_path))
    assert lock is not None and lock_folder(str(tmp_path)) is None
    os.close(lock)


@pytest.mark.parametrize(("last", "since"), [(7, 5), (6, 9), (0, 9)])
def test_p6_34_a_guard_whose_home_missed_a_run_answers_for_none_before_its_own(
    last: int, since: int, tmp_path: Path
) -> None:
    home = str(tmp_path)
    keep(home, kept_of(1, "clear"))
    keep(home, kept_of(2, "clear", boot_id="00" * 16))  # the kernel that it was about is gone
    if last:
        record_run(home, last, 5)
    keeper = SimpleNamespace(incarnation=9, boot_id=read_boot_id())
    guard = SimpleNamespace(_options=SimpleNamespace(home=home), _keeper=keeper, _say=lambda _text: None)
    owed = Guard._take_up_cleanups(cast("Guard", guard), lease(7, LeaseState.LIVE, None))
    assert owed == Owed(since, (), (identity_of(1, "s1"),))
    assert last_run(home) == (9, since)
    assert [kept.uid for kept in all_kept(home)] == [1]


# ---- P6.34: the caretaker's decisions, without a node ----------------------------------------------------------------


class Care:
    """A caretaker of incarnation 7 that forks nothing: `begun` are the cleanups that it would run."""

    one_machine = True

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch, *, is_tree: bool = False) -> None:
        def end(status: int) -> None:
            raise SystemExit(status)

        monkeypatch.setattr(os, "_exit", end)
        self.guard, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.own: Lease | None = lease(7, LeaseState.LIVE, None)
        self.written: list[Lease] = []
        duty = caretaker.Duty(str(home), "n0", 0, 7, 5, lambda: cast("LeaseStore", self), is_tree)
        self.inner = caretaker._Caretaker(duty, theirs)
        self.begun: list[tuple[int, int]] = []
        monkeypatch.setattr(self.inner, "_begin", self._begin)
        self.ends = [self.guard, theirs]
        self.inner._init, self._init = os.pipe()  # readable: it has ended
        self.inner._writer, self._writer = os.pipe()

    def _begin(self, work: Any) -> None:
        work.pid = 4711
        self.begun.append((work.kept.uid, work.kept.generation))

    def take_up(self) -> list[int]:
        """What it has taken up, by uid."""
        self.inner._take_up()
        return sorted(work.kept.uid for work in self.inner._works.values())

    def is_ending(self) -> bool:
        """Whether it has seen the end of all that the node ran."""
        return self.inner._ending.has_begun

    def ended_us(self) -> int:
        """When it has seen that end."""
        assert self.inner._ending.ended_us is not None
        return self.inner._ending.ended_us

    def due(self) -> list[tuple[int, int]]:
        """What it begins now: uid and generation."""
        self.begun.clear()
        self.inner._begin_what_is_due(boottime_us())
        return list(self.begun)

    def finish(self, uid: int, status: int) -> None:
        """A cleaner ends."""
        (work,) = (each for each in self.inner._works.values() if each.kept.uid == uid and each.pid)
        work.pid = 0
        self.inner._ended(work, status)

    def init_ends(self) -> None:
        """The kernel says that init has ended."""
        os.write(self._init, b"x")

    def writer_ends(self) -> None:
        """The same of the lease writer."""
        os.write(self._writer, b"x")

    def guard_ends(self) -> None:
        """The guard's end of the channel is closed."""
        self.inner._ending.guard_went(boottime_us())

    def read_own(self) -> Lease | None:
        """As of the store."""
        return self.own

    def write_lease(self, record: Lease) -> None:
        """The same."""
        self.own = record
        self.written.append(record)

    def close(self) -> None:
        """All ends."""
        for end in self.ends:
            end.close()
        inner = self.inner
        for descriptor in (inner._init, self._init, inner._writer, self._writer, inner._wake_read, inner._wake_write):
            os.close(descriptor)


@pytest.fixture
def make_care(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Care]]:
    """Makes caretakers that are closed at the end."""
    made: list[Care] = []

    def make(**how: bool) -> Care:
        made.append(Care(tmp_path, monkeypatch, **how))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_p6_34_what_this_incarnation_has_started_is_cleared_only_once_the_kernel_says_that_it_has_ended(
    make_care: Callable[..., Care], tmp_path: Path
) -> None:
    keep(str(tmp_path), kept_of(1, "clear", incarnation=6))
    keep(str(tmp_path), kept_of(2, "clear", incarnation=7))
    care = make_care()
    assert care.take_up() == [1]
    care.inner._judge_end(boottime_us())
    care.guard_ends()
    care.inner._judge_end(boottime_us())  # its guard was killed, and init goes on
    assert not care.is_ending() and care.take_up() == [1]
    care.init_ends()
    care.inner._judge_end(boottime_us())
    assert care.is_ending()
    assert [uid for uid, _generation in care.due()] == [1, 2]


def test_p6_34_in_a_process_tree_the_end_of_init_says_nothing(make_care: Callable[..., Care], tmp_path: Path) -> None:
    keep(str(tmp_path), kept_of(2, "clear", incarnation=7))
    care = make_care(is_tree=True)
    care.init_ends()
    care.inner._judge_end(boottime_us())
    assert not care.is_ending()
    care.guard_ends()  # without a word that it has seen the end of everything: the next boot does the work
    with pytest.raises(SystemExit):
        care.inner._judge_end(boottime_us())
    assert care.due() == []
    told = make_care(is_tree=True)
    told.guard.send(b"empty its guard said so")
    told.inner._hear()
    assert told.is_ending() and told.inner._cause == "its guard said so"
    assert told.due() == [(2, 8)]


def test_p6_34_cleanups_of_one_service_run_one_after_the_other_oldest_first_and_few_at_a_time(
    make_care: Callable[..., Care], tmp_path: Path
) -> None:
    home, many = str(tmp_path), caretaker.MAXIMUM_AT_WORK
    for generation in (12, 9, 10):
        keep(home, kept_of(1, "clear", generation=generation))
    care = make_care()
    care.take_up()
    assert care.due() == [(1, 9)]
    assert care.due() == []
    care.finish(1, 0)
    assert care.due() == [(1, 10)]
    for uid in range(2, 4 + many):
        keep(home, kept_of(uid, "clear", generation=20))
    os.remove(path_of(home, kept_of(2, generation=20).file_name))  # cleared by hand, and the node has joined since
    keep(home, kept_of(50, "clear", generation=19))
    care.take_up()
    os.remove(path_of(home, kept_of(50, generation=19).file_name))
    assert care.due() == [(uid, 20) for uid in range(3, 2 + many)]
    assert care.inner._owed().waiting != ()


def test_p6_34_only_a_cleanup_that_succeeded_is_dropped_and_one_that_failed_is_owed_and_tried_again(
    make_care: Callable[..., Care], tmp_path: Path
) -> None:
    home = str(tmp_path)
    for uid in (1, 2):
        keep(home, kept_of(uid, "clear"))
    care = make_care()
    care.take_up()
    assert care.inner._owed() == Owed(5, (), tuple(sorted(kept_of(uid).identity for uid in (1, 2))))
    care.due()
    care.finish(1, 0)
    care.finish(2, 256)
    assert [kept.uid for kept in all_kept(home)] == [2]
    assert care.inner._owed() == Owed(5, (kept_of(2).identity,), ())
    assert care.due() == []  # not at once
    care.inner._begin_what_is_due(boottime_us() + RETRY_US)
    assert care.begun == [(2, 8)]
    care.finish(2, 256)
    care.init_ends()
    care.inner._judge_end(boottime_us())  # once more at the end, and then no more
    assert care.due() == [(2, 8)]
    care.finish(2, 256)
    care.inner._begin_what_is_due(boottime_us() + 100 * RETRY_US)
    assert care.begun == [(2, 8)]


def test_p6_33_what_is_owed_is_written_once_nobody_else_writes_and_again_where_a_late_tombstone_hides_it(
    make_care: Callable[..., Care], tmp_path: Path
) -> None:
    keep(str(tmp_path), kept_of(1, "clear", incarnation=7))
    care = make_care()
    care.init_ends()
    care.inner._judge_end(boottime_us())
    care.due()
    care.finish(1, 256)
    at_us = care.ended_us() + 1000
    assert not care.inner._settle(at_us)
    care.guard_ends()
    assert not care.inner._settle(at_us) and care.written == []  # its lease writer may still be in a write
    care.writer_ends()
    assert not care.inner._settle(at_us)
    owed = Owed(5, (kept_of(1).identity,), ())
    assert [(each.state, each.owed) for each in care.written] == [(LeaseState.PANICKED, owed)]
    care.own = care.written[0]._replace(owed=None)
    assert not care.inner._settle(at_us)
    assert not care.inner._settle(at_us) and len(care.written) == 2
    assert care.inner._settle(at_us)


def test_p6_33_nothing_is_written_over_the_record_of_the_next_run(make_care: Callable[..., Care]) -> None:
    care = make_care()
    care.own = lease(8, LeaseState.LIVE, Owed(5))
    care.init_ends()
    care.guard_ends()
    care.writer_ends()
    care.inner._judge_end(boottime_us())
    for _ in range(3):
        care.inner._settle(care.ended_us() + 1000)
    assert care.written == []
    waiting = make_care()
    waiting.init_ends()
    waiting.inner._judge_end(boottime_us())
    waiting.inner._settle(waiting.ended_us() + 4_900_000)
    assert waiting.written == []
    waiting.inner._settle(waiting.ended_us() + 5_100_000)  # a guard that hangs had its time
    assert len(waiting.written) == 1


# ---- P7.19: what takes the place of a process that was killed --------------------------------------------------------


def holder(home: Path) -> int:
    """The caretaker at work: it holds the lock."""
    return int(_text(home / "cleanups" / "lock") or "0")


def test_p7_19_a_killed_caretaker_is_replaced_by_one_that_knows_all_that_was_recorded(
    node: RealNode, tmp_path: Path
) -> None:
    node.start()
    incarnation = node.up()["incarnation"]
    home = str(node.home)
    for uid in (1, 2):
        keep(home, kept_of(uid, "touch", f"{tmp_path}/cleared{uid}", incarnation=incarnation))
        before = wait_for("the one at work", lambda: holder(node.home))  # 0 would be this very process, and its group
        wait_for("a caretaker and its standby", lambda: len(caretakers(node)) == 2)
        os.kill(before, signal.SIGKILL)
        wait_for("another one", lambda before=before: holder(node.home) not in (0, before))  # type: ignore[misc]
    wait_for("a caretaker and its standby", lambda: len(caretakers(node)) == 2)
    (standby,) = set(caretakers(node)) - {holder(node.home)}
    os.kill(standby, signal.SIGKILL)
    wait_for("another standby", lambda: set(caretakers(node)) - {holder(node.home), standby})
    assert not (tmp_path / "cleared1").exists(), "what runs is not cleared away"
    node.order("guard", "panic for a test")
    assert node.ended() == 70
    assert wait_for("the statement", said(node)).is_empty
    assert (tmp_path / "cleared1").exists() and (tmp_path / "cleared2").exists()
    words = "the caretaker was killed: another one has taken its place"
    wait_for("their words", lambda: node.log().count(words) == 2)
    wait_for("the end of both", lambda: not caretakers(node))


@pytest.mark.skipif(not has_namespaces(), reason="after a killed guard only a namespace shows its end")
def test_p7_19_it_sees_the_end_of_the_node_without_its_guard(node: RealNode, tmp_path: Path) -> None:
    node.start()
    up = node.up()
    keep(str(node.home), kept_of(1, "touch", f"{tmp_path}/cleared"))
    wait_for("a caretaker and its standby", lambda: len(caretakers(node)) == 2)
    os.kill(wait_for("the one at work", lambda: holder(node.home)), signal.SIGKILL)
    os.kill(up["pid"], signal.SIGKILL)
    assert node.ended() == -signal.SIGKILL
    assert wait_for("the statement", said(node)).is_empty
    assert (tmp_path / "cleared").exists()


def test_p7_19_where_caretaker_and_standby_are_killed_the_daemon_is_told_and_each_later_one(node: RealNode) -> None:
    node.start()
    daemon = node.up()["daemon_pid"]
    wait_for("a caretaker and its standby", lambda: len(caretakers(node)) == 2)
    kill_at_once(caretakers(node))

    def told() -> list[str]:
        return [each["text"] for each in node.heard("guard") if each["text"].startswith("lacks")]

    wait_for("the word", lambda: told() == ["lacks caretaker"])
    os.kill(daemon, signal.SIGKILL)
    wait_for("the word again", lambda: told() == ["lacks caretaker"] * 2)


def end_as_systemd_does(node: RealNode, guard: int) -> None:
    """KillMode=mixed: when the guard has ended, all else of the unit is killed at once."""
    kill_at_once([guard, *wait_for("a caretaker", lambda: caretakers(node))])
    assert node.ended()
    wait_for("its end", lambda: not node.processes())


@pytest.mark.skipif(not has_namespaces(), reason="after a killed guard only a namespace shows its end")
def test_p6_34_after_the_end_of_all_its_processes_a_command_clears_the_machine(node: RealNode, tmp_path: Path) -> None:
    node.start()
    up = node.up()
    home = str(node.home)
    keep(home, kept_of(1, "touch", f"{tmp_path}/cleared"))
    keep(home, kept_of(2, "false"))
    told: list[str] = []

    def cleared() -> int:
        return clear(home, "n0", 0, lambda: GuardStore(str(node.store), 0), told.append)

    with pytest.raises(NotNow, match="this node already runs"):
        cleared()
    assert not (tmp_path / "cleared").exists()
    end_as_systemd_does(node, up["pid"])
    assert cleared() == 0
    assert (tmp_path / "cleared").exists()
    owed = said(node)()
    assert owed is not None and owed.failed == (identity_of(2, "s2"),)
    assert told[0].endswith("clearing what services have left in this machine: s1, s2")
    assert told[1] == "not cleared: s2; the next boot tries it again before the node joins"
    assert [each.service for each in all_kept(home)] == ["s2"]


def test_p6_34_the_command_clears_nothing_where_the_end_of_the_last_run_is_not_proven(tmp_path: Path) -> None:
    node = RealNode(make_store(tmp_path), tmp_path, 0, "process-tree")
    try:
        node.start()
        up = node.up()
        keep(str(node.home), kept_of(1, "touch", f"{tmp_path}/cleared"))
        end_as_systemd_does(node, up["pid"])
        record = node.lease()
        store = GuardStore(str(node.store), 0)
        store.write_lease(record._replace(stamp=record.stamp._replace(sequence=record.stamp.sequence + 1), life=None))
        store.close()
        with pytest.raises(StartRefused, match="nothing proves that all of the node's last run has ended"):
            clear(str(node.home), "n0", 0, lambda: GuardStore(str(node.store), 0), lambda _text: None)
        assert not (tmp_path / "cleared").exists()
    finally:
        node.close()


def test_p6_34_the_command_of_the_unit_is_musterd_and_does_nothing_where_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unit = unit_file(InstallationSettings("n0", "/dev/it", str(tmp_path)))
    line = next(line for line in unit.splitlines() if line.startswith("ExecStopPost=-"))
    words = line.partition("/musterd ")[2].split()
    assert words[-1] == "--clear"
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    assert capsys.readouterr() == ("", "")
