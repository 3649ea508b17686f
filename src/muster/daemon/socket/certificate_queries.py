"""What people must know of certificates: when they end, how far a rotation is (P1.4-P1.7).

Dates, never remaining times, so that an answer changes only when something has changed.
"""

from datetime import UTC, datetime
from typing import Any

from muster.daemon.trust.certificate_ends import date, validity_of
from muster.drivers.certificates.fields import split
from muster.records.database import Database
from muster.records.nodes import NodeConfig, Rotation, fingerprint
from muster.records.numbers import LATEST_S

Document = dict[str, Any]


def describe_node(database: Database, config: NodeConfig) -> Document:
    """`generation`, `certificate` (`ends`, `fingerprint`, `of_present_authority`) or none, `token_ends` or none."""
    found = validity_of(config.certificate)
    certificate = None
    if config.certificate:
        certificate = {
            "ends": date(found.not_after) if found else "unknown",
            "fingerprint": fingerprint(config.certificate),
            "authority": config.issuer or fingerprint(database.cluster.authority),
        }
    ends = config.enrolment and date(datetime.fromtimestamp(min(max(0, config.enrolment.expires_s), LATEST_S), UTC))
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


def _authority(certificate: str) -> Document:
    found = validity_of(certificate)
    return {"fingerprint": fingerprint(certificate), "ends": date(found.not_after) if found else "unknown"}
