"""What a machine holds of services that others run for them: the probe before the join (P7.45 of docs/PROTOCOL.md)."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from msgspec.structs import replace
from test_cleanups import VIP, database_of, kept_of, lease

from muster.core.effects import RunCommand
from muster.core.services.commands import Executor, probes_of
from muster.core.versions.upgrade import refusal
from muster.daemon.shell.cleanups import Cleanups
from muster.drivers.image import caretaker
from muster.drivers.image.deadman import read_boot_id
from muster.drivers.image.guard import Guard, StartRefused
from muster.drivers.image.kept_cleanups import (
    PROBES,
    Kept,
    all_kept,
    keep,
    keep_probes,
    last_run,
    path_of,
    plant_probes,
)
from muster.records.registers import LeaseState, Owed, identity_of
from muster.records.service_limits import contradictions
from muster.records.services import ApplyServices, CommandState, Definition, Service, ServiceState

UNIT = replace(VIP, name="unit", probe_command=("probe",))
OTHER_BOOT = "00" * 16


@pytest.fixture
def itself() -> Iterator[int]:
    """A pidfd of this process, which stands for the caretaker."""
    descriptor = os.pidfd_open(os.getpid())
    yield descriptor
    os.close(descriptor)


def clear(folder: Path, caretaker_: int, probe: str, cleanup: str) -> tuple[str, str]:
    """Why clearing has failed, and what ran, in order: p for the probe, c for the cleanup."""
    ran, cd = folder / "ran", f"cd {folder}"
    kept = kept_of(1, "sh", "-c", f"{cd}; printf c >> ran; {cleanup}", timeout_ms=1000)
    kept = kept._replace(probe=("sh", "-c", f"{cd}; printf p >> ran; {probe}"))
    failure = caretaker._clear(kept, "for a test", caretaker_)
    return failure, ran.read_text()


@pytest.mark.parametrize("status", [1, 3])
def test_p7_45_what_the_probe_does_not_find_is_clean(status: int, tmp_path: Path, itself: int) -> None:
    assert clear(tmp_path, itself, f"exit {status}", "exit 9") == ("", "p")


@pytest.mark.parametrize("cleanup", ["rm unit", "rm unit; exit 9"])
def test_p7_45_what_is_found_is_cleared_and_the_probe_has_the_last_word(
    cleanup: str, tmp_path: Path, itself: int
) -> None:
    (tmp_path / "unit").touch()
    assert clear(tmp_path, itself, "test -e unit", cleanup) == ("", "pcp")


@pytest.mark.parametrize(
    ("cleanup", "words"), [("true", "after its cleanup"), ("echo no; exit 9", "status 9; it wrote: no")]
)
def test_p7_45_what_is_found_still_is_not_clean_whatever_the_cleanup_says(
    cleanup: str, words: str, tmp_path: Path, itself: int
) -> None:
    failure, ran = clear(tmp_path, itself, "true", cleanup)
    assert ran == "pcp"
    assert "finds it on this machine still" in failure and words in failure


@pytest.mark.parametrize("probe", ["exit 2", "exit 127", "kill -9 $$", "exec sleep 1000"])
def test_p7_45_what_is_no_answer_is_not_clean_and_nothing_is_cleared(probe: str, tmp_path: Path, itself: int) -> None:
    failure, ran = clear(tmp_path, itself, probe, "true")
    assert failure.startswith("its probe")
    assert ran == "p"


def test_p7_45_a_probe_that_is_missing_is_no_answer(itself: int) -> None:
    failure = caretaker._clear(kept_of(1, "true")._replace(probe=("/nowhere/probe",)), "for a test", itself)
    assert "cannot execute /nowhere/probe" in failure


def test_p7_45_it_is_told_that_it_is_a_probe_and_no_owner(tmp_path: Path, itself: int) -> None:
    clear(tmp_path, itself, "env > told; exit 1", "true")
    told = (tmp_path / "told").read_text().splitlines()
    assert "MUSTER_ACTION=probe" in told and "MUSTER_NODE=n0" in told
    assert not [line for line in told if line.startswith(("MUSTER_EPOCH", "MUSTER_TOKEN"))]


# ---- at boot ---------------------------------------------------------------------------------------------------------


def take_up(home: Path) -> Owed | None:
    """What a guard that boots with this home says is owed."""
    keeper = SimpleNamespace(incarnation=9, boot_id=read_boot_id())
    guard = SimpleNamespace(_options=SimpleNamespace(home=str(home)), _keeper=keeper, _say=lambda _text: None)
    return Guard._take_up_cleanups(cast("Guard", guard), lease(7, LeaseState.CLEAN, None))


def probe_of(uid: int) -> Kept:
    return kept_of(uid, "clear", generation=0, incarnation=0, boot_id="")._replace(probe=("probe",))


def test_p7_45_a_boot_owes_what_its_node_may_run_before_its_first_record(tmp_path: Path) -> None:
    home = str(tmp_path)
    keep_probes(home, [probe_of(1), probe_of(2)])
    assert take_up(tmp_path) == Owed(9, (), tuple(sorted(identity_of(uid, f"s{uid}") for uid in (1, 2))))
    planted = all_kept(home)
    assert [(each.uid, each.generation, each.probe) for each in planted] == [(1, 0, ("probe",)), (2, 0, ("probe",))]
    assert {each.boot_id for each in planted} == {read_boot_id().hex()}
    for each in planted:
        os.unlink(path_of(home, each.file_name))
    owed = take_up(tmp_path)
    assert owed is not None and len(owed.waiting) == 2  # each boot asks anew
    keep_probes(home, [])
    assert plant_probes(home, "") == []


def test_p7_45_a_start_with_a_probe_is_owed_in_another_boot_of_the_machine_too(tmp_path: Path) -> None:
    keep(str(tmp_path), kept_of(1, "clear", boot_id=OTHER_BOOT))
    keep(str(tmp_path), kept_of(2, "clear", boot_id=OTHER_BOOT)._replace(probe=("probe",)))
    assert take_up(tmp_path) == Owed(9, (), (identity_of(2, "s2"),))


@pytest.mark.parametrize("content", ["{", "[]\n", '{"service": 1}\n'])
def test_p7_45_a_home_that_cannot_say_what_to_ask_starts_no_node(content: str, tmp_path: Path) -> None:
    keep_probes(str(tmp_path), [])
    Path(path_of(str(tmp_path), PROBES)).write_text(content)
    with pytest.raises(StartRefused, match="cleanups/probes says what to ask this machine"):
        take_up(tmp_path)


def test_p7_45_an_image_of_an_older_release_takes_a_cleanup_without_a_probe(tmp_path: Path) -> None:
    keep(str(tmp_path), kept_of(1, "clear"))
    assert "probe" not in Path(path_of(str(tmp_path), kept_of(1).file_name)).read_text()
    assert last_run(str(tmp_path)) == (0, 0)


# ---- what the home keeps ---------------------------------------------------------------------------------------------


def test_p7_45_a_node_asks_about_what_may_run_there() -> None:
    elsewhere = replace(UNIT, name="elsewhere", allowable_nodes=("n1",))
    child = replace(UNIT, name="child", parent="elsewhere")
    template = replace(UNIT, name="all", on_all=True)
    plain = replace(UNIT, name="plain", probe_command=())
    made = [Service(each, uid) for uid, each in enumerate((UNIT, elsewhere, child, template, plain), 3)]
    database = database_of(*made)
    (probe,) = probes_of(database, 0)
    assert (probe.service, probe.uid, probe.cleanup.probe, probe.cleanup.command) == ("unit", 3, ("probe",), ("clear",))
    assert probe.cleanup.environment["MUSTER_NODE"] == "n0"
    assert [each.service for each in probes_of(database, 1)] == ["unit", "elsewhere", "child"]


def test_p7_45_a_start_is_kept_with_its_probe(tmp_path: Path) -> None:
    async def run() -> None:
        starting = Service(UNIT, 3, ServiceState.STARTING, node=0, incarnation=5, generation=8, owes=True)
        (command,) = Executor(0, 5, ()).due(database_of(starting))
        cleanups = Cleanups(tmp_path, 5, bytes(16), lambda _state: None, lambda _event, _detail: None)
        await cleanups.prepare(command, lambda _command: None)
        (kept,) = all_kept(str(tmp_path))
        assert (kept.probe, kept.command) == (("probe",), ("clear",))
        cleanups.close()

    asyncio.run(run())


def test_p7_45_only_a_member_changes_what_its_home_asks_and_a_full_disk_is_told_and_tried_again(
    tmp_path: Path,
) -> None:
    home, notes = str(tmp_path), list[str]()

    def told(*services: Service) -> None:
        cleanups.keep_probes(lambda: probes_of(database_of(*services), 0), next(entries))

    async def after_its_thread() -> None:
        stop = RunCommand("unit", 3, 9, "stop", (), 1000, {"MUSTER_REASON": ""}, clears=True)
        await cleanups.prepare(stop, lambda _command: None)

    def asked() -> list[str]:
        return [each.service for each in plant_probes(home, "")]

    async def run() -> None:
        service = Service(UNIT, 3)
        told(service)  # its replica may be old
        await after_its_thread()
        assert asked() == []
        cleanups.member_is(joining=True)
        told(service)
        await after_its_thread()
        assert asked() == ["unit"]
        cleanups.ended((CommandState("unit", 9, "stop", True, True),))  # what has stopped is asked about, too
        await after_its_thread()
        assert asked() == ["unit"]
        for path in (tmp_path / "cleanups").iterdir():
            path.unlink()
        (tmp_path / "cleanups" / PROBES).mkdir()
        second = Service(replace(UNIT, name="second"), 4)
        told(service, second)
        await after_its_thread()
        assert "cleanups/probes" in notes[0] and "free space there" in notes[0]
        (tmp_path / "cleanups" / PROBES).rmdir()
        told(service, second)
        await after_its_thread()
        assert asked() == ["unit", "second"]
        told()
        await after_its_thread()
        cleanups.close()

    entries = iter(range(1, 100))
    cleanups = Cleanups(tmp_path, 5, bytes(16), lambda _state: None, lambda _event, detail: notes.append(detail))
    asyncio.run(run())
    assert Path(path_of(home, PROBES)).read_text() == ""


# ---- the key ---------------------------------------------------------------------------------------------------------


def test_p7_45_a_probe_without_a_cleanup_is_refused() -> None:
    without = Definition("unit", start_command=("start",), probe_command=("probe",))
    assert [each.key for each in contradictions(without)] == ["probe_command"]
    assert not list(contradictions(UNIT))


def test_p7_45_it_is_defined_only_where_version_6_is_active() -> None:
    database = database_of()
    database.cluster = replace(database.cluster, active_version=5)
    assert "version 6" in refusal(ApplyServices((UNIT,)), database)
    database.cluster = replace(database.cluster, active_version=6)
    assert refusal(ApplyServices((UNIT,)), database) == ""
