"""Making a copy of a cluster's store the cluster's store: `muster store adopt` (P11.5).

For a store that was moved to another device, or restored from a backup, with all nodes stopped. The copy gets a store
id of its own, and everything that must never go back is put above all that is known: index and epoch, the terms of all
claims, the incarnations of all leases. The header is written first as incomplete and last as complete, so that an
adoption that was interrupted is refused by every boot, and carried out by doing it again.
"""

import os
import time
from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from muster.core.leases.lease import INCARNATION_COUNTER_SHIFT
from muster.core.leases.memory import Remembered
from muster.core.mastership.machine import newest_mark
from muster.drivers.store.disk.file import DiskFile, open_store
from muster.drivers.store.disk.geometry import BLOCK_BYTES, COPIES, HALVES, Header, encode_header
from muster.drivers.store.disk.inspection import read_registers, record_of
from muster.drivers.store.disk.journal import OwnJournal
from muster.drivers.store.disk.registers import OwnRegister
from muster.drivers.store.failures import StoreFailed
from muster.drivers.store.record import StoreRecord
from muster.records.database import MAXIMUM_LINEAGE, Database, encode_database
from muster.records.registers import Claim, ClaimFlag, Lease, LeaseState, Mark, RegisterKind, Strip
from muster.records.terms import NO_TERM, Stamp, Term
from muster.records.timing import with_drift_ms
from muster.records.units import US_PER_MS

INDEX_MARGIN = 1_000_000  # entries that may have been committed after what is known: no home is up to date for certain
TERM_MARGIN = 1000
BOOT_MARGIN = 1000
SHORTEST_WATCH_S = 1.0
_PAUSE_S = 0.05
CAUSE = "its store was adopted: the operator confirmed that every node was stopped"


class Adoption(Struct, frozen=True):
    """What an adoption does to a store."""

    path: str
    cluster: str
    identity: str
    former_store_id: str
    store_id: str
    former_index: int
    known_index: int  # the highest that anybody asked remembers
    index: int  # the new one, and the new epoch
    term: int  # number of the term under which it is recorded
    silent_ms: int  # for how long the store was watched for a node that runs on it


class _Floors(Struct, frozen=True):
    """Above what everything must come."""

    index: int
    term: int
    boots: tuple[int, ...]  # by slot


def plan_adoption(path: str, store_id: bytes, remembered: Iterable[Remembered], above: int) -> Adoption:
    """What `adopt` would do, after a look for nodes that run on the store. Writes nothing.

    `remembered`: what homes remember of this cluster. `above`: an index that is known from elsewhere. Raises
    `StoreFailed` where a node runs, or nothing can be adopted.
    """
    file, header = open_store(path, writable=False, interrupted=True)
    with file:
        record = _read(path, file, header)
    silent_ms = _watch(path, record)
    floors = _floors(record, tuple(remembered), above)
    return Adoption(
        path, record.header.cluster_name, record.header.identity, record.header.store_id.hex(), store_id.hex(),
        record.database.index, floors.index, floors.index + INDEX_MARGIN, floors.term + TERM_MARGIN, silent_ms,
    )  # fmt: skip


def adopt(path: str, store_id: bytes, remembered: Iterable[Remembered], above: int) -> Adoption:
    """Carry it out. Raises as `plan_adoption`, and `StoreFailed` where it cannot be written: then do it again."""
    known = tuple(remembered)
    done = plan_adoption(path, store_id, known, above)
    file, header = open_store(path, writable=True, interrupted=True)
    with file:
        record = _read(path, file, header)
        floors = _floors(record, known, above)
        begun = header._replace(complete=False, adopted_id=store_id, sequence=header.sequence + 1)
        _write_header(file, begun)
        owner, mark = newest_mark(record.strip)
        term = Term(done.term, owner)
        new = Mark(term, HALVES - 1 - mark.half, mark.generation + 1)
        database = _raised(record.database, done.index, term)
        OwnJournal(file, header, owner).write_checkpoint(new, 0, encode_database(database))
        claimants = {owner, *database.nodes, *(slot for each in known for slot in each.terms)}
        for slot in range(header.slots):
            _raise_claim(file, header, record.strip, slot, done.term, new if slot == owner else None, slot in claimants)
            _raise_lease(file, header, record.strip, slot, floors.boots[slot])
        _write_header(file, begun._replace(complete=True, sequence=begun.sequence + 1))
    return done


def _read(path: str, file: DiskFile, header: Header) -> StoreRecord:
    record = record_of(path, file, header, whole=True)
    for word, registers in (("claim", record.strip.claims), ("lease", record.strip.leases)):
        if None in registers:
            where = f"store {path}: no copy of the {word} register of node {registers.index(None)} is valid"
            raise StoreFailed(f"{where}; restore another copy of the store")
    return record


def _watch(path: str, record: StoreRecord) -> int:
    """Look for a register that changes; for how long (ms) none did. Raises `StoreFailed` naming who runs."""
    leases = [lease for lease in record.strip.leases if lease is not None and lease.state is LeaseState.LIVE]
    longest_ms = max((with_drift_ms(lease.lease_ms) for lease in leases), default=0)
    watch_s = max(SHORTEST_WATCH_S, longest_ms * US_PER_MS / 1e6)
    file, header = open_store(path, writable=False, interrupted=True)
    with file:
        first, began_s = read_registers(file, header, whole=True), time.monotonic()
        while time.monotonic() - began_s < watch_s:
            time.sleep(_PAUSE_S)
            now = read_registers(file, header, whole=True)
            for slot in range(header.slots):
                if (now.leases[slot], now.views[slot]) != (first.leases[slot], first.views[slot]):
                    name = record.database.name_of(slot)
                    raise StoreFailed(
                        f"store {path} is in use: {name} runs on it; stop every node of the cluster first"
                    )
    return int((time.monotonic() - began_s) * 1000)


def _floors(record: StoreRecord, remembered: tuple[Remembered, ...], above: int) -> _Floors:
    claims, leases = record.strip.claims, record.strip.leases
    terms = [claim.stamp.term.number for claim in claims if claim is not None]
    terms += [number for each in remembered for number in each.terms.values()]
    boots = [lease.stamp.incarnation if lease is not None else 0 for lease in leases]
    highest = max((each.incarnation for each in remembered), default=0)  # whose home it is, is not known here
    counted = tuple(max(boot, highest) >> INCARNATION_COUNTER_SHIFT if boot else 0 for boot in boots)
    index = max([record.database.index, above, *(each.index for each in remembered)])
    return _Floors(index, max([0, *terms]), counted)


def _raised(database: Database, index: int, term: Term) -> Database:
    lineage = (*database.lineage, (term, index))[-MAXIMUM_LINEAGE:]
    return replace(database, index=index, term=term, epoch=index, lineage=lineage)


def _raise_claim(
    file: DiskFile, header: Header, strip: Strip, slot: int, number: int, mark: Mark | None, claimed: bool
) -> None:
    """`claimed`: it may have, for all that is known."""
    found = strip.claims[slot]
    assert found is not None  # `_read` has refused it
    if found.stamp.term == NO_TERM and not claimed:
        return
    stamp = Stamp(slot, found.stamp.incarnation, Term(number, slot), found.stamp.sequence + 1)
    OwnRegister(file, header, RegisterKind.CLAIM, slot).write(Claim(stamp, ClaimFlag.WITHDRAWN, mark or found.mark))


def _raise_lease(file: DiskFile, header: Header, strip: Strip, slot: int, boots: int) -> None:
    """A tombstone above every incarnation that is known to have run in this slot."""
    found = strip.leases[slot]
    assert isinstance(found, Lease)  # `_read` has refused it
    if found.state is LeaseState.NEVER:
        return
    incarnation = (boots + BOOT_MARGIN) << INCARNATION_COUNTER_SHIFT
    stamp = Stamp(slot, incarnation, found.stamp.term, found.stamp.sequence + 1)
    lease = found._replace(stamp=stamp, state=LeaseState.PANICKED, cause=CAUSE)
    OwnRegister(file, header, RegisterKind.LEASE, slot).write(lease)


def _write_header(file: DiskFile, header: Header) -> None:
    for copy in range(COPIES):
        file.write(copy * BLOCK_BYTES, encode_header(header, copy))
    os.fsync(file.fileno())
