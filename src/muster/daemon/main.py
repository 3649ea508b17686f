"""`musterd`: checks everything that can be checked beforehand, then becomes the node's guard (SPEC 1.4, 7.2).

What is wrong with the store, the name, the key or the addresses is said here, once, before anything is written.
"""

import argparse
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from muster.daemon.log.log_file import LogRefused, add_log_options, prepare_log
from muster.daemon.metrics.endpoint import VARIABLE, MetricsRefused, check_endpoint
from muster.daemon.shell.home_memory import refusal
from muster.daemon.shell.leaving import LONGEST_STOP
from muster.daemon.shell.releases import version_problem
from muster.daemon.trust.authority_keys import AuthorityKeys
from muster.daemon.trust.trust import (
    CERTIFICATE_FILE,
    KEY_FILE,
    authorities_of,
    expected_end_s,
    is_early,
    own_certificate,
)
from muster.drivers.certificates.certificates import CertificateRefused, Subject
from muster.drivers.certificates.private_files import write_private
from muster.drivers.clearing import clear
from muster.drivers.image.guard import EXIT_CLEAN, EXIT_NOT_NOW, NotNow, StartRefused, lock_home
from muster.drivers.image.kept_cleanups import all_kept
from muster.drivers.image.systemd import notify
from muster.drivers.interconnect.mesh import AddressInUse, InterconnectRefused, check_address, parse_address
from muster.drivers.store.engine import newest_record
from muster.drivers.store.failures import StoreFailed
from muster.drivers.store.identity import Scope
from muster.drivers.store.lease_store import lease_store_of
from muster.drivers.store.record import StoreRecord
from muster.drivers.store.remembered_file import remembered_of
from muster.records.database import Database
from muster.records.durations import duration_of
from muster.records.nodes import NodeConfig
from muster.records.profiles import profile_with
from muster.records.timing import PROFILES, InconsistentProfile
from muster.records.versions import WATCHDOGS
from muster.records.watchdogs import NONE as NO_WATCHDOG

EXIT_REFUSED = 3
MEMORY_LOOKS, MEMORY_PAUSE_S = 4, 0.1
WAIT_S = 0.5  # between two looks at what has to pass
_GUARD_WORDS = 3  # of the guard's command line: interpreter, -m, module


class BootRefused(Exception):
    """The node cannot run; the message says what, where and what to do."""


class ClockNotSet(CertificateRefused):
    """By this machine's clock, the node's certificate is not valid yet (P11.6)."""


_REFUSALS = (
    BootRefused,
    CertificateRefused,
    InterconnectRefused,
    LogRefused,
    MetricsRefused,
    StartRefused,
    StoreFailed,
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `musterd`."""
    options = _parse(arguments)
    try:
        if options.clear:
            raise SystemExit(clear_machine(options.store, options.node, options.home))
        if options.renew_expired:
            renew_expired(options.store, options.node, options.home)
        command = wait_and_prepare(options.store, options.node, options.home)
        command[_GUARD_WORDS:_GUARD_WORDS] = ["--deadman", options.deadman]
        if options.predecessor_stopped:
            command.insert(_GUARD_WORDS, "--predecessor-stopped")
        os.environ[LONGEST_STOP] = f"{options.longest_stop}ms"
        if options.metrics:
            check_endpoint(options.metrics)
            os.environ[VARIABLE] = options.metrics
        prepare_log(options.log_file, options.log_format, options.log_level, options.log_bytes)
    except _REFUSALS as error:
        print(f"musterd: {error}", file=sys.stderr)
        raise SystemExit(EXIT_NOT_NOW if isinstance(error, NotNow | AddressInUse) else EXIT_REFUSED) from error
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)  # a list of arguments, no shell


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="musterd", description="Run one node of a Muster cluster.")
    parser.add_argument("--store", required=True, metavar="PATH", help="the membership database: file or block device")
    parser.add_argument("--node", required=True, metavar="NAME", help="this node's name in the cluster")
    parser.add_argument("--home", required=True, metavar="DIR", help=f"this node's directory; holds {KEY_FILE}")
    parser.add_argument(
        "--deadman",
        choices=("auto", "pid-namespace", "process-tree"),
        default="auto",
        help="how the kernel ties everything that the node runs to its guard [auto: a PID namespace where allowed]",
    )
    parser.add_argument(
        "--predecessor-stopped",
        action="store_true",
        help="you confirm that this node's last incarnation has stopped; needed only if it ran without a deadman",
    )
    parser.add_argument(
        "--metrics",
        metavar="ENDPOINT",
        default=os.environ.get(VARIABLE),
        help=f"serve metrics for Prometheus there: 127.0.0.1:PORT or unix:/PATH [none]; or {VARIABLE}",
    )
    parser.add_argument(
        "--longest-stop",
        metavar="DURATION",
        type=_duration_ms,
        default=os.environ.get(LONGEST_STOP) or "24h",
        help="for how long after SIGTERM systemd is asked for more time, while stop commands run [24h]; "
        f"or {LONGEST_STOP}",
    )
    add_log_options(parser)
    parser.add_argument(
        "--clear",
        action="store_true",
        help="start no node: run the cleanups that its last run has left to do, if that run has ended; for "
        "a service manager that ends all of the node's processes at once (ExecStopPost)",
    )
    parser.add_argument(
        "--renew-expired",
        action="store_true",
        help="issue a new certificate for this node, with the authority's key in its home; for a cluster that was down "
        "for so long that no node is left to ask",
    )
    return parser.parse_args(arguments)


def _duration_ms(text: str) -> int:
    found = duration_of(text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: write it as 90s, 30m or 24h")
    return found


def clear_machine(store: str, name: str, home: str) -> int:
    """Run the cleanups that a node's last run has left undone; the exit status (P6.34). Raises as `prepare`."""
    where = os.path.realpath(home)
    if not all_kept(where):
        return EXIT_CLEAN
    node = _configured(newest_record(store).database, name, store).node
    open_leases = lease_store_of(store)
    return clear(
        where, name, node, lambda: open_leases(store, node), lambda text: print(f"musterd: {text}", flush=True)
    )


def wait_and_prepare(store: str, name: str, home: str) -> list[str]:
    """`prepare`, as soon as what passes by itself has passed (P11.6): told once, and to the service manager.

    A signal ends the waiting at once, for nothing runs yet. Raises as `prepare` for what does not pass.
    """
    told = ""
    while True:
        try:
            return prepare(store, name, home)
        except (StoreFailed, ClockNotSet) as error:
            if isinstance(error, StoreFailed) and not error.passes:
                raise
            if str(error) != told:
                told = str(error)
                print(f"musterd: waiting: {told}", file=sys.stderr, flush=True)
                notify(f"STATUS=waiting: {told}")
        time.sleep(WAIT_S)


def prepare(store: str, name: str, home: str) -> list[str]:
    """Check everything, and return the command line of the guard. Raises `BootRefused` and its kin."""
    record = newest_record(store)
    database = record.database
    config = _configured(database, name, store)
    if problem := version_problem(database):
        raise BootRefused(f"store {store}: {problem}")
    directory = Path(home)
    if not directory.is_dir():
        raise BootRefused(f"home {home}: there is no such directory; make it, with the node's {KEY_FILE} in it")
    if not config.certificate:
        raise BootRefused(
            f"store {store}: {name} is configured and has no certificate yet; enrol it here, with its token: "
            f"muster enrol --store {store} --name {name} --home {home}"
        )
    try:
        own_certificate(config, directory, authorities_of(database))
    except CertificateRefused as error:
        if is_early(config.certificate):
            raise ClockNotSet(f"{error}; set this machine's clock, or wait until it is set") from error
        raise CertificateRefused(f"{error}{_way_back(config, store, home)}") from error
    _check_memory(record, config.node, store, directory)
    os.close(lock_home(str(directory.resolve())))  # before its address is found taken, by itself
    for address in config.addresses:
        parse_address(address)
        try:
            check_address(address)
        except AddressInUse:
            raise
        except InterconnectRefused as error:  # the daemon goes on trying, and listens where it can
            print(f"musterd: {error}; it is tried again until it can be had", file=sys.stderr, flush=True)
    try:
        profile = profile_with(PROFILES[database.cluster.profile], database.cluster.timers)
    except (KeyError, InconsistentProfile) as error:
        raise BootRefused(f"store {store}: its latency profile cannot be used: {error}; upgrade Muster") from error
    watchdog = _watchdog_of(config, database, record.header.scope)
    paths = ["--store", os.path.realpath(store), "--home", str(directory.resolve())]
    daemon = [sys.executable, "-m", "muster.daemon.run", *paths, "--node", name]
    return [
        sys.executable, "-m", "muster.drivers.guard", *paths, "--node-id", str(config.node), "--name", name,
        "--profile", msgspec.json.encode(profile._asdict()).decode(),
        "--version", str(database.cluster.active_version), *(["--watchdog", watchdog] if watchdog else []),
        "--daemon", *daemon,
    ]  # fmt: skip


def _watchdog_of(config: NodeConfig, database: Database, scope: Scope) -> str:
    """Which watchdog the node is to have; none where one kernel is asked (P7.34)."""
    if scope is Scope.HOST or database.cluster.active_version < WATCHDOGS:
        return ""
    text = database.cluster.watchdog if config.watchdog is None else config.watchdog
    return "" if text == NO_WATCHDOG else text


def _check_memory(record: StoreRecord, node: int, store: str, home: Path) -> None:
    """Refuse a store that went back in time (P11.2). Raises `BootRefused`.

    A store in use may show less than it holds while its newest journal is being moved: so it is looked at again.
    """
    remembered = remembered_of(home, record.header.cluster_id, lambda text: print(f"musterd: {text}", file=sys.stderr))
    for _ in range(MEMORY_LOOKS):
        if not refusal(record, remembered, node, store, str(home)):
            return
        time.sleep(MEMORY_PAUSE_S)
        record = newest_record(store)
    if problem := refusal(record, remembered, node, store, str(home)):
        raise BootRefused(problem)


def _way_back(config: NodeConfig, store: str, home: str) -> str:
    """What helps a node whose certificate has ended, or whose key is not the one on record."""
    end_s = expected_end_s(config.certificate)
    name = config.name
    if end_s is None or end_s > time.time():
        return ""
    return (
        f"; it ended on {datetime.fromtimestamp(end_s, UTC):%Y-%m-%d %H:%M:%S} UTC. If another node runs: there, "
        f"`muster node token {name}`; here, `muster enrol --store {store} --name {name} --home {home}`. If none does: "
        "start this one with --renew-expired"
    )


def renew_expired(store: str, name: str, home: str) -> None:
    """Issue this node's certificate anew on this machine, for its key, into its home (P1.6). Raises as `prepare`."""
    from muster.daemon.trust.enrolment import issuing_authority
    from muster.drivers.certificates.signing import Reissue, carry_out

    database = newest_record(store).database
    config, cluster = _configured(database, name, store), database.cluster
    authority = issuing_authority(cluster)
    keys = AuthorityKeys(Path(home), lambda _node, _message: None, lambda _event, _text: None)
    if not keys.holds(authority):
        raise BootRefused(
            f"home {home}: it lacks the authority's key, {keys.path(authority)}; put it there from the folder that "
            "`muster init` wrote, or enrol this node on a running cluster (muster node token, muster enrol)"
        )
    subject = Subject(config.node, config.name, cluster.identity)
    job = Reissue(authority, keys.path(authority), ((subject, config.certificate),), cluster.certificate_lifetime_s)
    write_private(Path(home) / CERTIFICATE_FILE, carry_out(job).certificates[0])


def _configured(database: Database, name: str, store: str) -> NodeConfig:
    node = database.node_named(name)
    if node is None:
        known = ", ".join(config.name for config in database.nodes.values())
        raise BootRefused(
            f"store {store}: cluster {database.cluster.name} has no node {name!r}; it has {known}: "
            "start it under one of these names"
        )
    return database.nodes[node]


if __name__ == "__main__":
    main()
