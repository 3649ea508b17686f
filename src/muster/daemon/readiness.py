"""Tells systemd, where it started this node, when the node is ready and what it is doing (sd_notify; SPEC 9.4)."""

from muster.core.node import Node
from muster.daemon.daemon import Daemon
from muster.drivers.service_manager import notify
from muster.records.state import NodeState


async def keep_service_manager_informed(daemon: Daemon) -> None:
    """Say READY now, since the control socket serves; and STATUS in words whenever that has changed."""
    told = ""
    with daemon.changes() as changed:
        if not notify("READY=1", f"STATUS={status_line(daemon.node)}"):
            return  # no service manager, or none that listens
        while True:
            changed.clear()
            now = status_line(daemon.node)
            if now != told and notify(f"STATUS={now}"):
                told = now
            await changed.wait()


def status_line(node: Node) -> str:
    """The node in one line, as `systemctl status` shows it."""
    database = node.database
    own = database.member(node.me)
    state = str(own.state if own.incarnation == node.incarnation else NodeState.INACTIVE)
    master = node.master
    who = "no master" if master is None else f"master {database.name_of(master)}"
    joined = sum(1 for number in database.nodes if database.member(number).state is NodeState.JOINED)
    here = sum(1 for service in database.services.values() if service.node == node.me)
    return f"{state}; {who}; {joined} of {len(database.nodes)} nodes joined; {here} services here"
