"""Units of time: every time of Muster is a whole number, and its name says of what."""

US_PER_MS = 1000


NEVER_US = 1 << 62
