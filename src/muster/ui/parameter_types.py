"""What arguments and options may be, beyond what click knows; anything else is a usage error (SPEC 7.8)."""

import math
import os
from typing import Any

import click

from muster.records.names import NAME, NAME_RULE, shown


class Identity(click.ParamType[str]):
    """What somebody calls a change."""

    name = "ID"

    def convert(self, value: str, parameter: click.Parameter | None, context: click.Context | None) -> str:
        """The text as it is, if it can be one."""
        if not NAME.fullmatch(value):
            self.fail(f"{shown(value)} is no identity: write {NAME_RULE}", parameter, context)
        return value


class Seconds(click.FloatRange):
    """A number of seconds; what is no number at all is in no range either."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; a usage error for anything else."""
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is no number", param, ctx)
        return seconds


class SomePath(click.Path):
    """A path that is not empty, as that of a variable that is not set would be."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """The path as it was given; an empty one is refused here, in words."""
        if value in {"", b""}:
            self.fail("it is empty: give a path, or leave the option out", param, ctx)
        return super().convert(value, param, ctx)
