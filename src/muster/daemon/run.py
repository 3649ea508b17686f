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
from typing import Any, NoReturn

import msgspec

from muster.client.address import SOCKET_FILE
from muster.core.boot_advice import SYSTEMD
from muster.core.boot_advice import VARIABLE as BOOT_COMMAND
from muster.core.leases.memory import Remembered
from muster.core.leases.observer import KernelIdentity
from muster.core.mastership.tenure import newest_journal, restore
from muster.core.node.node import Node
from muster.core.node.setup import Setup
from muster.core.services.commands import probes_of
from muster.daemon.history.flight_recorder import FlightRecorder
from muster.daemon.history.observations import requested
from muster.daemon.log.log_file import keep_log_bounded
from muster.daemon.loop import CONNECTION
from muster.daemon.metrics.endpoint import VARIABLE as METRICS
from muster.daemon.metrics.endpoint import Endpoint, MetricsRefused
from muster.daemon.shell.daemon import Daemon, boottime_us
from muster.daemon.shell.guard_channel import GuardChannel
from muster.daemon.shell.home_memory import HomeMemory, refusal
from muster.daemon.shell.leaving import NO_MASTER_S
from muster.daemon.shell.readiness import keep_service_manager_informed
from muster.daemon.shell.releases import release, version_problem
from muster.daemon.shell.turns import TimedSelector, run_timed
from muster.daemon.signs.needs_watch import NeedsWatch
from muster.daemon.signs.signs import SignsWatch
from muster.daemon.socket.desk import Requests
from muster.daemon.socket.server import ControlServer, SocketRefused
from muster.daemon.trust.trust import KEY_FILE, is_out_of_time
from muster.drivers.certificates.certificates import CertificateRefused
from muster.drivers.image.deadman import read_boot_id, settle_memory
from muster.drivers.image.environment import IMAGE, INIT_FD
from muster.drivers.image.kernels_word import read_machine_id
from muster.drivers.image.log_lines import Log
from muster.drivers.image.process_tree import parent_of
from muster.drivers.interconnect.mesh import Interconnect, InterconnectRefused, parse_address
from muster.drivers.machine.own_links import OwnLinks
from muster.drivers.runner_client import RunnerClient
from muster.drivers.store.engine import Opened, newest_record, open_store
from muster.drivers.store.failures import JournalUnreadable, StoreFailed
from muster.drivers.store.identity import Scope, StoreIdentity
from muster.drivers.store.record import StoreRecord
from muster.drivers.store.remembered_file import remembered_of
from muster.records.database import Database
from muster.records.nodes import NodeConfig
from muster.records.profiles import profile_with
from muster.records.registers import Strip
from muster.records.timing import PROFILES, Profile
from muster.records.versions import HIGHEST, LOWEST, Software

EXIT_FAILED = 1
CLOCK_PAUSE_S = 2.0  # between two looks whether the certificate is valid by the clock
MAXIMUM_FAILURE_CHARACTERS = 2000  # of a line in the log


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
    status = 0
    try:
        run_timed(
            lambda turns: serve(options.store, options.node, Path(options.home), incarnation, guard, runner, turns)
        )
    except StoreFailed as error:
        print(f"musterd: {error}", file=sys.stderr)
        status = EXIT_FAILED
    except Exception:  # noqa: BLE001 - as the interpreter would, but without its wait for threads
        traceback.print_exc()
        status = EXIT_FAILED
    _end(status)


def _end(status: int) -> NoReturn:
    """End this process, whatever its threads wait for (P8.14): its successor is awaited."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _inherited(name: str) -> socket.socket:
    return socket.socket(fileno=int(os.environ[name]))


async def serve(
    store_path: str, name: str, home: Path, incarnation: int, guard_end: socket.socket, runner_end: socket.socket,
    turns: TimedSelector,
) -> None:  # fmt: skip
    """Run the node until it has left, panicked, or lost its guard. Raises `StoreFailed` if it cannot begin."""
    lost = asyncio.Event()
    recorder, log = FlightRecorder(name), Log(name, "daemon")
    daemon: Daemon | None = None
    lacking: list[str] = []  # processes of the node that have ended, told before this daemon is one
    early: list[int] = []  # for how long the node has been told to leave, before this daemon can do it
    guard = GuardChannel(
        guard_end,
        lambda age_ms: daemon.on_term(age_ms) if daemon and not early else _on_early_term(early, age_ms, guard),
        lost.set,
        lambda *told: daemon.measures.lease_told(*told) if daemon else None,
        _inherited(INIT_FD) if INIT_FD in os.environ else None,
        lambda *word: daemon.on_word(*word) if daemon else None,
        lambda names: daemon.on_lacking(names) if daemon else lacking.append(names),
    )
    profile, config = _configuration(store_path, name)
    pulse, log_keeper = _Pulse(guard, profile), asyncio.ensure_future(keep_log_bounded(log))
    runner = RunnerClient(
        runner_end,
        lambda command: daemon.on_finished(command) if daemon else None,
        lambda text: daemon.note("runner refused", text) if daemon else None,
        lambda ended: daemon.events.command_ended(ended) if daemon else None,
        lambda exited: daemon.events.program_exited(exited) if daemon else None,
        lambda waiting: daemon.places.heard(waiting) if daemon else None,
    )
    guard.on_panic = runner.panic
    store = open_store(store_path, config.node)
    try:
        strip, database = await _boot_record(store, log)
        remembered = remembered_of(home, store.header.cluster_id, lambda _text: None)  # told by `musterd` at the boot
        record = StoreRecord(store.header, strip, database)
        if problem := refusal(record, remembered, config.node, store_path, str(home)):
            log.tell("error", "store went back", problem)
            guard.panic(problem)
            await lost.wait()
            return
        commands = await runner.inventory()  # last: from here on the runner's results must find the node
        setup = Setup(
            config.node, name, incarnation, profile, store.header.region_bytes,
            one_machine=store.header.scope is Scope.HOST, software=_software(),
            remembered=_of_this_store(remembered, store.header),
            kernel=KernelIdentity(read_boot_id(), read_machine_id()),
            boots=os.environ.get(BOOT_COMMAND) or SYSTEMD,
        )  # fmt: skip
        node = Node(setup, database, strip, commands, boottime_us())
        observations = requested(name, config.node, incarnation)
        daemon = Daemon(node, store, guard, recorder, home, observations, took_over=bool(commands))
        turns.took = daemon.measures.turned
        for names in lacking:
            daemon.on_lacking(names)
        daemon.memory = HomeMemory(home, store.header, node, daemon.note)
        daemon.cleanups.ended(commands)  # what stopped while no daemon listened
        asyncio.get_running_loop().set_exception_handler(lambda _, context: _broken(guard, log, context))
        await _serve(daemon, config, runner, guard, home, lost, pulse, early)
    finally:
        pulse.stop()
        log_keeper.cancel()
        await store.close()


def _on_early_term(early: list[int], age_ms: int, guard: GuardChannel) -> None:
    """The node is told to end before its daemon has a replica: it goes by that, or without it after the bound."""
    if not early:
        asyncio.get_running_loop().call_later(NO_MASTER_S, lambda: guard.leave() if early else None)
    early.append(age_ms)


def _configuration(store_path: str, name: str) -> tuple[Profile, NodeConfig]:
    database = newest_record(store_path).database
    node = database.node_named(name)
    if node is None:
        raise StoreFailed(f"store {store_path}: node {name!r} is no longer configured in it")
    if problem := version_problem(database):
        raise StoreFailed(f"store {store_path}: {problem}")
    cluster = database.cluster
    return profile_with(PROFILES[cluster.profile], cluster.timers), database.nodes[node]


def _of_this_store(remembered: Remembered | None, header: StoreIdentity) -> Remembered | None:
    """What is remembered of the history of this very store; of one that was adopted since, none of it holds here."""
    met = remembered is not None and remembered.store_id == header.store_id.hex()
    return remembered if met else None


def _software() -> Software:
    """What this process is of; the guard that it runs under may be older (P10.3)."""
    image = os.environ.get(IMAGE, "")
    return Software(LOWEST, HIGHEST, release(), int(image) if image.isdecimal() else 0)


async def _serve(
    daemon: Daemon, config: NodeConfig, runner: RunnerClient, guard: GuardChannel, home: Path, lost: asyncio.Event,
    pulse: "_Pulse", early: list[int],
) -> None:  # fmt: skip
    node = daemon.node
    cluster = node.database.cluster
    interconnect = Interconnect(
        node.me, cluster.identity, node.incarnation, node.setup.profile,
        on_message=daemon.on_message, on_connected=daemon.on_connected,
        on_lost=daemon.on_lost, on_trouble=daemon.on_trouble,
        on_distrust=daemon.on_distrust, on_unreachable=daemon.on_unreachable, on_visitor=daemon.enrolments.visit,
    )  # fmt: skip
    requests = Requests(daemon)
    control = ControlServer(
        home / SOCKET_FILE, requests.handle, is_part_of_node=_is_watcher, role=requests.gate.role,
        permit=requests.gate.permit, introduce=requests.gate.introduce,
    )  # fmt: skip
    daemon.start(interconnect, runner)
    needs = NeedsWatch(daemon)
    if early:
        daemon.on_term(early[0])
    early.clear()
    try:
        interconnect.active_version = cluster.active_version
        guard.version(cluster.active_version)
        interconnect.set_peers({peer.node: peer.addresses for peer in node.database.nodes.values()})
        await control.start()
        await _connect(daemon, interconnect, config, home, lost)
    except (InterconnectRefused, CertificateRefused, SocketRefused) as error:
        daemon.note("cannot run", str(error))
        guard.panic(str(error))  # another attempt of the same daemon would fail the same way
        return
    daemon.note("daemon started", f"process {os.getpid()}, incarnation {node.incarnation}")
    settle_memory()
    endpoint = await _serve_metrics(daemon)
    signs = SignsWatch(daemon, OwnLinks())
    daemon.spawn(signs.watch(_hosts(config.addresses)))

    own = config.addresses

    def on_tick() -> None:
        nonlocal own
        present = node.database.nodes.get(node.me)
        if present is not None and present.addresses != own:
            own = present.addresses
            daemon.spawn(signs.watch(_hosts(own)))
        if daemon.memory is not None:
            daemon.memory.keep()
        daemon.cleanups.keep_probes(lambda: probes_of(node.database, node.me), node.database.index)
        signs.look()
        needs.look()
        daemon.places.look(boottime_us())

    daemon.on_tick, daemon.on_input = on_tick, pulse.go_along
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


async def _connect(
    daemon: Daemon, interconnect: Interconnect, config: NodeConfig, home: Path, lost: asyncio.Event
) -> None:
    """Start the interconnect: now, or as soon as the node's certificate is good by the clock (P11.6).

    Raises `CertificateRefused`, `InterconnectRefused` for what does not pass by itself.
    """

    async def start() -> None:
        certificate, authorities = daemon.credentials.at_boot(daemon.node.database)
        key = str(home / KEY_FILE)
        await interconnect.start(config.addresses, certificate, key, authorities, patient=True)
        daemon.credentials.follow(daemon.node.database, interconnect)

    async def start_later() -> None:
        while not lost.is_set() and not daemon.ended.is_set():
            await asyncio.sleep(CLOCK_PAUSE_S)
            try:
                await start()
            except CertificateRefused:
                continue  # told once
            daemon.note("interconnect starts", "this node's certificate is valid by the clock now")
            return

    try:
        await start()
    except CertificateRefused as error:
        if not is_out_of_time(config.certificate):
            raise
        daemon.note("interconnect waits", f"{error}; it starts when the certificate is valid by this machine's clock")
        daemon.spawn(start_later())


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
    from muster.daemon.metrics.metrics import Collector

    collector = Collector(daemon.node, daemon.measures, release(), daemon.needs, daemon.service_counts)
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


async def _boot_record(store: Opened, log: Log) -> tuple[Strip, Database]:
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
    """An exception that nobody expected: a broken invariant stops the node, what a connection brought does not (P10.6).

    Whatever the node itself does wrong on behalf of a connection, `Daemon.feed` tells apart from it.
    """
    error = context.get("exception")
    log.tell("error", "failure", f"{context.get('message')}: {error!r}"[:MAXIMUM_FAILURE_CHARACTERS])
    if error is not None:
        for line in "".join(traceback.format_exception(error)).splitlines():
            log.tell("error", "traceback", line[:MAXIMUM_FAILURE_CHARACTERS])
    of_one_connection = context.keys() & {CONNECTION, "transport", "protocol"}
    if error is not None and not isinstance(error, OSError) and not of_one_connection:
        guard.panic(f"the daemon has failed: {error!r}")


if __name__ == "__main__":
    main()
