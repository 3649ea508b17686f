"""What is locked, by whom, since when: any node answers for all; and breaking a lock (P12.21).

Each node knows the locks of its own clients, and of what it masters the value block, the last token and the queues. A
page is the first so many resources after a name, in the order of names: every node gives its first ones, and the first
of all together are the page. So an answer is bounded by the page, however many locks there are.
"""

import asyncio
import contextlib
import heapq
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec

from muster.client.errors import ClientError
from muster.core.locks.messages import owner_of
from muster.core.locks.modes import NONE, Mode
from muster.core.locks.names import key_of
from muster.core.locks.resource import Lock
from muster.daemon.locks.codec import Answer, Question
from muster.daemon.locks.host import Host
from muster.daemon.locks.peers import Peers
from muster.daemon.locks.requests import Break, Broken, Show, WantedLocks
from muster.daemon.locks.session import LockSession

ASK_S = 2.0  # until who has not answered is named
MAXIMUM_QUESTIONS = 64  # of this node's clients, under way
MAXIMUM_ON_RESOURCE = 200  # locks of one resource and node, in an answer
SHOW, BREAK = "show", "break"

Document = dict[str, Any]


class Showing:
    """Answers `show` and `break`, with the other nodes' help. `names` gives the nodes' names by their numbers."""

    def __init__(
        self,
        host: Host,
        peers: Peers,
        node: int,
        names: Callable[[], dict[int, str]],
        tell: Callable[[str], None],
        record: Callable[[str, str, str], Awaitable[None]],
    ) -> None:
        """`record(space, name, by)` has the cluster record a break without proof."""
        self._host, self._peers, self._node, self._names, self._tell = host, peers, node, names, tell
        self._record = record
        peers.asked, peers.answered = self.asked, self.answered
        self._loop = asyncio.get_running_loop()
        self._questions: dict[int, tuple[set[int], dict[int, Document], asyncio.Event]] = {}
        self._number = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def deal_with(self, session: LockSession, request: Show | Break) -> None:
        """One request of a client; it is answered later."""
        if len(self._questions) >= MAXIMUM_QUESTIONS:
            session.say(("refused", request.ref, f"{MAXIMUM_QUESTIONS} such questions are asked already: ask again"))
            return
        task = self._loop.create_task(self._deal_with(session, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deal_with(self, session: LockSession, request: Show | Break) -> None:
        try:
            await (self._show(session, request) if isinstance(request, Show) else self._break(session, request))
        except (KeyError, TypeError, AttributeError) as error:  # another node's answer is of another release
            session.say(("refused", request.ref, f"what a node has answered cannot be read: {error!r}"))

    async def _show(self, session: LockSession, request: Show) -> None:
        wanted = request.wanted
        answers, silent = await self._ask(SHOW, msgspec.structs.asdict(wanted))
        session.say(("answer", request.ref, {**merged(answers, wanted.limit, self._names()), "unanswered": silent}))

    async def _break(self, session: LockSession, request: Break) -> None:
        broken = request.broken
        if broken.confirmed:
            try:
                await self._record(broken.space, broken.name, session.user)
            except (OSError, ClientError) as error:
                session.say(("refused", request.ref, f"it cannot be recorded who says so, so nothing is done: {error}"))
                return
        arguments: dict[str, str | int] = {
            "space": broken.space, "name": broken.name, "confirmed": int(broken.confirmed), "by": session.user,
        }  # fmt: skip
        answers, silent = await self._ask(BREAK, arguments)
        asked = [f"{self._names().get(node, node)}: {each}" for node in answers for each in answers[node]["holders"]]
        session.say(("answer", request.ref, {"holders": asked, "unanswered": silent}))

    async def _ask(self, what: str, arguments: dict[str, str | int]) -> tuple[dict[int, Document], list[str]]:
        """What each node that answers says; and the names of those that have not answered."""
        self._number += 1
        number = self._number
        others = {node for node in self._host.manager.recovery.roster if node != self._node}
        missing, done = set(others), asyncio.Event()
        answers: dict[int, Document] = {}
        self._questions[number] = missing, answers, done
        try:
            for node in others:
                if not self._peers.say(node, Question(number, what, arguments)):
                    missing.discard(node)
            answers[self._node] = self.answer(what, arguments)
            if missing:
                await asyncio.wait_for(done.wait(), ASK_S)
        except TimeoutError:
            pass  # the answer names who is missing
        finally:
            del self._questions[number]
        names = self._names()
        return answers, [names.get(node, str(node)) for node in sorted(others - answers.keys())]

    def asked(self, node: int, question: Question) -> None:
        """Another node asks."""
        document = msgspec.json.encode(self.answer(question.what, question.arguments))
        self._peers.say(node, Answer(question.number, document))

    def answered(self, node: int, answer: Answer) -> None:
        """Another node answers."""
        if answer.number not in self._questions:
            return
        missing, answers, done = self._questions[answer.number]
        missing.discard(node)
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            document = msgspec.json.decode(answer.document)
            if isinstance(document, dict) and document:
                answers[node] = document
        if not missing:
            done.set()

    # ---- what this node knows

    def answer(self, what: str, arguments: dict[str, str | int]) -> Document:
        """This node's part; nothing where it is asked what it does not know."""
        try:
            if what == SHOW:
                return self._shown(msgspec.convert(arguments, WantedLocks))
            if what == BREAK:
                by = str(arguments.pop("by", ""))
                arguments["confirmed"] = bool(arguments.get("confirmed"))
                return self._broken(msgspec.convert(arguments, Broken), by)
        except msgspec.ValidationError:
            pass  # of another release
        return {}

    def _shown(self, wanted: WantedLocks) -> Document:
        tables = self._host.manager.tables
        keys: Iterable[str]
        if wanted.name:
            key = key_of(wanted.space, wanted.name)
            keys = [key] if key in tables.resources or key in tables.uses else []
        else:
            keys = self._page(
                wanted.after, key_of(wanted.space, wanted.prefix) if wanted.space else "", wanted.limit + 1
            )
        return {"resources": {key: self._of_resource(key) for key in keys if self._is_used(key)}}

    def _page(self, after: str, start: str, count: int) -> list[str]:
        """The first so many resources after a name that have a lock, in the order of names."""
        tables = self._host.manager.tables
        found: list[str] = []
        ahead = [key for table in (tables.resources, tables.uses) for key in table if key > after]
        if start:
            ahead = [key for key in ahead if key.startswith(start)]
        while len(found) < count:
            some = heapq.nsmallest(count, ahead)
            if not some:
                break
            found += [key for key in some if self._is_used(key)]
            last = some[-1]
            ahead = [key for key in ahead if key > last]
        return found[:count]

    def _is_used(self, key: str) -> bool:
        tables = self._host.manager.tables
        resource, use = tables.resources.get(key), tables.uses.get(key)
        return bool((resource is not None and resource.locks) or (use is not None and (use.locks or use.unsent)))

    def _of_resource(self, key: str) -> Document:
        tables = self._host.manager.tables
        resource, use = tables.resources.get(key), tables.uses.get(key)
        found: Document = {}
        own: list[Lock] = []
        if resource is not None:
            own = [lock for lock in resource.locks.values() if owner_of(lock.id) == self._node]
            queue = [lock.id for lock in resource.queued()]
            found["mastered"] = {
                "value": resource.value.hex(), "valid": resource.valid, "token": list(resource.token),
                "queue": queue[:MAXIMUM_ON_RESOURCE], "frozen": resource.frozen, "locks": len(resource.locks),
            }  # fmt: skip
        elif use is not None:
            own = [*use.locks.values(), *use.unsent]
        found["locks"] = [self._of_lock(lock) for lock in own[:MAXIMUM_ON_RESOURCE]]
        return found

    def _of_lock(self, lock: Lock) -> Document:
        holder = self._host.holders.get(lock.client)
        since_s = self._host.since_s.get(lock.id)
        return {
            "lock": lock.id,
            "mode": None if lock.mode == NONE else Mode(lock.mode).name,
            "wants": None if lock.wanted == NONE else Mode(lock.wanted).name,
            "token": list(lock.token),
            "for_s": None if since_s is None else round(self._loop.time() - since_s, 3),
            "holder": holder.name if holder is not None else "",
            "process": holder.process if holder is not None else 0,
            "user": holder.uid if holder is not None else -1,
            "connected": holder is not None and holder.talker is not None,
        }

    def _broken(self, broken: Broken, by: str) -> Document:
        """End the holders of this node's clients; by the administrator's word they are taken for dead at once."""
        key = key_of(broken.space, broken.name)
        clients = [
            client
            for client, locks in list(self._host.manager.tables.clients.items())
            if any(lock.key == key and lock.mode != NONE for lock in locks.values())
        ]
        told = []
        for client in clients:
            told.append(self._host.described(client))
            how = "whose holder is dead by that word" if broken.confirmed else "whose holder is to end"
            self._tell(f"user {by} breaks the lock {key}, {how}: {told[-1]}")
            self._host.end(client, f"user {by} breaks the lock {key}", at_once=broken.confirmed)
            if broken.confirmed:
                self._host.confirmed_dead(client)
        return {"holders": told}


def merged(answers: dict[int, Document], limit: int, names: dict[int, str]) -> Document:
    """One page of what all nodes have said."""
    keys = sorted({key for answer in answers.values() for key in answer["resources"]})
    page: list[Document] = []
    for key in keys[:limit]:
        space, _, name = key.partition(":")
        found: Document = {"space": space, "name": name, "master": None, "holders": [], "waiters": []}
        order: dict[int, int] = {}
        for node, answer in answers.items():
            part = answer["resources"].get(key)
            if part is None:
                continue
            if "mastered" in part:
                found["master"] = names.get(node, str(node))
                found |= {each: part["mastered"][each] for each in ("value", "valid", "token", "frozen")}
                order = {lock: place for place, lock in enumerate(part["mastered"]["queue"])}
            for lock in part["locks"]:
                told = {**lock, "node": names.get(node, str(node))}
                found["holders"] += [told] if lock["mode"] is not None else []
                found["waiters"] += [told] if lock["wants"] is not None else []
        found["waiters"].sort(key=lambda each: order.get(each["lock"], len(order)))
        page.append(found)
    return {"locks": page, "more": len(keys) > limit, "after": keys[limit - 1] if len(keys) > limit else ""}
