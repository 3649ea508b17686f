"""The two processes that hold and feed a node's watchdog (P7.32, P7.33). Part of the guard's image.

Theory of operation. The *holder* opens the device, sets its timeout and reads it back, and keeps it open; it feeds
nothing. It is nobody's child, ignores signals, and leaves the control group of the node's unit, so that nothing that
ends the node ends it: the last close of a device that was not stopped feeds it once more. The *feeder* is its child.
It feeds, and only before the deadline that the guard publishes in shared memory; it moves a timer of the kernel's own
to that deadline before it feeds, so that it is killed then, whatever it was about to do. Its death closes nothing,
since the holder has the device open too.

A feeding may wait for a management board. So neither of the two is the guard, and nobody waits for them but for a sign
of life, which the feeder leaves in the same memory.

Channel of guard and holder, SOCK_SEQPACKET: from the holder `armed JSON` or `refused TEXT`, then `lost TEXT` where the
feeder has ended; from the guard `close` -> `closed`, `kept` or `open TEXT`. Where the channel ends before a
deadline was ever published, nothing of the node has run, and the device is stopped. Where it ends later, it stays open,
and the machine is reset, unless a tombstone was durable before (P7.33).
"""

import contextlib
import json
import mmap
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from muster.core.leases.watchdog import KINDS, SOFTWARE, UNKNOWN, Feeding, times_of
from muster.drivers.image.control_group import mount_of_groups
from muster.drivers.image.deadman import DeadmanTimer, boottime_us, hold_memory_and_priority, set_process_name
from muster.drivers.image.process_tree import close_descriptors_except, explain_status, fork_into
from muster.drivers.image.processes import FEEDER, WATCHDOG_HOLDER
from muster.drivers.image.watchdog_device import (
    Found,
    WatchdogDevice,
    WatchdogRefused,
    found_at,
    open_device,
    watchdogs,
)
from muster.records.registers import Armed
from muster.records.timing import Profile, WatchdogTimes
from muster.records.watchdogs import AUTO, SOFTDOG, WatchdogSetting

MAXIMUM_PACKET_BYTES = 2048
FOREVER_US = (1 << 63) - 1
_DEADLINE, _LOOKED, _WANTED, _SET = 0, 8, 16, 24  # offsets in the page: four words, each with one writer
_WORD = struct.Struct("=q")
_OWN_GROUP = "muster-watchdog"  # beside all units
_TAKE_OVER_S = 2.0
_LAST_BREATH_S = 0.1
_MAXIMUM_TEXT = 800


class Pace:
    """What guard and feeder tell each other, in memory that they share: no message can wait, and none is lost."""

    __slots__ = ("_page",)

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self._put(_DEADLINE, FOREVER_US)

    def _put(self, offset: int, value: int) -> None:
        _WORD.pack_into(self._page, offset, value)

    def _get(self, offset: int) -> int:
        value: int = _WORD.unpack_from(self._page, offset)[0]
        return value

    def extend(self, deadline_us: int) -> None:
        """Guard: nothing is fed from then on; after its own deadman has been moved there."""
        self._put(_DEADLINE, deadline_us)

    def want(self, timeout_ms: int) -> None:
        """Guard: the timeout that the device is to have."""
        self._put(_WANTED, timeout_ms)

    def looked(self, now_us: int) -> None:
        """Feeder: it is at work."""
        self._put(_LOOKED, now_us)

    def has_set(self, timeout_ms: int) -> None:
        """Feeder: the timeout of the device, as it was read back; -1: it could not be set."""
        self._put(_SET, timeout_ms)

    @property
    def deadline_us(self) -> int:
        """As the guard published it last."""
        return self._get(_DEADLINE)

    @property
    def looked_us(self) -> int:
        """The feeder's last sign of life."""
        return self._get(_LOOKED)

    @property
    def wanted_ms(self) -> int:
        """What the guard wants the timeout to be."""
        return self._get(_WANTED)

    @property
    def set_ms(self) -> int:
        """What it is."""
        return self._get(_SET)


class Asked(NamedTuple):
    """What a guard asks of its watchdog."""

    name: str  # of the node
    setting: WatchdogSetting
    profile: Profile


class WatchdogEnd(NamedTuple):
    """The guard's end of it."""

    name: str  # of the node
    channel: socket.socket
    pace: Pace


Open = Callable[[str], WatchdogDevice]


def start_watchdog(asked: Asked, open_it: Open = open_device) -> WatchdogEnd:
    """Fork the holder, twice, so that it is nobody's child. Raises `OSError`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pace = Pace()
    pace.want(asked.profile.watchdog_ms)

    def between() -> None:
        fork_into(lambda: _Holder(asked, pace, theirs, open_it).run())
        os._exit(0)

    child = fork_into(between)
    theirs.close()
    os.waitpid(child, 0)
    return WatchdogEnd(asked.name, ours, pace)


def chosen(setting: WatchdogSetting, found: list[Found]) -> Found:
    """The device that a setting means, of those that there are. Raises `WatchdogRefused`."""
    if setting.device == SOFTDOG:
        for each in found:
            if each.identity == SOFTWARE:
                return each
        raise WatchdogRefused("there is no software watchdog; load it (modprobe softdog), or set another watchdog")
    if setting.device != AUTO:
        return found_at(setting.device)
    for each in found:
        if not KINDS.get(each.identity, UNKNOWN).software:
            return each
    only = f"only {', '.join(each.identity for each in found)}" if found else "no watchdog"
    raise WatchdogRefused(
        f"this machine has {only}; load the driver of its own, or set it by name: muster config set watchdog"
    )


def fit_for_use(found: Found, setting: WatchdogSetting) -> str:
    """Why sysfs says that a device is of no use, in words; empty where it is not known to be."""
    if KINDS.get(found.identity, UNKNOWN).software and setting.device != SOFTDOG:
        return (
            f"watchdog {found.path} is a software watchdog: a kernel that hangs hangs it too; if that is enough, name "
            "it: muster config set watchdog softdog"
        )
    if found.nowayout and not setting.kept:
        return (
            f"watchdog {found.path} cannot be stopped (nowayout): after a leave it would reset the machine; load its "
            "driver with nowayout=0, or let a small feeder live on: muster config set watchdog "
            f"{setting.device},kept"
        )
    return ""


def read_armed(text: str) -> Armed:
    """What a holder has said of a device that it has armed; `proves` is the guard's to say."""
    identity, timeout_ms, granularity_ms, reset_ms, late_excluded = json.loads(text)
    return Armed(identity, WatchdogTimes(timeout_ms, granularity_ms, reset_ms, late_excluded), proves=False)


class _Holder:
    """The process that keeps the device open."""

    def __init__(self, asked: Asked, pace: Pace, channel: socket.socket, open_it: Open) -> None:
        self._asked, self._pace, self._channel, self._open = asked, pace, channel, open_it
        self._feeder = 0
        self._ended = ""  # why the feeder has

    def run(self) -> NoReturn:
        """Arm it, have it fed, and hold it."""
        set_process_name(WATCHDOG_HOLDER)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        close_descriptors_except((self._channel.fileno(),))
        held = step_aside(self._asked.name)
        spare_from_oom()
        hold_memory_and_priority()
        try:
            device, armed = self._arm(held=held)
        except (WatchdogRefused, OSError) as refusal:
            self._say(f"refused {refusal}")
            os._exit(0)
        self._feeder = fork_into(lambda: _feed(device, self._pace, armed.times.timeout_ms, self._channel))
        self._say("armed " + json.dumps((armed.identity, *armed.times)))
        self._hold(device)

    def _arm(self, *, held: bool) -> tuple[WatchdogDevice, Armed]:
        """Open it, set its timeout, read it back. Raises `WatchdogRefused`, `OSError`."""
        setting, profile = self._asked.setting, self._asked.profile
        found = chosen(setting, watchdogs())
        if problem := fit_for_use(found, setting):
            raise WatchdogRefused(problem)
        device = self._take_over(found.path) or self._open(found.path)
        try:
            support = device.support()
            known = found._replace(identity=support.identity)
            if problem := support.problem() or fit_for_use(known, setting):
                named = problem.startswith("watchdog ")
                raise WatchdogRefused(problem if named else f"watchdog {found.path}: {problem}; set another one")
            wanted_s = profile.watchdog_ms // 1000
            timeout_s = device.set_timeout(wanted_s)
            if abs(timeout_s - wanted_s) > 1 or timeout_s < 1:
                raise WatchdogRefused(
                    f"watchdog {found.path} ({support.identity}): its timeout cannot be set to {wanted_s} s; it stays "
                    f"at {timeout_s} s. Set watchdog_ms of the profile to what it can do, or set another watchdog"
                )
        except (WatchdogRefused, OSError) as error:
            with contextlib.suppress(OSError):
                device.stop()
            if isinstance(error, OSError):
                text = f"watchdog {found.path}: it does not answer as watchdogs do: {error.strerror}"
                raise WatchdogRefused(f"{text}; set another: muster config set watchdog") from error
            raise
        self._pace.has_set(timeout_s * 1000)
        times = times_of(support.identity, timeout_s * 1000, profile, held=held, stages=setting.stages)
        return device, Armed(support.identity, times, proves=False)

    def _take_over(self, path: str) -> WatchdogDevice | None:
        """The device from a small feeder that an earlier run has left (P7.34), if there is one."""
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel.settimeout(_TAKE_OVER_S)
        try:
            channel.connect(_address_of(path))
            channel.send(b"take")
            word, descriptors, _flags, _address = socket.recv_fds(channel, 16, 1)
        except OSError:
            return None
        finally:
            channel.close()
        return WatchdogDevice(path, descriptors[0]) if word == b"device" and descriptors else None

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the guard is gone, or takes nothing in: it misses the signs of life
            self._channel.send(text[:_MAXIMUM_TEXT].encode(), socket.MSG_DONTWAIT)

    def _hold(self, device: WatchdogDevice) -> NoReturn:
        """Until the guard says that it may be closed; else for ever, which is until the machine is reset."""
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        feeder = os.pidfd_open(self._feeder)
        poll.register(feeder, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _mask in poll.poll()]
            if feeder in ready:
                _pid, status = os.waitpid(self._feeder, 0)
                poll.unregister(feeder)
                self._feeder = 0
                self._say(f"lost the feeder of its watchdog {explain_status(status)}")
            if self._channel.fileno() not in ready:
                continue
            try:
                word = self._channel.recv(MAXIMUM_PACKET_BYTES)
            except OSError:
                word = b""
            if word == b"close" or (not word and self._pace.deadline_us == FOREVER_US):
                self._close(device)
            if not word:
                poll.unregister(self._channel)  # the guard has gone without it: the machine is to be reset

    def _close(self, device: WatchdogDevice) -> NoReturn:
        """Nothing of the node runs, and everybody may know it: stop the device, or feed it on where it cannot be."""
        if self._feeder:
            os.kill(self._feeder, signal.SIGKILL)
            os.waitpid(self._feeder, 0)
            self._feeder = 0
        if found_at(device.path).nowayout:
            self._live_on(device)
        try:
            device.stop()
        except OSError as error:
            self._say(f"open {error.strerror}")
        else:
            self._say("closed")
        os._exit(0)

    def _live_on(self, device: WatchdogDevice) -> NoReturn:
        """The small feeder: until a next start takes the device over. Nothing of the node is there to be fenced."""
        server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.suppress(OSError):
            server.bind(_address_of(device.path))
            server.listen(1)
        self._say("kept")
        self._channel.close()
        feeding = Feeding(max(1000, self._pace.set_ms))
        while True:
            now_us = boottime_us()
            if feeding.turn(now_us, FOREVER_US).due:
                device.feed()
                feeding.fed(now_us)
            ready, _w, _x = select.select((server,), (), (), feeding.pause_us(now_us, FOREVER_US) / 1e6)
            if ready and _hand_over(server, device):
                os._exit(0)  # closed here, it is open there


def _hand_over(server: socket.socket, device: WatchdogDevice) -> bool:
    """Give the device to the next run's holder; only to the superuser's."""
    caller, _address = server.accept()
    with caller:
        caller.settimeout(_TAKE_OVER_S)
        try:
            credentials = caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            if struct.unpack("3i", credentials)[1] != os.geteuid() or caller.recv(16) != b"take":
                return False
            socket.send_fds(caller, [b"device"], [device.descriptor])
        except OSError:
            return False
    return True


def _address_of(path: str) -> str:
    return f"\0muster-watchdog-{os.path.realpath(path)}"


def _feed(device: WatchdogDevice, pace: Pace, timeout_ms: int, other: socket.socket) -> NoReturn:
    """Become the feeder, in a freshly forked process."""
    set_process_name(FEEDER)
    other.close()
    hold_memory_and_priority()
    feed_in_time(device, pace, Feeding(timeout_ms), DeadmanTimer())


def feed_in_time(device: WatchdogDevice, pace: Pace, feeding: Feeding, timer: DeadmanTimer) -> NoReturn:
    """Feed for as long as the deadline is ahead. The kernel ends this process at the deadline that it last saw.

    Raises `OSError` where the device fails: then the process ends, and the guard stops the node.
    """
    while True:
        now_us, deadline_us = boottime_us(), pace.deadline_us
        turn = feeding.turn(now_us, deadline_us)
        if turn.timer_us != FOREVER_US:
            timer.arm(turn.timer_us)  # before anything is fed (P7.32)
        if not turn.may:
            time.sleep(FOREVER_US / 1e12)  # the kernel's timer is due
            continue
        pace.looked(now_us)
        if pace.wanted_ms != feeding.timeout_ms:
            _set_anew(device, pace, feeding)
        elif turn.due:
            device.feed()
            feeding.fed(now_us)
        time.sleep(feeding.pause_us(now_us, deadline_us) / 1e6)


def _set_anew(device: WatchdogDevice, pace: Pace, feeding: Feeding) -> None:
    """Another timeout, read back; what cannot be set stays as it is, and is said (P7.35)."""
    wanted_ms, now_us = pace.wanted_ms, boottime_us()
    try:
        set_ms = device.set_timeout(wanted_ms // 1000) * 1000
    except OSError:
        set_ms = -1
    feeding.timeout_ms = wanted_ms
    if set_ms > 0:
        feeding.fed(now_us)
    pace.has_set(set_ms)


def step_aside(name: str) -> bool:
    """Leave the control group of the node's unit, which is ended as a whole; whether that went well."""
    mount = mount_of_groups()
    if not mount:
        return False
    folder = own_folder(name)
    try:
        os.makedirs(folder, exist_ok=True)
        with open(f"{folder}/cgroup.procs", "wb", buffering=0) as file:
            file.write(b"0")
    except OSError:
        return False
    return True


def own_folder(name: str) -> str:
    """The control group of the holder of node `name`."""
    return f"{mount_of_groups()}/{_OWN_GROUP}-{name}"


def spare_from_oom() -> None:
    """A machine that is short of memory ends others first."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
        file.write(b"-1000")


def wait_until_armed(end: WatchdogEnd, within_ms: int) -> Armed:
    """What the holder has armed. Raises `WatchdogRefused`."""
    ready, _w, _x = select.select((end.channel,), (), (), within_ms / 1000)
    packet = end.channel.recv(MAXIMUM_PACKET_BYTES) if ready else b""
    word, _space, rest = packet.decode(errors="replace").partition(" ")
    if word == "armed":
        return read_armed(rest)
    raise WatchdogRefused(rest if word == "refused" else "its watchdog does not answer; set another, or none")


def close_watchdog(end: WatchdogEnd, within_us: int) -> str:
    """Have it closed: `closed`, `kept`, or why it is still open, in words. Nothing of the node may run any more."""
    try:
        end.channel.send(b"close", socket.MSG_DONTWAIT)
        while select.select((end.channel,), (), (), max(0, within_us) / 1e6)[0]:
            packet = end.channel.recv(MAXIMUM_PACKET_BYTES).decode(errors="replace")
            if packet == "closed":
                _wait_for_the_end(end)
            if not packet.startswith("lost "):
                return packet
    except OSError as error:
        return f"open {error.strerror}"
    return "open it does not answer"


def _wait_for_the_end(end: WatchdogEnd) -> None:
    """The holder ends right after its last word; then its control group goes."""
    select.select((end.channel,), (), (), _LAST_BREATH_S)
    with contextlib.suppress(OSError):
        os.rmdir(own_folder(end.name))
