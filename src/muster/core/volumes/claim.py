"""The claim beside an exclusive volume: who had it last, and whether that one has given it back (P13.4).

Nothing here makes or changes what is on a volume (P13.1).

Standard library only: the program that mounts is small, and started for each command.
"""

from typing import NamedTuple


class Claim(NamedTuple):
    """What stands in the claim of a volume. Tokens compare as texts (P6.41)."""

    cluster: str  # its identity, not its name
    volume: str
    node: str
    incarnation: int
    boot_id: str  # of the machine's kernel
    token: str
    is_open: bool  # from before the attach until all of it is gone
    owes_check: bool = False  # a check was due when it was claimed, and it has not been mounted since

    def is_of_start(self, other: "Claim") -> bool:
        """Whether both are of one start of one owner: its tries, and its stop."""
        return (self.cluster, self.volume, self.token) == (other.cluster, other.volume, other.token)


class Verdict(NamedTuple):
    """Whether a volume may be claimed. `refused`: why not, with what to do; empty where it may."""

    refused: str = ""
    is_first: bool = False  # nobody of this cluster has had it
    crashed: bool = False  # the last owner has not given it back, or a check that was due is still

    @property
    def calls_for_check(self) -> bool:
        """Whether what is on it may not be as an owner left it."""
        return self.is_first or self.crashed


def judge(found: Claim | None, mine: Claim, *, in_use: bool) -> Verdict:
    """What the claim that was found says to who wants the volume; `in_use`: a loop device of this kernel has its file.

    It is read, judged and replaced under one lock, which is held until the mount is there (P13.4).
    """
    if not mine.token:
        return Verdict("this start has no token: it would not be told from a later owner's; start it through Muster")
    if found is None:
        return Verdict(_attached(mine.volume), is_first=True) if in_use else Verdict(is_first=True)
    if found.cluster != mine.cluster:
        return Verdict(
            f"volume {mine.volume} is claimed by another cluster, {found.cluster}: two clusters share a pool"
        )
    if found.volume != mine.volume:
        return Verdict(f"the claim beside volume {mine.volume} names volume {found.volume}: its files were mixed up")
    if mine.token < found.token:
        return Verdict(f"volume {mine.volume} has had a later owner, {found.node}: this start is out of date")
    if mine.token > found.token and in_use:
        return Verdict(_attached(mine.volume) + (f"; its last owner is {found.node}" if found.is_open else ""))
    return Verdict(crashed=found.is_open or found.owes_check)


def _attached(volume: str) -> str:
    return f"the file of volume {volume} is attached to a loop device of this machine already: see `losetup -l`"


def may_clear(found: Claim | None, node: str, incarnation: int, boot_id: str) -> bool:
    """Whether what is attached or mounted is this incarnation's, so that its cleanup may take it away (P13.6).

    Nobody else claims a volume while it is attached here; so where the claim names another one, nothing is left of
    this incarnation, and what is there is that one's.
    """
    if found is None or not found.is_open:
        return False
    return (found.node, found.incarnation, found.boot_id) == (node, incarnation, boot_id)
