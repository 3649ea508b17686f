"""What needs a person: one form for every instrument, and what a node has to see for it (P10.12)."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from msgspec import Struct, field

from muster.core.boot_advice import SYSTEMD
from muster.core.room import Fullness
from muster.core.services.explanation import Explanation
from muster.core.transitions.required import AwaitingLevels
from muster.records.terms import NO_NODE

TROUBLE, NOTICE = "trouble", "notice"  # it is not as it should be; a person has made it so, or it may pass
US_PER_S = 1_000_000

# Each kind, and for how long (us) it must hold before it is told: what passes by itself within that is no trouble.
HOLDS_US = {
    "no master": 10 * US_PER_S,
    "not following": US_PER_S,
    "unproven": US_PER_S,
    "former life": US_PER_S,
    "unwell": US_PER_S,
    "lost": US_PER_S,
    "refused": US_PER_S,
    "overdue level": 0,
    "fencing fails": US_PER_S,
    "quarantine": 0,
    "blocked": 0,
    "failed": 0,
    "unclean": US_PER_S,
    "nowhere": US_PER_S,
    "store": 0,
    "link": US_PER_S,
    "cannot lead": 0,
    "processes lost": 0,
    "fence device": US_PER_S,
    "certificate": 0,
    "level": US_PER_S,
    "decision lock": US_PER_S,
    "maintenance": 0,
    "standby": 0,
    "not fenced": US_PER_S,
    "watchdog": US_PER_S,
}
KINDS = tuple(HOLDS_US)  # the order in which needs of one severity are told: causes before what follows from them


class Need(Struct, frozen=True):
    """One thing that needs a person.

    `words` is plain (P10.14), without running times, so that it stays the same for as long as the need holds.
    `next_step` is the next command, or what to do where there is no command for it. `since_us` is by the clock of the
    machine.
    """

    kind: str  # one of KINDS
    subject: str  # `node/NAME`, `service/NAME`, `link/NAME`, `level/NUMBER@NAME` or `cluster`
    words: str
    next_step: str
    severity: str = TROUBLE
    affects: tuple[str, ...] = ()  # services that are not as wanted because of it
    since_us: int = 0
    since_s: int = 0  # the same by the clock of people, in seconds since 1970; 0 where nobody has looked at that

    @property
    def line(self) -> str:
        """The sentence and the next step, as the log, warnings and the service manager have them."""
        return f"{self.words}; next: {self.next_step}"

    def is_about(self, subject: str) -> bool:
        """Whether it is about `kind/NAME` or affects it; what is about a node's link or level is about the node."""
        kind, _, name = subject.partition("/")
        own = (subject, f"link/{name}") if kind == "node" else (subject,)
        level = kind == "node" and self.subject.startswith("level/") and self.subject.endswith(f"@{name}")
        return self.subject in own or level or (kind == "service" and name in self.affects)

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from the others."""
        return self.kind, self.subject


class Suspicion(NamedTuple):
    """What may become a need once it has held for long enough; `tell` makes its words, or finds that it is none."""

    kind: str
    subject: str
    tell: Callable[[], Need | None]
    age_ms: int = 0  # for how long it has held, where a record says so
    holds_us: int = 0  # for how long it must hold, if for longer than its kind asks
    goes_on: bool = False  # where `tell` finds none, what was told of it before still holds


def certain(need: Need, of: str = "", age_ms: int = 0) -> Suspicion:
    """A suspicion whose words are known. `of` tells it from others of the same kind about the same subject."""
    return Suspicion(need.kind, f"{need.subject} {of}".rstrip(), lambda: need, age_ms)


class Path(NamedTuple):
    """One path of the link with a peer: `up`, `silent` or `down`."""

    peer: int
    address: str
    state: str


class Straggler(NamedTuple):
    """A registered level that has not acknowledged a step of a transition; `hung`: its deadline is over."""

    node: int
    level: int
    name: str
    about: int  # the node whose transition it is
    kind: str
    is_hung: bool


class Seen(Struct, frozen=True):
    """What a node sees beside the database. Everything in it is what `muster status` shows of it."""

    node: int  # its own id
    incarnation: int
    confirmed: bool = True  # its replica is what a master has said
    master: int = NO_NODE
    trouble: str = ""  # what keeps the node from following the cluster
    live: frozenset[int] = frozenset()  # nodes whose lease is being renewed
    conditions: Mapping[int, str] = field(default_factory=dict)  # node -> one of `diagnosis.CONDITIONS`
    waiting: Mapping[int, AwaitingLevels] = field(default_factory=dict)
    unable: Mapping[int, str] = field(default_factory=dict)
    barred: Mapping[int, str] = field(default_factory=dict)
    lacking: str = ""
    fence_troubles: Mapping[int, Mapping[str, str]] = field(default_factory=dict)  # node -> fence device -> why (P7.28)
    fences: bool = False  # silence has to be proven from outside here (P7.22)
    watched: frozenset[int] = frozenset()  # nodes whose own watchdog proves their end (P7.30)
    unarmed: frozenset[int] = frozenset()  # nodes whose lease is live and says that no watchdog is behind it
    fullness: Fullness = Fullness(0, 1)
    paths: tuple[Path, ...] = ()
    stragglers: tuple[Straggler, ...] = ()
    certificates: tuple[tuple[str, str], ...] = ()  # sentence and next step
    age_ms: Callable[[int], int] = lambda _index: 0
    explain: Callable[[str], Explanation | None] = lambda _name: None
    boots: str = SYSTEMD  # what boots a node
