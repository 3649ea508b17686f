"""Random clusters, workloads and faults: everything that a seed stands for.

Faults come singly and in company, at random times and at chosen points: right after a claim was written, half way
through a frame, at an election, between a command and its result. Those are the moments that the rules are about.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple, TypeVar

from msgspec.structs import replace

from muster.records.configuration import ConfigureCluster
from muster.records.levels import LOCK_MANAGER_LEVEL, Barriers, Level
from muster.records.members import EvictNode, LeaveNode
from muster.records.operations import OperationRequest
from muster.records.services import (
    ApplyServices,
    Definition,
    DeregisterService,
    RegisterService,
    SetStandby,
    TransferService,
)
from muster.records.timing import FAST, check
from muster.records.units import US_PER_MS
from muster.sim import schedule
from muster.sim.faults import random_services
from muster.sim.schedule import Deed, Step, When
from muster.sim.world.surroundings import Settings
from muster.sim.world.time import US_PER_S
from muster.sim.world.watchdog import WATCHED

LEVELS = ((10, "lock manager"), (20, "virtual disks"), (30, "file system"))
PROGRAMS = ((15, "volume cache"), (50, "application"))
WRITTEN = ("claim", "claim", "mark", "withdrawal", "frame", "frame", "checkpoint", "marks", "lease")
RARE = ("claim", "mark", "withdrawal", "checkpoint", "marks", "elected")  # points that a run reaches a few times
CLAIM = ("claim", "mark", "withdrawal")  # what is written into a claim register
STAGES = ("begun", "half written", "written", "written")
REACHED = ("elected", "elected", "commit", "notify", "acknowledge", "command")
LONG_LEASES = check(
    FAST._replace(
        name="long leases",
        lease_ms=6000,
        panic_bound_ms=1200,
        heartbeat_ms=150,
        suspect_ms=900,
        mastership_ms=800,
        boot_grace_ms=4000,
    )
)  # as machines have them that share a disk, with everything else as fast as runs are short
Choice = TypeVar("Choice")


class Plan(NamedTuple):
    """One random run."""

    settings: Settings
    steps: schedule.Schedule
    calm_us: int  # when the last fault ends


def plan(random: Random) -> Plan:
    """The run of one seed; everything in it is drawn from `random`."""
    return _Planner(random).plan()


class _Planner:
    def __init__(self, random: Random) -> None:
        self.random = random
        self.failing = random.random() < 0.3  # services that fail all the time, and little else that happens
        self.nodes = self._pick((2, 3, 3) if self.failing else (2, 3, 3, 3, 3, 3, 4, 5))
        self.calm_us = int((6 + random.random() * 8) * US_PER_S)
        # Services of every sort; otherwise plain ones, and more of the rest.
        self.launching = self.failing or random.random() < 0.6
        most = 6 if self.launching and not self.failing else 4
        self.services = [f"s{number}" for number in range(1 + int(random.random() * most))]
        # In some runs services have cleanups; drawn apart, so that all other runs stay as they are.
        apart = Random(f"cleanups {self.calm_us} {len(self.services)}")
        self.cleanups = apart if apart.random() < 0.35 else None
        self.watched = {name: random_services.watched(random, self.failing) for name in self.services}
        self.overrides: Random | None = None  # of operators who override objections, in runs that have any
        self.steps: schedule.Schedule = []
        self.programs = [Level(number, name) for number, name in PROGRAMS]
        self.asked = 0
        self.now_us = 0
        self.faults: tuple[Callable[[], None], ...] = (
            self._power_cut, self._power_cut, self._fence, self._kill, self._kill, self._pause, self._pause,
            self._pause, self._isolate, self._cut, self._split, self._blind, self._slow, self._failing, self._lossy,
            self._hang,
            self._at_a_point, self._at_a_point, self._at_a_point, self._at_a_point, self._at_a_point,
            self._frozen_master, self._slow_claimer, self._slow_claimer, self._unreadable_claim, self._unreadable_claim,
        )  # fmt: skip

    def plan(self) -> Plan:
        """Draw the settings of a run, then its steps, in the order of their times."""
        levels = tuple(
            Level(number, name, Barriers(*(1 + int(self.random.random() * 2.4) for _ in range(3))))
            for number, name in LEVELS
            if self.random.random() < 0.6
        )
        cursed = frozenset(
            (service, node)
            for service in self.services
            for node in range(self.nodes)
            if self.random.random() < 0.08 and not self.failing
        )
        shared = self.calm_us % 4 == 0  # of which there need be no draw of its own
        settings = Settings(
            self.nodes, FAST, levels,
            half_bytes=self._pick((60_000, 90_000, 1 << 20)),
            cursed=cursed, flaky=0.0 if self.failing else self._pick((0.0, 0.0, 0.1, 0.3)),
            reboots=self._pick((0.7, 1.0)),
            shared=shared,
        )  # fmt: skip
        if shared:
            self._stalls()
            settings = self._watched(self._with_long_leases(self._fenced(settings)))
        settings = self._objections(settings)
        self._boot()
        if self.failing:
            self._disturb_services()
        else:
            self._disturb()
            if self.random.random() < 0.6:
                self._programs()
        if self.random.random() < 0.5:  # one last failure, which nothing else hides
            self.now_us = self.calm_us - self._us(1, 100)
            self._fail()
        if self.random.random() < 0.15:
            self._spoil()
        self._store_goes_back()
        required = self._required()
        self._connections_drop()
        self._fill()
        self.steps.append(Step(self.calm_us, schedule.Calm()))
        self.steps.sort(key=lambda step: step.at_us)
        if (
            self.random.random() < 0.6 and not settings.shared
        ):  # drawn last: all the rest is the same with and without it
            elsewhere = frozenset(node for node in range(self.nodes) if self.random.random() < 0.2)
            hangs = self._pick((0.0, 0.1, 0.3))
            settings = settings._replace(kernel=True, elsewhere=elsewhere, hangs=hangs)
            settings = self._under_one_kernel(settings)
        settings = settings._replace(required=required)
        settings = self._decision_lock(settings)
        self.steps.sort(key=lambda step: step.at_us)
        return Plan(settings, self.steps, self.calm_us)

    def _objections(self, settings: Settings) -> Settings:
        """In some runs subsystems may object to planned changes; drawn apart, as cleanups are."""
        apart = Random(f"objections {self.calm_us} {len(self.services)}")
        if apart.random() >= 0.3 or not settings.levels:
            return settings
        self.overrides = apart
        levels = tuple(level._replace(vetoes=apart.random() < 0.7) for level in settings.levels)
        return settings._replace(levels=levels, objecting=apart.choice((0.2, 0.5)))

    def _boot(self) -> None:
        for node in range(self.nodes):
            late = self.random.random() < 0.2
            self._step(self._us(0, 3000 if late else 50), schedule.Boot(node))
        self.now_us = self._us(50, 1500)
        self._ask(ApplyServices(tuple(self._definition(name) for name in self.services)))

    def _disturb(self) -> None:
        """Operations and faults until it is calm."""
        pace_ms = self._pick((150, 300, 600))
        share = self._pick((0.2, 0.4, 0.7))
        while True:
            self.now_us += self._us(10, 2 * pace_ms)
            if self.now_us >= self.calm_us - 100 * US_PER_MS:
                return
            if self.random.random() < share:
                self._pick(self.faults)()
            elif self.random.random() < (0.3 if self.launching else 0.15):
                self._fail()
            else:
                self._ask(self._operation())

    def _disturb_services(self) -> None:
        """Failures one after the other, what operators do about them, and what happens to those who see them."""
        pace_ms = self._pick((50, 150, 300))
        faults = (self._disturb_who_sees, self._disturb_who_sees, self._kill, self._pause, self._cut, self._at_a_point)
        while True:
            self.now_us += self._us(10, 2 * pace_ms)
            if self.now_us >= self.calm_us - 100 * US_PER_MS:
                return
            draw = self.random.random()
            if draw < 0.5:
                self._fail()
            elif draw < 0.7:
                self._ask(random_services.upkeep(self.random, self._pick(self.services), f"n{self._node()}"))
            elif draw < 0.8:
                self._ask(ApplyServices((self._definition(self._pick(self.services)),)))
            elif draw < 0.9:
                self._do(schedule.Lossy(0.2, 0.1, self._pick((1000, 200_000)), self._us(100, 800)))
            else:
                self._pick(faults)()

    def _programs(self) -> None:
        """Programs that register levels while the cluster runs, go, come back, and take each other's place."""
        levels = self.programs = [
            Level(number, name, Barriers(*(1 + int(self.random.random() * 2.4) for _ in range(3))))
            for number, name in PROGRAMS
        ]
        self.now_us = 0
        pace_ms = self._pick((100, 300, 1000))
        while True:
            self.now_us += self._us(1, 2 * pace_ms)
            if self.now_us >= self.calm_us - 50 * US_PER_MS:
                return
            level, node = self._pick(levels), self._node()
            if self.random.random() < 0.35:
                self._do(schedule.Go(level.number, node))
                if self.random.random() < 0.6:
                    self._step(self.now_us + self._us(0, 30), schedule.Come(level, node))
            else:
                self._do(schedule.Come(level, node))

    def _required(self) -> tuple[Level, ...]:
        """In some runs nodes must have a program before they join; drawn apart, so that all others stay as they are."""
        random = Random(f"required {self.calm_us} {self.nodes}")
        if random.random() < 0.75:
            return ()
        went = [step for step in self.steps if isinstance(step.deed, schedule.Go)]
        self.steps = [step for step in self.steps if not isinstance(step.deed, schedule.Go)]
        for step in went:
            self.steps.append(replace(step, deed=replace(step.deed, departs=random.random() < 0.5)))
        required = self.programs[: 1 + int(random.random() * 1.5)]  # what each machine starts by itself
        highest = required[-1].number
        at_us = 0
        for number, value in enumerate(("none", "15", f"{highest}", "none", f"{highest}")):
            at_us += int(random.random() * self.calm_us / 3)
            if at_us < self.calm_us and random.random() < 0.5:
                asked = ConfigureCluster("required_levels", value)
                node = int(random.random() * self.nodes)
                self.steps.append(Step(at_us, schedule.Ask(node, f"required{number}", asked)))
        return tuple(required)

    # ---- draws ---------------------------------------------------------------------------------------------------

    def _pick(self, choices: Sequence[Choice]) -> Choice:
        return choices[int(self.random.random() * len(choices))]

    def _us(self, lowest_ms: float, highest_ms: float) -> int:
        return int((lowest_ms + self.random.random() * (highest_ms - lowest_ms)) * US_PER_MS)

    def _node(self) -> int:
        return int(self.random.random() * self.nodes)

    def _step(self, at_us: int, deed: Deed | When) -> None:
        self.steps.append(Step(at_us, deed))

    def _do(self, deed: Deed | When) -> None:
        self._step(self.now_us, deed)

    def _length_us(self) -> int:
        """Of a fault: mostly around the bounds that decide something."""
        return self._us(*self._pick(((20, 200), (200, 500), (400, 800), (600, 1500), (1000, 3000))))

    # ---- workload ------------------------------------------------------------------------------------------------

    def _ask(self, operation: OperationRequest) -> None:
        self.asked += 1
        may_object = isinstance(operation, LeaveNode | TransferService | DeregisterService | SetStandby)
        if self.overrides is not None and may_object and self.overrides.random() < 0.3:
            operation = replace(operation, override=True)
        self._do(schedule.Ask(self._node(), f"op{self.asked}", operation))

    def _definition(self, name: str) -> Definition:
        made = self._plain_definition(name)
        apart = self.cleanups
        if apart is None or apart.random() < 0.25:
            return made
        clears = ("clear", str(int(apart.random() * 100)))  # of this definition: no other one clears what it leaves
        return replace(made, cleanup_command=clears)

    def _plain_definition(self, name: str) -> Definition:
        nodes = [f"n{node}" for node in range(self.nodes)]
        if self.launching:
            older = self.services[: self.services.index(name)]
            made = random_services.definition(self.random, name, nodes, older)
            return self.watched[name].applied_to(made, self.random)
        everywhere = self.random.random() < 0.6
        allowable = ("*",) if everywhere else tuple(n for n in nodes if self.random.random() < 0.7) or (nodes[0],)
        ordered = tuple(n for n in reversed(nodes) if self.random.random() < 0.4)
        refused = tuple(n for n in nodes[1:] if everywhere and self.random.random() < 0.1)
        has = self.random.random
        made = Definition(
            name, allowable, refused, ordered,
            auto_register=has() < 0.85,
            start_command=("start",) if has() < 0.95 else (),
            stop_command=("stop",) if has() < 0.8 else (),
            recovery_command=("recover",) if has() < 0.4 else (),
            start_timeout_ms=1500, stop_timeout_ms=1500, recovery_timeout_ms=1500, cleanup_timeout_ms=1500,
        )  # fmt: skip
        return self.watched[name].applied_to(made, self.random)

    def _operation(self) -> OperationRequest:
        service, draw = self._pick(self.services), self.random.random()
        if self.launching and self.random.random() < 0.4:
            return random_services.operation(self.random, service, f"n{self._node()}")
        if draw < 0.3:
            return RegisterService(service)
        if draw < 0.45:
            return DeregisterService(service)
        if draw < 0.7:
            return TransferService(service, f"n{self._node()}" if self.random.random() < 0.5 else "")
        if draw < 0.8:
            withdraw = (service,) if self.random.random() < 0.15 else ()
            return ApplyServices((self._definition(self._pick(self.services)),) if not withdraw else (), withdraw)
        if draw < 0.93:
            return LeaveNode(f"n{self._node()}")
        return EvictNode(f"n{self._node()}", "the operator wants it out")

    def _fail(self) -> None:
        """A service fails. Often something happens to those who are to see it."""
        self._do(schedule.FailOne(int(self.random.random() * 60), self.random.random() < 0.3))
        if self.random.random() < (0.2 if self.failing else 0.4):
            self._disturb_who_sees()

    def _disturb_who_sees(self) -> None:
        for_us = self._us(20, 400 if self.failing else 700)
        deeds: tuple[schedule.Here, ...] = (
            schedule.Kill("daemon"), schedule.Kill("daemon"), schedule.Kill("watcher"), schedule.Kill("watcher"),
            schedule.Pause("daemon", for_us), schedule.Pause("watcher", for_us), schedule.Pause("watcher", for_us),
            schedule.Pause("runner", for_us), schedule.Pause("all", for_us), schedule.PowerCut(),
        )  # fmt: skip
        what, deed = self._pick(("failure", "failure", "request")), self._pick(deeds)
        self._step(self.now_us - 1, When(what, "begun", 1, deed, delay_us=self._us(0, 3)))
        if self.random.random() < 0.3:
            self._step(self.now_us - 1, When("request", "begun", 1, schedule.Kill("daemon"), self._node()))

    def _stalls(self) -> None:
        """Guards that wait in the kernel, alone or not, and wake at some moment or only when everything is over."""
        random = Random(self.calm_us)
        if random.random() < 0.25:  # of all nodes at once: nobody may lead any more
            for node in range(self.nodes):
                stall = schedule.Stall(self.calm_us, node, ("init", "runner"))
                self._step(int((2 + random.random()) * US_PER_S), stall)
            return
        for _ in range(1 + int(random.random() * 3)):
            at_us = int((1 + random.random() * 6) * US_PER_S)
            for_us = int((0.2 + random.random() * random.choice((1, 2, 12))) * US_PER_S)
            node = int(random.random() * self.nodes)
            beside = random.choice(((), ("init",), ("init", "runner"), ("init", "runner")))
            self._step(at_us, schedule.Stall(for_us, node, beside))

    def _watched(self, settings: Settings) -> Settings:
        """In half of the runs between machines each has a watchdog, and the profile changes now and then (P7.30)."""
        if self.calm_us % 8 != 4 or settings.profile is not FAST:
            return settings
        random = Random(f"watchdogs {self.calm_us} {len(self.services)}")
        last_us = self.calm_us - 3 * US_PER_S
        for _ in range(1 + int(random.random() * 3)):  # for longer than any lease
            node, at_us = (
                int(random.random() * self.nodes),
                int(2 * US_PER_S + random.random() * (last_us - 2 * US_PER_S)),
            )
            self._step(at_us, schedule.Stall(self.calm_us, node, ("init", "runner")))
            self._step(at_us, schedule.Pause("daemon", self.calm_us, node))  # who is heard is not dead (P4.6)
        timeout_ms = 1000
        for _ in range(int(random.random() * 6)):
            at_us, timeout_ms = int((1 + random.random() * 6) * US_PER_S), 4000 - timeout_ms
            self._step(at_us, schedule.Retime(random.choice((600, 600, 900, 1500)), timeout_ms))
            if random.random() < 0.7:  # just as a record is written, or a little later
                node, count = int(random.random() * self.nodes), 1 + int(random.random() * 6)
                stall = schedule.Stall(self.calm_us, node, ("init", "runner"))
                delay_us = int(random.random() * 3000) if random.random() < 0.3 else 0
                self._step(at_us, When("lease", "written", count, stall, node, delay_us))
                pause = schedule.Pause("daemon", self.calm_us, node)
                self._step(at_us, When("lease", "written", count, pause, node, delay_us))
        return settings._replace(profile=WATCHED, watchdogs=random.choice(("well", "late", "late", "board")))

    def _connections_drop(self) -> None:
        """Programs that live lose their connections, and come back in time or not; drawn apart (P3.16)."""
        random = Random(f"drops {self.calm_us} {len(self.services)}")
        for _ in range(int(random.random() * 6)):
            at_us = int((1 + random.random() * (self.calm_us / US_PER_S - 1)) * US_PER_S)
            level, node = random.choice(PROGRAMS)[0], int(random.random() * self.nodes)
            for_us = int(random.choice((0.1, 0.5, 6)) * random.random() * US_PER_S) + 1
            self._step(at_us, schedule.Drop(level, node, for_us, random.random() < 0.3))

    def _fill(self) -> None:
        """Definitions until the store takes no more, and later some of them away; drawn apart (P9.3)."""
        random = Random(f"fill {self.calm_us} {len(self.services)}")
        if random.random() >= 0.1:
            return
        at_us = int((1.5 + random.random()) * US_PER_S)
        for number in range(20):
            name = f"f{number}"
            long = ("start", "x" * int(random.random() * 500))
            made = Definition(
                name, start_command=long, stop_command=("stop",), start_timeout_ms=1500, stop_timeout_ms=1500
            )
            at_us += int(random.random() * 60 * US_PER_MS)
            node = int(random.random() * self.nodes)
            self._step(at_us, schedule.Ask(node, f"fill{number}", ApplyServices((made,))))
            if random.random() < 0.3:
                later_us = at_us + int((0.3 + random.random() * 3) * US_PER_S)
                self._step(later_us, schedule.Ask(node, f"take{number}", ApplyServices((), (name,))))

    def _store_goes_back(self) -> None:
        """The store is renamed over by an older copy or by another one, or is away; drawn apart (P11.1-P11.4)."""
        random = Random(f"store {self.calm_us} {len(self.services)}")
        if random.random() >= 0.2:
            return
        copied_us = int((1 + 2 * random.random()) * US_PER_S)
        replaced_us = copied_us + int((1 + 4 * random.random()) * US_PER_S)
        by = random.choice(("copy", "copy", "copy", "other", "nothing"))
        for_us = int(random.choice((0.1, 0.5, 2, 9)) * random.random() * US_PER_S) + 1
        self._step(copied_us, schedule.CopyStore())
        self._step(replaced_us, schedule.ReplaceStore(by, for_us))

    def _fenced(self, settings: Settings) -> Settings:
        """In half of the runs in which nothing else proves an end: fence devices, and what they do wrong (P7.22)."""
        random = Random(f"fencing {self.calm_us} {len(self.services)}")
        if random.random() < 0.5:
            return settings
        devices = random.choice((("pdu",), ("board", "pdu"), ("board", "pdu")))
        for _ in range(int(random.random() * 6)):
            at_us = int((0.5 + random.random() * (self.calm_us / US_PER_S - 1)) * US_PER_S)
            mode = random.choice(("slow", "fails", "fails", "lies", "hangs"))
            for_us = int(random.choice((0.5, 2, 8)) * random.random() * US_PER_S) + 1
            self._step(at_us, schedule.Device(random.choice(devices), mode, for_us))
            if random.random() < 0.6:  # somebody to be fenced meanwhile
                node = int(random.random() * self.nodes)
                at_us -= int(random.random() * 1.5 * US_PER_S)
                deed = random.choice((schedule.PowerCut(node), schedule.Pause("all", 0, node), schedule.Blind(0, node)))
                self._step(max(0, at_us), deed)
        if random.random() < 0.5:
            when = schedule.When("fence", "begun", 1 + int(random.random() * 4), schedule.Kill("daemon"))
            self._step(int(random.random() * 2 * US_PER_S), when)
        return settings._replace(fenced=devices)

    def _with_long_leases(self, settings: Settings) -> Settings:
        """In half of the runs with fence devices: leases longer than suspicion and masterships, and what they are for:
        storage that stalls, for one node or for all, with links that fail beside it (P2.15, P4.13, P4.14).
        """
        random = Random(f"long leases {self.calm_us} {len(self.services)}")
        if not settings.fenced or random.random() < 0.4:
            return settings
        for _ in range(1 + int(random.random() * 4)):
            at_us = int((1 + random.random() * (self.calm_us / US_PER_S - 1)) * US_PER_S)
            node = schedule.EVERYWHERE if random.random() < 0.3 else int(random.random() * self.nodes)
            for_us = int(random.choice((0.7, 2, 4, 7)) * random.random() * US_PER_S) + 1
            self._step(at_us, schedule.HoldStore(for_us, node))
            beside = random.random()
            if beside < 0.3 and node >= 0:
                self._step(at_us + int(random.random() * for_us), schedule.Isolate(for_us, node))
            elif beside < 0.5:
                cut = int(random.random() * self.nodes)
                self._step(at_us + int(random.random() * for_us), schedule.PowerCut(cut))
        if random.random() < 0.2:  # the whole site
            at_us = int((2 + random.random() * 3) * US_PER_S)
            for node in range(self.nodes):
                self._step(at_us, schedule.PowerCut(node))
                if random.random() < 0.8:
                    self._step(at_us + int((0.1 + random.random() * 3) * US_PER_S), schedule.Boot(node))
        return settings._replace(profile=LONG_LEASES)

    def _decision_lock(self, settings: Settings) -> Settings:
        """In some runs whoever has a lock decides on services, and loses it; drawn apart (P6.42-P6.44)."""
        random = Random(f"decision lock {self.calm_us} {len(self.services)}")
        if random.random() < 0.6:
            return settings
        levels = tuple(level for level in settings.levels if level.number != LOCK_MANAGER_LEVEL.number)
        for _ in range(int(random.random() * 7)):
            at_us = int((1 + random.random() * (self.calm_us / US_PER_S - 1)) * US_PER_S)
            for_us = int(random.choice((0.02, 0.3, 1, 3)) * random.random() * US_PER_S) + 1
            self._step(at_us, schedule.TakeLock(for_us, random.random() < 0.5))
        for _ in range(int(random.random() * 5)):
            pause = schedule.Pause(random.choice(("daemon", "all")), int(random.random() * 1500 * US_PER_MS) + 1)
            deed = random.choice((schedule.PowerCut(), schedule.Kill("daemon"), pause, pause))
            what, delay_us = random.choice(("granted", "proposal", "proposal")), int(random.random() * 3 * US_PER_MS)
            at_us = int(random.random() * self.calm_us * 0.8)
            self._step(at_us, When(what, "begun", 1 + int(random.random() * 6), deed, delay_us=delay_us))
        return settings._replace(levels=(LOCK_MANAGER_LEVEL, *levels), decides=True)

    def _under_one_kernel(self, settings: Settings) -> Settings:
        """What a kernel that is asked has to answer for (P7.9-P7.17); drawn apart, so that the rest stays as it is."""
        random = Random(f"kernel {self.calm_us} {len(self.services)}")
        for _ in range(int(random.random() * 3.5)):
            at_us = int((1.5 + random.random() * (self.calm_us / US_PER_S - 2)) * US_PER_S)
            node = int(random.random() * self.nodes)
            for_us = int(random.choice((0.3, 1, 3, 12)) * random.random() * US_PER_S) + 1
            beside = random.choice(((), (), ("init",), ("runner",), ("init", "runner")))
            kills = random.choice(("guard", "runner", "daemon"))
            faults: tuple[Deed, ...] = random.choice((
                (schedule.Stall(for_us, node, beside),),
                (schedule.Stall(for_us, node, beside), schedule.Kill(kills, node)),
                (schedule.Spoil(("lease",), for_us, node, hangs=True),),
                (schedule.Spoil(("lease",), for_us, node, hangs=True), schedule.Kill("guard", node)),
                (schedule.Blind(int(random.random() * 9 * US_PER_S), node),),
            ))  # fmt: skip
            for late, fault in enumerate(faults):
                self._step(at_us + late * int(random.random() * 300 * US_PER_MS), fault)
        if random.random() < 0.1:
            self._step(int((2 + random.random() * 3) * US_PER_S), schedule.Reboot())
        self.steps.sort(key=lambda step: step.at_us)
        trees = frozenset(node for node in range(self.nodes) if random.random() < 0.15)
        apart = frozenset(node for node in range(self.nodes) if random.random() < 0.3)
        return settings._replace(trees=trees, apart=apart)

    # ---- faults --------------------------------------------------------------------------------------------------

    def _power_cut(self) -> None:
        for _ in range(1 if self.random.random() < 0.8 else 2):
            node = self._node()
            self._do(schedule.PowerCut(node))
            if self.random.random() < 0.5:
                self._step(self.now_us + self._us(5, 900), schedule.Boot(node))

    def _fence(self) -> None:
        self._do(schedule.Fence(self._node()))

    def _kill(self) -> None:
        self._do(schedule.Kill(self._pick(("daemon", "daemon", "daemon", "guard", "runner", "watcher")), self._node()))

    def _pause(self) -> None:
        which = self._pick(("daemon", "daemon", "guard", "runner", "watcher", "all"))
        self._do(schedule.Pause(which, self._length_us(), self._node()))

    def _isolate(self) -> None:
        self._do(schedule.Isolate(self._length_us(), self._node()))

    def _cut(self) -> None:
        source = self._node()
        to = (source + 1 + int(self.random.random() * (self.nodes - 1))) % self.nodes
        self._do(schedule.Cut(source, to, self._length_us()))

    def _split(self) -> None:
        """Two halves that do not hear each other, some pairs only one way."""
        half = {node for node in range(self.nodes) if self.random.random() < 0.5}
        for_us = self._length_us()
        for source in range(self.nodes):
            for to in range(self.nodes):
                if (source in half) != (to in half) and self.random.random() < 0.95:
                    self._do(schedule.Cut(source, to, for_us))

    def _blind(self) -> None:
        self._do(schedule.Blind(self._us(30, 900), self._node()))

    def _slow(self) -> None:
        slowness = self._pick((10, 40, 150, 400))
        self._do(schedule.Weather(slowness, 0.0, 0.0, self._us(100, 1500), self._somewhere()))

    def _failing(self) -> None:
        failing, unknown = self._pick(((0.3, 0.0), (0.8, 0.0), (0.05, 0.5), (0.0, 0.8)))
        self._do(schedule.Weather(1, failing, unknown, self._us(100, 1500), self._somewhere()))

    def _unreadable_claim(self) -> None:
        """A register cannot be read while somebody wants to be master."""
        self._do(schedule.Weather(1, 0.0, self._pick((0.5, 0.9)), self._us(600, 1500)))
        self._do(When("frame", "begun", 1, schedule.Kill("daemon")))
        self._ask(RegisterService(self._pick(self.services)))

    def _spoil(self) -> None:
        """A node cannot write its journal, or a register of its own; until it is calm, or for a while (P2.11)."""
        what = self._pick(
            (("frame",), ("frame", "checkpoint"), ("frame", "checkpoint", *CLAIM), CLAIM, ("marks", "view"))
        )
        self.now_us = self._us(1500, self.calm_us / US_PER_MS / 2)
        for_us = self._pick((0, self._us(300, 1500), self._us(1500, 6000)))
        self._do(schedule.Spoil(what, for_us, self._node(), self.random.random() < 0.3))
        if self.random.random() < 0.5:
            self._ask(self._operation())

    def _somewhere(self) -> int:
        return schedule.EVERYWHERE if self.random.random() < 0.4 else self._node()

    def _lossy(self) -> None:
        jitter_us = self._pick((1000, 20_000, 200_000))
        self._do(schedule.Lossy(self._pick((0.05, 0.3)), 0.2, jitter_us, self._us(300, 4000)))

    def _hang(self) -> None:
        level, _ = self._pick(LEVELS)
        self._do(schedule.Hang(level, self._us(200, 2500), self._node()))

    def _at_a_point(self) -> None:
        """Something happens to a node exactly where it hurts."""
        if self.random.random() < 0.6:
            what, stage = self._pick(WRITTEN), self._pick(STAGES)
        else:
            what, stage = self._pick(REACHED), "begun"
        count = 1 + int(self.random.random() * (2 if what in RARE else 12))
        deed: schedule.PowerCut | schedule.Kill | schedule.Pause | schedule.Isolate
        match int(self.random.random() * 5):
            case 0:
                deed = schedule.PowerCut()
            case 1:
                deed = schedule.Kill("daemon")
            case 2:
                deed = schedule.Isolate(self._length_us())
            case _:
                deed = schedule.Pause(self._pick(("daemon", "daemon", "all")), self._us(100, 1800))
        self._do(When(what, stage, count, deed))
        if what in RARE:  # make an election likely
            self._do(When("commit", "begun", 2, schedule.Kill("daemon")))

    def _frozen_master(self) -> None:
        """The master stops in the middle of a commit; another takes over; the first one goes on."""
        stage = self._pick(STAGES)
        self._do(When("frame", stage, 1, schedule.Pause("daemon", self._us(150, 990))))
        others_us = self.now_us + self._us(50, 400)
        self._step(others_us, schedule.Kill("daemon", self._node()))
        if self.random.random() < 0.5:
            self._step(self.now_us, When("claim", "written", 1, schedule.Pause("daemon", self._us(100, 900))))

    def _slow_claimer(self) -> None:
        """One claims slowly; another overtakes it with a higher term and is gone again when the first one reads."""
        self._do(When("frame", "begun", 1, schedule.Kill("daemon")))
        stage = self._pick(("begun", "begun", "half written"))
        self._do(When("claim", stage, 1, schedule.Pause("daemon", self._us(500, 990))))
        gone = schedule.Kill(self._pick(("runner", "runner", "runner", "daemon")))
        self._do(When("elected", "begun", 1, gone, delay_us=self._us(10, 200)))
        for _ in range(4):
            self._ask(RegisterService(self._pick(self.services)))
            self.now_us += self._us(50, 200)
