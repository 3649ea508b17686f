"""The asyncio shell around one `Node`: carries effects out, turns what happens into inputs, decides nothing.

Order is kept as the core is owed it (`core/effects.py`): effects of one step begin in their order; store effects go
through one queue, one at a time; reads of the strip run beside them. The clock is CLOCK_BOOTTIME (SPEC 7.1).
"""

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import assert_never

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
    CommandFinished,
    Input,
    JournalRead,
    KernelsWord,
    KeysHeld,
    MessageReceived,
    OperationRequested,
    PeerConnected,
    PeerLost,
    PerformanceMeasured,
    StoreDone,
    StoreRefused,
    StripRead,
    StripUnread,
    Tick,
)
from muster.core.leases.diagnosis import Diagnosis
from muster.core.needs.machine import NOTHING, Told
from muster.core.node import insight
from muster.core.node.node import Node
from muster.daemon.events.event_manager import EventManagerShell
from muster.daemon.history.flight_recorder import FlightRecorder
from muster.daemon.history.gathering import Gathering
from muster.daemon.history.happenings import FILE_NAME as HAPPENINGS
from muster.daemon.history.happenings import Happenings
from muster.daemon.history.observations import Observations
from muster.daemon.history.placement_record import PlacementRecord
from muster.daemon.history.transition_history import TransitionHistory
from muster.daemon.history.why import Why
from muster.daemon.levels.programs import FILE_NAME, Registrations
from muster.daemon.metrics.measures import Measures
from muster.daemon.shell.cleanups import Cleanups
from muster.daemon.shell.decision_lock import DecisionLockClient
from muster.daemon.shell.fence_calls import FenceCalls
from muster.daemon.shell.guard_channel import GuardChannel
from muster.daemon.shell.home_memory import HomeMemory
from muster.daemon.shell.last_stops import LastStops
from muster.daemon.shell.leaving import Leaving, keep_extending, longest_stop_ms, time_needed_ms
from muster.daemon.shell.lock_service import LockService
from muster.daemon.shell.places_awaited import PlacesHere
from muster.daemon.shell.stimuli import described
from muster.daemon.trust.authority_keys import AuthorityKeys
from muster.daemon.trust.enrolment import Enrolments
from muster.daemon.trust.renewal import Certification
from muster.daemon.trust.trust import NodeCredentials, Reason
from muster.drivers.image.deadman import read_boot_id
from muster.drivers.interconnect.mesh import Interconnect
from muster.drivers.machine.performance import PerformanceMeter
from muster.drivers.runner_client import RunnerClient
from muster.drivers.store.engine import Store, StoreOutcome
from muster.drivers.store.failures import ForeignWrite, JournalFull, JournalImage, JournalUnreadable, StoreFailed
from muster.records.access import ITSELF, NOBODY, Author
from muster.records.levels import NodeState
from muster.records.messages import Message
from muster.records.nodes import Cluster
from muster.records.operations import OperationRequest
from muster.records.profiles import profile_with
from muster.records.registers import Strip
from muster.records.services import CommandState
from muster.records.timing import PROFILES, InconsistentProfile
from muster.records.versions import WATCHDOGS

US_PER_S = 1_000_000
MEASUREMENT_S = 5.0  # between two measurements of how busy this machine is
FIRST_MEASUREMENT_S = 1.0  # until the first one, which needs two readings
LAST_WORDS_S = 0.2  # for frames under way when this node has left

StoreEffect = WriteClaim | WriteView | WriteMarks | ReadJournal | WriteCheckpoint | AppendFrame


def boottime_us() -> int:
    """Microseconds since boot, through suspend."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


class Daemon:
    """Drives one node until it leaves or panics."""

    def __init__(
        self, node: Node, store: Store, guard: GuardChannel, recorder: FlightRecorder, home: Path,
        observations: Observations | None = None, took_over: bool = False,
    ) -> None:  # fmt: skip
        """`observations`: what the network lab's checkers are given; nothing, outside of it.

        `took_over`: an earlier daemon of this incarnation has had commands run.
        """
        self.node, self.recorder, self.measures = node, recorder, Measures()
        self._observations = observations
        self.subsystems = Registrations(node, home / FILE_NAME, self.feed, self.note, self._panic)
        self.locks = LockService(node, home, self.note)
        self.decision_lock = DecisionLockClient(node, home, self.locks.is_on, self.feed, self.changes)
        self.history = TransitionHistory(node, recorder.transitions, self._send, boottime_us)
        self._placements = PlacementRecord()
        self.events = EventManagerShell(node, self.operate, self.note, boottime_us, home)
        self.places = PlacesHere(self.feed, self.events.waiting, self.events.service_of)
        self.credentials = NodeCredentials(node.me, home, self.note)
        self.keys = AuthorityKeys(home, self._send, self.note, self.tell_of_change)
        self.certification = Certification(
            node, self.keys, self.operate, self.changes, self.note, lambda held: self.feed(KeysHeld(held))
        )
        self.enrolments = Enrolments(node, self.keys, self.operate, self.note)
        self.gathering = Gathering(node, self._known_here, self._send)
        self.why = Why(node, self._placements, self.gathering, boottime_us)
        self.cleanups = Cleanups(home, node.incarnation, read_boot_id(), self.on_finished, self.note)
        self.fence_calls = FenceCalls(home, boottime_us, self.feed)
        self._store, self._guard = store, guard
        self._told_profile: tuple[str, tuple[tuple[str, int], ...]] | None = None
        self.home, self.store_path, self.started_us = home, str(getattr(store, "path", "")), boottime_us()
        self._interconnect: Interconnect | None = None
        self._runner: RunnerClient | None = None
        self._store_queue: deque[StoreEffect] = deque()  # the first is at work
        self._replies: dict[str, asyncio.Future[Reply]] = {}
        self._changed: set[asyncio.Event] = set()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_us = 0  # when it is due
        self._stopped = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._stimuli = itertools.count(1)
        self.last_conditions: dict[int, tuple[int, Diagnosis]] = {}  # of a node whose death was just proven, before
        self.memory: HomeMemory | None = None  # what its home remembers of the store
        self.lacking = ""  # processes of the node that have ended for good
        self.happenings = Happenings(self.events.kept(home / HAPPENINGS))
        self.needs: Callable[[], Told] = lambda: NOTHING  # what needs a person (P10.12)
        self._told_to_end = False
        self._took_over = took_over
        self._last_stops: LastStops | None = None  # of a node that ends without a master
        self.ended = asyncio.Event()
        self.on_input: Callable[[], None] = lambda: (
            None
        )  # after each input: a turn may hold many, and each takes its time
        self.on_tick: Callable[[], None] = lambda: None  # after each tick: what may be looked at now and then
        self.restarts = False  # it has ended to be started anew: the guard is to go on

    def start(self, interconnect: Interconnect, runner: RunnerClient) -> None:
        """Begin: the node's first effects, its timer, the store's queue."""
        self._interconnect, self._runner = interconnect, runner
        self.recorder.hold(self._loop.call_soon)
        if self._observations is not None:
            self._observations.began(boottime_us(), self.node.database)
        self.spawn(self._measure_performance())
        self.spawn(self.certification.run())
        self.fence_calls.start(runner)
        self._carry_out(self.node.start(boottime_us()))
        self.feed(KeysHeld(self.keys.held(self.node.database.cluster)))  # before its first report
        self.subsystems.restore()
        self.locks.start(runner)
        self.spawn(self.decision_lock.run())
        self.events.start(runner)
        self._rearm()

    async def stop(self) -> None:
        """End the tasks of this shell; what was begun in the store ends by itself, and nobody hears of it."""
        self._stopped = True
        self.recorder.hold(None)
        self.subsystems.stop()
        self.events.stop()
        self.happenings.close()
        self.cleanups.close()
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- what happens ---------------------------------------------------------------------------------------------

    def feed(self, happened: Input) -> None:
        """Give the node an input and carry out what follows.

        Raises `AssertionError` where that fails, also where the system refuses an effect that no driver has an answer
        for: what the node believes to have done would not be so. The loop's handler is told here, for on its way up
        this may pass for a fault of the connection that the input came by (P10.6).
        """
        number = next(self._stimuli)
        outer, self.recorder.stimulus = self.recorder.stimulus, cache(lambda: f"{number} {described(happened)}")
        if self._observations is not None:
            self._observations.took(boottime_us(), happened)
        try:
            self._carry_out(self.node.step(happened, boottime_us()))
        except Exception as error:
            broken = AssertionError(f"what follows from {type(happened).__name__} cannot be done: {error!r}")
            broken.__cause__ = error
            self._loop.call_exception_handler({"message": "the node cannot go on", "exception": broken})
            raise broken from error
        finally:
            self.recorder.stimulus = outer
        self._rearm()
        self.on_input()

    def on_message(self, sender: int, message: Message) -> None:
        """A frame from a peer."""
        self.measures.frames["received"] += 1
        if not any(other.takes(sender, message) for other in (self.history, self.keys, self.gathering)):
            self.feed(MessageReceived(sender, message))

    def on_connected(self, node: int, incarnation: int) -> None:
        """A connection with a peer is up."""
        self.feed(PeerConnected(node, incarnation))

    def on_lost(self, node: int, cause: str) -> None:
        """A connection with a peer is gone."""
        self.feed(PeerLost(node, cause))

    def on_trouble(self, text: str) -> None:
        """Something on the interconnect that people should know."""
        self.note("interconnect trouble", text)

    def on_distrust(self) -> None:
        """A connection was refused for what one of the two knows: the store may hold a newer record (P1.1)."""
        self._look_into_store(Reason.DISTRUST)

    def on_unreachable(self) -> None:
        """Nobody is where a node should be: unless a master is heard, the store may say where it is now (P1.8)."""
        node = self.node
        if not node.is_master and insight.master(node) not in node.links.connected:
            self._look_into_store(Reason.UNREACHABLE)

    def _look_into_store(self, reason: Reason) -> None:
        if self._interconnect is not None and self.credentials.may_look_again(reason):
            work = self.credentials.look_again(self.store_path, lambda: self.node.database, self._interconnect)
            self.spawn(work)

    def on_finished(self, command: CommandState) -> None:
        """The runner reports the end of a command."""
        if self.fence_calls.ended(command):
            return
        if command.action == "act":
            self.events.action_ended(command)
            return
        if self._last_stops is not None:  # what the cluster has ordered is over
            self._last_stops.ended(command)
            return
        self.measures.command_ended(boottime_us(), command)
        self.cleanups.ended((command,))
        self.feed(CommandFinished(command))

    def on_word(self, node: int, incarnation: int, text: str, given: bool) -> None:
        """The guard has asked the kernel about an incarnation (P7.15)."""
        self.feed(KernelsWord(node, incarnation, text, given))

    def on_lacking(self, names: str) -> None:
        """Processes of this node have ended that nobody can replace (P7.19): shown until the node boots again."""
        if names != self.lacking:
            self.lacking = names
            self.note("processes lost", f"{names}: ended, with its standby; leave and boot this node to have it again")

    def on_term(self, age_ms: int) -> None:
        """The guard was asked to end this node: leave gracefully, or at once if it is no member (P4.10, P4.11).

        `age_ms`: for how long it has been asked. It tells each daemon that begins meanwhile.
        """
        if self._told_to_end:
            return
        self._told_to_end = True
        own = self.node.database.member(self.node.me)
        is_member = own.incarnation == self.node.incarnation and own.state is not NodeState.INACTIVE
        if not is_member and not self._took_over:
            self.note("left", "asked to end while no member")
            self._guard.leave()
            return
        identity = f"term-{self.node.incarnation}-{boottime_us()}"
        leaving = Leaving(
            self.node.setup.name, identity, self.operate, self.note, self._end_alone, is_outside=self._is_outside
        )
        self.spawn(leaving.run(told_s=age_ms / 1000))
        self.spawn(keep_extending(self._time_needed_ms, longest_stop_ms() - age_ms))

    def _is_outside(self) -> bool:
        return (
            self.node.replica.confirmed and self.node.database.member(self.node.me).incarnation != self.node.incarnation
        )

    def _time_needed_ms(self) -> int:
        left = self._last_stops.left if self._last_stops is not None else None
        return time_needed_ms(self.node.database, self.node.me, left)

    async def _end_alone(self) -> None:
        """Stop all that runs here without the cluster, then have the guard end the node (P4.12)."""
        assert self._runner is not None
        node = self.node
        self._last_stops = LastStops(self._runner, node.database, node.me, node.incarnation, self.note)
        await self._last_stops.run()
        self._guard.leave()

    async def operate(
        self, identity: str, operation: OperationRequest, timeout_s: float, author: Author = NOBODY
    ) -> Reply | None:
        """Carry an operation out; None if no master answered in time (the same identity may be asked again)."""
        future = self._replies.get(identity)
        if future is None:
            future = self._replies[identity] = self._loop.create_future()
            self.feed(OperationRequested(identity, operation, author if author != NOBODY else self._itself()))
        try:
            return await asyncio.wait_for(asyncio.shield(future), timeout_s)
        except TimeoutError:
            return None
        finally:
            self._replies.pop(identity, None)

    def _itself(self) -> Author:
        return Author(user=ITSELF, node=self.node.setup.name, at_ms=time.time_ns() // 1_000_000)

    @contextlib.contextmanager
    def changes(self) -> Iterator[asyncio.Event]:
        """An event that is set whenever the replica has changed."""
        event = asyncio.Event()
        self._changed.add(event)
        try:
            yield event
        finally:
            self._changed.discard(event)

    def service_counts(self) -> Mapping[tuple[str, str], int]:
        """How often something happened to each service that is defined, since this daemon began."""
        self.happenings.forget(self.node.database.services)
        return self.happenings.counts

    def note(self, event: str, detail: str) -> None:
        """Record an event of this node."""
        self.recorder.note(boottime_us(), event, detail, self.node.replica.accepted, self.node.database.index)

    def paths(self, node: int) -> list[dict[str, object]]:
        """The paths to a peer, each with its state."""
        return self._interconnect.paths(node) if self._interconnect is not None else []

    def acknowledged(self, node: int) -> bool | None:
        """Whether the kernel of `node` acknowledges what is sent there; None where no connection is open."""
        return self._interconnect.acknowledged(node) if self._interconnect is not None else None

    def barred(self) -> dict[int, str]:
        """The configured nodes that this one and they themselves cannot connect with, and why."""
        return self._interconnect.barred if self._interconnect is not None else {}

    async def _known_here(self, question: str, subject: str) -> dict[str, object]:
        """What this node knows by itself, for whoever gathers it from all."""
        match question:
            case "why":
                return self.why.known(subject)
            case "history":
                return self.happenings.answer(subject)
            case "lock_channel":
                return self.locks.known_here()
        return await self.events.answer(question, subject)

    def _send(self, node: int, message: Message) -> None:
        assert self._interconnect is not None
        sent = self._interconnect.send(node, message)
        self.measures.frames["sent" if sent else "dropped"] += 1

    # ---- carrying out ---------------------------------------------------------------------------------------------

    def _carry_out(self, effects: list[Effect]) -> None:
        assert self._runner is not None
        if self._observations is not None:
            self._observations.decided(boottime_us(), self.node, effects)
        for effect in effects:
            match effect:
                case Send(to=to, message=message):
                    self._send(to, message)
                case ReadStrip():
                    self._read_strip(effect, boottime_us())
                case WriteClaim() | WriteView() | WriteMarks() | ReadJournal() | WriteCheckpoint() | AppendFrame():
                    self._give_to_store(effect)
                case RunCommand() | CallFenceAgent() | CancelFenceCall():
                    self._run(effect, self._runner)
                case Trace():
                    now_us = boottime_us()
                    self.recorder.trace(now_us, effect, self.node.replica.accepted, self.node.database.index)
                    self.measures.traced(now_us, effect)
                case Committed(index=index, happened=happened):
                    self.happenings.add(index, happened)
                    self.measures.entries += 1
                    self._membership_may_have_changed()
                case Reply(identity=identity):
                    future = self._replies.get(identity)
                    if future is not None and not future.done():
                        future.set_result(effect)
                case Left() | Restart():
                    self.spawn(self._leave() if isinstance(effect, Left) else self._restart())
                case Panic() | WatchLife():
                    self._tell_guard(effect)
                case AskSubsystem():
                    self.subsystems.ask(effect)
                case Notify():
                    self.subsystems.notify(effect)
                case Placed(index=index, together=together):
                    self._placements.add(boottime_us(), self.node.replica.accepted, index, together)
                case LevelRefused(number=number, reason=reason):
                    self.subsystems.refused(number, reason)
                case Elected():
                    self.measures.elections += 1
                    self.subsystems.replica_advanced()  # an adoption commits what it adopts
                    self.events.replica_advanced()
                case _:
                    assert_never(effect)

    def _run(self, command: RunCommand | CallFenceAgent | CancelFenceCall, runner: RunnerClient) -> None:
        if not isinstance(command, RunCommand):
            self.fence_calls.carry_out(command)
            return
        self.measures.command_given(boottime_us(), command)
        if self.cleanups.concerns(command):
            self.spawn(self.cleanups.prepare(command, runner.run))
        else:
            runner.run(command)

    def _tell_guard(self, effect: Panic | WatchLife) -> None:
        if isinstance(effect, Panic):
            self._panic(effect.cause)
        else:
            self._guard.watch(effect.node, effect.incarnation, effect.boot_id, effect.life)

    def _panic(self, cause: str) -> None:
        if not self.ended.is_set():
            self.note("panic", cause)
            self._guard.panic(cause)
            self.ended.set()

    def _membership_may_have_changed(self) -> None:
        assert self._interconnect is not None
        own = self.node.database.member(self.node.me)
        is_mine = self.node.replica.confirmed and own.incarnation == self.node.incarnation
        self.cleanups.member_is(joining=is_mine and own.state in (NodeState.JOINING, NodeState.JOINED))
        active = self.node.database.cluster.active_version
        if self._interconnect.active_version != active:
            self._guard.version(active)
        self._interconnect.active_version = active
        self._tell_profile(self.node.database.cluster)
        self.credentials.follow(self.node.database, self._interconnect)
        self.subsystems.replica_advanced()
        self.locks.follow()
        self.events.replica_advanced()
        self.tell_of_change()

    def _tell_profile(self, cluster: Cluster) -> None:
        """The guard goes over to another profile's lease and watchdog at once (P7.35)."""
        chosen = cluster.profile, cluster.timers
        if chosen != self._told_profile and cluster.active_version >= WATCHDOGS:
            self._told_profile = chosen
            with contextlib.suppress(KeyError, InconsistentProfile):  # of a later release: its times stay as they are
                self._guard.profile(profile_with(PROFILES[cluster.profile], cluster.timers))

    def tell_of_change(self) -> None:
        """Wake all who look at what `changes` gave them."""
        for event in self._changed:
            event.set()

    async def _leave(self) -> None:
        await asyncio.sleep(LAST_WORDS_S if len(self.node.links.connected) else 0)
        self._guard.leave()
        self.ended.set()

    async def _restart(self) -> None:
        """End this process; init starts the daemon that is installed now (P10.3)."""
        await asyncio.sleep(LAST_WORDS_S)
        self.restarts = True
        self.ended.set()

    def _read_strip(self, effect: ReadStrip, started_us: int) -> None:
        def answer(outcome: StoreOutcome) -> None:
            if self._stopped:
                return
            now_us = boottime_us()
            failed = not isinstance(outcome, Strip)
            self.measures.store_answered("read strip", now_us - started_us, failed=failed)
            if isinstance(outcome, Strip):
                self.feed(StripRead(effect.read, outcome, started_us, now_us))
            else:
                self.feed(StripUnread(effect.read, str(outcome)))

        self._store.begin(effect, answer)

    async def _measure_performance(self) -> None:
        meter = PerformanceMeter(lambda: boottime_us() / US_PER_S)
        pause_s = FIRST_MEASUREMENT_S
        while not self.ended.is_set():
            measured = meter.measure()
            if measured is not None:
                self.feed(PerformanceMeasured(measured))
                pause_s = MEASUREMENT_S
            await asyncio.sleep(pause_s)

    def _give_to_store(self, effect: StoreEffect) -> None:
        """Let it begin when those before it are done."""
        self._store_queue.append(effect)
        if len(self._store_queue) == 1:
            self._begin_store_effect()

    def _begin_store_effect(self) -> None:
        effect, started_us = self._store_queue[0], boottime_us()
        self._store.begin(effect, lambda outcome: self._store_answered(effect, outcome, started_us))

    def _store_answered(self, effect: StoreEffect, outcome: StoreOutcome, started_us: int) -> None:
        """The effect at work is done: the next one begins before the node hears of it."""
        if self._stopped:
            return
        now_us, failed = boottime_us(), isinstance(outcome, StoreFailed)
        self.measures.store_answered(_STORE_WORDS[type(effect)], now_us - started_us, failed=failed)
        if self._observations is not None and not failed:
            self._observations.stored(now_us, effect)
        self._store_queue.popleft()
        if self._store_queue:
            self._begin_store_effect()
        self.feed(_answer_of(effect, outcome))

    def _rearm(self) -> None:
        """Keep one timer: an earlier one than needed finds nothing due, and asks again."""
        due_us = self.node.deadline_us
        if self._timer is not None:
            if self._timer_us <= due_us and not self.ended.is_set():
                return
            self._timer.cancel()
            self._timer = None
        if self.ended.is_set():
            return
        self._timer_us = due_us
        delay_s = max(0.0, (due_us - boottime_us()) / US_PER_S)
        self._timer = self._loop.call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self.node.deadline_us > boottime_us():
            self._rearm()
        else:
            self.feed(Tick())
            self.on_tick()

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Do something beside; it ends with this shell at the latest."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler({"message": "a task of the daemon failed", "exception": error})


_STORE_WORDS = {
    WriteClaim: "write claim",
    WriteView: "write view",
    WriteMarks: "write marks",
    WriteCheckpoint: "write checkpoint",
    AppendFrame: "append frame",
    ReadJournal: "read journal",
}


def _answer_of(effect: StoreEffect, outcome: StoreOutcome) -> Input:
    match outcome:
        case StoreFailed():
            return StoreRefused(effect.operation, _kind(outcome), str(outcome))
        case JournalImage(checkpoint=checkpoint, frames=frames):
            return JournalRead(effect.operation, checkpoint, frames)
        case Strip():
            raise AssertionError(f"the store has answered {type(effect).__name__} by a strip")
        case None:
            return StoreDone(effect.operation)
        case claims:
            return StoreDone(effect.operation, claims)


def _kind(error: StoreFailed) -> str:
    kinds = ((ForeignWrite, "foreign"), (JournalFull, "full"), (JournalUnreadable, "unreadable"))
    return next((kind for type_, kind in kinds if isinstance(error, type_)), "failed")
