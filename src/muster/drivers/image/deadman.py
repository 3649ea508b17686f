"""What stops a node when its guard cannot: kernel timer, PID namespace, parent-death signals (SPEC 7.1-7.3).

Theory of operation. The guard holds a POSIX timer on CLOCK_BOOTTIME whose expiry is a SIGKILL to the guard itself. The
kernel delivers it to a stopped process too, and the clock runs through suspend. Below the guard hangs everything that
the node runs, tied to it in one of two ways:

* `Deadman.PID_NAMESPACE`: init is PID 1 of a namespace of its own and gets SIGKILL when the guard dies; the kernel
  then kills every process of the namespace, however it was started and whatever session it is in.
* `Deadman.PROCESS_TREE`, where the kernel refuses namespaces: init, runner and keepers are subreapers. Each hears of
  its parent's death by a signal; whichever of them still runs kills everything below it. What this cannot reach: a
  detached process of a service when guard, init, runner and that service's keeper have all been killed at once.

A guard that was sent SIGKILL need not end: it may wait in the kernel, be stopped in its exit by a tracer, or be kept
off its CPU. So in both ways init and runner compare the clock themselves with the deadline that the guard publishes in
shared memory (`Leash`), and end what is below them when it has passed (P7.9). In a tree keepers do so too; there a
keeper that is stopped is left alone, because what has detached itself from a service is found through it.

Only the C library is called, through ctypes, so that the image stays small.
"""

import ctypes
import gc
import mmap
import os
import resource
import select
import signal
import struct
import time

from muster.records.registers import Deadman

CLOCK_BOOTTIME = 7
_TIMER_ABSTIME = 1
_SIGEV_SIGNAL = 0
_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_SLAVE = 0x2, 0x4, 0x8, 0x4000, 1 << 19
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_CAP_IPC_LOCK = 14
_SCHED_DEADLINE, _SCHED_FLAG_RESET_ON_FORK = 6, 1
_SET_SCHEDULER_ATTRIBUTES = {"x86_64": 314, "aarch64": 274, "riscv64": 274, "ppc64le": 355, "s390x": 345}
_SET_IO_PRIORITY = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_INIT_RUNTIME_NS, _INIT_PERIOD_NS = 4_000_000, 100_000_000  # init may have so much of a CPU, before everything else
_ORPHAN_EXIT = 72  # of a process that finds its parent gone before it began

LEASH_SIGNAL = signal.SIGUSR1  # "your parent is dead", in a process tree
_DEADLINE = struct.Struct("=q")
_FOREVER_US = (1 << 63) - 1


class DeadmanFailed(Exception):
    """The kernel refused what the deadman needs; the message names the call, the reason and what to do."""


class _Sigevent(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal_number", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("padding", ctypes.c_char * 48),
    )


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


_libc = ctypes.CDLL(None, use_errno=True)


def _timer_library() -> ctypes.CDLL:
    """C libraries before glibc 2.34 keep the timer calls in a library of their own."""
    return _libc if hasattr(_libc, "timer_create") else ctypes.CDLL("librt.so.1", use_errno=True)


def _call(name: str, result: int, advice: str) -> None:
    if result != 0:
        raise DeadmanFailed(f"{name}: {os.strerror(ctypes.get_errno())}; {advice}")


def boottime_us() -> int:
    """CLOCK_BOOTTIME in microseconds: it runs through suspend, which the lease needs (SPEC 7.1)."""
    return time.clock_gettime_ns(CLOCK_BOOTTIME) // 1000


def read_boot_id() -> bytes:
    """The kernel's boot id, 16 bytes: tells one boot of a machine from the next (SPEC 7.1)."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return bytes.fromhex(file.read().strip().replace("-", ""))


class _SchedulerAttributes(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime_ns", ctypes.c_uint64),
        ("deadline_ns", ctypes.c_uint64),
        ("period_ns", ctypes.c_uint64),
    )


class DeadmanTimer:
    """Kills this process at a time on CLOCK_BOOTTIME unless the time is moved (SPEC 7.1). Not inherited by children."""

    __slots__ = ("_library", "_timer")

    def __init__(self) -> None:
        """Make the timer, unarmed. Raises `DeadmanFailed`."""
        if os.getpid() == 1:
            raise DeadmanFailed(
                "deadman timer: the kernel does not let PID 1 kill itself; start the node below an init process "
                "(a container's --init option), not as PID 1"
            )
        self._library = _timer_library()
        self._timer = ctypes.c_void_p()
        event = _Sigevent(None, signal.SIGKILL, _SIGEV_SIGNAL, b"")
        result = self._library.timer_create(CLOCK_BOOTTIME, ctypes.byref(event), ctypes.byref(self._timer))
        _call("timer_create(CLOCK_BOOTTIME)", result, "this kernel cannot stop the node in time; use another kernel")

    def arm(self, deadline_us: int) -> None:
        """Kill this process at `deadline_us` (CLOCK_BOOTTIME), at once if that is over. Replaces any earlier time."""
        self._set(max(1, deadline_us))

    def disarm(self) -> None:
        """Do not kill this process."""
        self._set(0)

    def _set(self, deadline_us: int) -> None:
        value = _Timespec(deadline_us // 1_000_000, deadline_us % 1_000_000 * 1000)
        setting = _Itimerspec(_Timespec(0, 0), value)
        result = self._library.timer_settime(self._timer, _TIMER_ABSTIME, ctypes.byref(setting), None)
        _call("timer_settime", result, "the node must stop; start it again")


class Leash:
    """What ties the processes of a node to their guard; made by the guard before it forks the first of them.

    `deadman` says which of the two ways of the module's text is in use.
    """

    __slots__ = ("_shared", "deadman")

    def __init__(self, deadman: Deadman) -> None:
        self.deadman = deadman
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)  # anonymous and shared with every process forked from here on
        self.extend(_FOREVER_US)

    @property
    def is_tree(self) -> bool:
        """Whether what is below a process survives it, and must be ended one by one."""
        return self.deadman is Deadman.PROCESS_TREE

    def extend(self, deadline_us: int) -> None:
        """Guard: publish the deadline (us, CLOCK_BOOTTIME)."""
        _DEADLINE.pack_into(self._shared, 0, deadline_us)

    def deadline_us(self) -> int:
        """As the guard last published it. An aligned word, so a reader sees the old or the new value."""
        deadline_us: int = _DEADLINE.unpack_from(self._shared, 0)[0]
        return deadline_us

    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return boottime_us() >= self.deadline_us()

    def bind(self, parent: int) -> None:
        """Tie this freshly forked process to `parent` (its pid as seen here); ends it if the parent is already dead.

        In a namespace the parent's death is a SIGKILL. In a tree it is `LEASH_SIGNAL`, which the caller must have
        blocked or handled, and upon which it must end everything below itself.
        """
        die_with_parent(LEASH_SIGNAL if self.is_tree else signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(_ORPHAN_EXIT)

    def bind_init(self, guard_alive: int) -> None:
        """`bind` for init, which may not see its parent; `guard_alive` is a pipe whose other end only the guard has."""
        die_with_parent(LEASH_SIGNAL if self.is_tree else signal.SIGKILL)
        poll = select.poll()
        poll.register(guard_alive, select.POLLIN)
        if poll.poll(0):
            os._exit(_ORPHAN_EXIT)


def die_with_parent(number: int) -> None:
    """Have the kernel send this process signal `number` when the thread that forked it ends. Survives exec."""
    _call("prctl(PR_SET_PDEATHSIG)", _libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0), "use a Linux kernel")


def adopt_orphans() -> None:
    """Make orphaned descendants children of this process, not of the machine's init. Survives exec, not fork."""
    _call("prctl(PR_SET_CHILD_SUBREAPER)", _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "use Linux 3.4 or newer")


def set_process_name(name: str) -> None:
    """Name this process for `ps` and `top`: at most 15 bytes count."""
    _libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def choose_deadman() -> Deadman:
    """The strongest way that the kernel allows here. Tried in a child process, so nothing changes for the caller."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            enter_pid_namespace()
            inner = os.fork()
            if inner == 0:
                try:
                    mount_own_proc()
                    status = 0
                finally:
                    os._exit(status)
            status = 0 if os.waitpid(inner, 0)[1] == 0 else 1
        except (OSError, DeadmanFailed):
            status = 1
        finally:
            os._exit(status)
    return Deadman.PID_NAMESPACE if os.waitpid(child, 0)[1] == 0 else Deadman.PROCESS_TREE


def enter_pid_namespace() -> None:
    """The next child of this process will be PID 1 of a new PID namespace. Raises `DeadmanFailed` or `OSError`.

    An ordinary user gets a user namespace for that, in which only the own user and group exist: set-user-id programs
    such as sudo do not work below it.
    """
    user, group = os.geteuid(), os.getegid()
    advice = "the node falls back to a process tree if started with --deadman process-tree"
    if _libc.unshare(_CLONE_NEWPID) == 0:
        return
    _call("unshare(CLONE_NEWUSER | CLONE_NEWPID)", _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWPID), advice)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def mount_own_proc() -> None:
    """In PID 1 of a new namespace: a mount namespace with a /proc of this PID namespace. Raises `DeadmanFailed`.

    Mounts of the machine still arrive here; mounts made here are invisible outside and vanish with the node, so no
    mount of a service outlives it (SPEC 7.1).
    """
    advice = "the node falls back to a process tree if started with --deadman process-tree"
    _call("unshare(CLONE_NEWNS)", _libc.unshare(_CLONE_NEWNS), advice)
    _call("mount(/, slave)", _libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None), advice)
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _call("mount(/proc)", _libc.mount(b"proc", b"/proc", b"proc", flags, None), advice)
    if os.readlink("/proc/self") != str(os.getpid()):
        raise DeadmanFailed(f"mount(/proc): it shows another PID namespace; {advice}")


def settle_memory() -> None:
    """What this process has loaded by now stays: collections pass it by from here on, and what loading has used and
    freed goes back to the kernel, where the C library can give it back. Before memory is locked, or a child forked.
    """
    gc.collect()
    gc.freeze()
    if hasattr(_libc, "malloc_trim"):  # of glibc alone
        _libc.malloc_trim(0)


def hold_memory_and_priority(*, above_all: bool = False) -> None:
    """Keep this process in memory and ahead of others, as far as the kernel allows it; children do not inherit it.

    Memory is locked only where no limit applies: under a limit, a later allocation would fail instead. A service may
    have a real-time priority too, so this is the highest that there is; `above_all`: even before those, for a process
    that needs very little.
    """
    unlimited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY
    if unlimited or (os.geteuid() == 0 and _has_capability(_CAP_IPC_LOCK)):
        _libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)  # what is in memory or will be: no more is loaded
    if above_all and _become_deadline_task():
        return
    highest = os.sched_get_priority_max(os.SCHED_RR)
    for priority in (highest, min(highest, max(0, resource.getrlimit(resource.RLIMIT_RTPRIO)[0]))):
        try:
            os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
        except OSError:
            continue  # an ordinary user, or a container without real-time budget: the deadman covers what delays cost
        return


def reset_io_priority() -> None:
    """What `ionice` has given this process is given up, where the number of that call is known."""
    number = _SET_IO_PRIORITY.get(os.uname().machine)
    if number is not None:
        _libc.syscall(ctypes.c_long(number), 1, 0, 0)  # IOPRIO_WHO_PROCESS, this one, IOPRIO_CLASS_NONE


def _become_deadline_task() -> bool:
    """SCHED_DEADLINE comes before every real-time priority. Refused to ordinary users, and on part of the CPUs."""
    number = _SET_SCHEDULER_ATTRIBUTES.get(os.uname().machine)
    if number is None:
        return False
    attributes = _SchedulerAttributes(
        ctypes.sizeof(_SchedulerAttributes), _SCHED_DEADLINE, _SCHED_FLAG_RESET_ON_FORK, 0, 0,
        _INIT_RUNTIME_NS, _INIT_PERIOD_NS, _INIT_PERIOD_NS,
    )  # fmt: skip
    return bool(_libc.syscall(ctypes.c_long(number), 0, ctypes.byref(attributes), 0) == 0)


def _has_capability(number: int) -> bool:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> number & 1)
    return False
