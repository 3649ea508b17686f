"""Every timer of Muster and the relations between them, in one place (SPEC 7.6; the model is sanlock's timeouts.h).

Worked timeline of a power cut at profile `fast` (docs/PROTOCOL.md, section "Time"):

    0 ms     last successful renewal starts (the node dies up to renew_ms later)
    +480     deadman: lease_ms - panic_bound_ms after that start, the kernel has killed the node's guard
    +600     lease_ms: the panic bound is over, nothing of the node runs any more
    +846     an observer that first saw the last beat up to read_ms after it was written has counted lease_ms
             plus drift through an unbroken chain of reads: proof of death

That is scope `shared`. Where all daemons share one kernel (scope `host`) two deadlines stand apart (P7.12). The guard's
loop moves the first, lease_ms - panic_bound_ms after its last turn, without the store: it ends a node that hangs. The
lease is store_stall_ms longer there: it bounds only for how long renewals may fail.

A watchdog behind the lease, between machines (P7.30, P7.31). With S = `stall_ms`, T = `watchdog_ms` (of a running
node: the timeout as it was read back), g = `granularity_ms`, r = `reset_ms`, D = `loop_ms`, L = `lease_ms`:

    D >= S + renew_ms + write_ms                    the node's own deadline, after the start of an accepted renewal
    fed at least every T / 3 before the deadline, and never after it; the kernel's deadman is moved before each feeding
    panic bound >= T + g + r                        where nothing can feed late
    panic bound >= 2 T + g + r                      where one feeding that has begun may still land
    L >= D + panic bound
"""

import re
from typing import NamedTuple


class Profile(NamedTuple):
    """A latency profile. Milliseconds throughout. `check` refuses an inconsistent one."""

    name: str
    renew_ms: int  # guard: time from one renewal's start to the next
    lease_ms: int  # nothing of a node runs this long after the start of its last successful renewal
    panic_bound_ms: int  # longest time from the deadman's firing to the last process gone
    read_ms: int  # daemon: time from one strip read to the next
    gap_ms: int  # a longer silence between two reads breaks the chain that counts towards a proof
    view_ms: int  # daemon: longest age of its view register
    heartbeat_ms: int  # interconnect: time from one heartbeat on a link to the next, with few nodes
    heartbeats_per_second: int  # interconnect: heartbeats that one node sends, whatever the number of nodes
    link_loss_beats: int  # a link silent for so many heartbeat times is lost
    pulse_ms: int  # daemon and runner to guard
    pulse_loss_ms: int  # a silent daemon or runner makes the guard panic the node
    restart_ms: int  # a daemon that exited has this long until its successor's first pulse
    claim_stagger_ms: int  # a candidate of rank n waits n times this long before it claims
    connect_ms: int  # interconnect: time to connect and shake hands; also the longest pause between attempts
    store_stall_ms: int = 7000  # scope host: so much longer is the lease; a store that hangs for less ends no node
    # Scope shared, where a lease is longer than anybody wants to wait: 0 is as long as the lease (P4.13, P2.15, P4.14).
    suspect_ms: int = 0  # a node whose beats and links have all been silent for so long is condemned
    mastership_ms: int = 0  # a master that has not renewed for so long decides nothing more, and others claim
    boot_grace_ms: int = 0  # a node that nobody has seen since the own boot is fenced no sooner
    stall_ms: int = 0  # scope shared, with a watchdog: S, a stall of the storage that the node outlives
    write_ms: int = 0  # with a watchdog: the reads and writes of one renewal take no longer
    watchdog_ms: int = 0  # T, which a watchdog is set to, in whole seconds; 0: this profile has no room for one
    granularity_ms: int = 1000  # g, of the watchdog's timer, with all its stages
    reset_ms: int = 0  # r, from the watchdog's expiry until nothing of the machine runs or writes any more

    def heartbeat_interval_ms(self, nodes: int) -> int:
        """Time between heartbeats on one link, in a cluster of `nodes` nodes: traffic per node stays bounded."""
        return max(self.heartbeat_ms, (nodes - 1) * 1000 // self.heartbeats_per_second)

    def link_loss_ms(self, nodes: int) -> int:
        """The bound within which a silent link is named (SPEC 1.6)."""
        return self.link_loss_beats * self.heartbeat_interval_ms(nodes)

    @property
    def loop_ms(self) -> int:
        """The guard's loop may hang so long before the deadman fires."""
        return self.lease_ms - self.panic_bound_ms

    def leased(self, *, one_machine: bool) -> "Profile":
        """This profile with the `lease_ms` of a node's record, where all daemons share one kernel or not (P7.12)."""
        return self._replace(lease_ms=self.lease_ms + self.store_stall_ms) if one_machine else self

    @property
    def suspicion_ms(self) -> int:
        """For how long beats and links must be silent, in scope `shared` (P4.13)."""
        return min(self.suspect_ms or self.lease_ms, self.lease_ms)

    @property
    def leadership_ms(self) -> int:
        """The lease of a mastership, in scope `shared` (P2.15)."""
        return min(self.mastership_ms or self.lease_ms, self.lease_ms)

    def shown(self) -> dict[str, int]:
        """Every timer by its name, as it is at work: what is as long as the lease says how long that is."""
        timers = {key: value for key, value in self._asdict().items() if key != "name"}
        return timers | {"suspect_ms": self.suspicion_ms, "mastership_ms": self.leadership_ms}

    def with_watchdog(self, watchdog: "WatchdogTimes") -> "Profile":
        """The times of a node with this watchdog: the deadline stays, panic bound and lease follow it (P7.31)."""
        bound_ms = max(self.panic_bound_ms, watchdog.bound_ms)
        return self._replace(
            lease_ms=self.loop_ms + bound_ms, panic_bound_ms=bound_ms, watchdog_ms=watchdog.timeout_ms,
            granularity_ms=watchdog.granularity_ms, reset_ms=watchdog.reset_ms,
        )  # fmt: skip

    def proof_ms(self) -> int:
        """Longest time from a node's sudden death to its proof by an expired lease."""
        return with_drift_ms(self.lease_ms) + 2 * self.read_ms


LEAST_GRANULARITY_MS = 1000  # no watchdog's timer is trusted to be finer


class WatchdogTimes(NamedTuple):
    """What the time of a reset depends on (P7.31). Milliseconds."""

    timeout_ms: int  # T, as it was read back
    granularity_ms: int  # g: of the timer, with a second stage where the device resets on the second expiry only
    reset_ms: int  # r
    late_excluded: bool  # no feeding can land after the deadline

    @property
    def bound_ms(self) -> int:
        """From the deadline, after which nobody begins to feed, until nothing of the machine runs any more."""
        most_ms = self.timeout_ms if self.late_excluded else 2 * self.timeout_ms
        return most_ms + self.granularity_ms + self.reset_ms

    def fits(self, lease_ms: int, panic_bound_ms: int) -> bool:
        """Whether a lease of which so much is panic bound is over no sooner than the machine is reset."""
        sound = self.timeout_ms > 0 and self.granularity_ms >= LEAST_GRANULARITY_MS
        return sound and panic_bound_ms >= self.bound_ms and lease_ms > panic_bound_ms


DRIFT_PERCENT = 1  # two machines' clocks may differ in rate by this much


def with_drift_ms(duration_ms: int) -> int:
    """How long an observer counts so that `duration_ms` has certainly passed on the observed machine."""
    return duration_ms + (duration_ms * DRIFT_PERCENT + 99) // 100


FAST = Profile("fast", 150, 600, 120, 120, 260, 480, 360, 30, 3, 360, 1800, 4000, 240, 1000)
STANDARD = Profile("standard", 600, 2400, 480, 350, 1000, 1400, 700, 20, 3, 700, 3500, 8000, 700, 3000)
VIRTUALISED = Profile("virtualised", 1000, 10_000, 2000, 800, 4000, 3000, 1000, 20, 6, 2000, 10_000, 20_000, 2000, 5000)
SHARED = Profile(
    "shared", 400, 28_000, 6800, 300, 1000, 1400, 700, 20, 3, 700, 3500, 8000, 700, 3000,
    suspect_ms=3000, mastership_ms=2000, boot_grace_ms=60_000,
    stall_ms=20_000, write_ms=400, watchdog_ms=5000, reset_ms=800,
)  # fmt: skip
SHORT = Profile(
    "short", 250, 8500, 6350, 150, 500, 700, 360, 30, 3, 360, 1800, 4000, 300, 1000,
    suspect_ms=3000, mastership_ms=2000, boot_grace_ms=60_000,
    stall_ms=1500, write_ms=150, watchdog_ms=5000, reset_ms=350,
)  # fmt: skip
PROFILES = {profile.name: profile for profile in (FAST, STANDARD, VIRTUALISED, SHARED, SHORT)}


class InconsistentProfile(ValueError):
    """A profile breaks one of the relations; the message is the inequality."""


def check(profile: Profile) -> Profile:
    """Return `profile`, or raise `InconsistentProfile` with the inequality that it breaks."""
    p = profile
    relations = (
        ("0 < renew_ms", p.renew_ms > 0),
        ("3 * renew_ms <= lease_ms - panic_bound_ms", 3 * p.renew_ms <= p.lease_ms - p.panic_bound_ms),
        ("read_ms * 2 <= gap_ms", p.read_ms * 2 <= p.gap_ms),
        ("gap_ms < lease_ms", p.gap_ms < p.lease_ms),
        ("pulse_ms * 5 <= pulse_loss_ms", p.pulse_ms * 5 <= p.pulse_loss_ms),
        ("pulse_loss_ms <= restart_ms", p.pulse_loss_ms <= p.restart_ms),
        ("2 <= link_loss_beats", p.link_loss_beats >= 2),
        ("view_ms <= lease_ms", p.view_ms <= p.lease_ms),
        ("2 * read_ms <= claim_stagger_ms", 2 * p.read_ms <= p.claim_stagger_ms),
        *(_of_suspicion(p) if p.suspect_ms else ()),
        *(_of_mastership(p) if p.mastership_ms else ()),
        *(_with_watchdog(p) if p.watchdog_ms else ()),
    )
    for text, holds in relations:
        if not holds:
            numbers = re.sub(r"[a-z]\w+", lambda timer: str(getattr(p, timer[0])), text)
            raise InconsistentProfile(f"profile {p.name}: it must hold that {text}; here that is {numbers}")
    return profile


Relations = tuple[tuple[str, bool], ...]


def _of_suspicion(p: Profile) -> Relations:
    """No single beat, frame, view or read that is late makes anybody suspect a node (P4.13)."""
    return (
        ("3 * renew_ms <= suspect_ms", 3 * p.renew_ms <= p.suspect_ms),
        ("2 * gap_ms <= suspect_ms", 2 * p.gap_ms <= p.suspect_ms),
        ("view_ms + read_ms <= suspect_ms", p.view_ms + p.read_ms <= p.suspect_ms),
        ("link_loss_beats * heartbeat_ms <= suspect_ms", p.link_loss_beats * p.heartbeat_ms <= p.suspect_ms),
    )


def _of_mastership(p: Profile) -> Relations:
    """A master that renews and reads as it should keeps its mastership though one of either is late (P2.15)."""
    return (
        ("2 * renew_ms + 2 * read_ms <= mastership_ms", 2 * p.renew_ms + 2 * p.read_ms <= p.mastership_ms),
        ("2 * gap_ms <= mastership_ms", 2 * p.gap_ms <= p.mastership_ms),
    )


def _with_watchdog(p: Profile) -> Relations:
    """The relations of a profile that has room for a watchdog (P7.31)."""
    return (
        ("watchdog_ms % 1000 == 0", p.watchdog_ms % 1000 == 0),
        (f"{LEAST_GRANULARITY_MS} <= granularity_ms", p.granularity_ms >= LEAST_GRANULARITY_MS),
        (
            # the renewal under way begins a renewal's time after the accepted one, and a guard gives up that long
            # before its deadline, so that its tombstone can still be written
            "stall_ms + 2 * renew_ms + write_ms <= lease_ms - panic_bound_ms",
            p.stall_ms + 2 * p.renew_ms + p.write_ms <= p.loop_ms,
        ),
        (
            "watchdog_ms + granularity_ms + reset_ms <= panic_bound_ms",
            p.watchdog_ms + p.granularity_ms + p.reset_ms <= p.panic_bound_ms,
        ),
    )
