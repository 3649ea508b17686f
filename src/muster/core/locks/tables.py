"""What one node has: its clients' locks, the resources that it masters, its part of the directory (P12.1, P12.8)."""

from collections.abc import Container, Sequence

from muster.core.locks.directory import NOBODY, Directory
from muster.core.locks.messages import Copy, LockId, Message, Token
from muster.core.locks.resource import Lock, Resource


class Use:
    """What this node knows of a resource that another node masters, or whose master it looks for."""

    __slots__ = ("asked", "held", "locks", "master", "round", "turn", "unsent")

    def __init__(self) -> None:
        self.master = NOBODY
        self.locks: dict[LockId, Lock] = {}  # the master knows of these, or is being told
        self.unsent: Sequence[Lock] = ()  # new ones, which nobody has been told of; a list where there are some
        self.asked = NOBODY  # the directory's node that has been asked who the master is
        self.turn = 0  # names that question
        self.held = False  # a recovery is under way: nothing is sent to a master before it has ended (P12.12)
        self.round = 0  # in which its locks were told to a new master, until somebody is known to have resumed that

    def put_off(self, lock: Lock) -> None:
        """A new lock of which nobody can be told yet."""
        if isinstance(self.unsent, list):
            self.unsent.append(lock)
        else:
            self.unsent = [lock]

    def take_back(self, lock: Lock) -> None:
        """One of these is to be told, or is no more."""
        assert isinstance(self.unsent, list)
        self.unsent.remove(lock)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left of it but that its master is known."""
        return not self.locks and not self.unsent and self.asked == NOBODY


class Tables:
    """All of it."""

    def __init__(self, node: int) -> None:
        self.node = node
        self.clients: dict[int, dict[LockId, Lock]] = {}
        self.resources: dict[str, Resource] = {}
        self.uses: dict[str, Use] = {}
        self.directory = Directory()
        self.frozen: dict[str, None] = {}  # resources here that grant nothing until the recovery has ended
        self.early: dict[str, list[tuple[int, Message]]] = {}  # for a resource whose master this node may just become
        self.idle: dict[str, None] = {}  # resources and uses without a lock, by how long

    def use_of(self, key: str) -> Use:
        """What is known of a resource that is not mastered here."""
        use = self.uses.get(key)
        if use is None:
            use = self.uses[key] = Use()
        return use

    def freeze(self, resource: Resource) -> None:
        """It grants nothing more until the recovery has ended."""
        resource.frozen = True
        self.frozen[resource.key] = None

    def lose_absent(self, resource: Resource, roster: Container[int], mask: int) -> None:
        """The locks of nodes that are proven dead are no more, and what they had a part in grants nothing for now."""
        lost = [lock for lock in resource.locks.values() if lock.id & mask not in roster]
        for lock in lost:
            resource.lose(lock)
        if lost:
            self.freeze(resource)

    def give_away(self, key: str, mask: int) -> Resource:
        """This node masters the resource no more: of its locks, those of its own clients are left, as a use."""
        resource = self.resources.pop(key)
        self.frozen.pop(key, None)
        own = {number: lock for number, lock in resource.locks.items() if number & mask == self.node}
        if own:
            use = self.use_of(key)
            use.locks.update(own)
            use.held = True
        return resource


def copy_of(lock: Lock) -> Copy:
    """A lock as its owner tells it to a new master."""
    return Copy(
        lock.key, lock.id, lock.client, lock.mode, lock.wanted, lock.no_queue, lock.serial, lock.token,
        lock.value, lock.version, lock.valid,
    )  # fmt: skip


def lock_of(copy: Copy) -> Lock:
    """The new master's copy of it."""
    lock = Lock(copy.key, copy.lock, copy.client, copy.wanted, no_queue=copy.no_queue)
    lock.mode, lock.serial = copy.mode, copy.serial
    lock.token, lock.value, lock.version, lock.valid = copy.token, copy.value, copy.version, copy.valid
    return lock


def highest(tokens: list[Token]) -> Token:
    """The highest of some tokens."""
    return max(tokens, default=(0, 0))
