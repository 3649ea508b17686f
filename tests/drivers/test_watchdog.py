"""Holder and feeder of a watchdog, with real processes, timers and shared memory (P7.32 to P7.34).

This kernel has no watchdog device, so behind the descriptor is a stand-in, which writes down what is done to it.
The ioctls themselves are tried where there is a device: lab/vms.
"""

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from muster.core.leases.watchdog import SOFTWARE
from muster.drivers.image import watchdog_device
from muster.drivers.image.deadman import boottime_us
from muster.drivers.image.watchdog import (
    Asked,
    WatchdogEnd,
    chosen,
    close_watchdog,
    fit_for_use,
    own_folder,
    start_watchdog,
    wait_until_armed,
)
from muster.drivers.image.watchdog_device import (
    Found,
    Support,
    WatchdogDevice,
    WatchdogRefused,
    holders,
    open_device,
    watchdogs,
)
from muster.records.timing import SHARED
from muster.records.watchdogs import WatchdogSetting

PATIENCE_S = 20
QUICK = SHARED._replace(watchdog_ms=1000)
USEFUL = 0x80 | 0x100 | 0x8000  # SETTIMEOUT, MAGICCLOSE, KEEPALIVEPING


class _StandIn(WatchdogDevice):
    """What is done to it stands in a file, a line each, with the time (us)."""

    __slots__ = ("longest_s", "options")

    def __init__(self, path: str, options: int = USEFUL, longest_s: int = 60) -> None:
        super().__init__(path, os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
        self.options, self.longest_s = options, longest_s
        self._note(f"open {os.getpid()}")

    def _note(self, what: str) -> None:
        os.write(self.descriptor, f"{what} {boottime_us()}\n".encode())

    def support(self) -> Support:
        return Support(self.options, 0, "i6300ESB timer")

    def set_timeout(self, seconds: int) -> int:
        self._note(f"set {seconds}")
        return min(seconds, self.longest_s)

    def feed(self) -> None:
        self._note(f"feed {os.getpid()}")

    def stop(self) -> None:
        self._note("stop 0")
        os.close(self.descriptor)


class _Trial:
    """One device, and what was done to it."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, f"trial-{os.getpid()}"

    def start(self, open_it: Callable[[str], WatchdogDevice] = _StandIn) -> WatchdogEnd:
        return start_watchdog(Asked(self.name, WatchdogSetting(str(self.path)), QUICK), open_it)

    def done(self, word: str = "") -> list[tuple[str, int, int]]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        found = [(each.split()[0], int(each.split()[1]), int(each.split()[2])) for each in lines]
        return [each for each in found if not word or each[0] == word]

    def until(self, holds: Callable[[], bool]) -> None:
        until_s = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < until_s, self.done()
            time.sleep(0.01)

    @property
    def holder(self) -> int:
        return self.done("open")[0][1]

    def clear(self) -> None:
        for _word, pid, _at in (*self.done("open"), *self.done("feed")[-1:]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self.until(lambda pid=pid: not runs(pid))  # type: ignore[misc]
        with contextlib.suppress(OSError):
            os.rmdir(own_folder(self.name))


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[_Trial]:
    made = _Trial(tmp_path / "device")
    try:
        yield made
    finally:
        made.clear()


def hear(end: WatchdogEnd) -> str:
    assert select.select((end.channel,), (), (), PATIENCE_S)[0]
    return end.channel.recv(2048).decode()


def test_p7_33_it_is_set_and_read_back_before_it_counts_as_armed_and_stops_when_it_is_told(trial: _Trial) -> None:
    end = trial.start()
    armed = wait_until_armed(end, PATIENCE_S * 1000)
    assert armed.identity == "i6300ESB timer" and armed.times.timeout_ms == 1000 and not armed.proves
    assert [each[0] for each in trial.done()][:2] == ["open", "set"]
    trial.until(lambda: len(trial.done("feed")) > 2)
    feeder = trial.done("feed")[-1][1]
    assert feeder != trial.holder != os.getpid()
    end.pace.extend(boottime_us() + 60_000_000)
    assert close_watchdog(end, PATIENCE_S * 1_000_000) == "closed"
    assert trial.done()[-1][0] == "stop"
    trial.until(lambda: not runs(feeder) and not runs(trial.holder))
    end.channel.close()


@pytest.mark.parametrize("stopped", [False, True])
def test_p7_32_nothing_is_fed_after_the_deadline_and_nothing_is_closed(trial: _Trial, stopped: bool) -> None:
    end = trial.start()
    wait_until_armed(end, PATIENCE_S * 1000)
    trial.until(lambda: len(trial.done("feed")) > 1)
    deadline_us = boottime_us() + 700_000
    end.pace.extend(deadline_us)
    feeder = trial.done("feed")[-1][1]
    looked_us = end.pace.looked_us
    trial.until(lambda: end.pace.looked_us > looked_us)  # it has seen the deadline: the kernel's timer is there
    if stopped:
        os.kill(feeder, signal.SIGSTOP)
    assert hear(end).startswith("lost the feeder of its watchdog")
    assert boottime_us() >= deadline_us
    assert max(at for _word, _pid, at in trial.done("feed")) < deadline_us
    assert not trial.done("stop") and runs(trial.holder)
    end.channel.close()
    assert runs(trial.holder)  # the machine is to be reset: the last close of the device would feed it


def test_p7_32_signals_to_the_holder_close_nothing(trial: _Trial) -> None:
    end = trial.start()
    wait_until_armed(end, PATIENCE_S * 1000)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(trial.holder, number)
    end.pace.want(2000)
    trial.until(lambda: end.pace.set_ms == 2000)
    assert runs(trial.holder) and not trial.done("stop")
    assert close_watchdog(end, PATIENCE_S * 1_000_000) == "closed"
    end.channel.close()


def test_p7_33_a_guard_that_ends_before_any_deadline_leaves_a_device_that_is_stopped(trial: _Trial) -> None:
    end = trial.start()
    wait_until_armed(end, PATIENCE_S * 1000)
    end.channel.close()
    trial.until(lambda: bool(trial.done("stop")))
    trial.until(lambda: not runs(trial.holder))


def test_p7_35_a_timeout_that_cannot_be_set_is_said(trial: _Trial) -> None:
    end = trial.start(lambda path: _StandIn(path, longest_s=1))
    wait_until_armed(end, PATIENCE_S * 1000)
    end.pace.want(5000)
    trial.until(lambda: ("set", 5) in [each[:2] for each in trial.done("set")])
    trial.until(lambda: end.pace.looked_us > trial.done("set")[-1][2])
    assert end.pace.set_ms == 1000
    close_watchdog(end, PATIENCE_S * 1_000_000)
    end.channel.close()


@pytest.mark.parametrize(
    ("open_it", "words"),
    [
        (lambda path: _StandIn(path, USEFUL & ~0x100), "it has no magic close"),
        (lambda path: _StandIn(path, USEFUL | 0x400), "it raises an alarm and resets nothing"),
        (lambda path: _StandIn(path, USEFUL & ~0x80), "its timeout cannot be set"),
        (lambda path: _StandIn(path, USEFUL & ~0x8000), "it cannot be fed by ioctl"),
        (open_device, "there is no such device"),
    ],
)
def test_p7_34_a_device_that_is_of_no_use_is_refused_and_stopped(
    trial: _Trial, open_it: Callable[[str], WatchdogDevice], words: str
) -> None:
    end = trial.start(open_it)
    with pytest.raises(WatchdogRefused, match=words):
        wait_until_armed(end, PATIENCE_S * 1000)
    end.channel.close()
    assert not trial.done("open") or trial.done()[-1][0] == "stop"


def test_p7_34_a_timeout_that_is_another_when_it_is_read_back_is_refused(trial: _Trial) -> None:
    slow = SHARED._replace(watchdog_ms=30_000)
    asked = Asked(trial.name, WatchdogSetting(str(trial.path)), slow)
    end = start_watchdog(asked, lambda path: _StandIn(path, longest_s=5))
    with pytest.raises(WatchdogRefused, match="its timeout cannot be set to 30 s; it stays at 5 s"):
        wait_until_armed(end, PATIENCE_S * 1000)
    end.channel.close()


HARDWARE = Found("/dev/watchdog1", "iTCO_wdt", nowayout=False, state="inactive")
SOFT = Found("/dev/watchdog0", SOFTWARE, nowayout=False, state="inactive")


def test_p7_34_a_software_watchdog_only_by_its_name() -> None:
    auto, soft = WatchdogSetting("auto"), WatchdogSetting("softdog")
    assert chosen(auto, [SOFT, HARDWARE]) == HARDWARE
    assert chosen(soft, [HARDWARE, SOFT]) == SOFT
    with pytest.raises(WatchdogRefused, match="only Software Watchdog"):
        chosen(auto, [SOFT])
    with pytest.raises(WatchdogRefused, match="this machine has no watchdog"):
        chosen(auto, [])
    with pytest.raises(WatchdogRefused, match="modprobe softdog"):
        chosen(soft, [HARDWARE])
    assert "a kernel that hangs hangs it too" in fit_for_use(SOFT, WatchdogSetting("/dev/watchdog0"))
    assert not fit_for_use(SOFT, soft) and not fit_for_use(HARDWARE, auto)


def test_p7_34_what_cannot_be_stopped_is_refused_unless_it_is_kept() -> None:
    stuck = HARDWARE._replace(nowayout=True)
    assert "nowayout=0" in fit_for_use(stuck, WatchdogSetting("auto"))
    assert not fit_for_use(stuck, WatchdogSetting("auto", kept=True))


def test_p7_34_sysfs_says_what_there_is_without_opening_it(tmp_path: Path) -> None:
    for number, identity in ((10, "later"), (0, "iTCO_wdt")):
        folder = tmp_path / f"watchdog{number}"
        folder.mkdir()
        (folder / "identity").write_text(f"{identity}\n")
        (folder / "nowayout").write_text("1\n" if number else "0\n")
    assert watchdogs(str(tmp_path)) == [
        Found("/dev/watchdog0", "iTCO_wdt", nowayout=False, state=""),
        Found("/dev/watchdog10", "later", nowayout=True, state=""),
    ]
    assert watchdogs(str(tmp_path / "none")) == []


def test_p7_34_who_has_a_device_is_named() -> None:
    with open("/dev/zero", "rb"):
        assert os.getpid() in [pid for pid, _name in holders("/dev/zero")]
    busy = OSError(errno.EBUSY, "busy")
    words = watchdog_device._why_not("/dev/zero", busy)
    assert "has it; end that program" in words
    assert "RuntimeWatchdogSec=off" in watchdog_device._advice([(1, "systemd")])


def test_p7_34_the_requests_have_the_kernels_numbers() -> None:
    if not os.uname().machine.startswith(("x86", "aarch64")):
        pytest.skip("not applicable: other processors have other numbers")
    read, both = watchdog_device._READ, watchdog_device._READ | watchdog_device._WRITE
    assert watchdog_device._request(read, 0, 40) == 0x80285700  # WDIOC_GETSUPPORT
    assert watchdog_device._request(read, 5, 4) == 0x80045705  # WDIOC_KEEPALIVE
    assert watchdog_device._request(both, 6, 4) == 0xC0045706  # WDIOC_SETTIMEOUT
    assert watchdog_device._request(read, 10, 4) == 0x8004570A  # WDIOC_GETTIMELEFT


def test_p7_36_whether_this_is_a_virtual_machine_is_found_without_any_device() -> None:
    assert watchdog_device.is_virtual() in (True, False)
