"""Recorded bytes of every version are understood for ever (SPEC 9.2, P10.1).

`tests/recorded/N/` holds the bytes of version N, as the release that was the newest at that version wrote them. The
newest folder must be exactly what this release writes; older ones must still be read, with nothing of them lost.

    MUSTER_RECORD=1 .venv/bin/python -m pytest -q tests/records/test_recorded.py     writes the newest folder anew
"""

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from muster.records.messages import version_of
from muster.records.versions import HIGHEST, LOWEST
from recorded_samples import decode, encode, samples

FOLDER = Path(__file__).parents[1] / "recorded"
NEWEST = FOLDER / str(HIGHEST)
ADVICE = (
    "Nodes of two releases would not understand each other. A new field goes to the END of its record, WITH A DEFAULT: "
    "then write them (MUSTER_RECORD=1 .venv/bin/python -m pytest -q tests/records/test_recorded.py), and the older "
    "folders must still pass. Anything else (a field removed, moved, or of another type) needs a new version: see "
    "src/muster/records/versions.py and docs/UPGRADE.md. Once a version is released, its folder is never written again."
)
OLDER = [path for path in sorted(FOLDER.glob("*/*.bin")) if path.parent != NEWEST]


@pytest.fixture(scope="module", autouse=True)
def rewritten() -> None:
    """Write the newest folder anew where that is asked for."""
    if not os.environ.get("MUSTER_RECORD"):
        return
    NEWEST.mkdir(parents=True, exist_ok=True)
    for path in NEWEST.glob("*.bin"):
        path.unlink()
    for name, value in samples().items():
        (NEWEST / f"{name}.bin").write_bytes(encode(name, value))


def holds(now: Any, recorded: Any) -> bool:
    """Whether all that was recorded is still there, in its place; what is new stands behind it."""
    if isinstance(recorded, dict):
        return isinstance(now, dict) and all(key in now and holds(now[key], recorded[key]) for key in recorded)
    if isinstance(recorded, list):
        whole = isinstance(now, list) and len(now) >= len(recorded)
        return whole and all(holds(*pair) for pair in zip(now, recorded, strict=False))
    return bool(now == recorded)


def test_every_version_that_is_understood_is_recorded() -> None:
    assert sorted(int(path.name) for path in FOLDER.iterdir()) == list(range(LOWEST, HIGHEST + 1))


def test_everything_of_the_newest_version_is_recorded() -> None:
    names = {path.stem for path in NEWEST.glob("*.bin")}
    assert names == set(samples()), f"recorded are other kinds than there are. {ADVICE}"


@pytest.mark.parametrize("name", sorted(samples()))
def test_the_bytes_of_the_newest_version_are_what_was_recorded(name: str) -> None:
    value, recorded = samples()[name], (NEWEST / f"{name}.bin").read_bytes()
    assert encode(name, value) == recorded, f"this release writes {name} otherwise than it was recorded. {ADVICE}"
    assert decode(name, recorded) == value


@pytest.mark.parametrize("path", OLDER, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_bytes_of_older_versions_are_read_with_nothing_lost(path: Path) -> None:
    recorded = path.read_bytes()
    understood = decode(path.stem, recorded)
    again = encode(path.stem, understood)
    if path.stem.startswith(("register", "header")):
        assert again == recorded, f"{path}: a record of the disk changed. {ADVICE}"
    else:
        now, before = msgspec.msgpack.decode(again), msgspec.msgpack.decode(recorded)
        assert holds(now, before), f"{path}: {now} lacks something of {before}. {ADVICE}"


def test_p10_1_a_kind_of_message_is_of_the_first_version_that_recorded_it() -> None:
    kinds = {name: value for name, value in samples().items() if name.startswith("message-")}
    known: set[str] = set()
    for version in range(LOWEST, HIGHEST + 1):
        recorded = {path.stem for path in (FOLDER / str(version)).glob("message-*.bin")}
        assert {name for name, message in kinds.items() if version_of(message) == version} == recorded - known
        known |= recorded


def test_a_release_that_lacks_the_new_fields_reads_what_this_one_writes() -> None:
    older: Any = msgspec.defstruct("Older", [("identity", str), ("index", int)], array_like=True, tag="operation")
    data = msgspec.msgpack.encode(samples()["entry-Operation"].changes[0])
    assert msgspec.msgpack.decode(data, type=older).index == 7
