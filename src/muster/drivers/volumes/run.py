"""The program that mounts and unmounts a failover file system: a command of its service (P13.2, P13.3, P13.7).

    python -m muster.drivers.filesystem start|stop|cleanup

What it is about is in the environment (`MUSTER_FILESYSTEM`, JSON, see `Call`), beside what every command of a service
is told. It looks, does what the rules say, and looks again. It runs below a keeper, so neither a hanging device nor a
slow check takes anything but this command with it. Exit status: 0 where it is mounted, or gone; 1 where another try
may help; 78 where none does, as something of its definition or its disk is not as it must be.
"""

import contextlib
import errno
import grp
import json
import os
import pwd
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from muster.core.filesystems import gone, mounting
from muster.core.filesystems.checking import Policy, check_problem
from muster.core.filesystems.mounting import Root, Wanted
from muster.core.volumes.claim import Claim, Verdict, judge, may_clear
from muster.drivers.volumes import claims, holders, loops, machine

VARIABLE = "MUSTER_FILESYSTEM"
EXIT_FAILED, EXIT_HOPELESS = 1, 78
_DEEDS = 1000  # of one run: none needs so many
_LOOK_S = 0.05
_MS = 1000


class Hopeless(Exception):
    """No other try helps, on any node: the message says why and what to do."""


class Refused(Exception):
    """This try has failed; the message says why and what to do."""


class Call(NamedTuple):
    """What is to be mounted, and how long each thing may take."""

    cluster: str  # identity of the cluster
    filesystem: str
    volume: str
    file: str
    size_bytes: int
    kind: str
    mount_point: str
    options: tuple[str, ...]
    fsck: str
    user: str  # of the root; empty: it stays as it is
    group: str
    mode: int  # 0: it stays as it is
    grace_ms: int
    limit_ms: int  # of one command; a check may take as long as the start may


def encoded(call: Call) -> str:
    """For the environment of this program."""
    return json.dumps(call._asdict())


def decoded(text: str) -> Call:
    """The call. Raises `Refused`."""
    try:
        found = Call(**json.loads(text))
        return found._replace(options=tuple(found.options))
    except (ValueError, TypeError) as error:
        raise Refused(f"{VARIABLE} cannot be read: {error}; let Muster start this program") from error


class Run:
    """One run for one file system."""

    def __init__(self, call: Call, own: Claim, say: Callable[[str], None]) -> None:
        self._call, self._own, self._say = call, own, say
        self._limit_s = call.limit_ms / _MS
        self._descriptor = -1

    def start(self) -> None:
        """Have it mounted. Raises `Refused`, `Hopeless` and what the drivers raise."""
        wanted = wanted_of(self._call)
        progress = mounting.Progress()
        try:
            with claims.locked(wanted.file, self._limit_s):
                for _ in range(_DEEDS):
                    seen = machine.look(wanted, progress.held, self._limit_s)
                    deed = mounting.next_deed(wanted, seen, progress)
                    if isinstance(deed, mounting.Done):
                        return
                    progress = self._do(deed, wanted, seen, progress)
        finally:
            self._let_go()
        raise Refused(f"{wanted.name} is not mounted after {_DEEDS} steps: something else changes it meanwhile")

    def _do(
        self, deed: mounting.Deed, wanted: Wanted, seen: mounting.Seen, progress: mounting.Progress
    ) -> mounting.Progress:
        match deed:
            case mounting.Refuse(why=why):
                raise Refused(why)
            case mounting.TakeClaim():
                return progress._replace(verdict=self._claim(bool(seen.attached)))
            case mounting.Attach():
                device, self._descriptor = loops.attach(wanted.file)
                self._say(f"{wanted.file} is attached to {device}")
                return progress._replace(held=device)
            case mounting.CheckIt(check=check, device=device):
                self._check(check.words, device, wanted.kind)
                return progress._replace(checked=True)
            case mounting.Mount(device=device):
                machine.mount(wanted, device, self._limit_s)
                self._say(f"{wanted.name} is mounted at {wanted.mount_point}")
            case mounting.Settle():
                claims.write(self._call.file, self._own)
                return progress._replace(settled=True)
            case mounting.SetRoot():
                assert wanted.root is not None
                machine.set_root(wanted.mount_point, wanted.root)
        return progress

    def _claim(self, in_use: bool) -> Verdict:
        found = claims.read(self._call.file)
        verdict = judge(found, self._own, in_use=in_use)
        if not verdict.refused:
            claims.write(self._call.file, self._own._replace(owes_check=verdict.calls_for_check))
        return verdict

    def _check(self, words: tuple[str, ...], device: str, kind: str) -> None:
        answer = machine.run((*words, device), self._limit_s)
        self._say(f"{words[0]}: {answer.output}")
        if problem := check_problem(kind, answer.status, answer.output):
            raise Hopeless(problem)

    def _let_go(self) -> None:
        """What is mounted holds the device by itself; what is not is detached by the kernel."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def stop(self) -> None:
        """Have it gone. Raises `Refused`."""
        with claims.locked(self._call.file, self._limit_s):
            found = claims.read(self._call.file)
            self._have_it_gone(closes=found is not None and found.is_of_start(self._own))

    def clear(self) -> None:
        """Have what a lost start left gone from this machine, unless another owner has it by now (P13.6)."""
        with claims.locked(self._call.file, self._limit_s):
            found = claims.read(self._call.file)
            if not may_clear(found, self._own.node, self._own.incarnation, self._own.boot_id):
                return
            self._have_it_gone(closes=False)  # a check follows

    def _have_it_gone(self, *, closes: bool) -> None:
        progress, name = gone.Unmounting(), self._call.filesystem
        for _ in range(_DEEDS):
            seen = self._look_if_gone(progress, closes=closes)
            now_ms = time.monotonic_ns() // 1_000_000
            deed = gone.next_deed(name, seen, progress, self._call.grace_ms, now_ms)
            match deed:
                case gone.Gone():
                    self._say(f"{name} is gone from this machine")
                    return
                case gone.Fail(why=why):
                    raise Refused(why)
                case gone.CloseClaim():
                    found = claims.read(self._call.file)
                    owes = found is not None and found.owes_check
                    claims.write(self._call.file, self._own._replace(is_open=False, owes_check=owes))
                case gone.Detach(device=device):
                    loops.detach(device)
                case _:
                    progress = self._go_on(deed, progress, now_ms)
        raise Refused(f"{name} is not gone after {_DEEDS} steps: something else changes it meanwhile")

    def _go_on(self, deed: gone.Deed, progress: gone.Unmounting, now_ms: int) -> gone.Unmounting:
        match deed:
            case gone.Unmount(mount_point=point):
                error = machine.unmount(point)
                if error not in (0, errno.EBUSY, errno.EINVAL):
                    raise Refused(f"{point} cannot be unmounted: {os.strerror(error)}")
                if error != errno.EBUSY:
                    return gone.Unmounting()
                progress = progress._replace(is_busy=True)
            case gone.End(processes=processes, kills=kills):
                for pid in processes:
                    holders.end(pid, kills=kills)
                self._say(
                    f"{'SIGKILL' if kills else 'SIGTERM'} to {', '.join(map(str, processes))}, which keep it busy"
                )
                return progress._replace(killed_ms=now_ms) if kills else progress._replace(termed_ms=now_ms)
        time.sleep(_LOOK_S)
        return progress if progress.waiting_ms is not None else progress._replace(waiting_ms=now_ms)

    def _look_if_gone(self, progress: gone.Unmounting, *, closes: bool) -> gone.Left:
        devices = tuple(each.device for each in loops.attached(self._call.file))
        mounted = machine.mounts_of(devices)
        is_free = bool(devices) and not mounted and all(map(loops.is_free, devices))
        busy: tuple[gone.Holder, ...] = ()
        if mounted and progress.is_busy:
            busy = holders.holders(mounted[-1].mount_point, loops.number_of(mounted[-1].device))
        elsewhere = holders.elsewhere(loops.number_of(devices[0])) if devices and not mounted and not is_free else ()
        found = claims.read(self._call.file)
        is_open = closes and found is not None and found.is_open
        return gone.Left(devices, tuple(each.mount_point for each in mounted), is_free, busy, elsewhere, is_open)


def wanted_of(call: Call) -> Wanted:
    """As the rules take it, with numbers of this machine's user and group. Raises `Refused`."""
    root = None
    if call.user or call.group or call.mode:
        try:
            user = pwd.getpwnam(call.user).pw_uid if call.user else 0
            group = grp.getgrnam(call.group).gr_gid if call.group else 0
        except KeyError as error:
            raise Refused(f"this machine does not have the owner of the root: {error.args[0]}") from error
        root = Root(user, group, call.mode or 0o755)
    return Wanted(
        call.filesystem, call.volume, call.file, call.size_bytes, call.kind, call.mount_point, call.options,
        Policy(call.fsck), root,
    )  # fmt: skip


def own_claim(call: Call) -> Claim:
    """Of this start or stop, as the environment of a service's command says. Raises `Refused`."""
    given = os.environ
    try:
        node, incarnation = given["MUSTER_NODE"], int(given["MUSTER_INCARNATION"])
    except (KeyError, ValueError) as error:
        raise Refused(f"{error.args[0]} is not given: let Muster start this program") from error
    token = given.get("MUSTER_TOKEN", "")
    return Claim(call.cluster, call.volume, node, incarnation, machine.boot_id(), token, True)


def main(arguments: list[str]) -> int:
    """Its exit status."""
    try:
        call = decoded(os.environ.get(VARIABLE, ""))
        run = Run(call, own_claim(call), lambda line: print(line, flush=True))
        what = {"start": run.start, "stop": run.stop, "cleanup": run.clear}.get(" ".join(arguments))
        if what is None:
            raise Refused("it is called with start, stop or cleanup")
        what()
    except Hopeless as error:
        return _said(error, EXIT_HOPELESS)
    except (Refused, machine.Failed, claims.NoClaim, loops.NoLoop, OSError) as error:
        return _said(error, EXIT_FAILED)
    return 0


def _said(error: Exception, status: int) -> int:
    with contextlib.suppress(OSError):
        print(error, file=sys.stderr, flush=True)
    return status
