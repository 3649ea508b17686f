"""`musterd`: checks everything that can be checked beforehand, then becomes the node's guard (SPEC 1.4, 7.2).

What is wrong with the store, the name, the key or the addresses is said here, once, before anything is written.
"""

import argparse
import os
import sys
from pathlib import Path

import msgspec

from muster.daemon.log_file import LogRefused, add_log_options, prepare_log
from muster.daemon.metrics_endpoint import VARIABLE, MetricsRefused, check_endpoint
from muster.drivers.certificates import CertificateRefused, client_context, server_context, verify_pair
from muster.drivers.guard import StartRefused, lock_home
from muster.drivers.interconnect import InterconnectRefused, check_address
from muster.drivers.store import StoreFailed
from muster.drivers.store_inspection import newest_database
from muster.records.outages import profile_with
from muster.records.state import Database, NodeConfig
from muster.records.timing import PROFILES, InconsistentProfile

EXIT_REFUSED = 3
_GUARD_WORDS = 3  # of the guard's command line: interpreter, -m, module
KEY_FILE = "key.pem"


class BootRefused(Exception):
    """The node cannot run; the message says what, where and what to do."""


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
        command = prepare(options.store, options.node, options.home)
        command[_GUARD_WORDS:_GUARD_WORDS] = ["--deadman", options.deadman]
        if options.predecessor_stopped:
            command.insert(_GUARD_WORDS, "--predecessor-stopped")
        if options.metrics:
            check_endpoint(options.metrics)
            os.environ[VARIABLE] = options.metrics
        prepare_log(options.log_file, options.log_format, options.log_level, options.log_bytes)
    except _REFUSALS as error:
        print(f"musterd: {error}", file=sys.stderr)
        raise SystemExit(EXIT_REFUSED) from error
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
        help="you vouch that this node's last incarnation has stopped; needed only if it ran without a deadman",
    )
    parser.add_argument(
        "--metrics",
        metavar="ENDPOINT",
        default=os.environ.get(VARIABLE),
        help=f"serve metrics for Prometheus there: 127.0.0.1:PORT or unix:/PATH [none]; or {VARIABLE}",
    )
    add_log_options(parser)
    return parser.parse_args(arguments)


def prepare(store: str, name: str, home: str) -> list[str]:
    """Check everything, and return the command line of the guard. Raises `BootRefused` and its kin."""
    database = newest_database(store)
    config = _configured(database, name, store)
    directory = Path(home)
    if not directory.is_dir():
        raise BootRefused(f"home {home}: there is no such directory; make it, with the node's {KEY_FILE} in it")
    key = str(directory / KEY_FILE)
    authority = database.cluster.authority
    verify_pair(server_context(config.certificate, key, authority), client_context(config.certificate, key, authority))
    os.close(lock_home(str(directory.resolve())))  # before its address is found taken, by itself
    for address in config.addresses:
        check_address(address)
    try:
        profile = profile_with(PROFILES[database.cluster.profile], database.cluster.timers)
    except (KeyError, InconsistentProfile) as error:
        raise BootRefused(f"store {store}: its latency profile cannot be used: {error}; upgrade Muster") from error
    paths = ["--store", os.path.realpath(store), "--home", str(directory.resolve())]
    daemon = [sys.executable, "-m", "muster.daemon.run", *paths, "--node", name]
    return [
        sys.executable, "-m", "muster.drivers.guard", *paths, "--node-id", str(config.node), "--name", name,
        "--profile", msgspec.json.encode(profile._asdict()).decode(), "--daemon", *daemon,
    ]  # fmt: skip


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
