"""When a failover file system is checked before it is mounted, and what the answer means (P13.5)."""

from enum import StrEnum
from typing import NamedTuple

from muster.core.volumes.claim import Verdict


class Policy(StrEnum):
    """`fsck` of a file system."""

    JOURNAL = "journal"
    FULL = "full"
    NEVER = "never"


TYPES = ("ext4", "xfs")
_EXT4_MENDED = 1  # exit status of e2fsck: errors were corrected
_MENDED: dict[str, tuple[int, ...]] = {"ext4": (0, _EXT4_MENDED), "xfs": (0,)}


class Check(NamedTuple):
    """A command that checks; the device is its last word. No words: the mount itself replays the journal."""

    words: tuple[str, ...]


def check_due(policy: Policy, verdict: Verdict) -> bool:
    """Before the first mount by this cluster, and after each owner that has not given the volume back."""
    return policy is not Policy.NEVER and verdict.calls_for_check


def check_of(kind: str, policy: Policy) -> Check:
    """What checks a file system of this type.

    `xfs_repair` refuses a journal that has not been replayed, and only a mount replays it: a full check of xfs is
    refused where it is defined.
    """
    if kind == "ext4":
        return Check(("e2fsck", "-f", "-p") if policy is Policy.FULL else ("e2fsck", "-p"))
    return Check(())


def check_problem(kind: str, status: int, output: str) -> str:
    """Why the file system must not be mounted after its check; empty where it may."""
    if status in _MENDED[kind]:
        return ""
    said = output.strip().splitlines()
    return f"its check has failed with status {status}: {said[-1] if said else 'it said nothing'}; check it by hand"
