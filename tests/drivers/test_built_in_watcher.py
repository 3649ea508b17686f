"""The built-in watcher by itself: what it tells once, and again where the daemon did not hear it (SPEC 5.1, P8.1).

With its processes and a daemon: test_event_manager.
"""

import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from muster.client.errors import Refused
from muster.client.watching import Asked, Change, Watcher
from muster.core.launching import checks
from muster.drivers.image import watcher
from muster.drivers.image.watcher import BuiltIn, Check, Membership, Memory, Subject

S = 1_000_000
PROGRAM = {"service": "web", "generation": "5"}
ENDED = {"service": "web", "generation": 5, "status": "ended with status 1", "output": "no disk"}


class FakeWatcher:
    """A connection to a daemon: what it asks, what it was told, and whether it hears."""

    def __init__(self) -> None:
        self.asked: dict[str, Asked] = {}
        self.told: list[tuple[str, dict[str, str]]] = []
        self.refuses = False
        self.changed: list[Change] = []

    def ask(self, event: str, **parameters: str) -> None:
        """It asks for an event."""
        self.asked[event] = Asked(event, parameters, {})

    def occurred(self, event: str, **out: str) -> None:
        """It is told of an occurrence."""
        if self.refuses:
            raise Refused("too many clients", "control socket", "try again")
        self.told.append((event, out))

    def changes(self) -> list[Change]:
        """Of the members, since the last call."""
        taken, self.changed = self.changed, []
        return taken


class Trial:
    """A built-in watcher with a clock, whose commands and kills are only noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, memory: Memory | None = None) -> None:
        self.now_us = 1000 * S
        self.killed: list[int] = []
        self.daemon = FakeWatcher()
        self.runner, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._theirs = theirs
        self.membership = Membership()
        monkeypatch.setattr(watcher, "boottime_us", lambda: self.now_us)
        monkeypatch.setattr(watcher, "say", lambda _text: True)
        monkeypatch.setattr(watcher, "descendants", lambda _pids, _parents: [])
        monkeypatch.setattr(watcher, "send", lambda _pids, _number: None)
        self.memory = memory or Memory()
        self.inner = BuiltIn(cast("Watcher", self.daemon), cast("Any", None), {}, theirs, self.membership, self.memory)
        monkeypatch.setattr(self.inner, "_start", self._start)

    def _start(self, _event: str, subject: Subject, now_us: int) -> Check:
        return Check(4711, -1, -1, now_us, now_us + subject.timeout_us)

    def follow(self) -> None:
        """What is asked has changed."""
        self.inner._follow()

    def subject(self, event: str) -> Subject:
        """What is watched for."""
        return self.inner._subjects[event]

    def due(self, event: str) -> list[int]:
        """When something is to be done about it, in seconds from now."""
        own = id(self.subject(event))
        return sorted((at_us - self.now_us) // S for at_us, _event, subject in self.inner._due if subject == own)

    def work(self, event: str, after_s: float = 0) -> None:
        """Do it, so much later."""
        self.now_us += int(after_s * S)
        self.inner._due = [entry for entry in self.inner._due if entry[1] != event]
        self.inner._work(event, self.subject(event), self.now_us)

    def judge(self, event: str, *failures: str) -> None:
        """Runs of its check are over."""
        for failure in failures:
            self.inner._judge(event, self.subject(event), failure)

    def close(self) -> None:
        """Both ends."""
        self.runner.close()
        self._theirs.close()


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trial]:
    """A watcher that is asked for nothing yet."""
    made = Trial(monkeypatch)
    yield made
    made.close()


def test_p8_1_the_end_of_a_program_is_told_until_it_is_heard_and_then_no_more(trial: Trial) -> None:
    trial.daemon.ask("web:exit", **PROGRAM)
    trial.follow()
    assert json.loads(trial.runner.recv(1000)) == {"service": "web", "generation": 5}
    trial.runner.send(json.dumps({**ENDED, "generation": 4}).encode())  # of a start before
    trial.inner._hear_of_program()
    assert trial.daemon.told == []
    trial.daemon.refuses = True
    trial.runner.send(json.dumps(ENDED).encode())
    trial.inner._hear_of_program()
    assert trial.due("web:exit") == [0]
    trial.work("web:exit", 1)
    trial.daemon.refuses = False
    trial.work("web:exit", 1)
    detail = "its program ended with status 1"
    assert trial.daemon.told == [("web:exit", {"status": "ended with status 1", "output": "no disk", "detail": detail})]
    trial.runner.send(json.dumps(ENDED).encode())  # as it was asked, and as it ended
    trial.inner._hear_of_program()
    trial.work("web:exit", 1)
    assert len(trial.daemon.told) == 1


def test_p8_7_what_is_asked_anew_is_another_subject_and_what_is_not_is_the_same(trial: Trial) -> None:
    trial.daemon.ask("web:exit", **PROGRAM)
    trial.daemon.ask("other", command="true")
    trial.follow()
    before, other = trial.subject("web:exit"), trial.subject("other")
    trial.follow()
    assert (trial.subject("web:exit"), trial.subject("other")) == (before, other)
    trial.daemon.ask("web:exit", service="web", generation="6")
    trial.follow()
    assert trial.subject("web:exit") is not before and trial.subject("other") is other
    trial.runner.send(json.dumps(ENDED).encode())
    trial.inner._hear_of_program()
    assert trial.daemon.told == []  # generation 5 is nobody's business any more
    del trial.daemon.asked["other"]
    trial.follow()
    assert list(trial.inner._subjects) == ["web:exit"]


def test_so_many_failures_of_the_last_runs_are_one_occurrence_and_are_counted_anew_after_it(trial: Trial) -> None:
    trial.daemon.ask("c", command="true", failures="2", of="3")
    trial.follow()
    trial.judge("c", "failed", "", "")
    assert trial.daemon.told == []
    trial.judge("c", "failed")  # the one before it is too long ago
    assert trial.daemon.told == []
    trial.judge("c", "", "failed")
    assert [out["failures"] for _event, out in trial.daemon.told] == ["2"]
    trial.judge("c", "failed")
    assert len(trial.daemon.told) == 1
    trial.judge("c", "failed", "")
    assert len(trial.daemon.told) == 2


def test_a_check_that_is_over_its_time_is_ended_and_has_failed_and_the_next_one_begins_an_interval_later(
    trial: Trial,
) -> None:
    trial.daemon.ask("c", command="true", interval="60s", timeout="5s")
    trial.follow()
    assert trial.due("c") == [60]  # the first one, an interval after it was asked for
    trial.work("c", 60)
    assert trial.due("c") == [5]
    trial.work("c", 5)
    assert trial.inner._ending == {4711}
    assert [out["status"] for _event, out in trial.daemon.told] == ["did not end within 5000 ms"]
    assert trial.due("c") == [60]


def test_p8_10_a_quick_check_waits_for_others_that_have_just_begun_only(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "MAXIMUM_CHECKS_AT_WORK", 2)
    monkeypatch.setattr(checks, "MAXIMUM_SLOW_CHECKS", 1)
    monkeypatch.setattr(checks, "MAXIMUM_CHECKS_OF_ALL", 4)
    for name in ("a", "b", "slow", "next", "later"):
        trial.daemon.ask(name, command="true")
    trial.follow()
    trial.subject("slow").is_slow = trial.subject("later").is_slow = True
    for name in ("a", "b", "slow"):
        trial.work(name)
    has_place = trial.inner._has_place
    assert not has_place(trial.subject("next"), trial.now_us)
    trial.now_us += checks.PLACE_MS * 1000 + 1
    assert has_place(trial.subject("next"), trial.now_us)
    assert not has_place(trial.subject("later"), trial.now_us)
    trial.work("next")
    trial.subject("later").is_slow = False
    trial.now_us += checks.PLACE_MS * 1000 + 1
    assert not has_place(trial.subject("later"), trial.now_us)  # of all there are enough


def test_p8_8_changes_of_the_members_are_told_in_order_to_whom_they_fit_until_they_are_heard(trial: Trial) -> None:
    daemon, membership = trial.daemon, trial.membership
    daemon.ask(
        "any",
    )
    daemon.ask("n1-out", node="n1", state="inactive")
    daemon.ask("c", command="true")
    first = Change(11, "n1", "inactive", "joined", 7)
    second = Change(12, "n2", "inactive", "joined", 7)
    daemon.changed = [first]
    assert membership.tell(cast("Watcher", daemon)) and daemon.told == []  # not known yet what is asked
    membership.members.is_current = True
    daemon.refuses = True
    assert not membership.tell(cast("Watcher", daemon))
    daemon.changed = [second]
    assert not membership.tell(cast("Watcher", daemon))
    daemon.refuses = False
    assert membership.tell(cast("Watcher", daemon))
    assert [(event, out["entry"]) for event, out in daemon.told] == [("any", "11"), ("n1-out", "11"), ("any", "12")]
    daemon.changed, daemon.refuses = [first], True
    assert not membership.tell(cast("Watcher", daemon))
    del daemon.asked["any"]
    daemon.refuses = False
    assert membership.tell(cast("Watcher", daemon))
    assert [event for event, _out in daemon.told[3:]] == ["n1-out"]


def test_a_timer_outlasts_its_connection_and_is_due_once(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    trial.daemon.ask("t", interval="60s")
    trial.follow()
    assert trial.due("t") == [60]
    later = Trial(monkeypatch, trial.memory)
    later.now_us = trial.now_us + 90 * S  # it was due while there was no daemon
    later.daemon.ask("t", interval="60s")
    later.follow()
    assert later.due("t") == [-30]
    later.work("t")
    assert [event for event, _out in later.daemon.told] == ["t"]
    assert later.due("t") == [60]
    later.daemon.ask("t", interval="20s")
    later.follow()
    assert later.due("t") == [20]
    later.membership.members.is_current = True  # all that is asked has been said
    del later.daemon.asked["t"]
    later.follow()
    assert later.memory.timers == {}
    later.close()


def test_the_end_of_a_process_is_told_once_whatever_its_file_says(trial: Trial, tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        file = tmp_path / "pid"
        file.write_text(f"{process.pid}\n")
        trial.daemon.ask("p", pid_file=str(file))
        trial.follow()
        trial.work("p")
        subject = trial.subject("p")
        assert (subject.pid, trial.due("p")) == (process.pid, [])
        os.kill(process.pid, signal.SIGKILL)
        select.select([subject.pidfd], [], [])
        trial.inner._readable(subject.pidfd, subject)
        assert [out["pid"] for _event, out in trial.daemon.told] == [str(process.pid)]
        trial.work("p", 1)  # not reaped yet: the kernel still gives a handle on it
        assert subject.pidfd == -1 and trial.due("p") == [0]


CHECK = {"service": "web", "generation": "5", "command": "true", "interval": "10s", "timeout": "5s"}


def test_p8_15_all_failures_of_a_check_until_it_succeeds_have_one_place_and_a_daemon_anew_changes_nothing(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial.daemon.ask("web:check", **CHECK)
    trial.follow()
    trial.judge("web:check", "failed")
    trial.now_us += 10 * S
    later = Trial(monkeypatch, trial.memory)
    later.now_us = trial.now_us
    later.daemon.ask("web:check", **CHECK)
    later.daemon.ask("web:exit", **PROGRAM)
    later.follow()
    later.judge("web:check", "failed")
    (first,), (second,) = trial.daemon.told, later.daemon.told
    assert first[1]["since"] == second[1]["since"]
    later.runner.recv(1000)
    later.runner.send(json.dumps(ENDED).encode())
    later.inner._hear_of_program()
    assert later.daemon.told[-1][1]["since"] == first[1]["since"]  # its end belongs to the same failure
    later.now_us += 10 * S
    later.judge("web:check", "", "failed")
    assert later.daemon.told[-1][1]["since"] > first[1]["since"]
    later.close()


def statuses(trial: Trial, *codes: int) -> None:
    """Its check ends with these exit statuses, one after the other."""
    subject = trial.subject("web:check")
    for code in codes:
        subject.check = Check(4711, -1, -1, trial.now_us, trial.now_us + S)
        trial.inner._take_status(subject, subject.check, code << 8)
        if subject.check.cannot:
            trial.inner._cannot_check("web:check", subject, f"cannot be executed: {subject.check.cannot}")
        else:
            trial.inner._judge("web:check", subject, subject.check.status)


def test_p8_16_a_check_that_cannot_be_executed_neither_fails_nor_succeeds_and_is_told_once(trial: Trial) -> None:
    trial.daemon.ask("web:check", **CHECK, failures="2", of="3", success="1", unknown="3")
    trial.daemon.ask("web:unchecked", service="web", generation="5", check="web:check")
    trial.follow()
    statuses(trial, 126, 126, 126)
    ((event, out),) = trial.daemon.told
    assert event == "web:unchecked" and "could not be executed" in out["detail"]
    statuses(trial, 127, 127)
    assert "was not found" in trial.daemon.told[1][1]["detail"]
    statuses(trial, 3, 1, 0, 2, 3)
    assert [event for event, _out in trial.daemon.told] == ["web:unchecked"] * 4
    statuses(trial, 2)  # the second failure of the last three that say anything: 0, 2, 2
    assert trial.daemon.told[-1][0] == "web:check"


def test_p8_16_a_check_for_which_there_is_no_process_is_tried_again_an_interval_later(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> Check:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(trial.inner, "_start", cannot)
    trial.daemon.ask("web:check", **CHECK)
    trial.follow()
    trial.work("web:check", 10)
    assert trial.daemon.told == [] and trial.due("web:check") == [10]


def test_p8_18_until_its_service_has_started_failures_of_a_check_do_not_count(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial.daemon.ask("web:check", **CHECK, grace="30s")
    trial.follow()
    trial.now_us += 29 * S
    trial.judge("web:check", "failed", "failed")
    assert trial.daemon.told == []
    later = Trial(monkeypatch, trial.memory)
    later.now_us = trial.now_us + 2 * S
    later.daemon.ask("web:check", **CHECK, grace="30s")
    later.follow()  # a daemon that is started anew gives no time
    later.judge("web:check", "failed")
    assert len(later.daemon.told) == 1
    later.close()
    trial.daemon.ask("other:check", **CHECK | {"service": "other"}, grace="30s")
    trial.follow()
    trial.judge("other:check", "", "failed")  # it has been well: so it has started
    assert [event for event, _out in trial.daemon.told] == ["other:check"]


def test_what_a_connection_watched_for_is_let_go_of_with_it(trial: Trial, tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        (tmp_path / "pid").write_text(str(process.pid))
        trial.daemon.ask("p", pid_file=str(tmp_path / "pid"))
        trial.daemon.ask("c", command="true")
        trial.follow()
        trial.work("p")
        trial.work("c")
        pidfd = trial.subject("p").pidfd
        os.fstat(pidfd)
        trial.inner.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(pidfd)
        assert trial.inner._ending == {4711}
        process.kill()
