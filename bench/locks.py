"""Locks: pairs of lock and unlock here and from another node, one lock handed around, recovery, beside etcd in one run.

Targets are upper bounds, so rates are shown as microseconds a pair, too: 50 are 20,000 pairs a second. What is `local`
is mastered at the client's node, what is `remote` at another, over loopback TLS. etcd's locks are durable, those of
Muster are not; the ratios are etcd's rate to Muster's for local locks, in the same run with the same number of callers.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

from bench import etcd_peer
from bench.announcements import boottime_us
from bench.cluster import Rig, rig
from bench.figures import Measurement
from bench.scales import Scale
from muster.client.errors import ClientError
from muster.locks import EX, NL, AsyncGrant, AsyncLocks, AsyncSpace, NotGranted, connect_async

SPACE = "bench"
CALLERS = 64  # of one client that pipelines
SWITCHED_ON_S = 60.0
HANDED_S = 2.0
GAP_PAUSE_S = 0.005
Pair = Callable[[int], Awaitable[None]]


def measure(scale: Scale, directory: Path, measurement: Measurement) -> None:
    """Everything about locks, in one run of three nodes and three members."""
    measurement.about = "one client, locks in memory; etcd 3.4, three members, durable"
    with rig(directory, 3, "standard") as cluster:
        cluster.cluster.connection().operate("configure", setting="lockspaces", value=SPACE)
        asyncio.run(_measure(scale, cluster, measurement))
    if not etcd_peer.is_there():
        measurement.about += "; etcd is not installed here (apt install etcd-server): no figures of it"
        return
    for number in range(scale.lock_runs):
        with etcd_peer.running(directory / f"etcd{number}") as port:
            asyncio.run(_measure_etcd(scale, port, measurement))
    for case in ("one at a time", f"{CALLERS} at a time"):
        ours = measurement.median(f"local, {case}", "pairs_per_s")
        theirs = measurement.median(f"etcd, {case}", "pairs_per_s")
        if ours and theirs:
            measurement.add(f"etcd, {case}", "ratio", theirs / ours)


async def _measure(scale: Scale, cluster: Rig, measurement: Measurement) -> None:
    clients = [await _connected(cluster, name) for name in cluster.names]
    spaces = [client.space(SPACE) for client in clients]
    for _ in range(scale.lock_runs):
        await _pairs(scale, measurement, "local", spaces[0])
        keepers = [await spaces[1].acquire(f"remote/{number}", NL) for number in range(CALLERS)]  # masters stay there
        await _pairs(scale, measurement, "remote", spaces[0])
        await asyncio.gather(*(keeper.unlock() for keeper in keepers))
        await _handed_around(measurement, spaces)
    await _recovery(scale, cluster, measurement, clients)


async def _connected(cluster: Rig, node: str) -> AsyncLocks:
    """A client, when its node grants locks. Raises `ClientError`."""
    deadline = time.monotonic() + SWITCHED_ON_S
    while True:
        try:
            client = await connect_async(directory=cluster.cluster.directory, node=node)
            await (await client.space(SPACE).acquire(f"ready/{node}", NL, timeout_s=5.0)).unlock()
        except (ClientError, NotGranted):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)
        else:
            return client


async def _pairs(scale: Scale, measurement: Measurement, where: str, space: AsyncSpace) -> None:
    async def pair(caller: int) -> None:
        grant = await space.acquire(f"{where}/{caller}", EX)
        await grant.unlock()

    await _rates(measurement, where, pair, scale.lock_pairs)


async def _rates(measurement: Measurement, where: str, pair: Pair, pairs: int) -> None:
    """One pair after the other, then as many callers as a client has."""
    for _ in range(20):
        await pair(0)
    took_s: list[float] = []
    for _ in range(max(1, pairs // 16)):
        began = time.perf_counter()
        await pair(0)
        took_s.append(time.perf_counter() - began)
    took_s.sort()
    measurement.add_all(
        f"{where}, one at a time",
        {
            "pairs_per_s": len(took_s) / sum(took_s),
            "p50_ms": 1000 * median(took_s),
            "p99_ms": 1000 * took_s[min(len(took_s) - 1, len(took_s) * 99 // 100)],
        },
    )

    async def caller(number: int) -> None:
        for _ in range(pairs // CALLERS):
            await pair(number)

    await asyncio.gather(*(pair(number) for number in range(CALLERS)))
    began = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    elapsed_s = time.perf_counter() - began
    done = pairs // CALLERS * CALLERS
    figures = {"pairs_per_s": done / elapsed_s, "pair_us": 1e6 * elapsed_s / done}
    measurement.add_all(f"{where}, {CALLERS} at a time", figures)


async def _handed_around(measurement: Measurement, spaces: list[AsyncSpace]) -> None:
    """One hot lock, which all three nodes want all the time."""
    counts = [0, 0, 0]
    end = time.perf_counter() + HANDED_S

    async def want(number: int) -> None:
        while time.perf_counter() < end:
            grant = await spaces[number].acquire("hot", EX)
            counts[number] += 1
            await grant.unlock()

    began = time.perf_counter()
    await asyncio.gather(*(want(number) for number in range(3) for _ in range(2)))
    total = sum(counts)
    measurement.add_all(
        "one lock handed between three nodes",
        {
            "grants_per_s": total / (time.perf_counter() - began),
            "grant_us": 1e6 * HANDED_S / max(1, total),
            "most_to_least": max(counts) / max(1, min(counts)),
        },
    )


async def _recovery(scale: Scale, cluster: Rig, measurement: Measurement, clients: list[AsyncLocks]) -> None:
    """The loss of one of three nodes that share so many locks, half of them mastered at the lost one."""
    one, lost, other = clients
    before = _resident_kib(cluster)
    half = scale.lock_recovered // 2
    await _lock_many(lost.space(SPACE), half)  # the first that uses them becomes their master
    await _lock_many(one.space(SPACE), half)
    after = _resident_kib(cluster)
    owned = 1024 * (after["n0"] - before["n0"]) / max(1, half)  # of others' resources, and its part of the directory
    mastered = 1024 * (after["n1"] - before["n1"]) / max(1, scale.lock_recovered)
    growth_bytes = max(owned, mastered)
    measurement.add(f"{scale.lock_recovered} locks", "bytes_per_lock", growth_bytes)
    await lost.space(SPACE).acquire("waited for", EX)
    untouched = other.space(SPACE)
    await (await untouched.acquire("untouched", EX)).unlock()
    waiting = asyncio.ensure_future(one.space(SPACE).acquire("waited for", EX))
    gaps = asyncio.ensure_future(_longest_gap_ms(untouched, waiting))
    await asyncio.sleep(0.2)
    cut_us = boottime_us()
    await asyncio.to_thread(cluster.cluster.kill, "n1")
    await asyncio.wait_for(waiting, SWITCHED_ON_S)
    granted_us = boottime_us()
    longest_ms = await gaps
    events = await asyncio.to_thread(cluster.timeline, 0, cut_us)
    proven_us = next(each["at_us"] for each in events if each["event"] == "forced out")
    measurement.add_all(
        f"{scale.lock_recovered} locks, one of three nodes lost",
        {"recovered_after_proof_ms": (granted_us - proven_us) / 1000, "others_held_up_ms": longest_ms},
    )


async def _lock_many(space: AsyncSpace, count: int) -> None:
    """So many NL locks, a thousand requests at a time."""
    for begin in range(0, count, 1000):
        names = range(begin, min(count, begin + 1000))
        await asyncio.gather(*(space.acquire(f"many/{number}", NL) for number in names))


async def _longest_gap_ms(space: AsyncSpace, waiting: "asyncio.Future[AsyncGrant]") -> float:
    """The longest pair on a resource that the lost node has no part in, until what waits is granted."""
    longest_s = 0.0
    while not waiting.done():
        began = time.perf_counter()
        grant = await space.acquire("untouched", EX)
        await grant.unlock()
        longest_s = max(longest_s, time.perf_counter() - began)
        await asyncio.sleep(GAP_PAUSE_S)
    return 1000 * longest_s


def _resident_kib(cluster: Rig) -> dict[str, int]:
    """The memory of each node's lock process."""
    found: dict[str, int] = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
            if b"muster.daemon.locks.run" not in words:
                continue
            home = words[words.index(b"--home") + 1].decode()
            for name in cluster.names:
                if home == str(cluster.cluster.home(name)):
                    fields = path.with_name("statm").read_text().split()
                    found[name] = int(fields[1]) * 4
        except OSError:
            continue
    return found


async def _measure_etcd(scale: Scale, port: int, measurement: Measurement) -> None:
    client = await etcd_peer.Etcd.connect(port)
    try:
        lease = await client.lease()

        async def pair(caller: int) -> None:
            key = b"bench/%d" % caller
            await client.lock(key, lease)
            await client.unlock(key)

        await _rates(measurement, "etcd", pair, max(CALLERS, scale.lock_pairs // 8))
    finally:
        client.close()
