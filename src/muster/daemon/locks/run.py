"""The lock process of a node, executed by its runner while the cluster has lockspaces (P12.16).

It asks its daemon whom to trust, listens for its like and for clients, and registers level 10. What it holds lives as
long as it: when it ends without having left its level, its node fails.
"""

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from muster.client import Barriers
from muster.client.address import SOCKET_FILE as CONTROL_SOCKET
from muster.client.asynchronous import AsyncNotification, AsyncSubsystem, register_async
from muster.client.errors import ClientError
from muster.core.locks.machine import LockManager
from muster.core.locks.recovery import Kind, Step, life_of, step_of
from muster.daemon.locks.asking import first, record_break, stream
from muster.daemon.locks.door import SOCKET_FILE, Door
from muster.daemon.locks.host import Host
from muster.daemon.locks.kernel import KernelSide
from muster.daemon.locks.peers import SEEK_S, Peers, hosts_of
from muster.daemon.locks.showing import Showing
from muster.daemon.socket.access import Gate
from muster.daemon.trust.trust import KEY_FILE
from muster.drivers.certificates.certificates import CertificateRefused
from muster.drivers.machine.kernel_locks import KernelLocks
from muster.records.access import Groups
from muster.records.levels import LOCK_MANAGER_LEVEL
from muster.records.lockspaces import RESERVED

PATIENCE_S = 24 * 3600.0  # for a daemon that is gone: longer than its node would live without one
FIRST_PATIENCE_S = 30.0
LOOK_AGAIN_S = 0.1
DEADLINE_S = 30.0  # for a barrier; beyond, it is named (P3.10), and waits for whoever keeps it from going on
EXIT_BROKEN = 70
SIGNS_OF_LIFE = 4  # in the time after which the runner takes it for hung
KINDS = {"joining": Kind.JOINING, "leaving": Kind.LEAVING, "forced-leaving": Kind.FORCED_LEAVING}

Settings = dict[str, Any]


def step_told(told: AsyncNotification, node: int) -> Step:
    """A notification as the machine takes it; `node`: the number of the node that it is about."""
    life = told.incarnation, told.registration
    kind = KINDS[str(told.kind)]
    return step_of(told.transition, kind, node, life, told.barrier, told.entry, told.members, alone=told.alone)


class Process:
    """All of it."""

    def __init__(self, home: Path, name: str) -> None:
        self._home, self._name = home, name
        self._control = str(home / CONTROL_SOCKET)
        self._settings: Settings = {}
        self._subsystem: AsyncSubsystem | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._told_ports: list[int] = []
        self._hearing: asyncio.Task[None] | None = None
        self.host: Host | None = None

    def tell(self, text: str) -> None:
        """For the log of the node."""
        with contextlib.suppress(OSError):
            print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {self._name} locks: {text}", file=sys.stderr, flush=True)

    async def run(self, stopped: asyncio.Event) -> None:
        """Until the cluster has no lockspaces any more. Raises `ClientError` and others: then the node fails."""
        self._settings = await self._first_settings()
        own = self._settings
        self._peers = peers = Peers(own, tell=self.tell)
        await peers.start(str(self._home / KEY_FILE))
        levels = LOCK_MANAGER_LEVEL
        self._subsystem = await register_async(
            levels.name, levels.number, barriers=Barriers(*levels.barriers), deadline_s=DEADLINE_S, on_loss="fail",
            socket=self._control, reconnect_s=PATIENCE_S,
        )  # fmt: skip
        registration = self._subsystem.registration
        manager = LockManager(own["node"], life_of(own["incarnation"], registration))
        manager.follow_spaces(own["spaces"])
        host = self.host = Host(manager, self._send, self._acknowledge, self.tell)
        locks = KernelLocks(own["name"], own["node"], self._hosts)
        self._kernel = KernelSide(manager, locks, host.settle, self.tell)
        host.drive_kernel = self._kernel.carry_out
        self._kernel.follow(is_on=own["kernel_locks"])
        self._showing = Showing(host, peers, own["node"], self._names, self.tell, self._record_break)
        gate = Gate(self._name, self._groups, lambda _event, text: self.tell(text))
        door = Door(self._home / SOCKET_FILE, host, gate, self._showing.deal_with, self._welcome, self._daemon)
        gc.collect()
        gc.freeze()
        peers.begin(registration, host)
        following = self._spawn(self._follow_settings())
        seeking = self._spawn(self._seek())
        door.open()
        hearing = asyncio.ensure_future(self._hear(self._subsystem))
        stopping = asyncio.ensure_future(stopped.wait())
        await asyncio.wait({hearing, stopping, following, seeking}, return_when=asyncio.FIRST_COMPLETED)
        for task in (following, seeking, hearing):
            if task.done() and (error := task.exception()) is not None:
                raise error
        await self._kernel.unused()  # the kernel stops all lockspaces when this process ends
        if not stopped.is_set():
            await stopped.wait()  # its node has left: whatever is left of it ends with the node
        door.close()
        await self._subsystem.deregister()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        return task

    # ---- the daemon

    async def _first_settings(self) -> Settings:
        deadline_s = time.monotonic() + FIRST_PATIENCE_S
        while True:
            try:
                return await first(self._control, "lock_manager")
            except (OSError, ClientError):
                if time.monotonic() >= deadline_s:
                    raise
                await asyncio.sleep(LOOK_AGAIN_S)

    async def _follow_settings(self) -> None:
        """Hear of changes for as long as this process lives, over daemons that come and go."""
        while True:
            self._told_ports = self._peers.ports
            hearing = self._hearing = self._spawn(self._hear_settings(self._told_ports))
            await asyncio.wait({hearing})
            self._tasks.discard(hearing)
            error = None if hearing.cancelled() else hearing.exception()
            if error is not None and not isinstance(error, OSError | ClientError):
                raise error
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _hear_settings(self, ports: list[int]) -> None:
        """Say where this process listens, and hear of changes while the daemon lives."""
        async with contextlib.aclosing(stream(self._control, "lock_manager", ports=ports)) as settings:
            async for each in settings:
                self._take(each)

    def _take(self, settings: Settings) -> None:
        assert self.host is not None
        self._settings = settings
        self.host.follow_spaces(settings["spaces"])
        self._kernel.follow(is_on=settings["kernel_locks"])
        try:
            self._peers.follow(settings)
        except CertificateRefused as error:
            self.tell(f"the certificate of this node is refused: {error}")

    async def _seek(self) -> None:
        """Find who is in the level and not connected; and where this process listens by now."""
        assert self.host is not None
        me = self._settings["node"]
        while True:
            await asyncio.sleep(SEEK_S)
            if self._peers.ports != self._told_ports and self._hearing is not None:
                self._hearing.cancel()  # an address could be had at last, so there is another port to be told
            roster = self.host.manager.recovery.roster
            missing = [node for node in roster if node != me and node not in self._peers.incarnations]
            if not missing:
                continue
            with contextlib.suppress(OSError, ClientError):
                answer = await first(self._control, "lock_channels")
                self._peers.found({int(each): tuple(ports) for each, ports in answer["ports"].items()})

    async def _hear(self, subsystem: AsyncSubsystem) -> None:
        """What this level is told, until its node has left."""
        assert self.host is not None
        async for told in subsystem:
            numbers = {each["name"]: int(node) for node, each in self._settings["nodes"].items()}
            while told.node not in numbers:  # it was added just now, and the settings are on their way
                await asyncio.sleep(LOOK_AGAIN_S)
                numbers = {each["name"]: int(node) for node, each in self._settings["nodes"].items()}
            self.host.told(step_told(told, numbers[told.node]))

    def _acknowledge(self, transition: int, barrier: int) -> None:
        if self._subsystem is not None:
            task = self._spawn(self._subsystem.acknowledge(transition, barrier))
            task.add_done_callback(self._tasks.discard)

    # ---- what others ask of it

    def _send(self, node: int, frames: list[Any]) -> None:
        self._peers.send(node, frames)

    async def _record_break(self, space: str, name: str, by: str) -> None:
        await record_break(self._control, space, name, by)

    def _hosts(self) -> dict[int, str]:
        """Where each node is, for its kernel: at the host of its first address."""
        return {int(node): hosts_of(each["addresses"])[0] for node, each in self._settings["nodes"].items()}

    def _names(self) -> dict[int, str]:
        return {int(node): each["name"] for node, each in self._settings["nodes"].items()}

    def _groups(self) -> Groups:
        return Groups(*self._settings["groups"])

    def _daemon(self) -> int:
        return int(self._settings.get("daemon", 0))  # a daemon of an earlier release does not say

    def _welcome(self) -> dict[str, object]:
        own = self._settings
        spaces = [space for space in own["spaces"] if space != RESERVED]  # those of programs
        return {"node": self._name, "incarnation": own["incarnation"], "spaces": spaces}


async def keep_showing_life(descriptor: int, pause_s: float) -> None:
    """Tell the runner that the loop turns."""
    while True:
        with contextlib.suppress(BlockingIOError):
            os.write(descriptor, b".")
        await asyncio.sleep(pause_s)


def end_of(context: dict[str, Any]) -> None:
    """What a defect means: who cannot go on holds nothing that others could be told of, so its node fails (P12.16)."""
    error = context.get("exception")
    text = "".join(traceback.format_exception(error)) if error is not None else ""
    with contextlib.suppress(OSError):
        print(f"locks: the process cannot go on: {context['message']}: {error!r}\n{text}", file=sys.stderr, flush=True)
    os._exit(EXIT_BROKEN)


async def serve(home: Path, name: str, alive: int, pause_s: float) -> None:
    """Run until it is told to end."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: end_of(context))
    showing_life = asyncio.ensure_future(keep_showing_life(alive, pause_s))
    try:
        await Process(home, name).run(stopped)
    finally:
        showing_life.cancel()


def main() -> None:
    """Entry point of the lock process."""
    parser = argparse.ArgumentParser(prog="muster.daemon.locks.run")
    for option in ("--home", "--node", "--alive", "--silence"):
        parser.add_argument(option, required=True)
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # they come from a command that signals all it can
    gc.set_threshold(100_000, 50, 100)  # locks hold no circles, and a walk over all of them is a pause
    alive = int(options.alive)
    os.set_blocking(alive, False)
    pause_s = int(options.silence) / 1000 / SIGNS_OF_LIFE
    asyncio.run(serve(Path(options.home), options.node, alive, pause_s))


if __name__ == "__main__":
    main()
