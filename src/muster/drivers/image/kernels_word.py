"""The kernel's own word that nothing of an incarnation runs any more (P7.13, P7.14). Part of the guard's image.

Theory of operation. A process that is PID 1 of a namespace ends only after the kernel has ended and reaped all others
in it, those included that came in from outside. So when the pidfd of a node's init is readable, nothing of the node
runs; whether init itself has been reaped does not matter, nor whether its parent hangs. The control group that holds
all but the guard and its writers says the same with `populated 0`.

While the node lives, a guard of the same outer PID namespace opens that pidfd by the pid in the lease record, and has
only to wait; one of another namespace is handed it (`hand_over.py`, P7.20). For who comes later, absence is the word
too: no process has that pid, or another one has it by now, which its start time tells. `pidfd_open` is asked, never the
listing of /proc, which may hide processes. It counts only in the namespace in which the pid was recorded. An unknown
start time is no danger: whoever has the pid now, init is not there any more once that one has ended.
"""

import errno
import os
import select
from typing import NamedTuple

from muster.drivers.image.control_group import ControlGroup, mount_of_groups
from muster.drivers.image.deadman import boottime_us, read_boot_id
from muster.drivers.image.hand_over import Requests, inode_of_init
from muster.records.registers import Life

MACHINE_ID_FILE = "/etc/machine-id"
_START_FIELD = 19  # of /proc/PID/stat, counted behind the name
_NOT_THERE = (errno.ESRCH, errno.EINVAL, errno.ENOENT)  # the last two: the number is a thread of somebody else by now
_MAXIMUM_TEXT = 200


class CannotAsk(Exception):
    """This process cannot ask the kernel about that incarnation; the message says why."""


class Place(NamedTuple):
    """Which kernel a process asks, and by which names."""

    boot_id: bytes
    machine_id: bytes  # zeros where the machine has none
    pid_namespace: int
    time_namespace: int


def read_machine_id() -> bytes:
    """The machine's own id, 16 bytes, the same after a reboot; zeros where it has none."""
    try:
        with open(MACHINE_ID_FILE, encoding="ascii") as file:
            number = bytes.fromhex(file.read(64).strip())
    except (OSError, ValueError):
        return bytes(16)
    return number if len(number) == 16 else bytes(16)


def read_place() -> Place:
    """Where this process is. It must not have entered another namespace since it began to read pids."""
    shown_here = os.readlink("/proc/self") == str(os.getpid())
    pids = _inode("/proc/self/ns/pid") if shown_here else 0
    return Place(read_boot_id(), read_machine_id(), pids, _inode("/proc/self/ns/time"))


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def start_of(pid: int) -> int:
    """When a process began, in clock ticks since boot; 0 where that cannot be seen."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except OSError:
        return 0
    # The command name stands in parentheses and may itself hold any byte, so the fields begin after the last one.
    fields = stat[stat.rfind(b")") + 2 :].split()
    return int(fields[_START_FIELD]) if len(fields) > _START_FIELD else 0


def life_of(init: int, here: Place, group: ControlGroup | None = None) -> Life:
    """What a lease record says of an incarnation whose init is this process's unreaped child `init`.

    In a process tree init's end says nothing of the rest: `init` is 0 there, and all is in `group`, if there is one.
    """
    life = Life(here.machine_id, here.pid_namespace, here.time_namespace, init, start_of(init) if init else 0)
    if group is None:
        return life._replace(group_inode=inode_of_init(init) if init else 0)
    inode, root = group.inodes()
    return life._replace(group=group.path, group_inode=inode, group_root=root)


class Witness:
    """One incarnation that the kernel is asked about. `close` it, or let it be the last word."""

    __slots__ = ("_group", "_init", "_life", "word")

    def __init__(self, life: Life, boot_id: bytes, here: Place, handed: int = -1) -> None:
        """Ask now; `word` is what the kernel says, or empty while something runs. Raises `CannotAsk`, `OSError`.

        `handed`: the descriptor of this very life that its guard has handed over (P7.20): it alone is asked.
        """
        self._life, self._init, self._group = life, -1, -1
        self.word = ""
        if handed >= 0:
            self._init, self._group = (-1, handed) if life.group else (handed, -1)
            self.look()
            return
        if boot_id != here.boot_id:
            raise CannotAsk("it ran under another kernel")
        reasons = []
        for ask in (self._ask_init, self._ask_group):
            try:
                ask(here)
            except CannotAsk as reason:
                reasons.append(str(reason))
        if not self.word and self._init < 0 and self._group < 0:
            raise CannotAsk("; ".join(reasons))
        if not self.word:
            self.look()

    def _ask_init(self, here: Place) -> None:
        life = self._life
        if not life.init_pid:
            raise CannotAsk("it has no PID namespace of its own")
        if not life.pid_namespace or life.pid_namespace != here.pid_namespace:
            raise CannotAsk("its pids count in another PID namespace than this node's guard is in")
        try:
            self._init = os.pidfd_open(life.init_pid)
        except OSError as error:
            if error.errno not in _NOT_THERE:
                if error.errno in {errno.ENOSYS, errno.EPERM}:
                    raise CannotAsk(f"this kernel does not let it be asked: {error.strerror}") from error
                raise
            self._say(f"there is no process {life.init_pid} any more, which was its init")
            return
        if life.time_namespace == here.time_namespace:
            start = start_of(life.init_pid)
            if start and life.init_start and start != life.init_start:
                self._say(f"process {life.init_pid}, which was its init, is another one by now")

    def _ask_group(self, _here: Place) -> None:
        life = self._life
        if not life.group:
            raise CannotAsk("it has no control group of its own")
        mount = mount_of_groups()
        if not mount or not life.group_root or _inode(mount) != life.group_root:
            raise CannotAsk("this node's guard sees other control groups")
        folder = f"{mount}{life.group}"
        # A control group that holds a process cannot be removed: one that is not there, or is another one, was empty.
        try:
            self._group = os.open(f"{folder}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._say(f"its control group {life.group} is gone")
            return
        except OSError as error:
            raise CannotAsk(f"its control group {life.group} cannot be read: {error.strerror}") from error
        if _inode(folder) != life.group_inode:
            self._say(f"its control group {life.group} is another one by now")

    @property
    def descriptors(self) -> dict[int, int]:
        """What to poll for, by descriptor: `look` again when one of them is ready."""
        waits = {self._init: select.POLLIN, self._group: select.POLLPRI}
        return {descriptor: mask for descriptor, mask in waits.items() if descriptor >= 0}

    def look(self) -> str:
        """The word, if the kernel gives it by now."""
        if not self.word and self._init >= 0:
            poll = select.poll()
            poll.register(self._init, select.POLLIN)
            if poll.poll(0):
                self._say(f"its init, process {self._life.init_pid}, has ended, and before it all that ran below it")
        if not self.word and self._group >= 0:
            try:
                populated = b"populated 0" not in os.pread(self._group, 256, 0)
            except OSError as error:  # the group was removed while it was open
                populated = error.errno != errno.ENODEV
            if not populated:
                self._say(f"its control group {self._life.group} holds no process any more")
        return self.word

    def close(self) -> None:
        """Wait no more."""
        for descriptor in (self._init, self._group):
            if descriptor >= 0:
                os.close(descriptor)
        self._init = self._group = -1

    def _say(self, text: str) -> None:
        self.word = text[:_MAXIMUM_TEXT]


class Witnesses:
    """Every incarnation that the daemon has asked about, and what is to be told to it.

    What is known is kept, so that a daemon that was restarted in between hears it when it asks again.
    """

    __slots__ = ("_here", "_poll", "_requests", "_untold", "_watched", "_witnesses")

    def __init__(self, poll: select.poll, here: Place) -> None:
        self._poll, self._here = poll, here
        self._requests = Requests(poll)  # about those that cannot be asked about from here
        self._witnesses: dict[int, tuple[int, Witness]] = {}  # node -> incarnation
        self._watched: dict[int, int] = {}  # descriptor -> node
        self._untold: dict[int, bytes] = {}  # node -> packet

    def ask(self, node: int, incarnation: int, boot_id: bytes, life: Life) -> None:
        """The daemon asks about an incarnation, again or for the first time. What follows is in `untold`."""
        known = self._witnesses.get(node)
        if known is not None and known[0] > incarnation:
            return
        if known is None or known[0] < incarnation:
            self._forget(node)
            try:
                witness = Witness(life, boot_id, self._here)
            except (CannotAsk, OSError) as reason:
                self._untold[node] = f"unable {node} {incarnation} {reason}"[:_MAXIMUM_TEXT].encode()
                if boot_id == self._here.boot_id:
                    self._requests.want(node, incarnation, life, boottime_us())
                return
            self._requests.drop(node)
            self._add(node, incarnation, witness)
        self._look(node)

    def _add(self, node: int, incarnation: int, witness: Witness) -> None:
        self._witnesses[node] = (incarnation, witness)
        for descriptor, mask in witness.descriptors.items():
            self._watched[descriptor] = node
            self._poll.register(descriptor, mask)

    def turn(self, now_us: int) -> None:
        """The loop turns: ask again to be handed what is not here yet."""
        self._requests.turn(now_us)

    def woken(self, descriptor: int) -> bool:
        """Whether the descriptor is one of these; the kernel may have given its word."""
        if self._requests.waits_for(descriptor):
            if (handed := self._requests.handed(descriptor)) is not None:
                about, incarnation, life, shown = handed
                self._add(about, incarnation, Witness(life, self._here.boot_id, self._here, shown))
                self._look(about)
            return True
        node = self._watched.get(descriptor)
        if node is None:
            return False
        self._look(node)
        return True

    def _look(self, node: int) -> None:
        incarnation, witness = self._witnesses[node]
        if word := witness.look():
            self._release(witness)
            self._untold[node] = f"word {node} {incarnation} {word}".encode()

    def _forget(self, node: int) -> None:
        known = self._witnesses.pop(node, None)
        if known is not None:
            self._release(known[1])

    def _release(self, witness: Witness) -> None:
        for descriptor in witness.descriptors:
            if self._watched.pop(descriptor, None) is not None:
                self._poll.unregister(descriptor)
        witness.close()

    @property
    def untold(self) -> dict[int, bytes]:
        """Packets for the daemon, by node; `told` when one is on its way."""
        return dict(self._untold)

    def told(self, node: int) -> None:
        """The packet about `node` is on its way."""
        self._untold.pop(node, None)
