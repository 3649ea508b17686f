"""The lockspaces of the nodes' kernels, driven by the same rounds as the lock manager beside it (P12.30-P12.36).

Theory of operation. A lockspace of the kernel is stopped, given its members and started, on every node that is in it,
and never otherwise than this: all its members are stopped before any of them is started, and all are started with the
same members. Two things lead there.

A *round* (P12.11) stops every lockspace whose members do not agree, or are not all there: each node tells all others
what its kernel has, before it says that it has stopped; from these words all compute the same. So whatever was under
way when a node died is ended by the round, and the dead are out of every lockspace when it is resumed. That happens
only after proof, for it is the round of a forced leave.

Between rounds one node, the *coordinator*, lets nodes into a lockspace and out of it, one after the other: it has the
members stop it, and when all have, start it with the new ones. It remembers nothing that the next round would need.

What the kernel is to do is a list of commands, carried out in order; this node has done its part of a barrier only when
it has carried out all of them.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from functools import partial
from typing import NamedTuple
from zlib import crc32

from muster.core.locks.messages import (
    KernelFact,
    KernelGo,
    KernelHalt,
    KernelHalted,
    KernelSaid,
    KernelStarted,
    KernelWish,
    Message,
)

Seat = tuple[int, str]  # node, and its life as text, for messages hold no numbers of that size (P12.22)
_IDENTITIES = 0x7FFFFFFF
NOBODY = -1


class Standing(IntEnum):
    """What a lockspace of this kernel is, by what the kernel waits for."""

    ENTERING = 1  # who made it waits to be let in
    MEMBER = 2
    ENDING = 3  # who had it has given it up, and waits to be let go
    ABANDONED = 4  # as ENDING, and it was never let in
    REFUSED = 5  # it waits for nothing any more; the coordinator does not know yet


_IN = frozenset({Standing.MEMBER, Standing.ENDING})  # the kernel has been told to start it


class Space:
    """One lockspace of this node's kernel."""

    __slots__ = ("identity", "is_stopped", "members", "standing")

    def __init__(self) -> None:
        self.standing = Standing.ENTERING
        self.identity = 0
        self.members: frozenset[Seat] = frozenset()  # with which it was started last
        self.is_stopped = False


class Stop(NamedTuple):
    """The kernel is to stop a lockspace: nothing is granted in it until it is started."""

    name: str


class Start(NamedTuple):
    """The kernel is to start a lockspace with these nodes; `enters`: and to let in who waits for that."""

    name: str
    identity: int
    nodes: tuple[int, ...]
    enters: bool


class End(NamedTuple):
    """The kernel is to let go of a lockspace: this node is in it no more."""

    name: str


class Refuse(NamedTuple):
    """Who waits to be let into a lockspace is to be told that it is not."""

    name: str


class Reach(NamedTuple):
    """The nodes that the kernel may speak with: each with its incarnation."""

    seats: tuple[Seat, ...]


Command = Stop | Start | End | Refuse | Reach


class _Change:
    """A lockspace that a node enters or leaves, as the coordinator has it in hand."""

    __slots__ = ("awaited", "enters", "is_going", "name", "seat", "turn")

    def __init__(self, name: str, seat: Seat, *, enters: bool) -> None:
        self.name, self.seat, self.enters = name, seat, enters
        self.turn = 0  # names what was asked last
        self.is_going = False  # all have stopped it, and are told to start it
        self.awaited: set[int] = set()


class KernelSpaces:
    """Those of one incarnation of one node. `send` is the lock manager's, to this node, too."""

    def __init__(self, node: int, incarnation: int, send: Callable[[int, Message], None]) -> None:
        self.me: Seat = (node, str(incarnation))
        self.is_on = False  # switched on in the cluster: nobody is let into a lockspace else
        self.spaces: dict[str, Space] = {}
        self.epoch = 0  # the newest round
        self.is_settled = False  # the round is resumed here
        self._is_over = False  # this process ends: nobody is let in any more
        self.has_emptied = False  # this node has said that nothing more comes of it, as coordinator neither
        self._send = send
        self.coordinator = NOBODY
        self._told: dict[Seat, KernelSaid] = {}
        self._after: dict[str, tuple[int, frozenset[Seat]]] = {}  # identity and members by the words of all
        self._affected: set[str] = set()
        self._early: list[tuple[Seat, Message]] = []  # of the round that this node has not resumed yet
        self._commands: list[tuple[int, Command]] = []
        self._given = self._done = 0  # commands
        self._answers: list[tuple[int, Message]] = []  # to the coordinator, when the kernel has come so far
        self._wishes: list[tuple[Seat, KernelWish]] = []
        self._change: _Change | None = None
        self._turn = 0

    # ---- the kernel

    def take(self) -> list[tuple[int, Command]]:
        """Commands for the kernel, each with its number; they are to be carried out in order."""
        commands, self._commands = self._commands, []
        return commands

    def done(self, number: int) -> None:
        """The kernel has carried out this command, and all before it."""
        self._done = number
        while self._answers and self._answers[0][0] <= number:
            self._send(self.coordinator, self._answers.pop(0)[1])

    @property
    def has_done_all(self) -> bool:
        """Whether the kernel has carried out everything."""
        return self._done == self._given

    def entering(self, name: str, *, is_leaving: bool) -> None:
        """Somebody on this node has made a lockspace and waits to be let in (P12.31)."""
        if not self.is_on or self._is_over or is_leaving:
            self._command(Refuse(name))
            return
        self.spaces[name] = Space()
        self._wish(name)

    def ending(self, name: str) -> None:
        """Who had a lockspace on this node waits to be let go, or waits for nothing any more."""
        space = self.spaces.get(name)
        if space is None or space.standing is Standing.REFUSED:
            self._command(End(name))
            return
        space.standing = Standing.ENDING if space.standing is Standing.MEMBER else Standing.ABANDONED
        self._wish(name)

    def give_up(self) -> None:
        """This process is to end: whoever still waits to be let in is told that it is not (P12.34).

        The coordinator may be letting it in at this moment, so the lockspace stays on this node's list until that one
        has heard of it, and has taken it out.
        """
        self._is_over = True
        for name, space in list(self.spaces.items()):
            if space.standing is Standing.ENTERING:
                self._refuse(name)
                self._wish(name)
            if not self.epoch:  # this node was in no round, so nobody knows of it
                self._end(name)

    def _refuse(self, name: str) -> None:
        self.spaces[name].standing = Standing.REFUSED
        self._command(Refuse(name))

    def _command(self, command: Command) -> None:
        self._given += 1
        self._commands.append((self._given, command))

    def _start(self, name: str, identity: int, members: frozenset[Seat], *, enters: bool) -> None:
        space = self.spaces[name]
        space.identity, space.members, space.is_stopped = identity, members, False
        self._command(Start(name, identity, tuple(sorted(node for node, _ in members)), enters))

    def _stop(self, name: str) -> None:
        self.spaces[name].is_stopped = True
        self._command(Stop(name))

    def _end(self, name: str) -> None:
        space = self.spaces.pop(name)
        if space.standing is not Standing.REFUSED:  # else it is gone, or is another one that is refused, too
            self._command(End(name))

    # ---- the end of a leave (P12.35, P12.36)

    @property
    def is_done_with(self) -> bool:
        """Whether nothing more comes of this node: no lockspace, no answer that it owes, no duty (P12.35, P12.36)."""
        has_duty = self._change is not None or self._wishes or any(members for _, members in self._after.values())
        return not self.spaces and not self._answers and not (self.coordinator == self.me[0] and has_duty)

    def emptied(self, node: int) -> None:
        """Nothing more comes of a node that leaves. If it was the coordinator, nobody is in a lockspace (P12.36)."""
        if node != self.coordinator or not self.is_settled:
            return
        for name, space in list(self.spaces.items()):
            assert space.standing not in _IN, f"{name}: the coordinator has gone, and this node is in it"
            if space.standing is Standing.ENTERING:
                self._refuse(name)
            self._end(name)

    # ---- rounds (P12.32)

    def begin(self, epoch: int) -> None:
        """A round begins: what was under way is over, whoever had it in hand."""
        self.epoch, self.is_settled = epoch, False
        self._change, self._wishes, self._answers = None, [], []
        self._after, self._affected = {}, set()
        self._early = [each for each in self._early if getattr(each[1], "epoch", 0) >= epoch]

    @property
    def takes_part(self) -> bool:
        """Whether there is anything to tell others of; where nobody has the kernel's locks, nothing is."""
        return self.is_on or bool(self.spaces)

    def say(self) -> KernelSaid:
        """What this node's kernel has, for all others: before it says that it has stopped."""
        facts = tuple(
            KernelFact(name, space.identity, tuple(sorted(space.members)), space.standing, space.is_stopped)
            for name, space in sorted(self.spaces.items())
            if space.standing in _IN
        )
        said = KernelSaid(self.epoch, facts)
        self._told[self.me] = said
        return said

    def heard(self, node: int, incarnation: int, message: Message) -> None:
        """Something that the kernel's lockspaces of another node, or this one, have to say."""
        self._hear((node, str(incarnation)), message)

    def _hear(self, seat: Seat, message: Message) -> None:
        if isinstance(message, KernelSaid):
            self._told[seat] = message  # perhaps of a round that this node is still to be told of
            return
        epoch = getattr(message, "epoch", 0)
        if epoch == self.epoch and self.is_settled:
            self._take(seat, message)
        elif epoch >= self.epoch:
            self._early.append((seat, message))

    def settle(self, roster: Mapping[int, int], coordinator: int) -> None:
        """All have stopped, so all have said what they have: stop whatever is not the same everywhere.

        `roster`: the incarnation of each node of the level; `coordinator`: the same for all, by what they have said.
        """
        self.coordinator = coordinator
        views: dict[str, list[KernelFact]] = {}
        members: dict[str, set[Seat]] = {}
        for seat in _seats(roster):
            said = self._told.get(seat)
            for fact in said.facts if said is not None and said.epoch == self.epoch else ():
                views.setdefault(fact.name, []).append(fact)
                if fact.standing == Standing.MEMBER:
                    members.setdefault(fact.name, set()).add(seat)
        for name, facts in views.items():
            left = frozenset(members.get(name, ()))
            self._after[name] = (facts[0].identity, left)
            if any(fact.is_stopped or fact.standing != Standing.MEMBER or set(fact.members) != left for fact in facts):
                self._affected.add(name)
        for name in sorted(self._affected & self.spaces.keys()):
            if self._was_told(name) and not self.spaces[name].is_stopped:
                self._stop(name)

    def _was_told(self, name: str) -> bool:
        """Whether this node has told others that its kernel is in this lockspace."""
        said = self._told.get(self.me)
        return said is not None and said.epoch == self.epoch and any(fact.name == name for fact in said.facts)

    def resume(self, roster: Mapping[int, int], *, is_alone: bool) -> None:
        """All are ready: the dead are proven dead, and whatever was stopped is started with whom is left.

        `is_alone`: the coordinator has resumed already, and has said that nothing more comes of it (P12.36).
        """
        if self.takes_part:
            self._command(Reach(tuple(sorted(_seats(roster)))))
        for name in sorted(self._affected & self.spaces.keys()):
            if not self._was_told(name):
                continue
            identity, members = self._after[name]
            if self.me in members:
                self._start(name, identity, members, enters=False)
            else:
                self._end(name)  # it was given up before all stopped
        self._told = {seat: said for seat, said in self._told.items() if said.epoch > self.epoch}
        self.is_settled = True
        self._after = {name: each for name, each in self._after.items() if each[1]}
        for name in list(self.spaces):
            if name in self.spaces:  # one wish may have been granted at once
                self._wish(name)
        if is_alone:
            self.emptied(self.coordinator)
        early, self._early = self._early, []
        for seat, message in early:
            self._hear(seat, message)

    # ---- in and out, between rounds (P12.31)

    def _wish(self, name: str) -> None:
        space = self.spaces[name]
        if self.is_settled and space.standing is not Standing.MEMBER:
            self._send(self.coordinator, KernelWish(self.epoch, name, space.standing is Standing.ENTERING))

    def _take(self, seat: Seat, message: Message) -> None:
        match message:
            case KernelWish() if self.has_emptied:
                pass  # who wishes is still to hear that, and helps itself (P12.36)
            case KernelWish():
                self._wishes.append((seat, message))
                self._next_change()
            case KernelHalt(_, turn, name):
                self._halt(turn, name)
            case KernelGo():
                self._go(message)
            case KernelHalted(_, turn) | KernelStarted(_, turn):
                self._answered(seat[0], turn)

    def _next_change(self) -> None:
        while self._change is None and self._wishes:
            seat, wish = self._wishes.pop(0)
            members = self._members(wish.name)
            if wish.enters and seat in members:
                continue
            change = self._change = _Change(wish.name, seat, enters=wish.enters)
            if members and (wish.enters or seat in members):
                self._ask(members, partial(KernelHalt, self.epoch, name=wish.name))
            else:
                self._let_go(change)

    def _members(self, name: str) -> frozenset[Seat]:
        return self._after[name][1] if name in self._after else frozenset()

    def _ask(self, seats: Iterable[Seat], message: Callable[[int], Message]) -> None:
        """Ask these nodes, and await an answer of each."""
        change = self._change
        assert change is not None
        self._turn += 1
        change.turn, change.awaited = self._turn, {node for node, _ in seats}
        for node in sorted(change.awaited):
            self._send(node, message(change.turn))

    def _let_go(self, change: _Change) -> None:
        """All members have stopped it: they and who enters start it with the same members."""
        before, seat = self._members(change.name), change.seat
        members = before | {seat} if change.enters else before - {seat}
        identity = self._after[change.name][0] if before else self._identity(change.name)
        self._after[change.name] = (identity, members)
        change.is_going = True
        asked = members | {seat} if members != before else {seat}
        told, name = tuple(sorted(members)), change.name
        self._ask(asked, lambda turn: KernelGo(self.epoch, turn, name, identity, told, seat[0]))

    def _identity(self, name: str) -> int:
        """A number that no other lockspace of the cluster has, the same on all nodes."""
        taken = {identity for identity, members in self._after.values() if members}
        identity = crc32(name.encode()) & _IDENTITIES
        while identity in taken or not identity:
            identity = (identity + 1) & _IDENTITIES
        return identity

    def _answered(self, node: int, turn: int) -> None:
        change = self._change
        if change is None or change.turn != turn:
            return
        change.awaited.discard(node)
        if change.awaited:
            return
        if not change.is_going:
            self._let_go(change)
        else:
            self._change = None
            self._next_change()

    # ---- what the coordinator asks of this node; it answers when the kernel has done it

    def _halt(self, turn: int, name: str) -> None:
        if self.spaces[name].standing in _IN:
            self._stop(name)
        self._answer(KernelHalted(self.epoch, turn))

    def _go(self, go: KernelGo) -> None:
        space = self.spaces[go.name]
        members = frozenset(go.members)
        if self.me not in members:
            self._end(go.name)
        elif go.seat != self.me[0]:
            if space.standing in _IN:
                self._start(go.name, go.identity, members, enters=False)
        elif space.standing is Standing.ENTERING:
            space.standing = Standing.MEMBER
            self._start(go.name, go.identity, members, enters=True)
        self._answer(KernelStarted(self.epoch, go.turn))

    def _answer(self, message: Message) -> None:
        self._answers.append((self._given, message))
        self.done(self._done)


def _seats(roster: Mapping[int, int]) -> list[Seat]:
    return [(node, str(incarnation)) for node, incarnation in roster.items()]
