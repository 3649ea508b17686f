"""What a store holds, as one look shows it: the same of every engine (P11.2, P11.5)."""

from typing import NamedTuple

from muster.drivers.store.identity import StoreIdentity
from muster.records.database import Database
from muster.records.registers import Strip


class StoreRecord(NamedTuple):
    """A store as one look shows it. The registers were read before the journal."""

    header: StoreIdentity
    strip: Strip
    database: Database  # of the newest journal; it may end in an entry that was never committed (P5.1)
