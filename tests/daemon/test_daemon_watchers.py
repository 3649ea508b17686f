"""Who may watch, and how long for one that does not read (P8.6, P8.8): the daemon's side of watchers, without I/O."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from muster.client.watching import Members
from muster.daemon.events import event_manager
from muster.daemon.events.event_manager import MAXIMUM_UNFETCHED, MAXIMUM_WATCHERS, EventManagerShell
from muster.records.refusal import ControlRefused
from muster.records.watchers import BUILT_IN_WATCHER

STRANGER = {"pid": 1, "uid": os.geteuid() + 54_321}
OWN = {"pid": 1, "uid": os.geteuid()}


async def manager(home: Path) -> EventManagerShell:
    node = SimpleNamespace(
        me=0, incarnation=7, setup=SimpleNamespace(name="n0"), replica=SimpleNamespace(confirmed=False)
    )
    return EventManagerShell(cast("Any", node), cast("Any", None), lambda _event, _text: None, lambda: 1_000_000, home)


async def connected(own: EventManagerShell, name: str, peer: dict[str, int] = OWN) -> AsyncIterator[Any]:
    """A watcher that has been let in."""
    stream = own.stream({"name": name}, peer)
    assert (await anext(stream))["node"] == "n0"
    return stream


def test_p8_6_the_nodes_own_watcher_is_the_nodes_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        own = await manager(tmp_path)
        with pytest.raises(ControlRefused, match="is the node's own"):
            await connected(own, BUILT_IN_WATCHER, STRANGER)
        await connected(own, BUILT_IN_WATCHER)
        await connected(own, "foreign", STRANGER)
        own.stop()

    asyncio.run(scenario())


def test_p8_6_watchers_are_bounded_and_never_keep_the_nodes_own_out(tmp_path: Path) -> None:
    async def scenario() -> None:
        own = await manager(tmp_path)
        streams = [await connected(own, f"w{number}") for number in range(MAXIMUM_WATCHERS)]
        with pytest.raises(ControlRefused, match="are connected already"):
            await connected(own, "one-more")
        streams.append(await connected(own, BUILT_IN_WATCHER))
        own.stop()

    asyncio.run(scenario())


def test_p8_6_a_watcher_that_does_not_read_is_given_up() -> None:
    async def scenario() -> None:
        stream = event_manager._Stream(1, "slow", 0)
        for number in range(MAXIMUM_UNFETCHED):
            stream.offer({"line": number})
            assert not stream.overrun
        for number in range(10):
            stream.offer({"line": number})
        assert stream.overrun
        assert len(stream.lines) == MAXIMUM_UNFETCHED

    asyncio.run(scenario())


@pytest.mark.parametrize("entry", [-2, 1 << 63, True, 1.5, "1"])
def test_p8_8_a_watcher_of_members_names_an_entry_that_can_be(tmp_path: Path, entry: object) -> None:
    async def scenario() -> None:
        own = await manager(tmp_path)
        with pytest.raises(ControlRefused, match="`members` must be an entry"):
            await anext(own.stream({"name": "w", "members": entry}, OWN))
        own.stop()

    asyncio.run(scenario())


def test_p8_8_a_watcher_takes_no_older_states_than_it_has() -> None:
    members = Members(since=-1)
    members.take(10, {"n0": ["joined", 1]})
    members.take(12, {"n0": ["leaving", 1]})
    for late in (9, 11, 12):
        members.take(late, {"n0": ["joined", 1]})
    assert members.known == {"n0": ("leaving", 1)}
    assert [(change.entry, change.state) for change in members.changes] == [(12, "leaving")]
    assert members.index == 12
