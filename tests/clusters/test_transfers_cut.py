"""A transfer of a group that is cut at each of its commits by the loss of a node: one instance runs, nothing is lost.

In virtual time, with the true core (SPEC 6.7, 6.8, 7.7; P6.2, P6.24, P6.27). Each story cuts the power of the node that
the group leaves, of the one that it goes to, or of a third one; each of them is the master once.
"""

from random import Random

import pytest

from muster.core.effects import RunCommand
from muster.records.services import Definition, TransferService
from muster.records.timing import FAST
from muster.records.units import US_PER_MS
from muster.sim import schedule
from muster.sim.checkers.checkers import Progress, judge
from muster.sim.history import Applied, Disturbed
from muster.sim.world.surroundings import Outcome, Settings
from muster.sim.world.time import US_PER_S
from muster.sim.world.world import World

GROUP = tuple(
    Definition(
        name, ordered=("n0",) if not parent else (), parent=parent, start_command=("start",), stop_command=("stop",),
        recovery_command=("recover",) if name == "disk" else (), notify_command=("notify",) if name == "web" else (),
    )
    for name, parent in (("disk", ""), ("database", "disk"), ("web", "database"), ("mail", "database"))
)  # fmt: skip
COMMITS = 18  # what an undisturbed transfer of the group takes, and a few more
SETTLED_US = 3 * US_PER_S


class Stage(World):
    """Three nodes; commands succeed, each in its own time."""

    def __init__(self, first: int, seed: int) -> None:
        """`first`: the node that boots before the others, and so is the master."""
        super().__init__(Settings(3, FAST, services=GROUP, reboots=0.0), Random(seed))
        for node in range(3):
            self.loop.at(10_000 if node == first else 800_000, self.machines[node].boot)
        self.run_until(SETTLED_US)

    def decide(self, _node: int, _command: RunCommand) -> Outcome:
        """Every command succeeds."""
        return Outcome(int((5 + self.random.random() * 60) * US_PER_MS), True)

    def newest(self) -> Applied:
        """The newest state that any replica has shown."""
        return max((seen for seen in self.history if isinstance(seen, Applied)), key=lambda seen: seen.index)


def place_of(stage: Stage) -> set[tuple[str, int]]:
    """(state, node) of every service."""
    return {(str(service.state), service.node) for service in stage.newest().state.services.values()}


@pytest.mark.parametrize("victim", ["origin", "target", "third"])
@pytest.mark.parametrize("master", [0, 1, 2])
def test_p6_27_a_transfer_that_is_cut_at_any_commit_ends_with_everything_running_once(victim: str, master: int) -> None:
    cuts = 0
    for count in range(1, COMMITS + 1):
        stage = Stage(master, 100 * master + count)
        assert place_of(stage) == {("registered", stage.newest().state.services["disk"].node)}
        origin = stage.newest().state.services["disk"].node
        target = (origin + 1) % 3
        node = {"origin": origin, "target": target, "third": (origin + 2) % 3}[victim]
        stage.perform(schedule.When("commit", "begun", count, schedule.PowerCut(node), node=master))
        stage.perform(schedule.Ask(target, "move", TransferService("disk", f"n{target}")))
        stage.run_until(SETTLED_US + 3 * US_PER_S)
        stage.perform(schedule.Calm())
        progress = Progress(stage.history, 3)
        deadline_us = stage.loop.now_us + 20 * US_PER_S
        while progress.missing() and stage.loop.now_us < deadline_us:
            stage.run_until(stage.loop.now_us + US_PER_S // 2)
        assert not progress.missing(), f"cut at commit {count}: {progress.missing()}"
        assert [found.message for found in judge(stage.history)] == []
        (place,) = place_of(stage)
        assert place[0] == "registered"
        cuts += any(isinstance(seen, Disturbed) and seen.what.startswith("PowerCut") for seen in stage.history)
    assert cuts > COMMITS // 2
