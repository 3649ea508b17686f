"""Watches what the rules cannot see: the own interfaces, and how a node looked before it died (SPEC 7.4)."""

import asyncio

from muster.core.inputs import OwnLinksChanged, RestartHeld
from muster.core.leases.diagnosis import PAUSED, SILENT, WELL
from muster.daemon.shell.daemon import Daemon, boottime_us
from muster.daemon.signs.evidence import conditions
from muster.daemon.trust.trust import is_out_of_time
from muster.drivers.aside import aside
from muster.drivers.machine.own_links import OwnLinks, addresses_of
from muster.records.units import US_PER_MS

CLOCK_PAUSE_US = 2_000_000  # between two looks whether the certificate is valid by the clock
_OUT_OF_TIME = (
    "this node's certificate is not valid by this machine's clock; a new daemon could not connect, so the others "
    "would force the node out; set the clock, or give the node a new certificate (muster node token)"
)


class SignsWatch:
    """Looks at the own interfaces when the kernel says that they changed, and at silent peers once a heartbeat.

    It has no timer: the daemon calls `look` after each of its ticks, so that an idle node is not woken for it.
    """

    def __init__(self, daemon: Daemon, own_links: OwnLinks) -> None:
        self._daemon, self._own_links = daemon, own_links
        self._pause_us = daemon.node.setup.profile.heartbeat_ms * US_PER_MS
        self._looked_us = 0
        self._next_clock_us = 0
        self._restart_held = ""
        self._cut_off = False
        if own_links.changes is not None:
            asyncio.get_running_loop().add_reader(own_links.changes, self._links_changed)
        self._look_at_links()

    async def watch(self, hosts: tuple[str, ...]) -> None:
        """Watch the interfaces of these own addresses from now on (P1.8)."""
        self._own_links.watch(await aside(addresses_of, hosts))
        self._look_at_links()

    def close(self) -> None:
        """Watch no more."""
        if self._own_links.changes is not None:
            asyncio.get_running_loop().remove_reader(self._own_links.changes)
        self._own_links.close()

    def look(self) -> None:
        """Look, unless that was done a moment ago."""
        node, now_us = self._daemon.node, boottime_us()
        if now_us - self._looked_us < self._pause_us:
            return
        self._looked_us = now_us
        if self._own_links.changes is None:
            self._look_at_links()
        if now_us >= self._next_clock_us:
            self._next_clock_us = now_us + CLOCK_PAUSE_US
            self._look_at_clock()
        late_us = 2 * node.setup.profile.heartbeat_interval_ms(len(node.database.nodes)) * US_PER_MS
        if any(node.links.frame_age_us(peer, now_us) > late_us for peer in node.database.nodes if peer != node.me):
            _remember(self._daemon)

    def _look_at_clock(self) -> None:
        node = self._daemon.node
        config = node.database.nodes.get(node.me)
        held = _OUT_OF_TIME if config is not None and is_out_of_time(config.certificate) else ""
        if held != self._restart_held:
            self._restart_held = held
            self._daemon.feed(RestartHeld(held))

    def _links_changed(self) -> None:
        self._own_links.drain()
        self._look_at_links()

    def _look_at_links(self) -> None:
        now = self._own_links.cut_off()
        if now != self._cut_off:
            self._cut_off = now
            self._daemon.feed(OwnLinksChanged(now))


def _remember(daemon: Daemon) -> None:
    """How an unheard node looks now; once it is dead, that is the evidence of what it died of."""
    for other, found in conditions(daemon).items():
        incarnation = daemon.node.database.member(other).incarnation
        before = daemon.last_conditions.get(other)
        was = before[1].condition if before is not None and before[0] == incarnation else ""
        if (was, found.condition) == (PAUSED, SILENT):
            continue  # its deadman has stopped it by now; what it was before is the news
        if found.condition in (PAUSED, SILENT):
            if was != found.condition:
                daemon.note("signs", f"{daemon.node.database.name_of(other)} is {found.condition}: {found.evidence}")
            daemon.last_conditions[other] = (incarnation, found)
        elif found.condition == WELL:
            daemon.last_conditions.pop(other, None)
