"""A control group as its files show it, without the kernel (P7.11); with it: test_hung_guard."""

from pathlib import Path

import pytest

from muster.drivers.image import control_group
from muster.drivers.image.control_group import ControlGroup, group_at


@pytest.fixture
def group(tmp_path: Path) -> ControlGroup:
    """A group with something in it."""
    folder = tmp_path / "mount" / "muster"
    folder.mkdir(parents=True)
    (folder / "cgroup.kill").write_text("")
    populate(folder, here=True)
    return ControlGroup(str(folder), str(tmp_path / "mount"))


def populate(folder: Path, *, here: bool) -> None:
    (folder / "cgroup.events").write_text(f"populated {int(here)}\nfrozen 0\n")


def test_p7_11_it_is_ended_once_the_kernel_says_that_nothing_is_left(
    group: ControlGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, kills, now = Path(group.folder), [], [0]

    def pause(_pause_s: float) -> None:
        now[0] += 1
        kills.append((folder / "cgroup.kill").read_text())
        populate(folder, here=now[0] < 3)

    monkeypatch.setattr("muster.drivers.image.control_group.time.sleep", pause)
    assert not group.is_empty()
    assert group.end(10, lambda: now[0])
    assert (now, kills) == ([3], ["1", "1", "1"])
    assert group.is_empty()


def test_p7_11_without_the_kernels_word_in_time_or_at_all_it_has_not_ended(
    group: ControlGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0]

    def pause(_pause_s: float) -> None:
        now[0] += 1

    monkeypatch.setattr("muster.drivers.image.control_group.time.sleep", pause)
    assert not group.end(5, lambda: now[0])
    assert now == [5]

    def refuse(_path: str, _content: bytes) -> None:
        raise PermissionError("it is another's")

    monkeypatch.setattr(control_group, "_write", refuse)
    assert not group.end(100, lambda: now[0])


def test_p7_11_one_that_was_removed_was_empty(tmp_path: Path) -> None:
    gone = ControlGroup(str(tmp_path / "gone"), str(tmp_path))
    assert gone.is_empty() and gone.end(0, lambda: 1)


def test_p7_11_what_a_home_records_is_a_group_only_below_the_mount(
    group: ControlGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_group, "mount_of_groups", lambda: group.mount)
    assert group_at(group.folder) == group and group.path == "/muster"
    for folder in ("", group.mount, f"{group.mount}/other"):
        assert group_at(folder) is None
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "cgroup.kill").write_text("")
    assert group_at(str(elsewhere)) is None
    monkeypatch.setattr(control_group, "mount_of_groups", lambda: "")
    assert group_at(group.folder) is None
