"""Programs that take part in transitions: their registrations over the control socket (SPEC 3.2, 3.6, 3.11, 3.13).

Theory of operation. A program registers with the streaming request

    {"query": "subsystem", "arguments": {"name": "cache", "level": 60,
        "barriers": {"joining": 1, "leaving": 1, "forced_leaving": 1}, "deadline_ms": 30000,
        "on_hang": "wait" or "evict", "on_loss": "deregister", "fail" or "", "vetoes": false}}

The first line of the answer holds the registration's `token`; each further one is a notification. It acknowledges on
the same connection, `{"operation": "acknowledge", "arguments": {"transition", "barrier"}}`, with as many lines at once
as it has: fetching a notification acknowledges nothing, and the next one comes while it works on the last (SPEC 3.6).
Such a line has no answer: where the connection breaks before it was heard, the notification is repeated.
`{"operation": "deregister_level"}` ends the registration; so does the end of the node's own leave at that level (SPEC
3.11): then the stream ends with its closing line. A program whose connection has ended otherwise has died only if the
kernel says so of its process (P3.16): then the level goes, with an event, or the node fails: with `on_loss` = `fail`,
and always where the level is required or another program stands on it, so that `deregister` is refused there (P3.18).
One that lives is awaited, and may return with its token. A program may register again at once, or another one in its
place: the core tells it nothing of what its predecessor was still counted with for (P3.13).

One that `vetoes` also hears a line with a `question` before each change that P4.5 names, and answers it with
`{"operation": "answer", "arguments": {"question", "objection"}}`; an empty objection is consent.

`"converses": true` in the first line tells the program that it may speak there. The three operations are also taken as
requests of their own on any connection, then with the `token` among the arguments (and an `identity`), and are
answered: so a program does that speaks to a daemon of an earlier release, or whose connection is being resumed.

A registration outlives its daemon: it is written to a file beside the control socket before it counts. The next daemon
of the same incarnation goes on reporting the level, so that no transition passes a program that still works, and
waits for the program to return with `{"query": "subsystem", "arguments": {"token": ...}}` for as long as a daemon has
to be restarted. To the program, a notification that is repeated then is the same one: same transition and barrier.

Bounded: registrations of a node, notifications that a program has not fetched, texts, deadlines.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from muster.core.effects import AskSubsystem, Notify
from muster.core.inputs import (
    Acknowledged,
    AcknowledgedTogether,
    Input,
    LevelGone,
    LevelRegistered,
    SubsystemAnswered,
)
from muster.core.node import insight
from muster.core.node.node import Node
from muster.daemon.levels.conversation import Conversation
from muster.drivers.image.process_tree import parent_of
from muster.drivers.machine.program_process import Noted, Peer, Program, found_again
from muster.records.levels import LOCK_MANAGER_LEVEL, MAXIMUM_LEVEL, Barriers, Level, NodeState, TransitionKind
from muster.records.members import LeaveNode
from muster.records.names import NAME, NAME_RULE, shown
from muster.records.operations import OperationRequest
from muster.records.refusal import ControlRefused
from muster.records.services import DeregisterService, SetStandby, TransferService

MAXIMUM_REGISTRATIONS = 32  # half of the control socket's connections
MAXIMUM_UNFETCHED = 256  # notifications; each node has one transition at a time
MAXIMUM_OBJECTION_CHARACTERS = 300
MAXIMUM_BARRIERS = 64
MAXIMUM_DEADLINE_MS = 24 * 60 * 60 * 1000
FILE_NAME = "subsystems.json"
WHERE = "query subsystem"

Document = dict[str, Any]
Step = tuple[int, int]  # transition, barrier


class BarrierCounts(Struct, frozen=True, forbid_unknown_fields=True):
    """How many barriers a level has for each kind of transition."""

    joining: int = 1
    leaving: int = 1
    forced_leaving: int = 1


class Wanted(Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments of a registration."""

    name: str
    level: int
    barriers: BarrierCounts = BarrierCounts()
    deadline_ms: int = 0
    on_hang: Literal["wait", "evict"] = "wait"
    on_loss: Literal["", "deregister", "fail"] = ""  # nothing: deregister, where that may be (P3.18)
    vetoes: bool = False
    process: int = 0  # its id as the program knows it: it may live in another namespace than the daemon


class Processed(Struct, frozen=True, forbid_unknown_fields=True):
    """Which notification has been processed."""

    transition: int
    barrier: int


class Opinion(Struct, frozen=True, forbid_unknown_fields=True):
    """What is objected to a planned change; nothing for consent."""

    question: str
    objection: str


class Nothing(Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments of a line that takes none."""


class Acknowledges(Struct, frozen=True, forbid_unknown_fields=True, tag_field="operation", tag="acknowledge"):
    """A line of a program: it has processed a notification."""

    arguments: Processed


class Answers(Struct, frozen=True, forbid_unknown_fields=True, tag_field="operation", tag="answer"):
    """A line of a program: it answers a question."""

    arguments: Opinion


class Deregisters(Struct, frozen=True, forbid_unknown_fields=True, tag_field="operation", tag="deregister_level"):
    """A line of a program: it ends its registration."""

    arguments: Nothing = Nothing()


_LINE = msgspec.json.Decoder(Acknowledges | Answers | Deregisters)


class KeptRegistration(Struct, frozen=True):
    """A registration as the next daemon of the same incarnation finds it."""

    token: str
    level: Level
    fails: bool
    pid: int
    processes: tuple[Noted, ...] = ()  # by which the next daemon finds the program again; nothing if it cannot


class KeptFile(Struct, frozen=True):
    """What the file beside the control socket holds."""

    incarnation: int
    registrations: tuple[KeptRegistration, ...]


class Registration:
    """One program, its unfetched notifications and those that it has not acknowledged."""

    def __init__(self, kept: KeptRegistration, program: Program | None = None) -> None:
        self.kept = kept
        self.program = program if program is not None else Program([])
        self.patience: asyncio.TimerHandle | None = None  # while it is awaited
        self.stream = 0  # number of the connection that fetches; an earlier one says nothing any more
        self.attached = False
        self.outstanding: dict[Step, Document] = {}
        self.acknowledged: set[Step] = set()
        self.over = False
        self._refusal: ControlRefused | None = None
        self._unfetched: deque[Document] = deque()
        self._arrived = asyncio.Event()

    @property
    def level(self) -> Level:
        """The level as the core knows it."""
        return self.kept.level

    @property
    def described(self) -> str:
        """For the log."""
        return f"{self.level.name} (level {self.level.number})"

    def attach(self) -> int:
        """A connection begins to fetch, from the first notification that is not acknowledged; its number."""
        self.stream += 1
        self.attached, self._refusal = True, None
        self.await_no_longer()
        self._unfetched = deque(self.outstanding.values())
        self._arrived.set()
        return self.stream

    def offer(self, notification: Document) -> bool:
        """Queue a notification; False if the program has not fetched too many others."""
        if len(self._unfetched) >= MAXIMUM_UNFETCHED:
            return False
        self.outstanding[notification["transition"], notification["barrier"]] = notification
        self._unfetched.append(notification)
        self._arrived.set()
        return True

    def question(self, question: Document) -> None:
        """Queue a question; one that is not fetched in time is answered by silence."""
        if len(self._unfetched) < MAXIMUM_UNFETCHED:
            self._unfetched.append(question)
            self._arrived.set()

    def end(self, refusal: ControlRefused | None = None) -> None:
        """Nothing more is notified; the stream ends, with an error if there is one."""
        self.over, self._refusal = True, refusal
        self.await_no_longer()
        self.program.close()
        self._arrived.set()

    def cut(self, refusal: ControlRefused) -> None:
        """End the connection with an error; the program may return with another one."""
        self.stream, self.attached, self._refusal = self.stream + 1, False, refusal
        self._arrived.set()

    def await_no_longer(self) -> None:
        """It is there, or over."""
        self.program.unwatch()
        if self.patience is not None:
            self.patience.cancel()
            self.patience = None

    async def fetch(self, stream: int) -> list[Document]:
        """The next notifications, all that are there; none at the end. Raises `ControlRefused` if it was refused."""
        while True:
            if self.over or stream != self.stream:
                if self._refusal is not None:
                    raise self._refusal
                return []
            if self._unfetched:
                found = list(self._unfetched)
                self._unfetched.clear()
                return found
            self._arrived.clear()
            await self._arrived.wait()

    def forget(self, current: set[tuple[int, int, int]]) -> None:
        """Keep only what belongs to the present steps: (transition, level, barrier)."""
        number = self.level.number
        self.outstanding = {s: d for s, d in self.outstanding.items() if (s[0], number, s[1]) in current}
        self.acknowledged = {s for s in self.acknowledged if (s[0], number, s[1]) in current}


class Registrations:
    """The programs registered on this node. `feed`, `note` and `panic` are the daemon's."""

    def __init__(
        self,
        node: Node,
        path: Path,
        feed: Callable[[Input], None],
        note: Callable[[str, str], None],
        panic: Callable[[str], None],
    ) -> None:
        self._node, self._path = node, path
        self._feed, self._note, self._panic = feed, note, panic
        self._by_level: dict[int, Registration] = {}
        self._vector: tuple[Mapping[int, NodeState] | None, dict[str, str]] = (None, {})  # as last spelled
        self._refused: dict[int, str] = {}  # what the core said while a registration was given to it
        self._stopped = False

    # ---- the daemon's side ----------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Take over what the last daemon of this incarnation has left, and wait for its programs to return."""
        for kept in self._remembered():
            self._by_level[kept.level.number] = Registration(kept, found_again(kept.processes))
            self._feed(LevelRegistered(kept.level))
        for registration in list(self._by_level.values()):  # the end of one is judged by those above it (P3.18)
            self._await(registration, "it has not come back since the daemon was restarted", after_restart=True)

    def stop(self) -> None:
        """The daemon ends: its programs' connections end with it, and that says nothing about them."""
        self._stopped = True
        for registration in self._by_level.values():
            registration.await_no_longer()
            registration.program.close()

    def notify(self, effect: Notify) -> None:
        """The core notifies the subsystem of a level (SPEC 3.5)."""
        registration = self._by_level.get(effect.level)
        if registration is None:
            return  # it is gone, and the core hears of it in the same step
        offered = registration.offer(
            {
                "transition": effect.transition,
                "level": effect.level,
                "barrier": effect.barrier,
                "node": self._node.database.name_of(effect.node),
                "incarnation": effect.incarnation,
                "kind": str(effect.kind),
                "vector": self._spelled(effect.vector),
                "epoch": effect.epoch,
                "entry": effect.entry,
                "members": {str(node): known for node, known in effect.members.items()},
                "registration": effect.registration,
                "alone": effect.alone,
            }
        )
        if not offered:  # not within the core's step
            cause = f"it has not fetched {MAXIMUM_UNFETCHED} notifications"
            asyncio.get_running_loop().call_soon(self._cut, registration, cause)

    def ask(self, effect: AskSubsystem) -> None:
        """The core asks the subsystem of a level whether it objects to a planned change (P4.5)."""
        registration, planned = self._by_level.get(effect.level), _planned(effect.operation)
        if registration is not None and planned is not None:
            change, node, service = planned
            registration.question({"question": effect.question, "change": change, "node": node, "service": service})

    def answer(self, arguments: Document) -> Document:
        """A program says whether it objects: in words, or nothing for consent."""
        where = "operation answer"
        values = _checked(arguments, {"token": str, "question": str, "objection": str}, where)
        self._object(self._with_token(values["token"], where), Opinion(values["question"], values["objection"]))
        return {"answered": True}

    def refused(self, number: int, reason: str) -> None:
        """The core gives a level up, or has not taken it (SPEC 3.2)."""
        self._refused[number] = reason
        registration = self._by_level.pop(number, None)
        if registration is None:
            return
        self._remember_if_possible()
        self._note("subsystem refused", reason)
        registration.end(_refusal(reason))

    def replica_advanced(self) -> None:
        """Forget what is over; end the registrations that the node's own leave has completed (SPEC 3.11)."""
        database, me = self._node.database, self._node.me
        current = {(t.identity, t.level, t.barrier) for t in database.transitions.values()}
        own = database.member(me)
        mine = own.incarnation == self._node.incarnation
        leaves = mine and own.state in (NodeState.LEAVING, NodeState.INACTIVE)
        counted = {level.identity for level in own.levels}
        for registration in list(self._by_level.values()):
            registration.forget(current)
            if leaves and registration.level.identity not in counted:  # or it came too late to be counted (P3.9)
                self._drop(registration)
                self._note("subsystem deregistered", f"{registration.described}: its node leaves")

    # ---- the programs' side ---------------------------------------------------------------------------------------

    def converse(self, arguments: Document, peer: Peer) -> Conversation:
        """Register, or return with a token; then the notifications, while the program acknowledges them."""
        holder: list[Registration] = []  # once there is one, before anything of the program is heard
        return Conversation(self._stream(arguments, peer, holder), lambda lines: self._hear(holder[0], lines))

    async def _stream(
        self, arguments: Document, peer: Peer, holder: list[Registration]
    ) -> AsyncGenerator[list[Document]]:
        """Register, or return with a token; then the notifications. Raises `ControlRefused`."""
        if arguments.keys() == {"token"}:
            registration = self._returned(self._with_token(arguments["token"]), peer)
        else:
            registration = self._register(_wanted(arguments), peer)
        holder.append(registration)
        number = registration.attach()
        try:
            node = self._node
            first = {
                "token": registration.kept.token,
                "node": node.database.name_of(node.me),
                "incarnation": node.incarnation,
                "level": registration.level.number,
                "registration": registration.level.registration,
                "converses": True,
            }
            yield [first]
            while notifications := await registration.fetch(number):
                yield notifications
        finally:
            if number == registration.stream:
                registration.attached = False
                self._await(registration, "its connection has ended")

    def acknowledge(self, arguments: Document) -> Document:
        """A program has processed a notification; `acknowledged` is false for one that is not at work (any more)."""
        where = "operation acknowledge"
        values = _checked(arguments, {"token": str, "transition": int, "barrier": int}, where)
        registration = self._with_token(values["token"], where)
        step = values["transition"], values["barrier"]
        self._processed(registration, [step])
        return {"acknowledged": step in registration.acknowledged}

    def deregister(self, arguments: Document) -> Document:
        """A program ends its registration; `deregistered` is false if there is none (any more)."""
        token = _checked(arguments, {"token": str}, "operation deregister_level")["token"]
        found = next((each for each in self._by_level.values() if each.kept.token == token), None)
        if found is None:
            return {"deregistered": False}
        self._deregister(found)
        return {"deregistered": True}

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _hear(self, registration: Registration, lines: list[bytes]) -> None:
        """What a program says on its own connection; the core is given all acknowledgements of it together."""
        steps: list[Step] = []
        try:
            for line in lines:
                match _LINE.decode(line):
                    case Acknowledges(arguments=processed):
                        steps.append((processed.transition, processed.barrier))
                    case Answers(arguments=opinion):
                        self._object(registration, opinion)
                    case Deregisters():
                        self._processed(registration, steps)
                        if self._is_registered(registration):
                            self._deregister(registration)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            next_step = "send the operations acknowledge, answer and deregister_level as the documentation has them"
            raise ControlRefused(str(error), f"connection of {registration.described}", next_step) from error
        finally:
            self._processed(registration, steps)

    def _is_registered(self, registration: Registration) -> bool:
        return self._by_level.get(registration.level.number) is registration

    def _processed(self, registration: Registration, steps: list[Step]) -> None:
        """Give the core what of `steps` is at work; the rest is stale, or was acknowledged before."""
        fresh = []
        for step in steps:
            if registration.outstanding.pop(step, None) is not None and self._is_registered(registration):
                registration.acknowledged.add(step)
                fresh.append(Acknowledged(step[0], registration.level.number, step[1]))
        if fresh:
            self._feed(fresh[0] if len(fresh) == 1 else AcknowledgedTogether(tuple(fresh)))

    def _object(self, registration: Registration, opinion: Opinion) -> None:
        objection = " ".join(opinion.objection.split())[:MAXIMUM_OBJECTION_CHARACTERS]
        if not self._is_registered(registration):
            return
        if objection:
            objection = f"{registration.described} on {self._node.setup.name} objects: {objection}"
            self._note("objection", objection)
        self._feed(SubsystemAnswered(opinion.question, registration.level.number, objection))

    def _deregister(self, registration: Registration) -> None:
        self._drop(registration)
        self._note("subsystem deregistered", f"{registration.described}: as it asked")
        self._feed(LevelGone(registration.level.number, departed=True))

    def _register(self, wanted: Wanted, peer: Peer) -> Registration:
        program = peer.program(wanted.process)
        try:
            return self._admit(wanted, program, peer)
        except BaseException:
            program.close()
            raise

    def _admit(self, wanted: Wanted, program: Program, peer: Peer) -> Registration:
        pid = wanted.process or peer.pid
        barriers = Barriers(wanted.barriers.joining, wanted.barriers.leaving, wanted.barriers.forced_leaving)
        evicts = wanted.on_hang == "evict"
        number = time.clock_gettime_ns(time.CLOCK_BOOTTIME)  # grows over all daemons of one incarnation (P3.13)
        level = Level(wanted.level, wanted.name, barriers, wanted.deadline_ms, evicts, wanted.vetoes, number)
        holder = self._by_level.get(level.number)
        if holder is not None and not holder.attached and holder.program.is_of(program):
            self._deregister(holder)  # it has given its last registration up itself
        self._refuse_what_is_reserved(level, peer)
        self._refuse_if_impossible(level)
        self._refuse_if_it_cannot_go(wanted)
        kept = KeptRegistration(os.urandom(16).hex(), level, wanted.on_loss == "fail", pid, program.noted)
        registration = self._by_level[level.number] = Registration(kept, program)
        try:
            self._remember()  # before it counts: a daemon that restarts must know of it
        except OSError as error:
            del self._by_level[level.number]
            what = f"the registration cannot be kept: {error.strerror or error}"
            raise ControlRefused(what, str(self._path), "see to it that the node's home can be written") from error
        self._refused.pop(level.number, None)
        self._note("subsystem registered", f"{registration.described}, process {pid}")
        self._feed(LevelRegistered(level))
        if level.number in self._refused:
            raise _refusal(self._refused[level.number])
        return registration

    def _refuse_what_is_reserved(self, level: Level, peer: Peer) -> None:
        """While there are lockspaces, the lock manager's level is that of the node's own process (P12.15)."""
        own = LOCK_MANAGER_LEVEL
        if level.number != own.number or not self._node.database.cluster.has_locks:
            return
        if parent_of(parent_of(peer.pid)) != os.getppid():  # a child of the runner, which is init's as this daemon is
            what = f"level {own.number} is the {own.name}'s, which is part of Muster while there are lockspaces"
            raise ControlRefused(what, WHERE, "take another level")

    def _refuse_if_impossible(self, level: Level) -> None:
        own = self._node.database.member(self._node.me)
        holder = self._by_level.get(level.number)
        if holder is not None:
            what = f"level {level.number} is taken on this node, by {holder.level.name} (process {holder.kept.pid})"
            if not holder.attached:
                what += ", which has lost its connection and may live"
                raise ControlRefused(what, WHERE, "end that process, or let it come back, and register again")
            raise ControlRefused(what, WHERE, "take another level, or deregister that one first")
        ways_out = (NodeState.LEAVING, NodeState.FORCED_LEAVING, NodeState.INACTIVE)
        if own.incarnation == self._node.incarnation and own.state in ways_out:
            what = f"{self._node.setup.name} is leaving the cluster"
            raise ControlRefused(what, WHERE, "register again when it has booted")
        if len(self._by_level) >= MAXIMUM_REGISTRATIONS:
            what = f"{MAXIMUM_REGISTRATIONS} subsystems are registered on this node already"
            raise ControlRefused(what, WHERE, "deregister some of them first")

    def _refuse_if_it_cannot_go(self, wanted: Wanted) -> None:
        """Its level could not go alone if it died: then it must not be told that it would (P3.18)."""
        why = insight.why_not_deregistered(self._node, wanted.level) if wanted.on_loss == "deregister" else ""
        if why:
            what = f"on_loss of level {wanted.level} cannot be deregister: {why}, so with its program its node fails"
            raise ControlRefused(what, WHERE, "register with on_loss fail, or without on_loss")

    def _with_token(self, token: object, where: str = WHERE) -> Registration:
        for registration in self._by_level.values():
            if registration.kept.token == token:
                return registration
        what = f"there is no registration with token {shown(token)} on this node"
        raise ControlRefused(what, where, "it was deregistered, or the node has restarted: register again")

    def _returned(self, registration: Registration, peer: Peer) -> Registration:
        """A program is back with its token: from now on it is the one that has connected."""
        registration.program.close()
        registration.program = peer.program()
        registration.kept = msgspec.structs.replace(registration.kept, processes=registration.program.noted)
        self._remember_if_possible()
        return registration

    def _cut(self, registration: Registration, cause: str) -> None:
        """A program reads no more: its connection ends, and it is awaited as if it had lost it."""
        if self._is_registered(registration) and registration.attached:
            registration.cut(ControlRefused(cause, WHERE, "come back with the token, or deregister"))
            self._await(registration, cause)

    def _await(self, registration: Registration, cause: str, *, after_restart: bool = False) -> None:
        """A program is not connected: it has ended if the kernel says so, and may come back until then (P3.16)."""
        if self._stopped or not self._is_registered(registration):
            return
        if registration.program.has_ended():
            self._ended(registration, cause)
            return
        loop = asyncio.get_running_loop()
        restart_ms = self._node.setup.profile.restart_ms
        deadline_ms = registration.level.deadline_ms or restart_ms
        bound_ms = max(deadline_ms, restart_ms) if after_restart else deadline_ms
        registration.await_no_longer()
        registration.patience = loop.call_later(bound_ms / 1000, self._overdue, registration, cause, bound_ms)
        registration.program.watch(loop, lambda: self._ended(registration, cause))

    def _ended(self, registration: Registration, cause: str) -> None:
        """The kernel says that a program has ended: its policy decides (SPEC 3.2)."""
        if self._stopped or not self._is_registered(registration):
            return
        self._drop(registration)
        process = f"process {registration.kept.pid}"
        if registration.kept.fails:
            self._panic(f"subsystem {registration.level.name} of level {registration.level.number} has died: {cause}")
            return
        self._note("subsystem lost", f"{registration.described}, {process}, has ended")
        self._feed(LevelGone(registration.level.number))

    def _overdue(self, registration: Registration, cause: str, bound_ms: int) -> None:
        """A program is not back in time, and nothing says that it has ended: its level's policy decides (P3.16)."""
        registration.patience = None
        if self._stopped or not self._is_registered(registration):
            return
        name = f"{registration.level.name} of level {registration.level.number}"
        if registration.kept.fails:
            self._panic(f"subsystem {name} is lost: {cause}, and it is not back after {bound_ms} ms")
            return
        lives = "its process lives" if registration.program.is_known else "the kernel cannot say whether it lives"
        what = f"{registration.described}, process {registration.kept.pid}: {cause}, and {lives}"
        self._note("subsystem hung", f"{what}; its level stays, and waits for it: end the process, or let it come back")

    def _drop(self, registration: Registration) -> None:
        del self._by_level[registration.level.number]
        registration.end()
        self._remember_if_possible()

    def _spelled(self, vector: Mapping[int, NodeState]) -> dict[str, str]:
        """The state of each node, in words. All that is told of one level at once shares one vector."""
        if self._vector[0] is not vector:
            nodes = sorted(self._node.database.nodes.items())
            words = {config.name: str(vector.get(node, NodeState.INACTIVE)) for node, config in nodes}
            self._vector = (vector, words)
        return self._vector[1]

    def _remember(self) -> None:
        """Replace the file; it need not survive a crash of the machine, only one of this process."""
        kept = tuple(registration.kept for registration in self._by_level.values())
        fresh = self._path.with_name(self._path.name + ".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(KeptFile(self._node.incarnation, kept)))
        fresh.replace(self._path)

    def _remember_if_possible(self) -> None:
        """As `_remember` where a registration ends: what stays in the file is given up by the next daemon."""
        try:
            self._remember()
        except OSError as error:
            self._note("subsystems not kept", f"{self._path}: {error.strerror or error}; make room for it")

    def _remembered(self) -> tuple[KeptRegistration, ...]:
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=KeptFile)
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.DecodeError) as error:
            self._note("subsystems forgotten", f"{self._path} cannot be read: {error}; they must register again")
            return ()
        return found.registrations if found.incarnation == self._node.incarnation else ()


def _planned(operation: OperationRequest) -> tuple[str, str, str] | None:
    """What is planned, with which node and which service; None for what no program is asked about."""
    match operation:
        case LeaveNode(node=node):
            return "leave", node, ""
        case SetStandby(node=node):
            return "standby", node, ""
        case TransferService(service=service, target=target):
            return "transfer", target, service
        case DeregisterService(service=service):
            return "deregister", "", service
        case _:
            return None


def _refusal(reason: str) -> ControlRefused:
    return ControlRefused(reason, WHERE, "correct the registration and register again")


def _wanted(arguments: Document) -> Wanted:
    """Checked arguments of a registration. Raises `ControlRefused` (SPEC 7.8)."""
    try:
        wanted = msgspec.convert(arguments, Wanted)
    except msgspec.ValidationError as error:
        fields = ", ".join(Wanted.__struct_fields__)
        raise ControlRefused(str(error), WHERE, f"send {fields}; or only the token of a registration") from error
    problem = _problem_of(wanted)
    if problem:
        raise ControlRefused(problem, WHERE, "correct it and register again")
    return wanted


def _problem_of(wanted: Wanted) -> str:
    if not NAME.fullmatch(wanted.name):
        return f"name is {shown(wanted.name)}: a name has {NAME_RULE}"
    if not 0 <= wanted.level <= MAXIMUM_LEVEL:
        return f"level is {shown(wanted.level)}: levels are 1 to {MAXIMUM_LEVEL}"
    for kind in TransitionKind:
        count = getattr(wanted.barriers, kind.name.lower())
        if not 1 <= count <= MAXIMUM_BARRIERS:
            return f"barriers for {kind} are {shown(count)}: allowed are 1 to {MAXIMUM_BARRIERS}"
    if not 0 <= wanted.deadline_ms <= MAXIMUM_DEADLINE_MS:
        return f"deadline_ms is {shown(wanted.deadline_ms)}: allowed are 0 (none) to {MAXIMUM_DEADLINE_MS}"
    if wanted.on_hang == "evict" and wanted.deadline_ms == 0:
        return "on_hang is evict, but there is no deadline: without one nothing is ever hung"
    return ""


def _checked(arguments: Document, types: dict[str, type], where: str) -> Document:
    """Exactly these arguments, of these types. Raises `ControlRefused`."""
    if arguments.keys() != types.keys() or any(type(arguments[key]) is not wanted for key, wanted in types.items()):
        listed = ", ".join(f"{key} ({'text' if wanted is str else 'a number'})" for key, wanted in types.items())
        raise ControlRefused("the arguments are not as they must be", where, f"send exactly {listed}")
    return arguments
