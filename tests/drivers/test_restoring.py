"""A store that is made of a backup, on a disk of its own, before any node has seen it (P11.8)."""

from pathlib import Path

import pytest

from muster.client.errors import ClientError
from muster.drivers.store.disk import restoring
from muster.drivers.store.engine import newest_record
from muster.drivers.store.failures import StoreFailed
from muster.drivers.store.record import StoreRecord
from muster.records.registers import LeaseState
from muster.records.terms import Term
from muster.setup.backups import back_up, restore
from muster.setup.initialisation import ClusterPlan, NodePlan, initialise

NODES = tuple(NodePlan(f"n{number}", (f"127.0.0.1:{7700 + number}",)) for number in range(3))


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """A backup of a new cluster's store."""
    plan = ClusterPlan("test", NODES, "fast", "host", 16, 64 << 20)
    initialise(tmp_path / "store", plan, tmp_path / "keys")
    back_up(tmp_path / "store", tmp_path / "backup")
    return tmp_path / "backup"


def restored(backup: Path, name: str, *stopped: str) -> StoreRecord:
    """The store that is made of it."""
    path = backup.with_name(name)
    restore(backup, path, (), stopped, really=True, force=False)
    return newest_record(str(path))


def incarnation_of(record: StoreRecord, node: int) -> int:
    lease = record.strip.lease(node)
    assert lease is not None
    return lease.stamp.incarnation


def test_p11_8_whoever_was_not_asked_is_silent_and_whoever_is_vouched_for_has_a_tombstone(backup: Path) -> None:
    record = restored(backup, "new", "n1")
    leases = [record.strip.lease(node) for node in range(3)]
    assert [lease.state for lease in leases if lease] == [LeaseState.LIVE, LeaseState.PANICKED, LeaseState.LIVE]
    members = record.database.members
    assert [members[node].eviction is not None for node in range(3)] == [True, False, True]
    assert [each.node for each in record.database.cluster.unasked] == [0, 2]
    assert record.header.store_id != record.header.cluster_id
    with pytest.raises(ClientError, match="no node 'n9'"):
        restore(backup, backup.with_name("other"), (), ("n9",), really=False, force=False)


def test_p11_8_each_restore_begins_a_generation_above_the_one_before(backup: Path) -> None:
    first = restored(backup, "first")
    back_up(backup.with_name("first"), backup.with_name("later"))
    second = restored(backup.with_name("later"), "second")
    assert 1 << restoring.INDEX_SHIFT <= first.database.index < second.database.index
    assert second.database.index - first.database.index >= 1 << restoring.INDEX_SHIFT
    assert Term(1, 0) < first.database.term < second.database.term
    assert 0 < incarnation_of(first, 2) < incarnation_of(second, 2) < 1 << 53


def test_p11_8_a_restore_that_was_interrupted_is_refused_by_every_boot(
    backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = backup.with_name("new")
    path.touch()

    def cut(*_words: object) -> None:
        raise OSError(5, "power cut")

    with monkeypatch.context() as cutting:
        cutting.setattr("muster.drivers.store.disk.registers.OwnRegister.write", cut)
        with pytest.raises(ClientError, match="could not be made"):
            restore(backup, path, (), (), really=True, force=False)
    with pytest.raises(StoreFailed):
        newest_record(str(path))
    restore(backup, path, (), (), really=True, force=True)
    assert newest_record(str(path)).database.cluster.name == "test"


def test_a_damaged_backup_is_refused(backup: Path) -> None:
    text = backup.read_bytes()
    for wrong in (b"", b"{}", text.replace(b'"digest":"', b'"digest":"0'), text[:-20]):
        backup.write_bytes(wrong)
        with pytest.raises(ClientError):
            restore(backup, backup.with_name("new"), (), (), really=True, force=False)
    assert not backup.with_name("new").exists()
