"""The scripted part of a run: what each machine's owner fears most, one at a time, with what must hold afterwards.

Each part returns the plain words of what was wrong, or nothing; the checkers judge it all the same.
"""

import shutil
import time
from collections.abc import Callable

from lab.patient import now_us
from machines.campaign import ELSEWHERE_S, Campaign
from machines.faults import Fault
from machines.next_package import next_version
from machines.page import blocks
from machines.systems import ANSWER_S, Document
from muster.client.errors import ClientError

SHORT_STALL_S, LONG_STALL_S = 0.8, 8.0
FIRST_SERVICE = "plain"
UPGRADE, LOST_DISK = "7", "8"  # the headings in the document


def power_cut(run: Campaign) -> str:
    """The machine that serves loses its power: its services run elsewhere, on the word of its board, unasked."""
    victim = _holder(run)
    mended = len(run.patient.mended)
    began_us = now_us()
    run.strike(Fault("power-cut", (victim,)))
    run.systems.wait(
        f"{FIRST_SERVICE} runs elsewhere than on {victim}", lambda: _holder(run) not in ("", victim), ELSEWHERE_S
    )
    run.say(f"power cut of {victim}: {FIRST_SERVICE} is on {_holder(run)}; {run.worst_outage(began_us)}")
    if not run.settle():
        return "it did not come to rest"
    proof = _nodes(run)[victim]["last_proof"]
    if proof is None or proof["kind"] != "fence agent":
        return f"{victim} was proven dead by {proof}, and not by its fence agent"
    return "an operator was needed" if len(run.patient.mended) != mended else ""


def storage_stall(run: Campaign) -> str:
    """A short stall of one machine's disk ends nothing; in a long one its services go elsewhere."""
    victim = _holder(run)
    lives = _incarnations(run)
    run.strike(Fault("stall", (victim,), SHORT_STALL_S))
    if not run.settle():
        return "it did not come to rest after a short stall"
    if _incarnations(run) != lives:
        return f"a stall of {SHORT_STALL_S} s has ended a node: {lives} before, {_incarnations(run)} after"
    run.say(f"a stall of {SHORT_STALL_S} s has ended no node")
    began_us = now_us()
    run.strike(Fault("stall", (victim,), LONG_STALL_S))
    fine = run.settle()
    run.say(f"a stall of {LONG_STALL_S} s on {victim}: {run.worst_outage(began_us)}")
    return "" if fine else "it did not come to rest after a long stall"


def one_link(run: Campaign) -> str:
    """One of two cables is pulled: nothing moves, nothing ends."""
    lives, holder = _incarnations(run), _holder(run)
    for number in (0, 1):
        run.strike(Fault("cable", (holder,), 4.0, number))
    if not run.settle():
        return "it did not come to rest"
    if _incarnations(run) != lives or _holder(run) != holder:
        return "the loss of one of two links has moved something"
    run.say(f"{holder} has lost each of its links for 4 s, and nothing else has noticed")
    return ""


def rolling_reboot(run: Campaign) -> str:
    """All machines boot again, one after the other, as in a night of updates."""
    for name in run.systems.names:
        life, began_us = _incarnations(run)[name], now_us()
        run.strike(Fault("reboot", (name,)))
        run.systems.wait(f"{name} is back", lambda name=name, life=life: _is_back(run, name, life))  # type: ignore[misc]
        if not run.settle():
            return f"it did not come to rest after the reboot of {name}"
        run.say(f"{name} has booted again; {run.worst_outage(began_us)}")
    return ""


def cold_boot(run: Campaign) -> str:
    """The power of the room goes, and comes back."""
    run.strike(Fault("power-loss", tuple(run.systems.names), 1.0))
    run.systems.on_all(lambda machine: machine.wait_until_up())
    began_s = time.monotonic()
    fine = run.settle()
    run.say(f"cold boot of all: at rest {time.monotonic() - began_s:.1f} s after the last systemd was up")
    return "" if fine else "it did not come to rest"


def upgrade(run: Campaign) -> str:
    """The next release, machine by machine, by the commands of the documents: no service notices."""
    lives = _incarnations(run)
    for machine in run.systems.machines.values():
        (machine.root / "root/new").mkdir()
        shutil.copy(run.settings.next_package, machine.root / "root/new")
    began_us = now_us()
    for name in run.systems.names:
        run.carry_out([block for block in blocks() if block.where == "upgrade"], (name,))
    run.carry_out([block for block in blocks() if block.heading[0] == UPGRADE and block.where in run.systems.names])
    shown = run.systems.machines["n0"].succeed("muster upgrade status")
    if not run.settle():
        return "it did not come to rest"
    if _incarnations(run) != lives:
        return "an upgrade has ended a node"
    run.say(f"upgraded, each machine; {run.worst_outage(began_us)}")
    return "" if shown.count(next_version()) >= len(run.systems.names) else f"not all run the new release: {shown}"


def lost_disk(run: Campaign) -> str:
    """The disk is lost, and made anew of the backup: nothing starts before every node has booted on it (P11.8)."""
    stop, *rest = [block for block in blocks() if block.heading[0] == LOST_DISK]
    run.carry_out([stop])
    run.systems.empty_disk()
    run.carry_out(rest)
    run.systems.wait("the service of the backup runs", lambda: _holder(run, "clock") != "", ELSEWHERE_S)
    seen = run.systems.connection(ANSWER_S).query("status")
    run.say(f"restored: clock is on {_holder(run, 'clock')}, index {seen['index']}")
    more = set(seen["services"]) - {"clock"}
    return f"there are services that are not in the backup: {more}" if more else ""


def removal(run: Campaign) -> str:
    """Muster is taken away from the last machine: what it ran is elsewhere, and it leaves its home only."""
    name = run.systems.names[-1]
    run.carry_out([block for block in blocks() if block.where == "removal"], (name,))
    left = run.systems.machines[name].succeed(
        "ls -d /usr/lib/muster /usr/bin/muster* /etc/systemd/system/musterd.service /usr/local/lib/systemd/system/* "
        "2>/dev/null; pgrep -a muster || true; ls /var/lib/muster/key.pem"
    )
    states = run.systems.states()
    run.say(f"removed from {name}; the others: {states}")
    if left.split() != ["/var/lib/muster/key.pem"]:
        return f"a removal leaves behind: {left}"
    return "" if states[name] == "inactive" else f"{name} is {states[name]} after its removal"


PARTS: dict[str, Callable[[Campaign], str]] = {
    "cut": power_cut,
    "stall": storage_stall,
    "link": one_link,
    "reboot": rolling_reboot,
    "cold": cold_boot,
    "upgrade": upgrade,
}
LAST: dict[str, Callable[[Campaign], str]] = {  # after the random faults; the checkers see nothing of it
    "lost": lost_disk,
    "removal": removal,
}
SHORT = ("cut", "stall")


def set_up(run: Campaign) -> None:
    """From bare machines to services, by the commands of the documents. Raises `MachineFailed`, `ClientError`."""
    run.boot()
    run.carry_out(
        [block for block in blocks() if block.where not in ("upgrade", "removal") and block.heading[0] in "123456"]
    )


def _holder(run: Campaign, name: str = FIRST_SERVICE) -> str:
    """Where the service is registered; empty where nobody says so."""
    try:
        found = run.systems.connection(ANSWER_S).query("status")["services"][name]
    except (ClientError, KeyError):
        return ""
    return str(found["node"] or "") if found["state"] == "registered" else ""


def _nodes(run: Campaign) -> dict[str, Document]:
    found: dict[str, Document] = run.systems.connection().query("nodes")["nodes"]
    return found


def _incarnations(run: Campaign) -> dict[str, int]:
    nodes = run.systems.connection().query("status")["nodes"]
    return {name: int(node["incarnation"]) for name, node in nodes.items()}


def _is_back(run: Campaign, name: str, life: int) -> bool:
    try:
        return _incarnations(run)[name] > life and run.systems.all_joined()
    except ClientError:
        return False
