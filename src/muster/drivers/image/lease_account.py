"""What the guard tells its daemon of the renewals, for the metrics (SPEC 9.4). Part of the guard's image."""

TELL_US = 1_000_000


class LeaseAccount:
    """Counts cycles of the lease writer between two packets to the daemon."""

    __slots__ = ("_due_us", "_failures", "_margin_us", "_renewals")

    def __init__(self) -> None:
        self._due_us = 0
        self._forget()

    def _forget(self) -> None:
        self._renewals = self._failures = 0
        self._margin_us = -1  # least time that a renewal left before the deadman; -1: there was none

    def renewed(self, margin_us: int) -> None:
        """A renewal succeeded, so long (us) before the deadman would have fired."""
        self._renewals += 1
        self._margin_us = max(0, margin_us) if self._margin_us < 0 else max(0, min(margin_us, self._margin_us))

    def failed(self) -> None:
        """A cycle failed."""
        self._failures += 1

    def packet(self, now_us: int) -> bytes | None:
        """What to tell the daemon now, if that is due; it is kept until `told`."""
        if now_us < self._due_us:
            return None
        self._due_us = now_us + TELL_US
        return f"lease {self._renewals} {self._failures} {self._margin_us}".encode()

    def told(self) -> None:
        """The packet is on its way."""
        self._forget()
