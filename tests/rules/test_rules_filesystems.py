"""The rules of failover file systems: tables of what is found, and random deaths in a model (P13.1-P13.8)."""

import pytest

from filesystem_world import WANTED, Violation, World
from muster.core.filesystems import gone, mounting
from muster.core.filesystems.checking import Policy, check_due, check_of, check_problem
from muster.core.filesystems.mounting import Attached, Mounted, Progress, Root, Seen
from muster.core.volumes.claim import Claim, Verdict, judge, may_clear

LOOP = Attached("/dev/loop3", direct_io=True, whole=True)
THERE = Mounted("/dev/loop3", "/srv/db", read_only=False)
PLAIN = Seen("file", WANTED.size_bytes, (), (), "folder", 0)
READY = PLAIN._replace(attached=(LOOP,), content="ext4")
CLAIMED = Progress(Verdict(), "/dev/loop3")
OWN = Claim("cluster", "db", "n0", 7, "boot", "0002", True)


def refusal(seen: Seen, progress: Progress = CLAIMED, wanted: mounting.Wanted = WANTED) -> str:
    deed = mounting.next_deed(wanted, seen, progress)
    assert isinstance(deed, mounting.Refuse), deed
    return deed.why


def test_p13_3_one_thing_after_the_other_leads_to_a_mount() -> None:
    root = Root(70, 70, 0o700)
    wanted = WANTED._replace(root=root)
    first = Progress(Verdict(is_first=True))
    assert mounting.next_deed(wanted, PLAIN, Progress()) == mounting.TakeClaim()
    assert mounting.next_deed(wanted, PLAIN, first) == mounting.Attach()
    held = first._replace(held=LOOP.device)
    check = check_of("ext4", Policy.JOURNAL)
    assert mounting.next_deed(wanted, READY, held) == mounting.CheckIt(check, LOOP.device)
    checked = held._replace(checked=True)
    assert mounting.next_deed(wanted, READY, checked) == mounting.Mount(LOOP.device)
    mounted = READY._replace(mounted=(THERE,), root=Root(0, 0, 0o755))
    assert mounting.next_deed(wanted, mounted, checked) == mounting.Settle()
    settled = checked._replace(settled=True)
    assert mounting.next_deed(wanted, mounted, settled) == mounting.SetRoot()
    assert mounting.next_deed(wanted, mounted._replace(root=root), settled) == mounting.Done()


def test_p13_3_a_mount_that_is_there_counts_as_done_once_it_is_claimed() -> None:
    mounted = READY._replace(mounted=(THERE,))
    assert mounting.next_deed(WANTED, mounted, Progress()) == mounting.TakeClaim()
    assert mounting.next_deed(WANTED, mounted, Progress(Verdict(), settled=True)) == mounting.Done()
    assert refusal(mounted, Progress(Verdict(refused="it is another one's"))) == "it is another one's"


@pytest.mark.parametrize(
    ("seen", "word"),
    [
        (PLAIN._replace(file="missing"), "muster volume create db"),
        (PLAIN._replace(file="link"), "no plain file but a link"),
        (PLAIN._replace(size_bytes=1), "has 1 bytes"),
        (PLAIN._replace(point="missing"), "mkdir -p /srv/db"),
        (PLAIN._replace(point="link"), "no folder but a link"),
        (PLAIN._replace(entries=2), "not empty"),
        (PLAIN._replace(other_mount="8:1"), "8:1 is mounted at /srv/db"),
        (PLAIN._replace(attached=(LOOP._replace(device="/dev/loop9"),)), "attached to /dev/loop9 already"),
        (READY._replace(attached=(LOOP._replace(direct_io=False),)), "direct I/O is not in force"),
        (READY._replace(attached=(LOOP._replace(whole=False),)), "the whole of"),
        (READY._replace(content="xfs"), "is xfs, not ext4: it is left as it is"),
        (READY._replace(content="nothing"), "muster filesystem create db"),
        (READY._replace(mounted=(THERE._replace(mount_point="/mnt"),)), "mounted at /mnt"),
        (READY._replace(mounted=(THERE, THERE)), "something else is mounted over"),
        (READY._replace(mounted=(THERE,), other_mount="8:1"), "something else is mounted over"),
        (READY._replace(mounted=(THERE._replace(read_only=True),)), "read-only"),
        (READY._replace(mounted=(THERE,), attached=(LOOP._replace(direct_io=False),)), "without direct I/O"),
    ],
)  # fmt: skip
def test_p13_3_what_stands_in_the_way_is_named_and_nothing_is_done(seen: Seen, word: str) -> None:
    assert word in refusal(seen)


def test_p13_3_what_may_be_read_only_is_mounted_so() -> None:
    wanted = WANTED._replace(options=("ro",))
    mounted = READY._replace(mounted=(THERE._replace(read_only=True),))
    assert mounting.next_deed(wanted, mounted, CLAIMED._replace(settled=True)) == mounting.Done()


@pytest.mark.parametrize(
    ("found", "in_use", "verdict"),
    [
        (None, False, Verdict(is_first=True)),
        (OWN._replace(token="0001", is_open=False), False, Verdict()),
        (OWN._replace(token="0001"), False, Verdict(crashed=True)),
        (OWN, False, Verdict(crashed=True)),  # a try of the same start that died on its way
        (OWN, True, Verdict(crashed=True)),
        (OWN._replace(token="0001", is_open=False, owes_check=True), False, Verdict(crashed=True)),
    ],
)
def test_p13_4_a_volume_that_was_given_up_may_be_claimed(found: Claim | None, in_use: bool, verdict: Verdict) -> None:
    assert judge(found, OWN, in_use=in_use) == verdict


@pytest.mark.parametrize(
    ("found", "in_use", "word"),
    [
        (None, True, "attached"),
        (OWN._replace(token="0003", is_open=False), False, "a later owner"),
        (OWN._replace(token="0001"), True, "its last owner is n0"),
        (OWN._replace(token="0001", is_open=False), True, "attached"),
        (OWN._replace(cluster="other", is_open=False), False, "another cluster"),
        (OWN._replace(volume="log", is_open=False), False, "mixed up"),
    ],
)
def test_p13_4_who_may_not_claim_it_is_told_why(found: Claim | None, in_use: bool, word: str) -> None:
    assert word in judge(found, OWN, in_use=in_use).refused


def test_p13_4_a_start_without_a_token_claims_nothing() -> None:
    assert "no token" in judge(None, OWN._replace(token=""), in_use=False).refused


@pytest.mark.parametrize("policy", list(Policy))
def test_p13_5_a_check_is_due_before_the_first_mount_and_after_a_crash(policy: Policy) -> None:
    due = policy is not Policy.NEVER
    assert check_due(policy, Verdict(is_first=True)) is due
    assert check_due(policy, Verdict(crashed=True)) is due
    assert not check_due(policy, Verdict())


def test_p13_5_what_a_check_leaves_unmended_is_not_mounted() -> None:
    assert check_of("ext4", Policy.FULL).words == ("e2fsck", "-f", "-p")
    assert not check_problem("ext4", 0, "clean")
    assert not check_problem("ext4", 1, "corrected")
    assert "status 4: RUN fsck MANUALLY" in check_problem("ext4", 4, "first line\nRUN fsck MANUALLY")


def test_p13_6_a_cleanup_touches_only_what_its_own_incarnation_claimed() -> None:
    assert may_clear(OWN, "n0", 7, "boot")
    assert not may_clear(OWN, "n0", 8, "boot")
    assert not may_clear(OWN, "n1", 7, "boot")
    assert not may_clear(OWN, "n0", 7, "later boot")
    assert not may_clear(OWN._replace(is_open=False), "n0", 7, "boot")
    assert not may_clear(None, "n0", 7, "boot")


NOTHING = gone.Left((), (), False, ())
OPEN = gone.Left(("/dev/loop3",), (), False, (), ("sh (12, mnt:[4])",))
BUSY = gone.Unmounting(is_busy=True)


def deed(seen: gone.Left, progress: gone.Unmounting = gone.Unmounting(), now_ms: int = 0) -> gone.Deed:  # noqa: B008
    return gone.next_deed("db", seen, progress, 1000, now_ms)


def test_p13_7_an_unmount_that_succeeded_is_not_gone() -> None:
    assert deed(OPEN) == gone.Wait()
    failed = deed(OPEN, gone.Unmounting(waiting_ms=0), gone.BUSY_MS)
    assert isinstance(failed, gone.Fail) and "sh (12, mnt:[4])" in failed.why
    assert deed(OPEN._replace(is_free=True)) == gone.Detach("/dev/loop3")
    assert deed(NOTHING._replace(claim_open=True)) == gone.CloseClaim()
    assert deed(NOTHING) == gone.Gone()


def test_p13_8_the_ladder_ends_what_is_ours_and_names_all_others() -> None:
    mounted = gone.Left(("/dev/loop3",), ("/srv/db",), False, ())
    assert deed(mounted) == gone.Unmount("/srv/db")
    both = mounted._replace(holders=(gone.Holder(5, "ours", True), gone.Holder(6, "vim", False)))
    assert deed(both, BUSY) == gone.End((5,), kills=False)
    termed = BUSY._replace(termed_ms=0)
    assert deed(both, termed, 999) == gone.Wait()
    assert deed(both, termed, 1000) == gone.End((5,), kills=True)
    held = deed(both, termed._replace(killed_ms=1000), 1000 + gone.KILLED_MS)
    assert isinstance(held, gone.Fail) and "the kernel holds process 5" in held.why
    stranger = mounted._replace(holders=both.holders[1:])
    assert deed(stranger, BUSY) == gone.Wait()
    named = deed(stranger, BUSY._replace(waiting_ms=0), gone.BUSY_MS)
    assert isinstance(named, gone.Fail) and "vim (6), not started by Muster" in named.why
    assert deed(mounted, BUSY) == gone.Unmount("/srv/db")
    nobody = deed(mounted, BUSY._replace(waiting_ms=0), gone.BUSY_MS)
    assert isinstance(nobody, gone.Fail) and "nobody is seen" in nobody.why


STEPS = 400


def run(seeds: range, mistake: str = "") -> list[World]:
    worlds = []
    for seed in seeds:
        worlds.append(World(seed, mistake))
        for _ in range(STEPS):
            worlds[-1].step()
    return worlds


def test_p13_2_no_two_ever_write_whatever_dies_or_pauses() -> None:
    worlds = run(range(200))
    starts, deaths, checks = (sum(getattr(world, name) for world in worlds) for name in ("starts", "deaths", "checks"))
    assert min(starts, deaths, checks) > 500, (starts, deaths, checks)


@pytest.mark.parametrize(
    "mistake",
    [
        "lost is gone",
        "an unmount is enough",
        "any token is as good",
        "what is over its limit goes on",
        "what is owed is forgotten",
    ],
)
def test_p13_2_the_judge_notices_a_rule_that_is_broken(mistake: str) -> None:
    with pytest.raises(Violation):
        run(range(400), mistake)
