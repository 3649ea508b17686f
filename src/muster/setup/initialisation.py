"""Making a cluster: its identity, authority, certificates, first database and store (SPEC 1.4, 1.6, 9.1).

The keys are on disk before the store exists: whatever interrupts this, there is never a store whose keys nobody has.
"""

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from muster.client.errors import ClientError
from muster.core.room import WARN_PERCENT, Room, fullness
from muster.drivers.store.disk.geometry import DEFAULT_SLOTS, FLAT_SLOTS, InvalidGeometry, default_bytes, slots_for
from muster.drivers.store.disk.sectors import FORMAT_VERSION
from muster.drivers.store.identity import Scope
from muster.records.addresses import Address, address_of
from muster.records.database import Database, encode_database, initial_database
from muster.records.names import MAXIMUM_LINKS, NAME, NAME_RULE, address_problem
from muster.records.nodes import DEFAULT_CERTIFICATE_LIFETIME_S, Cluster, NodeConfig, fingerprint
from muster.records.registers import MAXIMUM_SLOTS
from muster.records.timing import Profile
from muster.records.versions import HIGHEST, LOWEST
from muster.setup.errors import Mistaken
from muster.setup.profiles import chosen_profile

if TYPE_CHECKING:
    from muster.drivers.certificates.certificates import Credentials

KEY_FILE = "key.pem"
CERTIFICATE_FILE = "certificate.pem"
AUTHORITY_FOLDER = "authority"
AUTHORITY_KEYS_FOLDER = "authority-keys"  # in a node's home, see daemon/trust/authority_keys.py
SHORTEST_LIFETIME_S, LONGEST_LIFETIME_S = 10, 10 * 365 * 24 * 3600  # of a node's certificate


class NodePlan(NamedTuple):
    """One node of a cluster to be made."""

    name: str
    addresses: tuple[str, ...]  # HOST:PORT, one a link


class ClusterPlan(NamedTuple):
    """A cluster to be made."""

    name: str
    nodes: tuple[NodePlan, ...]
    profile: str
    scope: str  # host or shared
    slots: int | None = DEFAULT_SLOTS  # None: for as many as there is room, up to `MAXIMUM_SLOTS`
    store_bytes: int | None = None  # None: what suits the scope
    timers: tuple[tuple[str, int], ...] = ()  # set otherwise than the profile has them
    certificate_lifetime_s: int = DEFAULT_CERTIFICATE_LIFETIME_S
    active_version: int = HIGHEST  # lower where some of the nodes still have an older release


def parse_nodes(text: str) -> tuple[NodePlan, ...]:
    """Nodes from `n0=HOST:PORT,n1=HOST:PORT`; several links of one node are joined by `+`. Raises `Mistaken`."""
    plans: list[NodePlan] = []
    for part in text.split(","):
        name, equals, addresses = part.strip().partition("=")
        where = f"--nodes, {part.strip()!r}"
        if not equals:
            raise Mistaken("a node has no address", where, "write NAME=HOST:PORT, as n0=10.0.0.1:7700")
        _check_name("a node's name", name, where)
        plans.append(NodePlan(name, tuple(_address(address, where) for address in addresses.split("+"))))
    return tuple(plans)


def _address(text: str, where: str) -> str:
    if problem := address_problem(text.strip()):
        what, _, next_step = problem.partition(": ")
        raise Mistaken(what, where, next_step)
    return text.strip()


def _check_name(what: str, name: str, where: str) -> None:
    if not NAME.fullmatch(name):
        raise Mistaken(f"{what} cannot be {name!r}", where, f"a name has {NAME_RULE}")


def check_plan(plan: ClusterPlan) -> None:
    """Raise `Mistaken` for a plan that makes no cluster."""
    _check_name("the cluster's name", plan.name, "--name")
    chosen_profile(plan.profile, plan.timers, "--profile")
    if not SHORTEST_LIFETIME_S <= plan.certificate_lifetime_s <= LONGEST_LIFETIME_S:
        what = f"certificates cannot be good for {plan.certificate_lifetime_s} s"
        raise Mistaken(what, "--certificate-lifetime", "choose 10s to 3650d, as 90d")
    most = MAXIMUM_SLOTS if plan.active_version == HIGHEST else FLAT_SLOTS  # an older release knows no banks (P11.7)
    if plan.slots is not None and not 0 < plan.slots <= most:
        raise Mistaken(f"a store cannot have {plan.slots} slots", "--slots", f"choose 1 to {most}")
    _check_room(plan, plan.slots or most)
    if not LOWEST <= plan.active_version <= HIGHEST:
        what = f"this release does not know version {plan.active_version}"
        raise Mistaken(what, "--active-version", f"choose {LOWEST} to {HIGHEST}")
    names: set[str] = set()
    addresses: dict[Address, str] = {}
    for node in plan.nodes:
        if node.name == AUTHORITY_FOLDER:
            raise Mistaken(f"a node cannot be called {node.name!r}", "--nodes", "the authority's keys have that name")
        if node.name in names:
            raise Mistaken(f"two nodes are called {node.name!r}", "--nodes", "give each node a name of its own")
        if len(node.addresses) > MAXIMUM_LINKS:
            raise Mistaken(
                f"{node.name} has {len(node.addresses)} links", "--nodes", f"at most {MAXIMUM_LINKS} are used"
            )
        names.add(node.name)
        for text in node.addresses:
            address = address_of(text)
            if address in addresses:
                what = f"{addresses[address]} and {node.name} have the same address {text}"
                if addresses[address] == node.name:
                    what = f"{node.name} has the address {text} twice"
                raise Mistaken(what, "--nodes", "give each node addresses of its own, and each once")
            addresses[address] = node.name


def _check_room(plan: ClusterPlan, slots: int) -> None:
    if not 0 < len(plan.nodes) <= slots:
        next_step = f"name 1 to {slots} nodes, or make more room with --slots (at most {MAXIMUM_SLOTS})"
        raise Mistaken(f"{len(plan.nodes)} nodes do not fit", "--nodes", next_step)


def _slots_of(path: Path, plan: ClusterPlan) -> int:
    """How many slots the store gets (P11.7). Raises `Mistaken` where the nodes do not fit, and `StoreUnusable`."""
    from muster.drivers.store.disk.store import room_at

    if plan.slots is not None:
        return plan.slots
    if plan.active_version < HIGHEST:
        slots = DEFAULT_SLOTS
    else:
        room = plan.store_bytes if plan.store_bytes is not None else room_at(str(path))
        slots = slots_for(Scope[plan.scope.upper()], room)
    _check_room(plan, slots)
    return slots


def initialise(path: Path, plan: ClusterPlan, keys: Path, *, force: bool = False) -> str:
    """Make the store at `path` and the private keys under `keys`, one folder a node; returns the cluster's identity.

    Raises `Mistaken` for a plan that makes no cluster, and `ClientError` where the store or the keys cannot be made;
    without `force`, nothing that exists is overwritten.
    """
    from muster.drivers.certificates.certificates import create_authority, issue
    from muster.drivers.store.disk.store import create_store, plan_header
    from muster.drivers.store.failures import StoreFailed

    check_plan(plan)
    _refuse_overwriting(path, keys, force=force)
    identity = secrets.token_bytes(16)
    authority = create_authority(plan.name, identity.hex())
    end = datetime.now(UTC) + timedelta(seconds=plan.certificate_lifetime_s)
    credentials = [
        issue(authority, number, node.name, identity.hex(), not_after=end) for number, node in enumerate(plan.nodes)
    ]
    issuer = fingerprint(authority.certificate_pem)
    database = initial_database(
        Cluster(
            plan.name,
            identity.hex(),
            plan.profile,
            authority.certificate_pem,
            plan.timers,
            certificate_lifetime_s=plan.certificate_lifetime_s,
            active_version=plan.active_version,
        ),
        tuple(
            NodeConfig(number, node.name, node.addresses, credentials[number].certificate_pem, issuer=issuer)
            for number, node in enumerate(plan.nodes)
        ),
    )
    scope = Scope[plan.scope.upper()]
    names = [node.name for node in plan.nodes]
    with _keys_in_place(keys, {AUTHORITY_FOLDER: authority, **dict(zip(names, credentials, strict=True))}):
        try:
            header = plan_header(
                str(path), identity, plan.name, scope,
                slots=_slots_of(path, plan), store_bytes=plan.store_bytes,
                version=FORMAT_VERSION if plan.active_version < HIGHEST else None,
            )  # fmt: skip
            _check_fullness(header.region_bytes, database)
            create_store(str(path), header, encode_database(database), overwrite=force)
        except InvalidGeometry as error:
            raise Mistaken(str(error), str(path), "choose other values for --slots and --size") from error
        except (StoreFailed, OSError) as error:
            raise ClientError(f"the store could not be made: {error}", str(path), _next_step(error)) from error
    return identity.hex()


def _check_fullness(region_bytes: int, database: Database) -> None:
    """A cluster begins with room for more than its nodes (P9.3). Raises `Mistaken`."""
    full = fullness(Room(region_bytes), database)
    if full.percent >= WARN_PERCENT:
        what = f"{len(database.nodes)} nodes alone would fill a store of that size to {full.percent} %"
        raise Mistaken(what, "--size", f"choose one that is {full.percent // 50 + 1} times as large, or fewer --slots")


def room_of(path: Path) -> str:
    """For how many nodes the store at `path` has room, in words. Raises `StoreUnusable`."""
    from muster.drivers.store.disk.store import open_header

    header = open_header(str(path))
    text = f"it has slots for {header.slots} nodes"
    if header.slots < MAXIMUM_SLOTS:
        needed = default_bytes(header.scope, MAXIMUM_SLOTS) >> 20
        text += f"; {MAXIMUM_SLOTS} take {needed}M, which a file fills only as far as there are nodes (--slots, --size)"
    return text


_MEASURED_S = 1.0
_MEASURED = 200  # reads, at most


def measured(path: Path, profile: Profile) -> str:
    """How quickly the store at `path` answers now, and what that means for a profile, in words. It is only read."""
    from muster.drivers.store.disk.store import time_reads
    from muster.drivers.store.failures import StoreFailed

    try:
        took_ms = sorted(time_reads(str(path), _MEASURED, _MEASURED_S))
    except (StoreFailed, OSError) as error:
        return f"how quickly it answers could not be measured: {error}"
    usual, longest = took_ms[len(took_ms) // 2], took_ms[-1]
    text = f"it answers in {usual:.1f} ms as a rule, and took {longest:.1f} ms at most ({len(took_ms)} reads)"
    if not profile.stall_ms:
        return f"{text}; profile {profile.name} is not made for machines whose storage stalls (muster profile show)"
    survives = f"profile {profile.name} outlives a stall of {profile.stall_ms / 1000:g} s"
    if profile.write_ms and 6 * longest > profile.write_ms:  # of a renewal: reads of two kinds, two writes, two looks
        return f"{text}; {survives} less, as a renewal may take longer than {profile.write_ms} ms: set write_ms higher"
    return f"{text}; {survives}. Know how long yours stalls when a path or a controller fails, and compare"


def _next_step(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "run it as a user who may write there"
    return "fix what it says, and run muster init again; a half-made store needs --force"


def _refuse_overwriting(path: Path, keys: Path, *, force: bool) -> None:
    from muster.drivers.store.disk.inspection import what_is_on

    if not path.parent.is_dir():
        raise Mistaken("the directory of the store does not exist", str(path.parent), "make it first, or name another")
    if path.exists() and not (path.is_file() or path.is_block_device()):
        what = "it is neither a regular file nor a block device"
        raise Mistaken(what, str(path), "name a file, which is made, or a block device")
    if force:
        return
    if path.exists():
        found = what_is_on(str(path))
        if not found.startswith("nothing"):
            what = f"it already holds {found}"
            next_step = "name another place, or destroy what is there with --force (no node may be using it)"
            raise ClientError(what, str(path), next_step)
    if keys.exists() and (not keys.is_dir() or any(keys.iterdir())):
        what = "there is something where the keys would go"
        raise ClientError(what, str(keys), "name another directory with --keys, or replace them with --force")


@contextlib.contextmanager
def _keys_in_place(keys: Path, owners: "dict[str, Credentials]") -> Iterator[None]:
    """Write the keys, and take them away again if what follows fails."""
    from muster.drivers.certificates.private_files import write_private

    made: list[Path] = []
    existed = keys.exists()
    try:
        keys.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, credentials in owners.items():
            folder = keys / name
            folder.mkdir(mode=0o700, exist_ok=True)
            made.append(folder)
            write_private(folder / KEY_FILE, credentials.key_pem)
            write_private(folder / CERTIFICATE_FILE, credentials.certificate_pem)
            if name != AUTHORITY_FOLDER:  # every node can sign for newcomers, and for itself (P1.5)
                (folder / AUTHORITY_KEYS_FOLDER).mkdir(mode=0o700, exist_ok=True)
                authority = owners[AUTHORITY_FOLDER]
                name_of_key = f"{fingerprint(authority.certificate_pem)}.pem"
                write_private(folder / AUTHORITY_KEYS_FOLDER / name_of_key, authority.key_pem)
    except OSError as error:
        _take_away(keys, made, existed=existed)
        what = f"the keys cannot be written: {error.strerror or error}"
        raise ClientError(what, str(keys), "name a directory that you may write with --keys") from error
    try:
        yield
    except BaseException:
        _take_away(keys, made, existed=existed)
        raise


def _take_away(keys: Path, made: list[Path], *, existed: bool) -> None:
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)
    if not existed:
        with contextlib.suppress(OSError):
            keys.rmdir()
