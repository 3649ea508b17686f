"""A model of kernels around the rules of failover file systems: devices, mounts, and who may write (P13.2-P13.7).

Three nodes share a pool: `a` and `c` are on one kernel, `b` is on another. The service table is stood for by what it
promises: an owner at a time, each with a greater token, another one only when the last has stopped or, if its node is
proven dead, its machine is clean of it. Programs run the very rules of the core, one look or one deed a step; they
pause for any time, and die at any step. A kernel goes on writing for a while after the end of a node's processes.

`mistake` names a rule that this world breaks, so that tests see each one noticed.
"""

import random
from typing import NamedTuple

from muster.core.filesystems import gone, mounting
from muster.core.filesystems.checking import Policy
from muster.core.filesystems.mounting import Attached, Mounted, Wanted
from muster.core.volumes.claim import Claim, Verdict, judge, may_clear

WANTED = Wanted("db", "db", "/pool/db.img", 1 << 20, "ext4", "/srv/db", fsck=Policy.JOURNAL)
KERNEL_OF = {"a": 0, "c": 0, "b": 1}
_DEVICE = "/dev/loop0"


class Violation(AssertionError):
    """Two may write, or a file system is changed while it is mounted."""


class Mount(NamedTuple):
    """In the mount namespace of one life of a node; life 0: a copy of it in a namespace of somebody else."""

    node: str
    life: int
    token: str


class Kernel:
    """One loop device of the volume's file, at most, and what is mounted from it."""

    def __init__(self) -> None:
        self.attached_by: tuple[str, int] | None = None
        self.held: Program | None = None
        self.mounts: list[Mount] = []

    def autoclear(self) -> None:
        """As the kernel does when nobody has it open."""
        if self.held is None and not self.mounts:
            self.attached_by = None


class Program:
    """One run of the program that mounts, unmounts or clears."""

    def __init__(self, world: "World", what: str, node: str, life: int, token: str) -> None:
        self.world, self.what, self.node, self.life, self.token = world, what, node, life, token
        self.kernel = world.kernels[KERNEL_OF[node]]
        self.progress = mounting.Progress()
        self.unmounting = gone.Unmounting()
        self.seen: mounting.Seen | gone.Left | None = None
        self.has_lock = self.failed = self.done = False
        self.clock = 0

    @property
    def claim(self) -> Claim:
        """What this program writes into the claim."""
        return Claim(
            "cluster", "db", self.node, self.life, f"boot{self.world.boots[KERNEL_OF[self.node]]}", self.token, True
        )

    def step(self) -> None:
        """One look, or one deed."""
        if not self.has_lock:
            if self.world.lock is None:
                self.world.lock, self.has_lock = self, True
            return
        if self.what == "start":
            self._start()
        else:
            self._end()
        if self.failed or self.done:
            self.close()

    def close(self) -> None:
        """Its descriptors are closed, as when it ends or is killed."""
        if self.world.lock is self:
            self.world.lock = None
        if self.kernel.held is self:
            self.kernel.held = None
        self.kernel.autoclear()

    def _own_mounts(self) -> list[Mount]:
        return [each for each in self.kernel.mounts if (each.node, each.life) == (self.node, self.life)]

    def _start(self) -> None:
        kernel = self.kernel
        if self.seen is None:
            attached = (Attached(_DEVICE, True, True),) if kernel.attached_by else ()
            mounted = tuple(Mounted(_DEVICE, WANTED.mount_point, False) for _ in self._own_mounts())
            self.seen = mounting.Seen("file", WANTED.size_bytes, attached, mounted, "folder", 0, content="ext4")
            return
        assert isinstance(self.seen, mounting.Seen)
        seen, self.seen = self.seen, None
        match mounting.next_deed(WANTED, seen, self.progress):
            case mounting.Refuse():
                self.failed = True
            case mounting.TakeClaim():
                self.progress = self.progress._replace(verdict=self._judge(bool(seen.attached)))
            case mounting.Attach():
                if kernel.attached_by and self.world.mistake != "nobody looks for another device":
                    self.failed = True  # the file's own lock, which the device holds
                    return
                kernel.attached_by, kernel.held = (self.node, self.life), self
                self.progress = self.progress._replace(held=_DEVICE)
            case mounting.CheckIt():
                if self.world.mounts:
                    raise Violation("checked while it is mounted")
                self.world.checks += 1
                self.world.unclean = False
                self.progress = self.progress._replace(checked=True)
            case mounting.Mount():
                if self.world.unclean:
                    raise Violation("mounted after a crash without a check")
                kernel.mounts.append(Mount(self.node, self.life, self.token))
            case mounting.Settle():
                self.world.claim = self.claim
                self.progress = self.progress._replace(settled=True)
            case mounting.Done():
                self.done = True

    def _judge(self, in_use: bool) -> Verdict:
        verdict = judge(self.world.claim, self.claim, in_use=in_use)
        if self.world.mistake == "any token is as good":
            verdict = verdict._replace(refused="")
        if not verdict.refused:
            owes = verdict.calls_for_check and self.world.mistake != "what is owed is forgotten"
            self.world.claim = self.claim._replace(owes_check=owes)
        return verdict

    def _end(self) -> None:
        kernel, found = self.kernel, self.world.claim
        if self.what == "cleanup" and not may_clear(found, self.node, self.life, self.claim.boot_id):
            self.done = True
            return
        closes = self.what == "stop" and found is not None and found.is_of_start(self.claim)
        if self.seen is None:
            self.clock += 500
            devices = (_DEVICE,) if kernel.attached_by else ()
            points = tuple(WANTED.mount_point for _ in self._own_mounts())
            is_free = not kernel.mounts and kernel.held is None
            is_open = closes and found is not None and found.is_open
            self.seen = gone.Left(devices, points, is_free, (), (), is_open)
            return
        assert isinstance(self.seen, gone.Left)
        seen, self.seen = self.seen, None
        match gone.next_deed("db", seen, self.unmounting, 1000, self.clock):
            case gone.Unmount():
                for each in self._own_mounts():
                    kernel.mounts.remove(each)
                kernel.autoclear()
                self.done = self.world.mistake == "an unmount is enough"
            case gone.Detach():
                kernel.autoclear()
            case gone.CloseClaim():
                assert found is not None
                self.world.claim = found._replace(is_open=False)
            case gone.Wait() | gone.End():
                since = self.unmounting.waiting_ms
                self.unmounting = self.unmounting._replace(waiting_ms=self.clock if since is None else since)
            case gone.Fail():
                self.failed = True
            case gone.Gone():
                self.done = True


class World:
    """Nodes, kernels, and what the service table promises."""

    def __init__(self, seed: int, mistake: str = "") -> None:
        self.random, self.mistake = random.Random(seed), mistake
        self.kernels, self.boots = [Kernel(), Kernel()], [0, 0]
        self.lives = dict.fromkeys(KERNEL_OF, 1)
        self.claim: Claim | None = None
        self.lock: Program | None = None
        self.programs: list[Program] = []
        self.owner: tuple[str, int, str] | None = None
        self.state = "free"  # free, starting, mounted, stopping, failed, lost
        self.tokens = self.checks = self.starts = self.deaths = 0
        self.unclean = False  # some owner has ended with it mounted, and nobody has checked it since
        self.work: Program | None = None

    @property
    def mounts(self) -> list[Mount]:
        """Of all kernels."""
        return [each for kernel in self.kernels for each in kernel.mounts]

    def step(self) -> None:
        """One thing happens, and the state is judged."""
        deeds = [self._decide, self._decide, self._die, self._flush, self._reboot, self._copy, self._stray]
        deeds += [program.step for program in self.programs] * 8
        self.random.choice(deeds)()
        self.programs = [each for each in self.programs if not each.failed and not each.done]
        if len({each.token for each in self.mounts}) > 1:
            raise Violation(f"two may write: {self.mounts}")

    def _begin(self, what: str) -> None:
        assert self.owner is not None
        self.work = Program(self, what, *self.owner)
        self.programs.append(self.work)

    def _decide(self) -> None:
        """The service table takes a step, if it can."""
        work = self.work
        if self.state == "free":
            self._give()
        elif self.state == "mounted" and self.random.random() < 0.3:
            self.state = "stopping"
            self._begin("stop")
        elif work is not None and work.done:
            self.work = None
            self.state = {"starting": "mounted"}.get(self.state, "free")
        elif work is not None and (work.failed or self.random.random() < 0.05):  # or its time limit is over
            self._end_by_limit(work)

    def _end_by_limit(self, work: Program) -> None:
        if self.mistake != "what is over its limit goes on":
            work.failed = True
            work.close()
        if self.state == "lost":
            self._begin("cleanup")
        else:
            self.state = "failed"  # a start or a stop: what it left is cleared there (P6.32)
            self._begin("stop")

    def _give(self) -> None:
        left = [kernel for kernel in self.kernels if kernel.mounts]
        if left:
            raise Violation(f"another owner while {left[0].mounts} is not gone")
        self.tokens += 1
        self.starts += 1
        node = self.random.choice(sorted(KERNEL_OF))
        self.owner, self.state = (node, self.lives[node], f"{self.tokens:016d}"), "starting"
        self._begin("start")

    def _die(self) -> None:
        """A node's processes end; its kernel still has the mount."""
        if self.random.random() > 0.2:
            return
        node = self.random.choice(sorted(KERNEL_OF))
        self.deaths += 1
        for program in self.programs:
            if program.node == node and program.what != "cleanup":
                program.failed = True
                program.close()
        if self.owner is not None and self.owner[0] == node and self.state not in ("free", "lost"):
            self.state = "lost"
            self.work = None
            if self.mistake == "lost is gone":
                self.state = "free"
            else:
                self._begin("cleanup")
        self.lives[node] += 1

    def _flush(self) -> None:
        """A kernel ends the mounts of a node's life that is over."""
        for kernel in self.kernels:
            left = [each for each in kernel.mounts if each.life == self.lives[each.node]]
            self.unclean |= any(each.life and each not in left for each in kernel.mounts)
            kernel.mounts = left  # without copies, too
            kernel.autoclear()

    def _copy(self) -> None:
        """Somebody makes a mount namespace of its own, and gets a copy of what is mounted."""
        for kernel in self.kernels:
            if kernel.mounts and self.random.random() < 0.2:
                kernel.mounts.append(kernel.mounts[0]._replace(life=0))

    def _stray(self) -> None:
        """A start that is long out of date is run, by whatever mistake."""
        first = f"{1:016d}"
        if self.claim is not None and self.claim.token > first and self.random.random() < 0.1:
            node = self.random.choice(sorted(KERNEL_OF))
            self.programs.append(Program(self, "start", node, self.lives[node], first))

    def _reboot(self) -> None:
        """A machine loses its power, with all nodes on it."""
        if self.random.random() > 0.05:
            return
        number = self.random.randrange(2)
        self.boots[number] += 1
        for node, kernel in KERNEL_OF.items():
            if kernel == number:
                self.lives[node] += 1
        for program in self.programs:
            if program.kernel is self.kernels[number]:
                program.failed = True
                program.close()
        kernel_ = self.kernels[number]
        self.unclean |= bool(kernel_.mounts)
        kernel_.mounts, kernel_.held, kernel_.attached_by = [], None, None
        if self.owner is not None and KERNEL_OF[self.owner[0]] == number and self.state != "free":
            self.state, self.work = "free", None  # its kernel is new: nothing is left
