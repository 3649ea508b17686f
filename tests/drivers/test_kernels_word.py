"""The kernel's word that an incarnation has stopped (P7.13 to P7.17, P7.6); what is said of the kernel is tried."""

import contextlib
import ctypes
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from test_guard import folder, has_namespaces, make_node  # noqa: F401  # fixtures

from core_cluster import CoreCluster
from muster.core.inputs import StripRead
from muster.core.leases.lease import Evidence, next_incarnation
from muster.core.leases.observer import KernelIdentity, Observer
from muster.drivers.image import control_group, kernels_word
from muster.drivers.image.control_group import mount_of_groups
from muster.drivers.image.deadman import read_boot_id
from muster.drivers.image.guard import EXIT_REFUSED, Guard
from muster.drivers.image.kernels_word import (
    CannotAsk,
    Witness,
    Witnesses,
    life_of,
    read_machine_id,
    read_place,
    start_of,
)
from muster.drivers.store.disk.lease_store import GuardStore
from muster.records.database import Database
from muster.records.levels import NodeState
from muster.records.members import Member
from muster.records.nodes import Cluster
from muster.records.registers import (
    LIFE_SINCE,
    Deadman,
    Lease,
    LeaseState,
    Life,
    ProofKind,
    RegisterKind,
    Strip,
    blank_register,
    decode_life,
    encode_life,
)
from muster.records.terms import NO_TERM, Stamp
from muster.records.timing import FAST, with_drift_ms
from muster.records.versions import KERNELS_WORD
from real_node import PROFILE, SOURCE, RealNode, wait_for

MS = 1000
HERE = read_place()

# Makes a namespace as a guard does: prints the pids of its init and of a process below, as seen here. Reaps nothing.
PARENT = """
import os, signal, sys, time
from muster.drivers.image.deadman import enter_pid_namespace
read, write = os.pipe()
enter_pid_namespace()
init = os.fork()
if init == 0:
    if os.fork() == 0:
        os.write(write, b"up")
        time.sleep(600)
    while True:
        time.sleep(600)
os.read(read, 2)
below = open(f"/proc/{init}/task/{init}/children").read().split()[0]
print(init, below, flush=True)
time.sleep(600)
"""


class Namespace:
    """A PID namespace whose init's parent, a process of its own, never reaps it."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
        self.parent = subprocess.Popen(
            [sys.executable, "-c", PARENT], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert self.parent.stdout is not None
        self.init, self.below = map(int, self.parent.stdout.readline().split())
        self.life = life_of(self.init, HERE)

    def close(self) -> None:
        """End it, whatever hangs."""
        for pid in (self.init, self.parent.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.parent.wait(30)
        assert self.parent.stdout is not None
        self.parent.stdout.close()


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    if not has_namespaces():
        pytest.skip("not applicable: the kernel refuses PID namespaces to this user")
    made = Namespace()
    yield made
    made.close()


def witness_of(life: Life) -> Witness:
    return Witness(life, HERE.boot_id, HERE)


def state_of(pid: int) -> str:
    """The letter of a process's state, or nothing where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


# ---- what is said of the kernel --------------------------------------------------------------------------------------


def test_p7_13_the_word_comes_for_an_init_that_nobody_reaps_while_its_parent_hangs(namespace: Namespace) -> None:
    witness = witness_of(namespace.life)
    assert witness.word == "" and len(witness.descriptors) == 1
    os.kill(namespace.parent.pid, signal.SIGSTOP)
    os.kill(namespace.init, signal.SIGKILL)
    poll = select.poll()
    for descriptor, mask in witness.descriptors.items():
        poll.register(descriptor, mask)
    assert poll.poll(30_000)
    assert str(namespace.init) in witness.look()
    assert state_of(namespace.init) == "Z"  # its parent, stopped, has not reaped it
    assert state_of(namespace.below) == ""  # whatever ran below it was ended and reaped before
    assert witness_of(namespace.life).word  # and who comes later hears the same
    witness.close()


def test_p7_13_no_word_while_one_process_below_hangs_in_its_exit(namespace: Namespace) -> None:
    """As under a tracer that was stopped, or a disk that does not answer: SIGKILL is sent, and nothing has ended."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    seize, detach, trace_exit = 0x4206, 17, 0x40
    if ptrace(seize, namespace.below, None, ctypes.c_void_p(trace_exit)) != 0:
        pytest.skip("not applicable: this user may not trace")
    witness = witness_of(namespace.life)
    os.kill(namespace.init, signal.SIGKILL)
    wait_for("the stop in its exit", lambda: state_of(namespace.below) == "t")
    assert state_of(namespace.init) not in ("Z", "")
    assert witness.look() == ""
    assert witness_of(namespace.life).word == ""
    os.waitpid(namespace.below, 0x40000000)  # __WALL
    assert ptrace(detach, namespace.below, None, None) == 0
    wait_for("the word", witness.look)
    witness.close()


def test_p7_13_a_pid_that_is_another_process_by_now_is_told_by_its_start(namespace: Namespace) -> None:
    assert namespace.life.init_start == start_of(namespace.init) > 0
    reused = namespace.life._replace(init_start=namespace.life.init_start - 1)
    assert "is another one by now" in witness_of(reused).word
    unseen = witness_of(namespace.life._replace(init_start=0))  # not known: whoever has the pid is waited for
    assert unseen.word == ""
    unseen.close()


def test_p7_13_no_process_is_the_word_too() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert f"there is no process {child.pid} any more" in witness_of(Life(bytes(16), *HERE[2:], child.pid, 1)).word


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS])
def test_p7_14_a_kernel_that_does_not_let_it_be_asked_has_given_no_word(
    error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_pid: int) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(CannotAsk, match=f"does not let it be asked: {os.strerror(error)}"):
        witness_of(Life(bytes(16), *HERE[2:], os.getpid(), 1))


def test_p7_14_a_pid_counts_only_under_its_kernel_and_in_its_namespace(namespace: Namespace) -> None:
    life = namespace.life
    with pytest.raises(CannotAsk, match="another PID namespace"):
        witness_of(life._replace(pid_namespace=HERE.pid_namespace + 1, init_pid=1 << 22))
    with pytest.raises(CannotAsk, match="under another kernel"):
        Witness(life, bytes(16), HERE)
    with pytest.raises(CannotAsk, match="no PID namespace of its own"):
        witness_of(life._replace(init_pid=0))
    assert os.stat(f"/proc/{namespace.init}/ns/pid").st_ino != HERE.pid_namespace  # so one inside is told apart
    # A start counts only in its time namespace: there it is not compared, and whoever has the pid is waited for.
    elsewhere = witness_of(life._replace(time_namespace=1, init_start=life.init_start - 1))
    assert elsewhere.word == ""
    elsewhere.close()


def test_p7_14_a_process_that_proc_hides_is_not_taken_for_gone(namespace: Namespace, folder: Path) -> None:  # noqa: F811
    """With `hidepid`, /proc shows another user nothing of the process; `pidfd_open` finds it all the same."""
    if os.geteuid() != 0:
        pytest.skip("not applicable: only root may mount a /proc that hides")
    program = (
        "import ctypes, encodings.ascii, os, sys\n"
        "from muster.drivers.image.kernels_word import Witness, read_place\n"
        "from muster.records.registers import decode_life\n"
        "libc = ctypes.CDLL(None)\n"
        "assert libc.unshare(0x20000) == 0 and libc.mount(b'none', b'/', None, 0x44000, None) == 0\n"
        "assert libc.mount(b'proc', b'/proc', b'proc', 0, b'hidepid=2') == 0\n"
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "life, here = decode_life(bytes.fromhex(sys.argv[1])), read_place()\n"
        "print(os.path.exists(f'/proc/{life.init_pid}'), here.pid_namespace == life.pid_namespace)\n"
        "print(repr(Witness(life, here.boot_id, here).word))\n"
    )
    command = [sys.executable, "-c", program, encode_life(namespace.life).hex()]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False True", "''"]


def test_p7_13_a_control_group_without_a_process_is_the_word(tmp_path: Path) -> None:
    mount = mount_of_groups()  # on a machine with both versions it is not /sys/fs/cgroup
    group = Path(mount or "/nowhere", "muster-test-word")
    try:
        group.mkdir()
    except OSError:
        pytest.skip("not applicable: this user may make no control group of version 2")
    child = subprocess.Popen(["sleep", "600"])
    try:
        (group / "cgroup.procs").write_text(str(child.pid))
        root = os.stat(mount).st_ino
        life = Life(bytes(16), 0, 0, 0, 0, f"/{group.name}", group.stat().st_ino, root)
        witness = witness_of(life)
        assert witness.word == ""
        child.kill()
        poll = select.poll()
        for descriptor, mask in witness.descriptors.items():
            poll.register(descriptor, mask)
        while not witness.look():
            assert poll.poll(30_000)
        assert "holds no process any more" in witness.word
        witness.close()
        with pytest.raises(CannotAsk, match="other control groups"):
            witness_of(life._replace(group_root=root + 1))
    finally:
        child.kill()
        child.wait()
        wait_for("the group to be empty", lambda: "populated 0" in (group / "cgroup.events").read_text())
        group.rmdir()
    assert "is gone" in witness_of(life).word


_BOTH_VERSIONS = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
"""


@pytest.mark.parametrize(
    ("mounts", "own", "mount", "place"),
    [
        (_BOTH_VERSIONS, "1:cpu:/x\n0::/muster.service\n", "/sys/fs/cgroup/unified", "/muster.service/n0"),
        ("24 1 0:20 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/\n", "/sys/fs/cgroup", "/n0"),
        ("24 1 0:20 / /a\\040b rw - cgroup2 cgroup2 rw\n", "0::/x (deleted)\n", "/a b", "/x/n0"),
        # a container that sees only its own part of the groups, in which it is the root
        ("24 1 0:20 /docker/7 /cg rw - cgroup2 cgroup2 rw\n", "0::/docker/7/web\n", "/cg", "/web/n0"),
        ("24 1 0:20 /docker/7 /cg rw - cgroup2 cgroup2 rw\n", "0::/docker/78\n", "/cg", None),
        ("24 1 0:20 / /sys/fs/cgroup rw - cgroup cgroup rw,cpu\n", "0::/\n", "", None),
        ("", "", "", None),
    ],
)
def test_p7_11_the_groups_of_version_2_are_found_wherever_they_are_mounted(
    mounts: str, own: str, mount: str, place: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("_MOUNTS", mounts), ("_OWN", own)):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(control_group, name, str(tmp_path / name))
    assert mount_of_groups() == mount
    expected = None if place is None else mount + place
    assert control_group.folder_below_own("n0") == expected


@pytest.fixture
def fake_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Life]:
    """A folder that looks like a control group of version 2, and a life in it; the kernel does not make it so."""
    monkeypatch.setattr(kernels_word, "mount_of_groups", lambda: str(tmp_path))
    group = tmp_path / "node"
    group.mkdir()
    (group / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    return group, Life(bytes(16), 0, 0, 0, 0, "/node", group.stat().st_ino, tmp_path.stat().st_ino)


def test_p7_13_a_group_that_holds_a_process_is_no_word_and_an_empty_one_is(fake_group: tuple[Path, Life]) -> None:
    group, life = fake_group
    witness = witness_of(life)
    assert witness.word == ""
    (group / "cgroup.events").write_text("populated 0\nfrozen 0\n")
    assert "holds no process any more" in witness.look()
    witness.close()


def test_p7_13_a_group_of_that_name_that_is_another_one_says_that_the_node_s_was_empty(
    fake_group: tuple[Path, Life],
) -> None:
    _group, life = fake_group
    assert "is another one by now" in witness_of(life._replace(group_inode=life.group_inode + 1)).word


def test_p7_14_groups_of_another_mount_are_not_asked(fake_group: tuple[Path, Life]) -> None:
    group, life = fake_group
    with pytest.raises(CannotAsk, match="other control groups"):
        witness_of(life._replace(group_root=life.group_root + 1))
    with pytest.raises(CannotAsk, match="other control groups"):
        witness_of(life._replace(group_root=0))
    (group / "cgroup.events").unlink()
    assert "is gone" in witness_of(life).word


def test_p7_15_who_asks_late_about_an_older_incarnation_hears_nothing_new() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    gone = Life(bytes(16), *HERE[2:], child.pid, 1)
    witnesses = Witnesses(select.poll(), HERE)
    witnesses.ask(1, 6, HERE.boot_id, gone)
    assert witnesses.untold[1].startswith(b"word 1 6 ")
    witnesses.told(1)
    witnesses.ask(1, 5, HERE.boot_id, gone)
    assert witnesses.untold == {}
    witnesses.ask(1, 6, HERE.boot_id, gone)  # the next daemon asks again
    assert witnesses.untold[1].startswith(b"word 1 6 ")


def test_p7_15_a_word_that_the_daemon_cannot_take_now_is_told_later() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    witnesses = Witnesses(select.poll(), HERE)
    witnesses.ask(1, 6, HERE.boot_id, Life(bytes(16), *HERE[2:], child.pid, 1))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        guard = cast("Guard", SimpleNamespace(_witnesses=witnesses, _channels={}))
        Guard._tell_words(guard)  # there is no daemon
        cast("Any", guard)._channels["daemon"] = ours
        Guard._tell_words(guard)
        assert theirs.recv(4096, socket.MSG_DONTWAIT).startswith(b"word 1 6 ")
        Guard._tell_words(guard)
        with pytest.raises(BlockingIOError):
            theirs.recv(4096, socket.MSG_DONTWAIT)


def test_p7_14_a_process_that_does_not_see_itself_in_proc_has_no_pids_to_compare(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """/proc is then that of another namespace, whose inode would be taken for this one's."""
    assert read_place().pid_namespace == HERE.pid_namespace != 0
    monkeypatch.setattr("muster.drivers.image.kernels_word.os.getpid", lambda: 1 << 21)
    assert read_place().pid_namespace == 0


def test_p7_14_what_the_record_says_is_read_back() -> None:
    life = Life(bytes(range(16)), 5, 6, 7, 8, "/a/grüppchen", 9, 10)
    assert decode_life(encode_life(life)) == life
    with pytest.raises(ValueError, match="may have 160 bytes"):
        encode_life(life._replace(group="/" + "x" * 160))


# ---- guards ----------------------------------------------------------------------------------------------------------


def test_p7_15_a_guard_tells_its_daemon_at_once_and_the_next_daemon_again(
    make_node: Callable[..., RealNode],  # noqa: F811
) -> None:
    """P7.14: from version 3 on the record names init; before, it is as it was."""
    if not has_namespaces():
        pytest.skip("not applicable: the kernel refuses PID namespaces to this user")
    asking, dying = make_node(0), make_node(1)
    for node in (asking, dying):
        node.start(version=2 if node is dying else 3)
    state = dying.up()
    asking.up()
    assert dying.lease().life is None
    dying.order("guard", "version 3")
    life = wait_for("a record that names init", lambda: dying.lease().life)
    assert (life.init_pid, life.init_start) == (state["init_pid"], start_of(state["init_pid"]))
    assert (life.machine_id, life.pid_namespace) == (read_machine_id(), HERE.pid_namespace)
    own = asking.lease().life
    assert own is not None and own.init_pid == asking.up()["init_pid"]

    def words() -> list[str]:
        texts = [str(item["text"]) for item in asking.heard("guard")]
        return [text for text in texts if text.startswith(("word ", "unable "))]

    question = f"watch 1 {state['incarnation']} {HERE.boot_id.hex()}"
    elsewhere = life._replace(pid_namespace=life.pid_namespace + 1)
    asking.order("guard", f"{question} {encode_life(elsewhere).hex()}")
    wait_for("the answer", words)
    assert words()[0].startswith(f"unable 1 {state['incarnation']} its pids count in another PID namespace")
    asking.order("guard", f"{question} {encode_life(life).hex()}")
    time.sleep(0.1)
    assert len(words()) == 1  # it runs
    assert dying.guard is not None
    dying.guard.kill()
    wait_for("the word", lambda: len(words()) > 1)
    assert words()[1].startswith(f"word 1 {state['incarnation']} its init, process {life.init_pid}, has ended")
    os.kill(asking.state()["daemon_pid"], signal.SIGKILL)
    wait_for("another daemon", lambda: len(asking.heard("daemon")) == 2)
    asking.order("guard", f"{question} {encode_life(life).hex()}")
    wait_for("the word again", lambda: len(words()) > 2)
    assert words()[2] == words()[1]


def write_beats(store: GuardStore, lease: Lease, until: threading.Event) -> None:
    """Renew a lease as a guard under another kernel would."""
    while not until.wait(PROFILE.renew_ms / 1000):
        lease = lease._replace(stamp=lease.stamp._replace(sequence=lease.stamp.sequence + 1))
        store.write_lease(lease)


def test_p7_17_a_lease_that_advances_under_another_kernel_refuses_the_start_and_a_silent_one_does_not(
    make_node: Callable[..., RealNode],  # noqa: F811
) -> None:
    node, late = make_node(0), make_node(1)
    store = GuardStore(str(node.store), 3)
    stamp = Stamp(3, next_incarnation(0, 5), NO_TERM, 1)
    lease = Lease(stamp, LeaseState.LIVE, Deadman.PID_NAMESPACE, PROFILE.lease_ms, 240, bytes(range(16)), "")
    store.write_lease(lease)
    ended = threading.Event()
    beats = threading.Thread(target=write_beats, args=(store, lease, ended))
    beats.start()
    try:
        node.start()
        assert node.ended() == EXIT_REFUSED
    finally:
        ended.set()
        beats.join()
        store.close()
    node.says("node 3 renews its lease in", "under another kernel")
    late.start()
    late.up()  # once what it saw has been silent for a lease


# ---- the core --------------------------------------------------------------------------------------------------------


def cluster_of(nodes: int, *cannot_ask: int) -> CoreCluster:
    cluster = CoreCluster(nodes)
    cluster.kernel, cluster.cannot_ask = True, set(cannot_ask)
    cluster.boot(*range(nodes))
    cluster.until("all are joined", lambda: all(cluster.state(node) is NodeState.JOINED for node in range(nodes)))
    return cluster


def kind_of(cluster: CoreCluster, node: int) -> ProofKind:
    proof = cluster.database.member(node).last_proof
    assert proof is not None
    return proof.kind


def test_p4_2_with_the_word_a_forced_leave_waits_for_no_lease_and_a_late_beat_changes_nothing() -> None:
    cluster = cluster_of(3)
    last = cluster.leases[1]
    died_us = cluster.now_us
    cluster.kill(1)
    cluster.until("n1 is out", lambda: cluster.state(1) is NodeState.INACTIVE)
    assert cluster.now_us - died_us < FAST.lease_ms * MS // 2
    assert kind_of(cluster, 1) is ProofKind.KERNELS_WORD
    cluster.leases[1] = last._replace(stamp=last.stamp._replace(sequence=last.stamp.sequence + 1))  # a hung writer's
    cluster.run(2 * FAST.lease_ms)
    for node in (0, 2):
        assert not cluster.core(node).observer.is_live(1)  # so it is no candidate either (P2.10)
        assert cluster.core(node).observer.is_dead(1, last.stamp.incarnation)
    assert cluster.state(1) is NodeState.INACTIVE


def test_p7_3_where_the_kernel_is_asked_a_lease_that_has_run_out_proves_nothing() -> None:
    cluster = cluster_of(2)
    cluster.silent_kernel = True  # what was killed hangs in its exit
    cluster.kill(1)
    cluster.run(20 * FAST.lease_ms)
    assert cluster.state(1) is NodeState.JOINED or cluster.database.member(1).last_proof is None
    incarnation = cluster.leases[1].stamp.incarnation
    assert not cluster.core(0).observer.is_live(1) and not cluster.core(0).observer.is_dead(1, incarnation)


def test_p7_16_a_master_that_cannot_ask_commits_what_a_member_testifies() -> None:
    cluster = cluster_of(3, 0)
    assert cluster.core(0).is_master
    cluster.kill(2)
    cluster.until("n2 is out", lambda: cluster.state(2) is NodeState.INACTIVE)
    proof = cluster.database.member(2).last_proof
    assert proof is not None and proof.kind is ProofKind.KERNELS_WORD
    assert proof.detail.startswith("n1 has asked: ")


def test_p7_16_who_cannot_ask_takes_the_committed_word_over_and_infers_nothing() -> None:
    cluster = cluster_of(3, 1)
    incarnation = cluster.leases[0].stamp.incarnation
    cluster.kill(0)  # the master
    cluster.until("n2 is master", lambda: cluster.core(2).is_master)
    cluster.until("n0 is out", lambda: cluster.core(1).database.member(0).state is NodeState.INACTIVE)
    assert cluster.core(1).observer.is_dead(0, incarnation)
    cluster.kill(2)  # the only one that could ask: nothing proves its end to n1
    cluster.run(20 * FAST.lease_ms)
    assert cluster.core(1).is_master  # leading needs silence, not proof (P2.12)
    assert cluster.state(2) is NodeState.JOINED  # condemned, and frozen until there is proof
    assert "elsewhere" in cluster.core(1).observer.unable(2)


def observer_that_reads(lease: Lease, kernel: KernelIdentity) -> Observer:
    """Node 0's observer, after it has read this lease of node 1 for longer than it lasts."""
    blank = tuple(blank_register(kind, 0) for kind in RegisterKind)
    strip = Strip((blank[0], lease), (blank[1],) * 2, (blank[2],) * 2, (blank[3],) * 2)  # type: ignore[arg-type]
    observer = Observer(0, next_incarnation(0, 1), FAST, strip, one_machine=True, kernel=kernel)
    database = Database(Cluster("test", "0" * 32, "fast", ""), 1)
    for started_ms in range(0, with_drift_ms(FAST.lease_ms) + 200, 100):
        observer.see(StripRead(1, strip, started_ms * MS, (started_ms + 1) * MS))
        observer.newly_dead(database)
    return observer


def test_p7_13_a_silent_record_of_an_earlier_boot_of_this_machine_is_the_word_and_of_another_machine_is_none() -> None:
    boot, machine = bytes(range(16)), bytes(range(1, 17))
    incarnation = next_incarnation(0, 9)
    life = Life(machine, 1, 1, 77, 1)
    stamp = Stamp(1, incarnation, NO_TERM, 4)
    lease = Lease(stamp, LeaseState.LIVE, Deadman.PID_NAMESPACE, FAST.lease_ms, FAST.panic_bound_ms, boot, "", life)

    def evidence(kernel: KernelIdentity) -> Evidence | None:
        return observer_that_reads(lease, kernel).evidence(1, incarnation)

    rebooted = evidence(KernelIdentity(bytes(16), machine))
    assert rebooted is not None and rebooted.kind is ProofKind.KERNELS_WORD
    assert evidence(KernelIdentity(boot, machine)) is None  # this very boot: the kernel is to be asked
    assert evidence(KernelIdentity(bytes(16), bytes(16))) is None  # another machine, or one without an id
    early = observer_that_reads(lease, KernelIdentity(bytes(16), machine))
    early.lose_sight(10_000_000)
    early.see(StripRead(1, early.strip, 11_000_000, 11_000_001))
    assert early.evidence(1, incarnation) is None  # not silent for long enough


def test_p7_17_a_node_under_another_kernel_is_not_admitted() -> None:
    assert observer_that_reads(
        Lease(Stamp(1, 5, NO_TERM, 4), LeaseState.LIVE, Deadman.PID_NAMESPACE, 600, 120, bytes(range(16)), ""),
        KernelIdentity(read_boot_id(), bytes(16)),
    ).foreign(1, 5)


def test_p7_18_why_a_node_panicked_is_told_once_when_its_tombstone_comes_after_the_kernels_word() -> None:
    alive = Lease(Stamp(1, 5, NO_TERM, 4), LeaseState.LIVE, Deadman.PID_NAMESPACE, 600, 120, read_boot_id(), "")
    observer = observer_that_reads(alive, KernelIdentity(read_boot_id(), bytes(16)))
    database = Database(Cluster("test", "0" * 32, "fast", ""), 1)
    database.members[1] = Member(1, NodeState.JOINED, 5)
    observer.confirm(1, Evidence(ProofKind.KERNELS_WORD, 5, "its init has ended"))
    assert observer.take_last_words(database) == []
    tombstone = alive._replace(state=LeaseState.PANICKED, cause="its runner was killed by SIGKILL")
    strip = observer.strip._replace(leases=(observer.strip.leases[0], tombstone))
    observer.see(StripRead(1, strip, 11_000_000, 11_000_001))
    observer.newly_dead(database)
    assert observer.take_last_words(database) == [1]
    assert observer.last_words == {1: (5, "its runner was killed by SIGKILL")}
    assert observer.take_last_words(database) == []
    database.members[1] = Member(1, NodeState.JOINED, 6)  # it has booted since: these are another life's words
    observer.last_words.clear()
    assert observer.take_last_words(database) == []


def test_p10_1_a_record_names_init_from_the_version_on_that_the_kernels_word_is_of() -> None:
    assert LIFE_SINCE == KERNELS_WORD
