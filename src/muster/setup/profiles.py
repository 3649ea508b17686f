"""The latency profile of a cluster as somebody has asked for it (SPEC 7.6)."""

from muster.records.profiles import profile_with
from muster.records.timing import PROFILES, InconsistentProfile, Profile
from muster.setup.errors import Mistaken

DEFAULT_PROFILES = {"shared": "shared", "host": "standard"}  # of a new cluster, by the scope of its store


def parse_overrides(words: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    """KEY=VALUE of `--set`. Raises `Mistaken`."""
    found: dict[str, int] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not (value.isascii() and value.removeprefix("-").isdecimal()) or len(value) > 12:
            raise Mistaken(f"{word!r} sets nothing", "--set", "write KEY=VALUE with a whole number, as renew_ms=100")
        if key in found:
            raise Mistaken(f"{key} is set twice", "--set", "set it once")
        found[key] = int(value)
    return tuple(found.items())


def chosen_profile(name: str, overrides: tuple[tuple[str, int], ...], where: str) -> Profile:
    """The profile with its overrides, checked as at `muster init`. Raises `Mistaken` with the inequality it breaks."""
    base = PROFILES.get(name)
    if base is None:
        raise Mistaken(f"there is no profile {name!r}", where, "choose one of " + ", ".join(PROFILES))
    try:
        return profile_with(base, overrides)
    except InconsistentProfile as error:
        raise Mistaken(str(error), "--set", f"see the timers: muster profile show {name}") from error
