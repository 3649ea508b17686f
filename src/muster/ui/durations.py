"""Durations on the command line, as `90s`, `30m` or `2h`."""

import click

from muster.records.durations import duration_of

MAXIMUM_MS = 366 * 24 * 60 * 60 * 1000


class Duration(click.ParamType[int]):
    """Milliseconds of a duration with its unit."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The duration in milliseconds; a usage error for anything else."""
        if isinstance(value, int):
            return value
        duration_ms = duration_of(value)
        if duration_ms is None or not 0 < duration_ms <= MAXIMUM_MS:
            self.fail(f"{value!r} is no duration: write it with its unit, as 90s, 30m or 2h", param, ctx)
        return duration_ms


duration_option = click.option(
    "--for", "duration_ms", type=Duration(), default=0, metavar="DURATION", help="It ends by itself then, as 2h or 30m."
)
