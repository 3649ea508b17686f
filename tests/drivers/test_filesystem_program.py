"""The program that mounts failover file systems, with real loop devices and ext4 (P13.3-P13.8).

All is mounted in a mount namespace of the test's own, as it is in that of a node: else whatever makes a namespace
meanwhile, as every node that boots does, gets a copy of the mount, and the device stays open there.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from muster.drivers.volumes import loops
from muster.drivers.volumes.run import VARIABLE, Call, encoded

SIZE = 16 << 20
TOOLS = ("mkfs.ext4", "e2fsck", "blkid", "unshare", "nsenter")
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="not applicable: only root mounts"),
    pytest.mark.skipif(
        not os.path.exists("/dev/loop-control"), reason="not applicable: the kernel has no loop devices"
    ),
    pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"needs {', '.join(TOOLS)}"),
]


def wait_for(holds: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until, what
        time.sleep(0.02)


class Volume:
    """One volume with ext4 on it, and the program for it."""

    def __init__(self, folder: Path, place: int) -> None:
        self.place = place  # a process in the mount namespace
        self.file, self.point = folder / "db.img", folder / "srv"
        self.point.mkdir()
        with open(self.file, "wb") as file:
            file.truncate(SIZE)
        subprocess.run(["mkfs.ext4", "-q", str(self.file)], check=True)

    def environment(self, token: int, node: str = "n0", incarnation: int = 1) -> dict[str, str]:
        """What a command of the service gets."""
        call = Call(
            "cluster", "db", "db", str(self.file), SIZE, "ext4", str(self.point), ("noatime",), "journal", "nobody", "",
            0o750, 300, 20_000,
        )  # fmt: skip
        told = {"MUSTER_CLUSTER": "c", "MUSTER_NODE": node, "MUSTER_INCARNATION": str(incarnation)}
        return {**os.environ, **told, "MUSTER_TOKEN": f"{token:016d}", VARIABLE: encoded(call)}

    def run(
        self, what: str, token: int = 1, node: str = "n0", incarnation: int = 1
    ) -> "subprocess.CompletedProcess[str]":
        """Run the program to its end."""
        environment = self.environment(token, node, incarnation)
        return subprocess.run(
            self.words(what), env=environment, capture_output=True, text=True, check=False, timeout=60
        )

    def words(self, what: str) -> list[str]:
        """Its command."""
        return self.there(sys.executable, "-m", "muster.drivers.filesystem", what)

    def there(self, *words: str) -> list[str]:
        """A command in the namespace."""
        return ["nsenter", f"--mount=/proc/{self.place}/ns/mnt", *words]

    @property
    def root(self) -> Path:
        """The mount point, as it is seen in that namespace."""
        return Path(f"/proc/{self.place}/root{self.point}")

    def is_mounted(self) -> bool:
        """Whether it is, in the namespace."""
        return f" {self.point} " in Path(f"/proc/{self.place}/mountinfo").read_text()

    def is_attached(self) -> bool:
        """Whether any loop device has it."""
        return bool(loops.attached(str(self.file)))

    def claim(self) -> dict[str, object]:
        """What stands in the claim."""
        found: dict[str, object] = json.loads(Path(f"{self.file}.claim").read_text())
        return found


@pytest.fixture
def place() -> Iterator[int]:
    own = os.readlink("/proc/self/ns/mnt")
    holder = subprocess.Popen(["unshare", "-m", "--propagation", "private", "sleep", "600"])
    wait_for(lambda: os.readlink(f"/proc/{holder.pid}/ns/mnt") != own, "no other namespace")
    wait_for(lambda: Path(f"/proc/{holder.pid}/comm").read_text() == "sleep\n", "it does not sleep")
    yield holder.pid
    holder.kill()
    holder.wait()


@pytest.fixture
def volume(tmp_path: Path, place: int) -> Iterator[Volume]:
    made = Volume(tmp_path, place)
    yield made
    os.kill(place, signal.SIGKILL)  # with the last process of a namespace its mounts end
    for each in loops.attached(str(made.file)):
        loops.detach(each.device)  # where a start left it without autoclear
    wait_for(lambda: not made.is_attached(), "the loop device stays")


@pytest.fixture
def processes() -> "Iterator[list[subprocess.Popen[bytes]]]":
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def is_begun(volume: Volume, start: "subprocess.Popen[bytes]") -> bool:
    return volume.is_attached() or start.poll() is not None


def inside(volume: Volume, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    words = volume.there("sh", "-c", f"cd {volume.point} && exec sleep 600")
    process = subprocess.Popen(words, env=environment)
    wait_for(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n", "it does not sleep")
    return process


def test_p13_3_it_is_mounted_as_defined_and_gone_afterwards(volume: Volume) -> None:
    started = volume.run("start")
    assert started.returncode == 0, started.stderr
    assert "e2fsck" in started.stdout  # before the first mount by this cluster (P13.5)
    (attached,) = loops.attached(str(volume.file))
    assert attached.direct_io and attached.whole
    found = os.stat(volume.root)
    assert (found.st_uid, found.st_mode & 0o7777) == (65534, 0o750)
    assert volume.run("start").stdout == ""  # it is there: nothing is done
    assert volume.claim()["is_open"] is True
    assert volume.run("stop").returncode == 0
    assert not volume.is_mounted() and not volume.is_attached()
    assert volume.claim()["is_open"] is False
    again = volume.run("start", 2)
    assert again.returncode == 0 and "e2fsck" not in again.stdout
    assert volume.run("stop", 2).returncode == 0


def test_p13_4_nobody_else_gets_it_and_no_start_of_before(volume: Volume) -> None:
    assert volume.run("start", 2).returncode == 0
    other = volume.run("start", 3, node="n1")
    assert other.returncode == 1 and "its last owner is n0" in other.stderr
    locked = subprocess.run(["flock", "-n", str(volume.file), "true"], check=False)
    assert locked.returncode != 0  # the device itself holds the file's lock
    assert volume.run("stop", 2).returncode == 0
    old = volume.run("start", 1)
    assert old.returncode == 1 and "a later owner" in old.stderr
    Path(f"{volume.file}.claim").write_text('{"cluster": ')
    torn = volume.run("start", 3)
    assert torn.returncode == 1 and "nobody knows who had the volume last" in torn.stderr
    assert not volume.is_attached()


def test_p13_3_whenever_it_is_killed_the_next_start_comes_to_the_same(volume: Volume) -> None:
    for token in range(1, 13):
        start = subprocess.Popen(volume.words("start"), env=volume.environment(token), stdout=subprocess.DEVNULL)
        wait_for(partial(is_begun, volume, start), "nothing is attached")
        time.sleep(token * 0.005)  # another moment each time: at the check, at the mount, after it
        start.send_signal(signal.SIGKILL)
        start.wait()
        wait_for(lambda: volume.is_mounted() or not volume.is_attached(), "the kernel has not detached it")
        again = volume.run("start", token)
        assert again.returncode == 0, again.stderr
        assert volume.is_mounted()
        assert volume.run("stop", token).returncode == 0
        assert not volume.is_attached()


def test_p13_1_what_is_on_it_is_named_and_left_as_it_is(volume: Volume) -> None:
    for content, word in ((b"", "is nothing, not ext4"), (b"XFSB", "not ext4"), (b"LABELONE", "not ext4")):
        before = content.ljust(SIZE, b"\0")
        volume.file.write_bytes(before)
        found = volume.run("start")
        assert found.returncode == 1 and word in found.stderr and "left as it is" in found.stderr
        assert volume.file.read_bytes() == before
    wait_for(lambda: not volume.is_attached(), "it stays attached")


def test_p13_5_an_owner_that_did_not_unmount_makes_a_check_and_errors_stop_the_start(volume: Volume) -> None:
    assert volume.run("start").returncode == 0
    (volume.root / "kept").write_text("kept")
    assert volume.run("cleanup").returncode == 0
    assert volume.claim()["is_open"] is True
    checked = volume.run("start", 2)
    assert checked.returncode == 0 and "e2fsck" in checked.stdout
    assert (volume.root / "kept").read_text() == "kept"
    assert volume.run("cleanup", 2).returncode == 0
    with open(volume.file, "r+b") as file:
        file.seek(1024 + 0x54)  # the super block's first inode: nothing mends that without a person
        file.write(b"\xff\xff\xff\xff")
    broken = volume.run("start", 3)
    assert broken.returncode in (1, 78) and not volume.is_mounted()


def test_p13_6_a_cleanup_of_another_start_touches_nothing(volume: Volume) -> None:
    assert volume.run("start", 5, node="n1", incarnation=4).returncode == 0
    assert volume.run("cleanup", 1, node="n0").returncode == 0
    assert volume.run("cleanup", 1, node="n1", incarnation=3).returncode == 0
    assert volume.is_mounted()
    assert volume.run("cleanup", 1, node="n1", incarnation=4).returncode == 0
    assert not volume.is_mounted() and not volume.is_attached()


def test_p13_7_a_copy_of_the_mount_elsewhere_is_named_and_it_is_not_gone(
    volume: Volume, processes: "list[subprocess.Popen[bytes]]"
) -> None:
    assert volume.run("start").returncode == 0
    processes.append(subprocess.Popen(volume.there("unshare", "-m", "--propagation", "private", "sleep", "600")))
    own = os.readlink(f"/proc/{volume.place}/ns/mnt")
    wait_for(
        lambda: os.readlink(f"/proc/{processes[0].pid}/ns/mnt") not in (own, os.readlink("/proc/self/ns/mnt")), "-"
    )
    wait_for(lambda: Path(f"/proc/{processes[0].pid}/comm").read_text() == "sleep\n", "it does not sleep")
    stopped = volume.run("stop")
    assert stopped.returncode == 1 and f"sleep ({processes[0].pid}, mnt:[" in stopped.stderr
    assert volume.is_attached() and volume.claim()["is_open"] is True
    processes[0].kill()
    processes[0].wait()
    assert volume.run("stop").returncode == 0
    assert not volume.is_attached() and volume.claim()["is_open"] is False


def test_p13_8_what_is_ours_is_ended_and_who_else_is_named(
    volume: Volume, processes: "list[subprocess.Popen[bytes]]"
) -> None:
    assert volume.run("start").returncode == 0
    ours, stranger = inside(volume, volume.environment(1)), inside(volume, {"PATH": os.environ["PATH"]})
    processes += [ours, stranger]
    stopped = volume.run("stop")
    assert stopped.returncode == 1 and f"sleep ({stranger.pid}), not started by Muster" in stopped.stderr
    assert ours.wait(20) == -signal.SIGTERM
    assert stranger.poll() is None and volume.is_mounted()
    stranger.kill()
    assert volume.run("stop").returncode == 0


def test_p13_3_a_pool_without_direct_io_is_refused(tmp_path: Path, place: int) -> None:
    made = tmp_path / "memory"
    made.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "none", str(made)], check=True)
    try:
        volume = Volume(made, os.getpid())  # nothing is mounted from it
        found = volume.run("start")
        assert found.returncode == 1 and "direct I/O is not in force" in found.stderr
        wait_for(lambda: not volume.is_attached(), "it stays attached")
    finally:
        subprocess.run(["umount", str(made)], check=True)
