"""The channels between two lock processes over real sockets, TLS and two links, of which one is cut (P12.18)."""

import asyncio
import os
from pathlib import Path

from interconnect_trial import CLUSTER, USUAL, Gate, Keys, Office, until
from muster.core.locks.machine import LockManager
from muster.core.locks.messages import Frame
from muster.core.locks.modes import Mode
from muster.core.locks.recovery import BARRIERS, Kind, Member, Step, life_of
from muster.daemon.locks.host import Holder, Host
from muster.daemon.locks.peers import Peers
from muster.daemon.locks.requests import LockRequest, Unlock
from muster.drivers.certificates.fields import key_pin
from muster.drivers.machine.program_process import Program

SPACE, NAME = "orders", "42"
REGISTRATION = 1 << 40
LIFE = life_of(7, REGISTRATION)
ADDRESSES = ["127.0.0.1:1", "127.0.0.1:2"]  # of both nodes; only the hosts count here
LINES = 20  # grants between two changes


class Client:
    """One that locks and unlocks, again and again."""

    def __init__(self, host: Host) -> None:
        self.host, self.grants = host, 0
        self.others: list[tuple[object, ...]] = []
        program = Program([os.pidfd_open(os.getpid())])
        self.number = host.came(Holder(self, program, "client", os.getpid(), os.getuid()))
        self._ref = 0

    def lock(self) -> None:
        """Ask for it."""
        self._ref += 1
        self.host.ask(self.number, [LockRequest(self._ref, SPACE, NAME, Mode.EX, False, 0)])

    def say(self, line: tuple[object, ...]) -> None:
        """It is told something."""
        loop = asyncio.get_running_loop()
        if line[0] == "granted":
            self.grants += 1
            self._ref += 1
            loop.call_soon(self.host.ask, self.number, [Unlock(self._ref, int(str(line[2])), None)])
        elif line[0] == "done":
            loop.call_soon(self.lock)
        elif line[0] != "blocking":
            self.others.append(line)

    def end(self) -> None:
        """Nothing is to be closed."""


class Process:
    """What a lock process has, without a daemon."""

    def __init__(self, node: int, keys: dict[int, Keys]) -> None:
        self.node, self._key = node, keys[node].key_path
        self.acknowledged: set[tuple[int, int]] = set()
        self.troubles: list[str] = []
        manager = LockManager(node, LIFE)
        manager.follow_spaces([SPACE])
        self.host = Host(manager, self.send, lambda *step: self.acknowledged.add(step), self.troubles.append)
        nodes = {
            str(each): {"name": f"n{each}", "addresses": ADDRESSES, "key": key_pin(known.certificate_pem)}
            for each, known in keys.items()
        }
        settings = {
            "cluster": CLUSTER, "node": node, "incarnation": 7, "profile": USUAL._asdict(), "nodes": nodes,
            "certificate": keys[node].certificate_pem, "authorities": keys[node].authority_pem,
        }  # fmt: skip
        self.peers = Peers(settings, tell=self.troubles.append)

    def send(self, node: int, frames: list[Frame]) -> None:
        """To the other one."""
        self.peers.send(node, frames)

    async def start(self) -> None:
        """Listen, and let others in."""
        await self.peers.start(self._key)
        self.peers.begin(REGISTRATION, self.host)


async def join(processes: list[Process]) -> None:
    """All come into the level, one after the other."""
    roster: dict[int, Member] = {}
    for number, newcomer in enumerate(processes, 1):
        roster = {**roster, newcomer.node: Member(LIFE)}
        for barrier in range(BARRIERS[Kind.JOINING]):
            for process in processes[:number]:
                process.host.told(Step(number, Kind.JOINING, newcomer.node, LIFE, barrier, number, roster))
            for process in processes[:number]:
                await until(lambda: (number, barrier) in process.acknowledged)  # noqa: B023 - waited for at once


def test_p12_18_of_two_links_either_may_be_cut_and_locks_go_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        office = Office(tmp_path / "office")
        keys = {node: office.keys(node) for node in (0, 1)}
        one, other = Process(0, keys), Process(1, keys)
        gates = [Gate(), Gate()]
        try:
            for process in (one, other):
                await process.start()
            for gate, port in zip(gates, one.peers.ports, strict=True):
                await gate.open_to(f"127.0.0.1:{port}")
            other.peers.found({0: tuple(int(gate.address.rpartition(":")[2]) for gate in gates)})
            await until(lambda: "down" not in other.peers.paths(0))
            await join([one, other])
            Client(one.host).lock()  # so it is mastered there
            client = Client(other.host)
            client.lock()

            async def more(count: int) -> None:
                target = client.grants + count
                await until(lambda: client.grants >= target)

            await more(LINES)
            for place, gate in enumerate([*gates, *gates]):
                await gate.cut()
                await more(LINES)
                await gate.open_to(f"127.0.0.1:{one.peers.ports[place % 2]}")
                await until(lambda: "down" not in other.peers.paths(0))
                await more(LINES)
            for gate in gates:
                await gate.cut()
            await until(lambda: not other.peers.incarnations)
            for gate, port in zip(gates, one.peers.ports, strict=True):
                await gate.open_to(f"127.0.0.1:{port}")
            await more(LINES)
            assert client.others == []
        finally:
            for gate in gates:
                await gate.cut()
            for process in (one, other):
                await process.peers.close()

    asyncio.run(scenario())
