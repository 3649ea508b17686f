"""The store by itself: what a commit, an election and a read of all registers cost, with nobody else at work.

The mastership machine of the core (`Tenure`) is driven exactly as the daemon drives it, by the same store engine.
"""

import asyncio
import itertools
import time
from collections.abc import Callable
from pathlib import Path

from bench.figures import Measurement
from bench.scales import Scale
from muster.core.effects import AppendFrame, Effect, ReadJournal, ReadStrip, WriteCheckpoint, WriteClaim
from muster.core.entries import apply
from muster.core.inputs import JournalRead, StoreRefused
from muster.core.mastership.machine import Became, Compact, Decided, Withdrawn
from muster.core.mastership.tenure import Outcome, Tenure, patience_of
from muster.dev.development_cluster import create
from muster.drivers.store.disk.store import DiskStore
from muster.drivers.store.failures import JournalFull
from muster.records.configuration import Operation
from muster.records.database import Database, Entry, encode_entry
from muster.records.levels import NodeState
from muster.records.members import Member
from muster.records.terms import NO_TERM
from muster.records.timing import FAST

INCARNATION = 1
ELECTIONS_SHARE = 10  # one election for so many commits
CASE = "3 nodes"


def measure(scale: Scale, directory: Path, measurement: Measurement) -> None:
    """Commits, elections and reads of the strip by one node, in a store of their own."""
    cluster = create(directory / "cluster", 3, "fast")
    try:
        asyncio.run(_measure(cluster.directory / "store", scale.store_runs, measurement))
    finally:
        cluster.remove()


async def _measure(path: Path, runs: int, measurement: Measurement) -> None:
    store = DiskStore(path, 0)
    try:
        measurement.add(CASE, "direct_io", float(store.direct))
        for _ in range(runs):
            began_ns = time.perf_counter_ns()
            await store.read_strip()
            measurement.add(CASE, "strip_read_ms", _elapsed_ms(began_ns))
        driver = await _Driver.begin(store)
        for _ in range(max(1, runs // ELECTIONS_SHARE)):
            began_ns = time.perf_counter_ns()
            await driver.elect()
            measurement.add(CASE, "election_ms", _elapsed_ms(began_ns))
            await driver.commit()  # the first one after an election may find caches cold; it counts all the same
            await driver.abdicate()
        await driver.elect()
        for _ in range(runs):
            began_ns = time.perf_counter_ns()
            await driver.commit()
            measurement.add(CASE, "commit_ms", _elapsed_ms(began_ns))
    finally:
        await store.close()


def _elapsed_ms(began_ns: int) -> float:
    return (time.perf_counter_ns() - began_ns) / 1e6


def _now_us() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


class _Driver:
    """One node's mastership on a real store."""

    def __init__(self, store: DiskStore, tenure: Tenure, numbers: Callable[[], int]) -> None:
        self._store, self._tenure, self._number = store, tenure, numbers
        self._database: Database | None = None

    @classmethod
    async def begin(cls, store: DiskStore) -> "_Driver":
        """A node that has just booted and claims nothing."""
        own = (await store.read_strip()).claims[0]
        assert own is not None, "a fresh store has valid registers"
        numbers = itertools.count(1)
        tenure = Tenure(own, INCARNATION, 1000, numbers, patience_of(FAST))
        driver = cls(store, tenure, lambda: next(numbers))
        tenure.start(_now_us())
        await driver._until(Withdrawn)
        return driver

    async def elect(self) -> None:
        """From the read that allows the claim to the committed adoption."""
        strip = await self._store.read_strip()  # begun after every own write was durable, so it may be judged
        self._tenure.claim(strip, _now_us())
        await self._until(Became)
        self._database = self._tenure.adopted

    async def abdicate(self) -> None:
        """Give the mastership up."""
        self._tenure.abdicate(_now_us())
        await self._until(Withdrawn)

    async def commit(self) -> None:
        """One entry of an ordinary size: a member's state and a remembered operation."""
        database = self._database
        assert database is not None, "it commits after an election"
        index = database.index + 1
        member = Member(1, NodeState.JOINED, index)
        operation = Operation(f"{index:032x}", index, "service s1 is registered and will be started")
        entry = Entry(index, self._tenure.state.term, "n1: joining complete, joined", (member, operation))
        self._tenure.propose(encode_entry(entry), _now_us())
        await self._until(Decided)
        apply(database, entry)

    async def _until(self, kind: type[Became | Decided | Withdrawn]) -> None:
        """Carry effects out until the machine has come to an outcome of this kind."""
        while True:
            effects, outcomes = self._tenure.drain()
            for effect in effects:
                await self._carry_out(effect)
            for outcome in outcomes:
                if isinstance(outcome, kind):
                    return
                self._take(outcome)
            if not effects and not outcomes:
                raise AssertionError(f"the mastership machine waits for nothing, and {kind.__name__} has not come")

    def _take(self, outcome: Outcome) -> None:
        if isinstance(outcome, Compact) and self._database is not None:
            self._tenure.compact(self._database, _now_us())
        else:
            raise AssertionError(f"unexpected outcome of the mastership machine: {outcome}")

    async def _carry_out(self, effect: Effect) -> None:
        tenure, store = self._tenure, self._store
        match effect:
            case ReadStrip():
                strip = await store.read_strip()
                tenure.read(strip, lambda _node, _incarnation: False, _now_us())
            case WriteClaim(claim=claim):
                await store.write_claim(claim)
                tenure.done(_now_us())
            case WriteCheckpoint(mark=mark, checkpoint=checkpoint):
                await store.write_checkpoint(mark, checkpoint)
                tenure.done(_now_us())
            case ReadJournal(operation=operation, owner=owner, mark=mark):
                image = await store.read_journal(owner, mark)
                tenure.journal_read(JournalRead(operation, image.checkpoint, image.frames), 0, NO_TERM, _now_us())
            case AppendFrame(operation=operation, mark=mark, number=number, frame=frame):
                try:
                    await store.append_frame(mark, number, frame)
                except JournalFull as error:
                    tenure.refused(StoreRefused(operation, "full", str(error)), _now_us())
                else:
                    tenure.done(_now_us())
            case _:
                raise AssertionError(f"the mastership machine wants {effect}")
