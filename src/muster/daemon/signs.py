"""Watches what the rules cannot see: the own interfaces, and how a node looked before it died (SPEC 7.4)."""

import asyncio

from muster.core.diagnosis import PAUSED, SILENT, WELL
from muster.core.inputs import OwnLinksChanged
from muster.core.lease import US_PER_MS
from muster.daemon.daemon import Daemon, boottime_us
from muster.daemon.evidence import conditions
from muster.drivers.own_links import OwnLinks


async def watch_signs(daemon: Daemon, own_links: OwnLinks) -> None:
    """For as long as the daemon runs; a look costs some microseconds, and nothing else depends on it."""
    node = daemon.node
    profile = node.setup.profile
    pause_s = profile.heartbeat_ms / 1000
    cut_off = False
    while True:
        if (now := own_links.cut_off()) != cut_off:
            cut_off = now
            daemon.feed(OwnLinksChanged(cut_off))
        late_us = 2 * profile.heartbeat_interval_ms(len(node.database.nodes)) * US_PER_MS
        now_us = boottime_us()
        if any(node.links.frame_age_us(peer, now_us) > late_us for peer in node.database.nodes if peer != node.me):
            _remember(daemon)
        await asyncio.sleep(pause_s)


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
