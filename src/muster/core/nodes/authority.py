"""Replacing the cluster's authority at barriers, while everything runs (P1.7, SPEC 1.6).

Theory of operation. Three barriers lie between the old authority alone and the new one alone; each is passed when every
member's report shows that it has applied the entry that began the step, so no member is ever met with a certificate
that it cannot judge; the first and the last also wait until every member has fetched the incoming authority's key, so
that no single disk can take the only key with it that certificates in use depend on:

    trusting     the incoming authority is committed: from its commit on a node accepts certificates of both
    certifying   the master has every node's certificate issued anew, for the key that the node has
    settling     every certificate is of the incoming authority; each node shows its own from the commit on

and then the old one goes. All of it follows from committed records and the reports of this term, so a new master goes
on wherever the last one stopped. A member that dies is forced out and then not waited for; it comes back with what the
store holds.
"""

from collections.abc import Callable, Iterable

from msgspec.structs import replace

from muster.core.draft import Draft, Facts, takes_part
from muster.core.refusal import Refused
from muster.records.members import Member
from muster.records.messages import Report
from muster.records.nodes import AbandonRotation, Cluster, NodeConfig, RotateAuthority, Rotation, fingerprint

_BEGIN = "-----BEGIN CERTIFICATE-----"


def carry_out(operation: RotateAuthority | AbandonRotation, draft: Draft, _facts: Facts) -> str:
    """Begin or abandon a rotation; what will happen, in words. Raises `Refused`."""
    cluster = draft.cluster
    if isinstance(operation, AbandonRotation):
        if not cluster.incoming:
            raise Refused("the authority is not being replaced: there is nothing to abandon")
        if cluster.rotation is not Rotation.TRUSTING or cluster.authority.count(_BEGIN) > 1:
            raise Refused(
                f"the rotation is {cluster.rotation}: certificates of the new authority are in use; let it end"
            )
        draft.put(replace(cluster, incoming="", rotation=Rotation.NONE, rotation_index=0), "rotation abandoned")
        return "the rotation is given up; the present authority stays"
    if cluster.incoming and not operation.restart:
        raise Refused(
            f"the authority is being replaced already ({cluster.rotation}): see `muster authority show`; where the new "
            "authority's key is lost, begin again with --restart"
        )
    if cluster.rotation > Rotation.TRUSTING:
        # Some certificates are of the lost incoming authority already: it stays trusted, in the old one's place.
        cluster = replace(cluster, authority=cluster.authority + cluster.incoming)
    draft.put(
        replace(cluster, incoming=operation.incoming, rotation=Rotation.TRUSTING, rotation_index=draft.index),
        "rotation of the authority begun",
    )
    return "the new authority is known; every node is about to trust it, and to be certified by it"


def advance(draft: Draft, facts: Facts) -> None:
    """Take the rotation to its next step, if every member is ready for it (P1.7)."""
    cluster = draft.cluster
    if not cluster.incoming or cluster.rotation_index > draft.database.index:
        return
    waiting = behind(draft.members.values(), facts.report, cluster)
    match cluster.rotation:
        case Rotation.TRUSTING if not waiting:
            begun = replace(cluster, rotation=Rotation.CERTIFYING, rotation_index=draft.index)
            draft.put(begun, "every member trusts the new authority and has its key")
        case Rotation.CERTIFYING if not uncertified(draft):
            settling = replace(cluster, rotation=Rotation.SETTLING, rotation_index=draft.index)
            draft.put(settling, "every node has a certificate of the new authority")
        case Rotation.SETTLING if not waiting:
            done = replace(cluster, authority=cluster.incoming, incoming="", rotation=Rotation.NONE, rotation_index=0)
            draft.put(done, "the old authority is dropped")
        case _:
            pass


def behind(members: Iterable[Member], report: Callable[[Member], Report | None], cluster: Cluster) -> tuple[int, ...]:
    """The members that have not reported, in this term, that they have applied the entry that began the present step,
    or, outside of the issuing of certificates, that they hold the incoming authority's key (P1.7).
    """
    key = fingerprint(cluster.incoming) if cluster.rotation is not Rotation.CERTIFYING else ""
    found = []
    for member in members:
        said = report(member) if takes_part(member) else None
        if takes_part(member) and (said is None or said.index < cluster.rotation_index or _lacks(said, key)):
            found.append(member.node)
    return tuple(found)


def _lacks(said: Report, key: str) -> bool:
    """Whether a member says which keys it holds, and this one is not among them; older releases do not say."""
    return bool(key) and said.keys is not None and key not in said.keys


def uncertified(draft: Draft) -> list[NodeConfig]:
    """The nodes whose certificate is not of the incoming authority."""
    issuer = fingerprint(draft.cluster.incoming)
    return [config for config in draft.nodes.values() if config.certificate and config.issuer != issuer]
