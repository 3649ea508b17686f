"""Real daemons, asked by real users: roles, audit, configuration history, reads at an index (P9.2, P10.2, P10.4)."""

import grp
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from dev_cluster import DevCluster
from muster.client.control import ControlClient
from muster.client.errors import ClientError

ROOT = Path(__file__).parents[2]
STRANGER = 54321  # a user that no machine has
SERVICES = """
[[service]]
name = "{name}"
start_command = "/bin/true"
"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becomes other users")


@pytest.fixture(scope="module")
def cluster() -> Iterator[DevCluster]:
    """Two nodes in a directory that other users may pass through."""
    with tempfile.TemporaryDirectory(prefix="muster-test-", ignore_cleanup_errors=True) as base:
        Path(base).chmod(0o711)
        found = DevCluster(Path(base) / "cluster")
        try:
            found.up(2)
            yield found
        finally:
            found.down()


def socket_of(cluster: DevCluster, node: str) -> Path:
    return cluster.directory / "nodes" / node / "control.sock"


def apply(cluster: DevCluster, name: str, *arguments: str) -> Any:
    """Define a service; the answer."""
    path = cluster.directory.parent / f"{name}.toml"
    path.write_text(SERVICES.format(name=name))
    return cluster.json("apply", str(path), *arguments)


def _as_user(reply: Connection, groups: list[int], path: str, call: str, name: str, arguments: dict[str, Any]) -> None:
    os.setgroups(groups)
    os.setresgid(STRANGER, STRANGER, STRANGER)
    os.setresuid(STRANGER, STRANGER, STRANGER)
    try:
        reply.send((getattr(ControlClient(path), call)(name, **arguments), None))
    except ClientError as error:
        reply.send((None, (error.what, error.where, error.next_step)))


def as_user(cluster: DevCluster, groups: list[str], call: str, name: str, **arguments: Any) -> tuple[Any, Any]:
    """What a user who is in these groups is answered at n0: the result, or what, where and next of the error."""
    numbers = [grp.getgrnam(group).gr_gid for group in groups]
    here, there = multiprocessing.Pipe()
    words = (there, numbers, str(socket_of(cluster, "n0")), call, name, arguments)
    child = multiprocessing.get_context("fork").Process(target=_as_user, args=words)
    child.start()
    try:
        assert here.poll(30), "no answer"
        found: tuple[Any, Any] = here.recv()
        return found
    finally:
        child.join(30)
        child.kill()


@pytest.fixture(scope="module")
def groups(cluster: DevCluster) -> dict[str, str]:
    """Three groups that this machine has, set to give the roles."""
    found = [group.gr_name for group in grp.getgrall() if group.gr_gid not in (0, STRANGER)][:3]
    roles = dict(zip(("observer", "operator", "administrator"), found, strict=True))
    for role, group in roles.items():
        cluster.succeed("config", "set", f"{role}_group", group)
    return roles


# ---- reading at an index ---------------------------------------------------------------------------------------------


def test_p9_2_a_query_that_names_an_index_shows_the_change_on_another_node(cluster: DevCluster) -> None:
    for number in range(5):
        index = apply(cluster, f"seen{number}", "--node", "n0")["index"]
        answer = cluster.json("services", "--node", "n1", "--at-least", str(index))
        assert f"seen{number}" in answer["services"]
        assert answer["index"] >= index


def test_p9_2_a_node_that_does_not_get_there_says_so_in_bounded_time(cluster: DevCluster) -> None:
    ended = cluster.run("services", "--at-least", "1000000", "--timeout", "1")
    assert ended.returncode == 1
    assert "has not got to index 1000000 within 900 ms" in ended.stderr
    assert cluster.run("services", "--at-least", "-1").returncode == 2


def test_p9_2_a_wait_that_is_no_number_is_refused(cluster: DevCluster) -> None:
    client = ControlClient(socket_of(cluster, "n0"))
    for bad in ({"at_least": "7"}, {"at_least": -1}, {"at_least": True}, {"at_least": 1, "wait_ms": 10**9}):
        with pytest.raises(ClientError, match="must be a number from 0"):
            client.query("services", **bad)


# ---- configuration ---------------------------------------------------------------------------------------------------


def test_the_history_says_who_when_from_where_and_a_rollback_is_shown_first(cluster: DevCluster) -> None:
    apply(cluster, "history-a")
    before = cluster.json("config", "history")["version"]
    index = apply(cluster, "history-b", "--node", "n1")["index"]
    history = cluster.json("config", "history", "--at-least", str(index))
    newest = history["versions"][0]
    assert newest["version"] == before + 1
    assert (newest["uid"], newest["node"]) == (os.geteuid(), "n1")
    assert newest["what"] == "apply: define history-b"
    shown = cluster.json("config", "show", str(before))
    assert "history-b" not in shown["services"] and "history-a" in shown["services"]
    (difference,) = cluster.json("config", "diff", str(before))["differences"]
    assert (difference["name"], difference["change"]) == ("history-b", "new")

    dry = cluster.succeed("config", "rollback", str(before))
    assert "- service history-b: removed" in dry and "nothing was changed" in dry
    assert cluster.json("config", "history")["version"] == before + 1
    cluster.succeed("config", "rollback", str(before), "--yes")
    index = cluster.json("config", "history")["index"]
    views = [cluster.json("config", "show", "--node", node, "--at-least", str(index)) for node in ("n0", "n1")]
    assert views[0]["services"] == views[1]["services"] == shown["services"]
    assert views[0]["version"] == before + 2


def test_apply_with_an_expected_version_is_compare_and_set(cluster: DevCluster) -> None:
    before = cluster.json("config", "history")["version"]
    apply(cluster, "expected", "--expect", str(before))
    path = cluster.directory.parent / "late.toml"
    path.write_text(SERVICES.format(name="late"))
    ended = cluster.run("apply", str(path), "--expect", str(before))
    assert ended.returncode == 1
    assert f"at version {before + 1}, made by " in ended.stderr
    assert f"muster config diff {before} {before + 1}" in ended.stderr
    assert "late" not in cluster.json("services")["services"]


def test_a_version_that_is_not_there_is_named(cluster: DevCluster) -> None:
    for words in (["show", "999"], ["diff", "0", "999"], ["rollback", "999"], ["rollback", "999", "--yes"]):
        ended = cluster.run("config", *words)
        assert ended.returncode == 1
        assert "there is no version 999 of the configuration" in ended.stderr
        assert "muster config history" in ended.stderr


def test_a_setting_that_cannot_be_is_refused(cluster: DevCluster) -> None:
    ended = cluster.run("config", "set", "operator_group", "no such group!")
    assert ended.returncode == 1
    assert "cannot be the name of a Unix group" in ended.stderr
    assert cluster.run("config", "set", "colour", "red").returncode == 2


# ---- access ----------------------------------------------------------------------------------------------------------


@needs_root
def test_p10_4_a_user_without_a_role_is_told_which_group_to_join(cluster: DevCluster, groups: dict[str, str]) -> None:
    result, error = as_user(cluster, [], "query", "status")
    assert result is None
    what, where, next_step = error
    assert what == f"this needs the role observer; user {STRANGER} has no role in this cluster"
    assert where == "query status"
    assert f"usermod -aG {groups['observer']}" in next_step


@needs_root
def test_p10_4_each_role_may_do_what_it_says_and_no_more(cluster: DevCluster, groups: dict[str, str]) -> None:
    apply(cluster, "access")
    observer, operator, administrator = (as_user_of(cluster, group) for group in groups.values())
    assert observer("query", "status")[1] is None
    assert "needs the role operator" in observer("operate", "register", service="access")[1][0]
    assert "needs the role operator" in observer("query", "audit")[1][0]
    assert operator("operate", "deregister", service="access")[1] is None
    refused = operator("operate", "evict", node="n1", cause="test")[1]
    assert refused[0] == f"this needs the role administrator; user {STRANGER} has the role operator"
    assert administrator("operate", "configure", setting="observer_group", value=groups["observer"])[1] is None
    assert administrator("operate", "no_such_operation")[1][0].startswith("there is no operation")


def as_user_of(cluster: DevCluster, group: str) -> Any:
    """Asks as a user who is in that one group."""
    return lambda call, name, **arguments: as_user(cluster, [group], call, name, **arguments)


@needs_root
def test_p10_4_the_audit_names_user_role_and_node_and_what_was_refused_where(
    cluster: DevCluster, groups: dict[str, str]
) -> None:
    apply(cluster, "audited")
    as_user(cluster, [groups["operator"]], "operate", "deregister", service="audited")
    as_user(cluster, [groups["observer"]], "operate", "register", service="audited")
    here = cluster.json("audit", "--node", "n0")
    (done,) = [
        entry
        for entry in here["audit"]
        if entry["operation"] == "deregister" and entry["subject"] == "service=audited"
    ]  # fmt: skip
    assert (done["uid"], done["role"], done["node"], done["here"]) == (STRANGER, "operator", "n0", False)
    refused = next(entry for entry in here["audit"] if entry["here"] and entry["operation"] == "register")
    assert (refused["uid"], refused["role"], refused["index"]) == (STRANGER, "observer", None)
    there = cluster.json("audit", "--node", "n1", "--at-least", str(here["index"]))
    committed = [entry for entry in here["audit"] if not entry["here"]]
    assert [entry for entry in there["audit"] if not entry["here"]] == committed
    assert "audited" in cluster.succeed("audit")
