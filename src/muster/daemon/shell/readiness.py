"""Tells systemd, where it started this node, when the node is ready and what it is doing (sd_notify; SPEC 9.4)."""

import asyncio

from muster.core.needs.machine import NOTHING, Told
from muster.core.node import insight
from muster.core.node.node import Node
from muster.daemon.shell.daemon import Daemon
from muster.drivers.image.systemd import has_manager, notify
from muster.records.levels import NodeState
from muster.records.required_levels import words_of

AGAIN_S = 1.0  # until what the service manager did not take is said again, as it is then


async def keep_service_manager_informed(daemon: Daemon) -> None:
    """Say READY once the start is over, and STATUS in words whenever that has changed (P10.15).

    A manager that is busy takes nothing for a moment: it is told later, so it never shows for long what was (P10.12).
    """
    if not has_manager():
        return
    told, said = "", False
    with daemon.changes() as changed:
        while True:
            changed.clear()
            now = status_line(daemon.node, daemon.needs())
            ready = said or is_ready(daemon.node)
            lines = ("READY=1", f"STATUS={now}") if ready and not said else (f"STATUS={now}",)
            if (now, ready) == (told, said) or notify(*lines):
                told, said = now, ready
                await changed.wait()
            else:
                await asyncio.sleep(AGAIN_S)


def is_ready(node: Node) -> bool:
    """Whether its start is over: this life has joined, or waits for a program that begins only after it (P10.15)."""
    own = node.database.member(node.me)
    joined = own.incarnation == node.incarnation and own.state is NodeState.JOINED
    return joined or any(each.node == node.me for each in insight.required_levels(node))


def status_line(node: Node, told: Told = NOTHING) -> str:
    """The node in one line, as `systemctl status` shows it: what needs a person first (P10.12)."""
    database = node.database
    own = database.member(node.me)
    state = str(own.state if own.incarnation == node.incarnation else NodeState.INACTIVE)
    waits = next((each for each in insight.required_levels(node) if each.node == node.me), None)
    state += f", waits for {words_of(waits.missing)}" if waits is not None else ""
    state += f", not let in: {own.refusal}" if own.refusal else ""
    master = insight.master(node)
    who = "no master" if master is None else f"master {database.name_of(master)}"
    joined = sum(1 for number in database.nodes if database.member(number).state is NodeState.JOINED)
    here = sum(1 for service in database.services.values() if service.node == node.me)
    more = f" (and {len(told.needs) + told.beyond - 1} more)" if len(told.needs) > 1 else ""
    first = f"NEEDS YOU: {told.needs[0].line}{more}; " if told.needs else ""
    return f"{first}{state}; {who}; {joined} of {len(database.nodes)} nodes joined; {here} services here"
