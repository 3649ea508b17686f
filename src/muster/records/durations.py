"""Durations as people write them, `500ms`, `60s`, `2m` or `1h`: to milliseconds, and back."""

import re

UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)\s*(ms|s|m|h)")


def duration_of(value: object) -> int | None:
    """Milliseconds of a duration as `"500ms"`, `"60s"`, `"2m"` or `"1h"`; None where it is none."""
    found = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    return round(float(found.group(1)) * UNITS_MS[found.group(2)]) if found else None


def duration_text(milliseconds: int) -> str:
    """The shortest exact text of a duration, as a service file takes it."""
    for unit in ("h", "m", "s"):
        if milliseconds % UNITS_MS[unit] == 0:
            return f"{milliseconds // UNITS_MS[unit]}{unit}"
    return f"{milliseconds}ms"
