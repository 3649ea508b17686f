"""Who may do what at the control socket (P10.4, docs/ACCESS.md): the tables, the roles of users, what is remembered."""

import asyncio
import grp
import os
import pwd
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from interconnect_trial import until
from muster.daemon.socket import access, system_names
from muster.daemon.socket.access import Gate, group_names, role_of
from muster.daemon.socket.catalogue import CALLS, QUERIES, right_of
from muster.daemon.socket.operations import read_operation
from muster.records.access import Author, Groups, Role
from muster.records.operations import OPERATIONS
from muster.records.refusal import ControlRefused

DOCUMENT = Path(__file__).parents[2] / "docs" / "ACCESS.md"
STRANGER = 54_321
NAMES = Groups("watchers", "operators", "keepers")


def group_of(number: int) -> str:
    return grp.getgrgid(number).gr_name


def test_p10_4_each_request_has_a_role_and_the_documentation_names_it() -> None:
    rows = [
        tuple(cell.strip().strip("`") for cell in line.strip("|").split("|"))[:3]
        for line in DOCUMENT.read_text().splitlines()
        if line.startswith("| `")
    ]
    wanted = [("operation", kind.name, str(kind.role)) for kind in OPERATIONS if kind.role is not None]
    wanted += [("operation", name, str(call.role)) for name, call in CALLS.items()]
    wanted += [("query", name, str(query.role)) for name, query in QUERIES.items()]
    assert rows == wanted, "docs/ACCESS.md must have these rows"
    assert not {role for _, _, role in rows} & {"none"}


def test_p10_4_what_nothing_is_called_is_refused_and_only_who_may_ask_anything_learns_what_there_is() -> None:
    gate = Gate("n0", lambda: NAMES, lambda _event, _text: None)
    for request in ({"operation": "enrol_node"}, {"operation": "something_new"}, {"query": "something_new"}):
        assert right_of(request) is None
        with pytest.raises(ControlRefused, match=r"there is no (operation|query) '(something_new|enrol_node)'"):
            gate.admit({**request, "peer": {"pid": 1, "uid": 0, "gid": 0, "groups": ()}})
        with pytest.raises(ControlRefused, match="has no role in this cluster"):
            gate.admit({**request, "peer": {"pid": 1, "uid": STRANGER, "gid": STRANGER, "groups": ()}})


@pytest.mark.parametrize(("former", "name"), [("apply_events", "events"), ("enable_events", "enable")])
def test_p10_4_a_name_that_an_operation_had_is_taken_and_means_the_same(former: str, name: str) -> None:
    assert right_of({"operation": former}) == right_of({"operation": name})
    arguments = {"group": "g", "enabled": True} if name == "enable" else {"groups": []}
    assert read_operation(former, dict(arguments)) == read_operation(name, dict(arguments))


def test_p10_4_operators_run_what_there_is_and_administrators_decide_what_there_is() -> None:
    of_role = {role: {kind.name for kind in OPERATIONS if kind.role is role} for role in (*Role, None)}
    assert {"register", "deregister", "transfer", "restart", "clear", "leave", "maintain"} < of_role[Role.OPERATOR]
    assert {"apply", "evict", "configure", "roll_back", "add_node", "remove_node"} < of_role[Role.ADMINISTRATOR]
    assert of_role[None] == {"enrol_node", "certify_nodes"}  # nodes ask for these by themselves


def test_p10_4_a_user_has_the_highest_role_whose_group_they_are_in() -> None:
    assert role_of(0, frozenset(), NAMES) is Role.ADMINISTRATOR
    assert role_of(os.geteuid(), frozenset(), NAMES) is Role.ADMINISTRATOR
    assert role_of(STRANGER, frozenset(), NAMES) is Role.NONE
    assert role_of(STRANGER, frozenset({"watchers"}), NAMES) is Role.OBSERVER
    assert role_of(STRANGER, frozenset({"watchers", "operators"}), NAMES) is Role.OPERATOR
    assert role_of(STRANGER, frozenset({""}), Groups()) is Role.NONE


def test_p10_4_a_role_that_is_just_too_low_is_refused_and_remembered_within_bounds() -> None:
    told: list[tuple[str, str]] = []
    own = min(each.gr_gid for each in grp.getgrall() if each.gr_gid)
    gate = Gate("n0", lambda: Groups("", group_of(own), ""), lambda event, text: told.append((event, text)))
    peer = {"pid": 1, "uid": STRANGER, "gid": own, "groups": ()}
    asyncio.run(introduced(gate, peer))
    assert gate.admit({"operation": "transfer", "peer": peer}).role is Role.OPERATOR
    for _ in range(2 * access.MAXIMUM_REFUSALS):
        with pytest.raises(ControlRefused, match="needs the role administrator"):
            gate.admit({"operation": "evict", "peer": peer})
    assert len(gate.refused) == access.MAXIMUM_REFUSALS
    assert len(told) == 1  # once a minute
    assert STRANGER not in {each.pw_uid for each in pwd.getpwall()}


def test_p10_4_a_user_without_a_role_may_not_even_ask() -> None:
    told: list[str] = []
    gate = Gate("n0", lambda: NAMES, lambda _event, text: told.append(text))
    with pytest.raises(ControlRefused, match="has no role in this cluster"):
        gate.admit({"query": "status", "peer": {"pid": 1, "uid": STRANGER, "gid": STRANGER, "groups": ()}})
    assert not told and not gate.refused, "what is kept and logged is who wanted to change something"


def test_p10_4_what_others_have_done_is_shown_to_operators() -> None:
    assert [name for name, query in QUERIES.items() if query.role is not Role.OBSERVER] == [
        *("fence_test", "audit", "history", "subsystem", "watcher", "lock_manager", "lock_channels")
    ]


def test_p10_4_supplementary_groups_count_as_the_primary_one_does() -> None:
    names = {100: frozenset({"users"}), 200: frozenset({"ops"})}
    found = group_names({"gid": 100, "groups": [200, 300]}, lambda number: names.get(number, frozenset()))
    assert found == {"users", "ops"}  # 300 has no name
    assert group_names({"gid": 200}, lambda number: names[number]) == {"ops"}


# ---- P10.9 -----------------------------------------------------------------------------------------------------------


class Directory:
    """The system's directory, which may hang."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers, self.asked = threading.Event(), []  # type: ignore[var-annotated]
        self.answers.set()
        monkeypatch.setattr(grp, "getgrnam", self._group)
        monkeypatch.setattr(pwd, "getpwuid", self._user)

    def _group(self, name: str) -> SimpleNamespace:
        self.asked.append(name)
        self.answers.wait()
        return SimpleNamespace(gr_gid={"watchers": 1, "operators": 2}[name])

    def _user(self, uid: int) -> SimpleNamespace:
        self.asked.append(uid)
        self.answers.wait()
        return SimpleNamespace(pw_name=f"user{uid}")


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Directory]:
    made = Directory(monkeypatch)
    yield made
    made.answers.set()  # its threads go on


def peer_of(uid: int, *groups: int) -> dict[str, Any]:
    return {"pid": 1, "uid": uid, "gid": 100, "groups": groups}


async def introduced(gate: Gate, peer: dict[str, Any]) -> Author:
    """Who that is, once the node has waited for it as it does."""
    known = gate.introduce(peer)
    if known is not None:
        await known
    return gate.author(peer)


def test_p10_9_a_client_waits_until_the_system_has_said_who_that_is(directory: Directory) -> None:
    async def trial() -> None:
        gate = Gate("n0", lambda: NAMES, lambda _event, _text: None)
        author = await introduced(gate, peer_of(STRANGER, 2))
        assert (author.role, author.user) == (Role.OPERATOR, f"user{STRANGER}")
        asked = len(directory.asked)
        assert gate.introduce(peer_of(STRANGER, 1)) is None, "all of that is known"
        assert gate.author(peer_of(STRANGER, 1)).role is Role.OBSERVER
        assert len(directory.asked) == asked

    asyncio.run(trial())


def test_p10_9_while_the_systems_directory_hangs_the_loop_turns_and_what_was_known_counts(
    directory: Directory,
) -> None:
    async def trial() -> None:
        gate = Gate("n0", lambda: NAMES, lambda _event, _text: None)
        assert (await introduced(gate, peer_of(5, 1))).role is Role.OBSERVER
        directory.answers.clear()
        began_s = time.monotonic()
        newcomer = asyncio.create_task(introduced(gate, peer_of(6, 2)))
        await asyncio.sleep(0)
        assert time.monotonic() - began_s < system_names.WAIT_S / 2, "the loop has waited"
        author = await newcomer
        assert (author.role, author.user) == (Role.OPERATOR, "6"), "its group was known; its name is not"
        root = await introduced(gate, peer_of(0))
        assert (root.role, root.user) == (Role.ADMINISTRATOR, "0")
        assert gate.introduce(peer_of(6, 2)) is None, "nobody waits twice for what has not come"
        directory.answers.set()
        await until(lambda: gate.author(peer_of(6, 2)).user == "user6")

    asyncio.run(trial())


def test_p10_9_a_group_that_is_made_or_set_later_counts(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_names, "_FRESH_S", 0.0)
    settings = [Groups("", "", "")]

    async def trial() -> None:
        gate = Gate("n0", lambda: settings[0], lambda _event, _text: None)
        assert (await introduced(gate, peer_of(STRANGER, 2))).role is Role.NONE
        settings[0] = NAMES
        assert (await introduced(gate, peer_of(STRANGER, 2))).role is Role.OPERATOR
        monkeypatch.setattr(grp, "getgrnam", lambda _name: SimpleNamespace(gr_gid=7))
        assert (await introduced(gate, peer_of(STRANGER, 7))).role is Role.ADMINISTRATOR

    asyncio.run(trial())


def test_p10_9_a_strangers_numbers_are_never_looked_up_as_groups(directory: Directory) -> None:
    async def trial() -> None:
        gate = Gate("n0", lambda: NAMES, lambda _event, _text: None)
        await introduced(gate, peer_of(STRANGER, 77, 78))
        assert set(directory.asked) == {"watchers", "operators", "keepers", STRANGER}

    asyncio.run(trial())


def test_p10_9_looks_that_hang_are_bounded(directory: Directory) -> None:
    async def trial() -> None:
        gate = Gate("n0", lambda: NAMES, lambda _event, _text: None)
        directory.answers.clear()
        threads = threading.active_count()
        for uid in range(1000, 1500):
            gate.names.missing(uid, Role.OBSERVER)
        assert threading.active_count() <= threads + 2
        directory.answers.set()
        await until(lambda: not gate.names.missing(1499, Role.OBSERVER))
        assert len(set(directory.asked)) < 100

    asyncio.run(trial())
