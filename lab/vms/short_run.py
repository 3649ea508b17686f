"""`make vms`: three machines boot, form a cluster, lose one by its power, live through a stall, and are whole again.

Each step says what it did and how long it took. A step that fails ends the run, with what each node says of itself.
"""

import time

from lab.vms.guest import Failed
from lab.vms.laboratory import MEMBERS_S, SERVICE, Laboratory

STALL_S = 1.0
_SERVED_S = 180.0
_RESTED_S = 240.0


def run(lab: Laboratory) -> None:
    """All of it. Raises `OSError` with what was not as it should be."""
    lab.boot_all()
    lab.form_cluster()
    lab.tell("each node has a fence method")
    lab.start_service()
    cut(lab)
    stall(lab)
    judge(lab)


def cut(lab: Laboratory) -> None:
    """The power of the node that serves is cut; others take over by the board's proof; it is turned on and rejoins."""
    serving = lab.witness.serving(SERVICE)
    assert serving is not None
    victim = lab.guests[serving.node]
    lab.tell(f"{victim.name} serves, and loses its power")
    cut_s = time.monotonic()
    victim.power_cut()
    taken = lab.witness.wait_served(SERVICE, not_by=victim.name, since_s=cut_s, within_s=_SERVED_S)
    if taken is None:
        raise Failed(f"nobody has taken {SERVICE} over within {_SERVED_S:.0f} s")
    asked = [each for each in lab.board.asked if each.at_s > cut_s and each.plug == victim.name]
    off = next((each for each in asked if each.action == "off"), None)
    if off is None or off.at_s > taken.first_s:
        raise Failed(f"{SERVICE} was taken over before the board was asked")
    lab.tell(
        f"{taken.node} serves, {taken.first_s - cut_s:.1f} s after the cut; "
        f"the board was asked after {off.at_s - cut_s:.1f} s"
    )
    rejoin(lab, victim.name)


def rejoin(lab: Laboratory, name: str) -> None:
    """Wait until a node that its board turns on again is a member."""
    guest = lab.guests[name]
    lab.wait(f"{name} is turned on again by its board", lambda: guest.is_on, MEMBERS_S)
    guest.wait_ready()
    took_s = lab.wait_members(*lab.guests, within_s=_RESTED_S)
    lab.tell(f"{name} was turned on, booted, and is a member again, {took_s:.0f} s after its system was up")


def stall(lab: Laboratory) -> None:
    """One machine's shared disk answers nothing for a while: nobody may be lost by that, and the service goes on."""
    serving = lab.witness.serving(SERVICE)
    assert serving is not None
    guest = lab.guests[serving.node]
    lab.tell(f"the shared disk of {guest.name} answers nothing for {STALL_S:.0f} s")
    guest.stall_store()
    time.sleep(STALL_S)
    guest.heal_store()
    lab.wait_members(*lab.guests)
    after = lab.witness.serving(SERVICE)
    if after is None or after.identity != serving.identity:
        raise Failed(f"a stall of {STALL_S:.0f} s moved {SERVICE}")
    lab.tell("no node was lost, and the service has not moved")


def judge(lab: Laboratory) -> None:
    """Raise `Failed` for what the witness found."""
    if lab.witness.findings:
        raise Failed("\n".join(lab.witness.findings))
    lab.tell(f"the witness heard {len(lab.witness.instances)} instances, and never two of one service")
