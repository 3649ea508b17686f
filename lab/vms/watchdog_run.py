"""`python -m lab.vms watchdog`: an emulated watchdog behind the lease of each machine (P7.30-P7.36), and nothing else.

No fence agent is there, so a machine is proven dead by its watchdog, or not at all. An operator vouches for the clocks
of these machines (`trusted`): the lab pauses one only where it says so. The steps:

* armed and read back: what the kernel says, what each node can prove;
* a clean leave stops the device, and nothing is reset; then another program has it, and is refused by name;
* all processes of a node are stopped, then only those that extend its lease: the machine is reset in time, and what
  it ran runs elsewhere, not before that;
* a machine whose clock may stop proves nothing: it is paused, and nothing of it is taken over;
* the device cannot be stopped: it is refused, or kept by a small feeder (P7.34).
"""

import time

from bench.figures import Measurement
from lab.vms.guest import Failed, Guest
from lab.vms.laboratory import MEMBERS_S, SERVICE, Laboratory, Settings
from muster.records.profiles import profile_with
from muster.records.timing import PROFILES, Profile

MACHINES = 2  # one that fails and one that sees it: each more makes an emulated host slower
# What lease, deadman and watchdog are here. Of *short* they stay as they are: emulated machines are slow to start a
# daemon, and to answer on a link, and neither is part of what is measured.
TIMERS = {
    "virtualised": ("watchdog_ms=5000", "panic_bound_ms=6800", "reset_ms=800", "lease_ms=18000", "restart_ms=60000"),
    "short": ("restart_ms=60000", "pulse_ms=3000", "pulse_loss_ms=20000", "suspect_ms=8500", "mastership_ms=5000"),
}
SETTING = "auto,trusted"
MEASUREMENT = "vms-watchdog"
OUTAGE = "outage_s"
ALL, EXTENDING = "^muster-", "^muster-(guard|daemon)$"  # what is stopped, as pgrep takes it
_SYSFS = "/sys/class/watchdog/watchdog0"
_SERVED_S = 120.0
_SAID_S = 60.0
_RESET_S = 60.0
_QUIET_S = 12.0  # more than two expiries: a device that was not stopped would have reset its machine
_PAUSED_S = 25.0  # more than a lease


def run(lab: Laboratory, measured: Measurement, runs: int) -> None:
    """All of it; with `runs` of each outage. Raises `OSError` with what was not as it should be."""
    lab.boot_all()
    lab.form_cluster(fencing=False)
    arm(lab)
    lab.start_service()
    leave(lab)
    for _ in range(runs):
        freeze(lab, measured, ALL)
    freeze(lab, measured, EXTENDING)
    pause(lab)
    unstoppable(lab)
    judge(lab)


# ---- armed and read back ---------------------------------------------------------------------------------------------


def arm(lab: Laboratory) -> None:
    """It is set for the cluster, binds the next boot of each node, and is what the kernel says it is."""
    first = lab.a_member()
    first.run(["muster", "config", "set", "watchdog", SETTING])
    expect_proofs(lab, dict.fromkeys(lab.guests, "a watchdog is set, and counts from its next boot"))
    for guest in lab.guests.values():
        _restart(lab, guest)
    timeout_s = _profile(lab).watchdog_ms // 1000
    for guest in lab.guests.values():
        found = device(guest)
        if (found["state"], found["timeout"]) != ("active", str(timeout_s)):
            raise Failed(f"{guest.name}: its watchdog is not armed for {timeout_s} s: {found}")
        lab.tell(f"{guest.name}: {found}")
    words = f"its watchdog (i6300ESB timer) once its lease of {_profile(lab).lease_ms / 1000:g} s is over"
    expect_proofs(lab, dict.fromkeys(lab.guests, words))
    shown = first.run(["muster", "profile", "show"]).stdout
    if "i6300ESB" not in shown:
        raise Failed(f"profile show says nothing of the watchdogs:\n{shown}")


def device(guest: Guest) -> dict[str, str]:
    """What the kernel says of a machine's watchdog."""
    names = "identity state timeout nowayout"
    said = guest.shell(f"cd {_SYSFS} && for i in {names}; do echo $i=$(cat $i); done")
    return dict(line.split("=", 1) for line in said.splitlines())


def expect_proofs(lab: Laboratory, wanted: dict[str, str]) -> None:
    """Each of these nodes can be proven dead by this, as a member says."""

    def found() -> dict[str, str]:
        nodes = lab.status(lab.a_member()).get("nodes", {})
        return {name: nodes.get(name, {}).get("proofs", "") for name in wanted}

    lab.wait(f"proofs {wanted}", lambda: all(wanted[name] in said for name, said in found().items()), _SAID_S)
    lab.tell("; ".join(f"{name}: {words}" for name, words in wanted.items()))


# ---- nothing of it runs on -------------------------------------------------------------------------------------------


def freeze(lab: Laboratory, measured: Measurement, which: str) -> None:
    """These processes of the serving machine are stopped: its watchdog resets it, and another machine serves."""
    serving = lab.witness.serving(SERVICE)
    assert serving is not None
    victim, profile = lab.guests[serving.node], _profile(lab)
    victim.shell(f"pgrep '{which}' >/run/frozen")
    before_s = time.monotonic()
    victim.shell("kill -STOP $(cat /run/frozen)")
    stopped_s = time.monotonic()
    lab.tell(f"{victim.name} serves; all of {which} in it is stopped")
    taken = lab.witness.wait_served(SERVICE, not_by=victim.name, since_s=before_s, within_s=_SERVED_S)
    expired = victim.wait_event("WATCHDOG", before_s, _RESET_S if taken is None else 1.0)
    if expired is None:
        raise Failed(
            f"{victim.name} was not reset by its watchdog, {'and' if taken else 'nor'} was {SERVICE} taken over"
        )
    reset_s = expired.at_s - stopped_s
    if reset_s > (profile.loop_ms + profile.panic_bound_ms) / 1000:
        raise Failed(f"{victim.name} was reset {reset_s:.1f} s after it was stopped: it was fed after its deadline")
    if taken is None:
        raise Failed(f"nobody has taken {SERVICE} over within {_SERVED_S:.0f} s")
    if taken.first_s < expired.at_s:
        raise Failed(f"{taken.node} took {SERVICE} over before {victim.name} was reset")
    last = next(each for each in reversed(lab.witness.instances) if each.identity == serving.identity)
    case = f"1 service, {lab.settings.profile}, {'all of it' if which == ALL else 'guard and daemon'} stopped"
    figures = {"reset_s": reset_s, "elsewhere_s": taken.first_s - before_s, OUTAGE: taken.first_s - last.last_s}
    measured.add_all(case, figures)
    lab.tell(f"{victim.name} was reset, {taken.node} serves: {figures}")
    victim.wait_boot()
    lab.wait_members(*lab.guests, within_s=2 * MEMBERS_S)
    lab.tell(f"{victim.name} has booted, and is a member again")


# ---- what resets nothing ---------------------------------------------------------------------------------------------


def leave(lab: Laboratory) -> None:
    """A clean leave stops the device; then another program has it, so the node does not start, and names it."""
    guest = _idle_one(lab)
    guest.run(["systemctl", "stop", "musterd"], within_s=MEMBERS_S)
    found = device(guest)
    if found["state"] != "inactive":
        raise Failed(f"{guest.name} has left, and its watchdog is {found}")
    _expect_no_reset(guest)
    lab.tell(f"{guest.name} has left: its watchdog is stopped, and resets nothing")
    words = "exec 3>/dev/watchdog0; echo ready >/run/taken; while [ -e /run/taken ]; do printf . >&3; sleep 1; done"
    guest.shell(f"(sh -c '{words}; printf V >&3' >/dev/null 2>&1 &) ; while [ ! -e /run/taken ]; do sleep 0.1; done")
    _expect_refusal(lab, guest, "has it; end that program")
    guest.shell(f"rm /run/taken; while [ $(cat {_SYSFS}/state) = active ]; do sleep 0.1; done")
    _start(lab, guest)


def _expect_no_reset(guest: Guest) -> None:
    since_s = time.monotonic()
    if guest.wait_event("WATCHDOG", since_s, _QUIET_S) is not None:
        raise Failed(f"{guest.name} was reset by its watchdog")


def pause(lab: Laboratory) -> None:
    """A machine whose clock may stop is paused for longer than its lease: nobody takes over what it runs."""
    guest = _idle_one(lab)
    other = lab.a_member(but=guest.name)
    other.run(["muster", "config", "set", "watchdog", "auto", "--of-node", guest.name])
    _restart(lab, guest)
    other.run(["muster", "service", "transfer", SERVICE, guest.name])
    lab.wait(f"{guest.name} serves", lambda: _serves(lab, guest), _SERVED_S)
    expect_proofs(lab, {guest.name: "the clock of this virtual machine may stop"})
    guest.pause()
    since_s = time.monotonic()
    taken = lab.witness.wait_served(SERVICE, not_by=guest.name, since_s=since_s, within_s=_PAUSED_S)
    found = lab.status(other).get("nodes", {}).get(guest.name, {})
    guest.resume()
    if taken is not None:
        raise Failed(f"{taken.node} took {SERVICE} over from a machine that was paused, and that nobody vouched for")
    lab.tell(f"{guest.name} was paused for {_PAUSED_S:.0f} s, and nothing of it was taken over; status said {found}")
    lab.wait_members(*lab.guests, within_s=2 * MEMBERS_S)
    if lab.witness.wait_served(SERVICE, since_s=time.monotonic(), within_s=_SERVED_S) is None:
        raise Failed(f"nobody serves {SERVICE} after {guest.name} has gone on")
    other.run(["muster", "config", "set", "watchdog", "cluster", "--of-node", guest.name])
    _restart(lab, guest)


def _serves(lab: Laboratory, guest: Guest) -> bool:
    serving = lab.witness.serving(SERVICE)
    return serving is not None and serving.node == guest.name


def _restart(lab: Laboratory, guest: Guest) -> None:
    guest.run(["systemctl", "restart", "musterd"], within_s=MEMBERS_S)
    lab.wait_members(*lab.guests)


# ---- what is refused -------------------------------------------------------------------------------------------------


def unstoppable(lab: Laboratory) -> None:
    """A device that cannot be stopped (nowayout) is refused; with `kept`, a small feeder lives on."""
    guest = _idle_one(lab)
    guest.run(["systemctl", "stop", "musterd"], within_s=MEMBERS_S)
    guest.shell("modprobe -r i6300esb && modprobe i6300esb nowayout=1")
    _expect_refusal(lab, guest, "cannot be stopped (nowayout)")
    other = lab.a_member(but=guest.name)
    other.run(["muster", "config", "set", "watchdog", f"{SETTING},kept", "--of-node", guest.name])
    _start(lab, guest)
    guest.run(["systemctl", "stop", "musterd"], within_s=MEMBERS_S)
    if device(guest)["state"] != "active":
        raise Failed(f"{guest.name}: a watchdog that cannot be stopped should be fed on: {device(guest)}")
    _expect_no_reset(guest)
    _start(lab, guest)
    lab.tell(f"{guest.name}: a small feeder lived on, and the next start took the device over from it")


def _expect_refusal(lab: Laboratory, guest: Guest, words: str) -> None:
    """Raises `Failed` unless the node does not start, and says why."""
    guest.run(["systemctl", "start", "--no-block", "musterd"])
    lab.wait(f"{guest.name} says: {words}", lambda: words in _journal(guest), MEMBERS_S)
    if guest.name in lab.members(lab.a_member(but=guest.name)):
        raise Failed(f"{guest.name} has joined without its watchdog")
    line = next(line for line in reversed(_journal(guest).splitlines()) if words in line)
    lab.tell(f"{guest.name} is refused: {line.strip()}")
    guest.run(["systemctl", "stop", "musterd"], within_s=MEMBERS_S)


def _journal(guest: Guest) -> str:
    return guest.shell(
        "journalctl -u musterd -b -n 60 --no-pager -o cat; systemctl status musterd --no-pager", check=False
    )


def _start(lab: Laboratory, guest: Guest) -> None:
    guest.run(["systemctl", "reset-failed", "musterd"], check=False)
    guest.run(["systemctl", "start", "musterd"], within_s=MEMBERS_S)
    lab.wait_members(*lab.guests)


def _idle_one(lab: Laboratory) -> Guest:
    """A machine that does not serve."""
    serving = lab.witness.serving(SERVICE)
    return lab.a_member(but=serving.node if serving is not None else "")


def _profile(lab: Laboratory) -> Profile:
    return profile_of(lab.settings)


def profile_of(settings: Settings) -> Profile:
    """With the timers that are set otherwise. Raises `InconsistentProfile`."""
    timers = ((key, int(value)) for key, _equals, value in (timer.partition("=") for timer in settings.timers))
    return profile_with(PROFILES[settings.profile], tuple(timers))


def judge(lab: Laboratory) -> None:
    """Raise `Failed` for what the witness found."""
    if lab.witness.findings:
        raise Failed("\n".join(lab.witness.findings))
    lab.tell(f"the witness heard {len(lab.witness.instances)} instances, and never two of one service")
