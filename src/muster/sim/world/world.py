"""A virtual cluster: machines, a shared store, an interconnect and clients around the very core that real nodes run.

`World` does what a schedule says, step by step or all at once, and records what an observer would see (`history.py`).
It judges nothing. A script can drive it too: `perform(deed)`, `run_until(time)`, and look at `history`.
"""

from collections.abc import Callable
from random import Random

import msgspec

from muster.core.effects import WatchLife
from muster.core.inputs import OperationRequested
from muster.core.mastership.tenure import newest_journal, restore
from muster.core.services.instances import SEPARATOR
from muster.records.database import encode_database, initial_database
from muster.records.levels import Required
from muster.records.nodes import Cluster, NodeConfig
from muster.records.registers import Claim, ClaimFlag, Mark, RegisterKind
from muster.records.services import Service
from muster.records.terms import Stamp, Term
from muster.records.units import US_PER_MS
from muster.records.versions import HIGHEST
from muster.sim import schedule
from muster.sim.history import Asked, Disturbed, Healed
from muster.sim.world import fence_unit, watchdog
from muster.sim.world.bare_machine import BareMachine
from muster.sim.world.disk import CheckpointTarget, RegisterTarget, VirtualStore
from muster.sim.world.machine import Machine
from muster.sim.world.surroundings import Settings, VirtualSurroundings
from muster.sim.world.time import US_PER_S

ASK_AGAIN_US = 1 * US_PER_S
MAXIMUM_ASKING = 6  # times that a client repeats a request
MAXIMUM_EVENTS = 3_000_000  # of one run: more is a loop without progress in virtual time
NO_HOME_KNOWS = 1 << 60  # an index above all others
FIRST_TERM = Term(1, 0)
FIRST_MARK = Mark(FIRST_TERM, 0, 1)


class World(VirtualSurroundings):
    """One virtual cluster and its time."""

    def __init__(self, settings: Settings, random: Random) -> None:
        super().__init__(settings, random, self._reached)
        self._copy: tuple[VirtualStore, int] | None = None  # of the store, and the index that it holds
        self.machines = [Machine(self, node, self.machine_stopped, self._hand_over) for node in range(settings.nodes)]
        self._armed: list[tuple[schedule.When, list[int]]] = []  # with what remains to be counted
        self._perform = self._performers()
        self.outlets.cut = lambda node: self.machines[node].power_cut()
        self.outlets.give = lambda node: self.machines[node].boot()
        self._format()

    def _format(self) -> None:
        """What `muster init` leaves: slot 0 holds the first journal, at index 0."""
        nodes = tuple(NodeConfig(m.node, m.name, (f"sim:{m.node}",), "") for m in self.machines)
        required = tuple(Required(level.number, level.name) for level in self.settings.required)
        shared = Cluster(
            "sim", "0" * 32, self.profile.name, "", active_version=HIGHEST, required_levels=required,
            lockspaces=("orders",) if self.settings.decides else (),
        )  # fmt: skip
        database = initial_database(shared, nodes)
        for definition in self.settings.services:
            service = Service(definition, 0, wanted=definition.auto_register)
            database.services[definition.name] = service
        database.fence_devices = fence_unit.devices(self.settings.fenced)
        if self.settings.fenced:
            database.fence_plans = {m.node: fence_unit.plan(m.node, self.settings.fenced) for m in self.machines}
        for copy in (0, 1):
            CheckpointTarget(self.store.halves[0][0], FIRST_MARK, encode_database(database)).land(copy)
            claim = Claim(Stamp(0, 0, FIRST_TERM, 1), ClaimFlag.WITHDRAWN, FIRST_MARK)
            RegisterTarget(self.store, self.store.cells[RegisterKind.CLAIM][0], claim).land(copy)

    # ---- driving it ----------------------------------------------------------------------------------------------

    def follow(self, steps: schedule.Schedule) -> None:
        """Plan all steps of a schedule."""
        for step in steps:
            self.loop.at(step.at_us, self.perform, step.deed)

    def run_until(self, time_us: int, slice_us: int = 100 * US_PER_MS) -> None:
        """Let virtual time pass until `time_us`, or until the core raises. Raises `RuntimeError` on an endless loop."""
        while self.loop.now_us < time_us and not self.stopped:
            self.loop.run_until(min(time_us, self.loop.now_us + slice_us))
            if self.loop.events_run > MAXIMUM_EVENTS:
                raise RuntimeError(
                    f"{MAXIMUM_EVENTS} events by {self.loop.now_us} us of virtual time: a loop that makes no progress"
                )

    def perform(self, deed: schedule.Deed | schedule.When) -> None:
        """Do one deed now."""
        if isinstance(deed, schedule.When):
            self._armed.append((deed, [deed.count]))
            for machine in self.machines:
                machine.access.observe = machine.point
            return
        if not isinstance(deed, schedule.Ask):
            self.history.append(Disturbed(self.loop.now_us, repr(deed)))
        self._perform[type(deed)](deed)

    def _performers(self) -> dict[type, Callable[..., None]]:
        return {
            schedule.Boot: lambda deed: self.machines[deed.node].boot(),
            schedule.PowerCut: lambda deed: self.machines[deed.node].power_cut(),
            schedule.Fence: self._fence,
            schedule.Device: self._device,
            schedule.Kill: lambda deed: self.machines[deed.node].kill(deed.process),
            schedule.Pause: self._pause,
            schedule.Resume: self._resume,
            schedule.Stall: self._stall,
            schedule.Retime: self._retime,
            schedule.Reboot: self._reboot,
            schedule.CopyStore: self._copy_store,
            schedule.ReplaceStore: self._replace_store,
            schedule.Cut: self._cut,
            schedule.Isolate: self._isolate,
            schedule.Blind: self._blind,
            schedule.HoldStore: self._hold_store,
            schedule.Weather: self._weather,
            schedule.Spoil: self._spoil,
            schedule.Lossy: self._lossy,
            schedule.Hang: self._hang,
            schedule.Unhang: lambda deed: self.machines[deed.node].unhang(deed.level),
            schedule.Come: self._come,
            schedule.Go: self._go,
            schedule.Drop: self._drop,
            schedule.TakeLock: self._take_lock,
            schedule.Mend: lambda deed: self._mend(deed.node),
            schedule.Ask: lambda deed: self._ask(deed, 1),
            schedule.Fail: self._fail,
            schedule.FailOne: self._fail_one,
            schedule.Calm: self._calm,
        }

    def _reached(self, node: int, what: str, stage: str) -> None:
        """The run has reached a point that a `When` may wait for."""
        if not self._armed:
            return
        for item in list(self._armed):
            when, remaining = item
            if when.what == what and when.stage == stage and when.node in (node, schedule.EVERYWHERE):
                remaining[0] -= 1
                if remaining[0] == 0:
                    self._armed.remove(item)
                    deed = _at(when.deed, node)
                    if when.delay_us:
                        self.loop.after(when.delay_us, self._unless_calm, deed)
                    else:
                        self.perform(deed)

    # ---- what machines ask for -----------------------------------------------------------------------------------

    def machine_stopped(self, machine: Machine) -> None:
        """A node has stopped: it may be booted again after a while."""
        if self.calm:
            self.loop.after(100 * US_PER_MS, machine.boot)
        elif self.random.random() < self.settings.reboots:
            self.loop.after(int((0.1 + self.random.random() * 2.5) * US_PER_S), machine.boot)

    def _hand_over(self, asking: BareMachine, asked: WatchLife) -> bool:
        """Whether the guard that is asked about hands the one that asks a descriptor of its life."""
        holder = self.machines[asked.node]
        return holder.guard is not None and asking.is_handed_by(holder) and holder.guard.offers(asked)

    # ---- deeds ---------------------------------------------------------------------------------------------------

    def _later(self, for_us: int, deed: schedule.Deed) -> None:
        if for_us:
            self.loop.after(for_us, self._unless_calm, deed)

    def _unless_calm(self, deed: schedule.Deed) -> None:
        if not self.calm:
            self.perform(deed)

    def _fence(self, deed: schedule.Fence) -> None:
        fenced = self.machines[deed.node]
        incarnations = [life.incarnation for life in fenced.lives]
        fenced.power_cut()
        for machine in self.machines:
            for incarnation in incarnations:
                delay_us = int((25 + self.random.random() * 300) * US_PER_MS)
                self.loop.after(delay_us, self._confirm_fence, machine, deed.node, incarnation)

    def _confirm_fence(self, machine: Machine, node: int, incarnation: int) -> None:
        if machine.daemon is not None:
            machine.daemon.fence_confirmed(node, incarnation)

    def _device(self, deed: schedule.Device) -> None:
        self.outlets.modes[deed.name] = deed.mode
        self._later(deed.for_us, schedule.Device(deed.name, "well"))

    def _pause(self, deed: schedule.Pause) -> None:
        for process in self.machines[deed.node].processes(deed.process):
            self.loop.pause(process)
        self._later(deed.for_us, schedule.Resume(deed.process, deed.node))

    def _resume(self, deed: schedule.Resume) -> None:
        for process in self.machines[deed.node].processes(deed.process):
            self.loop.resume(process)

    def _stall(self, deed: schedule.Stall) -> None:
        machine = self.machines[deed.node]
        guard, life = machine.guard, machine.life
        if guard is None or life is None or not life.began:
            return
        guard.stall()
        for which in deed.beside:
            life.hold(which)
        if deed.for_us:
            self.loop.after(deed.for_us, life.release)
            self.loop.after(deed.for_us, guard.wake)

    def _retime(self, deed: schedule.Retime) -> None:
        """Each guard hears of it from its daemon, sooner or later; a later boot begins with it."""
        self.profile = watchdog.retimed(self.profile, deed.deadline_ms, deed.watchdog_ms)
        for machine in self.machines:
            if machine.guard is not None:
                delay_us = int(self.random.random() * 300 * US_PER_MS)
                self.loop.deliver_after(delay_us, machine.guard.process, machine.guard.take_profile, self.profile)

    def _reboot(self, _deed: schedule.Reboot) -> None:
        for machine in self.machines:
            machine.power_cut()
        self.kernel.boot_anew()

    def _copy_store(self, _deed: schedule.CopyStore) -> None:
        copy = self.store_of_the_cluster.copied()
        self._copy = copy, _index_of(copy)

    def _replace_store(self, deed: schedule.ReplaceStore) -> None:
        match deed.by:
            case "copy" if self._copy is not None and self._all_remember_more():
                self.store = self._copy[0].copied()
            case "other":
                slots, half_bytes = self.settings.nodes, self.settings.half_bytes
                self.store = VirtualStore(self.loop, self.random, slots, half_bytes, "another")
            case "nothing":
                self.path_is_away = True
            case "itself":
                self.store, self.path_is_away = self.store_of_the_cluster, False
            case _:
                return
        if deed.for_us:
            self.loop.after(deed.for_us, self._replace_store, schedule.ReplaceStore("itself"))

    def _all_remember_more(self) -> bool:
        """Whether each home knows of an entry that the copy lacks: else nobody could tell it from the store."""
        assert self._copy is not None
        homes = [machine.remembered for machine in self.machines]
        return all(home is not None and home.index > self._copy[1] for home in homes)

    def _cut(self, deed: schedule.Cut) -> None:
        self.network.cut(deed.source, deed.to)
        if deed.for_us:
            self.loop.after(deed.for_us, self._join_link, deed.source, deed.to)

    def _join_link(self, source: int, to: int) -> None:
        self.network.links[source, to].up = True

    def _isolate(self, deed: schedule.Isolate) -> None:
        for other in range(self.settings.nodes):
            if other != deed.node:
                self._cut(schedule.Cut(deed.node, other, deed.for_us))
                self._cut(schedule.Cut(other, deed.node, deed.for_us))
        if deed.unplugged:
            self.machines[deed.node].plug(False)
            if deed.for_us:
                self.loop.after(deed.for_us, self.machines[deed.node].plug, True)

    def _blind(self, deed: schedule.Blind) -> None:
        access = self.machines[deed.node].access
        access.isolated = True
        if deed.for_us:
            self.loop.after(deed.for_us, setattr, access, "isolated", False)

    def _hold_store(self, deed: schedule.HoldStore) -> None:
        for machine in self.machines:
            if deed.node in (machine.node, schedule.EVERYWHERE):
                machine.access.held_until_us = self.loop.now_us + deed.for_us

    def _weather(self, deed: schedule.Weather) -> None:
        everyone = deed.node == schedule.EVERYWHERE
        weather = self.store.weather if everyone else self.machines[deed.node].access.weather
        weather.slowness, weather.failing, weather.unknown = deed.slowness, deed.failing, deed.unknown
        weather.unreadable = self.store.unreadable() if deed.unknown else 0
        if deed.for_us:
            self.loop.after(deed.for_us, weather.calm)

    def _spoil(self, deed: schedule.Spoil) -> None:
        access = self.machines[deed.node].access
        access.spoil(deed.what, hangs=deed.hangs)
        if deed.for_us:
            self.loop.after(deed.for_us, self._mend_writes, deed.node)

    def _mend_writes(self, node: int) -> None:
        self.machines[node].access.mend()
        for life in self.machines[node].lives:
            if life.stopping:
                life.all_gone()

    def _lossy(self, deed: schedule.Lossy) -> None:
        for link in self.network.links.values():
            link.lost, link.duplicated, link.jitter_us = deed.lost, deed.duplicated, deed.jitter_us
        if deed.for_us:
            self._later(deed.for_us, schedule.Lossy(0.0, 0.0, 150))

    def _hang(self, deed: schedule.Hang) -> None:
        self.machines[deed.node].hung.add(deed.level)
        self._later(deed.for_us, schedule.Unhang(deed.level, deed.node))

    def _come(self, deed: schedule.Come) -> None:
        life = self.machines[deed.node].life
        if life is not None and not life.stopping:
            life.go(deed.level.number)
            life.come(deed.level)

    def _go(self, deed: schedule.Go) -> None:
        life = self.machines[deed.node].life
        if life is not None and not life.stopping:
            life.go(deed.level, departed=deed.departs)

    def _drop(self, deed: schedule.Drop) -> None:
        life = self.machines[deed.node].life
        if life is not None and not life.stopping:
            life.drop(deed.level, deed.for_us, fails=deed.fails)

    def _take_lock(self, deed: schedule.TakeLock) -> None:
        holder = self.decision_lock.holder
        if holder is not None and deed.pauses:
            self._pause(schedule.Pause("daemon", deed.for_us, holder))
        self.decision_lock.take_away(deed.for_us)

    def _mend(self, node: int) -> None:
        access = self.machines[node].access
        access.isolated = False
        access.weather.calm()
        self._mend_writes(node)
        for (source, to), link in self.network.links.items():
            if node in (source, to):
                link.calm()
        self.machines[node].plug(True)

    def _ask(self, deed: schedule.Ask, times: int) -> None:
        if times == 1:
            self.unanswered.add(deed.identity)
            self.history.append(Asked(self.loop.now_us, deed.node, deed.identity, deed.operation))
        if deed.identity not in self.unanswered or (self.calm and times > 1):
            return
        node = (deed.node + times // 3) % self.settings.nodes  # a client that gets no answer tries another node
        daemon = self.machines[node].daemon
        if daemon is not None:
            daemon.request(OperationRequested(deed.identity, deed.operation))
        if times < MAXIMUM_ASKING:
            self.loop.after(ASK_AGAIN_US, self._ask, deed, times + 1)

    def _fail(self, deed: schedule.Fail) -> None:
        machine = self.machines[deed.node]
        life, daemon = machine.life, machine.daemon
        if life is None or daemon is None or daemon.node is None:
            return
        for name in (deed.service, f"{deed.service}{SEPARATOR}{machine.name}"):
            service = daemon.node.database.services.get(name)
            if service is None:
                continue
            if service.definition.check_command and deed.hangs:
                life.service_ails(name)
            elif service.definition.run or (service.definition.check_command and not service.definition.on_failure):
                life.service_dies(name)

    def _fail_one(self, deed: schedule.FailOne) -> None:
        running = [
            (machine.node, service)
            for machine in self.machines
            if machine.life is not None
            for service in sorted(machine.life.runner.active)
            if machine.life.runner.is_started(service)
        ]
        if running:
            node, service = running[deed.pick % len(running)]
            self._fail(schedule.Fail(service, node, deed.hangs))

    def _calm(self, _deed: schedule.Calm) -> None:
        self.calm = True
        self._armed.clear()
        self.network.calm()
        self.store, self.path_is_away = self.store_of_the_cluster, False
        self.store.weather.calm()
        self.outlets.calm()
        for machine in self.machines:
            machine.access.observe = None
            machine.access.held_until_us = 0
            self._mend(machine.node)
            for level in list(machine.hung):
                machine.unhang(level)
            machine.let_go()
            for process in machine.processes("all"):
                self.loop.resume(process)
            machine.boot()
        self.history.append(Healed(self.loop.now_us))


def _index_of(store: VirtualStore) -> int:
    """The index that a boot on this store finds, whether anybody ran when it was written or not."""
    newest = newest_journal(store.newest())
    image = store.halves[newest[0]][newest[1].half].read(newest[1]) if newest is not None else None
    return restore(*image).index if image is not None else NO_HOME_KNOWS


def _at(deed: schedule.Here, node: int) -> schedule.Here:
    """The deed, at this node if it does not name one."""
    return msgspec.structs.replace(deed, node=node) if deed.node == schedule.HERE else deed
