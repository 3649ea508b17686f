"""Watches what the rules cannot see: the own interfaces, and how a node looked before it died (SPEC 7.4)."""

import asyncio

from muster.core.diagnosis import PAUSED, SILENT, WELL
from muster.core.inputs import OwnLinksChanged
from muster.core.lease import US_PER_MS
from muster.daemon.daemon import Daemon, boottime_us
from muster.daemon.evidence import conditions
from muster.drivers.own_links import OwnLinks


class SignsWatch:
    """Looks at the own interfaces when the kernel says that they changed, and at silent peers once a heartbeat.

    It has no timer: the daemon calls `look` after each of its ticks, so that an idle node is not woken for it.
    """

    def __init__(self, daemon: Daemon, own_links: OwnLinks) -> None:
        self._daemon, self._own_links = daemon, own_links
        self._pause_us = daemon.node.setup.profile.heartbeat_ms * US_PER_MS
        self._looked_us = 0
        self._cut_off = False
        if own_links.changes is not None:
            asyncio.get_running_loop().add_reader(own_links.changes, self._links_changed)
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
        late_us = 2 * node.setup.profile.heartbeat_interval_ms(len(node.database.nodes)) * US_PER_MS
        if any(node.links.frame_age_us(peer, now_us) > late_us for peer in node.database.nodes if peer != node.me):
            _remember(self._daemon)

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
