"""Who is at the control socket, and what they may do (SPEC 7.8, P10.4, docs/ACCESS.md).

The kernel says who has connected: user, group and supplementary groups of that process at that moment. Root and the
user of the daemon itself are administrators; anybody else has the highest role whose group they are in.
"""

import os
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Any

from muster.daemon.socket.catalogue import nothing_called, right_of
from muster.daemon.socket.system_names import SystemNames
from muster.records.access import Author, Groups, Role
from muster.records.refusal import ControlRefused

MAXIMUM_REFUSALS = 100
LONGEST_ARGUMENTS_BYTES = 64 * 1024  # of all requests but those whose row says otherwise
_TOLD_USERS = 64
_TELL_AGAIN_S = 60.0

Document = dict[str, Any]
Request = dict[str, Any]


def role_of(uid: int, groups: frozenset[str], names: Groups) -> Role:
    """The role of a user with these groups."""
    if uid in (0, os.geteuid()):
        return Role.ADMINISTRATOR
    held = [role for role in Role if names.of(role) and names.of(role) in groups]
    return max(held, default=Role.NONE)


def group_names(peer: Document, names_of: Callable[[int], frozenset[str]]) -> frozenset[str]:
    """Names of the groups that the kernel says the peer is in; one without a name gives no role."""
    found: frozenset[str] = frozenset()
    for number in {peer["gid"], *peer.get("groups", ())}:
        found |= names_of(number)
    return found


class Gate:
    """Lets each request of this node's clients pass or refuses it; remembers whom it has refused, newest last."""

    def __init__(self, node: str, groups: Callable[[], Groups], tell: Callable[[str, str], None]) -> None:
        self._node, self._groups, self._tell = node, groups, tell
        self.names = SystemNames(groups)
        self.refused: deque[Document] = deque(maxlen=MAXIMUM_REFUSALS)
        self._told: OrderedDict[tuple[int, str], float] = OrderedDict()

    def author(self, peer: Document) -> Author:
        """Who asks, in which role."""
        uid = int(peer["uid"])
        return Author(uid, self.names.user_name(uid), self.role(peer), self._node, int(time.time() * 1000))

    def admit(self, request: Request) -> Author:
        """Who makes this request, which they may. Raises `ControlRefused`.

        What nothing is called is refused for that reason, to those who may ask anything at all.
        """
        author, right = self.author(request["peer"]), right_of(request)
        needed = right.role if right is not None else Role.OBSERVER
        if author.role >= needed:
            if right is None:
                raise nothing_called(request)
            return author
        kind = "operation" if "operation" in request else "query"
        name = right.name if right is not None else request[kind]
        where = f"{kind} {name}"
        held = f"has the role {Role(author.role)}" if author.role else "has no role in this cluster"
        what = f"this needs the role {needed}; user {author.user} {held}"
        if kind == "operation":
            self.note(author, name, f"refused: {what}")
        raise ControlRefused(what, where, _advice(author.user, needed, self._groups()))

    def role(self, peer: Document) -> Role:
        """What the client may do."""
        return role_of(int(peer["uid"]), group_names(peer, self.names.group_names), self._groups())

    def introduce(self, peer: Document) -> Awaitable[None] | None:
        """What to wait for before the client is judged; None where all is known (P10.9)."""
        looks = self.names.missing(int(peer["uid"]), self.role(peer))
        return self.names.wait(looks) if looks else None

    def permit(self, request: Request, size: int) -> None:
        """Refuse a request before its arguments, of `size` bytes, are decoded. Raises `ControlRefused` (P10.5)."""
        self.admit(request)
        right = right_of(request)
        if size > LONGEST_ARGUMENTS_BYTES and not (right is not None and right.is_long):
            kind = "operation" if "operation" in request else "query"
            text = f"arguments of {size} bytes, where at most {LONGEST_ARGUMENTS_BYTES} are taken"
            raise ControlRefused(text, f"{kind} {request[kind]}", "send what it needs only")

    def note(self, author: Author, operation: str, outcome: str) -> None:
        """Keep what was refused here, and log it, once a minute for each user and operation."""
        self.refused.append(
            {
                "at_ms": author.at_ms, "user": author.user, "uid": author.uid, "role": str(Role(author.role)),
                "node": author.node, "operation": operation, "subject": "", "outcome": outcome,
            }
        )  # fmt: skip
        now_s = time.monotonic()
        key = (author.uid, operation)
        if now_s - self._told.get(key, -_TELL_AGAIN_S) >= _TELL_AGAIN_S:
            self._tell("operation refused", f"{operation} of user {author.user}: {outcome}")
            self._told[key] = now_s
            self._told.move_to_end(key)
            while len(self._told) > _TOLD_USERS:
                self._told.popitem(last=False)


def _advice(user: str, needed: Role, names: Groups) -> str:
    groups = [names.of(role) for role in Role if role >= needed and names.of(role)]
    if not groups:
        return "no group has that role: ask root"
    others = f" (or {' or '.join(groups[1:])})" if groups[1:] else ""
    return f"join the group {groups[0]}{others}: usermod -aG {groups[0]} {user}, then log in again; or ask root"
