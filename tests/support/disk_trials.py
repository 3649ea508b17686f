"""What the tests of the disk store share: small real stores, and ways to break them."""

import asyncio
import contextlib
import os
import resource
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from muster.drivers.store.disk.geometry import Header
from muster.drivers.store.disk.store import DiskStore, create_store, plan_header
from muster.drivers.store.identity import Scope
from muster.records.registers import Claim, ClaimFlag, Deadman, Lease, LeaseState, Mark
from muster.records.terms import NO_TERM, Stamp, Term

DATABASE = b"the first database"
SMALL_STORE_BYTES = 2 << 20
SLOTS = 8


def small_header(path: Path, scope: Scope = Scope.HOST, store_bytes: int = SMALL_STORE_BYTES) -> Header:
    return plan_header(str(path), os.urandom(16), "trial", scope, slots=SLOTS, store_bytes=store_bytes)


def new_store(target: Path) -> Path:
    """Create a small store of scope `host`."""
    create_store(str(target), small_header(target), DATABASE)
    return target


def run_with(path: Path, node: int, scenario: Callable[[DiskStore], Awaitable[None]]) -> None:
    """Run `scenario` with an open store and close it, whatever happens."""

    async def whole() -> None:
        store = DiskStore(path, node)
        try:
            await scenario(store)
        finally:
            await store.close()

    asyncio.run(whole())


def claim_of(node: int, sequence: int, mark: Mark, number: int = 2, incarnation: int = 5) -> Claim:
    return Claim(Stamp(node, incarnation, Term(number, node), sequence), ClaimFlag.MASTER, mark)


def lease_of(node: int, beat: int) -> Lease:
    return Lease(Stamp(node, 5, NO_TERM, beat), LeaseState.LIVE, Deadman.PID_NAMESPACE, 600, 120, b"b" * 16, "")


def damage(path: Path, offset: int, data: bytes) -> None:
    """Overwrite bytes of the file behind the engine's back."""
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        file.write(data)
        os.fsync(file.fileno())


def read_bytes(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


@contextlib.contextmanager
def writes_fail_from(offset: int) -> Iterator[None]:
    """While inside, the kernel refuses this process any write to a file at `offset` or behind it (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (offset, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def begin(
    store: DiskStore, node: int, half: int, checkpoint: bytes, number: int = 2, generation: int = 1
) -> Mark:
    """Write a checkpoint and the claim that names it, as an adoption does."""
    mark = Mark(Term(number, node), half, generation)
    claim = (await store.read_strip()).claims[node]
    assert claim is not None
    await store.write_checkpoint(mark, checkpoint)
    await store.write_claim(claim_of(node, claim.stamp.sequence + 1, mark, number))
    return mark
