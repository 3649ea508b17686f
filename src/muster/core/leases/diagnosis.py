"""What ails a node, told by its signs: paused, cut off, without its store, or dead (SPEC 7.4, 7.5).

For people only: no rule acts on it. Three signs that fail independently tell the cases apart: the lease that its guard
renews in the store, the view that its daemon writes there, and the frames that its daemon sends. A fourth, which
only the kernel of the observer knows, tells a stopped process from a stopped machine: whether the other kernel still
acknowledges what is sent to it.
"""

from typing import NamedTuple

from muster.records.timing import Profile

WELL, LEFT, NEVER_RAN, DEAD = "well", "left", "never ran", "dead"
CUT_LINK, OWN_LINKS_DOWN = "cut link", "own links down"
DAEMON_SILENT, STORE_LOST, PAUSED, SILENT, UNKNOWN = "daemon silent", "store lost", "paused", "silent", "unknown"
CONDITIONS = (
    *(WELL, LEFT, NEVER_RAN, DEAD, CUT_LINK, OWN_LINKS_DOWN),
    *(DAEMON_SILENT, STORE_LOST, PAUSED, SILENT, UNKNOWN),
)


class Signs(NamedTuple):
    """What an observer has of another node. Durations in ms; `lease` is live, clean, panicked or never."""

    lease: str
    lease_silent_ms: int  # for how long the beat of its lease has not advanced, in reads without a gap
    view_silent_ms: int  # the same of its view
    frame_silent_ms: int  # since the last frame from it
    connected: bool  # a connection with it is open
    acknowledges: bool | None  # its kernel has acknowledged all that was sent; None: nobody has looked
    cut_off: bool  # its last view says that its own interfaces have no carrier
    heard_by: tuple[str, ...]  # other nodes that say they hear it
    store_lost_ms: int  # for how long it says that it cannot read the store; 0: it can
    own_store_lost_ms: int  # the same of the observer
    gone: str = ""  # the proof that its last incarnation has stopped, in words; empty where there is none
    member: bool = True  # it is joining, joined or leaving


class Diagnosis(NamedTuple):
    """One of `CONDITIONS`, and the evidence in words."""

    condition: str
    evidence: str


def diagnose(signs: Signs, profile: Profile, nodes: int) -> Diagnosis:
    """Judge one node. The bounds are a little above what is usual, and far below those that rules act on."""
    heard = signs.connected and signs.frame_silent_ms <= 2 * profile.heartbeat_interval_ms(nodes)
    renews = signs.lease == "live" and signs.lease_silent_ms <= 2 * (profile.renew_ms + profile.read_ms)
    writes = signs.view_silent_ms <= profile.view_ms + 3 * profile.read_ms
    # or it may have stopped as a whole when it was last heard, its view not due yet
    writes = writes or (heard and signs.view_silent_ms - signs.frame_silent_ms <= profile.view_ms + profile.read_ms)
    if signs.own_store_lost_ms:
        return _blind(signs, heard=heard)
    if signs.lease != "live":
        return _ended(signs)
    if signs.gone and not signs.member and not renews:
        return Diagnosis(DEAD, signs.gone)
    if renews and (heard or _outlives(signs, profile, nodes)):
        return _renewing(signs, heard=heard, writes=writes)
    if renews:
        text = f"no heartbeat from it for {signs.frame_silent_ms} ms, and since then its lease has not been renewed"
        return Diagnosis(SILENT, f"{text} often enough to tell a cut link from a node that has stopped")
    silence = f"its lease and its view in the store have not advanced for {_least(signs)} ms"
    if heard and signs.lease_silent_ms - signs.frame_silent_ms <= profile.renew_ms + profile.read_ms:
        text = f"it was heard {signs.frame_silent_ms} ms ago, hardly later than it renewed its lease"
        return Diagnosis(SILENT, f"{text}: too early to tell a lost store from a node that has stopped")
    if heard:
        said = f", and it says so itself, for {signs.store_lost_ms} ms" if signs.store_lost_ms else ""
        return Diagnosis(STORE_LOST, f"it is heard on the interconnect; {silence}{said}")
    if signs.gone:
        return Diagnosis(DEAD, signs.gone)
    if signs.connected and signs.acknowledges:
        text = "its connection is open, and its kernel acknowledges what is sent; nothing of the node speaks or writes"
        return Diagnosis(PAUSED, f"{text}: {silence}")
    if signs.connected:
        return Diagnosis(SILENT, f"nothing acknowledges what is sent to it: its power or its cables are cut; {silence}")
    return Diagnosis(SILENT, f"its connection has ended: its processes are stopping or gone; {silence}")


def _outlives(signs: Signs, profile: Profile, nodes: int) -> bool:
    """Whether the lease was renewed at a time when a frame was due and did not come.

    Of a node that stopped as a whole, the last frame may be a heartbeat older than the last renewal, which is read a
    little later still; only a renewal after that is evidence that the node runs.
    """
    return signs.frame_silent_ms - signs.lease_silent_ms > profile.heartbeat_interval_ms(nodes) + profile.read_ms


def _least(signs: Signs) -> int:
    return min(signs.lease_silent_ms, signs.view_silent_ms)


def _blind(signs: Signs, *, heard: bool) -> Diagnosis:
    """The observer itself cannot read the store: it has only the interconnect to judge by (SPEC 7.5)."""
    own = f"this node has not been able to read the store for {signs.own_store_lost_ms} ms"
    if not heard:
        return Diagnosis(UNKNOWN, f"{own}, and hears nothing from it")
    if signs.store_lost_ms:
        return Diagnosis(STORE_LOST, f"{own}, and it says the same of itself for {signs.store_lost_ms} ms")
    return Diagnosis(WELL, f"{own}; it is heard, and has its store")


def _ended(signs: Signs) -> Diagnosis:
    if signs.lease == "never":
        return Diagnosis(NEVER_RAN, "no incarnation of it has ever renewed a lease")
    if signs.lease == "clean":
        return Diagnosis(LEFT, "it left cleanly and wrote its tombstone")
    return Diagnosis(DEAD, signs.gone or "it stopped itself at once (a panic), and wrote its tombstone")


def _renewing(signs: Signs, *, heard: bool, writes: bool) -> Diagnosis:
    if heard and writes:
        return Diagnosis(WELL, "")
    if heard:
        text = "its guard renews the lease, and its daemon is heard, but that writes nothing: its view has not advanced"
        return Diagnosis(STORE_LOST, f"{text} for {signs.view_silent_ms} ms")
    quiet = f"no heartbeat from it for {signs.frame_silent_ms} ms"
    if not writes:
        return Diagnosis(DAEMON_SILENT, f"its guard renews the lease; its daemon writes nothing, and {quiet}")
    others = ", ".join(signs.heard_by)
    if signs.cut_off:
        return Diagnosis(OWN_LINKS_DOWN, f"its lease and view advance, {quiet}, and it says that its links are down")
    rest = f"{others} {'hear' if len(signs.heard_by) > 1 else 'hears'} it" if others else "nobody says that it hears it"
    return Diagnosis(CUT_LINK, f"its lease and its view in the store advance, but {quiet}; {rest}")
