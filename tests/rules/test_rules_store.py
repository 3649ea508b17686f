"""What the store owes the mastership, P2.6 and P2.9, on a real one; who claims first, P2.10 (docs/PROTOCOL.md)."""

import asyncio
from pathlib import Path

import pytest

from core_cluster import CoreCluster, joined_cluster
from disk_trials import begin, claim_of, damage, new_store, read_bytes, run_with
from muster.core.effects import AppendFrame, WriteClaim
from muster.drivers.store.disk.file import DiskFile, open_store
from muster.drivers.store.disk.journal import scan_journal
from muster.drivers.store.disk.registers import RegisterReader
from muster.drivers.store.disk.store import DiskStore, open_header
from muster.drivers.store.engine import StoreEffect, StoreOutcome
from muster.drivers.store.failures import ForeignWrite, JournalUnreadable, StoreFailed
from muster.records.registers import ClaimFlag, Mark, RegisterKind
from muster.records.terms import Term
from muster.records.timing import FAST


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small store with scope `host`."""
    return new_store(tmp_path / "store")


def frames_read(path: Path, mark: Mark) -> int | None:
    """How many frames the journal of node 1 shows; None if it is unreadable."""
    file, header = open_store(str(path), writable=False)
    with file:
        try:
            return len(scan_journal(file, header, 1, mark).image.frames)
        except JournalUnreadable:
            return None


def test_p2_9_a_half_whose_overwriting_has_begun_is_unreadable_never_shorter(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = DiskFile.write
    seen: list[int | None] = []

    async def scenario(store: DiskStore) -> None:
        old = await begin(store, 1, 0, b"checkpoint")
        for number in range(3):
            await store.append_frame(old, number, bytes([number]) * 2000)
        await begin(store, 1, 1, b"second", number=3, generation=2)

        def watched(self: DiskFile, offset: int, data: bytes) -> None:
            for landed in range(0, len(data), 512):  # sector by sector, as a device may do it
                write(self, offset + landed, data[landed : landed + 512])
                seen.append(frames_read(path, old))

        with monkeypatch.context() as patch:
            patch.setattr(DiskFile, "write", watched)
            await store.write_checkpoint(Mark(Term(4, 1), 0, 3), b"third" * 300)

    run_with(path, 1, scenario)
    assert len(seen) > 10
    assert set(seen) == {3, None}
    assert seen.count(3) == 1  # the first head is gone, the second is not yet
    assert seen[0] == 3


def test_p2_9_a_reader_looks_at_the_heads_again_after_the_frames(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = open_header(str(path))
    read = DiskFile.read_around_damage

    async def scenario(store: DiskStore) -> None:
        mark = await begin(store, 1, 0, b"checkpoint" * 200)
        await store.append_frame(mark, 0, b"frame")
        assert frames_read(path, mark) == 1
        heads = [header.region_offset(1, 0, copy) for copy in range(2)]

        def raced(self: DiskFile, offset: int, length: int) -> bytes:
            content = read(self, offset, length)
            for head in heads:  # the overwriting begins as soon as anything has been read
                if offset <= head < offset + length:
                    damage(path, head, bytes(512))
            return content

        with monkeypatch.context() as patch:
            patch.setattr(DiskFile, "read_around_damage", raced)
            assert frames_read(path, mark) is None

    run_with(path, 1, scenario)


def test_p2_9_every_write_is_refused_if_the_own_register_holds_what_this_process_did_not_write(path: Path) -> None:
    header = open_header(str(path))

    async def scenario(store: DiskStore) -> None:
        mark = await begin(store, 1, 0, b"checkpoint")
        await store.append_frame(mark, 0, b"frame")
        places = [header.register_offset(RegisterKind.CLAIM, 1, copy) for copy in range(2)]
        own = [read_bytes(path, place, header.sector_bytes) for place in places]

        async def clone(other: DiskStore) -> None:
            """A second process under the same name writes its claim."""
            claim = (await other.read_strip()).claims[1]
            assert claim is not None
            await other.write_claim(claim_of(1, claim.stamp.sequence + 1, mark, number=9, incarnation=6))

        second = DiskStore(str(path), 1)
        try:
            await clone(second)
        finally:
            await second.close()
        before = read_bytes(path, 0, header.total_bytes)
        with pytest.raises(ForeignWrite):
            await store.append_frame(mark, 1, b"another")
        with pytest.raises(ForeignWrite):
            await store.write_checkpoint(Mark(Term(3, 1), 1, 2), b"next")
        with pytest.raises(ForeignWrite):
            await store.write_claim(claim_of(1, 99, mark))
        assert read_bytes(path, 0, header.total_bytes) == before
        for place, data in zip(places, own, strict=True):
            damage(path, place, data)
        await store.append_frame(mark, 1, b"another")  # what it wrote itself is there again

    run_with(path, 1, scenario)


# ---- P2.6 ------------------------------------------------------------------------------------------------------------


async def carried_out(store: DiskStore, effect: StoreEffect) -> StoreOutcome:
    """The answer to an effect, as the daemon gets it."""
    answered: asyncio.Future[StoreOutcome] = asyncio.get_running_loop().create_future()
    store.begin(effect, answered.set_result)
    assert not answered.done()
    return await answered


def test_p2_6_an_append_is_answered_by_claims_read_after_the_frame_was_durable(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, read = DiskFile.write, DiskFile.read_around_damage
    order: list[str] = []

    def noted_write(self: DiskFile, offset: int, data: bytes) -> None:
        write(self, offset, data)
        order.append("written")

    def noted_read(self: DiskFile, offset: int, length: int) -> bytes:
        order.append("read")
        return read(self, offset, length)

    async def scenario(store: DiskStore) -> None:
        mark = await begin(store, 1, 0, b"checkpoint")
        other = DiskStore(str(path), 0)
        try:
            own = (await other.read_strip()).claims[0]
            assert own is not None
            higher = claim_of(0, own.stamp.sequence + 1, own.mark, number=9)
            await other.write_claim(higher)
        finally:
            await other.close()
        with monkeypatch.context() as patch:
            patch.setattr(DiskFile, "write", noted_write)
            patch.setattr(DiskFile, "read_around_damage", noted_read)
            claims = await carried_out(store, AppendFrame(1, mark, 0, b"frame"))
        assert isinstance(claims, tuple)
        assert higher in claims
        assert order == ["read", "written", "written", "read"]  # the own register; copy A; copy B; all claims
        assert frames_read(path, mark) == 1

    run_with(path, 1, scenario)


def test_p2_6_claims_that_cannot_be_read_after_the_append_decide_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(store: DiskStore) -> None:
        mark = await begin(store, 1, 0, b"checkpoint")

        def broken(self: RegisterReader) -> tuple[()]:
            raise StoreFailed("the disk does not answer")

        with monkeypatch.context() as patch:
            patch.setattr(RegisterReader, "read", broken)
            assert await carried_out(store, AppendFrame(1, mark, 0, b"frame")) == ()
        assert frames_read(path, mark) == 1

    run_with(path, 1, scenario)


# ---- P2.10 -----------------------------------------------------------------------------------------------------------


def claims_at_us(cluster: CoreCluster, since_us: int) -> list[tuple[int, int]]:
    """(when, node) of each claim begun since."""
    return [
        (item.now_us, item.node)
        for item in cluster.history
        if isinstance(item.effect, WriteClaim)
        and item.effect.claim.flag is ClaimFlag.CLAIMING
        and item.now_us >= since_us
    ]


def test_p2_10_the_best_candidate_claims_at_once_and_spares_the_others_a_duel() -> None:
    cluster = joined_cluster(4)
    cluster.run(1000)
    since_us = cluster.now_us
    cluster.kill(0)
    cluster.until("there is a master", cluster.masters)
    assert cluster.master == 1  # the lowest id of the joined ones
    cluster.run(2000)
    assert [node for _, node in claims_at_us(cluster, since_us)] == [1]


def test_p2_10_each_further_candidate_claims_a_stagger_later_if_the_mastership_is_still_free() -> None:
    waited_us = {}
    for first_lives in (True, False):
        cluster = joined_cluster(4)
        cluster.run(1000)
        if not first_lives:
            cluster.pause_daemon(1)  # it lives, and does nothing
        cluster.run(500)
        since_us = cluster.now_us
        cluster.kill(0)
        cluster.until("there is a master", cluster.masters)
        ((claimed_us, claimer),) = claims_at_us(cluster, since_us)
        assert cluster.master == claimer
        waited_us[claimer] = claimed_us - since_us
        cluster.resume_daemon(1)
        cluster.run(2000)
        assert cluster.masters() == [claimer]
    # Both may claim from the same moment on (P2.12), which each sees in a read of its own.
    assert waited_us[2] - waited_us[1] >= (FAST.claim_stagger_ms - FAST.read_ms) * 1000


def test_p2_10_joined_nodes_claim_before_joining_ones_whatever_their_ids() -> None:
    cluster = CoreCluster(3)
    cluster.boot(1, 2)
    cluster.until_joined(1, 2)
    assert cluster.master == 1
    cluster.holds_store = lambda node, _effect: node == 1  # it commits nothing any more, so n0 stays outside
    cluster.boot(0)
    cluster.run(500)
    cluster.kill(1)
    cluster.holds_store = lambda _node, _effect: False
    cluster.until("there is a master", cluster.masters)
    assert cluster.master == 2
