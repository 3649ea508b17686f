"""`python -m lab.vms kernel-locks`: GFS2 on three machines, on the kernel's locks that Muster drives (P12.30-P12.34).

A file system is mounted on all. A daemon is restarted while its machine writes, and nothing stops. One machine loses
its power while it writes; the others wait until its end is proven, then go on; it boots, joins, and mounts again: it is
in its lockspace again. Then it loses its power while another's mount waits for it: the mount goes on when its end is
proven. In the end all unmount, and the file system is clean.
"""

import time

from lab.vms.guest import Failed, Guest
from lab.vms.laboratory import MEMBERS_S, Laboratory
from lab.vms.short_run import rejoin

SPACE = "data"
DISK = (SPACE, 512 << 20)
_PLACE = "/srv/data"
_DEVICE = f"/dev/disk/by-id/virtio-{SPACE}"
_MONITOR = "dlm-monitor"
_MOUNT_S = 120.0
_UNBLOCKED_S = 240.0


def run(lab: Laboratory) -> None:
    """All of it. Raises `OSError` with what was not as it should be."""
    lab.boot_all()
    lab.form_cluster()
    first = lab.a_member()
    lab.tell(first.run(["muster", "config", "set", "kernel_locks", "on"]).stdout.strip())
    for guest in lab.guests.values():
        lab.wait(f"{guest.name} drives its kernel", lambda guest=guest: _is_driven(guest), MEMBERS_S)  # type: ignore[misc]
    first.shell(f"mkfs.gfs2 -O -q -p lock_dlm -t vms:{SPACE} -j {len(lab.guests)} -J 16 {_DEVICE}", within_s=_MOUNT_S)
    for guest in lab.guests.values():
        took_s = mount(guest)
        lab.tell(f"{guest.name} has mounted it, after {took_s:.1f} s; members of the lockspace: {members(guest)}")
    restart_a_daemon(lab, first)
    lose_a_writer(lab)
    lose_a_member_in_a_mount(lab)
    for guest in lab.guests.values():
        guest.shell(f"umount {_PLACE}", within_s=_MOUNT_S)
        lab.tell(f"{guest.name} has unmounted it")
    found = first.shell(f"fsck.gfs2 -n {_DEVICE}", check=False, within_s=_MOUNT_S).strip().splitlines()
    lab.tell(f"fsck: {found[-1] if found else 'says nothing'}")
    for guest in lab.guests.values():
        left = guest.shell("ls /sys/kernel/dlm").split()
        if left:
            raise Failed(f"{guest.name} still has the lockspaces {left}")


def _is_driven(guest: Guest) -> bool:
    return bool(guest.shell("ls /sys/kernel/config/dlm/cluster/comms 2>/dev/null", check=False).split())


def mount(guest: Guest) -> float:
    """Mount it on a machine; how long that took, in s."""
    began_s = time.monotonic()
    words = f"mkdir -p {_PLACE} && mount -t gfs2 -o noatime,localflocks {_DEVICE} {_PLACE}"
    guest.shell(words, within_s=_MOUNT_S)
    return time.monotonic() - began_s


def members(guest: Guest) -> list[str]:
    """The kernel's numbers of the nodes in the lockspace, as a machine has them."""
    return guest.shell(f"ls /sys/kernel/config/dlm/cluster/spaces/{SPACE}/nodes").split()


def restart_a_daemon(lab: Laboratory, guest: Guest) -> None:
    """A daemon is started anew while its machine writes: the lock process holds the monitor on, and stops nothing."""
    before = _holder(guest), _stops(guest)
    guest.shell(
        f"(for i in $(seq 1 400); do echo $i >{_PLACE}/kept-$i; done; echo done >{_PLACE}/kept) >/dev/null 2>&1 &"
    )
    guest.run(["muster", "node", "restart-daemon", guest.name])
    other = next(each for each in lab.guests.values() if each is not guest)
    lab.wait("what was written is seen elsewhere", lambda: _has(other, "kept"), _UNBLOCKED_S)
    after = _holder(guest), _stops(guest)
    if not before[0] or after != before:
        raise Failed(f"{guest.name}: who holds the monitor, and stops of its kernel: {before}, then {after}")
    lab.tell(
        f"the daemon of {guest.name} was restarted while it wrote; process {after[0]} holds the monitor all the while"
    )


def _holder(guest: Guest) -> str:
    """The process that has the kernel's monitor open."""
    return guest.shell(
        f"for p in /proc/[0-9]*; do ls -l $p/fd 2>/dev/null | grep -q {_MONITOR} && echo $p; done; true"
    ).strip()


def _stops(guest: Guest) -> int:
    """How often this machine's kernel was told to stop the lockspace, by its node's log."""
    return guest.shell("journalctl -u musterd -o cat --no-pager").count(f"kernel: Stop(name='{SPACE}')")


def _has(guest: Guest, name: str) -> bool:
    return guest.run(["test", "-e", f"{_PLACE}/{name}"], check=False).returncode == 0


def lose_a_writer(lab: Laboratory) -> None:
    """A machine loses its power while it writes."""
    names = list(lab.guests)
    victim, survivor = lab.guests[names[-1]], lab.guests[names[0]]
    victim.shell(f"(i=0; while :; do i=$((i+1)); echo $i >{_PLACE}/lost-$((i % 50)); done) >/dev/null 2>&1 &")
    lab.wait("it writes", lambda: _has(survivor, "lost-1"), _MOUNT_S)
    cut_s = time.monotonic()
    victim.power_cut()
    lab.tell(f"{victim.name} loses its power while it writes")
    survivor.shell(
        f"ls {_PLACE} >/dev/null; echo after >{_PLACE}/after; cat {_PLACE}/lost-* >/dev/null", within_s=_UNBLOCKED_S
    )
    unblocked_s = time.monotonic() - cut_s
    off = next((each for each in lab.board.asked if each.at_s > cut_s and each.action == "status"), None)
    if off is None or "OFF" not in off.words:
        raise Failed(f"the file system went on before the board had said that {victim.name} is off")
    lab.tell(f"{survivor.name} writes again, {unblocked_s:.1f} s after the cut; members: {members(survivor)}")
    rejoin(lab, victim.name)
    took_s = mount(victim)
    if victim.shell(f"cat {_PLACE}/after").strip() != "after":
        raise Failed(f"{victim.name} does not see what was written while it was away")
    lab.tell(f"{victim.name} is in its lockspace again, after {took_s:.1f} s; members: {members(victim)}")


def lose_a_member_in_a_mount(lab: Laboratory) -> None:
    """A machine loses its power while another waits to be let into the lockspace, which it was to stop for that."""
    names = list(lab.guests)
    victim, survivor, entering = lab.guests[names[-1]], lab.guests[names[0]], lab.guests[names[1]]
    entering.shell(f"umount {_PLACE}", within_s=_MOUNT_S)
    victim.pause()
    entering.shell(
        f"(mount -t gfs2 -o noatime,localflocks {_DEVICE} {_PLACE}; echo $? >/run/mounted) >/dev/null 2>&1 &"
    )
    lab.wait("the mount is pending", lambda: SPACE in entering.shell("ls /sys/kernel/dlm").split(), _MOUNT_S)
    if entering.run(["test", "-e", "/run/mounted"], check=False).returncode == 0:
        raise Failed(f"{entering.name} has mounted it, though {victim.name} has not stopped the lockspace")
    cut_s = time.monotonic()
    victim.power_cut()
    lab.tell(f"{victim.name} loses its power while the mount of {entering.name} is pending")
    lab.wait("the mount has ended", lambda: entering.shell("cat /run/mounted", check=False).strip() != "", _UNBLOCKED_S)
    status = entering.shell("cat /run/mounted").strip()
    if status != "0":
        raise Failed(f"{entering.name}: the mount failed with status {status}")
    entering.shell(f"cat {_PLACE}/after", within_s=_UNBLOCKED_S)
    lab.tell(
        f"{entering.name} has mounted it, {time.monotonic() - cut_s:.1f} s after the cut; members: {members(survivor)}"
    )
    if members(survivor) != members(entering) or len(members(survivor)) != len(names) - 1:
        raise Failed(f"members differ: {members(survivor)} and {members(entering)}")
    rejoin(lab, victim.name)
    took_s = mount(victim)
    lab.tell(f"{victim.name} is in its lockspace again, after {took_s:.1f} s; members: {members(victim)}")
