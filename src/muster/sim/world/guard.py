"""The guard of one node in the virtual world: boot, lease, two deadlines, panic (SPEC 7.1-7.3, P7.1-P7.17).

It runs the machines of `core.leases` that the real guard runs, and imitates nothing of what they decide. The deadman is
a kernel timer: it fires whatever is paused, kills the guard, and everything else of the incarnation dies at moments of
its own within the panic bound. A guard that waits in the kernel is not ended by it; then init ends the node at the same
deadline (P7.9).
"""

from __future__ import annotations

from collections.abc import Callable

from muster.core import effects, inputs
from muster.core.leases.lease import LeaseKeeper, Shown, Stop, next_incarnation, replacement
from muster.core.leases.predecessor import Here, OtherKernels, Others, Predecessor, Verdict, settled, to_ask
from muster.core.leases.vigil import DAEMON, Vigil, Why
from muster.core.leases.watchdog import Order, Retiming, Stage, WatchdogState
from muster.records.registers import Armed, Deadman, Lease, Owed, RegisterKind, Strip
from muster.records.timing import Profile
from muster.records.units import US_PER_MS
from muster.sim.history import Logged, Renewed
from muster.sim.world.bare_machine import BareMachine
from muster.sim.world.disk import RegisterTarget, TwoCopyWrite
from muster.sim.world.kernel import MACHINE_ID, counts_in, is_of
from muster.sim.world.life import ToGuard, VirtualLife
from muster.sim.world.time import US_PER_S, Clock, Process
from muster.sim.world.watchdog import VirtualWatchdog

TOMBSTONE_TRIES = 3
FIRST_PAUSE_US, LONGEST_PAUSE_US = 500_000, 4_000_000  # between two requests to be handed a descriptor
REFUSALS = {
    Verdict.UNREADABLE: "the lease register cannot be read",
    Verdict.BEATS: "the lease beats",
    Verdict.STILL_RUNS: "it still runs, by the kernel's word",
    Verdict.UNPROVEN: "nothing proves that the last incarnation has stopped",
}
MEMORY_LOOKS = 3  # at a store that shows less than is remembered: it may be in use (P11.2)

Judge = Callable[[Strip | None, int], None]  # (what the store shows, when the read began)


class Guard:
    """One guard process: from `boot` until its node has stopped."""

    def __init__(
        self,
        machine: BareMachine,
        clock: Clock,
        *,
        sweep: Callable[[], None],
        begin: Callable[[Guard, int], VirtualLife],
        ended: Callable[[Guard], None],
        hand_over: Callable[[effects.WatchLife], bool],
        watchdog: VirtualWatchdog | None = None,
    ) -> None:
        """Not booted yet.

        `sweep` ends what earlier incarnations have left; `begin` begins the life of an incarnation; `ended` is called
        at the end; `hand_over` asks the guard of another node for a descriptor, and says whether it gives one (P7.20).
        """
        self.machine, self.clock, self.world = machine, clock, machine.world
        self._sweep, self._begin, self._ended, self._hand_over = sweep, begin, ended, hand_over
        self.process = Process("guard")
        self.writer = Process("lease writer")  # writes for it: a write under way lands though the guard is dead
        self.life: VirtualLife | None = None
        profile = self.world.profile
        self._profile = profile.leased(one_machine=self.world.settings.kernel)  # P7.12
        self._keeper: LeaseKeeper | None = None
        one_kernel = self.world.settings.kernel
        self._predecessor = Predecessor(profile.gap_ms, one_kernel=one_kernel)
        self._others = OtherKernels(profile.gap_ms, self.world.kernel.boot_id) if one_kernel else None
        self._vigil = Vigil(profile)
        self._vigil.stands_apart = one_kernel
        self._wanted: dict[int, int] = {}  # node -> the incarnation of which a descriptor is wanted (P7.20)
        self._handed: set[tuple[int, int]] = set()  # those of which there is one
        self._doubts = 0  # reads in a row that showed less than the home remembers
        self._deadman_us: int | None = None  # world time; None until it is armed
        self._panicking = False
        self._stalled = False  # it waits in the kernel, where no signal ends it
        self._dying = ""  # SIGKILL waits for it
        self._busy = False  # a cycle is under way
        self._watchdog, self._watch = watchdog, WatchdogState()
        self._chosen = profile  # as the cluster has it, without what the watchdog makes of it
        self._retiming: Retiming | None = None

    def now_us(self) -> int:
        """This machine's clock."""
        return self.clock.local_us(self.world.loop.now_us)

    # ---- boot ------------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Watch the own lease until the predecessor is proven to have stopped (SPEC 7.1)."""
        self._sweep()
        self._read(self._observe)

    def _read(self, then: Judge) -> None:
        """Read the strip; call `then(strip, started)` in this process."""
        started_us = self.world.loop.now_us
        self.world.loop.after(self.machine.access.latency_us(), self._read_ends, then, started_us)

    def _read_ends(self, then: Judge, started_us: int) -> None:
        access = self.machine.access
        strip = None if access.fails() else access.sampled(started_us)
        self.world.loop.deliver(self.process, then, strip, self.clock.local_us(started_us))

    def _observe(self, strip: Strip | None, started_us: int) -> None:
        lease = strip.lease(self.machine.node) if strip is not None else None
        refusal = REFUSALS.get(self._predecessor.read(lease, started_us, self.now_us()), "")
        others = self._other_kernels(strip, started_us)
        if others.beats >= 0:
            refusal = refusal or f"n{others.beats} beats under another kernel"
        wrong = self.machine.wrong_with(strip) if strip is not None else ""
        self._doubts = self._doubts + 1 if wrong else 0
        if self._doubts >= MEMORY_LOOKS:
            refusal = f"the store went back in time, or is another one: {wrong}"
        if lease is not None and not (refusal or others.may_run or wrong):
            verdict = self._settled(lease)
            if verdict is Verdict.GONE:
                self._acquire(lease)
                return
            refusal = REFUSALS.get(verdict, "")
        if refusal:
            self._log(f"boot refused: {refusal}")
            self._ended(self)
        else:
            self.world.loop.deliver_after(self.world.profile.read_ms * US_PER_MS, self.process, self.boot)

    def _other_kernels(self, strip: Strip | None, started_us: int) -> Others:
        """Whether anybody may still run under another boot of the kernel (P7.17)."""
        if self._others is None:
            return Others(may_run=False)
        return self._others.read(strip.leases if strip is not None else None, started_us, self.now_us())

    def _settled(self, lease: Lease) -> Verdict:
        """What follows for the predecessor, with the kernel's word where it can be asked (P7.6)."""
        kernel, named = self.world.kernel, to_ask(lease)
        asked = named is not None and lease.boot_id == kernel.boot_id and counts_in(self.machine.namespace, named)
        if asked and named is not None and not kernel.runs(named, self.machine.namespace):
            return Verdict.GONE
        incarnation = lease.stamp.incarnation
        ran_here = incarnation if incarnation in self.machine.ran_here else 0
        apart = self.world.settings.shared and self.world.profile.suspect_ms
        if apart and ran_here and not self.machine.runs(incarnation):
            return Verdict.GONE  # by the word of the machine's own kernel, or it is a later boot of it (P7.13)
        here = Here(kernel.boot_id if self.world.settings.kernel else b"", MACHINE_ID, ran_here)
        # Of a process tree that names nobody to ask about an operator has to say so: who looks well here.
        vouched = lease.deadman is Deadman.PROCESS_TREE and lease.life is None
        return settled(lease, self._predecessor.watch, here, vouched=vouched, asked=asked)

    def watch(self, asked: effects.WatchLife) -> None:
        """The daemon asks about an incarnation (P7.15)."""
        kernel, named = self.world.kernel, asked.life
        if asked.boot_id != kernel.boot_id:
            self._tell(asked, given=False)
        elif not counts_in(self.machine.namespace, named):
            self._want(asked)
        elif kernel.runs(named, self.machine.namespace):
            kernel.tell_at_the_end(named, lambda: self._tell(asked, given=True))
        else:
            self._tell(asked, given=True)

    def _want(self, asked: effects.WatchLife) -> None:
        """The kernel cannot be asked from here: whoever holds a descriptor of that life is told by it (P7.20)."""
        if (asked.node, asked.incarnation) in self._handed:
            if self.world.kernel.shows_the_end(asked.life):
                self._tell(asked, given=True)
            return
        self._tell(asked, given=False)
        if asked.incarnation > self._wanted.get(asked.node, 0):
            self._wanted[asked.node] = asked.incarnation
            turn_us = self.world.profile.loop_ms * US_PER_MS // 3
            self.world.loop.deliver_after(turn_us, self.process, self._request, asked, FIRST_PAUSE_US)

    def _request(self, asked: effects.WatchLife, pause_us: int) -> None:
        """Ask the guard of that node for a descriptor: now, and later if it does not answer (P7.20)."""
        if self._wanted.get(asked.node) != asked.incarnation or self.world.kernel.boot_id != asked.boot_id:
            return
        if self._hand_over(asked):
            self._handed.add((asked.node, asked.incarnation))
            self.world.kernel.tell_at_the_end(asked.life, lambda: self._tell(asked, given=True))
        else:
            longer_us = min(2 * pause_us, LONGEST_PAUSE_US)
            self.world.loop.deliver_after(pause_us, self.process, self._request, asked, longer_us)

    def offers(self, asked: effects.WatchLife) -> bool:
        """Whether this guard runs now, and what it offers is what is asked for."""
        runs = self.process.alive and self.process.paused_at_us is None and not (self._stalled or self._panicking)
        named = self.life.named if self.life is not None and not self.life.ended else None
        return runs and named is not None and is_of(asked.life, named)

    def _tell(self, asked: effects.WatchLife, *, given: bool) -> None:
        """This process hears it, and a little later its daemon of then, if both still live."""
        pause_us = int(self.world.random.random() * (20 if given else 1) * US_PER_MS)
        self.world.loop.deliver_after(pause_us, self.process, self._told, asked, given)

    def _told(self, asked: effects.WatchLife, given: bool) -> None:
        daemon = self.life.daemon if self.life is not None else None
        if daemon is not None:
            detail = "its init has ended" if given else "its pids count in another PID namespace"
            daemon.kernel_said(inputs.KernelsWord(asked.node, asked.incarnation, detail, given))

    def _acquire(self, predecessor: Lease) -> None:
        world, machine = self.world, self.machine
        incarnation = next_incarnation(predecessor.stamp.incarnation, world.random.getrandbits(32))
        boot_id = world.random.getrandbits(128).to_bytes(16, "little")
        if world.settings.kernel:
            boot_id = world.kernel.boot_id
        deadman = Deadman.PROCESS_TREE if machine.node in world.settings.trees else Deadman.PID_NAMESPACE
        self._keeper = LeaseKeeper(machine.node, incarnation, predecessor, self._profile, deadman, boot_id)
        self.machine.ran_here.add(incarnation)
        if self._watchdog is None:
            self.life = self._begin(self, incarnation)
            self._cycle()
            return
        armed = self._watchdog.armed(self._chosen)
        self._watch.asked(armed)
        self._watchdog.arm(self.process, self.clock, armed, self._armed)
        self._begin_armed(incarnation)

    def _armed(self, armed: Armed | None) -> None:
        """The device is armed, or it is not to be had: then the node does not start (P7.34)."""
        if armed is not None:
            self._watch.is_armed(armed)
        elif self.life is None:
            self._log("boot refused: its watchdog cannot be had")
            self._ended(self)

    def _begin_armed(self, incarnation: int) -> None:
        """Armed, then recorded (P7.33)."""
        assert self._keeper is not None
        armed = self._watch.recorded()
        if armed is None:
            self.world.loop.deliver_after(5 * US_PER_MS, self.process, self._begin_armed, incarnation)
            return
        self._profile = self._chosen.with_watchdog(armed.times)
        self._vigil = Vigil(self._profile)
        self._keeper.retime(self._profile, self._profile.loop_ms, armed)
        self.life = self._begin(self, incarnation)
        self._cycle()

    # ---- other times (P7.35) ---------------------------------------------------------------------------------------

    def take_profile(self, profile: Profile) -> None:
        """Its daemon tells it of another profile of the cluster."""
        armed = self._watch.recorded()
        if armed is None or self._watchdog is None or self.life is None or profile == self._chosen:
            return
        self._chosen = profile
        self._retiming = Retiming(self._profile, profile.with_watchdog(self._watchdog.armed(profile).times))

    def _go_on_retiming(self) -> None:
        retiming = self._retiming
        if retiming is None or self._busy or self._deadman_us is None or self._watchdog is None:
            return
        if retiming.order is Order.LESSEN:
            deadline_us = retiming.lessened(self._vigil.lease_deadline_us, self.now_us())
            if deadline_us is None:
                return
            self._tell_times(retiming)
            self._vigil.retime(self._profile, retiming.span_ms, deadline_us)
            self._publish(self._vigil.deadline_us)
            self._watchdog.want(retiming.timeout_ms)
        if retiming.order is Order.READ_BACK and self._watchdog.set_ms == retiming.timeout_ms:
            assert retiming.read_back(self._watchdog.set_ms)
            self._tell_times(retiming)

    def _tell_times(self, retiming: Retiming) -> None:
        assert self._keeper is not None
        assert self._watchdog is not None
        self._keeper.retime(retiming.in_record, retiming.span_ms, self._watchdog.armed(retiming.in_record))

    def _extend_times(self, retiming: Retiming) -> None:
        """The record with the new times is durable: deadman and watchdog may go by them."""
        assert self._watchdog is not None
        retiming.recorded()
        self._profile = retiming.in_record
        self._vigil.retime(self._profile, retiming.span_ms, self._vigil.lease_deadline_us)
        self._watchdog.want(retiming.timeout_ms)
        self._tell_times(retiming)
        retiming.extended()
        self._retiming = None

    def owes(self, owed: Owed) -> None:
        """What the caretaker says of earlier runs: the next renewal says it too (P6.33)."""
        if self._keeper is not None:
            self._keeper.owed = owed

    # ---- the loop --------------------------------------------------------------------------------------------------

    def _cycle(self) -> None:
        world = self.world
        world.loop.deliver_after(world.profile.renew_ms * US_PER_MS, self.process, self._cycle)
        if self._panicking or self.life is None:
            return
        cause = "its init has ended" if self.life.ended else self._gives_up()
        if cause:
            self.panic(cause)
            return
        self._turn()
        self._go_on_retiming()
        if not self._busy:
            self._busy = True
            self._read(self._judge)

    def _gives_up(self) -> str:
        """Why its vigil gives the node up now; nothing before it holds its lease, and where it does not."""
        if self._deadman_us is None:
            return ""
        now_us = self.now_us()
        if self._vigil.is_late(now_us):
            return "it woke after its deadline had passed"
        self._hear_signs_of_life(now_us)
        found = self._vigil.judge(now_us)
        if found is None:
            return ""
        return f"no pulse from the {found.who}" if found.why is Why.SILENT else "its lease could not be renewed"

    def _hear_signs_of_life(self, now_us: int) -> None:
        """Each process that runs gives a sign of life all the time; one that was stopped has given its last then."""
        assert self.life is not None
        for name, process in self.life.pulsing().items():
            paused_us = process.paused_at_us
            self._vigil.pulsed(name, now_us if paused_us is None else min(now_us, self.clock.local_us(paused_us)))

    def daemon_ended(self, life: VirtualLife, *, asked_for: bool) -> None:
        """Init says that the daemon has ended; `asked_for`: for a successor."""
        if life is self.life:
            self._vigil.daemon_ended(self.now_us(), asked_for=asked_for)

    def _judge(self, strip: Strip | None, started_us: int) -> None:
        assert self._keeper is not None
        own = strip.lease(self.machine.node) if strip is not None else None
        if strip is None or own is None or None in strip.marks:
            self._busy = False  # no renewal without the marks (SPEC 7.2)
            return
        verdict = self._keeper.begin(started_us, own, strip.marks)
        if isinstance(verdict, Stop):
            self._busy = False
            self.panic(verdict.cause)
            return
        self._write(verdict.lease, lambda succeeded: self._look(verdict.lease, started_us, succeeded))

    def _look(self, lease: Lease, started_us: int, succeeded: bool) -> None:
        """Open the path afresh: it must show this very beat (P11.1)."""
        if not succeeded:
            self._busy = False
            return
        delay_us = self.machine.access.latency_us()
        self.world.loop.deliver_after(delay_us, self.process, self._looked, lease, started_us)

    def _looked(self, lease: Lease, started_us: int) -> None:
        there, shown = self.world.store, None
        if not self.world.path_is_away and not self.machine.access.fails():
            held = there.cells[RegisterKind.LEASE][self.machine.node].current
            ids = there.ids[0].encode(), there.ids[1].encode()
            shown = Shown(*ids, held if isinstance(held, Lease) else None)
        opened = self.machine.access.store.ids
        other = replacement((opened[0].encode(), opened[1].encode()), lease, shown)
        if other == "":
            self._written(lease, started_us)
            return
        self._busy = False
        if other is not None:
            self.panic(f"its store was replaced by another file or device while it ran: {other}")

    def _write(self, lease: Lease, done: Callable[[bool], None]) -> None:
        access = self.machine.access
        cell = access.store.cells[RegisterKind.LEASE][self.machine.node]

        def written(succeeded: bool) -> None:
            self.world.loop.deliver(self.process, done, succeeded)

        TwoCopyWrite(access, self.writer, "lease", RegisterTarget(access.store, cell, lease), written)

    def _written(self, lease: Lease, started_us: int) -> None:
        assert self._keeper is not None
        assert self.life is not None
        self._busy = False
        first = self._keeper.deadline_us is None
        verdict = self._keeper.renewed(lease, started_us, self.now_us())
        if verdict is not None:
            self.panic(verdict.cause)
            return
        ends_us = self.clock.world_us(started_us + self._profile.lease_ms * US_PER_MS)
        began_us = self.clock.world_us(started_us)
        self.world.history.append(
            Renewed(self.world.loop.now_us, self.machine.node, self.life.incarnation, ends_us, began_us)
        )
        assert self._keeper.deadline_us is not None
        self._vigil.lease_deadline_us = self._keeper.deadline_us
        if self._retiming is not None and self._retiming.order is Order.RECORD:
            self._extend_times(self._retiming)
        self._turn()
        if first and self.world.settings.kernel:  # nothing is let go before a record that names it is durable (P7.14)
            group = f"/n{self.machine.node}" if self.life.is_tree else ""
            self._keeper.life = self.life.named = self.world.kernel.begin(self.machine.namespace, group)
        elif self.life.daemon is None and not self.life.began:
            self.life.began = True
            for name in ("init", "runner", DAEMON):
                self._vigil.begun(name, self.now_us())
            self.life.start_daemon()

    def _turn(self) -> None:
        """The loop turns: the deadman is moved as far as the vigil says (P7.12)."""
        deadline_us = self._vigil.turned(self.now_us())
        if deadline_us is not None:
            self._publish(deadline_us)

    def _publish(self, deadline_us: int) -> None:
        """The kernel's deadman first, then the feeder may go on until then (P7.32)."""
        unarmed, former_us = self._deadman_us is None, self._deadman_us
        self._deadman_us = self.clock.world_us(deadline_us)
        if unarmed or (former_us is not None and self._deadman_us < former_us):
            self.world.loop.at(self._deadman_us, self._deadman)
        if self._watchdog is not None:
            self._watchdog.extend(deadline_us)

    def _deadman(self) -> None:
        """The kernel's timer, and init's own look at the same deadline: no other process takes part in it."""
        assert self._deadman_us is not None
        assert self.life is not None
        if self.life.ended and not self.process.alive:
            return
        if self.world.loop.now_us < self._deadman_us:
            self.world.loop.at(self._deadman_us, self._deadman)
            return
        if self.process.alive and not self._stalled:  # its signal waits for the waking of a guard that is stalled
            self._log("deadman fired")
            self.die("its lease ran out")
        self.life.deadline_passed()

    # ---- the end ---------------------------------------------------------------------------------------------------

    def stall(self) -> None:
        """It waits in the kernel from now on: it does nothing, and no signal ends it."""
        if self.process.alive and self._deadman_us is not None:
            self._stalled = True
            self.world.loop.hold(self.process)

    def wake(self) -> None:
        """It goes on; if its deadline is over, the deadman's signal ends it first (P7.4)."""
        if not self._stalled:
            return
        self._stalled = False
        assert self._deadman_us is not None
        if self._dying or self.world.loop.now_us >= self._deadman_us:
            self._log("the guard wakes after its deadline")
            self.die(self._dying or "its lease ran out")
        else:
            self.world.loop.let_go(self.process)

    def die(self, cause: str) -> None:
        """This guard is killed; the rest of the node dies with it, within the panic bound."""
        if not self.process.alive:
            return
        if self._stalled or self._hangs_in_exit():
            self._dying = self._dying or cause
            return
        self._end_process()
        if self.life is not None:
            self.life.stop(cause, self.life.bound_us())
        self._ended(self)

    def power_cut(self) -> None:
        """It ends at this instant, whatever it waits for; what it runs does so by itself."""
        for process in (self.process, self.writer):
            process.lost_power = True
        self._end_process()
        self._ended(self)

    def _end_process(self) -> None:
        if self._watchdog is not None and self._watch.stage is Stage.ARMED:
            self._watchdog.guard_ends()
        self.process.kill()
        self.writer.kill()  # a write of it that is under way lands all the same

    def _hangs_in_exit(self) -> bool:
        """Now and then it cannot finish its exit: nobody is told of its death, so init ends the node (P7.9)."""
        world = self.world
        if (
            not world.settings.kernel
            or world.calm
            or self.life is None
            or world.random.random() >= world.settings.hangs
        ):
            return False
        self.stall()
        if self._stalled:
            self._log("the guard hangs in its exit")
            world.loop.after(int((0.05 + 8 * world.random.random()) * US_PER_S), self.wake)
        return self._stalled

    def hear(self, what: ToGuard) -> None:
        """The daemon says something."""
        match what:
            case effects.WatchLife():
                self.watch(what)
            case effects.Left():
                self.leave()
            case effects.Panic(cause=cause):
                self.panic(cause)

    def panic(self, cause: str) -> None:
        """Empty the node, then write the tombstone (SPEC 3.12, 7.1)."""
        self._end_node(cause, clean=False)

    def leave(self) -> None:
        """The graceful leave is complete: empty the node, then write the clean tombstone."""
        self._end_node("it left", clean=True)

    def _end_node(self, cause: str, clean: bool) -> None:
        if self._panicking or self.life is None:
            return
        self._panicking = True
        self._log(f"the guard stops the node: {cause}")
        within_us = self.life.bound_us() // 2 + 1
        self.life.stop(cause, within_us, swept=True)
        self.world.loop.deliver_after(within_us + 1, self.process, self._bury, cause, clean, TOMBSTONE_TRIES)
        self._hangs_in_exit()

    def _bury(self, cause: str, clean: bool, tries: int) -> None:
        """Everything has ended: say so in the store, if it can be reached, and end."""
        assert self._keeper is not None
        assert self.life is not None
        # What hangs in the kernel has not ended (P7.5); the writer does one thing after the other.
        if not self.life.ended or (self._busy and not self.machine.access.waits_for_write_of(self.writer)):
            self.world.loop.deliver_after(10 * US_PER_MS, self.process, self._bury, cause, clean, tries)
            return
        if tries == 0 or self._keeper.deadline_us is None or self._busy:
            # Without a tombstone the lease simply runs out.
            self._end_process()
            self._ended(self)
            return
        tombstone = self._keeper.tombstone(clean, cause)
        self._write(tombstone, lambda succeeded: self._buried(cause, clean, tries, succeeded))

    def _buried(self, cause: str, clean: bool, tries: int, succeeded: bool) -> None:
        if succeeded:
            assert self.life is not None
            if self._watchdog is not None and self._watch.may_close(empty=self.life.ended, buried=succeeded):
                self._watchdog.close()
            self._end_process()
            self._ended(self)
            return
        self.world.loop.deliver_after(10 * US_PER_MS, self.process, self._bury, cause, clean, tries - 1)

    def _log(self, what: str) -> None:
        self.world.history.append(Logged(self.world.loop.now_us, self.machine.node, what))
