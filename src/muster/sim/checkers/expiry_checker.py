"""The judge of leases that have run out (P7.30): who counts as dead by that has stopped, and does nothing more."""

from collections.abc import Iterator

from muster.records.registers import ProofKind
from muster.sim.checkers.rule import Checker
from muster.sim.history import Applied, LifeEnded, Observation, Renewed, ServiceBegan


class NothingAfterExpiry(Checker):
    """P7.30, P7.31: no incarnation is taken for dead by expiry while anything of it runs or can still write."""

    def __init__(self) -> None:
        self._ended: set[tuple[int, int]] = set()
        self._expired: set[tuple[int, int]] = set()

    def see(self, seen: Observation) -> Iterator[str]:
        """Keep which incarnations have ended, and which count as dead by expiry; find what these still do (P7.30)."""
        if isinstance(seen, LifeEnded):
            self._ended.add((seen.node, seen.incarnation))
        elif isinstance(seen, Renewed | ServiceBegan):
            if (seen.node, seen.incarnation) in self._expired:
                yield f"n{seen.node} goes on after its lease was taken for run out"
        elif isinstance(seen, Applied):
            yield from self._applied(seen)

    def _applied(self, seen: Applied) -> Iterator[str]:
        for member in seen.state.members.values():
            proof = member.last_proof
            if proof is None or proof.kind is not ProofKind.LEASE_EXPIRED:
                continue
            life = (proof.node, proof.incarnation)
            if life not in self._expired:
                self._expired.add(life)
                if life not in self._ended:
                    yield f"n{proof.node} counts as dead by the expiry of its lease, and it may still write"
