"""The stops of a node that ends by itself: no master has answered, so nobody commits them (P4.12; SPEC 3.4).

Theory of operation. From its first moment the runner takes nothing but stops, whoever asks: a master that appears
meanwhile cannot have this node start anything again. Then the runner's inventory says what may run here, and each of
that is stopped by its own command within its own limits, children before their parents, as many of one parent's
children at a time as its group allows. A stop that fails holds up nothing: the guard ends what is left, and nobody
starts anything of it elsewhere before that is proven. The cluster is told of none of it; the proof of this node's end
says all.
"""

import asyncio
from collections.abc import Callable

from muster.core.services.commands import last_stop
from muster.drivers.runner_client import RunnerClient, RunnerLost
from muster.records.database import Database
from muster.records.services import CommandState, Definition


def may_run(command: CommandState) -> bool:
    """Whether something of the service may run after this, its newest command."""
    match command.action:
        case "start":
            return command.succeeded or not command.finished
        case "stop":
            return not command.succeeded
        case "recovery":
            return not command.finished
        case _:
            return False


class LastStops:
    """Stops all that a node runs. `database` is the node's replica, as far as it knows."""

    def __init__(
        self, runner: RunnerClient, database: Database, node: int, incarnation: int, note: Callable[[str, str], None]
    ) -> None:
        self._runner, self._database = runner, database
        self._node, self._incarnation, self._note = node, incarnation, note
        self.left: dict[str, CommandState] = {}  # what is not known to have ended, by its newest command
        self._stopping: dict[str, int] = {}  # service -> generation of the stop at work
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Until nothing is left, or all of it has had its stop; the node may then end."""
        try:
            commands = await self._runner.retire()
        except RunnerLost:
            return  # the guard ends the node
        self.left = {each.service: each for each in commands if may_run(each)}
        self._stopping = {
            each.service: each.generation for each in self.left.values() if each.action == "stop" and not each.finished
        }
        if self.left:
            self._note("stopping alone", f"it stops {', '.join(sorted(self.left))}, without the cluster")
        while self.left:
            self._changed.clear()
            for name in self._due():
                self._stop(name)
            await self._changed.wait()

    def ended(self, command: CommandState) -> None:
        """The runner tells of the end of a command."""
        if command.action != "stop" or self._stopping.get(command.service) != command.generation:
            return
        if not command.succeeded:
            self._note("stop failed", f"{command.service}: {command.detail}; it ends with the node")
        del self._stopping[command.service]
        self.left.pop(command.service, None)
        self._changed.set()

    def _definition(self, name: str) -> Definition | None:
        service = self._database.services.get(name)
        return service.definition if service is not None else None

    def _due(self) -> list[str]:
        """What may be stopped now: whose children have ended, and whose parent lets one more of them stop."""
        parents = {name: self._parent(name) for name in self.left}
        at_work = [parents[name] for name in self._stopping if name in parents]
        due = []
        for name in sorted(self.left):
            if name in self._stopping or name in parents.values():
                continue
            parent = self._definition(parents[name])
            if parent is None or not parent.siblings or at_work.count(parents[name]) < parent.siblings:
                due.append(name)
                at_work.append(parents[name])
        return due

    def _parent(self, name: str) -> str:
        definition = self._definition(name)
        return definition.parent if definition is not None else ""

    def _stop(self, name: str) -> None:
        generation = self.left[name].generation + 1
        self._stopping[name] = generation
        self._runner.run_last(last_stop(name, generation, self._database, self._node, self._incarnation))
