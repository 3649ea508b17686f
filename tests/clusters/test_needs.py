"""P10.12 on real daemons: each kind of need is made to happen, and every instrument tells it alike.

One row of `ROWS` a kind; a kind without one fails a test. Rows that can share a cluster are one walk (`WALKS`), in the
order in which they stand: what one leaves behind, the next may build on. The profile is a patient one, so that nothing
ends a node but what the walk does to it.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from broken_way import broken_way
from dev_cluster import PATIENT, SOURCE, DevCluster
from fence_board import PASSWORD, Board
from lab.sandbox import missing
from muster.core.needs.need import KINDS
from muster.dev.development_cluster import STORE_FILE, create
from muster.dev.node_processes import kill_all
from muster.drivers.image.process_tree import read_command_line, read_name, read_parents, send
from muster.drivers.image.processes import CARETAKER
from muster.drivers.store.disk.file import open_header
from muster.drivers.store.disk.geometry import COPIES
from muster.records.registers import RegisterKind
from muster.setup.fencing import keep_secret
from needs_instruments import EVENTS, Instruments

ROOT = Path(__file__).parents[2]
PROFILE = PATIENT[-1]
SERVICES = """
[[service]]
name = "web"
allowable_nodes = ["n0"]
run = ["sleep", "1000"]
[[service]]
name = "stubborn"
node_preferences = {ordered = ["n1", "n0"]}
start_command = "true"
stop_command = "false"
[[service]]
name = "broken"
start_command = "false"
auto_register = "manual"
[[service]]
name = "tied"
allowable_nodes = ["n1"]
auto_register = "manual"
start_command = "true"
"""
ADDRESS = """
[[service]]
name = "address"
node_preferences = {ordered = ["n1", "n0"]}
start_command = "true"
stop_command = "true"
cleanup_command = "false"
"""
LEFT_TO_ITS_ACTION = """
[[service]]
name = "paged"
allowable_nodes = ["n0"]
run = ["sh", "-c", "until test -e {ends}; do sleep 0.05; done; exit 3"]
on_failure = "/bin/true"
"""
FAT = """
[[service]]
name = "fat{number}"
auto_register = "manual"
start_command = ["true", "{words}"]
"""
FAT_SERVICES, FAT_CHARACTERS = 20, 20_000  # together more than three quarters of what the store has room for
BOOT_ID = "/proc/sys/kernel/random/boot_id"


class Walk:
    """A cluster and what a walk does to it. `at`: the instruments of a node."""

    board: Board  # of a walk that fences: it cuts the power of nodes, and boots them again

    def __init__(self, cluster: DevCluster, folder: Path, stack: contextlib.ExitStack) -> None:
        self.cluster, self.folder, self.stack = cluster, folder, stack
        self.at: dict[str, Instruments] = {}
        self.way = Path()  # a way to the store
        self.older = Path()  # the source of a made release
        self.store: Callable[[str], None] = lambda _command: None  # tells it how to fail

    def do(self, *words: str) -> None:
        """A command that must succeed."""
        self.cluster.succeed(*words)

    def instruments(self, node: str) -> Instruments:
        """Those of a node that is off, or that the walk boots by itself."""
        made = self.at[node] = Instruments(self.cluster, node, self.folder)
        self.stack.callback(made.close)
        return made

    def apply(self, text: str) -> None:
        """Apply a service file."""
        (self.folder / "applied.toml").write_text(text)
        self.do("apply", str(self.folder / "applied.toml"))

    def home(self, node: str) -> Path:
        """The home of a node."""
        return self.cluster.directory / "nodes" / node

    def state(self, service: str, state: str) -> None:
        """Wait for the state of a service."""
        self.cluster.wait_for(
            f"{service} to be {state}", lambda seen: seen["services"][service]["state"] == state, 120, node="n0"
        )

    def joined(self, node: str) -> None:
        """Wait until a node is a member."""
        self.cluster.wait_for(f"{node} to join", lambda seen: seen["nodes"][node]["state"] == "joined", 240)

    def boot_in(self, node: str, script: str, *words: str) -> None:
        """Boot a node, which is off, with mounts of its own."""
        muster = [sys.executable, "-m", "muster.ui.command_line", "dev", "boot", node, "--no-wait"]
        booted = subprocess.run(
            ["unshare", "--mount", "sh", "-ec", script + '; exec "$@"', "sh", *words, *muster],
            env=os.environ | {"MUSTER_DIR": str(self.cluster.directory)} | self.at[node].environment,
            capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        assert booted.returncode == 0, booted.stderr


class Row(NamedTuple):
    """A need: how it is made to happen, and what is told of it at node `at`."""

    kind: str
    subject: str
    words: str  # a part of the sentence
    next_step: str  # a part of the next step
    make: Callable[[Walk], None]
    end: Callable[[Walk], None] | None = None  # None: what follows builds on it
    at: str = "n0"
    without: tuple[str, ...] = ()  # events are of members (P8.4): a node that is none has no other way to tell


def _does(*commands: str) -> Callable[[Walk], None]:
    """Commands that a person types."""

    def do(walk: Walk) -> None:
        for command in commands:
            walk.do(*command.split())

    return do


def _goes_on(_walk: Walk) -> None:
    """What is there already makes it happen, too."""


# ---- what people leave behind, and services that cannot go on --------------------------------------------------------


def _keys_are_back(walk: Walk) -> None:
    (walk.home("n1") / "kept").rename(walk.home("n1") / "authority-keys")
    walk.do("dev", "boot", "n1", "--no-wait")
    walk.joined("n1")
    walk.at["n0"].nothing()


def _begin_services(walk: Walk) -> None:
    """Two nodes that lack the authority's key; n1 is off."""
    create(walk.cluster.directory, 2, PROFILE)
    for node in ("n0", "n1"):
        (walk.home(node) / "authority-keys").rename(walk.home(node) / "kept")
    walk.instruments("n0").boot()
    walk.apply(EVENTS.format(nodes='["n0"]'))


def _maintain(walk: Walk) -> None:
    walk.apply(SERVICES)
    for service in ("web", "stubborn"):
        walk.state(service, "registered")
    walk.do("maintenance", "begin", "--service", "web", "--cause", "patch")


def _end_paged(walk: Walk) -> None:
    ends = walk.folder / "ends"
    walk.apply(LEFT_TO_ITS_ACTION.format(ends=ends))
    walk.state("paged", "registered")
    walk.at["n0"].nothing()
    ends.touch()


def _restart_paged(walk: Walk) -> None:
    (walk.folder / "ends").unlink()
    walk.do("service", "restart", "paged")


def _move_stubborn(walk: Walk) -> None:
    walk.do("service", "transfer", "stubborn")


SERVICE_ROWS = (
    Row("certificate", "cluster", "n0 has not got the authority's key", "muster authority show", _goes_on,
        _keys_are_back),
    Row("maintenance", "service/web", "service web is in maintenance (patch)",
        "muster maintenance end --service web --yes", _maintain, _does("maintenance end --service web --yes")),
    Row("standby", "node/n0", "n0 is on standby: it gets no services, and still has web", "muster node active n0",
        _does("node standby n0"), _does("node active n0")),
    Row("failed", "service/broken", "broken is not running: start failed on", "muster service register broken",
        _does("service register broken"), _does("service deregister broken")),
    Row("failed", "service/paged", "paged has failed on n0: its program ended with status 3",
        "muster service restart paged", _end_paged, _restart_paged),
    Row("blocked", "service/stubborn", "stubborn is stopping on n1 and stuck", "muster service deregister stubborn",
        _move_stubborn, _does("service confirm-stopped stubborn")),
    Row("nowhere", "service/tied", "tied is not running: no allowable node is up", "boot n1",
        _does("node leave n1", "service register tied"), _does("service deregister tied")),
)  # fmt: skip

# ---- a node that is silent or lost, comes back, and may not join -----------------------------------------------------


def _boot_on_another_machine(walk: Walk, node: str) -> None:
    """Boot a node where its guard finds another kernel than the others do."""
    boot_id = walk.folder / "boot_id"
    boot_id.write_text("11111111-2222-4333-8444-555555555555\n")
    walk.boot_in(node, f'mount --bind "$1" {BOOT_ID}; shift', str(boot_id))


def _begin_losses(walk: Walk) -> None:
    """Scope `shared`; n1 of a made release that can read no database with a standby, n2 on a machine of its own."""
    source = walk.folder / "older"
    shutil.copytree(SOURCE / "muster", source / "muster", ignore=shutil.ignore_patterns("__pycache__"))
    replica = source / "muster" / "core" / "replica" / "replica.py"
    reads = "            database = decode_database(snapshot.database)\n"
    text = replica.read_text()
    assert text.count(reads) == 1
    refuses = 'if database.standby:\n                raise msgspec.DecodeError("an unknown record")\n'
    replica.write_text(text.replace(reads, f"{reads}            {refuses}"))
    create(walk.cluster.directory, 3, PROFILE, scope="shared")
    for node in ("n0", "n1", "n2"):
        walk.instruments(node)
    walk.at["n0"].boot()
    walk.older = source
    _boot_on_another_machine(walk, "n2")
    walk.joined("n2")
    walk.apply(EVENTS.format(nodes='["n0", "n1"]'))
    walk.at["n0"].nothing()


def _cut_the_power(walk: Walk) -> None:
    assert not kill_all(walk.home("n2"), 10, with_bystanders=True)


def _boot_older(walk: Walk) -> None:
    """n1 is sent a whole database when it boots."""
    walk.do("node", "standby", "n0")
    _cut_the_power(walk)  # so that its lease runs out meanwhile
    walk.boot_in("n1", 'export PYTHONPATH="$1"; shift', str(walk.older))
    walk.at["n1"].look()


def _join_after_all(walk: Walk) -> None:
    walk.do("node", "active", "n0")
    walk.joined("n1")


def _remove_n2(walk: Walk) -> None:
    walk.do("node", "evict", "n2", "--confirmed-dead")
    walk.cluster.wait_for("its end", lambda seen: seen["nodes"]["n2"]["state"] == "inactive", node="n0")
    walk.do("node", "remove", "n2", "--yes")


def _lose_n1(walk: Walk) -> None:
    walk.apply(ADDRESS)
    walk.state("address", "registered")
    walk.do("dev", "kill", "n1")


def _boot_n1(walk: Walk) -> None:
    walk.do("dev", "boot", "n1", "--no-wait")


LOSS_ROWS = (
    Row("not following", "node/n1", "n1 does not follow the cluster", "muster upgrade status", _boot_older,
        _join_after_all, at="n1", without=("event",)),
    Row("unproven", "node/n2", "nothing proves that it has stopped", "muster node evict n2 --confirmed-dead",
        _goes_on, _remove_n2),
    Row("lost", "node/n1", "n1 was lost", "muster dev boot n1", _lose_n1),
    Row("unclean", "service/address", "address is not running", "muster service confirm-clean address", _goes_on),
    Row("refused", "node/n1", "n1 may not join: its machine may still hold", "muster node confirm-clean n1", _boot_n1,
        _does("config set required_levels storage:15 --of-node n1", "node confirm-clean n1")),
    Row("level", "node/n1", "n1: it waits for storage (level 15)",
        "muster config set required_levels ... --of-node n1", _goes_on),
    Row("overdue level", "node/n1", "n1: it waits for storage (level 15)",
        "muster config set required_levels ... --of-node n1", _does("config set required_levels_within 200ms"),
        _does("config set required_levels cluster --of-node n1")),
)  # fmt: skip

# ---- a way to the store that is broken, what else of a node is lost, and nobody who leads ----------------------------


def _begin_store(walk: Walk) -> None:
    """Two nodes, n1 with a way of its own to the store; soon it can write nothing but its lease and its journal."""
    create(walk.cluster.directory, 2, PROFILE)
    way = walk.folder / "way"
    walk.store = walk.stack.enter_context(broken_way(way, walk.cluster.directory / STORE_FILE))
    for node in ("n0", "n1"):
        walk.instruments(node)
    walk.at["n0"].boot()
    walk.way = way
    _boot_by_the_way(walk, "n1")
    walk.joined("n1")
    walk.apply(EVENTS.format(nodes='["n0", "n1"]'))
    walk.at["n0"].nothing()


def _boot_by_the_way(walk: Walk, node: str) -> None:
    script = 'mount --bind "$1" "$2"; shift 2'
    walk.boot_in(node, script, str(walk.way), str(walk.cluster.directory / STORE_FILE))


def _break_the_way(walk: Walk) -> None:
    header = open_header(str(walk.cluster.directory / STORE_FILE))
    for node in walk.cluster.json("node", "list")["nodes"].values():  # only n1 goes that way
        for kind in (RegisterKind.CLAIM, RegisterKind.VIEW):
            for copy in range(COPIES):
                start = header.register_offset(kind, node["id"], copy)
                walk.store(f"refuse {start} {start + header.sector_bytes}")


def _addresses(walk: Walk, node: str) -> list[str]:
    found: list[str] = walk.cluster.json("node", "list")["nodes"][node]["addresses"]
    return found


def _lose_a_path(walk: Walk) -> None:
    """n1 gets a second address, where another program listens."""
    taken = walk.stack.enter_context(socket.socket())
    taken.bind(("127.0.0.2", 0))
    taken.listen()
    walk.do("node", "set-addresses", "n1", *_addresses(walk, "n1"), f"127.0.0.2:{taken.getsockname()[1]}")


def _give_it_up(walk: Walk) -> None:
    walk.do("node", "set-addresses", "n1", _addresses(walk, "n1")[0])


def _fill_the_store(walk: Walk) -> None:
    words, numbers = "x" * FAT_CHARACTERS, range(FAT_SERVICES)
    for start in numbers[:: FAT_SERVICES // 4]:  # all together are more than one entry holds
        some = numbers[start : start + FAT_SERVICES // 4]
        walk.apply("".join(FAT.format(number=number, words=words) for number in some))


def _empty_the_store(walk: Walk) -> None:
    for number in range(FAT_SERVICES):
        walk.do("service", "withdraw", f"fat{number}")


def _kill_caretakers(walk: Walk) -> None:
    """Both at once: one alone is replaced by the other."""
    home = os.fsencode(walk.home("n0"))
    found = [pid for pid in read_parents() if read_name(pid) == CARETAKER]
    send([pid for pid in found if home in read_command_line(pid)], signal.SIGKILL)


def _lose_the_master(walk: Walk) -> None:
    walk.at["n1"].look()
    walk.do("dev", "kill", "n0")


def _boot_it_again(walk: Walk) -> None:
    """By the broken way: so nobody leads yet who could say that its former life has ended."""
    _boot_by_the_way(walk, "n0")


def _mend_the_way(walk: Walk) -> None:
    walk.store("accept")


STORE_ROWS = (  # n1 has said for twice the lease that it cannot write before it gives up: meanwhile others are walked
    Row("unwell", "node/n1", "n1 cannot use the store", "muster why n1", _break_the_way),
    Row("link", "link/n1", "1 of 2 paths between n0 and n1 are down", "muster links", _lose_a_path, _give_it_up),
    Row("store", "cluster", "% full", "withdraw what is not needed", _fill_the_store, _empty_the_store),
    Row("processes lost", "node/n0", "the caretaker of n0 has ended, with its standby", "muster node leave n0",
        _kill_caretakers),
    Row("cannot lead", "node/n1", "n1 cannot lead the cluster: its view register cannot be written", "muster why n1",
        _goes_on),
    Row("no master", "cluster", "no node leads the cluster", "muster links", _lose_the_master, at="n1"),
    Row("former life", "node/n0", "n0 runs again, but the cluster still counts a former life",
        "muster node evict n0 --confirmed-dead", _boot_it_again, _mend_the_way, without=("event",)),
)  # fmt: skip

# ---- fencing: a device without an answer, a node that nothing fences, one fenced in vain, one fenced too often -------


def _begin_fencing(walk: Walk) -> None:
    """Scope `shared`; n1 on a machine of its own, and a board that both nodes have the password of."""
    create(walk.cluster.directory, 2, PROFILE, scope="shared")
    walk.board = Board(walk.cluster.directory, walk.folder, lambda node: _boot_on_another_machine(walk, node))
    walk.stack.callback(walk.board.close)
    for node in ("n0", "n1"):
        walk.instruments(node)
        keep_secret(walk.home(node), "pdu", "passwd", PASSWORD)
    walk.at["n0"].boot()
    _boot_on_another_machine(walk, "n1")
    walk.joined("n1")
    walk.apply(EVENTS.format(nodes='["n0"]'))
    walk.at["n0"].nothing()


def _add_a_device_without_its_agent(walk: Walk) -> None:
    missing_agent = str(walk.folder / "fence_nothing")
    walk.do("fence", "add", "pdu", "--agent", missing_agent, "--unchecked", "--from", "n0")


def _give_it_its_agent(walk: Walk) -> None:
    walk.do("fence", "add", "pdu", "--agent", walk.board.agent("fence_board"), "--secret", "passwd")


def _cut_the_power_behind_the_board(walk: Walk) -> None:
    walk.board.wrong = "refuse"
    assert not kill_all(walk.home("n1"), 10, with_bystanders=True)


def _have_it_fenced(walk: Walk, fence: Callable[[Walk], None]) -> None:
    """Have n1 fenced, and wait until it is a member again in its next life."""
    life = walk.cluster.status("n0")["nodes"]["n1"]["incarnation"]

    def is_back(status: Any) -> bool:
        node = status["nodes"]["n1"]
        return bool(node["incarnation"] > life and node["state"] == "joined")

    fence(walk)
    walk.cluster.wait_for("n1 to be turned off, and to join again", is_back, 240, node="n0")


def _mend_the_board(walk: Walk) -> None:
    def mend(walk: Walk) -> None:
        walk.board.wrong = ""

    _have_it_fenced(walk, mend)


def _fence_to_the_limit(walk: Walk) -> None:
    """It was fenced once; at the fourth time within the hour it stays off."""
    for _ in range(2):
        _have_it_fenced(walk, _does("fence now n1 --yes"))
    walk.do("fence", "now", "n1", "--yes")
    walk.cluster.wait_for("its end", lambda seen: seen["nodes"]["n1"]["state"] == "inactive", 120, node="n0")


def _release_n1(walk: Walk) -> None:
    switched = [told["action"] for told in walk.board.told if told["action"] in ("off", "on")]
    assert switched[-1] == "off", "a node in quarantine is not turned on"
    walk.do("fence", "release", "n1")
    _boot_on_another_machine(walk, "n1")
    walk.joined("n1")


FENCING_ROWS = (
    Row("fence device", "node/n0", "n0 cannot use fence device pdu", "muster fence test pdu",
        _add_a_device_without_its_agent, _give_it_its_agent),
    Row("not fenced", "node/n0", "nothing says how n0 is fenced", "muster fence method n0 --help",
        _does("fence method n1 power --device pdu:plug=n1"), _does("fence method n0 power --device pdu:plug=n0")),
    Row("watchdog", "node/n0", "a watchdog is set for n0, and proves nothing yet", "muster node leave n0",
        _does(f"config set profile {PROFILE},watchdog_ms=1000", "config set watchdog softdog --of-node n0"),
        _does("config set watchdog cluster --of-node n0", f"config set profile {PROFILE}")),
    Row("fencing fails", "node/n1", "n1 could not be fenced yet", "muster fence history n1",
        _cut_the_power_behind_the_board, _mend_the_board),
    Row("quarantine", "node/n1", "n1 is in quarantine: it was fenced 4 times", "muster fence release n1",
        _fence_to_the_limit, _release_n1),
)  # fmt: skip

WALKS: dict[str, tuple[Callable[[Walk], None], tuple[Row, ...]]] = {
    "services": (_begin_services, SERVICE_ROWS),
    "losses": (_begin_losses, LOSS_ROWS),
    "store": (_begin_store, STORE_ROWS),
    "fencing": (_begin_fencing, FENCING_ROWS),
}
NO_MOUNT = "" if os.geteuid() == 0 else "needs root, for a mount of its own"
LACKS = {"store": missing(), "losses": NO_MOUNT, "fencing": NO_MOUNT}


LONG = dict.fromkeys(("losses", "store", "fencing"), pytest.mark.long)  # leases run out, one after the other


@pytest.fixture
def walk(dev_cluster: DevCluster, tmp_path: Path) -> Iterator[Walk]:
    """A walk that has not begun; all that it starts is ended."""
    with contextlib.ExitStack() as stack:
        yield Walk(dev_cluster, tmp_path, stack)


@pytest.mark.parametrize("name", [pytest.param(name, marks=LONG.get(name, ())) for name in WALKS])
def test_p10_12_each_state_that_needs_a_person_is_told_alike_by_every_instrument_of_a_real_cluster(
    name: str, walk: Walk, record_property: Callable[[str, Any], None]
) -> None:
    if why := LACKS.get(name):
        pytest.skip(f"not applicable: {why}" if "/dev/fuse" in why else why)
    begin, rows = WALKS[name]
    begin(walk)
    for row in rows:
        row.make(walk)
        spread_s = walk.at[row.at].told(row.kind, row.subject, row.words, row.next_step, row.without)
        record_property(f"spread of {row.kind} (s)", f"{spread_s:.2f}")
        print(f"{row.kind}: all of them within {spread_s:.2f} s of the first")
        if row.end is not None:
            row.end(walk)
            walk.at[row.at].over(row.kind, row.subject)
    walk.at[rows[-1].at].nothing()


# A lock process that hangs ends its node long before a minute is over (P12.16), so on a real cluster no such state
# lasts; its sentence is tried in test_rules_needs.py.
WITHOUT_WALK = {"decision lock"}


def test_p10_12_each_kind_of_need_has_its_row_in_a_walk() -> None:
    assert {row.kind for _begin, rows in WALKS.values() for row in rows} == set(KINDS) - WITHOUT_WALK
