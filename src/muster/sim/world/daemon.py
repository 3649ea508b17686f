"""The daemon of one node in the virtual world: the same core, carried by the world instead of by asyncio.

It decides nothing: it takes inputs to `core.node.node.Node`, begins the effects in their order, carries out store
effects one at a time, and answers each (see `core.effects`). What it sees of the core goes into the history.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

from msgspec import structs

from muster.core import effects, inputs
from muster.core.draft import is_silent
from muster.core.leases.observer import NO_KERNEL, KernelIdentity
from muster.core.mastership.tenure import newest_journal, restore
from muster.core.node import insight
from muster.core.node.node import Node
from muster.core.node.setup import Setup
from muster.core.services import commands as executor
from muster.core.services.explanation import unexplained
from muster.records.database import Database, decode_entry
from muster.records.deciders import Grant
from muster.records.levels import Level
from muster.records.members import Member
from muster.records.messages import Append, Message, Proposal
from muster.records.registers import ClaimFlag, Register, RegisterKind, Strip
from muster.records.services import CommandState
from muster.records.tables import check_rows, members_of
from muster.records.terms import Term
from muster.records.units import US_PER_MS
from muster.sim.history import (
    Applied,
    ClaimWritten,
    DaemonStarted,
    Elected,
    Judged,
    LevelAcknowledged,
    Logged,
    MarksWritten,
    Notified,
    Proposed,
    Raised,
    ReplicaState,
    Replied,
    Suspected,
    Told,
)
from muster.sim.world.decision_lock import Seat
from muster.sim.world.disk import CheckpointTarget, FrameTarget, RegisterTarget, Target, TwoCopyWrite
from muster.sim.world.event_manager import VirtualEventManager
from muster.sim.world.kernel import MACHINE_ID
from muster.sim.world.life import ToGuard, VirtualLife
from muster.sim.world.network import Endpoint
from muster.sim.world.time import Process
from muster.sim.world.watcher import Watcher

LOAD_RETRY_US = 50 * US_PER_MS
REMEMBER_US = 300 * US_PER_MS  # from a change until the home knows of it
MEMORY_LOOKS = 3
ASK_AGAIN_US = 200 * US_PER_MS  # after the decision lock was given up
CLAIM_POINTS = {ClaimFlag.WITHDRAWN: "withdrawal", ClaimFlag.CLAIMING: "claim", ClaimFlag.MASTER: "mark"}
StoreEffect = (
    effects.WriteClaim
    | effects.WriteView
    | effects.WriteMarks
    | effects.ReadJournal
    | effects.WriteCheckpoint
    | effects.AppendFrame
)


class Daemon:
    """One daemon process: it loads its replica, then steps its node until it ends."""

    def __init__(
        self,
        life: VirtualLife,
        *,
        tell_guard: Callable[[ToGuard], None],
        restart: Callable[[], None],
        remember: Callable[[], None],
    ) -> None:
        """Not loaded yet.

        `restart` kills it so that init starts another one; `remember` writes into the home what its node knows.
        """
        machine = life.machine
        self.life, self.machine, self.world = life, machine, machine.world
        self._tell_guard, self._restart, self._remember = tell_guard, restart, remember
        self.process = Process("daemon")
        self.node: Node | None = None
        self.events: VirtualEventManager | None = None
        self.endpoint: Endpoint | None = None
        self._doubts = 0  # loads in a row that showed less than the home remembers
        self._remembers = False  # the home is to be written
        self._index = -1  # of the last state that was recorded; the first is not confirmed yet
        self._told: set[int] = set()
        self._tick_us: int | None = None  # when the next tick is scheduled, in world time
        self._ended = False  # the node has asked its guard to end it: it takes nothing in any more
        self._stepping = False
        self._inputs: deque[inputs.Input] = deque()
        self._plugged = True  # what it was told last of its own interfaces
        self._read_began_us = 0  # of the read that the node was given last, in world time
        self._store = StoreQueue(self)
        self._heard_us: dict[int, int] = {}  # peer -> when its last frame came
        self._seat: Seat | None = None  # in the queue for the decision lock, or with it
        self._asks_again_us = 0

    def now_us(self) -> int:
        """This machine's clock."""
        return self.life.now_us()

    def load(self) -> None:
        """Read the newest journal; again after a while if that fails (SPEC 1.4)."""
        self._store.read_strip(self._strip_loaded)

    def _strip_loaded(self, strip: Strip | None, _started_us: int, _finished_us: int) -> None:
        newest = newest_journal(strip) if strip is not None else None
        if strip is None or newest is None:
            self._load_again()
            return
        owner, mark = newest
        self._store.read_half(owner, mark, lambda image: self._journal_loaded(strip, image))

    def _load_again(self) -> None:
        self.world.loop.deliver_after(LOAD_RETRY_US, self.process, self.load)

    def _load_again_or_stop(self, wrong: str) -> None:
        """A store in use may show less than it holds; one that still does so went back in time (P11.2)."""
        self._doubts += 1
        if self._doubts < MEMORY_LOOKS:
            self._load_again()
        else:
            self._panic(effects.Panic(f"its store went back in time: {wrong}"))

    def _journal_loaded(self, strip: Strip, image: tuple[bytes, tuple[bytes, ...]] | None) -> None:
        if image is None:
            self._load_again()
            return
        self._start(restore(*image), strip)

    def _start(self, database: Database, strip: Strip) -> None:
        world, node, life = self.world, self.machine.node, self.life
        self._store.remember(strip)
        if wrong := self.machine.wrong_with(strip):
            self._load_again_or_stop(wrong)
            return
        self.record(DaemonStarted(world.loop.now_us, node, life.incarnation, database.index, database.term))
        setup = Setup(
            node, self.machine.name, life.incarnation, world.profile,
            residents=world.settings.residents, one_machine=not world.settings.shared,
            region_bytes=world.settings.half_bytes,
            kernel=KernelIdentity(world.kernel.boot_id, MACHINE_ID) if world.settings.kernel else NO_KERNEL,
            remembered=self.machine.remembered,
        )  # fmt: skip
        self.node = Node(setup, database, strip, life.runner.inventory(), self.now_us())
        self.events = VirtualEventManager(life, self.node, self.process, self.step)
        self._take_programs_back()
        self._carry_out(self.node.start(self.now_us()))
        self.endpoint = Endpoint(
            node, life.incarnation, self.process, self._received,
            lambda peer, incarnation: self.step(inputs.PeerConnected(peer, incarnation)),
            lambda peer, cause: self.step(inputs.PeerLost(peer, cause)),
        )  # fmt: skip
        world.network.attach(self.endpoint)
        self.events.start()
        if life.watcher is not None:
            self.watcher_came(life.watcher)
        self._schedule_tick()
        self.watch_own_links()

    def _take_programs_back(self) -> None:
        """What the last daemon has kept is registered again first; then who has ended meanwhile is found (P3.16)."""
        life = self.life
        for level in (*self.world.settings.levels, *life.kept_programs.values()):
            self._give(inputs.LevelRegistered(level))
        for number, level in list(life.kept_programs.items()):
            if life.programs.get(number) != level:
                del life.kept_programs[number]
                self._give(inputs.LevelGone(number))
        for number, level in life.programs.items():
            if number not in life.kept_programs:
                life.kept_programs[number] = level
                self._give(inputs.LevelRegistered(level))

    def _give(self, happened: inputs.Input) -> None:
        assert self.node is not None
        wanted = self.node.step(happened, self.now_us())
        assert not (wrong := self.node.invariant()), wrong
        self._carry_out(wanted)
        if self.world.settings.decides:
            self._follow_lock()

    def _follow_lock(self) -> None:
        """Ask for the decision lock, or give it up (P6.42); then it is asked for again after a while."""
        assert self.node is not None
        wanted, lock = insight.wants_decision_lock(self.node), self.world.decision_lock
        if wanted and self._seat is None and self.now_us() >= self._asks_again_us:
            life, process = self.life, self.process
            self._seat = Seat(self.machine.node, life.incarnation, process, self._lock_told, self.machine.point)
            lock.want(self._seat)
        elif not wanted and self._seat is not None:
            self._lock_told(None)

    def _lock_told(self, grant: Grant | None) -> None:
        seat = self._seat
        if grant is None and seat is not None:
            self._seat, self._asks_again_us = None, self.now_us() + ASK_AGAIN_US
            self.world.decision_lock.give_up(seat)
        if seat is not None:
            self.world.loop.deliver(self.process, self.step, inputs.DecisionLock(grant))

    def watch_own_links(self) -> None:
        """Something may have become of the own interfaces: it looks at them once a heartbeat (SPEC 7.4)."""
        if self.machine.plugged != self._plugged:
            pause_us = self.world.profile.heartbeat_ms * US_PER_MS
            self.world.loop.deliver_after(pause_us, self.process, self._own_links_seen)

    def _own_links_seen(self) -> None:
        if self.node is not None and self.machine.plugged != self._plugged:
            self._plugged = self.machine.plugged
            self.step(inputs.OwnLinksChanged(not self._plugged))

    def end(self, silently: bool) -> None:
        """The process dies. `silently`: with its machine, so that nobody is told."""
        if not self.process.alive:
            return
        self.process.kill()
        if self._seat is not None:
            self.world.decision_lock.ended(self._seat)
        if self.endpoint is not None:
            self.world.network.detach(self.endpoint, silently)

    def command_finished(self, command: CommandState) -> None:
        """The runner says that a command or an action function has ended."""
        loop = self.world.loop
        if command.action != "act":
            if self.node is not None:
                loop.deliver(self.process, self.step, inputs.CommandFinished(command))
        elif self.events is not None:
            number, succeeded, detail = command.generation, command.succeeded, command.detail
            loop.deliver(self.process, self.events.action_ended, number, succeeded, detail)
        else:
            self.life.actions_ended.append(command)

    def watcher_came(self, watcher: Watcher) -> None:
        """The runner has forked a watcher: it connects; before the node has its replica, `_start` sees to it."""
        if self.events is not None:
            watcher.daemon_came(self.events)

    def program_came(self, level: Level) -> None:
        """A program registers on the control socket; before the node has its replica, `_start` takes it in."""
        if self.node is not None:
            self.world.loop.deliver(self.process, self._register, level)

    def _register(self, level: Level) -> None:
        if self.life.programs.get(level.number) == level:
            self.life.kept_programs[level.number] = level
            self.step(inputs.LevelRegistered(level))

    def program_went(self, number: int, *, departed: bool) -> None:
        """A program deregisters, or it has ended; where no daemon hears it, the next one finds that it has ended."""
        if self.node is not None:
            self.world.loop.deliver(self.process, self._unregister, number, departed)

    def _unregister(self, number: int, departed: bool) -> None:
        if self.life.kept_programs.pop(number, None) is not None:
            self.step(inputs.LevelGone(number, departed))

    def program_is_lost(self, level: Level) -> None:
        """It is not back in time, and its node fails with it (P3.16)."""
        if not self._ended:
            self._panic(effects.Panic(f"subsystem {level.name} of level {level.number} is lost"))

    def request(self, asked: inputs.OperationRequested) -> None:
        """A client asks for an operation."""
        if self.node is not None:
            self.world.loop.deliver(self.process, self.step, asked)

    def fence_confirmed(self, node: int, incarnation: int) -> None:
        """A fence agent has stopped this incarnation."""
        if self.node is not None:
            confirmed = inputs.FenceConfirmed(node, incarnation, "the fence agent cut its power")
            self.world.loop.deliver(self.process, self.step, confirmed)

    def kernel_said(self, word: inputs.KernelsWord) -> None:
        """The guard has asked the kernel (P7.15)."""
        if self.node is not None:
            self.world.loop.deliver(self.process, self.step, word)

    def _received(self, sender: int, message: Message) -> None:
        self._heard_us[sender] = self.world.loop.now_us
        self.step(inputs.MessageReceived(sender, message))

    def step(self, item: inputs.Input) -> None:
        """Give the node one input. Inputs that its own effects cause wait for their turn."""
        self._inputs.append(item)
        if self._stepping:
            return
        self._stepping = True
        try:
            while self._inputs and self.process.alive and self.node is not None:
                if self.process.paused_at_us is not None:
                    waiting, self._inputs = list(self._inputs), deque()
                    for later in waiting:
                        self.world.loop.deliver(self.process, self.step, later)
                    break
                self._give(self._inputs.popleft())
            self._schedule_tick()
        except Exception:  # noqa: BLE001  # a broken invariant of the core is a finding of this run, not the simulator's end
            self._raised()
        finally:
            self._stepping = False

    def _raised(self) -> None:
        text = traceback.format_exc(limit=-4)
        self.record(Raised(self.world.loop.now_us, self.machine.node, text))
        self.world.stopped = True

    def _schedule_tick(self) -> None:
        if self.node is None or self._ended or not self.process.alive:
            return
        due_us = max(self.life.clock.world_us(self.node.deadline_us), self.world.loop.now_us + 1)
        if self._tick_us is None or due_us < self._tick_us:
            self._tick_us = due_us
            self.world.loop.at(due_us, self.world.loop.deliver, self.process, self._tick, due_us)

    def _tick(self, due_us: int) -> None:
        if self._tick_us != due_us:
            return  # an earlier one was scheduled since
        self._tick_us = None
        assert self.node is not None
        if self.node.deadline_us <= self.now_us():
            self.step(inputs.Tick())
        else:
            self._schedule_tick()

    def _carry_out(self, wanted: list[effects.Effect]) -> None:
        for position, effect in enumerate(wanted):
            if not self.process.running:  # a fault in the middle of carrying them out
                self.world.loop.deliver(self.process, self._carry_out, wanted[position:])
                return
            self.CARRIERS[type(effect)](self, effect)
        if self.events is not None:
            self.events.look()

    def record(self, observation: Any) -> None:
        """Something that an observer would see."""
        self.world.history.append(observation)

    def _read_strip(self, effect: effects.ReadStrip) -> None:
        began_us = self.world.loop.now_us

        def answer(strip: Strip | None, started_us: int, finished_us: int) -> None:
            self._read_began_us = began_us
            if strip is None:
                self.step(inputs.StripUnread(effect.read, "the store does not answer"))
            else:
                self.step(inputs.StripRead(effect.read, strip, started_us, finished_us))

        self._store.read_strip(answer)

    def _placed(self, effect: effects.Placed) -> None:
        """Every placement is explained by the rules that made it (SPEC 8.2)."""
        assert not (wrong := unexplained(effect.together)), wrong

    def _send(self, effect: effects.Send) -> None:
        message = effect.message
        if isinstance(message, Append):
            for entry in message.entries:
                if entry.index not in self._told:
                    self._told.add(entry.index)
                    self.record(Told(self.world.loop.now_us, self.machine.node, message.term, entry))
        if self.endpoint is not None:
            self.world.network.send(self.endpoint, effect.to, message)
        if isinstance(message, Proposal):
            now_us, life = self.world.loop.now_us, self.life
            self.record(Proposed(now_us, self.machine.node, life.incarnation, message.grant, message.index))
            self.machine.point("proposal", "begun")

    def _notify(self, effect: effects.Notify) -> None:
        world, life = self.world, self.life
        program = life.kept_programs.get(effect.level)
        if life.programs.get(effect.level) != program:
            return  # it has gone: there is nobody at the other end
        if effect.level in life.dropped:
            life.dropped[effect.level].append(lambda: world.loop.deliver(self.process, self._notify, effect))
            return
        step = (effect.transition, effect.level, effect.barrier)
        self.record(
            Notified(
                world.loop.now_us, self.machine.node, life.incarnation, effect.level, effect.transition, effect.node,
                effect.incarnation, effect.kind, effect.barrier, effect.vector,
            )
        )  # fmt: skip
        self.machine.point("notify", "begun")
        if step in life.acknowledged:  # answered from memory (SPEC 3.4)
            world.loop.deliver_after(100, self.process, self._acknowledge, step, program)
            return
        self.machine.work(effect.level, lambda: world.loop.deliver(self.process, self._acknowledge, step, program))

    def _acknowledge(self, step: tuple[int, int, int], program: Level | None = None) -> None:
        transition, level, barrier = step
        if program != self.life.programs.get(level):
            return  # it has gone, and what it worked on with it
        if level in self.life.dropped:
            again = (step, program)
            self.life.dropped[level].append(lambda: self.world.loop.deliver(self.process, self._acknowledge, *again))
            return
        if step not in self.life.acknowledged:
            self.life.acknowledged.add(step)
            self.record(
                LevelAcknowledged(
                    self.world.loop.now_us, self.machine.node, self.life.incarnation, level, transition, barrier
                )
            )
        self.machine.point("acknowledge", "begun")
        self.step(inputs.Acknowledged(transition, level, barrier))

    def _judge(self, effect: effects.AskSubsystem) -> None:
        """A subsystem is asked about a planned change: it consents, objects, or hangs (P4.5)."""
        if effect.level not in self.machine.hung:
            self.world.loop.deliver_after(self.world.work_us(effect.level), self.process, self._judged, effect)

    def _judged(self, effect: effects.AskSubsystem) -> None:
        now_us, life, objects = self.world.loop.now_us, self.life, self.world.objects(effect.question)
        self.record(Judged(now_us, self.machine.node, life.incarnation, effect.level, effect.question, objects))
        self.step(inputs.SubsystemAnswered(effect.question, effect.level, "not now" if objects else ""))

    def _run(self, effect: effects.RunCommand) -> None:
        leftovers = self.life.leftovers
        leftovers.keep(effect, self.life.incarnation)
        if effect.clears:
            effect = structs.replace(effect, command=executor.cleanup_of(effect, leftovers.newest(effect)))
        self.life.runner.request(effect)
        self.machine.point("command", "begun")

    def _call_fence_agent(self, effect: effects.CallFenceAgent) -> None:
        machine, life = self.machine, self.life
        self.world.outlets.call(
            effect, machine.node, life.incarnation, self._read_began_us, life.runner.process, self._fence_answered
        )
        self.machine.point("fence", "begun")

    def _fence_answered(self, call: int, succeeded: bool, detail: str) -> None:
        answer = inputs.FenceAnswered(call, succeeded, detail)
        self.world.loop.deliver_after(100, self.process, self.step, answer)

    def _cancel_fence_call(self, _effect: effects.CancelFenceCall) -> None:
        """The agent is ended; what its device has begun, it does."""

    def _reply(self, effect: effects.Reply) -> None:
        self.record(
            Replied(
                self.world.loop.now_us, self.machine.node, effect.identity, effect.refused, effect.outcome, effect.index
            )
        )
        self.world.unanswered.discard(effect.identity)
        if self.events is not None:
            self.events.replied(effect)

    def _committed(self, _effect: effects.Committed) -> None:
        assert self.node is not None
        if self.node.database.index != self._index:
            self._record_state()
        if not self._remembers:
            self._remembers = True
            self.world.loop.deliver_after(REMEMBER_US, self.process, self._write_memory)
        self.machine.point("commit", "begun")

    def _write_memory(self) -> None:
        self._remembers = False
        self._remember()

    def _record_state(self) -> None:
        assert self.node is not None
        database = self.node.database
        self._index = database.index
        state = ReplicaState(
            dict(database.members), dict(database.transitions), dict(database.services), dict(database.operations),
            {node: config.name for node, config in database.nodes.items()}, database.cluster.required_levels,
            dict(database.fencing), dict(database.deciders),
        )  # fmt: skip
        now_us, life = self.world.loop.now_us, self.life
        self.record(Applied(now_us, self.machine.node, life.incarnation, database.index, database.term, state))

    def _elected(self, effect: effects.Elected) -> None:
        assert self.node is not None
        term = Term(effect.number, effect.node)
        self.record(
            Elected(self.world.loop.now_us, self.machine.node, self.life.incarnation, term, self.node.database.index)
        )
        self._record_state()  # an adoption commits what it adopts (SPEC 2.6)
        self.machine.point("elected", "begun")

    def _left(self, effect: effects.Left) -> None:
        self._ended = True
        self._tell_guard(effect)

    def _panic(self, effect: effects.Panic) -> None:
        self._trace(effects.Trace("panic", effect.cause))
        self._ended = True
        self._tell_guard(effect)
        self.world.loop.after(200, self.life.told_to_stop, effect.cause)  # the guard may hang (P7.10)

    def _trace(self, effect: effects.Trace) -> None:
        self.record(Logged(self.world.loop.now_us, self.machine.node, f"{effect.event}: {effect.detail}"))

    def _to_store(self, effect: Any) -> None:
        if isinstance(effect, effects.AppendFrame) and self.world.settings.shared:
            self._note_suspects(effect.frame)
        self._store.submit(effect)

    def _note_suspects(self, frame: bytes) -> None:
        """What this master is about to commit may say that nobody waits for a member any more."""
        assert self.node is not None
        for change in decode_entry(frame).changes:
            if (
                not isinstance(change, Member)
                or not is_silent(change)
                or is_silent(self.node.database.member(change.node))
            ):
                continue
            self.record(
                Suspected(
                    self.world.loop.now_us, self.machine.node, change.node, change.incarnation,
                    self._heard_us.get(change.node, 0), self.world.profile.suspicion_ms * US_PER_MS,
                )
            )  # fmt: skip

    def _watch_life(self, effect: effects.WatchLife) -> None:
        self._tell_guard(effect)

    def _level_refused(self, effect: effects.LevelRefused) -> None:
        self._trace(effects.Trace("level refused", effect.reason))

    def _restart_soon(self, _effect: effects.Restart) -> None:
        self.world.loop.deliver_after(100, self.process, self._restart)

    CARRIERS: ClassVar[dict[type, Callable[[Any, Any], None]]] = {  # what becomes of each effect
        effects.ReadStrip: _read_strip,
        effects.WriteClaim: _to_store,
        effects.WriteView: _to_store,
        effects.WriteMarks: _to_store,
        effects.ReadJournal: _to_store,
        effects.WriteCheckpoint: _to_store,
        effects.AppendFrame: _to_store,
        effects.WatchLife: _watch_life,
        effects.Send: _send,
        effects.Notify: _notify,
        effects.AskSubsystem: _judge,
        effects.LevelRefused: _level_refused,
        effects.RunCommand: _run,
        effects.CallFenceAgent: _call_fence_agent,
        effects.CancelFenceCall: _cancel_fence_call,
        effects.Reply: _reply,
        effects.Committed: _committed,
        effects.Placed: _placed,
        effects.Elected: _elected,
        effects.Left: _left,
        effects.Restart: _restart_soon,
        effects.Panic: _panic,
        effects.Trace: _trace,
    }


check_rows("sim/world/daemon.py", Daemon.CARRIERS, members_of(effects.Effect))


class StoreQueue:
    """The daemon's access to the store: store effects one at a time, in order; reads of the strip beside them."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._access = daemon.machine.access
        self._waiting: deque[StoreEffect] = deque()
        self._current: StoreEffect | None = None
        self._last: dict[RegisterKind, Register | None] = {}

    def remember(self, strip: Strip) -> None:
        """The own registers as they were found: the next writes must find them unchanged (SPEC 1.5)."""
        node = self._daemon.machine.node
        self._last = {
            RegisterKind.CLAIM: strip.claim(node),
            RegisterKind.VIEW: strip.view(node),
            RegisterKind.MARKS: strip.marks[node],
        }

    def read_strip(self, answer: Callable[[Strip | None, int, int], None]) -> None:
        """Read all registers; `answer(strip or None, started, finished)`, in local time."""
        loop = self._daemon.world.loop
        loop.after(self._access.latency_us(), self._strip_ends, answer, loop.now_us)

    def _strip_ends(self, answer: Callable[[Strip | None, int, int], None], started_us: int) -> None:
        access, daemon = self._access, self._daemon
        if not daemon.process.alive:
            return
        strip = None if access.fails() else access.sampled(started_us)
        local_us = daemon.life.clock.local_us
        loop = daemon.world.loop
        # The times are those at which the daemon itself looked: a pause in between is part of the read.
        loop.deliver(daemon.process, lambda: answer(strip, local_us(started_us), daemon.now_us()))

    def read_half(self, owner: int, mark: Any, answer: Callable[[Any], None]) -> None:
        """Read a journal: as it is at some moment during the read."""
        loop = self._daemon.world.loop

        def sample() -> None:
            half = self._access.store.halves[owner][mark.half]
            image = None if self._access.fails() else half.read(mark)
            loop.deliver_after(self._access.latency_us(), self._daemon.process, answer, image)

        loop.after(self._access.latency_us(), sample)

    def submit(self, effect: StoreEffect) -> None:
        """Carry out a store effect when those before it are done."""
        self._waiting.append(effect)
        if self._current is None:
            self._next()

    def _next(self) -> None:
        if not self._waiting:
            self._current = None
            return
        effect = self._current = self._waiting.popleft()
        if isinstance(effect, effects.ReadJournal):
            self.read_half(effect.owner, effect.mark, self._journal_read)
            return
        delay_us = 100  # the own register is read before it is written (SPEC 1.5)
        self._daemon.world.loop.deliver_after(delay_us, self._daemon.process, self._write, effect)

    def _journal_read(self, image: tuple[bytes, tuple[bytes, ...]] | None) -> None:
        effect = self._current
        assert effect is not None
        if image is None:
            self._answer(inputs.StoreRefused(effect.operation, "unreadable", "the journal cannot be read whole"))
        else:
            self._answer(inputs.JournalRead(effect.operation, *image))

    def _write(self, effect: StoreEffect) -> None:
        node, store = self._daemon.machine.node, self._access.store
        kind, what, target = self._target(effect)
        if store.cells[kind][node].current != self._last.get(kind):
            self._refuse(effect, "foreign", f"the own {kind.name.lower()} register was written by somebody else")
            return
        if target is None:
            self._refuse(effect, "full", "the journal half is full")
            return
        TwoCopyWrite(self._access, self._daemon.process, what, target, lambda done: self._written(effect, done))

    def _target(self, effect: StoreEffect) -> tuple[RegisterKind, str, Target | None]:
        """(register that must be unchanged, name, what to write; `None` if it does not fit)."""
        node, store = self._daemon.machine.node, self._access.store
        match effect:
            case effects.WriteClaim(claim=value):
                what = CLAIM_POINTS[value.flag]
                return RegisterKind.CLAIM, what, RegisterTarget(store, store.cells[RegisterKind.CLAIM][node], value)
            case effects.WriteView(view=value):
                return RegisterKind.VIEW, "view", RegisterTarget(store, store.cells[RegisterKind.VIEW][node], value)
            case effects.WriteMarks(marks=value):
                return RegisterKind.MARKS, "marks", RegisterTarget(store, store.cells[RegisterKind.MARKS][node], value)
            case effects.WriteCheckpoint(mark=mark, checkpoint=checkpoint):
                half = store.halves[node][mark.half]
                fits = len(checkpoint) <= store.half_bytes
                target = CheckpointTarget(half, mark, checkpoint) if fits else None
                return RegisterKind.CLAIM, "checkpoint", target
            case effects.AppendFrame(mark=mark, number=number, frame=frame):
                half = store.halves[node][mark.half]
                fits = half.used_bytes(mark, number) + len(frame) <= store.half_bytes
                return RegisterKind.CLAIM, "frame", FrameTarget(half, mark, number, frame) if fits else None
            case _:
                raise AssertionError(f"{effect} writes nothing")

    def _written(self, effect: StoreEffect, succeeded: bool) -> None:
        if not succeeded:
            self._settle(effect)
            self._refuse(effect, "failed", "input/output error")
            return
        self._settle(effect)
        history, now_us = self._daemon.world.history, self._daemon.world.loop.now_us
        if isinstance(effect, effects.WriteClaim):
            history.append(ClaimWritten(now_us, self._daemon.machine.node, effect.claim))
        elif isinstance(effect, effects.WriteMarks):
            history.append(MarksWritten(now_us, self._daemon.machine.node, effect.marks.condemned))
        if isinstance(effect, effects.AppendFrame):
            self.read_strip(lambda strip, *_: self._appended(effect, strip))
        else:
            self._answer(inputs.StoreDone(effect.operation))

    def _appended(self, effect: effects.AppendFrame, strip: Strip | None) -> None:
        """The engine has read all claims after the frame was durable, if it could (PROTOCOL P2.6)."""
        self._answer(inputs.StoreDone(effect.operation, strip.claims if strip is not None else ()))

    def _settle(self, effect: StoreEffect) -> None:
        """What the own register holds now; after a failure the engine looks instead of guessing."""
        if isinstance(effect, effects.WriteClaim | effects.WriteView | effects.WriteMarks):
            kind = self._target(effect)[0]
            self._last[kind] = self._access.store.cells[kind][self._daemon.machine.node].current

    def _refuse(self, effect: StoreEffect, kind: str, error: str) -> None:
        self._answer(inputs.StoreRefused(effect.operation, kind, error))

    def _answer(self, answer: inputs.Input) -> None:
        # The next effect of the queue begins before the node hears of this one, as in a queue of its own thread.
        self._next()
        self._daemon.step(answer)
