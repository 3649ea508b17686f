"""Who decides on services, by which grant of the decision lock (SPEC 6.4; P6.42)."""

from msgspec import Struct

from muster.records.numbers import Count

SERVICES = "services"  # what is decided on; the name of the lock, too
Grant = tuple[Count, Count]  # the token of a grant: (epoch, counter), compared as a pair (P12.6)
NO_GRANT: Grant = (0, 0)


class Decider(Struct, frozen=True, array_like=True, tag="decider"):
    """The recorded decider on `what`: an incarnation that holds the decision lock, or the master while `node` is none.

    `grant` never falls: who was the decider by a lower or the same one never is again by it.
    """

    what: str
    node: int
    incarnation: int
    grant: Grant = NO_GRANT  # of the present or last decider
    since: int = 0  # index of the entry that says so
    cause: str = ""  # why the master decides itself, in words


def grant_text(grant: Grant) -> str:
    """For people: as `muster lock show` has tokens."""
    return f"{grant[0]}-{grant[1]}"
