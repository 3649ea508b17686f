"""The lock processes of real development clusters, their clients and commands (SPEC 4.1, P12.15-P12.21)."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dev_cluster import FAST, SOURCE, DevCluster
from lock_histories import Event, Fault, judge
from muster.client import register
from muster.client.control import ControlClient
from muster.locks import (
    CR,
    EX,
    NL,
    PR,
    PW,
    AsyncLocks,
    ClientError,
    Grant,
    Locks,
    LocksLost,
    Mode,
    NotGranted,
    Refused,
    Space,
    Unreachable,
    connect,
    connect_async,
)

DEADLINE_S = 60.0
NODES = ("n0", "n1", "n2")
DOCUMENT = Path(__file__).parents[2] / "docs" / "LOCKS.md"
LOCK_PROCESS, DAEMON = "muster.daemon.locks.run", "muster.daemon.run"
WORKERS = Path(__file__).parents[1] / "support" / "lock_workers.py"
HISTORIES = WORKERS.with_name("lock_histories.py")


def wait(what: str, probe: Callable[[], Any]) -> Any:
    """Poll until the answer is true; that answer. A node that does not answer is asked again."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        with contextlib.suppress(ClientError):
            if found := probe():
                return found
        assert time.monotonic() < deadline, f"waited {DEADLINE_S} s for {what}"
        time.sleep(0.02)


class Cluster:
    """A cluster with locks, whose programs and connections end with the test."""

    def __init__(self, dev: DevCluster, stack: contextlib.ExitStack) -> None:
        self.dev, self._stack = dev, stack

    def levels(self, node: str) -> dict[int, str]:
        """What is registered on a node, by its own word."""
        path = self.dev.directory / "nodes" / node / "control.sock"
        found = ControlClient(path, 5.0).query("nodes")["nodes"]
        return {level["level"]: level["name"] for level in found[node]["levels"]}

    def switch_on(self, spaces: str = "orders") -> None:
        """Have locks, on all nodes."""
        self.dev.succeed("config", "set", "lockspaces", spaces)
        for node in NODES:
            self.await_locks(node)

    def await_locks(self, node: str) -> None:
        """Until this node's clients are granted locks."""

        def granted() -> bool:
            with self.connect(node) as locks:
                locks.space("orders").acquire(f"ready/{node}", NL, timeout_s=5.0).unlock()
            return True

        wait(f"locks on {node}", granted)

    def connect(self, node: str, **options: Any) -> Locks:
        """A client of a node."""
        locks = connect(directory=self.dev.directory, node=node, **options)
        self._stack.callback(_close, locks)
        return locks

    def worker(self, *words: str) -> "subprocess.Popen[str]":
        """A program of lock_workers.py."""
        return self._start(str(WORKERS), words[0], str(self.dev.directory), *words[1:])

    def program(self, path: Path, *words: str) -> "subprocess.Popen[str]":
        """Another program, which is told the cluster's directory first."""
        return self._start(str(path), str(self.dev.directory), *words)

    def _start(self, *words: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(SOURCE)},
        )  # fmt: skip
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        for end in (process.stdin, process.stdout):
            assert end is not None
            self._stack.callback(end.close)
        return process

    def command(self, *words: str) -> "subprocess.Popen[str]":
        """A command of `muster` that stays."""
        process = subprocess.Popen(
            [sys.executable, "-m", "muster.ui.command_line", *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"MUSTER_DIR": str(self.dev.directory)},
        )  # fmt: skip
        self._stack.callback(process.communicate)
        self._stack.callback(process.kill)
        return process


def _close(locks: Locks) -> None:
    with contextlib.suppress(ClientError):  # its node may be gone
        locks.close()


def line_of(process: "subprocess.Popen[str]") -> str:
    """The next line that it says."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


@pytest.fixture
def cluster(dev_cluster: DevCluster) -> Iterator[Cluster]:
    """Three joined nodes with the lockspace `orders`."""
    dev_cluster.up(3)
    with contextlib.ExitStack() as stack:
        found = Cluster(dev_cluster, stack)
        found.switch_on()
        yield found


@pytest.fixture
def fast_cluster(dev_cluster: DevCluster) -> Iterator[Cluster]:
    """The same, where the loss of a node is noticed soon."""
    dev_cluster.up(3, *FAST)
    with contextlib.ExitStack() as stack:
        found = Cluster(dev_cluster, stack)
        found.switch_on()
        yield found


def refused(work: Callable[[], object], words: str) -> None:
    """It is refused in these words."""
    with pytest.raises(ClientError, match=words):
        work()


def test_p12_15_locks_are_switched_on_and_off_while_the_cluster_runs(dev_cluster: DevCluster) -> None:
    dev_cluster.up(3)
    with contextlib.ExitStack() as stack:
        cluster = Cluster(dev_cluster, stack)
        with pytest.raises(Unreachable):
            cluster.connect("n0", timeout_s=1.0)
        with register("mine", 10, directory=dev_cluster.directory, node="n1") as mine:
            wait("its level", lambda: cluster.levels("n1").get(10) == "mine")
            ended = dev_cluster.run("config", "set", "lockspaces", "orders")
            assert ended.returncode == 1
            assert "on n1 mine has it" in ended.stderr
            mine.deregister()
        wait("its end", lambda: 10 not in cluster.levels("n1"))
        cluster.switch_on("orders,reports")
        assert [cluster.levels(node).get(10) for node in NODES] == ["lock-manager"] * 3
        refused(lambda: register("mine", 10, directory=dev_cluster.directory, node="n1"), "is the lock-manager's")
        lost: list[LocksLost] = []
        locks = cluster.connect("n2", on_lost=lost.append)
        locks.space("reports").acquire("daily")
        dev_cluster.succeed("config", "set", "lockspaces", "orders")
        wait("the space to go", lambda: _is_refused(locks, "reports", "no lockspace 'reports'"))
        assert "locks are off" in dev_cluster.succeed("config", "set", "lockspaces", "none")
        wait("the end of the locks", lambda: lost)
        wait("the end of the level", lambda: not any(10 in cluster.levels(node) for node in NODES))
        assert {each["state"] for each in dev_cluster.status()["nodes"].values()} == {"joined"}
        cluster.switch_on("orders")


def test_p12_22_locks_that_are_switched_off_and_on_at_once_work_again(cluster: Cluster) -> None:
    """Also where one node hears of both at once, and keeps its process: its peers are others than before."""
    master = cluster.dev.status()["master"]
    settings = ControlClient(cluster.dev.directory / "nodes" / master / "control.sock", DEADLINE_S)

    def switch() -> None:
        for spaces in ("none", "orders"):
            settings.operate("configure", setting="lockspaces", value=spaces)

    def all_lock() -> bool:
        for node in NODES:
            cluster.await_locks(node)
        clients = [cluster.connect(node) for node in NODES]
        tokens = [client.space("orders").acquire("42", PR, timeout_s=10.0).token for client in clients]
        assert tokens == sorted(set(tokens))
        for client in clients:
            client.close()
        return True

    switch()
    wait("locks on all nodes", all_lock)  # the last process of one may have answered still
    daemon = _process(cluster, next(node for node in NODES if node != master), DAEMON)
    os.kill(daemon, signal.SIGSTOP)
    try:
        switch()
    finally:
        os.kill(daemon, signal.SIGCONT)
    wait("locks on all nodes", all_lock)
    assert {each["state"] for each in cluster.dev.status()["nodes"].values()} == {"joined"}


def _is_refused(locks: Locks, space: str, words: str) -> bool:
    try:
        locks.space(space).acquire("x", no_queue=True).unlock()
    except Refused as error:
        return words in str(error)
    return False


def test_p12_17_three_nodes_lock_wait_convert_and_share_a_value(cluster: Cluster) -> None:
    spaces = [cluster.connect(node).space("orders") for node in NODES]
    tokens = []
    for space in spaces:
        with space.lock("42", EX) as grant:
            tokens.append(grant.token)
            assert (grant.value, grant.valid) == (b"", True)
    assert tokens == sorted(set(tokens))
    keeper = spaces[2].acquire("42", NL)  # so the block stays
    writer = spaces[0].acquire("42", EX)
    with pytest.raises(NotGranted, match="others hold it"):
        spaces[1].acquire("42", PR, no_queue=True)
    with pytest.raises(NotGranted, match="not granted in time"):
        spaces[1].acquire("42", PR, timeout_s=0.2)
    told: list[Mode] = []
    other = spaces[1].acquire("43", EX, on_blocking=lambda _grant, mode: told.append(mode))
    waiting = threading.Thread(target=lambda: spaces[2].acquire("43", PR).unlock())
    waiting.start()
    wait("the holder to hear of it", lambda: told == [PR])
    other.convert(PR)
    waiting.join(DEADLINE_S)
    writer.convert(PR, value=b"written")
    reader = spaces[1].acquire("42", PR)
    assert (reader.value, reader.valid) == (b"written", True)
    with pytest.raises(NotGranted):
        reader.convert(PW, no_queue=True)
    writer.unlock()
    reader.convert(EX)
    reader.unlock(b"again")
    keeper.convert(CR)
    assert keeper.value == b"again"
    keeper.unlock()
    program = DOCUMENT.read_text().split("```python\n")[1].split("```")[0]
    assert program.count('"/tmp/try"') == 1
    command = [sys.executable, "-c", program.replace('"/tmp/try"', repr(str(cluster.dev.directory)))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [line.partition(":")[0] for line in ended.stdout.splitlines()] == ["token", "refused"]
    assert "refused: would-wait" in ended.stdout


@pytest.mark.long
def test_p12_20_what_is_asked_wrongly_is_refused_in_words_and_harms_nobody(cluster: Cluster) -> None:
    locks = cluster.connect("n0")
    space = locks.space("orders")
    held = space.acquire("held")
    names = {"a" * 300: "at most 255 bytes", "": "is empty", "a//b": "between slashes", "a\nb": "control characters"}
    for name, words in names.items():
        refused(lambda name=name: space.acquire(name), words)  # type: ignore[misc]
    refused(lambda: locks.space("nothing").acquire("x"), "there is no lockspace 'nothing'; there are: orders")
    with pytest.raises(TypeError, match="pass one of"):
        space.acquire("x", 5)  # type: ignore[arg-type]
    refused(lambda: held.convert(EX, value=b"v" * 65), "at most 64 bytes")
    held.unlock()
    refused(held.unlock, "has no lock")
    space.acquire("x", EX, timeout_s=DEADLINE_S).unlock()


def _process(cluster: Cluster, node: str, module: str) -> int:
    home = str(cluster.dev.directory / "nodes" / node)
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if module.encode() in words and home.encode() in words:
                return int(path.parent.name)
    raise AssertionError(f"{node} has no process of {module}")


def test_p12_19_a_lock_is_its_processs_and_not_its_connections(cluster: Cluster) -> None:
    space = cluster.connect("n2").space("orders")
    holder = cluster.worker("hold", "n1", "43", "close")
    assert line_of(holder).startswith("holds")
    assert line_of(holder) == "closed"
    if holder.poll() is None:  # where the node may not end it, it goes on holding
        with pytest.raises(NotGranted):
            space.acquire("43", EX, no_queue=True)
        wait("it to be shown as what it is", lambda: _holders(cluster, "43") == [("n1", False)])
    holder.kill()
    space.acquire("43", EX, timeout_s=DEADLINE_S).unlock()
    assert holder.wait(0) is not None
    died = cluster.worker("hold", "n1", "44", "sleep")
    assert line_of(died).startswith("holds")
    died.kill()
    space.acquire("44", EX, timeout_s=DEADLINE_S).unlock()


def _holders(cluster: Cluster, name: str) -> list[tuple[str, bool]]:
    """Where those are who hold it, and whether they are connected."""
    (shown,) = cluster.dev.json("lock", "show", name)["locks"]
    return [(each["node"], each["connected"]) for each in shown["holders"]]


@pytest.mark.long
def test_p12_19_a_cancelled_task_takes_its_request_back_and_a_block_ends_with_its_lock(cluster: Cluster) -> None:
    async def work() -> None:
        one = await connect_async(directory=cluster.dev.directory, node="n0")
        other = await connect_async(directory=cluster.dev.directory, node="n1")
        async with one, other:
            async with one.space("orders").lock("a", EX):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(other.space("orders").acquire("a", EX), 0.2)
            await asyncio.wait_for(one.space("orders").acquire("a", EX), DEADLINE_S)
            with pytest.raises(LocksLost, match="breaks the lock"):
                await broken(one, other)

    async def broken(one: AsyncLocks, other: AsyncLocks) -> None:
        async with other.space("orders").lock("b", EX):
            await one.break_holders("orders", "b")
            await asyncio.sleep(DEADLINE_S)

    asyncio.run(work())


def test_p12_19_lock_run_holds_while_anything_of_its_tree_lives(cluster: Cluster, tmp_path: Path) -> None:
    dev = cluster.dev
    script = "echo $MUSTER_LOCK $MUSTER_LOCK_MODE $MUSTER_LOCK_TOKEN"
    said = dev.succeed("lock", "run", "orders:42", "--", "sh", "-c", script)
    assert said.startswith("orders:42 EX 0")
    assert dev.run("lock", "run", "42", "--", "sh", "-c", "exit 7").returncode == 7
    pid, go = tmp_path / "pid", tmp_path / "go"
    os.mkfifo(go)
    script = f"(cat {go}) & echo $! > {pid}; exit 3"
    running = cluster.command("lock", "run", "a", "--", "sh", "-c", script)
    wait("its child", lambda: pid.exists() and pid.read_text().strip())
    ended = dev.run("lock", "run", "a", "--no-wait", "--", "true")
    assert ended.returncode == 125
    assert "others hold it" in ended.stderr
    go.write_text("")
    assert running.wait(DEADLINE_S) == 3
    assert dev.run("lock", "run", "a", "--no-wait", "--", "true").returncode == 0


@pytest.mark.long
@pytest.mark.parametrize("struck", ["parent", "keeper"])
def test_p12_19_whichever_of_its_two_processes_is_killed_the_tree_ends_before_the_lock_is_free(
    cluster: Cluster, tmp_path: Path, struck: str
) -> None:
    pid = tmp_path / "pid"
    script = f"sh -c 'echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 600' & wait"
    running = cluster.command("lock", "run", "a", "--", "sh", "-c", script)
    wait("its child", pid.exists)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    os.kill(running.pid if struck == "parent" else int(children[0]), signal.SIGKILL)
    child = pid.read_text().strip()
    script = f"test -d /proc/{child} && echo lives || echo gone"
    said = cluster.dev.succeed("lock", "run", "a", "--", "sh", "-c", script)
    assert said == "gone\n"
    if struck == "keeper":
        assert running.wait(DEADLINE_S) == 1


@pytest.mark.long
def test_p12_14_a_deadlock_across_nodes_ends_for_one_of_those_in_it(cluster: Cluster) -> None:
    clients = [cluster.connect(node) for node in ("n0", "n1")]
    one, other = (client.space("orders") for client in clients)
    one.acquire("a", EX)
    other.acquire("b", EX)
    ended: list[str] = []

    def want(space: Space, name: str) -> None:
        try:
            space.acquire(name, EX, timeout_s=DEADLINE_S)
            ended.append("granted")
        except ClientError as error:
            ended.append(error.reason if isinstance(error, NotGranted) else "lost")

    threads = [threading.Thread(target=want, args=args) for args in ((one, "b"), (other, "a"))]
    for thread in threads:
        thread.start()
    wait("one to give way", lambda: ended)
    assert ended == ["deadlock"]
    for client in clients:
        _close(client)
    for thread in threads:
        thread.join(DEADLINE_S)


def test_p12_21_any_node_shows_all_in_pages_and_a_break_ends_the_holder(cluster: Cluster) -> None:
    holders = [cluster.connect(node).space("orders") for node in NODES]
    modes = (PR, EX)
    grants = [holders[number % 3].acquire(f"many/{number:02}", modes[number % 2]) for number in range(30)]
    seen: list[str] = []
    after = ""
    while True:
        wanted = ("--space", "orders", "--prefix", "many/", "--limit", "7", "--after", after)
        page = cluster.dev.json("lock", "show", *wanted)
        seen += [each["name"] for each in page["locks"]]
        assert len(page["locks"]) <= 7
        if not page["more"]:
            break
        after = page["after"]
    assert seen == [f"many/{number:02}" for number in range(30)]
    holder = cluster.worker("hold", "n1", "broken", "sleep")
    assert line_of(holder).startswith("holds")
    said = cluster.dev.succeed("lock", "break", "orders:broken", "--node", "n2")
    assert "is to end" in said
    assert line_of(holder) == "lost"
    assert _holders(cluster, "broken") == [("n1", True)], "it goes on holding until it has ended"
    assert "taken for dead" in cluster.dev.succeed("lock", "break", "orders:broken", "--holder-confirmed-dead")
    holders[0].acquire("broken", EX, timeout_s=DEADLINE_S)
    log = (cluster.dev.directory / "nodes" / "n1" / "log").read_text()
    assert "breaks the lock orders:broken, whose holder is dead by that word" in log
    recorded = cluster.dev.json("audit")["audit"][0]
    outcome = "the holders of orders:broken are taken for dead"
    assert (recorded["operation"], recorded["outcome"]) == ("break_lock", outcome)
    assert "space=orders name=broken by=" in recorded["subject"]
    assert grants[0].mode == PR


@pytest.mark.parametrize("struck", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_p12_16_the_daemon_may_come_and_go_and_the_lock_process_may_not(fast_cluster: Cluster, struck: int) -> None:
    cluster = fast_cluster
    held = cluster.connect("n1")
    grant = held.space("orders").acquire("42", EX)
    cluster.dev.succeed("node", "restart-daemon", "n1")
    wait("its return", lambda: cluster.levels("n1").get(10) == "lock-manager")
    grant.convert(PR)
    assert not grant.is_lost
    waiting = cluster.connect("n0").space("orders")
    os.kill(_process(cluster, "n1", LOCK_PROCESS), struck)
    waiting.acquire("42", EX, timeout_s=DEADLINE_S)
    assert wait("the proof", lambda: cluster.dev.status("n0")["nodes"]["n1"]["state"] == "inactive")
    assert held.is_lost


def test_p12_12_a_node_that_is_killed_frees_what_it_had_and_comes_back(fast_cluster: Cluster) -> None:
    cluster = fast_cluster
    locks = {node: cluster.connect(node) for node in NODES}
    kept = [locks[node].space("orders").acquire(f"kept/{node}", EX) for node in ("n0", "n2")]
    watched = locks["n2"].space("orders").acquire("42", CR)
    lost = locks["n1"].space("orders").acquire("42", PW)
    lost.convert(PW, value=b"before")
    cluster.dev.succeed("dev", "kill", "n1")
    taken = locks["n0"].space("orders").acquire("42", PW, timeout_s=DEADLINE_S)
    assert taken.token > lost.token
    assert (taken.value, taken.valid) == (b"before", False), "a writer was lost"
    assert not any(grant.is_lost for grant in (*kept, watched))
    taken.convert(NL, value=b"after")
    cluster.dev.succeed("dev", "boot", "n1")
    cluster.await_locks("n1")
    back = cluster.connect("n1").space("orders").acquire("42", PR, timeout_s=DEADLINE_S)
    assert (back.value, back.valid) == (b"after", True)


def test_p12_7_of_a_node_that_hangs_nothing_is_taken_before_its_end_is_proven(fast_cluster: Cluster) -> None:
    cluster = fast_cluster
    lost: list[LocksLost] = []
    hung = cluster.connect("n1", on_lost=lost.append)
    before = hung.space("orders").acquire("42", EX)
    cluster.dev.succeed("dev", "hang", "n1")
    after = cluster.connect("n0").space("orders").acquire("42", EX, timeout_s=DEADLINE_S)
    assert after.token > before.token
    state = cluster.dev.status("n0")["nodes"]["n1"]
    assert state["state"] in {"inactive", "forced-leaving"}, state
    wait("the end of its client's connection", lambda: lost)
    refused(before.unlock, "lock process")


@pytest.mark.long
def test_p12_11_a_node_leaves_gracefully_and_nobody_elses_lock_is_disturbed(fast_cluster: Cluster) -> None:
    cluster = fast_cluster
    mine = cluster.connect("n0").space("orders").acquire("42", EX)
    master = cluster.connect("n1")
    first = master.space("orders").acquire("43", EX)  # n1 becomes its master
    second = cluster.connect("n2").space("orders")
    waiting: list[Grant] = []
    thread = threading.Thread(target=lambda: waiting.append(second.acquire("43", EX)))
    thread.start()
    wait("the other to wait", lambda: cluster.dev.json("lock", "show", "43")["locks"][0]["waiters"])
    first.unlock()
    thread.join(DEADLINE_S)
    cluster.dev.succeed("dev", "leave", "n1")
    assert not mine.is_lost
    mine.convert(PR)
    (grant,) = waiting
    grant.convert(PR)
    assert cluster.connect("n0").space("orders").acquire("43", PR, timeout_s=DEADLINE_S).token > grant.token
    cluster.dev.succeed("dev", "boot", "n1")
    cluster.await_locks("n1")


class Counting:
    """All three nodes count in one file, while nodes are killed and hung, and those who count are paused."""

    def __init__(self, cluster: Cluster, path: Path) -> None:
        self.cluster, self.path = cluster, path
        path.write_text(json.dumps({"value": 0, "token": ""}))
        self.acknowledged = 0
        self.refused = 0
        self._lines: list[str] = []
        self.workers = [cluster.worker("count", node, str(path)) for node in NODES]
        self._threads = [threading.Thread(target=self._read, args=(each,), daemon=True) for each in self.workers]
        for thread in self._threads:
            thread.start()

    def _read(self, worker: "subprocess.Popen[str]") -> None:
        assert worker.stdout is not None
        for line in worker.stdout:
            self._lines.append(line.rstrip())

    def count(self) -> int:
        """Acknowledged increments by now."""
        return self._lines.count("acknowledged")

    def until(self, more: int) -> None:
        """Until so many more increments are acknowledged."""
        target = self.count() + more
        wait(f"{more} more increments", lambda: self.count() >= target)

    def pause(self, number: int) -> None:
        """Pause one of those who count, until others have had the lock."""
        self.workers[number].send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        self.workers[number].send_signal(signal.SIGCONT)

    def end(self) -> None:
        """End all, and compare."""
        for worker in self.workers:
            assert worker.stdin is not None
            worker.stdin.close()
        for worker in self.workers:
            worker.wait(DEADLINE_S)
        for thread in self._threads:
            thread.join(DEADLINE_S)
        assert json.loads(self.path.read_text())["value"] == self.count()


def test_p12_6_a_counter_ends_at_the_number_of_acknowledged_increments(fast_cluster: Cluster, tmp_path: Path) -> None:
    counting = Counting(fast_cluster, tmp_path / "counter")
    _count_under_faults(fast_cluster, counting, rounds=1, each=30)
    counting.end()


@pytest.mark.long
def test_p12_6_a_counter_is_exact_over_many_kills_hangs_and_pauses(fast_cluster: Cluster, tmp_path: Path) -> None:
    counting = Counting(fast_cluster, tmp_path / "counter")
    rounds = 0
    while counting.count() < 10_000:
        _count_under_faults(fast_cluster, counting, rounds=1, each=300)
        rounds += 1
    assert rounds >= 3
    counting.end()


@pytest.mark.long
def test_p12_2_p12_4_p12_6_what_clients_of_real_nodes_see_can_have_been(fast_cluster: Cluster) -> None:
    """Under kills and hangs of nodes, and pauses of those who lock: see `lock_histories.py`."""
    cluster = fast_cluster
    locking = Locking(cluster, ("a", "b/c", "d"))
    for number in range(3):
        locking.until(300)
        locking.pause(number)
        locking.strike("kill", "n1")
        locking.until(300)
        cluster.await_locks("n1")
        locking.strike("hang", "n2")
        locking.until(300)
        cluster.await_locks("n2")
    locking.end()
    assert judge(locking.events(), locking.faults) > 2000


class Locking:
    """Clients of all nodes lock at random, and say what they see."""

    def __init__(self, cluster: Cluster, names: tuple[str, ...]) -> None:
        self.cluster = cluster
        self.faults: list[Fault] = []
        self._lines: list[str] = []
        self.workers = [cluster.program(HISTORIES, node, str(number), *names) for number, node in enumerate(NODES)]
        self._threads = [threading.Thread(target=self._read, args=(each,), daemon=True) for each in self.workers]
        for thread in self._threads:
            thread.start()

    def _read(self, worker: "subprocess.Popen[str]") -> None:
        assert worker.stdout is not None
        self._lines.extend(worker.stdout)

    def until(self, more: int) -> None:
        """Until so many more events are told."""
        target = len(self._lines) + more
        wait(f"{more} more events", lambda: len(self._lines) >= target)

    def pause(self, number: int) -> None:
        """Pause one of those who lock, until others have gone on."""
        self.workers[number].send_signal(signal.SIGSTOP)
        self.until(30)
        self.workers[number].send_signal(signal.SIGCONT)

    def strike(self, how: str, node: str) -> None:
        """Kill or hang a node, and boot it when others have gone on; only then its client hears what it heard last."""
        self.faults.append(Fault(node, time.monotonic_ns()))
        client = self.workers[NODES.index(node)]
        self.until(30)  # of that client, too: what it is granted now is lost, though it was asked after the fault began
        client.send_signal(signal.SIGSTOP)
        self.cluster.dev.succeed("dev", how, node)
        self.until(100)
        client.send_signal(signal.SIGCONT)
        self.cluster.dev.succeed("dev", "boot", node)

    def end(self) -> None:
        """End all."""
        for worker in self.workers:
            assert worker.stdin is not None
            worker.stdin.close()
        for worker in self.workers:
            assert worker.wait(DEADLINE_S) == 0
        for thread in self._threads:
            thread.join(DEADLINE_S)

    def events(self) -> list[Event]:
        """All that was told."""
        return [json.loads(line) for line in self._lines]


class CountingCommands:
    """On all three nodes `muster lock run` runs commands that count in one file, one after the other."""

    times = 250  # increments of one command

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster, self.path, self.pause = cluster, directory / "counter", directory / "pause"
        self.path.write_text(json.dumps({"value": 0, "token": ""}))
        self.running: dict[str, subprocess.Popen[str]] = {}
        self._lines: list[str] = []
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(node,), daemon=True) for node in NODES]
        for thread in self._threads:
            thread.start()

    def _run(self, node: str) -> None:
        command = [sys.executable, str(WORKERS), "under", str(self.path), str(self.times), str(self.pause)]
        while not self._ends.is_set():
            words = ("lock", "run", "--node", node, "--within", "20s", "counter", "--", *command)
            running = self.running[node] = self.cluster.command(*words)
            assert running.stdout is not None
            for line in running.stdout:
                self._lines.append(f"{node} {line.rstrip()}")
            running.wait()
            self._ends.wait(0.1 if running.returncode else 0.0)  # its node may be away

    def count(self) -> int:
        """Acknowledged increments by now."""
        return sum(1 for line in self._lines if line.endswith(" acknowledged"))

    def until(self, more: int) -> None:
        """Until so many more increments are acknowledged."""
        target = self.count() + more
        wait(f"{more} more increments", lambda: self.count() >= target)

    def pause_one(self) -> tuple[str, list[int]]:
        """One command stops between check and write, and its `lock run` with it; its node, and these processes."""
        seen = len(self._lines)
        self.pause.write_text("")

        def stopped() -> list[str]:
            return [line for line in self._lines[seen:] if " stops " in line]

        line = wait("a command to stop", stopped)[0]
        node, _, command, keeper = line.split()
        parent = self.running[node].pid
        for pid in (parent, int(keeper)):
            os.kill(pid, signal.SIGSTOP)
        return node, [int(command), int(keeper), parent]

    def go_on(self, pids: list[int]) -> None:
        """It goes on with its write, and only then do those learn of the loss who are to end it."""
        seen = len(self._lines)
        os.kill(pids[0], signal.SIGCONT)
        wait("its write to be refused", lambda: any(line.endswith(" refused") for line in self._lines[seen:]))
        for pid in pids[1:]:
            os.kill(pid, signal.SIGCONT)

    def end(self) -> None:
        """End all, and compare."""
        self._ends.set()
        for thread in self._threads:
            thread.join(DEADLINE_S)
        assert json.loads(self.path.read_text())["value"] == self.count()


@pytest.mark.long
def test_p12_6_p12_19_commands_under_lock_run_count_to_ten_thousand_exactly(
    fast_cluster: Cluster, tmp_path: Path
) -> None:
    """While nodes are killed and hung, and holders are stopped between check and write until others hold the lock."""
    cluster, counting = fast_cluster, CountingCommands(fast_cluster, tmp_path)
    struck = 0
    while counting.count() < 10_000 or struck < 4:
        counting.until(300)
        node, pids = counting.pause_one()
        cluster.dev.succeed("dev", ("kill", "hang")[struck % 2], node)
        struck += 1
        counting.until(300)  # of others, with newer tokens
        counting.go_on(pids)
        cluster.dev.succeed("dev", "boot", node)
        cluster.await_locks(node)
    counting.end()


def _count_under_faults(cluster: Cluster, counting: Counting, rounds: int, each: int) -> None:
    for _ in range(rounds):
        counting.until(each)
        counting.pause(0)
        counting.until(each)
        cluster.dev.succeed("dev", "kill", "n1")
        counting.until(each)
        cluster.dev.succeed("dev", "boot", "n1")
        cluster.await_locks("n1")
        cluster.dev.succeed("dev", "hang", "n2")
        counting.until(each)
        cluster.dev.succeed("dev", "boot", "n2")
        cluster.await_locks("n2")
        counting.pause(2)
        counting.until(each)
