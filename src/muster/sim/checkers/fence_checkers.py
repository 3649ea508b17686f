"""The judges of fencing (P7.22-P7.27): what an observer sees of devices, of records and of what follows from them."""

from collections.abc import Iterator

from muster.records.fencing import FencePhase, Fencing
from muster.records.registers import ProofKind
from muster.records.terms import NO_NODE
from muster.sim.checkers.rule import Checker
from muster.sim.history import Applied, FenceCalled, FenceStatus, Observation, Renewed

FRESH_US = 500_000  # a call may go by a read that is so old, and no older


class FencedByRequest(Checker):
    """P7.22, P7.23: an agent turns off only what a committed request names, and never what has booted since."""

    def __init__(self) -> None:
        self._requests: dict[tuple[int, int], Fencing] = {}  # by node and number, as it was asked
        self._began: dict[int, tuple[int, int]] = {}  # node -> newest incarnation, since when the store shows it

    def see(self, seen: Observation) -> Iterator[str]:
        """Keep what was committed and who has booted; judge each call of an agent by that (P7.22, P7.23)."""
        if isinstance(seen, Renewed):  # from the first one on a look at the store can show it
            if self._began.get(seen.node, (0, 0))[0] != seen.incarnation:
                self._began[seen.node] = (seen.incarnation, seen.at_us)
        elif isinstance(seen, Applied):
            for each in seen.state.fencing.values():
                if each.asker != NO_NODE:
                    self._requests.setdefault((each.node, each.number), each)
        elif isinstance(seen, FenceCalled):
            yield from self._called(seen)

    def _called(self, seen: FenceCalled) -> Iterator[str]:
        what = f"n{seen.node} calls {seen.device} ({seen.action}) for request {seen.number} about n{seen.about}"
        request = self._requests.get((seen.about, seen.number))
        if request is None:
            yield f"{what}, which nobody has committed"
        elif (request.asker, request.asker_incarnation) != (seen.node, seen.incarnation):
            yield f"{what}, which is asked of n{request.asker}"
        elif request.phase is not (FencePhase.ON if seen.action == "on" else FencePhase.OFF):
            yield f"{what}, and that asks to turn it {request.phase.word}"
        elif request.incarnation != seen.about_incarnation:
            yield f"{what}, incarnation {seen.about_incarnation}, and that names {request.incarnation}"
        incarnation, since_us = self._began.get(seen.about, (0, 0))
        if seen.action == "off" and incarnation > seen.about_incarnation and since_us < seen.read_us:
            yield f"{what}, though incarnation {incarnation} ran as it looked"
        if seen.at_us - seen.read_us > FRESH_US:
            yield f"{what} by a look that is {(seen.at_us - seen.read_us) // 1000} ms old"


class ProvenByStatus(Checker):
    """P7.24: a death that a fence agent proves was seen by the status of its device, after the request."""

    def __init__(self) -> None:
        self._off: set[tuple[int, int]] = set()  # node and incarnation of which a device has said `off`
        self._index = -1

    def see(self, seen: Observation) -> Iterator[str]:
        """Keep which devices have said that a node is off; judge each proof by a fence agent by that (P7.24)."""
        if isinstance(seen, FenceStatus):
            self._off.add((seen.about, seen.about_incarnation))
        elif isinstance(seen, Applied) and seen.index > self._index:
            self._index = seen.index
            for member in seen.state.members.values():
                proof = member.last_proof
                if proof is None or proof.kind is not ProofKind.FENCE_AGENT or not seen.state.fencing:
                    continue
                told_by_hand = "method" not in proof.detail  # a schedule may say so itself (`schedule.Fence`)
                if not told_by_hand and (proof.node, proof.incarnation) not in self._off:
                    yield f"n{proof.node} is proven dead by its fence agent, and no device has said that it is off"
