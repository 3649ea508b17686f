"""Certificates that are issued anew: this node's before it expires, all of them when the authority is replaced.

Rules P1.5 to P1.7. Nothing is decided here but when to try: what is committed is the rules' to say, and whatever is
interrupted is tried again.
"""

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress

from muster.core.effects import Reply
from muster.core.node import insight
from muster.core.node.node import Node
from muster.daemon.trust.authority_keys import AuthorityKeys
from muster.daemon.trust.enrolment import Operate, issuing_authority
from muster.daemon.trust.trust import authority_end_s, expected_end_s
from muster.drivers.certificates.certificates import CertificateRefused, Subject
from muster.drivers.certificates.signing import NewAuthority, Reissue, sign
from muster.records.access import NOBODY, Author
from muster.records.nodes import Certified, CertifyNodes, NodeConfig, RotateAuthority, Rotation, fingerprint

RENEWAL_SHARE = 3  # a certificate is renewed when one part in so many of its lifetime is left
BATCH = 16  # certificates in one entry
OPERATION_S = 20.0
LONGEST_PAUSE_S = 3600.0
LOOK_AGAIN_S = 60.0  # people may take a key away, or lay one there, and no entry tells of it
KEY_PAUSE_S = 2.0  # between two rounds of asking for the authority's key
SETTLE_S = 0.2  # what follows closely is looked at together
_FAILURE_SHARE = 20  # a failed renewal is tried again after one part in so many of the lifetime


class Certification:
    """Keeps the certificates of one node's record good. `changes` tells of every commit; `tell_held` is given the
    fingerprints of the authorities whose keys are here, for this node's report (P1.7).
    """

    def __init__(
        self,
        node: Node,
        keys: AuthorityKeys,
        operate: Operate,
        changes: Callable[[], AbstractContextManager[asyncio.Event]],
        note: Callable[[str, str], None],
        tell_held: Callable[[tuple[str, ...]], None],
    ) -> None:
        self._node, self._keys, self._operate, self._changes, self._note = node, keys, operate, changes, note
        self._tell_held = tell_held
        self._asked_s = 0.0
        self._failed = ""

    async def run(self) -> None:
        """Until cancelled: look at every commit that concerns it, and when something is due."""
        concern, due_s = None, 0.0
        with self._changes() as changed:
            while True:
                changed.clear()
                if (found := self._concern()) != concern or time.monotonic() >= due_s:
                    concern = found
                    due_s = time.monotonic() + min(LOOK_AGAIN_S, await self._work())
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), max(0.0, due_s - time.monotonic()))
                await asyncio.sleep(SETTLE_S)

    def _concern(self) -> tuple[object, ...]:
        """What of the replica the work follows from. Most entries leave it as it was; a look reads the home's disk."""
        node, database = self._node, self._node.database
        is_certifying = database.cluster.rotation is Rotation.CERTIFYING
        index = database.index if is_certifying else 0  # every certificate that has come is a reason to go on
        is_member = database.member(node.me).incarnation == node.incarnation
        mine = database.nodes.get(node.me)
        return database.cluster, mine, is_member, insight.master(node), node.is_master, self._keys.kept, index

    async def rotate(self, identity: str, *, restart: bool, timeout_s: float, author: Author) -> Reply | None:
        """Make an authority and begin to replace the present one by it (P1.7). Raises `CertificateRefused`, `OSError`.

        A repeated identity is answered from the record; the authority made for nothing is deleted.
        """
        cluster = self._node.database.cluster
        made = await sign(NewAuthority(cluster.name, cluster.identity))
        authority = made.certificates[0]
        self._keys.keep_fresh(authority, made.key)
        try:
            return await self._operate(identity, RotateAuthority(authority, restart), timeout_s, author)
        finally:
            self._keys.proposed(authority)

    async def _work(self) -> float:
        """Do what is due; how long to wait then, unless something is committed before."""
        node = self._node
        own = node.database.member(node.me)
        if own.incarnation != node.incarnation or insight.master(node) is None:
            return KEY_PAUSE_S
        try:
            pause_s = self._look_for_keys()
            if node.is_master and node.database.cluster.rotation is Rotation.CERTIFYING:
                pause_s = min(pause_s, await self._certify_all())
            return min(pause_s, await self._renew())
        except (CertificateRefused, OSError) as error:
            self._tell("certificate not renewed", str(error))
            return max(1.0, min(60.0, node.database.cluster.certificate_lifetime_s / _FAILURE_SHARE))

    def _look_for_keys(self) -> float:
        """Ask for a key of the authority that is lacking (P1.5)."""
        cluster = self._node.database.cluster
        self._tell_held(self._keys.held(cluster))
        complete = self._keys.holds_all(cluster)
        now_s = time.monotonic()
        if not complete and now_s - self._asked_s < KEY_PAUSE_S:
            return KEY_PAUSE_S - (now_s - self._asked_s)
        self._asked_s = now_s
        self._keys.follow(cluster, tuple(self._node.links.connected))
        return LONGEST_PAUSE_S if complete else KEY_PAUSE_S

    async def _certify_all(self) -> float:
        """As master: have the next certificates issued by the incoming authority, validity as it was (P1.7)."""
        cluster = self._node.database.cluster
        issuer = fingerprint(cluster.incoming)
        left = [c for c in self._node.database.nodes.values() if c.certificate and c.issuer != issuer][:BATCH]
        if left and self._keys.holds(cluster.incoming):
            await self._reissue(cluster.incoming, left, None)
        return KEY_PAUSE_S

    async def _renew(self) -> float:
        """Renew this node's certificate if it is time (P1.6); how long until it is."""
        database = self._node.database
        cluster, config = database.cluster, database.nodes[self._node.me]
        lifetime_s = cluster.certificate_lifetime_s
        end_s = expected_end_s(config.certificate) if config.certificate else None
        authority = issuing_authority(cluster)
        if end_s is None or not self._keys.holds(authority):
            return LONGEST_PAUSE_S
        now_s = time.time()
        due_s = end_s - lifetime_s / RENEWAL_SHARE
        limit_s = authority_end_s(authority) or 0
        if min(now_s + lifetime_s, limit_s) <= end_s + lifetime_s / (2 * RENEWAL_SHARE):
            return min(LONGEST_PAUSE_S, max(1.0, lifetime_s / _FAILURE_SHARE))  # it would gain nothing: not due yet, or
            # the authority itself ends, and status says so
        if now_s < due_s:
            return min(LONGEST_PAUSE_S, max(0.1, due_s - now_s))
        done = await self._reissue(authority, [config], lifetime_s)
        return 1.0 if done else max(1.0, lifetime_s / _FAILURE_SHARE)

    async def _reissue(self, authority: str, configs: list[NodeConfig], lifetime_s: int | None) -> bool:
        cluster = self._node.database.cluster
        named = tuple((Subject(c.node, c.name, cluster.identity), c.certificate) for c in configs)
        answer = await sign(Reissue(authority, self._keys.path(authority), named, lifetime_s))
        certified = tuple(
            Certified(config.node, config.generation, fingerprint(config.certificate), certificate)
            for config, certificate in zip(configs, answer.certificates, strict=True)
        )
        operation = CertifyNodes(certified, fingerprint(authority))
        reply = await self._operate(f"certify-{secrets.token_hex(16)}", operation, OPERATION_S, NOBODY)
        if reply is None or reply.refused:
            self._tell("certificate not renewed", reply.outcome if reply else "no master has decided it in time")
            return False
        self._failed = ""
        return True

    def _tell(self, event: str, text: str) -> None:
        """Note a trouble once, not at every attempt."""
        if text != self._failed:
            self._failed = text
            self._note(event, text)
