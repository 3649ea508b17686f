"""Several nodes of the core in memory, every step under the test's control, to prove the rules of docs/PROTOCOL.md.

Theory of operation. The store is four lists of registers and some journals; time is a number; messages, answers of the
store, subsystems and commands go through one queue, first in, first out. Nothing takes time but what a test holds back:
it may hold, lose, repeat or reorder messages, hold store effects, acknowledgements and commands, and kill, pause and
restart nodes or their daemons. Leases are kept by the very `LeaseKeeper` of the guard, and a deadman that nobody moves
kills its node. Everything is recorded: each effect, and the replica after each committed entry.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar, assert_never

from msgspec import Struct

from muster.core.effects import (
    AppendFrame,
    AskSubsystem,
    CallFenceAgent,
    CancelFenceCall,
    Committed,
    Effect,
    Elected,
    Left,
    LevelRefused,
    Notify,
    Panic,
    Placed,
    ReadJournal,
    ReadStrip,
    Reply,
    Restart,
    RunCommand,
    Send,
    Trace,
    WatchLife,
    WriteCheckpoint,
    WriteClaim,
    WriteMarks,
    WriteView,
)
from muster.core.inputs import (
    Acknowledged,
    CommandFinished,
    FenceAnswered,
    FenceConfirmed,
    Input,
    JournalRead,
    KernelsWord,
    LevelGone,
    LevelRegistered,
    MessageReceived,
    OperationRequested,
    PeerConnected,
    PeerLost,
    StoreDone,
    StoreRefused,
    StripRead,
    SubsystemAnswered,
    Tick,
)
from muster.core.leases.lease import LeaseKeeper, Renewal, next_incarnation
from muster.core.mastership.tenure import newest_journal, restore
from muster.core.node.node import Node
from muster.core.node.setup import Setup
from muster.core.services.explanation import unexplained
from muster.records import registers
from muster.records.access import NOBODY, Author
from muster.records.database import Database, encode_database, initial_database
from muster.records.levels import Barriers, Level, NodeState, TransitionKind
from muster.records.members import Member
from muster.records.messages import Message, decode_message, encode_message
from muster.records.nodes import Cluster, NodeConfig
from muster.records.operations import OperationRequest
from muster.records.registers import (
    Claim,
    Deadman,
    Lease,
    Mark,
    Marks,
    RegisterKind,
    Strip,
    View,
    blank_register,
)
from muster.records.services import CommandState, Service
from muster.records.timing import FAST, Profile
from muster.records.transitions import Transition
from muster.records.versions import HIGHEST, LOWEST, Software

US_PER_MS = 1000
STEPS_LIMIT = 200_000  # of one wait: far beyond what any test takes
Kind = TypeVar("Kind", Lease, Claim, View, Marks)
MessageType = TypeVar("MessageType", bound=Struct)
StoreEffect = WriteClaim | WriteView | WriteMarks | ReadJournal | WriteCheckpoint | AppendFrame

LOCKS = Level(10, "locks")
VOLUMES = Level(20, "volumes")
FILES = Level(30, "files")
TWO_BARRIERS = Level(10, "locks", Barriers(2, 2, 2))


class Envelope(NamedTuple):
    """A message on its way, or held back."""

    sender: int
    to: int
    message: Message


class Happened(NamedTuple):
    """One effect of one node."""

    now_us: int
    node: int
    incarnation: int
    effect: Effect


class Moment(NamedTuple):
    """What a node's replica showed after it had advanced to `at_index`."""

    now_us: int
    node: int
    at_index: int
    members: dict[int, Member]
    transitions: dict[int, Transition]
    services: dict[str, Service]


class Step(NamedTuple):
    """Where a transition was, as committed."""

    node: int
    kind: TransitionKind
    level: int
    barrier: int


class Daemon:
    """One daemon process: the core, what it was not given yet, and its store effects in order."""

    def __init__(self, core: Node) -> None:
        self.core = core
        self.alive = True
        self.inbox: deque[Input] = deque()  # while it is paused
        self.store: deque[StoreEffect] = deque()


class Life:
    """One incarnation of a node: its guard, runner and daemon."""

    def __init__(self, node: int, incarnation: int, keeper: LeaseKeeper) -> None:
        self.node, self.incarnation, self.keeper = node, incarnation, keeper
        self.alive = True
        self.paused = False  # everything that it runs
        self.daemon_paused = False
        self.guard_hangs = False  # in the kernel: it renews nothing, and its deadman ends nothing before it wakes
        self.next_renewal_us = 0
        self.levels: tuple[Level, ...] = ()
        self.daemon: Daemon | None = None
        self.owed: list[Notify] = []  # notifications that nobody has acknowledged yet
        self.running: dict[str, RunCommand] = {}
        self.memory: dict[str, CommandState] = {}  # the runner's, of the highest generation it has seen
        self.asked: set[tuple[int, int]] = set()  # whom its guard watches


class CoreCluster:
    """Nodes 0, 1, ... of one cluster. What a test may set: `profile`, `deadman`, and the conditions below."""

    def __init__(
        self,
        nodes: int = 2,
        profile: Profile = FAST,
        deadman: Deadman = Deadman.PID_NAMESPACE,
        slots: int = 0,
        active_version: int = HIGHEST,
    ) -> None:
        self.restarts = 0  # of daemons that their own node asked for
        self.software: dict[int, Software] = {}  # of nodes that run another release than this one
        self.nodes, self.profile, self.deadman = nodes, profile, deadman
        slots = slots or nodes
        self.now_us = 1_000_000
        configs = tuple(NodeConfig(node, f"n{node}", (f"127.0.0.1:{7000 + node}",), "") for node in range(nodes))
        shared = Cluster("test", "0" * 32, profile.name, "", active_version=active_version)
        blob = encode_database(initial_database(shared, configs))
        self.leases = [_blank(RegisterKind.LEASE, node, Lease) for node in range(slots)]
        self.claims = [_blank(RegisterKind.CLAIM, node, Claim) for node in range(slots)]
        self.views = [_blank(RegisterKind.VIEW, node, View) for node in range(slots)]
        self.marks = [_blank(RegisterKind.MARKS, node, Marks) for node in range(slots)]
        self.journals: dict[tuple[int, int], tuple[Mark, bytes, tuple[bytes, ...]]] = {
            (node, claim.mark.half): (claim.mark, blob, ()) for node, claim in enumerate(self.claims)
        }
        self.lives: dict[int, Life] = {}
        self.cut_links: set[frozenset[int]] = set()
        self.history: list[Happened] = []
        self.moments: list[Moment] = []
        self.held: list[Envelope] = []
        self._queue: deque[tuple[Life, Daemon, Input]] = deque()
        self._requests = 0
        self._replies: dict[str, Reply] = {}
        # conditions that a test may set
        self.shared = False  # each node is a machine of its own: its silence proves nothing
        self.kernel = False  # lease records name whom to ask, and guards ask (P7.13-P7.15)
        self.cannot_ask: set[int] = set()  # nodes in other PID namespaces
        self.silent_kernel = False  # it says nothing: what was killed hangs in its exit
        self.loses: Callable[[Envelope], bool] = lambda _envelope: False
        self.holds: Callable[[Envelope], bool] = lambda _envelope: False
        self.stalled: set[int] = set()  # nodes whose reads of the strip never end
        self.holds_store: Callable[[int, Effect], bool] = lambda _node, _effect: False
        self.acknowledges: Callable[[int, Notify], bool] = lambda _node, _notification: True
        self.objects: Callable[[int, AskSubsystem], str | None] = lambda _node, _question: ""  # None: it is silent
        self.fence_calls: list[tuple[int, CallFenceAgent]] = []  # by whom
        self.agent: Callable[[int, CallFenceAgent], bool | None] = lambda _node, _call: True  # None: it hangs
        self.outcome: Callable[[int, RunCommand], bool | None] = lambda _node, _command: True  # None: it goes on

    # ---- nodes ---------------------------------------------------------------------------------------------------

    def boot(self, *nodes: int, levels: tuple[Level, ...] = ()) -> None:
        """Start new incarnations of these nodes, with these levels registered before they join."""
        for node in nodes:
            assert node not in self.lives, f"n{node} runs already"
            incarnation = next_incarnation(self.leases[node].stamp.incarnation, 7)
            keeper = LeaseKeeper(node, incarnation, self.leases[node], self.profile, self.deadman, bytes(16))
            if self.kernel:
                keeper.life = registers.Life(bytes(16), 1, 1, 100 + node, 1)
            life = self.lives[node] = Life(node, incarnation, keeper)
            life.levels = levels
            self._renew(life)
            self._start_daemon(life)

    def restart_daemon(self, node: int, levels: tuple[Level, ...] | None = None) -> None:
        """The daemon dies and its successor starts, in the same incarnation; the runner and its memory stay."""
        life = self.lives[node]
        self.end_daemon(node)
        if levels is not None:
            life.levels = levels
        life.owed = []  # subsystems register anew, and are notified anew
        self._start_daemon(life)

    def end_daemon(self, node: int) -> None:
        """The daemon dies; `restart_daemon` starts its successor."""
        self._end_daemon(self.lives[node])

    def kill(self, node: int) -> None:
        """A power cut: nothing of the node goes on, and it writes nothing any more."""
        life = self.lives.pop(node)
        life.alive = False
        self._end_daemon(life)
        self._tell_word(node, life.incarnation)

    def _tell_word(self, node: int, incarnation: int) -> None:
        for other in self.lives.values():
            if (node, incarnation) in other.asked and other.node not in self.cannot_ask and not self.silent_kernel:
                self.give(other.node, KernelsWord(node, incarnation, "its init has ended"))

    def _ask_kernel(self, life: Life, asked: WatchLife) -> None:
        life.asked.add((asked.node, asked.incarnation))
        if life.node in self.cannot_ask:
            self.give(life.node, KernelsWord(asked.node, asked.incarnation, "it is elsewhere", given=False))
            return
        there = self.lives.get(asked.node)
        if there is None or there.incarnation != asked.incarnation:
            self._tell_word(asked.node, asked.incarnation)

    def pause(self, node: int) -> None:
        """Stop everything that the node runs; only its deadman goes on."""
        self.lives[node].paused = True

    def resume(self, node: int) -> None:
        """Continue a node, if its deadman has not ended it."""
        if (life := self.lives.get(node)) is not None:
            life.paused = False
            self._resume_daemon(life)

    def hang_guard(self, node: int) -> None:
        """The guard waits in the kernel: its lease runs out, and everything else of the node goes on."""
        self.lives[node].guard_hangs = True

    def wake_guard(self, node: int) -> None:
        """The guard goes on: it stops its node at once, if its deadline is over (P7.4)."""
        life = self.lives[node]
        life.guard_hangs = False
        self._renew(life)

    def pause_daemon(self, node: int) -> None:
        """Stop the daemon; the guard goes on renewing the lease."""
        self.lives[node].daemon_paused = True

    def resume_daemon(self, node: int) -> None:
        """Continue the daemon."""
        self.lives[node].daemon_paused = False
        self._resume_daemon(self.lives[node])

    def cut(self, one: int, other: int) -> None:
        """Break the link between two nodes, in both directions."""
        self.cut_links.add(frozenset((one, other)))
        self._disconnect(one, other)
        self._disconnect(other, one)

    def mend(self) -> None:
        """All links work again."""
        cut, self.cut_links = self.cut_links, set()
        for one, other in (sorted(pair) for pair in cut):
            if one in self.lives and other in self.lives:
                self._connect(self.lives[one], self.lives[other])

    def _start_daemon(self, life: Life) -> None:
        newest = newest_journal(self.strip())
        assert newest is not None
        owner, mark = newest
        kept, blob, frames = self.journals[owner, mark.half]
        assert kept == mark
        software = self.software.get(life.node, Software(LOWEST, HIGHEST))
        setup = Setup(
            life.node, f"n{life.node}", life.incarnation, self.profile, software=software, one_machine=not self.shared
        )  # fmt: skip
        core = Node(setup, restore(blob, frames), self.strip(), tuple(life.memory.values()), self.now_us)
        daemon = life.daemon = Daemon(core)
        for level in life.levels:
            self._carry_out(life, daemon, core.step(LevelRegistered(level), self.now_us))
        self._carry_out(life, daemon, core.start(self.now_us))
        for other in list(self.lives.values()):
            if other is not life and frozenset((life.node, other.node)) not in self.cut_links:
                self._connect(life, other)

    def _end_daemon(self, life: Life) -> None:
        daemon, life.daemon = life.daemon, None
        if daemon is None:
            return
        daemon.alive = False
        for other in list(self.lives.values()):
            if other is not life:
                self._disconnect(other.node, life.node)

    def _resume_daemon(self, life: Life) -> None:
        daemon = life.daemon
        if daemon is not None:
            while daemon.inbox:
                self._queue.append((life, daemon, daemon.inbox.popleft()))

    def _connect(self, one: Life, other: Life) -> None:
        self.give(one.node, PeerConnected(other.node, other.incarnation))
        self.give(other.node, PeerConnected(one.node, one.incarnation))

    def _disconnect(self, node: int, peer: int) -> None:
        if node in self.lives:
            self.give(node, PeerLost(peer, "it closed the connection"))

    # ---- guards --------------------------------------------------------------------------------------------------

    def _renew(self, life: Life) -> None:
        """One cycle of the guard (P7.1): it obeys marks, renews, and moves its deadman."""
        judged = life.keeper.begin(self.now_us, self.leases[life.node], tuple(self.marks))
        if isinstance(judged, Renewal):
            self.leases[life.node] = judged.lease
            assert life.keeper.renewed(judged.lease, self.now_us, self.now_us) is None
            life.next_renewal_us = self.now_us + self.profile.renew_ms * US_PER_MS
        else:
            self._end(life, clean=False, cause=judged.cause)

    def _end(self, life: Life, *, clean: bool, cause: str) -> None:
        """The guard empties the node and writes its tombstone."""
        self.kill(life.node)
        self.leases[life.node] = life.keeper.tombstone(clean, cause)

    # ---- the world goes on ---------------------------------------------------------------------------------------

    def run(self, duration_ms: int) -> None:
        """Let this much time pass."""
        self._go(lambda: False, self.now_us + duration_ms * US_PER_MS)

    def until(self, what: str, holds: Callable[[], object], within_ms: int = 20_000) -> None:
        """Go on until `holds` is true, looking after every single step; fail if it is not in time."""
        if not self._go(holds, self.now_us + within_ms * US_PER_MS):
            traces = "\n".join(f"{at}: n{node}: {text}" for at, node, text in self.traces()[-40:])
            raise AssertionError(f"not within {within_ms} ms: {what}; the last events are\n{traces}")

    def settle(self) -> None:
        """Let everything happen that needs no time."""
        self._go(lambda: not self._queue, self.now_us)

    def give(self, node: int, happened: Input) -> None:
        """An input for a node's daemon, to be taken in its turn."""
        life = self.lives[node]
        if life.daemon is not None:
            self._queue.append((life, life.daemon, happened))

    def _go(self, holds: Callable[[], object], end_us: int) -> bool:
        for _ in range(STEPS_LIMIT):
            if holds():
                return True
            if self._queue:
                self._take(*self._queue.popleft())
                continue
            next_us = max(self._next_us(), self.now_us)
            if next_us > end_us:
                self.now_us = max(self.now_us, end_us)
                return bool(holds())
            self.now_us = next_us
            self._fire()
        raise AssertionError(f"{STEPS_LIMIT} steps and no end")

    def _next_us(self) -> int:
        times = []
        for life in self.lives.values():
            assert life.keeper.deadline_us is not None
            if not life.guard_hangs:
                times.append(life.keeper.deadline_us)
            if not life.paused and not life.guard_hangs:
                times.append(life.next_renewal_us)
            if life.daemon is not None and not life.paused and not life.daemon_paused:
                times.append(max(life.daemon.core.deadline_us, self.now_us + US_PER_MS))
        return min(times, default=1 << 62)

    def _fire(self) -> None:
        for life in list(self.lives.values()):
            assert life.keeper.deadline_us is not None
            if self.now_us >= life.keeper.deadline_us and not life.guard_hangs:
                self.kill(life.node)  # its deadman
                continue
            if not life.paused and not life.guard_hangs and self.now_us >= life.next_renewal_us:
                self._renew(life)
            daemon = life.daemon
            if daemon is not None and life.alive and self.now_us >= daemon.core.deadline_us:
                self._queue.append((life, daemon, Tick()))

    def _take(self, life: Life, daemon: Daemon, happened: Input) -> None:
        if not daemon.alive:
            return
        if life.paused or life.daemon_paused:
            if not isinstance(happened, Tick):
                daemon.inbox.append(happened)
            return
        wanted = daemon.core.step(happened, self.now_us)
        assert not (wrong := daemon.core.invariant()), wrong
        self._carry_out(life, daemon, wanted)
        leading = [node for node in self.masters() if not self.lives[node].guard_hangs]
        assert len(leading) <= 1, f"two masters whose leases advance: {leading}"

    # ---- effects -------------------------------------------------------------------------------------------------

    def _carry_out(self, life: Life, daemon: Daemon, effects: Iterable[Effect]) -> None:
        for effect in effects:
            self.history.append(Happened(self.now_us, life.node, life.incarnation, effect))
            self._carry_one(life, daemon, effect)

    def _carry_one(self, life: Life, daemon: Daemon, effect: Effect) -> None:
        match effect:
            case ReadStrip(read=read):
                answer = StripRead(read, self.strip(), self.now_us, self.now_us)
                self._queue += [(life, daemon, answer)] * (life.node not in self.stalled)
            case WriteClaim() | WriteView() | WriteMarks() | ReadJournal() | WriteCheckpoint() | AppendFrame():
                daemon.store.append(effect)
                self._work_store(life, daemon)
            case Send(to=to, message=message):
                self._post(Envelope(life.node, to, decode_message(encode_message(message))))
            case Notify():
                life.owed.append(effect)
                if self.acknowledges(life.node, effect):
                    self.acknowledge(life.node, effect)
            case RunCommand():
                self._run_command(life, effect)
            case AskSubsystem(level=level, question=question):
                objection = self.objects(life.node, effect)
                if objection is not None:
                    self._queue.append((life, daemon, SubsystemAnswered(question, level, objection)))
            case LevelRefused(number=number):
                life.levels = tuple(level for level in life.levels if level.number != number)
            case Committed(index=index):
                database = daemon.core.database
                self.moments.append(
                    Moment(
                        self.now_us, life.node, index, dict(database.members), dict(database.transitions),
                        dict(database.services),
                    )
                )  # fmt: skip
            case Placed(together=together):
                assert not unexplained(together), "every placement is explained by the rules that made it (SPEC 8.2)"
            case Reply(identity=identity):
                assert identity not in self._replies, f"{identity} was answered twice"
                self._replies[identity] = effect
            case WatchLife() | CallFenceAgent() | CancelFenceCall():
                self._ask_outside(life, daemon, effect)
            case Restart():
                self.restarts += 1
                self.restart_daemon(life.node)
            case Left():
                self._end(life, clean=True, cause="")
            case Panic(cause=cause):
                self._panic(life, cause)
            case Elected() | Trace():
                pass
            case _:
                assert_never(effect)

    def _ask_outside(self, life: Life, daemon: Daemon, effect: WatchLife | CallFenceAgent | CancelFenceCall) -> None:
        if isinstance(effect, WatchLife):
            self._ask_kernel(life, effect)
        elif isinstance(effect, CallFenceAgent):
            self.fence_calls.append((life.node, effect))
            done = self.agent(life.node, effect)
            if done is not None:
                answered = FenceAnswered(effect.call, done, "" if done else "it does not answer")
                self._queue.append((life, daemon, answered))

    def _panic(self, life: Life, cause: str) -> None:
        if life.guard_hangs:
            self.kill(life.node)  # init ends it without the guard, which writes nothing (P7.10)
        else:
            self._end(life, clean=False, cause=cause)

    def _post(self, envelope: Envelope) -> None:
        if self.loses(envelope):
            return
        if self.holds(envelope):
            self.held.append(envelope)
        else:
            self.deliver(envelope)

    def deliver(self, envelope: Envelope) -> None:
        """Hand a message over, now or again; one for a node that is gone is lost."""
        if envelope.to in self.lives:
            self.give(envelope.to, MessageReceived(envelope.sender, envelope.message))

    def release(self, *, reverse: bool = False) -> None:
        """Stop holding messages; deliver those that were held, if wanted in reverse order."""
        self.holds = lambda _envelope: False
        held, self.held = self.held, []
        for envelope in reversed(held) if reverse else held:
            self.deliver(envelope)

    def release_store(self) -> None:
        """Stop holding store effects; carry out those that were held."""
        self.holds_store = lambda _node, _effect: False
        self.release_held_store()

    def release_held_store(self) -> None:
        """Carry out the store effects that `holds_store` does not hold any more."""
        for life in list(self.lives.values()):
            if life.daemon is not None:
                self._work_store(life, life.daemon)

    def _work_store(self, life: Life, daemon: Daemon) -> None:
        while daemon.store and not self.holds_store(life.node, daemon.store[0]):
            self._queue.append((life, daemon, self._store(life.node, daemon.store.popleft())))

    def _store(self, node: int, effect: StoreEffect) -> Input:
        match effect:
            case WriteClaim(claim=claim):
                self.claims[node] = claim
            case WriteView(view=view):
                self.views[node] = view
            case WriteMarks(marks=marks):
                self.marks[node] = marks
            case WriteCheckpoint(mark=mark, checkpoint=checkpoint):
                self.journals[node, mark.half] = (mark, checkpoint, ())
            case AppendFrame(mark=mark, number=number, frame=frame):
                kept, checkpoint, frames = self.journals[node, mark.half]
                assert kept == mark and number <= len(frames)
                self.journals[node, mark.half] = (mark, checkpoint, (*frames[:number], frame))
            case ReadJournal(operation=operation, owner=owner, mark=mark):
                kept, checkpoint, frames = self.journals[owner, mark.half]
                if kept != mark:
                    return StoreRefused(operation, "unreadable", "the half holds another journal")
                return JournalRead(operation, checkpoint, frames)
        return StoreDone(effect.operation)

    def strip(self) -> Strip:
        """All registers as they are now."""
        return Strip(tuple(self.leases), tuple(self.claims), tuple(self.views), tuple(self.marks))

    # ---- subsystems, commands, clients ---------------------------------------------------------------------------

    def acknowledge(self, node: int, notification: Notify) -> None:
        """A subsystem of the node acknowledges."""
        self.lives[node].owed.remove(notification)
        step = Acknowledged(notification.transition, notification.level, notification.barrier)
        self.give(node, step)

    def acknowledge_all(self) -> None:
        """From now on everything is acknowledged, also what was held back."""
        self.acknowledges = lambda _node, _notification: True
        for life in list(self.lives.values()):
            for notification in list(life.owed):
                self.acknowledge(life.node, notification)

    def register(self, node: int, level: Level) -> None:
        """A subsystem registers while the node runs."""
        level = level._replace(registration=self.now_us)
        self.lives[node].levels += (level,)
        self.give(node, LevelRegistered(level))

    def unregister(self, node: int, level: Level, *, departed: bool = False) -> None:
        """A subsystem goes while its node runs on; what it owed, nobody acknowledges (`departed`: it said so)."""
        life = self.lives[node]
        life.levels = tuple(each for each in life.levels if each.number != level.number)
        life.owed = [notification for notification in life.owed if notification.level != level.number]
        self.give(node, LevelGone(level.number, departed))

    def _run_command(self, life: Life, command: RunCommand) -> None:
        known = life.memory.get(command.service)
        if known is not None and command.generation <= known.generation:
            return
        life.memory[command.service] = CommandState(command.service, command.generation, command.action, finished=False)
        life.running[command.service] = command
        succeeded = self.outcome(life.node, command)
        if succeeded is not None:
            self.finish(life.node, command.service, succeeded=succeeded)

    def finish(self, node: int, service: str, *, succeeded: bool = True) -> None:
        """The command of the service that runs on the node ends."""
        life = self.lives[node]
        command = life.running.pop(service)
        detail = "" if succeeded else "exit status 1"
        state = CommandState(service, command.generation, command.action, True, succeeded, detail)
        life.memory[service] = state
        self.give(node, CommandFinished(state))

    def ask(self, node: int, operation: OperationRequest, identity: str = "", author: Author = NOBODY) -> str:
        """A client of the node asks for an operation; the identity of its request."""
        self._requests += 1
        identity = identity or f"request-{self._requests}"
        self._replies.pop(identity, None)  # asked again
        self.give(node, OperationRequested(identity, operation, author))
        return identity

    def reply(self, identity: str) -> Reply | None:
        """What the client was answered."""
        return self._replies.get(identity)

    def do(self, node: int, operation: OperationRequest, identity: str = "", author: Author = NOBODY) -> Reply:
        """Ask, and wait for the answer."""
        identity = self.ask(node, operation, identity, author)
        self.until(f"an answer to {operation}", lambda: self.reply(identity))
        reply = self.reply(identity)
        assert reply is not None
        return reply

    def fence(self, node: int) -> None:
        """Every node learns that a fence agent has stopped the node's present incarnation."""
        incarnation = self.leases[node].stamp.incarnation
        for other in self.lives:
            if other != node:
                self.give(other, FenceConfirmed(node, incarnation, "its power is off"))

    # ---- looking -------------------------------------------------------------------------------------------------

    def core(self, node: int) -> Node:
        """The running core of a node."""
        daemon = self.lives[node].daemon
        assert daemon is not None
        return daemon.core

    def masters(self) -> list[int]:
        """The nodes that act as master now."""
        return [life.node for life in self.lives.values() if life.daemon is not None and life.daemon.core.is_master]

    @property
    def master(self) -> int:
        """The node that acts as master now."""
        (master,) = self.masters()
        return master

    @property
    def database(self) -> Database:
        """The newest replica there is: of the master, or else of the highest index."""
        lives = [life for life in self.lives.values() if life.daemon is not None]
        cores = [(life.daemon.core, life.guard_hangs) for life in lives if life.daemon is not None]
        return max(cores, key=lambda each: (each[0].is_master and not each[1], each[0].database.index))[0].database

    def state(self, node: int) -> NodeState:
        """The node's state in the newest replica."""
        return self.database.member(node).state

    def service(self, name: str = "web") -> Service:
        """The service in the newest replica."""
        return self.database.services[name]

    def transition(self, node: int) -> Transition | None:
        """The node's transition in the newest replica."""
        return next((each for each in self.database.transitions.values() if each.node == node), None)

    def is_at(self, node: int, level: int, kind: TransitionKind | None = None) -> bool:
        """Whether the node's transition (of that kind) is at that level."""
        found = self.transition(node)
        return found is not None and found.level == level and not found.awaits and kind in (None, found.kind)

    def steps(self, node: int) -> list[Step]:
        """Every (level, barrier) that the transitions of a node were at, in the order in which they were committed."""
        found: list[tuple[int, Step]] = []
        for moment in sorted(self.moments, key=lambda moment: moment.at_index):
            for each in moment.transitions.values():
                step = each.identity, Step(node, each.kind, each.level, each.barrier)
                if each.node == node and each.participants and step not in found:
                    found.append(step)
        return [step for _, step in found]

    def is_step(self, node: int, step: tuple[int, int]) -> bool:
        """Whether the node's transition is at this (level, barrier)."""
        found = self.transition(node)
        return found is not None and (found.level, found.barrier) == step

    def levels_of(self, node: int, kind: TransitionKind) -> list[int]:
        """The levels that the node's transitions of this kind took, in their order, one for each barrier."""
        return [step.level for step in self.steps(node) if step.kind is kind]

    def levels_in_record(self, node: int) -> list[int]:
        """The levels of the node that the cluster counts with."""
        return [level.number for level in self.database.member(node).levels]

    def refusals(self, node: int) -> list[str]:
        """Why subsystems of this node were refused."""
        found = [item.effect for item in self.history if item.node == node]
        return [effect.reason for effect in found if isinstance(effect, LevelRefused)]

    def notifications(
        self,
        node: int | None = None,
        of: int | None = None,
        level: int | None = None,
        kind: TransitionKind | None = None,
    ) -> list[Notify]:
        """The notifications given on a node (or all), about a node, at a level, of a kind; in their order."""
        return [
            item.effect
            for item in self.history
            if isinstance(item.effect, Notify)
            and node in (None, item.node)
            and of in (None, item.effect.node)
            and level in (None, item.effect.level)
            and kind in (None, item.effect.kind)
        ]

    def commands(self, node: int | None = None) -> list[tuple[int, str]]:
        """The commands begun, as (node, action), in their order."""
        return [
            (item.node, item.effect.action)
            for item in self.history
            if isinstance(item.effect, RunCommand) and node in (None, item.node)
        ]

    def sent(self, kind: type[MessageType], sender: int | None = None) -> list[MessageType]:
        """The messages of a type that were sent, by one node or by all."""
        found = [
            item.effect.message
            for item in self.history
            if isinstance(item.effect, Send) and sender in (None, item.node)
        ]
        return [message for message in found if isinstance(message, kind)]

    def traces(self, event: str | None = None) -> list[tuple[int, int, str]]:
        """(when, node, text) of the events, or of those called `event`."""
        return [
            (item.now_us, item.node, f"{item.effect.event}: {item.effect.detail}")
            for item in self.history
            if isinstance(item.effect, Trace) and event in (None, item.effect.event)
        ]

    def until_joined(self, *nodes: int) -> None:
        """Go on until these nodes have joined, nothing is left to be done, and all replicas agree."""
        self.until(f"nodes {nodes} joined", lambda: self.is_quiet(*nodes))

    def is_quiet(self, *nodes: int) -> bool:
        """Whether these nodes have joined, no transition is at work, and every running replica is the newest."""
        if not self.masters() or any(life.daemon is None for life in self.lives.values()):
            return False
        database = self.database
        agreed = all(self.core(node).database.index == database.index for node in self.lives)
        joined = all(database.member(node).state is NodeState.JOINED for node in nodes)
        return agreed and joined and not database.transitions


def joined_cluster(nodes: int, levels: tuple[Level, ...] = (), profile: Profile = FAST) -> CoreCluster:
    """A cluster of which all nodes have joined, each with these levels; n0 is the master."""
    cluster = CoreCluster(nodes, profile)
    for node in range(nodes):
        cluster.boot(node, levels=levels)
        cluster.until_joined(node)
    assert cluster.master == 0
    return cluster


def _blank(kind: RegisterKind, node: int, wanted: type[Kind]) -> Kind:
    register = blank_register(kind, node)
    assert isinstance(register, wanted)
    return register
