"""What people must know of certificates: when they end, who needs help, how far a rotation is (P1.4-P1.7).

Dates, never remaining times, so that an answer changes only when something has changed.
"""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from muster.drivers.certificates.fields import NoCertificate, Validity, split, validity
from muster.records.database import Database
from muster.records.nodes import NodeConfig, Rotation, fingerprint
from muster.records.numbers import LATEST_S

WARNING_SHARE = (
    4  # a node's certificate is renewed with a third left: with a quarter left, something keeps it from that
)
AUTHORITY_SHARE = 5  # of the authority's lifetime: long enough to plan for it

Document = dict[str, Any]


def describe_node(database: Database, config: NodeConfig) -> Document:
    """`generation`, `certificate` (`ends`, `fingerprint`, `of_present_authority`) or none, `token_ends` or none."""
    found = _validity(config.certificate)
    certificate = None
    if config.certificate:
        certificate = {
            "ends": _date(found.not_after) if found else "unknown",
            "fingerprint": fingerprint(config.certificate),
            "authority": config.issuer or fingerprint(database.cluster.authority),
        }
    ends = config.enrolment and _date(datetime.fromtimestamp(min(max(0, config.enrolment.expires_s), LATEST_S), UTC))
    return {"generation": config.generation, "certificate": certificate, "token_ends": ends}


def describe_authority(database: Database, waiting: tuple[int, ...], *, holds_key: bool) -> Document:
    """The answer to `authority`: `present`, `incoming`, `step`, `waiting_for` (as the master sees it), `holds_key`."""
    cluster = database.cluster
    issuer = fingerprint(cluster.incoming) if cluster.incoming else ""
    left = [c.name for c in database.nodes.values() if cluster.incoming and c.certificate and c.issuer != issuer]
    return {
        "present": [_authority(each) for each in split(cluster.authority)],
        "incoming": _authority(cluster.incoming) if cluster.incoming else None,
        "step": str(cluster.rotation),
        "waiting_for": [database.name_of(node) for node in waiting],
        "not_yet_certified": sorted(left) if cluster.rotation is Rotation.CERTIFYING else [],
        "certificate_lifetime_s": cluster.certificate_lifetime_s,
        "holds_key": holds_key,
    }


def warnings(database: Database, now_s: float, me: int, *, holds_key: bool) -> list[str]:
    """What needs somebody's attention, long before anything fails, each with the command that helps."""
    cluster = database.cluster
    found = [text for each in split(cluster.authority) if (text := _of_authority(each, now_s))]
    if cluster.incoming:
        found.append(f"the authority is being replaced ({cluster.rotation}): muster authority show")
    if not holds_key:
        found.append(f"{database.name_of(me)} has not got the authority's key: it cannot renew its certificate")
    configs = sorted(database.nodes.values(), key=lambda config: config.node)
    return found + list(filter(None, (_of_node(each, now_s, cluster.certificate_lifetime_s) for each in configs)))


def _of_authority(certificate: str, now_s: float) -> str:
    found = _validity(certificate)
    if found is None:
        return ""
    lifetime_s = (found.not_after - found.not_before).total_seconds()
    if found.not_after.timestamp() - now_s > lifetime_s / AUTHORITY_SHARE:
        return ""
    return f"the authority's certificate ends on {_date(found.not_after)}: replace it: muster authority rotate"


def _of_node(config: NodeConfig, now_s: float, lifetime_s: int) -> str:
    found = _validity(config.certificate)
    if found is None:
        return ""
    left_s = found.not_after.timestamp() - now_s
    if left_s <= 0:
        again = f"muster node token {config.name}, then muster enrol on its machine"
        return f"the certificate of {config.name} ended on {_date(found.not_after)}: {again}"
    if left_s > lifetime_s / WARNING_SHARE:
        return ""
    return (
        f"the certificate of {config.name} ends on {_date(found.not_after)} and was not renewed: boot {config.name}, "
        "or see its log"
    )


def _authority(certificate: str) -> Document:
    found = _validity(certificate)
    return {"fingerprint": fingerprint(certificate), "ends": _date(found.not_after) if found else "unknown"}


@lru_cache(maxsize=1024)
def _validity(certificate: str) -> Validity | None:
    try:
        return validity(certificate) if certificate else None
    except NoCertificate:
        return None


def _date(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
