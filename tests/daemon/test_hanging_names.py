"""What the daemon waits for is never what may hang: names of hosts, a thread at its end (P8.14)."""

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from interconnect_trial import Office, Station, until
from muster.daemon.shell.turns import Loop, run_timed
from muster.daemon.signs.signs import SignsWatch
from muster.drivers.aside import Shared, aside
from muster.drivers.machine.own_links import OwnLinks
from muster.records.timing import FAST

DEADLINE_S = 20.0


class Names:
    """The system's look-up of host names, which hangs for one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers, self.asked = threading.Event(), []  # type: ignore[var-annotated]
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)

    def _look_up(self, host: Any, *arguments: Any, **named: Any) -> Any:
        self.asked.append(host)
        if host == "slow.example":
            assert self.answers.wait(DEADLINE_S)
            host = "127.0.0.1"
        return self._real(host, *arguments, **named)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    made = Names(monkeypatch)
    yield made
    made.answers.set()


def run(work: Any) -> None:
    """In the daemon's own loop, within a bound."""

    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await work()

    run_timed(lambda _turns: bounded())


def test_p8_14_a_name_that_hangs_is_looked_up_once_and_no_other_waits_for_it(names: Names) -> None:
    async def trial() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        slow = [asyncio.create_task(loop.getaddrinfo("slow.example", 7)) for _ in range(100)]
        done, _ = await asyncio.wait(slow, timeout=0.05)
        assert not done
        assert (await loop.getaddrinfo("localhost", 7))[0]
        slow[0].cancel()
        await asyncio.wait(slow[:1])
        names.answers.set()
        found = await asyncio.gather(*slow[1:])
        assert found[0][0][4][0] == "127.0.0.1"
        assert names.asked.count("slow.example") == 1

    run(trial)


def test_p8_14_a_node_listens_where_it_can_while_the_name_of_another_address_is_not_known(
    names: Names, tmp_path: Path
) -> None:
    office = Office(tmp_path)

    async def trial() -> None:
        station = Station(0)
        await station.interconnect.start(("slow.example:0", "127.0.0.1:0"), *office.keys(0), patient=True)
        assert len(station.interconnect.addresses) == 1
        assert station.told("slow.example:0", "nobody has said yet")
        names.answers.set()
        await until(lambda: len(station.interconnect.addresses) == 2, station)
        await station.interconnect.close()

    run(trial)


def test_p8_14_work_aside_returns_or_raises_as_it_does_and_goes_on_when_nobody_waits() -> None:
    async def trial() -> None:
        assert await aside(int, "7") == 7
        with pytest.raises(ValueError, match="invalid literal"):
            await aside(int, "x")
        shared, going = Shared(), threading.Event()
        first = asyncio.create_task(shared.get("key", going.wait, DEADLINE_S))
        second = asyncio.create_task(shared.get("key", int, "x"))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        going.set()
        assert await second is True, "it has waited for what was under way"
        with pytest.raises(ValueError, match="invalid literal"):
            await shared.get("key", int, "x")

    run(trial)


_ENDING = """
import asyncio, threading
from muster.daemon.run import _end
from muster.daemon.shell.turns import run_timed
from muster.drivers.aside import aside

async def serve():
    hanging = threading.Event()
    asyncio.ensure_future(asyncio.to_thread(hanging.wait))
    asyncio.ensure_future(aside(hanging.wait))
    await asyncio.sleep(0.05)

run_timed(lambda turns: serve())
print("ended", flush=True)
_end(5)
"""


def test_p8_14_a_daemon_ends_though_a_thread_of_it_hangs() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _ENDING], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert (ended.returncode, ended.stdout) == (5, "ended\n"), ended.stderr


def test_p8_14_the_signs_of_own_links_are_looked_for_beside_the_loop(names: Names) -> None:
    """A daemon that begins while its own name cannot be looked up."""

    async def trial() -> None:
        links = OwnLinks()
        fed: list[object] = []
        daemon = SimpleNamespace(
            node=SimpleNamespace(setup=SimpleNamespace(profile=FAST)), feed=fed.append, last_conditions={}
        )
        signs = SignsWatch(daemon, links)  # type: ignore[arg-type]
        watching = asyncio.create_task(signs.watch(("slow.example",)))
        began_s = time.monotonic()
        await asyncio.sleep(0.05)
        assert time.monotonic() - began_s < DEADLINE_S / 2
        assert not watching.done()
        assert not links.cut_off(), "nothing is known yet"
        names.answers.set()
        await watching
        signs.close()

    run(trial)
