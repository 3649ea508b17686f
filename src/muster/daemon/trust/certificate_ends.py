"""When certificates end, and who must do something about it: long before anything fails (P1.4-P1.7).

Dates, never remaining times, so that what is told stays the same until something has changed.
"""

from datetime import datetime
from functools import lru_cache

from muster.drivers.certificates.fields import NoCertificate, Validity, split, validity
from muster.records.database import Database
from muster.records.nodes import NodeConfig

WARNING_SHARE = (
    4  # a node's certificate is renewed with a third left: with a quarter left, something keeps it from that
)
AUTHORITY_SHARE = 5  # of the authority's lifetime: long enough to plan for it

Advice = tuple[str, str]  # what is so, and the command that helps


def certificates_that_end(database: Database, now_s: float, me: int, *, holds_key: bool) -> list[Advice]:
    """What of keys and certificates needs a person. `now_s` is the time of day, in seconds since 1970."""
    cluster = database.cluster
    found = [advice for each in split(cluster.authority) if (advice := _of_authority(each, now_s))]
    if not holds_key:
        words = f"{database.name_of(me)} has not got the authority's key: it cannot renew its certificate"
        found.append((words, "muster authority show"))
    configs = sorted(database.nodes.values(), key=lambda config: config.node)
    return found + list(filter(None, (_of_node(each, now_s, cluster.certificate_lifetime_s) for each in configs)))


def _of_authority(certificate: str, now_s: float) -> Advice | None:
    found = validity_of(certificate)
    if found is None:
        return None
    lifetime_s = (found.not_after - found.not_before).total_seconds()
    if found.not_after.timestamp() - now_s > lifetime_s / AUTHORITY_SHARE:
        return None
    return f"the authority's certificate ends on {date(found.not_after)}: replace it", "muster authority rotate"


def _of_node(config: NodeConfig, now_s: float, lifetime_s: int) -> Advice | None:
    found = validity_of(config.certificate)
    if found is None:
        return None
    left_s = found.not_after.timestamp() - now_s
    if left_s <= 0:
        again = f"muster node token {config.name}, then muster enrol on its machine"
        return f"the certificate of {config.name} ended on {date(found.not_after)}", again
    if left_s > lifetime_s / WARNING_SHARE:
        return None
    words = f"the certificate of {config.name} ends on {date(found.not_after)} and was not renewed"
    return words, f"boot {config.name}, or see its log"


@lru_cache(maxsize=1024)
def validity_of(certificate: str) -> Validity | None:
    """From when until when a certificate is valid; None where there is none that can be read."""
    try:
        return validity(certificate) if certificate else None
    except NoCertificate:
        return None


def date(moment: datetime) -> str:
    """A moment, as it is shown."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
