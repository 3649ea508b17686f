"""P4.5: subsystems may object to planned changes, never to a forced leave (SPEC 3.4, 6.8), on a real cluster."""

import contextlib
import threading
from collections.abc import Callable, Iterator

from conftest import DevCluster
from muster.client import Planned, register


@contextlib.contextmanager
def registered(cluster: DevCluster, name: str, node: str, judge: Callable[[Planned], str]) -> Iterator[None]:
    """A program at level 60 that acknowledges whatever it is told, and judges planned changes."""
    with register(name, 60, judge=judge, directory=cluster.directory, node=node) as program:

        def work() -> None:
            for told in program:
                told.acknowledge()

        worker = threading.Thread(target=work)
        worker.start()
        try:
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
