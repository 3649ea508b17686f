"""The laboratory of machines, as far as it needs no machine: its page, its boards, its plans (docs/LAB.md)."""

import random
from pathlib import Path
from typing import cast

import pytest

from machines.board import FIRST_ADDRESS, PASSWORD, Boards, install_agent
from machines.faults import KINDS, draw
from machines.machine import DISK, Machine
from machines.page import blocks
from machines.run import draw_plan
from machines.script import LAST, PARTS, SHORT, UPGRADE
from machines.systems import NAMES, SUBNETS
from muster.setup import fencing
from muster.setup.errors import Mistaken
from muster.ui.command_line import muster as program
from muster.ui.manual import commands_of


class Switch:
    """As much of a machine as its board needs."""

    name = "n0"

    def __init__(self) -> None:
        self.power = True

    def is_on(self) -> bool:
        """Whether it has power."""
        return self.power

    def off(self) -> None:
        """It has none."""
        self.power = False

    def on(self) -> None:
        """It has some."""
        self.power = True


def test_the_page_is_typed_where_it_says_and_has_commands_that_exist() -> None:
    known = {" ".join(words) for words, _ in commands_of(program)}
    found = blocks()
    assert {block.where for block in found} == {"n0", "each", "upgrade", "removal"}
    assert {block.heading[0] for block in found} == set("123456789")
    assert {block.heading[0] for block in found if block.where == "upgrade"} == {UPGRADE}
    typed = [line.split() for block in found for line in block.script.splitlines() if line.startswith("muster ")]
    assert len(typed) > 20
    for words in typed:
        if words[1] != "--version":
            assert " ".join(words[:2]) in known or " ".join(words[:3]) in known, words
    text = "".join(block.script for block in found)
    assert DISK in text and all(f"{subnet}.{len(NAMES)}:7700" in text for subnet in SUBNETS)


def test_a_board_says_off_only_when_nothing_of_its_machine_runs(tmp_path: Path) -> None:
    switch = Switch()
    boards = Boards({"n0": cast("Machine", switch)}, tmp_path)
    try:
        told = {"ip": FIRST_ADDRESS, "password": PASSWORD}
        assert boards.answer({**told, "action": "status"}) == ("Status: ON", 0)
        assert boards.answer({**told, "action": "off"}) == ("Success: Powered OFF", 0)
        assert not switch.is_on()
        assert boards.answer({**told, "action": "status"}) == ("Status: OFF", 2)
        assert boards.answer({**told, "action": "on"})[1] == 0 and switch.is_on()
        assert boards.answer({**told, "action": "melt"})[1] == 1
        assert boards.answer({**told, "password": "another", "action": "off"})[1] == 1
        assert boards.answer({**told, "ip": "192.0.2.99", "action": "off"})[1] == 1
        assert switch.is_on()
    finally:
        boards.close()


def test_the_agent_of_the_boards_says_what_it_takes(tmp_path: Path) -> None:
    (tmp_path / "usr/sbin").mkdir(parents=True)
    (tmp_path / "root").mkdir()
    install_agent(tmp_path)
    agent = str(tmp_path / "usr/sbin/fence_ipmilan")
    fencing.check(agent, {"ip": "1", "username": "muster", "lanplus": "1"}, ("password",))
    with pytest.raises(Mistaken, match="nonsense"):
        fencing.check(agent, {"nonsense": "1"}, ())


def test_a_seed_draws_the_same_plan_every_time_and_every_kind_is_drawn() -> None:
    assert draw_plan(random.Random("1 1"), NAMES) == draw_plan(random.Random("1 1"), NAMES)
    choices = random.Random("all")
    drawn = [draw(choices, NAMES) for _ in range(2000)]
    assert {fault.kind for fault in drawn} == set(KINDS)
    assert all((fault.duration_s > 0) == (KINDS[fault.kind].durations is not None) for fault in drawn)
    assert set(SHORT) < set(PARTS) and not set(LAST) & set(PARTS)
