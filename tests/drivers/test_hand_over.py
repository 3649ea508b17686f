"""A descriptor that shows a node's end, handed to guards that cannot ask (P7.20). What is said of the kernel is tried.

The kernel is asked from another PID namespace by processes, and by a guard, that began in one.
"""

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_guard import folder, has_namespaces, make_node  # noqa: F401  # fixtures
from test_kernels_word import Namespace, namespace  # noqa: F401  # fixture

from muster.drivers.image import hand_over
from muster.drivers.image.control_group import mount_of_groups
from muster.drivers.image.deadman import boottime_us
from muster.drivers.image.descriptors import receive_descriptors, refuse_descriptors, send_descriptors
from muster.drivers.image.hand_over import (
    HandOverRequest,
    NotHanded,
    Offer,
    Requests,
    inode_of_init,
    is_trusted,
    meeting_place,
)
from muster.drivers.image.kernels_word import Witness, Witnesses, read_place
from muster.records.registers import Life, encode_life
from real_node import DAEMON, SOURCE, RealNode, wait_for

HERE = read_place()


def can_refuse_descriptors() -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as tried:
        try:
            refuse_descriptors(tried)
        except OSError:
            return False
    return True


pytestmark = pytest.mark.skipif(
    not can_refuse_descriptors() or not inode_of_init(os.getppid()),
    reason="not applicable: this kernel (before Linux 6.16) can refuse no descriptors, and nothing is handed over",
)


@pytest.fixture(autouse=True)
def _sockets_are_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Also those of a test that fails half way: a socket that is left would be told of in another one."""
    made: list[socket.socket] = []
    offer, request = Offer.__init__, HandOverRequest.__init__

    def make_offer(self: Offer, life: Life, *where: str) -> None:
        offer(self, life, *where)
        made.append(self._listener)

    def make_request(self: HandOverRequest, life: Life) -> None:
        request(self, life)
        made.append(self._connection)

    monkeypatch.setattr(Offer, "__init__", make_offer)
    monkeypatch.setattr(HandOverRequest, "__init__", make_request)
    yield
    for each in made:
        each.close()


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that goes on until it is ended."""
    with subprocess.Popen(["sleep", "600"]) as made:
        yield made
        made.kill()


def life_of_child(pid: int) -> Life:
    """As of a node whose init this is, in another PID namespace than that of who asks."""
    return Life(HERE.machine_id, HERE.pid_namespace + 1, HERE.time_namespace, pid, 0, group_inode=inode_of_init(pid))


def taken(request: HandOverRequest) -> int:
    """What is handed over, once it is there."""
    poll = select.poll()
    poll.register(request.fileno(), select.POLLIN)
    assert poll.poll(30_000)
    return request.take()


def listener_at(life: Life) -> socket.socket:
    """In the place of that life's guard."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.bind(meeting_place(life))
    made.listen(8)
    return made


@contextlib.contextmanager
def handing(life: Life, *descriptors: int) -> Iterator[HandOverRequest]:
    """A request that somebody of this user has answered with these descriptors."""
    with listener_at(life) as there:
        request = HandOverRequest(life)
        connection, _address = there.accept()
        with connection:
            socket.send_fds(connection, [b"shown"], descriptors)
        yield request
        request.close()


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


# ---- what is said of the kernel --------------------------------------------------------------------------------------


def test_p7_20_a_pidfd_is_told_from_everything_else_and_from_each_other_one(child: subprocess.Popen[bytes]) -> None:
    first, again, other = os.pidfd_open(child.pid), os.pidfd_open(child.pid), os.pidfd_open(os.getppid())
    try:
        assert all(map(hand_over._is_pidfd, (first, other)))
        assert os.fstat(first).st_ino == os.fstat(again).st_ino == inode_of_init(child.pid) != os.fstat(other).st_ino
        child.kill()
        child.wait()
        assert hand_over._is_pidfd(first)
        assert os.fstat(first).st_ino == os.fstat(again).st_ino
    finally:
        for descriptor in (first, again, other):
            os.close(descriptor)
    for path in ("/dev/null", f"/proc/{os.getpid()}"):  # the folder of a process is readable at once
        descriptor = os.open(path, os.O_RDONLY)
        assert not hand_over._is_pidfd(descriptor)
        os.close(descriptor)


def test_p7_20_where_all_pidfds_share_an_inode_the_record_names_none_and_nothing_is_offered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("muster.drivers.image.hand_over.os.fstat", lambda _descriptor: os.stat("/"))
    assert inode_of_init(os.getppid()) == 0
    life = life_of_child(os.getppid())
    assert meeting_place(life) == b""
    with pytest.raises(OSError, match="no number for a process"):
        Offer(life)
    requests = Requests(select.poll())
    requests.want(1, 5, life, 0)
    assert not requests._wishes


def test_p7_20_a_thread_s_end_is_not_its_process_s(child: subprocess.Popen[bytes]) -> None:
    life = life_of_child(child.pid)
    shown = os.pidfd_open(child.pid, os.O_EXCL)
    assert os.fstat(shown).st_ino == life.group_inode  # the inode does not tell
    with handing(life, shown) as request, pytest.raises(NotHanded, match="one thread"):
        request.take()
    os.close(shown)


def test_p7_20_who_closes_what_a_stranger_has_sent_may_wait_so_nothing_can_be_sent(
    child: subprocess.Popen[bytes],
) -> None:
    offer = Offer(life_of_child(child.pid))
    asking = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with asking:
        asking.connect(meeting_place(life_of_child(child.pid)))
        with pytest.raises(PermissionError):  # before it is accepted, and for as long as it is there
            socket.send_fds(asking, [b"x"], [0])
        offer.answer()
        _word, shown, _flags, _address = socket.recv_fds(asking, 16, 1)
        os.close(shown[0])
    offer.close()


def lingering(for_s: int) -> tuple[socket.socket, socket.socket]:
    """A connection whose last holder waits so long when it lets go of it, and its other end, which reads nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        made = socket.create_connection(server.getsockname())
        other, _address = server.accept()
    made.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            made.send(bytes(1 << 16))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, for_s))
    return made, other


def test_p7_20_to_read_past_a_descriptor_that_was_sent_may_wait_for_what_it_is_of() -> None:
    """Also where the call is told not to wait: that is why descriptors of strangers are refused, not passed over."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    sent, other = lingering(1)
    with ours, theirs, other:
        send_descriptors(theirs, b"x", (sent.fileno(),))
        os.close(sent.detach())
        began = time.monotonic()
        assert ours.recv(16, socket.MSG_DONTWAIT) == b"x"
        assert time.monotonic() - began > 0.9


def send_until_full(channel: socket.socket) -> None:
    while True:
        send_descriptors(channel, bytes(4096), (0,))


def test_p7_20_descriptors_come_and_go_without_waiting_for_anybody() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        with pytest.raises(BlockingIOError):
            receive_descriptors(ours, 16, 2)
        send_descriptors(theirs, b"two", (0, 1))
        word, found = receive_descriptors(ours, 16, 2)
        assert (word, len(found)) == (b"two", 2)
        assert not any(map(os.get_inheritable, found))
        for descriptor in found:
            os.close(descriptor)
        before = open_descriptors()
        send_descriptors(theirs, b"two", (0, 1))
        _word, found = receive_descriptors(ours, 16, 1)
        assert len(open_descriptors() - before) == len(found) == 1
        os.close(found[0])
        with pytest.raises(BlockingIOError):
            send_until_full(theirs)


# ---- one hand-over ---------------------------------------------------------------------------------------------------


def test_p7_20_what_is_handed_over_is_the_end_of_that_process(child: subprocess.Popen[bytes]) -> None:
    life = life_of_child(child.pid)
    offer = Offer(life)
    request = HandOverRequest(life)
    with pytest.raises(BlockingIOError):
        request.take()
    offer.answer()
    shown = taken(request)
    request.close()
    offer.close()  # its guard has ended
    assert not os.get_inheritable(shown)
    witness = Witness(life, HERE.boot_id, HERE, shown)
    assert witness.word == ""
    assert witness.descriptors == {shown: select.POLLIN}
    child.kill()
    wait_for("the word", witness.look)
    assert str(child.pid) in witness.word
    child.wait()
    witness.close()


def test_p7_20_what_is_no_pidfd_or_of_another_process_is_refused_and_closed(child: subprocess.Popen[bytes]) -> None:
    life = life_of_child(child.pid)
    nothing, other = os.open("/dev/null", os.O_RDONLY), os.pidfd_open(os.getppid())
    before = open_descriptors()
    for descriptors, problem in (((nothing,), "no pidfd"), ((other,), "another incarnation"), ((), "nothing over")):
        with handing(life, *descriptors) as request, pytest.raises(NotHanded, match=problem):
            taken(request)
    assert open_descriptors() == before
    # Of the same pid, with a record of an earlier incarnation: as when the pid has been used again.
    earlier = life._replace(group_inode=inode_of_init(os.getppid()))
    shown = os.pidfd_open(child.pid)
    with handing(earlier, shown) as request, pytest.raises(NotHanded, match="another incarnation"):
        taken(request)
    for descriptor in (nothing, other, shown):
        os.close(descriptor)


def test_p7_20_a_control_group_is_handed_over_where_it_cannot_be_found(child: subprocess.Popen[bytes]) -> None:
    mount = mount_of_groups()
    group = Path(mount or "/nowhere", "muster-test-hand-over")
    try:
        group.mkdir()
    except OSError:
        pytest.skip("not applicable: this user may make no control group of version 2")
    try:
        (group / "cgroup.procs").write_text(str(child.pid))
        life = Life(bytes(16), 0, 0, 0, 0, f"/{group.name}", group.stat().st_ino, os.stat(mount).st_ino + 1)
        offer = Offer(life, str(group))
        request = HandOverRequest(life)
        offer.answer()
        witness = Witness(life, HERE.boot_id, HERE, taken(request))
        request.close()
        offer.close()
        assert witness.word == ""
        child.kill()
        child.wait()
        wait_for("the word", witness.look)
        assert "holds no process any more" in witness.word
        witness.close()
    finally:
        child.kill()
        child.wait()
        wait_for("the group to be empty", lambda: "populated 0" in (group / "cgroup.events").read_text())
        group.rmdir()


def test_p7_20_a_folder_that_is_no_control_group_or_another_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cgroup.events").write_text("populated 0\n")
    shown = os.open(tmp_path, os.O_RDONLY)
    life = Life(bytes(16), 0, 0, 0, 0, "/node", tmp_path.stat().st_ino, 1)
    with handing(life, shown) as request, pytest.raises(NotHanded, match="no control group"):
        taken(request)
    os.close(shown)
    if mount := mount_of_groups():
        shown = os.open(mount, os.O_RDONLY)
        with handing(life, shown) as request, pytest.raises(NotHanded, match="another incarnation"):
            taken(request)
        os.close(shown)


# ---- strangers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "own", "nobody", "trusted"),
    [(0, 1000, 65534, True), (1000, 1000, 65534, True), (1001, 1000, 65534, False), (1001, 0, 65534, False),
     (65534, 1000, 65534, False), (65534, 65534, 65534, False), (0, 0, 0, False)],
)  # fmt: skip
def test_p7_20_only_the_own_user_and_root_are_trusted_and_nobody_without_a_number(
    user: int, own: int, nobody: int, trusted: bool
) -> None:
    assert is_trusted(user, own, nobody) is trusted


only_root = pytest.mark.skipif(os.geteuid() != 0, reason="not applicable: only root may become another user")
ASKING_STRANGER = """
import os, socket, sys
os.setgroups([]); os.setresgid(12345, 12345, 12345); os.setresuid(12345, 12345, 12345)
asking = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
asking.connect(bytes.fromhex(sys.argv[1]))
if sys.argv[2:]:
    asking.send(b"give")  # what the other end leaves unread is told first, and hides what was sent behind it
print("connected", flush=True)
words, given = b"", []
for _ in range(2):
    try:
        word, more, _flags, _address = socket.recv_fds(asking, 16, 4)
    except ConnectionResetError:
        continue
    words, given = words + word, given + more
print(len(words), len(given))
"""
LISTENING_STRANGER = """
import os, socket, sys, time
os.setgroups([]); os.setresgid(12345, 12345, 12345); os.setresuid(12345, 12345, 12345)
there = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
there.bind(bytes.fromhex(sys.argv[1]))
there.listen(8)
print("listens", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def stranger(program: str, life: Life, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A process of another user."""
    command = [sys.executable, "-c", program, meeting_place(life).hex(), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as made:
        try:
            assert made.stdout is not None
            assert made.stdout.readline()
            yield made
        finally:
            made.kill()


@only_root
@pytest.mark.parametrize("words", [(), ("and says so",)], ids=["", "that speaks"])
def test_p7_20_a_stranger_that_asks_is_let_go_of_and_gets_nothing(
    child: subprocess.Popen[bytes], words: tuple[str, ...]
) -> None:
    life = life_of_child(child.pid)
    offer = Offer(life)
    with stranger(ASKING_STRANGER, life, *words) as other:
        offer.answer()
        assert other.stdout is not None
        assert other.stdout.readline().split() == ["0", "0"]
    offer.close()


@only_root
def test_p7_20_a_stranger_that_waits_in_the_place_of_a_guard_is_not_listened_to(
    child: subprocess.Popen[bytes],
) -> None:
    life = life_of_child(child.pid)
    with stranger(LISTENING_STRANGER, life), pytest.raises(NotHanded, match="another user"):
        HandOverRequest(life)


def test_p7_20_connections_are_bounded_and_answered_so_many_a_turn(child: subprocess.Popen[bytes]) -> None:
    life = life_of_child(child.pid)
    offer = Offer(life)
    before = open_descriptors()
    waiting: list[HandOverRequest] = []
    with pytest.raises(BlockingIOError):  # the kernel says so at once
        waiting.extend(HandOverRequest(life) for _ in range(100))
    assert len(waiting) <= hand_over._WAITING + 1
    assert len(open_descriptors() - before) == len(waiting)  # what waits is none of this process's descriptors
    offer.answer()
    late = waiting[hand_over._ANSWERS_A_TURN :]
    for request in waiting[: hand_over._ANSWERS_A_TURN]:
        os.close(request.take())
    for request in late:
        with pytest.raises(BlockingIOError):
            request.take()
    offer.answer()
    for request in late:
        os.close(request.take())
    for request in waiting:
        request.close()
    offer.close()
    with pytest.raises(ConnectionRefusedError):
        HandOverRequest(life)


# ---- the machine that asks -------------------------------------------------------------------------------------------


def test_p7_20_it_is_tried_again_with_pauses_that_grow_until_somebody_offers_it(child: subprocess.Popen[bytes]) -> None:
    life, poll = life_of_child(child.pid), select.poll()
    requests = Requests(poll)
    tried: list[int] = []
    now_us = 0
    requests.want(1, 5, life, now_us)
    while now_us < 400_000_000:
        due_us = requests._wishes[1].try_us
        assert due_us > now_us
        tried.append(due_us - now_us)
        requests.turn(due_us - 1)  # too early
        assert requests._wishes[1].try_us == due_us
        now_us = due_us
        requests.turn(now_us)
    assert tried[0] == hand_over._FIRST_PAUSE_US
    assert tried == sorted(tried)
    assert tried[-1] == hand_over._LONGEST_PAUSE_US
    offer = Offer(life)
    requests.turn(now_us + hand_over._LONGEST_PAUSE_US)
    offer.answer()
    ((ready, _mask),) = poll.poll(30_000)
    assert requests.waits_for(ready)
    handed = requests.handed(ready)
    assert handed is not None
    assert handed[:3] == (1, 5, life)
    os.close(handed[3])
    assert not requests._wishes
    assert not requests._nodes
    offer.close()


def test_p7_20_a_later_incarnation_is_wanted_instead_and_an_earlier_one_is_not(
    child: subprocess.Popen[bytes],
) -> None:
    life, poll = life_of_child(child.pid), select.poll()
    later = life._replace(group_inode=inode_of_init(os.getppid()), init_pid=os.getppid())
    offer, offer_later = Offer(life), Offer(later)
    requests = Requests(poll)
    requests.want(1, 5, life, 0)
    requests.want(1, 6, later, 0)
    requests.want(1, 5, life, 0)
    offer.answer()
    offer_later.answer()
    ((ready, _mask),) = poll.poll(30_000)
    handed = requests.handed(ready)
    assert handed is not None
    assert handed[:3] == (1, 6, later)
    assert os.fstat(handed[3]).st_ino == later.group_inode
    os.close(handed[3])
    offer.close()
    offer_later.close()


def test_p7_20_that_nobody_answers_or_that_it_ends_first_is_no_word(child: subprocess.Popen[bytes]) -> None:
    poll, life = select.poll(), life_of_child(child.pid)
    offer = Offer(life)
    witnesses = Witnesses(poll, HERE)
    witnesses.ask(1, 5, HERE.boot_id, life)
    assert witnesses.untold.pop(1).startswith(b"unable 1 5 its pids count in another PID namespace")
    witnesses.told(1)
    offer.close()
    ((ready, _mask),) = poll.poll(30_000)
    assert witnesses.woken(ready)
    witnesses.turn(boottime_us() + hand_over._LONGEST_PAUSE_US)
    assert witnesses.untold == {}
    assert poll.poll(0) == []
    witnesses.ask(2, 5, bytes(16), life)  # of another boot: inodes are counted anew
    assert list(witnesses._requests._wishes) == [1]


def test_p7_20_the_word_is_told_and_kept_as_any_other(child: subprocess.Popen[bytes]) -> None:
    poll, life = select.poll(), life_of_child(child.pid)
    before = open_descriptors()
    offer = Offer(life)
    witnesses = Witnesses(poll, HERE)
    witnesses.ask(1, 5, HERE.boot_id, life)
    witnesses.told(1)
    offer.answer()
    ((ready, _mask),) = poll.poll(30_000)
    assert witnesses.woken(ready)
    assert witnesses.untold == {}
    offer.close()
    child.kill()
    ((ready, _mask),) = poll.poll(30_000)
    assert witnesses.woken(ready)
    child.wait()
    assert witnesses.untold[1].startswith(b"word 1 5 its init, process ")
    witnesses.told(1)
    witnesses.ask(1, 5, HERE.boot_id, life)  # the next daemon asks
    assert witnesses.untold[1].startswith(b"word 1 5 its init, process ")
    assert open_descriptors() == before


# ---- another PID namespace -------------------------------------------------------------------------------------------

# Runs a program, given as arguments, as a process of a new PID namespace with a /proc of its own; ends with its parent.
ELSEWHERE = """
import os, signal, sys
from muster.drivers.image.deadman import die_with_parent, enter_pid_namespace, mount_own_proc
enter_pid_namespace()
if init := os.fork():
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(init, signal.SIGKILL))
    die_with_parent(signal.SIGTERM)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(init, 0)[1]) & 127)
die_with_parent(signal.SIGKILL)
mount_own_proc()
pid = os.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
while True:
    ended, status = os.wait()
    if ended == pid:
        sys.exit(os.waitstatus_to_exitcode(status) & 127)
"""

# Asks about a life in the words of a guard, and says what it hears.
ASKER = """
import os, select, sys
from muster.drivers.image.deadman import boottime_us
from muster.drivers.image.kernels_word import Witnesses, read_place
from muster.records.registers import decode_life
life, here, poll = decode_life(bytes.fromhex(sys.argv[1])), read_place(), select.poll()
witnesses = Witnesses(poll, here)
witnesses.ask(1, 5, here.boot_id, life)
print(os.path.exists(f"/proc/{life.init_pid}/ns"), witnesses.untold[1].decode(), flush=True)
witnesses.told(1)
while not witnesses.untold:
    for ready, _mask in poll.poll(100):
        witnesses.woken(ready)
    witnesses.turn(boottime_us())
    held = [name for name in os.listdir("/proc/self/fd") if name != "0"]
    for name in held:
        try:
            told = open(f"/proc/self/fdinfo/{name}").read()
        except OSError:
            continue
        if "Pid:" in told and life:
            print("holds", told.split("Pid:")[1].split()[0], flush=True)
            life = None
print(witnesses.untold[1].decode(), flush=True)
"""


def elsewhere(*words: str) -> list[str]:
    """A command whose process finds itself in another PID namespace."""
    return [sys.executable, "-c", ELSEWHERE, sys.executable, *words]


@pytest.fixture
def make_elsewhere() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts programs in other PID namespaces; all are ended afterwards."""
    if not has_namespaces():
        pytest.skip("not applicable: the kernel refuses PID namespaces to this user")
    made: list[subprocess.Popen[str]] = []

    def make(*words: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
        made.append(subprocess.Popen(elsewhere(*words), env=environment, stdout=subprocess.PIPE, text=True))
        return made[-1]

    yield make
    for process in made:
        process.terminate()  # it takes its namespace along
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()


def test_p7_20_a_process_of_another_pid_namespace_hears_the_kernels_own_word(
    namespace: Namespace,  # noqa: F811
    make_elsewhere: Callable[..., subprocess.Popen[str]],
) -> None:
    offer = Offer(namespace.life)
    asker = make_elsewhere("-c", ASKER, encode_life(namespace.life).hex())
    assert asker.stdout is not None
    assert asker.stdout.readline().startswith("False unable 1 5 its pids count in another PID namespace")
    poll = select.poll()
    poll.register(asker.stdout, select.POLLIN)
    deadline = time.monotonic() + 30
    while not poll.poll(20):
        offer.answer()
        assert time.monotonic() < deadline
    assert asker.stdout.readline().split() == ["holds", "0"]  # a pidfd, of a process that has no pid there
    offer.close()
    os.kill(namespace.parent.pid, signal.SIGSTOP)  # it reaps nobody
    os.kill(namespace.init, signal.SIGKILL)
    assert asker.stdout.readline().startswith(f"word 1 5 its init, process {namespace.init}, has ended")


def holds(pid: int, inode: int) -> bool:
    """Whether a process has the descriptor with this inode."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{pid}/fd/{name}").st_ino == inode:
                return True
    return False


def test_p7_20_a_guard_of_another_pid_namespace_has_the_word_after_the_other_guard_was_killed(
    make_node: Callable[..., RealNode],  # noqa: F811
    folder: Path,  # noqa: F811
) -> None:
    if not has_namespaces():
        pytest.skip("not applicable: the kernel refuses PID namespaces to this user")
    asking, dying = make_node(0), make_node(1)
    interpreter = folder / "elsewhere"
    words = " ".join(f"'{word}'" for word in (sys.executable, "-c", ELSEWHERE, sys.executable))
    interpreter.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    interpreter.chmod(0o755)
    dying.start()
    state = dying.up()
    life = wait_for("a record that names init", lambda: dying.lease().life)
    asking.start(sys.executable, "-c", DAEMON, str(asking.home), interpreter=str(interpreter))
    wait_for("its daemon", lambda: asking.heard("daemon"))
    own = wait_for("its record", lambda: asking.lease().life)
    assert own.pid_namespace not in (0, life.pid_namespace)
    guard = asking.pid_of("muster-guard")
    asking.order("guard", f"watch 1 {state['incarnation']} {HERE.boot_id.hex()} {encode_life(life).hex()}")
    wait_for("what is handed over", lambda: holds(guard, life.group_inode))

    def words_heard() -> list[str]:
        texts = [str(item["text"]) for item in asking.heard("guard")]
        return [text for text in texts if text.startswith(("word ", "unable "))]

    wait_for("what was heard before as well", words_heard)
    assert [text.split()[0] for text in words_heard()] == ["unable"]
    assert dying.guard is not None
    dying.guard.kill()
    wait_for("the word", lambda: len(words_heard()) > 1)
    assert words_heard()[1].startswith(f"word 1 {state['incarnation']} its init, process {life.init_pid}, has ended")
    dying.gone()
    # The node that asks is asked in its turn, from here: its pids count nowhere else.
    poll = select.poll()
    witnesses = Witnesses(poll, HERE)
    witnesses.ask(0, 1, HERE.boot_id, own)
    assert witnesses.untold[0].startswith(b"unable")
    witnesses.told(0)
    assert all(witnesses.woken(ready) for ready, _mask in poll.poll(30_000))
    assert witnesses.untold == {}
    os.kill(guard, signal.SIGKILL)
    for ready, _mask in poll.poll(30_000):
        witnesses.woken(ready)
    assert witnesses.untold[0].startswith(b"word 0 1 ")
