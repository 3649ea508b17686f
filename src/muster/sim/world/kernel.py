"""The one kernel that all nodes of a store of scope `host` run under, in the virtual world (P7.13-P7.16).

It gives pids, which are used again, and starts, and says whether a life has ended: to who asks in the PID namespace in
which the pid counts, or holds a descriptor of it (P7.20), and to nobody else. What it does not do is end a life in
time: one may hang in it for seconds.
"""

from collections.abc import Callable

from muster.records.registers import Life as Named

MACHINE_ID = b"virtual machine."
SHARED_NAMESPACE = 1
PIDS = 4  # so few that a dead node's pid is soon another one's


def counts_in(namespace: int, named: Named) -> bool:
    """Whether the pid of a lease record counts in the namespace of who asks; a control group does everywhere."""
    return bool(named.group) or namespace == named.pid_namespace


def is_of(named: Named, offered: Named) -> bool:
    """Whether a descriptor that somebody offers shows the end of the life that a record names: by its inode (P7.20)."""
    return named.group_inode == offered.group_inode


class Kernel:
    """Pids and what runs under them."""

    def __init__(self) -> None:
        self._began = self._boots = 0
        # (namespace, pid) -> start of what runs; of a control group namespace 0 and its inode -> 0
        self._running: dict[tuple[int, int], int] = {}
        self._waiting: dict[tuple[int, int, int], list[Callable[[], None]]] = {}

    @property
    def boot_id(self) -> bytes:
        """Of the present boot of the machine."""
        return b"the virtual boot" if not self._boots else f"virtual boot {self._boots:3}".encode()

    def boot_anew(self) -> None:
        """The machine has booted: nothing that ran before is known of any more, nor told."""
        self._boots += 1
        self._running.clear()
        self._waiting.clear()

    def begin(self, namespace: int, group: str = "") -> Named:
        """A life begins, in a control group if it has one: what its lease record says of it."""
        self._began += 1
        if group:
            inode = self._began
            self._running[0, inode] = 0
            return Named(MACHINE_ID, namespace, 1, 0, 0, group, inode, 1)
        pid = next(pid for pid in range(1, PIDS + 999) if (namespace, pid) not in self._running)
        self._running[namespace, pid] = self._began
        return Named(MACHINE_ID, namespace, 1, pid, self._began, group_inode=self._began)

    def end(self, named: Named) -> None:
        """Nothing of that life runs any more: whoever waits for that is told."""
        place = _place(named)
        if self._running.get(place, 0) != named.init_start:
            return
        del self._running[place]
        for tell in self._waiting.pop((*place, named.init_start), []):
            tell()

    def runs(self, named: Named, namespace: int) -> bool:
        """What the kernel says in `namespace`: something with this pid and this start is there, or in this group."""
        place = _place(named) if named.group else (namespace, named.init_pid)
        return self._running.get(place) == named.init_start

    def shows_the_end(self, named: Named) -> bool:
        """What a descriptor of that life says, wherever it is held."""
        return self._running.get(_place(named), 0) != named.init_start

    def tell_at_the_end(self, named: Named, tell: Callable[[], None]) -> None:
        """Have `tell` called when that life, which runs, has ended."""
        self._waiting.setdefault((*_place(named), named.init_start), []).append(tell)


def _place(named: Named) -> tuple[int, int]:
    return (0, named.group_inode) if named.group else (named.pid_namespace, named.init_pid)
