"""A longer campaign: random faults to random machines, and after each round everything must be whole again.

The choices of a seed are the same every time; what real machines make of them is not. Each round is one fault, or two
that overlap. Whatever is lost is fenced by the board and comes back; then all must be members, the service must be
served, and the witness must not have heard two instances of it.
"""

import json
import random
import time
from pathlib import Path

from lab.vms.guest import Failed
from lab.vms.laboratory import MEMBERS_S, SERVICE, Laboratory
from lab.vms.short_run import judge

_SERVED_S = 300.0
_PAUSE_S = 12.0  # longer than a lease, so the board is asked
_LONGEST_STALL_S = 12.0


class Campaign:
    """Rounds of faults until the time is over. What happened is written to `kept`, a line each."""

    def __init__(self, lab: Laboratory, seed: int, kept: Path) -> None:
        self._lab, self._random, self._kept = lab, random.Random(seed), kept
        self._faults = {
            "power cut": self._power_cut,
            "reset": self._reset,
            "pause": self._pause,
            "cut": self._cut,
            "stall": self._stall,
            "slow store": self._slow,
            "new daemon": self._new_daemon,
            "leave and return": self._leave,
        }

    def run(self, seconds: float) -> None:
        """All rounds that begin within that time. Raises `OSError` with what is not whole, or was found."""
        until_s = time.monotonic() + seconds
        rounds = 0
        unused = list(self._faults)
        while time.monotonic() < until_s:
            rounds += 1
            name = self._random.choice(unused or list(self._faults))  # each once before any comes twice
            unused = [each for each in unused if each != name]
            self._round(rounds, name)
        self._lab.tell(f"{rounds} rounds, all whole again")

    def _round(self, number: int, fault: str) -> None:
        victim = self._random.choice(sorted(self._lab.guests))
        self._lab.tell(f"round {number}: {fault}: {victim}")
        began_s = time.monotonic()
        self._faults[fault](victim)
        self._rest()
        took_s = time.monotonic() - began_s
        with self._kept.open("a") as file:
            file.write(json.dumps({"round": number, "fault": fault, "node": victim, "whole_after_s": took_s}) + "\n")
        judge(self._lab)

    def _rest(self) -> None:
        """Everybody is a member again, and the service is served."""
        lab = self._lab
        for guest in lab.guests.values():
            lab.wait(f"{guest.name} is turned on again", lambda on=guest: on.is_on, MEMBERS_S)  # type: ignore[misc]
            if guest.wait_boot():
                lab.tell(f"{guest.name} has booted again")
        lab.wait_members(*lab.guests, within_s=2 * MEMBERS_S)
        since_s = time.monotonic()
        if lab.witness.wait_served(SERVICE, since_s=since_s, within_s=_SERVED_S) is None:
            raise Failed(f"nobody serves {SERVICE}")

    # ---- faults ------------------------------------------------------------------------------------------------------

    def _power_cut(self, name: str) -> None:
        self._lab.guests[name].power_cut()

    def _reset(self, name: str) -> None:
        self._lab.guests[name].reset()

    def _pause(self, name: str) -> None:
        """It stands still for longer than its lease: the board cuts its power before it can go on."""
        guest = self._lab.guests[name]
        guest.pause()
        since_s = time.monotonic()
        while time.monotonic() - since_s < _PAUSE_S and guest.is_on:
            time.sleep(0.2)
        guest.resume_if_on()

    def _cut(self, name: str) -> None:
        guest = self._lab.guests[name]
        guest.cut()
        time.sleep(self._random.uniform(2, 15))
        guest.join_if_on()

    def _stall(self, name: str) -> None:
        guest = self._lab.guests[name]
        guest.stall_store()
        time.sleep(self._random.uniform(0.5, _LONGEST_STALL_S))
        guest.heal_store()

    def _slow(self, name: str) -> None:
        guest = self._lab.guests[name]
        guest.set_store(f"slow {self._random.choice((20, 50, 100))}")
        time.sleep(10)
        guest.heal_store()

    def _new_daemon(self, name: str) -> None:
        self._lab.guests[name].run(["muster", "node", "restart-daemon", name], check=False)

    def _leave(self, name: str) -> None:
        guest = self._lab.guests[name]
        guest.run(["systemctl", "stop", "musterd"], within_s=300)
        guest.run(["systemctl", "start", "--no-block", "musterd"])
