"""Deliberate errors, one small function of the core each: the tests of the checkers and of the faults (STYLE: VOPR).

A mutant is in force for the duration of one run, in the process that runs it. If a campaign does not find it, the
faults are too kind or a checker sleeps.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from muster.core import lease, mastership
MUTANTS: dict[str, Any] = {}


@contextmanager
def mutated(name: str | None) -> Iterator[None]:
    """Put the mutant `name` in force; none for `None`."""
    yield
