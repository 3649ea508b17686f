"""P4.5: subsystems may object to planned changes, never to a forced leave (SPEC 3.4, 6.8), on a real cluster."""

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator

from dev_cluster import DevCluster
from muster.client import Planned, register
from real_node import DEADLINE_S, wait_for


@contextlib.contextmanager
def registered(cluster: DevCluster, name: str, node: str, judge: Callable[[Planned], str]) -> Iterator[None]:
    """A program at level 60 that acknowledges whatever it is told, and judges planned changes.

    It is asked from its first notification on, which is that of its own join (P3.14).
    """
    is_joined = threading.Event()
    with register(name, 60, judge=judge, directory=cluster.directory, node=node) as program:

        def work() -> None:
            for told in program:
                told.acknowledge()
                is_joined.set()

        worker = threading.Thread(target=work)
        worker.start()
        try:
            assert is_joined.wait(DEADLINE_S), "it is not told of its own join"
            yield
        finally:
            program.deregister()
            worker.join()


def test_p4_5_an_objection_refuses_a_leave_with_its_reason_and_who_asked_may_override(
    dev_cluster: DevCluster,
) -> None:
    cluster = dev_cluster
    cluster.up(3)
    asked: list[Planned] = []

    def judge(planned: Planned) -> str:
        asked.append(planned)
        return "the nightly backup runs until six" if planned.node == "n1" else ""

    with registered(cluster, "backup", "n2", judge):
        refused = cluster.run("node", "leave", "n1")
        assert refused.returncode == 1
        assert "backup (level 60) on n2 objects: the nightly backup runs until six" in refused.stderr
        assert "--override" in refused.stderr
        assert asked == [Planned("leave", "n1", "")]
        assert cluster.status()["nodes"]["n1"]["state"] == "joined"
        assert cluster.status()["transitions"] == []

        assert cluster.run("node", "leave", "n0").returncode == 0, "nobody objects to this one"
        assert cluster.run("dev", "leave", "n1").returncode == 1
        assert cluster.run("dev", "leave", "n1", "--override").returncode == 0
        assert cluster.status("n2")["nodes"]["n1"]["state"] == "inactive"


def test_p4_5_standby_drain_and_de_registration_are_put_to_objectors_and_each_can_be_overridden(
    dev_cluster: DevCluster,
) -> None:
    cluster = dev_cluster
    cluster.up(2)
    file = cluster.directory / "services.toml"
    file.write_text('[[service]]\nname = "web"\nallowable_nodes = ["n0"]\nstart_command = "true"\n')
    assert cluster.run("apply", str(file)).returncode == 0
    cluster.wait_for("web runs", lambda status: status["services"]["web"]["state"] == "registered")
    asked: list[Planned] = []

    def judge(planned: Planned) -> str:
        asked.append(planned)
        return "the nightly backup runs until six"

    def overridden(*command: str) -> None:
        refused = cluster.run(*command)
        assert refused.returncode == 1
        assert "backup (level 60) on n1 objects: the nightly backup runs until six" in refused.stderr
        assert "--override" in refused.stderr
        done = cluster.run(*command, "--override")
        assert done.returncode == 0, done.stderr

    with registered(cluster, "backup", "n1", judge):
        overridden("service", "deregister", "web")
        overridden("node", "standby", "n0")
        assert cluster.run("node", "active", "n0").returncode == 0, "nobody is asked about the end of a standby"
        overridden("node", "drain", "n0")
        assert asked == [Planned("deregister", "", "web"), Planned("standby", "n0", ""), Planned("standby", "n0", "")]


def test_p4_5_nobody_is_asked_about_a_forced_leave(dev_cluster: DevCluster) -> None:
    cluster = dev_cluster
    cluster.up(2)
    asked: list[Planned] = []

    def judge(planned: Planned) -> str:
        asked.append(planned)
        return "never"

    with registered(cluster, "stubborn", "n0", judge):
        assert cluster.run("node", "evict", "n1", "--cause", "test").returncode == 0
        cluster.wait_for("n1 out", lambda status: status["nodes"]["n1"]["state"] == "inactive", node="n0")
    assert asked == []


def test_p4_10_a_leave_that_sigterm_asked_for_goes_on_when_the_daemon_was_killed(dev_cluster: DevCluster) -> None:
    cluster = dev_cluster
    cluster.up(2)
    home = cluster.directory / "nodes" / "n1"
    state = json.loads((home / "guard.json").read_text())

    def lines(text: str) -> int:
        return (home / "log").read_text().count(text)

    with registered(cluster, "stubborn", "n0", lambda _planned: "a backup runs"):
        os.kill(state["pid"], signal.SIGTERM)
        wait_for("the objection", lambda: lines("it asks again: stubborn (level 60) on n0 objects: a backup runs"))
        os.kill(state["daemon_pid"], signal.SIGKILL)
        wait_for("the next daemon asks", lambda: lines("it asks again: stubborn") > 1)
        assert cluster.status("n0")["nodes"]["n1"]["state"] == "joined"
    cluster.wait_for("n1 has left", lambda status: status["nodes"]["n1"]["state"] == "inactive", node="n0")
    assert not lines("panic")
