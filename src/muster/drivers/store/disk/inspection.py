"""Looking at a store from outside: `muster store show`, `muster store check`, and what is on a path (SPEC 1.5, 7.8).

Everything here opens the store read-only and works while its cluster runs and while it does not. A running cluster
changes registers under the reader, so whatever looks wrong is read again and reported only if it stays unchanged.
"""

import os
import time
from typing import NamedTuple

import msgspec
from msgspec import Struct

from muster.core.mastership.machine import newest_mark
from muster.core.mastership.tenure import restore
from muster.drivers.store.disk.file import HEADER_AREA_BYTES, DiskFile, Refusal, StoreUnusable, open_store
from muster.drivers.store.disk.geometry import COPIES, DEFAULT_STORE_BYTES, HALVES, STRIP_OFFSET, Header, choose_header
from muster.drivers.store.disk.journal import Damage, JournalScan, scan_journal
from muster.drivers.store.disk.registers import RegisterReader, judge
from muster.drivers.store.disk.sectors import Choice, Problem
from muster.drivers.store.failures import JournalUnreadable, StoreFailed
from muster.drivers.store.identity import Scope
from muster.drivers.store.record import StoreRecord
from muster.records.database import Database
from muster.records.registers import (
    NO_MARK,
    Claim,
    ClaimFlag,
    Lease,
    LeaseState,
    Mark,
    Marks,
    Register,
    RegisterKind,
    Strip,
    View,
)
from muster.records.terms import NO_NODE, NO_TERM

ROUNDS = 5  # how often what looks wrong is read again
ROUND_PAUSE_S = 0.01
_COPY_NAMES = "AB"


class SlotReport(Struct, frozen=True):
    """One node's registers, in words."""

    node: int
    name: str  # empty where the newest journal configures no such node
    used: bool  # configured, or written to since the store was created
    lease: str
    claim: str
    view: str
    marks: str


class NodeReport(Struct, frozen=True):
    """A node as the newest journal has it."""

    node: int
    name: str
    state: str
    incarnation: int


class ServiceReport(Struct, frozen=True):
    """A service as the newest journal has it; `node` is a name, or empty."""

    name: str
    state: str
    node: str


class JournalReport(Struct, frozen=True):
    """The newest journal: what the next master would adopt."""

    owner: int
    owner_name: str
    term: str
    half: int
    generation: int
    index: int
    frames: int
    used_bytes: int
    region_bytes: int
    profile: str
    nodes: tuple[NodeReport, ...]
    services: tuple[ServiceReport, ...]


class StoreReport(Struct, frozen=True):
    """All that `muster store show` prints. `journal` is None where it cannot be read; `unreadable` says why."""

    path: str
    cluster: str
    identity: str
    scope: str
    direct: bool
    lowest_format: int
    highest_format: int
    sector_bytes: int
    total_bytes: int
    slots: tuple[SlotReport, ...]
    journal: JournalReport | None
    unreadable: str
    store_id: str  # the cluster's identity, until `muster store adopt` gives it one of its own


class Finding(Struct, frozen=True):
    """Something that `muster store check` found. `severity` is `note`, `warning` or `error`."""

    severity: str
    where: str
    offset: int  # in the store, in bytes
    sector: int  # the same in sectors of the store
    problem: str
    advice: str


def describe(path: str | os.PathLike[str]) -> StoreReport:
    """What the store at `path` holds. Raises `StoreUnusable`, `StoreFailed`."""
    name = os.fspath(path)
    file, header = open_store(name, writable=False)
    with file:
        strip = read_registers(file, header, whole=True)
        journal, database, unreadable = _newest(file, header, strip)
        return StoreReport(
            path=name,
            cluster=header.cluster_name,
            identity=header.identity,
            scope=str(header.scope),
            direct=file.direct,
            lowest_format=header.lowest_format,
            highest_format=header.highest_format,
            sector_bytes=header.sector_bytes,
            total_bytes=header.total_bytes,
            slots=tuple(_slot(strip, slot, database) for slot in range(header.slots)),
            journal=journal,
            unreadable=unreadable,
            store_id=header.store_id.hex(),
        )


def newest_database(path: str) -> Database:
    """The database as the newest journal of the store has it, for who is not running yet.

    It may end in an entry that was never committed (PROTOCOL P5.1). Raises `StoreUnusable`, `JournalUnreadable`.
    """
    return newest_record(path).database


def newest_record(path: str) -> StoreRecord:
    """The same with header and registers; these were read before the journal."""
    file, header = open_store(path, writable=False)
    with file:
        return record_of(path, file, header)


def record_of(path: str, file: DiskFile, header: Header, *, whole: bool = False) -> StoreRecord:
    """The same of a store that is open; see `read_registers`. Raises `StoreFailed`, `JournalUnreadable`."""
    strip = read_registers(file, header, whole=whole)
    _, database, problem = _newest(file, header, strip)
    if database is None:
        raise JournalUnreadable(f"store {path}: {problem}; run: muster store check {path}")
    return StoreRecord(header, strip, database)


def read_registers(file: DiskFile, header: Header, *, whole: bool = False) -> Strip:
    """All registers, read now; `whole`: also those of banks that are not in use. Raises `StoreFailed`."""
    leases, claims, views, marks = RegisterReader(file, header, tuple(RegisterKind), whole=whole).read()
    return Strip(
        tuple(register for register in leases if register is None or isinstance(register, Lease)),
        tuple(register for register in claims if register is None or isinstance(register, Claim)),
        tuple(register for register in views if register is None or isinstance(register, View)),
        tuple(register for register in marks if register is None or isinstance(register, Marks)),
        header.slots,
    )


def _newest(file: DiskFile, header: Header, strip: Strip) -> tuple[JournalReport | None, Database | None, str]:
    """The newest journal that any readable claim names; read again if its owner has just moved on."""
    problem = "no claim register is readable, so nothing says where the newest journal is"
    for _ in range(ROUNDS):
        if all(claim is None for claim in strip.claims):
            break
        owner, mark = newest_mark(strip)
        try:
            scan = scan_journal(file, header, owner, mark)
            database = restore(scan.image.checkpoint, scan.image.frames)
        except (JournalUnreadable, ValueError) as error:
            problem = _restore_problem(error)
            time.sleep(ROUND_PAUSE_S)
            strip = read_registers(file, header)
            continue
        unknown = [slot for slot, claim in enumerate(strip.claims) if claim is None]
        warning = f"the claims of nodes {unknown} are unknown; they may name a newer journal" if unknown else ""
        return _journal(header, owner, mark, scan, database), database, warning
    return None, None, problem


def _restore_problem(error: Exception) -> str:
    if isinstance(error, msgspec.DecodeError):
        return f"the newest journal does not decode: {error}"
    return str(error)


def _journal(header: Header, owner: int, mark: Mark, scan: JournalScan, database: Database) -> JournalReport:
    nodes = tuple(
        NodeReport(node, config.name, str(database.member(node).state), database.member(node).incarnation)
        for node, config in sorted(database.nodes.items())
    )
    services = tuple(
        ServiceReport(name, str(service.state), "" if service.node == NO_NODE else database.name_of(service.node))
        for name, service in sorted(database.services.items())
    )
    return JournalReport(
        owner=owner,
        owner_name=database.name_of(owner),
        term=str(mark.term),
        half=mark.half,
        generation=mark.generation,
        index=database.index,
        frames=len(scan.image.frames),
        used_bytes=scan.used_bytes,
        region_bytes=header.region_bytes,
        profile=database.cluster.profile,
        nodes=nodes,
        services=services,
    )


def _slot(strip: Strip, slot: int, database: Database | None) -> SlotReport:
    registers = (strip.leases[slot], strip.claims[slot], strip.views[slot], strip.marks[slot])
    configured = database is not None and slot in database.nodes
    written = any(register is None or register.stamp.sequence > 0 for register in registers)
    name = database.nodes[slot].name if database is not None and configured else ""
    words = [_words(register) for register in registers]
    return SlotReport(slot, name, configured or written, *words)


def _words(register: Register | None) -> str:
    match register:
        case None:
            return "unknown: no copy is valid"
        case Lease():
            return _lease_words(register)
        case Claim():
            return _claim_words(register)
        case View():
            heard = ", ".join(str(node) for node in sorted(register.heard)) or "nobody"
            return f"hears {heard} (beat {register.stamp.sequence})" if register.stamp.sequence else "never written"
        case Marks():
            condemned = ", ".join(f"node {node} incarnation {life}" for node, life in register.condemned)
            return f"forces out {condemned}" if condemned else "forces nobody out"


def _lease_words(lease: Lease) -> str:
    life = f"incarnation {lease.stamp.incarnation}, beat {lease.stamp.sequence}"
    match lease.state:
        case LeaseState.NEVER:
            return "never ran"
        case LeaseState.LIVE:
            deadman = lease.deadman.name.lower().replace("_", " ")
            return f"live or lost: {life}, lease {lease.lease_ms} ms, deadman {deadman}"
        case LeaseState.CLEAN:
            return f"left cleanly: {life}"
        case LeaseState.PANICKED:
            return f"panicked: {life}: {lease.cause}"


def _claim_words(claim: Claim) -> str:
    mark = claim.mark
    journal = "no journal"
    if mark != NO_MARK:
        journal = f"journal of term {mark.term} in half {mark.half}, generation {mark.generation}"
    if claim.stamp.term == NO_TERM:
        return f"never claimed; {journal}"
    words = {ClaimFlag.WITHDRAWN: "withdrawn from", ClaimFlag.CLAIMING: "claiming", ClaimFlag.MASTER: "master of"}
    return f"{words[claim.flag]} term {claim.stamp.term}; {journal}"


# --- check ----------------------------------------------------------------------------------------------------------


class _Spot(NamedTuple):
    """A place in the store, for a finding."""

    where: str
    offset: int
    sector_bytes: int


class _Cell(NamedTuple):
    """One register as examined: the bytes of its copies and what they say."""

    kind: RegisterKind
    slot: int
    copies: tuple[bytes, ...]
    register: Register | None
    choice: Choice


def check(path: str | os.PathLike[str]) -> list[Finding]:
    """Everything that is wrong in the store at `path`, worst first. Raises `StoreUnusable`, `StoreFailed`."""
    file, header = open_store(os.fspath(path), writable=False)
    with file:
        findings = [*_check_header(file, header), *_check_doors(file, header)]
        cells = _examine(file, header)
        for cell in cells:
            findings += _check_cell(header, cell)
        claims = [cell.register for cell in cells if isinstance(cell.register, Claim)]
        findings += _check_marks(header, claims)
        findings += _check_journals(file, header, claims)
    order = {"error": 0, "warning": 1, "note": 2}
    return sorted(findings, key=lambda finding: (order[finding.severity], finding.offset))


def _finding(severity: str, spot: _Spot, problem: str, advice: str) -> Finding:
    return Finding(severity, spot.where, spot.offset, spot.offset // spot.sector_bytes, problem, advice)


def _check_header(file: DiskFile, header: Header) -> list[Finding]:
    choice = choose_header(file.read_around_damage(0, HEADER_AREA_BYTES))
    findings = []
    for copy, problem in enumerate((choice.problem_a, choice.problem_b)):
        if problem is not None:
            text = "back the store up: one more loss makes it unusable; `muster init` writes a new one"
            offset = copy * (HEADER_AREA_BYTES // COPIES)
            where = f"header, copy {_COPY_NAMES[copy]}"
            findings.append(_finding("warning", _Spot(where, offset, header.sector_bytes), f"it is {problem}", text))
    return findings


def _check_doors(file: DiskFile, header: Header) -> list[Finding]:
    """A door is open or shut, to the last bit; a damaged one counts as open (P11.7)."""
    findings = []
    for bank in range(1, len(header.banks)):
        for copy in range(COPIES):
            offset = header.door_offset(bank, copy)
            sound = [header.door(bank, copy, is_open=is_open) for is_open in (False, True)]
            if file.read_around_damage(offset, header.sector_bytes) not in sound:
                where = f"door of bank {bank}, copy {_COPY_NAMES[copy]}"
                advice = "nothing: the bank is read as one in use, and its next node that boots repairs the door"
                spot = _Spot(where, offset, header.sector_bytes)
                findings.append(_finding("warning", spot, "it is damaged", advice))
    return findings


def _examine(file: DiskFile, header: Header) -> list[_Cell]:
    """Every register; one that looks wrong is read again, and counts as wrong only while the same stays wrong."""
    cells = _examine_once(file, header)
    suspects = {number: cell for number, cell in enumerate(cells) if not _is_clean(cell)}
    for _ in range(ROUNDS):
        if not suspects:
            break
        time.sleep(ROUND_PAUSE_S)
        cells = _examine_once(file, header)
        suspects = {number: cells[number] for number, cell in suspects.items() if _same_trouble(cell, cells[number])}
    return [cell for number, cell in enumerate(cells) if number in suspects or _is_clean(cell)]


def _same_trouble(old: _Cell, new: _Cell) -> bool:
    """Whether what was wrong with a register is still there, byte for byte; its sound copy may have moved on."""
    if _is_clean(new):
        return False
    invalid = [copy for copy, problem in enumerate((old.choice.problem_a, old.choice.problem_b)) if problem is not None]
    return all(old.copies[copy] == new.copies[copy] for copy in invalid or range(COPIES))


def _examine_once(file: DiskFile, header: Header) -> list[_Cell]:
    raw = file.read_around_damage(STRIP_OFFSET, header.strip_bytes)
    cells = []
    for kind in RegisterKind:
        for slot in range(header.slots):
            starts = [header.register_offset(kind, slot, copy) - STRIP_OFFSET for copy in range(COPIES)]
            copies = tuple(raw[start : start + header.sector_bytes] for start in starts)
            register, choice = judge(header, kind, slot, copies)
            cells.append(_Cell(kind, slot, copies, register, choice))
    return cells


def _is_clean(cell: _Cell) -> bool:
    return cell.register is not None and cell.choice.agree


def _check_cell(header: Header, cell: _Cell) -> list[Finding]:
    if _is_clean(cell):
        return []
    where = f"{cell.kind.name.lower()} register of node {cell.slot}"
    spots = [
        _Spot(where, header.register_offset(cell.kind, cell.slot, copy), header.sector_bytes) for copy in range(COPIES)
    ]
    if cell.register is None:
        reason = cell.choice.reason() or "its contents do not decode"
        return [_finding("error", spots[0], f"unknown: {reason}", _advice_for_unknown(cell))]
    for spot, name, problem in zip(spots, _COPY_NAMES, (cell.choice.problem_a, cell.choice.problem_b), strict=True):
        if problem is not None:
            advice = f"nothing: the next write of node {cell.slot} repairs it; if it comes back, replace the disk"
            return [_finding("warning", spot._replace(where=f"{where}, copy {name}"), f"it is {problem}", advice)]
    older = cell.choice.write_first
    text = f"copy {_COPY_NAMES[older]} is older than copy {_COPY_NAMES[1 - older]}: a write was interrupted"
    return [_finding("note", spots[older], text, f"nothing: the next write of node {cell.slot} makes them equal")]


def _advice_for_unknown(cell: _Cell) -> str:
    if cell.kind is RegisterKind.CLAIM:
        return "nobody can become master while it is unknown: stop all nodes and restore the store from a backup"
    return f"node {cell.slot} cannot use the store: stop all nodes and restore the store from a backup"


def _check_marks(header: Header, claims: list[Claim]) -> list[Finding]:
    """Adoption marks and terms that no run of Muster's rules leaves behind (SPEC 2.6)."""
    findings = []
    for claim in claims:
        slot, term, mark = claim.stamp.owner, claim.stamp.term, claim.mark
        problems = []
        if term != NO_TERM and term.node != slot:
            problems.append(f"it claims term {term}, which belongs to node {term.node}")
        if mark != NO_MARK and mark.term.node != slot:
            problems.append(f"its mark names term {mark.term}, which belongs to node {mark.term.node}")
        if mark.term > term:
            problems.append(f"its mark names term {mark.term}, above the highest term {term} that it ever claimed")
        if mark.half not in range(HALVES):
            problems.append(f"its mark names half {mark.half}, there are halves 0 and 1")
        advice = "stop all nodes, keep a copy of the store for analysis, and restore it from a backup"
        offset = header.register_offset(RegisterKind.CLAIM, slot, 0)
        spot = _Spot(f"claim register of node {slot}", offset, header.sector_bytes)
        findings += [_finding("error", spot, text, advice) for text in problems]
    if claims and all(claim.mark == NO_MARK for claim in claims):
        advice = "no node can become master: restore the store from a backup, or write a new one with `muster init`"
        spot = _Spot("claim registers", header.row_offset(RegisterKind.CLAIM, 0), header.sector_bytes)
        findings.append(_finding("error", spot, "none names a journal", advice))
    return findings


def _check_journals(file: DiskFile, header: Header, claims: list[Claim]) -> list[Finding]:
    marked = [claim for claim in claims if claim.mark != NO_MARK and claim.mark.half in range(HALVES)]
    newest = max((claim.mark.term for claim in marked), default=NO_TERM)
    findings = []
    for claim in marked:
        findings += _check_journal(file, header, claim, newest=claim.mark.term == newest)
    return findings


def _check_journal(file: DiskFile, header: Header, claim: Claim, *, newest: bool) -> list[Finding]:
    """Read one journal; what is wrong counts only if it stays, and the claim still names this journal afterwards."""
    owner, mark = claim.stamp.owner, claim.mark
    findings = _read_journal(file, header, claim, newest=newest)
    for _ in range(ROUNDS):
        if not findings:
            break
        time.sleep(ROUND_PAUSE_S)
        now = read_registers(file, header).claim(owner)
        if now is not None and now.mark != mark:
            return []  # its owner has moved on to another journal
        again = _read_journal(file, header, claim, newest=newest)
        findings = [finding for finding in again if finding in findings]
    return findings


def _read_journal(file: DiskFile, header: Header, claim: Claim, *, newest: bool) -> list[Finding]:
    owner, mark = claim.stamp.owner, claim.mark
    where = f"{'newest ' if newest else ''}journal of node {owner}, term {mark.term}"
    spot = _Spot(where, header.region_offset(owner, mark.half, 0), header.sector_bytes)
    try:
        scan = scan_journal(file, header, owner, mark)
        restore(scan.image.checkpoint, scan.image.frames)
    except (JournalUnreadable, ValueError) as error:
        advice = "no node can become master: stop all nodes and restore the store from a backup"
        if not newest:
            advice = "nothing now: a newer journal exists, and only that one counts"
        return [_finding("error" if newest else "warning", spot, _restore_problem(error), advice)]
    return [_journal_damage(spot._replace(offset=damage.offset), damage) for damage in scan.damages]


def _journal_damage(spot: _Spot, damage: Damage) -> Finding:
    if damage.copy == 1 and damage.problem is Problem.BLANK:
        text = f"its {damage.what} is in copy A only: the write was interrupted"
        return _finding("note", spot, text, "nothing: the next master copies the journal")
    text = f"copy {_COPY_NAMES[damage.copy]} of its {damage.what} is {damage.problem}; the other copy is valid"
    return _finding(
        "warning", spot, text, "nothing: the next master copies the journal; if it comes back, replace the disk"
    )


# --- what is on a path ----------------------------------------------------------------------------------------------

_SIGNATURES = (
    (1080, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
    (0, b"XFSB", "an XFS file system"),
    (65600, b"_BHRfS_M", "a btrfs file system"),
    (65536, b"\x01\x16\x19\x70", "a GFS2 file system"),
    (8192, b"OCFSV2", "an OCFS2 file system"),
    (32769, b"CD001", "an ISO 9660 file system"),
    (3, b"NTFS    ", "an NTFS file system"),
    (82, b"FAT32", "a FAT file system"),
    (54, b"FAT1", "a FAT file system"),
    (0, b"hsqs", "a squashfs file system"),
    (536, b"LVM2 001", "an LVM physical volume"),
    (0, b"LUKS\xba\xbe", "a LUKS encrypted volume"),
    (4096, b"\xfc\x4e\x2b\xa9", "a member of a Linux software RAID"),
    (4086, b"SWAPSPACE2", "swap space"),
    (0, b"SQLite format 3\0", "an SQLite database"),
    (512, b"EFI PART", "a GPT partition table"),
    (4096, b"EFI PART", "a GPT partition table"),
    (510, b"\x55\xaa", "a DOS partition table or boot sector"),
)
_SAMPLE_BYTES = 128 * 1024
_PART_BYTES = 1024 * 1024


def what_is_on(path: str | os.PathLike[str]) -> str:
    """What `path` holds, in words that complete "PATH holds ...": for `muster init`, before it refuses to overwrite.

    Starts with `nothing` exactly when a store may be created there without destroying anything. Never raises.
    """
    try:
        report = describe(path)
    except StoreUnusable as error:
        return _refused_words(os.fspath(path), error)
    except StoreFailed as error:
        return f"a Muster store that cannot be read ({error})"
    words = f"a Muster store of cluster {report.cluster}"
    if report.journal is None:
        return f"{words} whose newest journal cannot be read"
    count = len(report.journal.nodes)
    return f"{words} with {count} node{'' if count == 1 else 's'}, last written by {report.journal.owner_name}"


def _refused_words(path: str, error: StoreUnusable) -> str:
    match error.refusal:
        case Refusal.MISSING:
            return "nothing (it does not exist)"
        case Refusal.HALF_WRITTEN:
            return "a half-written Muster store: its `muster init` was interrupted"
        case Refusal.DAMAGED:
            return "a Muster store whose header is damaged"
        case Refusal.OTHER_FORMAT:
            return "a Muster store of another format version"
        case Refusal.NO_DIRECT_IO:
            return "a Muster store of scope `shared`, which cannot be read here without direct I/O"
        case Refusal.TOO_SMALL | Refusal.BLANK | Refusal.FOREIGN:
            return _sampled_words(path)
        case _:
            return f"what cannot be told ({error})"


def _sampled_words(path: str) -> str:
    try:
        size, sample = _sample(path)
    except OSError as error:
        return f"what cannot be told ({error.strerror})"
    if size == 0:
        return "nothing (it is empty)"
    if sample.startswith(b"MUSTERDB"):
        return "a Muster store that was cut off"
    for offset, signature, words in _SIGNATURES:
        if sample[offset : offset + len(signature)] == signature:
            return words
    if sample.count(0) < len(sample):
        return "unknown data"
    return "nothing (it is blank)" if _is_blank(path) else "unknown data behind a blank start"


def _sample(path: str) -> tuple[int, bytes]:
    with open(path, "rb") as file:
        return file.seek(0, os.SEEK_END), os.pread(file.fileno(), _SAMPLE_BYTES, 0)


def _is_blank(path: str) -> bool:
    """Whether a store of the default size would destroy nothing: reading the whole of a large disk takes hours."""
    with open(path, "rb") as file:
        for _ in range(DEFAULT_STORE_BYTES[Scope.SHARED] // _PART_BYTES):
            part = file.read(_PART_BYTES)
            if part.count(0) != len(part):
                return False
    return True
