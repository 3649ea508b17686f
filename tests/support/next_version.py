"""A made release that knows one version more than this one: one new kind of everything, added from outside.

It has the record kind `LockSpace`, the operation `SetLockSpace`, the message `Hail`, the input `Knock`, the effect
`Hailed`, the query `lock_spaces`, the proof of death `FENCED`, the watcher `nap` and the store engine `made`. `EDITS`
are all the lines that this takes beside the new rooms, so this is the list of the places where a new thing is plugged
in (docs/ARCHITECTURE.md).
"""

import re
import shutil
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

ROOMS = {
    "src/muster/records/locks.py": '''"""Spaces of locks."""

from msgspec import Struct

from muster.records.numbers import Count


class LockSpace(Struct, frozen=True, array_like=True, tag="lock_space"):
    """A space of locks."""

    name: str
    slots: int


class SetLockSpace(Struct, frozen=True, array_like=True, tag="set_lock_space"):
    """Make or change a space; without slots, forget it."""

    name: str
    slots: Count


class Hail(Struct, frozen=True, array_like=True, tag=99):
    """Node to node: there is something in this space."""

    space: str
''',
    "src/muster/core/locks/__init__.py": "",
    "src/muster/core/locks/requests.py": '''"""Operations on spaces of locks."""

from muster.core.draft import Draft
from muster.records.locks import LockSpace, SetLockSpace


def carry_out(operation: SetLockSpace, draft: Draft) -> str:
    """What it did, in words."""
    if operation.slots:
        draft.put(LockSpace(operation.name, operation.slots), f"lock space {operation.name} set")
        return f"{operation.name} has {operation.slots} slots"
    draft.forget("lock_space", operation.name, f"lock space {operation.name} forgotten")
    return f"{operation.name} is forgotten"
''',
    "src/muster/drivers/store/made/__init__.py": "",
    "src/muster/drivers/store/made/store.py": '''"""An engine by another name, which says itself whose a store is."""

from typing import NamedTuple

from muster.drivers.store.disk.inspection import newest_record
from muster.drivers.store.disk.lease_store import GuardStore
from muster.drivers.store.disk.store import DiskStore
from muster.drivers.store.identity import Scope
from muster.drivers.store.record import StoreRecord


class MadeIdentity(NamedTuple):
    """Whose it is, and who may share it."""

    cluster_id: bytes
    cluster_name: str
    identity: str
    store_id: bytes
    scope: Scope
    region_bytes: int


def open_store(store: str, node: int) -> DiskStore:
    """The daemon's part."""
    return DiskStore(store.removeprefix("made://"), node)


def leases(store: str, node: int) -> GuardStore:
    """The guard's part."""
    return GuardStore(store.removeprefix("made://"), node)


def look(store: str) -> StoreRecord:
    """What it holds."""
    found = newest_record(store.removeprefix("made://"))
    whose = MadeIdentity(*(getattr(found.header, name) for name in MadeIdentity._fields))
    return StoreRecord(whose, found.strip, found.database)
''',
    "src/muster/daemon/socket/lock_queries.py": '''"""What a node answers about spaces of locks."""

from typing import Any

from muster.daemon.socket.queries import NodeView
from muster.records.database import Database


def lock_spaces(database: Database, _view: NodeView) -> dict[str, Any]:
    """Slots by space."""
    return {"lock_spaces": {space.name: space.slots for space in database.lock_spaces.values()}}
''',
}


class Edit(NamedTuple):
    """Lines that are added: behind the only place in the file that reads `behind`, and what they import."""

    name: str
    file: str
    behind: str
    lines: str
    imports: str = ""


_LOCKS = "from muster.records.locks import "

EDITS = (
    Edit(
        "the union of records", "records/kinds.py", "\nRecord = (\n    Cluster\n", "    | LockSpace\n",
        _LOCKS + "LockSpace",
    ),
    Edit(
        "the row of the record", "records/kinds.py", "KINDS: tuple[Kind, ...] = (\n",
        '    _kind(LockSpace, "lock_spaces", "name", str, since=NEXT, is_configuration=True, is_counted=True),\n',
    ),
    Edit(
        "the field of the database", "records/database.py", "    # the newest ones\n",
        "    lock_spaces: dict[str, LockSpace] = field(default_factory=dict)\n", _LOCKS + "LockSpace",
    ),
    Edit(
        "the field of a draft", "core/draft.py", "    revisions: dict[int, Revision]\n",
        "    lock_spaces: dict[str, LockSpace]\n", _LOCKS + "LockSpace",
    ),
    Edit(
        "the narrator", "core/transitions/narration.py", "_NARRATORS: dict[type, _Narrator] = {\n",
        '    LockSpace: _Narrator(lambda _b, _e, now: [Trace("lock space set", now.name)],\n'
        '                         lambda _b, _e, key: [Trace("lock space gone", key)]),\n', _LOCKS + "LockSpace",
    ),
    Edit(
        "the document of a version", "core/versions/revisions.py", "  # what is shown and kept of each kind\n",
        '    LockSpace: lambda record: {"name": record.name, "slots": record.slots},\n', _LOCKS + "LockSpace",
    ),
    Edit(
        "the union of operations", "records/operations.py", "\nOperationRequest = (\n    ApplyServices\n",
        "    | SetLockSpace\n", _LOCKS + "SetLockSpace",
    ),
    Edit(
        "the row of the operation", "records/operations.py", "OPERATIONS: tuple[OperationKind, ...] = (\n",
        '    _kind(SetLockSpace, Role.OPERATOR, "name", "slots", since=NEXT),\n',
    ),
    Edit(
        "the arm of the operation", "core/operations/operations.py", "    match operation:\n",
        "        case SetLockSpace():\n            return locks.carry_out(operation, draft)\n",
        _LOCKS + "SetLockSpace\nfrom muster.core.locks import requests as locks",
    ),
    Edit("the union of messages", "records/messages.py", "\nMessage = ", "Hail | ", _LOCKS + "Hail"),
    Edit(
        "the version of the message", "records/messages.py", "  # the version that added each kind\n",
        "    Hail: NEXT,\n",
    ),
    Edit(
        "the arm of the message", "core/node/node.py", "        match message:\n",
        "            case Hail(space=space):\n                self._out.put(Hailed(space))\n",
        _LOCKS + "Hail\nfrom muster.core.effects import Hailed",
    ),
    Edit(
        "the union of effects", "core/effects.py", "\nEffect = (\n    ReadStrip\n", "    | Hailed\n",
    ),
    Edit(
        "the effect itself", "core/effects.py", '"""\n\nfrom msgspec import Struct\n',
        '\n\nclass Hailed(Struct, frozen=True):\n    """Somebody has hailed."""\n\n    space: str\n',
    ),
    Edit(
        "the arm of the daemon", "daemon/shell/daemon.py", "            match effect:\n",
        '                case Hailed(space=space):\n                    self.note("hailed", space)\n',
        "from muster.core.effects import Hailed",
    ),
    Edit(
        "the row of the simulator", "sim/world/daemon.py", "  # what becomes of each effect\n",
        "        effects.Hailed: lambda _daemon, _effect: None,\n",
    ),
    Edit(
        "the arm of the tests", "../../tests/support/core_cluster.py",
        "    def _carry_one(self, life: Life, daemon: Daemon, effect: Effect) -> None:\n        match effect:\n",
        "            case Hailed():\n                pass\n", "from muster.core.effects import Hailed",
    ),
    Edit("the union of inputs", "core/inputs.py", "\nInput = (\n    StoreAnswer\n", "    | Knock\n"),
    Edit(
        "the input itself", "core/inputs.py", "from typing import NamedTuple\n\nfrom msgspec import Struct\n",
        '\n\nclass Knock(Struct, frozen=True):\n    """Somebody is at the door."""\n\n    who: str\n',
    ),
    Edit(
        "the arm of the input", "core/node/node.py", "        match happened:\n",
        '            case Knock(who=who):\n                self._out.trace("knock", who)\n',
        "from muster.core.inputs import Knock",
    ),
    Edit(
        "the proof", "records/registers.py",
        '"""What proved that an incarnation has stopped (SPEC 7.1)."""\n\n', "    FENCED = 8\n",
    ),
    Edit(
        "the words of the proof", "records/registers.py", "_PROOFS_IN_WORDS: dict[ProofKind, str] = {\n",
        '    ProofKind.FENCED: "its power was cut",\n',
    ),
    Edit(
        "what the watcher takes", "records/watchers.py",
        "BUILT_IN = {  # those that an event may name: what they take, and what they fill in\n",
        '    "nap": (("nap",), ("time",)),\n',
    ),
    Edit(
        "what tells the watcher", "records/watchers.py",
        "TOLD_APART_BY = {  # those of the watcher process: an event is for the first that takes one of these\n",
        '    "nap": ("nap",),\n',
    ),
    Edit(
        "the way of the watcher", "drivers/image/watcher.py",
        "    WAYS: ClassVar = {  # what is done about each kind: as it begins, and when it is due\n",
        '        "nap": Way(_begin_timer, _work_on_timer),\n',
    ),
    Edit(
        "the row of the engine", "drivers/store/choice.py", "ENGINES: dict[str, Engine] = {\n",
        '    "made": Engine(*("muster.drivers.store.made.store:" + each for each in ("open_store", "leases", "look"))'
        "),\n",
    ),
    Edit(
        "the row of the query", "daemon/socket/catalogue.py", "QUERIES: dict[str, Query] = {\n",
        '    "lock_spaces": Query(Role.OBSERVER, Pure(lock_spaces)),\n',
        "from muster.daemon.socket.lock_queries import lock_spaces",
    ),
)  # fmt: skip


class Release:
    """The made release, below `root`."""

    def __init__(self, root: Path, version: int) -> None:
        self.root, self.version = root, version
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        shutil.copytree(ROOT / "tests" / "support", root / "tests" / "support", ignore=ignored)
        for name, text in ROOMS.items():
            path = root / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        versions = root / "src" / "muster" / "records" / "versions.py"
        text, count = re.subn(
            r"(?m)^LOWEST, HIGHEST = 1, \d+$", f"LOWEST, HIGHEST = 1, {version}", versions.read_text()
        )
        assert count == 1
        versions.write_text(text)
        for file in {edit.file for edit in EDITS}:
            self.write(file)

    def write(self, file: str, without: tuple[str, ...] = ()) -> None:
        """One file of the program with the edits that concern it, but for those of these names."""
        text = (ROOT / "src" / "muster" / file).read_text()
        for edit in EDITS:
            if edit.file != file:
                continue
            if edit.imports:  # all of them: only the lines are forgotten
                text = re.sub(r"(?m)^from muster\.", f"{edit.imports}\nfrom muster.", text, count=1)
            if edit.name in without:
                continue
            at = _behind(text, edit)
            text = text[:at] + edit.lines.replace("NEXT", str(self.version)) + text[at:]
        (self.root / "src" / "muster" / file).write_text(text)


def _behind(text: str, edit: Edit) -> int:
    if edit.file == "records/database.py":  # behind the last field of all
        return text.index("\n", text.index("    lineage: tuple[")) + 1
    assert text.count(edit.behind) == 1, f"{edit.name}: {edit.file} must have its place once"
    return text.index(edit.behind) + len(edit.behind)
