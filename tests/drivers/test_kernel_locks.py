"""What is told to the kernel's lock manager, as far as that needs none (P12.30, P12.34); `lab/vms` has a real one."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from muster.core.locks.kernel import Reach, Start
from muster.core.locks.machine import LockManager
from muster.daemon.locks.kernel import KernelSide
from muster.drivers.image.kernel_spaces import held
from muster.drivers.machine.kernel_locks import CannotDrive, KernelLocks, address_of, id_of


@pytest.fixture
def configured(tmp_path: Path) -> Path:
    """A folder as configfs and sysfs have it, with a lockspace `fs`: the kernel makes `nodes` by itself."""
    (tmp_path / "sys/kernel/config/dlm/cluster/comms").mkdir(parents=True)
    (tmp_path / "sys/kernel/config/dlm/cluster/spaces/fs/nodes").mkdir(parents=True)
    (tmp_path / "sys/kernel/dlm/fs").mkdir(parents=True)
    for file in ("control", "event_done", "id"):
        (tmp_path / "sys/kernel/dlm/fs" / file).touch()
    return tmp_path


def test_p12_30_a_node_is_told_as_the_kernel_wants_it(configured: Path) -> None:
    locks = KernelLocks("prod", 1, lambda: {0: "10.0.0.1", 1: "::1"}, configured)
    locks.carry_out(Reach(((0, "500"), (1, "600"))))
    comms = configured / "sys/kernel/config/dlm/cluster/comms"
    assert sorted(each.name for each in comms.iterdir()) == ["1", "2"]
    assert (comms / "1/nodeid").read_text() == "1"
    assert not (comms / "1/local").exists()
    assert (comms / "2/local").read_text() == "1"
    locks.carry_out(Start("fs", 77, (0, 1), enters=True))
    nodes = configured / "sys/kernel/config/dlm/cluster/spaces/fs/nodes"
    assert {each.name: (each / "nodeid").read_text() for each in nodes.iterdir()} == {"1": "1", "2": "2"}
    told = configured / "sys/kernel/dlm/fs"
    assert [(told / name).read_text() for name in ("id", "control", "event_done")] == ["77", "1", "0"]


def test_p12_30_a_name_that_would_lead_elsewhere_is_refused(configured: Path) -> None:
    locks = KernelLocks("prod", 0, dict, configured)
    with pytest.raises(OSError, match="no name of a lockspace"):
        locks.carry_out(Start("../../x", 1, (0,), enters=False))


def test_p12_33_an_address_is_a_whole_one_and_a_node_has_a_number_above_zero() -> None:
    four, six = address_of("10.1.2.3"), address_of("[fe80::1]")
    assert len(four) == len(six) == 128
    assert four[:8] == socket.AF_INET.to_bytes(2, "little") + bytes(2) + bytes((10, 1, 2, 3))
    assert six[8:24] == socket.inet_pton(socket.AF_INET6, "fe80::1")
    assert id_of(0) == 1


def test_p12_37_a_number_means_one_life_at_one_address_and_the_old_one_goes_first(configured: Path) -> None:
    """The slot of a removed node has another one, at another address. (The kernel's folders go with their files.)"""
    hosts = {0: "10.0.0.1", 1: "10.0.0.2"}
    locks = KernelLocks("prod", 0, lambda: hosts, configured)
    locks.carry_out(Reach(((0, "500"), (1, "600"))))
    folder = configured / "sys/kernel/config/dlm/cluster/comms/2"
    hosts[1] = "10.0.0.9"
    locks.carry_out(Reach(((0, "500"), (1, "600"))))
    assert (folder / "addr").read_bytes() == address_of("10.0.0.2")  # the same life: nothing is taken away under it
    for file in ("nodeid", "addr"):
        (folder / file).unlink()
    locks.carry_out(Reach(((0, "500"),)))
    assert not folder.exists()
    locks.carry_out(Reach(((0, "500"), (1, "700"))))
    assert (folder / "addr").read_bytes() == address_of("10.0.0.9")
    assert (folder / "nodeid").read_text() == "2"
    for file in ("nodeid", "addr"):
        (folder / file).unlink()
    hosts[1] = "10.0.0.3"
    locks.carry_out(Reach(((0, "500"), (1, "800"))))  # the next life at once: the old folder is made anew
    assert (folder / "addr").read_bytes() == address_of("10.0.0.3")


def test_p12_34_a_kernel_with_lockspaces_is_found_and_not_taken_over(configured: Path, tmp_path: Path) -> None:
    assert held(str(configured / "sys/kernel/dlm")) == ["fs"]
    assert held(str(tmp_path / "nowhere")) == []
    with pytest.raises(CannotDrive, match="restart this machine" if os.geteuid() == 0 else "only root"):
        KernelLocks("prod", 0, dict, configured).open()


def test_p12_34_the_process_does_not_end_while_its_kernel_has_a_lockspace(configured: Path) -> None:
    """The kernel would stop all of them; who only waits to be let in is told that it is not."""

    async def scenario() -> list[str]:
        manager, said = LockManager(0, 1), list[str]()
        locks = KernelLocks("prod", 0, dict, configured)
        side = KernelSide(manager, locks, lambda: None, said.append)
        manager.kernel.is_on = True
        manager.kernel_asks("fs", enters=True)
        side.carry_out()
        await asyncio.wait_for(side.unused(), 10)
        return said

    asyncio.run(scenario())
    assert (configured / "sys/kernel/dlm/fs/event_done").read_text() == "-1"
