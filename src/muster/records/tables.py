"""Tables that have one row for each member of a union: what is forgotten fails when the table is loaded."""

from collections.abc import Iterable
from types import UnionType
from typing import get_args


def members_of(union: UnionType) -> tuple[type, ...]:
    """The types of a union, in their order."""
    return get_args(union)


def check_rows(table: str, rows: Iterable[type], wanted: Iterable[type]) -> None:
    """Raise `TypeError` unless `table` has exactly one row for each type in `wanted`."""
    found, expected = list(rows), list(wanted)
    lacking = [kind.__name__ for kind in expected if kind not in found]
    unknown = [kind.__name__ for kind in found if kind not in expected]
    if lacking or unknown or len(set(found)) < len(found):
        what = [f"has no row for {', '.join(lacking)}"] if lacking else []
        what += [f"has rows for {', '.join(unknown)}, which nothing knows"] if unknown else []
        raise TypeError(f"{table} {' and '.join(what) or 'has two rows for one kind'}: each kind has its row there")
