"""`muster demo`: three nodes keep a service running through the loss of one, in front of your eyes.

Real daemons, a real store, a real HTTP service, a client that measures; all in a temporary directory that is gone in
the end. On a terminal the cluster is shown live; elsewhere each change is a line.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import click

from muster.client.errors import ClientError
from muster.dev import demonstration_service
from muster.dev.development_cluster import DevelopmentCluster, create, free_addresses
from muster.dev.endings import undisturbed, unwinding
from muster.dev.polling_client import Outage, PollingClient, boottime_us
from muster.setup.nodes import Document
from muster.ui.options import reporting
from muster.ui.parameter_types import Seconds

SERVICE = "web"
NODES = 3
BOOT_TIMEOUT_S = 60.0
STEP_TIMEOUT_S = 60.0
_LOOK_S = 0.05


@click.command()
@click.option(
    "--pace",
    "pace_s",
    type=Seconds(0, 60),
    default=3.0,
    metavar="SECONDS",
    show_default=True,
    help="How long to stay with each scene.",
)
@reporting
def demo(pace_s: float) -> None:
    """See it work: three nodes, one service, a power cut, and the outage that a client measured.

    Needs nothing but this machine, asks nothing, leaves nothing behind.
    """
    with unwinding():
        directory = Path(tempfile.mkdtemp(prefix="muster-demo-"))
        cluster: DevelopmentCluster | None = None
        try:
            _scene(f"Three nodes boot on this machine, sharing one store (in {directory})")
            cluster = create(directory / "cluster", NODES, "fast", name="demo")
            _play(cluster, pace_s)
        finally:
            with undisturbed():
                if cluster is not None:
                    cluster.stop_everything()
                    cluster.remove()
                shutil.rmtree(directory, ignore_errors=True)
        _scene("Everything has ended; nothing is left behind")


def _play(cluster: DevelopmentCluster, pace_s: float) -> None:
    for name in cluster.names:
        cluster.start(name)
    cluster.wait_joined(cluster.names, BOOT_TIMEOUT_S, _plain)
    (address,) = free_addresses(1)
    host, _, port = address.rpartition(":")
    client = PollingClient((host, int(port)))
    client.start()
    try:
        with _Stage(cluster, client) as stage:
            _scene(f"A service that answers HTTP on {address} is defined; a client asks it every few milliseconds")
            cluster.connection().operate("apply", definitions=[_definition(cluster, int(port))], withdraw=[])
            stage.until("the service to answer", client.is_served)
            stage.stay(pace_s)
            outage, victim = _cut_power(cluster, client, stage)
            stage.stay(pace_s)
            _report(outage, victim, _timeline(cluster, victim, outage))
            _scene(f"{victim} boots again and joins")
            cluster.start(victim)
            stage.until(f"{victim} to join", lambda: cluster.states().get(victim) == "joined")
            stage.stay(pace_s)
    finally:
        client.stop()


def _definition(cluster: DevelopmentCluster, port: int) -> Document:
    program = Path(demonstration_service.__file__)
    command = [sys.executable, "-I", "-S", str(program), str(port)]
    return {"name": SERVICE, "ordered": cluster.names, "start_command": command, "start_timeout_ms": 10_000}


def _cut_power(cluster: DevelopmentCluster, client: PollingClient, stage: "_Stage") -> tuple[Outage, str]:
    """Kill the serving node, wait until another serves: the outage, and the victim's name."""
    before = cluster.connection().query("status")
    victim = str(before["services"][SERVICE]["node"])
    role = "the master and " if before["master"] == victim else ""
    _scene(f"{victim} is {role}the server of {SERVICE}: its power is cut, without warning")
    cut_us = boottime_us()
    cluster.kill(victim)

    def served_elsewhere() -> bool:
        last = client.last()
        return last is not None and last.at_us > cut_us and last.node not in {"", victim}

    stage.until("another node to serve", served_elsewhere)
    outage = client.outage_after(cut_us)
    if outage is None:
        raise ClientError("the client saw no outage", f"service {SERVICE}", "run the demonstration again")
    return outage, victim


class _Stage:
    """Shows the cluster while something is waited for: live on a terminal, a line for each change elsewhere."""

    def __init__(self, cluster: DevelopmentCluster, client: PollingClient) -> None:
        self._cluster = cluster
        self._client = client
        self._live: Any = None
        self._said = ""

    def __enter__(self) -> Self:
        if sys.stdout.isatty():
            from rich.live import Live

            from muster.ui.pages.screen import console

            self._live = Live(console=console(), auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def stay(self, seconds: float) -> None:
        """Show the cluster for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._look()
            time.sleep(_LOOK_S)

    def until(self, what: str, done: Callable[[], bool]) -> None:
        """Show the cluster until `done`. Raises `ClientError` when it takes too long."""
        deadline = time.monotonic() + STEP_TIMEOUT_S
        while not done():
            self._look()
            if time.monotonic() > deadline:
                logs = "\n".join(f"{name}: {self._cluster.log_tail(name, 4)}" for name in self._cluster.names)
                raise ClientError(
                    f"waited {STEP_TIMEOUT_S:g} s for {what}, without success", logs, "read what the logs say"
                )
            time.sleep(_LOOK_S)
        self._look()

    def _look(self) -> None:
        try:
            answer = self._cluster.connection(1.0).query("status")
        except ClientError:
            return  # between two masters, or on its way down: the next look shows it
        served = self._client.last() if self._client.is_served() else None
        verdict = f"the client is served by {served.node}" if served else "the client gets no answer"
        if self._live is None:
            line = f"{_in_one_line(answer)}; {verdict}"
            if line != self._said:
                _plain(line)
                self._said = line
            return
        from rich.console import Group
        from rich.text import Text

        from muster.ui.pages.screen import status_page

        style = "bold green" if served else "bold red"
        self._live.update(Group(status_page(answer), Text(), Text(verdict, style=style)), refresh=True)


def _in_one_line(answer: Document) -> str:
    parts = [f"{name} {node['state']}" for name, node in answer["nodes"].items()]
    for name, service in answer["services"].items():
        parts.append(f"{name} {service['state']}" + (f" on {service['node']}" if service["node"] else ""))
    parts += [f"{found['kind']} of {found['node']} at level {found['level']}" for found in answer["transitions"]]
    return f"master {answer['master'] or 'none'}; " + ", ".join(parts)


# the vain attempts to reach a dead node, and what `muster timeline` tells better
_LAST_ANSWER_US = 50_000  # the node may be gone by the time that its last answer is read
_LEFT_OUT = ("interconnect trouble", "step begun", "step told", "step acknowledged")


def _timeline(cluster: DevelopmentCluster, victim: str, outage: Outage) -> list[Document]:
    """What the survivors recorded during the outage, in its order; of what several of them did, the first."""
    events: list[Document] = []
    for name in cluster.names:
        if name == victim:
            continue
        try:
            answer = cluster.connection_to(name).query("timeline", since=0)
        except ClientError as error:
            _plain(f"{name} tells no timeline: {error.what}")
            continue
        began_us = outage.began_us - _LAST_ANSWER_US
        during = [event for event in answer["events"] if began_us <= event["at_us"] <= outage.ended_us]
        events += [event | {"node": name} for event in during if event["event"] not in _LEFT_OUT]
    first: dict[tuple[str, str], Document] = {}
    for event in sorted(events, key=lambda event: int(event["at_us"])):
        first.setdefault((str(event["event"]), str(event["detail"]).partition(":")[0]), event)
    return list(first.values())


_PHASES = (  # name of the phase, the event that ends it, whether it is the first or the last such event that does
    ("detection", "link lost", min),
    ("proof", "proof of death", min),
    ("levels", "transition done", max),
    ("start", "service registered", max),
)


def phases(began_us: int, served_us: int, events: list[Document]) -> list[tuple[str, int]]:
    """The outage cut into phases, (name, microseconds), one after the other, none negative; their sum is the outage.

    The service may answer before its start is committed; then the start ends with the answer.
    """
    found: list[tuple[str, int]] = []
    reached = began_us
    for name, phrase, choose in _PHASES:
        times = [int(event["at_us"]) for event in events if event["event"] == phrase and event["at_us"] <= served_us]
        # a phase that ends after the answer, as the last level may, has cost nothing
        end = max(reached, choose(times)) if times else served_us if name == "start" else reached
        found.append((name, end - reached))
        reached = end
    if reached < served_us:
        found.append(("answer", served_us - reached))
    return found


def _report(outage: Outage, victim: str, events: list[Document]) -> None:
    began_us, ended_us = outage.began_us, outage.ended_us
    _scene(f"{outage.after} serves now. What happened, in milliseconds after the last answer before the power cut")
    _plain(f"{0.0:9.1f}  the client is served by {victim} for the last time")
    for event in events:
        detail = str(event["detail"] or "")
        _plain(f"{(event['at_us'] - began_us) / 1000:9.1f}  {event['node']}: {event['event']}: {detail}")
    _plain(f"{(ended_us - began_us) / 1000:9.1f}  the client is served by {outage.after}")
    parts = ", ".join(f"{name} {duration / 1000:.0f} ms" for name, duration in phases(began_us, ended_us, events))
    click.secho(f"outage {outage.duration_us / 1000:.0f} ms as the client measured it ({parts})", bold=True)


def _scene(text: str) -> None:
    click.secho(f"\n{text}", bold=True)


def _plain(text: str) -> None:
    click.echo(f"  {text}")
