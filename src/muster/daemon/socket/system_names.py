"""The names of users, and the numbers of the cluster's groups, as the system's directory knows them (P10.9).

The directory may be on another machine (LDAP, SSSD), and a look into it may take as long as it likes. So the event loop
never looks: two threads do, one for the few groups that the cluster's settings name, one for users, and what they have
found is kept. A client whose role or name is not known yet waits for that, but not for long; the loop waits for nobody.
No number that a client brings is looked up as a group: else a stranger's could keep the others' from being known.
"""

import asyncio
import grp
import pwd
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from muster.records.access import Groups, Role

WAIT_S = 1.0  # of a client, to be known
_FRESH_S = 2.0  # who has no role by what is older than this waits for a new look: its group may have been made since
_USER_S = 3600.0  # a name that is older is looked up again, and goes on being used
_MAXIMUM_USERS = 1024
_MAXIMUM_QUEUE = 64


class SystemNames:
    """What the system's directory says, without waiting for it. Belongs to one event loop."""

    def __init__(self, groups: Callable[[], Groups]) -> None:
        """`groups`: the groups that give a role, as they are set now."""
        self._groups = groups
        self._numbers: dict[int, frozenset[str]] = {}  # of those groups, as last found
        self._asked: Groups | None = None  # the settings of that look
        self._looked_s = -_FRESH_S
        self._users: OrderedDict[int, tuple[str, float]] = OrderedDict()
        self._group_looks = _Looks("group names")
        self._user_looks = _Looks("user names")

    def group_names(self, number: int) -> frozenset[str]:
        """The groups with this number, of those that give a role; none where that is not known."""
        return self._numbers.get(number, frozenset())

    def user_name(self, uid: int) -> str:
        """The user's name, or the number as text where it has none, or none is known."""
        return self._users.get(uid, ("", 0.0))[0] or str(uid)

    def missing(self, uid: int, role: Role) -> list["asyncio.Future[None]"]:
        """Looks that are under way and that a client of this user, with this role by what is known, waits for."""
        now_s = time.monotonic()
        found = []
        settings = self._groups()
        if settings != self._asked or (role is Role.NONE and now_s - self._looked_s >= _FRESH_S):
            found.append(self._group_looks.ask(settings, _numbers_of, self._groups_found))
        if now_s - self._users.get(uid, ("", -_USER_S))[1] >= _USER_S:
            look = self._user_looks.ask(uid, _name_of, self._user_found)
            found += [] if uid in self._users else [look]
        return [each for each in found if each is not None]

    async def wait(self, looks: list["asyncio.Future[None]"]) -> None:
        """Wait for these looks, within bounds."""
        await asyncio.wait(looks, timeout=WAIT_S)

    def _groups_found(self, settings: Groups, found: dict[int, frozenset[str]]) -> None:
        self._numbers, self._asked, self._looked_s = found, settings, time.monotonic()

    def _user_found(self, uid: int, name: str) -> None:
        self._users[uid] = (name, time.monotonic())
        self._users.move_to_end(uid)
        while len(self._users) > _MAXIMUM_USERS:
            self._users.popitem(last=False)


class _Looks:
    """One thread that looks into the directory, one thing after the other; nothing waits for its end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: queue.SimpleQueue[tuple[Any, Callable[[Any], Any], Callable[[Any, Any], None]]]
        self._queue = queue.SimpleQueue()
        self._under_way: dict[Any, tuple[asyncio.Future[None], float]] = {}  # and since when
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def ask(
        self, key: Any, look: Callable[[Any], Any], found: Callable[[Any, Any], None]
    ) -> "asyncio.Future[None] | None":
        """Done once `found(key, what look(key) has returned)` was called, in the loop.

        None where that has been waited for long enough, or where too many look already.
        """
        self._loop, now_s = asyncio.get_running_loop(), time.monotonic()
        if key not in self._under_way:
            if len(self._under_way) >= _MAXIMUM_QUEUE:
                return None
            self._under_way[key] = self._loop.create_future(), now_s
            self._queue.put((key, look, found))
            self._start()
        waiting, since_s = self._under_way[key]
        return waiting if now_s - since_s < WAIT_S else None

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            key, look, found = self._queue.get()
            answer = look(key)
            assert self._loop is not None
            try:
                self._loop.call_soon_threadsafe(self._done, key, answer, found)
            except RuntimeError:
                return  # the loop has ended

    def _done(self, key: Any, answer: Any, found: Callable[[Any, Any], None]) -> None:
        found(key, answer)
        waiting, _ = self._under_way.pop(key)
        if not waiting.done():
            waiting.set_result(None)


def _numbers_of(settings: Groups) -> dict[int, frozenset[str]]:
    found: dict[int, frozenset[str]] = {}
    for name in filter(None, {settings.of(role) for role in Role}):
        try:
            number = grp.getgrnam(name).gr_gid
        except (KeyError, OSError, ValueError):  # ValueError: no group can have that name
            continue
        found[number] = found.get(number, frozenset()) | {name}
    return found


def _name_of(uid: int) -> str:
    """Empty where the user has none. A name that steers a terminal is cleaned where it is printed (P10.8)."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OSError, ValueError):
        return ""
