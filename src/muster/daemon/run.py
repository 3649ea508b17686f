"""The daemon process of a node, started and restarted by init under a guard (docs/ARCHITECTURE.md).

Reads its part of the database, takes the runner's inventory, builds the node, and serves until it ends. A daemon that
is restarted under the same incarnation finds everything it needs in the same three places.
"""

import argparse
import asyncio
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import msgspec

from muster.core.node import Node, Setup
from muster.core.tenure import newest_journal, restore
from muster.daemon.control import ControlServer, SocketRefused
from muster.daemon.daemon import Daemon, boottime_us
from muster.daemon.flight_recorder import FlightRecorder
from muster.daemon.guard_channel import GuardChannel
from muster.daemon.log_file import keep_log_bounded
from muster.daemon.main import version_problem
from muster.daemon.metrics_endpoint import VARIABLE as METRICS
from muster.daemon.metrics_endpoint import Endpoint, MetricsRefused
from muster.daemon.observations import requested
from muster.daemon.readiness import keep_service_manager_informed
from muster.daemon.releases import release
from muster.daemon.requests import Requests
from muster.daemon.signs import SignsWatch
from muster.daemon.trust import KEY_FILE
from muster.drivers.certificates import CertificateRefused
from muster.drivers.disk_store import DiskStore
from muster.drivers.init_process import IMAGE
from muster.drivers.interconnect import Interconnect, InterconnectRefused, parse_address
from muster.drivers.log_lines import Log
from muster.drivers.own_links import OwnLinks
from muster.drivers.process_tree import parent_of
from muster.drivers.runner_client import RunnerClient
from muster.drivers.store import JournalUnreadable, StoreFailed
from muster.drivers.store_inspection import newest_database
from muster.records.geometry import Scope
from muster.records.outages import profile_with
from muster.records.registers import Strip
from muster.records.state import Database, NodeConfig
from muster.records.timing import PROFILES, Profile
from muster.records.versions import HIGHEST, LOWEST, Software

CONTROL_SOCKET = "control.sock"
EXIT_FAILED = 1
DEFINITIONS_SHARE = 2  # service definitions may take one part in so many of a journal half


def main() -> None:
    """Entry point of the daemon process."""
    parser = argparse.ArgumentParser(prog="muster.daemon.run")
    for name in ("--store", "--home", "--node"):
        parser.add_argument(name, required=True)
    options = parser.parse_args()
    guard, runner = (_inherited(name) for name in ("MUSTER_GUARD_FD", "MUSTER_RUNNER_FD"))
    incarnation = int(os.environ["MUSTER_INCARNATION"])
    # Signals for the node go to its guard. Here they come from a service's command that signals all it can.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    try:
        asyncio.run(serve(options.store, options.node, Path(options.home), incarnation, guard, runner))
    except StoreFailed as error:
        print(f"musterd: {error}", file=sys.stderr)
        raise SystemExit(EXIT_FAILED) from error


def _inherited(name: str) -> socket.socket:
    return socket.socket(fileno=int(os.environ[name]))


async def serve(
    store_path: str, name: str, home: Path, incarnation: int, guard_end: socket.socket, runner_end: socket.socket
) -> None:
    """Run the node until it has left, panicked, or lost its guard. Raises `StoreFailed` if it cannot begin."""
    lost = asyncio.Event()
    recorder, log = FlightRecorder(name), Log(name, "daemon")
    daemon: Daemon | None = None
    guard = GuardChannel(
        guard_end,
        lambda: daemon.on_term() if daemon else guard.leave(),
        lost.set,
        lambda *told: daemon.measures.lease_told(*told) if daemon else None,
    )
    profile, config = _configuration(store_path, name)
    pulse, log_keeper = _Pulse(guard, profile), asyncio.ensure_future(keep_log_bounded(log))
    runner = RunnerClient(
        runner_end,
        lambda command: daemon.on_finished(command) if daemon else None,
        lambda text: daemon.note("runner refused", text) if daemon else None,
        lambda ended: daemon.events.command_ended(ended) if daemon else None,
        lambda exited: daemon.events.program_exited(exited) if daemon else None,
    )
    store = DiskStore(store_path, config.node)
    try:
        strip, database = await _boot_record(store, log)
        commands = await runner.inventory()  # last: from here on the runner's results must find the node
        setup = Setup(
            config.node, name, incarnation, profile, store.header.region_bytes // DEFINITIONS_SHARE,
            one_machine=store.header.scope is Scope.HOST, software=_software(),
        )  # fmt: skip
        node = Node(setup, database, strip, commands, boottime_us())
        observations = requested(name, config.node, incarnation)
        daemon = Daemon(node, store, guard, recorder, home, observations)
        asyncio.get_running_loop().set_exception_handler(lambda _, context: _broken(guard, log, context))
        await _serve(daemon, config, runner, guard, home, lost, pulse)
    finally:
        pulse.stop()
        log_keeper.cancel()
        await store.close()


def _configuration(store_path: str, name: str) -> tuple[Profile, NodeConfig]:
    database = newest_database(store_path)
    node = database.node_named(name)
    if node is None:
        raise StoreFailed(f"store {store_path}: node {name!r} is no longer configured in it")
    if problem := version_problem(database):
        raise StoreFailed(f"store {store_path}: {problem}")
    cluster = database.cluster
    return profile_with(PROFILES[cluster.profile], cluster.timers), database.nodes[node]


def _software() -> Software:
    """What this process is of; the guard that it runs under may be older (P10.3)."""
    image = os.environ.get(IMAGE, "")
    return Software(LOWEST, HIGHEST, release(), int(image) if image.isdecimal() else 0)


async def _serve(
    daemon: Daemon, config: NodeConfig, runner: RunnerClient, guard: GuardChannel, home: Path, lost: asyncio.Event,
    pulse: "_Pulse",
) -> None:  # fmt: skip
    node = daemon.node
    cluster = node.database.cluster
    interconnect = Interconnect(
        node.me, cluster.identity, node.incarnation, node.setup.profile,
        on_message=daemon.on_message, on_connected=daemon.on_connected,
        on_lost=daemon.on_lost, on_trouble=daemon.on_trouble,
        on_distrust=daemon.on_distrust, on_visitor=daemon.enrolments.visit,
    )  # fmt: skip
    control = ControlServer(home / CONTROL_SOCKET, Requests(daemon).handle, is_part_of_node=_is_watcher)
    daemon.start(interconnect, runner)
    try:
        interconnect.active_version = cluster.active_version
        interconnect.set_peers({peer.node: peer.addresses for peer in node.database.nodes.values()})
        certificate, authorities = daemon.credentials.at_boot(node.database)
        await interconnect.start(config.addresses, certificate, str(home / KEY_FILE), authorities)
        daemon.credentials.follow(node.database, interconnect)
        await control.start()
    except (InterconnectRefused, CertificateRefused, SocketRefused) as error:
        daemon.note("cannot run", str(error))
        guard.panic(str(error))  # another attempt of the same daemon would fail the same way
        return
    daemon.note("daemon started", f"process {os.getpid()}, incarnation {node.incarnation}")
    endpoint = await _serve_metrics(daemon)
    signs = SignsWatch(daemon, OwnLinks(_hosts(config.addresses)))

    def on_tick() -> None:
        pulse.go_along()
        signs.look()

    daemon.on_tick = on_tick
    telling = asyncio.ensure_future(keep_service_manager_informed(daemon))
    waits = [asyncio.ensure_future(event.wait()) for event in (daemon.ended, lost)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    telling.cancel()
    signs.close()
    if endpoint is not None:
        await endpoint.close()
    await daemon.stop()
    await control.close()
    await interconnect.close()
    if daemon.ended.is_set() and not lost.is_set() and not daemon.restarts:
        await lost.wait()  # the guard ends this process with everything else


def _is_watcher(process: int) -> bool:
    """Whether this is the built-in watcher process: a child of the runner, which is init's as this daemon is.

    What services run is not, for a keeper stands between it and the runner.
    """
    return parent_of(parent_of(process)) == os.getppid()


def _hosts(addresses: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(parse_address(address)[0] for address in addresses)


async def _serve_metrics(daemon: Daemon) -> Endpoint | None:
    """Serve the metrics where that is asked for; that it cannot be done does not keep the node from running."""
    where = os.environ.get(METRICS)
    if not where:
        return None
    from muster.daemon.metrics import Collector

    collector = Collector(daemon.node, daemon.measures, release())
    endpoint = Endpoint(where, collector.page)
    try:
        await endpoint.start()
    except MetricsRefused as error:
        daemon.note("metrics not served", str(error))
        return None
    return endpoint


class _Pulse:
    """Tells the guard, again and again, that the event loop turns (SPEC 7.2)."""

    def __init__(self, guard: GuardChannel, profile: Profile) -> None:
        self._guard, self._pause_s = guard, profile.pulse_ms / 1000
        self._loop = asyncio.get_running_loop()
        self._beat()

    def _beat(self) -> None:
        self._guard.pulse()
        self._timer = self._loop.call_later(self._pause_s, self._beat)

    def go_along(self) -> None:
        """The loop turns for another reason: a pulse that is due soon goes along, and wakes nobody for itself."""
        if self._timer.when() - self._loop.time() <= self._pause_s / 4:
            self._timer.cancel()
            self._beat()

    def stop(self) -> None:
        """Say no more."""
        self._timer.cancel()


async def _boot_record(store: DiskStore, log: Log) -> tuple[Strip, Database]:
    """The first strip and replica. Waits while a claim is unknown or the newest journal is being moved (SPEC 1.5)."""
    while True:
        strip = await store.read_strip()
        newest = newest_journal(strip)
        if newest is not None:
            try:
                image = await store.read_journal(*newest)
                return strip, restore(image.checkpoint, image.frames)
            except (JournalUnreadable, msgspec.DecodeError, ValueError) as error:
                log.tell("warning", "journal unreadable", f"the newest journal cannot be read yet: {error}")
        await asyncio.sleep(0.1)


def _broken(guard: GuardChannel, log: Log, context: dict[str, Any]) -> None:
    """An exception that nobody expected: a broken invariant stops the node, a lost connection does not."""
    error = context.get("exception")
    log.tell("error", "failure", f"{context.get('message')}: {error!r}")
    if error is not None:
        for line in "".join(traceback.format_exception(error)).splitlines():
            log.tell("error", "traceback", line)
    if error is not None and not isinstance(error, OSError):
        guard.panic(f"the daemon has failed: {error!r}")


if __name__ == "__main__":
    main()
