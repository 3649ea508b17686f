"""Rehearsals (SPEC 8.4): the figures of SPEC 3.14 step by step, reversals, double failures, bad scenarios."""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from dev_cluster import CommandLine
from muster.sim.rehearsal import scenario as scenarios
from muster.sim.rehearsal.rehearsal import NOT_REGISTERED, Frame, Verdict, rehearse
from muster.sim.rehearsal.scenario import MAXIMUM_NODES, VERBS, ScenarioError, ScriptStep, find, parse, shipped

FIGURES = ("fig-3-7", "fig-8-10", "fig-11-12", "fig-13-15")
NODES = ("N0", "N1", "N2")
Levels = dict[str, dict[str, dict[str, str]]]
# What the subsystem of one level on one node may come to hold about a node next (SPEC 3.6, Table 1; 3.1; 3.5). What it
# hears in company it may hold at once; `not registered` may follow anything, since its node may die at any time.
NEXT_STATES = {
    NOT_REGISTERED: set(),
    "inactive": {"joining", "joined"},
    "joining": {"joined", "forced-leaving"},
    "joined": {"leaving", "forced-leaving"},
    "leaving": {"inactive", "forced-leaving"},
    "forced-leaving": {"inactive"},
}


class Rehearsed:
    """The frames and the verdict of one run."""

    def __init__(self, text: str, seed: int = 1) -> None:
        scenario = find(text) if text in FIGURES else parse(text, "scenario")
        *frames, verdict = rehearse(scenario, seed)
        assert isinstance(verdict, Verdict)
        self.frames = [frame for frame in frames if isinstance(frame, Frame)]
        assert len(self.frames) == len(frames)
        self.verdict = verdict
        assert not verdict.violations, verdict.violations

    @property
    def last(self) -> Frame:
        """The end."""
        return self.frames[-1]

    def levels(self) -> list[Levels]:
        """The sequence of distinct `levels`."""
        distinct: list[Levels] = []
        for frame in self.frames:
            if not distinct or frame.levels != distinct[-1]:
                distinct.append(frame.levels)
        return distinct

    def when(self, level: str, node: str, about: str, state: str, after: int = 0) -> int:
        """The number of the first frame from `after` on in which that subsystem holds `state`."""
        held = (n for n, frame in enumerate(self.frames) if n >= after and frame.levels[level][node][about] == state)
        found = next(held, None)
        assert found is not None, f"{level} on {node} never holds {state} for {about}"
        return found

    def when_node(self, node: str, state: str, after: int = 0) -> int:
        """The number of the first frame from `after` on in which the cluster holds `state` for `node`."""
        held = (n for n, frame in enumerate(self.frames) if n >= after and frame.nodes[node] == state)
        found = next(held, None)
        assert found is not None, f"{node} is never {state}"
        return found

    def when_said(self, words: str) -> int:
        """The number of the first frame with an event that begins so."""
        found = next((n for n, frame in enumerate(self.frames) if any(e.startswith(words) for e in frame.events)), None)
        assert found is not None, f"nothing begins with {words!r}"
        return found

    def history(self, level: str, node: str, about: str, after: int = 0) -> list[str]:
        """What that subsystem holds for `about`, one after the other."""
        states = [frame.levels[level][node][about] for frame in self.frames[after:]]
        return [state for n, state in enumerate(states) if n == 0 or state != states[n - 1]]

    def check_table_1(self) -> None:
        """Every subsystem goes from state to state as SPEC 3.6 allows."""
        for level, holders in self.last.levels.items():
            for node, abouts in holders.items():
                for about in abouts:
                    states = self.history(level, node, about)
                    for earlier, before, after in zip(["", *states], states, states[1:], strict=False):
                        # It has acknowledged the leave, others at its level have not: the level is not completed (3.9).
                        aborted = (earlier, before, after) == ("leaving", "inactive", "forced-leaving")
                        # What it hears first of a node may be the end of one that was there before it (3.10).
                        first = before == NOT_REGISTERED or (before == "inactive" and earlier in ("", NOT_REGISTERED))
                        allowed = aborted or first or after == NOT_REGISTERED or after in NEXT_STATES[before]
                        assert allowed, (f"{level} on {node} about {about}", states)

    def check_end(self, joined: str) -> None:
        """At the end these nodes are joined, the others inactive, in the eyes of every subsystem that runs."""
        self.check_table_1()
        assert self.verdict.settled, self.verdict.missing
        up = joined.split()
        expected = {name: "joined" if name in up else "inactive" for name in self.last.nodes}
        assert self.last.nodes == expected
        for level, holders in self.last.levels.items():
            for node, held in holders.items():
                assert held == (expected if node in up else dict.fromkeys(expected, NOT_REGISTERED)), (level, node)
        assert self.last.master in up if up else self.last.master is None


def scenario(nodes: int, steps: str, extra: str = "", booted: int = MAXIMUM_NODES) -> str:
    """A scenario of nodes N0, N1, ..., the first of which are booted one after the other, two seconds apart.

    `steps`: lines of milliseconds and a deed.
    """
    names = [f"N{node}" for node in range(nodes)]
    lines = ['title = "a test"', "[cluster]", f"nodes = {json.dumps(names)}", extra]
    boots = [f"{2000 * node} boot {name}" for node, name in enumerate(names[:booted])]
    for step in (*boots, *steps.strip().splitlines()):
        at_ms, deed = step.strip().split(" ", 1)
        lines += ["[[step]]", f'at = "{at_ms}ms"', f'do = "{deed}"']
    return "\n".join(lines)


# ---- the figures of SPEC 3.14 ----------------------------------------------------------------------------------------


def expected_levels(figure: str) -> list[Levels]:
    """The sequence of `levels` that was written down for a figure, from nothing registered on."""
    nothing = {node: dict.fromkeys(("N0", "N1"), NOT_REGISTERED) for node in ("N0", "N1")}
    sequence: list[Levels] = [dict.fromkeys(("dlm", "vdm", "sfs", "em"), nothing)]
    for line in written(figure):
        levels = {level: dict(holders) for level, holders in sequence[-1].items()}
        for change in line.split(";"):
            holder, _, held = change.partition(":")
            level, node = holder.split()
            if held.strip() == NOT_REGISTERED:
                levels[level][node] = nothing[node]
            else:
                levels[level][node] = dict(item.split() for item in held.split(","))
        assert levels != sequence[-1], f"{figure}: {line} changes nothing"
        sequence.append(levels)
    return sequence


def written(figure: str) -> Iterator[str]:
    """The lines of a figure's file, without comments; `@NAME` stands for those of another."""
    for line in (Path(__file__).parents[1] / "rehearsals" / f"{figure}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("@"):
            yield from written(line[1:])
        elif not line.startswith("#"):
            yield line


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("figure", FIGURES)
def test_spec_3_14_the_figures_come_out_step_by_step(figure: str, seed: int) -> None:
    run = Rehearsed(figure, seed)
    expected = expected_levels(figure)
    for number, (found, wanted) in enumerate(zip(run.levels(), expected, strict=False)):
        assert found == wanted, f"step {number}"
    assert len(run.levels()) == len(expected)
    run.check_table_1()
    assert run.verdict.settled


def test_spec_3_14_in_figs_3_to_7_the_node_is_joining_until_its_event_manager_has_joined() -> None:
    run = Rehearsed("fig-3-7")
    for frame in run.frames[run.when_node("N0", "joining") : run.when("em", "N0", "N0", "joined") + 1]:
        assert frame.nodes["N0"] == "joining"
    assert run.when("em", "N0", "N0", "joining") > run.when("sfs", "N0", "N0", "joined")
    assert run.last.nodes == {"N0": "joined", "N1": "inactive"}
    assert run.last.master == "N0"


def test_spec_3_14_in_figs_11_to_12_the_leaving_master_hands_over_and_ends() -> None:
    run = Rehearsed("fig-11-12")
    run.check_end("N1")
    assert run.last.term > run.frames[0].term
    assert run.when_said("N1 is master") < run.when_node("N0", "inactive", run.when_node("N0", "leaving"))
    assert run.when_said("N0 has stopped: it left") > run.when("dlm", "N0", "N0", "inactive")


def test_spec_3_14_in_figs_13_to_15_proof_comes_before_recovery_and_the_event_manager_is_not_told() -> None:
    run = Rehearsed("fig-13-15")
    run.check_end("N0 N1")
    condemned, stopped = run.when_said("N0 is to be forced out"), run.when_said("N0 has stopped")
    forced = run.when_node("N0", "forced-leaving")
    gone = run.when_node("N0", "inactive", forced)
    assert condemned < stopped < forced <= run.when("dlm", "N1", "N0", "forced-leaving")
    assert run.when("sfs", "N1", "N0", "inactive", forced) < gone
    assert {frame.levels["em"]["N1"]["N0"] for frame in run.frames[condemned:gone]} == {"inactive"}
    assert {frame.levels["em"]["N0"]["N0"] for frame in run.frames[:gone]} == {NOT_REGISTERED}


# ---- reversals and failures ------------------------------------------------------------------------------------------


def test_spec_3_8_a_node_that_is_back_early_joins_only_after_its_forced_leave() -> None:
    run = Rehearsed(
        scenario(
            2,
            """7000 hang N0 sfs
               7000 kill N1
               9000 boot N1
               12000 unhang N0 sfs""",
        )
    )
    run.check_end("N0 N1")
    forced = run.when_node("N1", "forced-leaving")
    back = run.when("dlm", "N1", "N1", "inactive", forced)
    recovered = run.when("sfs", "N0", "N1", "inactive", forced)
    assert forced < back < recovered < run.when_node("N1", "inactive", forced) < run.when_node("N1", "joining", forced)


def test_spec_3_7_a_leave_during_a_join_takes_down_what_had_joined_and_tells_nobody_above() -> None:
    steps = """9000 hang N1 vdm
               10000 boot N2
               11000 leave N2
               12000 unhang N1 vdm"""
    run = Rehearsed(scenario(3, steps, booted=2))
    run.check_end("N0 N1")
    assert run.history("vdm", "N1", "N2") == [
        NOT_REGISTERED, "inactive", "joining", "joined", "leaving", "inactive"
    ]  # fmt: skip
    assert run.history("dlm", "N0", "N2")[1:] == ["inactive", "joining", "joined", "leaving", "inactive"]
    assert run.history("sfs", "N0", "N2")[1:] == ["inactive"]
    assert run.history("em", "N0", "N2")[1:] == ["inactive"]
    assert run.when("vdm", "N1", "N2", "joined") > run.when_said("leave N2")
    for node in NODES[:2]:
        acknowledged = run.when("vdm", node, "N2", "inactive", run.when("vdm", node, "N2", "leaving"))
        assert acknowledged < run.when("dlm", "N0", "N2", "leaving")


def test_spec_3_9_a_kill_during_a_leave_skips_the_levels_that_the_leave_had_completed() -> None:
    steps = """9000 hang N1 vdm
               9000 leave N2
               11000 kill N2
               14000 unhang N1 vdm"""
    run = Rehearsed(scenario(3, steps))
    run.check_end("N0 N1")
    leaving = run.when_node("N2", "leaving")
    assert run.history("em", "N0", "N2", leaving)[-2:] == ["leaving", "inactive"]
    assert "forced-leaving" not in run.history("em", "N0", "N2", leaving)
    assert "forced-leaving" not in run.history("sfs", "N1", "N2", leaving)
    assert run.history("vdm", "N1", "N2", leaving) == ["joined", "leaving", "forced-leaving", "inactive"]
    assert run.history("dlm", "N1", "N2", leaving) == ["joined", "forced-leaving", "inactive"]
    assert run.when("dlm", "N1", "N2", "inactive", leaving) < run.when("vdm", "N1", "N2", "forced-leaving")


def test_spec_2_4_a_kill_of_the_master_in_the_middle_of_a_join_ends_as_if_nothing_had_happened() -> None:
    steps = """13000 boot N3
               13900 kill N0"""
    run = Rehearsed(scenario(4, steps, 'work = { sfs = "900ms" }', booted=3))
    run.check_end("N1 N2 N3")
    died = run.when_said("kill N0")
    assert run.frames[died].levels["sfs"]["N1"]["N3"] == "joining"
    for level, node in (("dlm", "N1"), ("sfs", "N1"), ("em", "N2")):
        assert run.history(level, node, "N3")[1:] in (["inactive", "joining", "joined"], ["joining", "joined"])
    assert run.last.term > run.frames[died - 1].term


@pytest.mark.parametrize("level", ["dlm", "vdm", "sfs", "em"])
def test_spec_2_4_a_kill_of_the_leaving_master_at_any_level_ends_with_it_inactive(level: str) -> None:
    steps = f"""8000 hang N1 {level}
                8000 leave N0
                9500 kill N0
                12000 unhang N1 {level}"""
    run = Rehearsed(scenario(3, steps))
    run.check_end("N1 N2")
    assert run.when_node("N0", "leaving") < run.when_node("N0", "forced-leaving")


@pytest.mark.parametrize("level", ["dlm", "vdm", "sfs", "em"])
def test_spec_3_4_nothing_above_a_hung_subsystem_moves_until_it_acknowledges(level: str) -> None:
    steps = f"""6000 hang N1 {level}
                6000 kill N2
                10000 unhang N1 {level}"""
    run = Rehearsed(scenario(3, steps, "barriers = { dlm = { forced_leaving = 2 }, em = { forced-leaving = 3 } }"))
    run.check_end("N0 N1")
    order = ["dlm", "vdm", "sfs", "em"]
    place, unhung = order.index(level), run.when_said("unhang")
    frame = run.frames[unhung - 1]
    for number, name in enumerate(order):
        expected = "inactive" if number < place else "forced-leaving" if number == place else "joined"
        assert frame.levels[name]["N1"]["N2"] == expected, name
        if number != place:
            assert frame.levels[name]["N0"]["N2"] == expected, name


def test_spec_3_4_every_barrier_is_acknowledged_by_all_before_the_next_one() -> None:
    run = Rehearsed(scenario(3, "", "barriers = { vdm = { joining = 3 } }"))
    run.check_end("N0 N1 N2")
    for barrier in (1, 2):
        acknowledged = [run.when_said(f"vdm on {n} acknowledges: N2 joining, barrier {barrier} of 3") for n in NODES]
        told = [run.when_said(f"vdm on {n} is told: N2 joining, barrier {barrier + 1} of 3") for n in NODES]
        assert max(acknowledged) < min(told)
    told = [run.when_said(f"vdm on {n} acknowledges: N2 joining, barrier 3 of 3") for n in NODES]
    assert max(told) < run.when("sfs", "N0", "N2", "joining")


def test_spec_7_4_an_isolated_node_is_forced_out_and_joins_again_when_it_is_healed_and_booted() -> None:
    steps = """7000 isolate N0
               15000 heal N0
               16000 boot N0"""
    run = Rehearsed(scenario(3, steps))
    run.check_end("N0 N1 N2")
    forced = run.when_node("N0", "forced-leaving")
    assert run.when_said("N0 has stopped") < forced
    assert run.history("em", "N2", "N0", forced)[-4:] == ["forced-leaving", "inactive", "joining", "joined"]
    assert run.frames[forced].master in ("N1", "N2")


@pytest.mark.parametrize("lost", ["N0", "N1"])
def test_spec_7_4_of_two_nodes_the_one_whose_interconnect_is_lost_is_forced_out_be_it_the_master(lost: str) -> None:
    steps = f"""8000 isolate {lost}
                15000 heal {lost}
                15000 boot {lost}"""
    run = Rehearsed(scenario(2, steps))
    run.check_end("N0 N1")
    kept = "N1" if lost == "N0" else "N0"
    assert run.when_said(f"{lost}: own links") < run.when_said(f"{lost} is to be forced out")
    assert run.when_said(f"{lost} has stopped") < run.when_node(lost, "forced-leaving")
    assert {frame.nodes[kept] for frame in run.frames[run.when_said("isolate") :]} == {"joined"}
    assert run.last.master == kept


def test_spec_7_4_of_two_nodes_that_both_lost_their_interconnect_the_lower_one_survives() -> None:
    steps = """8000 isolate N1
               8000 isolate N0
               15000 heal N0
               15000 heal N1
               16000 boot N1"""
    run = Rehearsed(scenario(2, steps))
    run.check_end("N0 N1")
    assert run.when_said("N1 is to be forced out") < run.when_said("N1 has stopped")
    assert {frame.nodes["N0"] for frame in run.frames[run.when_said("isolate") :]} == {"joined"}


def test_spec_7_4_links_between_two_isolated_nodes_work_only_when_both_are_healed() -> None:
    steps = """9000 isolate N2
               9000 isolate N3
               15000 heal N3
               16000 boot N3
               16000 boot N2
               22000 heal N2"""
    run = Rehearsed(scenario(4, steps))
    run.check_end("N0 N1 N2 N3")
    healed = run.frames[run.when_said("heal N2") - 1]
    assert healed.nodes == {"N0": "joined", "N1": "joined", "N2": "inactive", "N3": "joined"}


def test_spec_7_1_a_blind_node_is_stopped_before_its_lease_runs_out_and_then_recovered() -> None:
    run = Rehearsed(scenario(3, "8000 blind N2"))
    run.check_end("N0 N1")
    stops = run.when_said("N2: the guard stops the node: its lease could not be renewed")
    assert stops < run.when_said("N2 has stopped") < run.when_node("N2", "forced-leaving")
    assert run.when_said("N2 is forced-leaving, on proof: the kernel's word") == run.when_node("N2", "forced-leaving")


def test_spec_7_3_a_short_pause_is_nothing_and_a_long_one_ends_the_node() -> None:
    steps = """8000 pause N1
               8100 resume N1
               12000 pause N2
               16000 resume N2
               17000 boot N2"""
    run = Rehearsed(scenario(3, steps))
    run.check_end("N0 N1 N2")
    assert {frame.nodes["N1"] for frame in run.frames[run.when_said("pause N1") :]} == {"joined"}
    assert "resume N2: it is off" in run.frames[run.when_said("resume N2")].events
    assert run.when_said("N2: deadman fired") < run.when_node("N2", "forced-leaving")


def test_spec_3_5_two_nodes_that_die_while_a_third_leaves_are_all_taken_down() -> None:
    steps = """14000 leave N4
               14050 kill N0
               14060 kill N2"""
    run = Rehearsed(scenario(5, steps, 'work = { em = "400ms" }'))
    run.check_end("N1 N3")
    for gone in ("N0", "N2"):
        assert run.history("sfs", "N1", gone)[-3:] == ["joined", "forced-leaving", "inactive"]
    assert run.history("em", "N1", "N4")[-3:] == ["joined", "leaving", "inactive"]


def test_spec_2_4_two_masters_in_a_row_die_in_the_middle_of_a_forced_leave() -> None:
    steps = """12000 kill N4
               13300 kill N0
               14600 kill N1"""
    run = Rehearsed(scenario(5, steps, 'work = { vdm = "2s" }'))
    run.check_end("N2 N3")
    for gone in ("N0", "N1", "N4"):
        assert run.history("vdm", "N2", gone)[-3:] == ["joined", "forced-leaving", "inactive"]


def test_spec_3_5_a_whole_cluster_that_lost_its_power_boots_together() -> None:
    kills = [f"11000 kill N{node}" for node in range(5)]
    boots = [f"13000 boot N{node}" for node in range(5)]
    run = Rehearsed(scenario(5, "\n".join(kills + boots)))
    run.check_end("N0 N1 N2 N3 N4")
    assert run.frames[run.when_said("kill N4")].master is None


def test_spec_3_13_a_subsystem_that_never_acknowledges_keeps_the_rehearsal_from_settling_and_is_named() -> None:
    run = Rehearsed(
        scenario(
            3,
            """7000 hang N1 sfs
               7000 leave N2""",
        )
    )
    assert not run.verdict.settled
    assert run.verdict.missing == "N2 is leaving: level sfs waits for N1"


def test_a_node_that_cannot_reach_the_others_keeps_the_rehearsal_from_settling() -> None:
    text = scenario(
        2,
        """6000 kill N1
           8000 isolate N1
           9000 boot N1""",
    )
    run = Rehearsed(text)
    assert run.verdict.missing == "N1 runs and is not joined"


def test_a_cluster_that_is_off_has_settled_with_what_its_store_says() -> None:
    run = Rehearsed(
        scenario(
            2,
            """6000 kill N0
               6000 kill N1""",
        )
    )
    assert run.verdict.settled
    assert run.last.master is None
    assert run.last.nodes == {"N0": "joined", "N1": "joined"}
    assert {s for holders in run.last.levels.values() for held in holders.values() for s in held.values()} == {
        NOT_REGISTERED
    }


def test_a_step_that_changes_nothing_is_said_to() -> None:
    run = Rehearsed(
        scenario(
            2,
            """6000 boot N0
               6001 resume N0
               6002 heal N0
               6003 unhang N0 em
               6004 pause N0
               6005 pause N0
               6006 resume N0
               6007 blind N0
               6008 blind N0
               6009 isolate N0
               6010 isolate N0
               6011 heal N0
               6012 hang N0 em
               6013 hang N0 em
               6014 unhang N0 em
               7000 kill N1
               12000 leave N1
               12500 pause N1""",
        )
    )
    run.check_end("N0")
    said = [event for frame in run.frames for event in frame.events if ": it " in event or ": there " in event]
    assert [event for event in said if "link lost" not in event] == [
        "boot N0: it is on already",
        "resume N0: it is not paused",
        "heal N0: there is nothing to heal",
        "unhang N0 em: it does not hang",
        "pause N0: it is paused already",
        "blind N0: it is blind already",
        "isolate N0: it is isolated already",
        "hang N0 em: it hangs already",
        "leave N1: it is off",
        "pause N1: it is off",
    ]


def test_levels_of_ones_own_are_taken_in_their_order_with_their_names() -> None:
    extra = 'levels = { app = 60, lock = 5, disk = 12 }\nwork = { app = "30ms", lock = "1s" }'
    run = Rehearsed(scenario(2, "6000 leave N1", extra))
    run.check_end("N0")
    assert list(run.last.levels) == ["lock", "disk", "app"]
    assert run.when("lock", "N0", "N1", "joined") < run.when("disk", "N0", "N1", "joining")
    assert run.when("app", "N0", "N1", "inactive", run.when("app", "N0", "N1", "leaving")) < run.when(
        "disk", "N0", "N1", "leaving"
    )
    told, done = run.when("lock", "N0", "N1", "joining"), run.when("lock", "N0", "N1", "joined")
    assert run.frames[done].at_us - run.frames[told].at_us == 1_000_000


def test_spec_3_6_a_subsystem_whose_work_takes_no_time_is_seen_in_every_state() -> None:
    work = ", ".join(f'{level} = "0ms"' for level in ("dlm", "vdm", "sfs", "em"))
    steps = """8000 leave N1
               9000 kill N2"""
    run = Rehearsed(scenario(3, steps, f"work = {{ {work} }}\nbarriers = {{ sfs = {{ leaving = 2 }} }}"))
    run.check_end("N0")
    for level in run.last.levels:
        assert run.history(level, "N0", "N1")[-4:] == ["joining", "joined", "leaving", "inactive"], level
        assert run.history(level, "N0", "N2")[-4:] == ["joining", "joined", "forced-leaving", "inactive"], level
        told = run.frames[run.when(level, "N0", "N1", "leaving")]
        assert any(event.startswith(f"{level} on N0 is told: N1 leaving") for event in told.events)


@pytest.mark.parametrize("level", ["dlm", "vdm", "sfs", "em"])
@pytest.mark.parametrize("then", ["", "kill"])
def test_spec_3_7_a_leave_asked_for_at_any_level_of_a_join_undoes_what_had_joined(level: str, then: str) -> None:
    """`then`: the node dies while its leave is at work, so that the join that became a leave is forced out."""
    kill = "12030 kill N2" if then else "12030 heal N2"
    steps = f"""9000 hang N1 {level}
                10000 boot N2
                11000 leave N2
                12000 unhang N1 {level}
                {kill}
                16000 boot N2"""
    work = ", ".join(f'{name} = "40ms"' for name in ("dlm", "vdm", "sfs", "em"))
    run = Rehearsed(scenario(3, steps, f"work = {{ {work} }}", booted=2))
    run.check_end("N0 N1 N2")
    order = ["dlm", "vdm", "sfs", "em"]
    place, begun = order.index(level), run.when_said("boot N2")
    back = run.when_node("N2", "inactive", run.when_said("N2 has stopped"))
    for number, name in enumerate(order):
        heard = [frame.levels[name]["N1"]["N2"] for frame in run.frames[begun:back]]
        if number > place:
            assert set(heard) == {"inactive"}, name
        elif number == place:
            assert heard.index("joined") < heard.index("leaving"), name
        else:
            assert "joined" in heard, name
    assert ("forced-leaving" in {frame.nodes["N2"] for frame in run.frames[begun:]}) == bool(then)


def test_spec_3_8_who_asked_a_node_to_leave_does_not_ask_its_next_incarnation() -> None:
    steps = """8000 kill N0
               8001 leave N1
               8010 kill N1
               8030 boot N1
               9500 boot N0"""
    run = Rehearsed(scenario(2, steps))
    run.check_end("N0 N1")


def test_spec_3_9_a_second_and_a_third_node_die_at_each_stage_of_the_first_one_s_forced_leave() -> None:
    work = ", ".join(f'{name} = "60ms"' for name in ("dlm", "vdm", "sfs", "em"))
    extra = f"work = {{ {work} }}\nbarriers = {{ vdm = {{ forced_leaving = 3 }} }}"
    for after_ms in (640, 700, 760, 880, 940, 1000):
        steps = f"""12000 kill N4
                    {12000 + after_ms} kill N0
                    {12020 + after_ms} kill N3
                    17000 boot N0"""
        run = Rehearsed(scenario(5, steps, extra))
        run.check_end("N0 N1 N2")
        for gone in ("N3", "N4"):
            assert run.history("em", "N1", gone)[-3:] == ["joined", "forced-leaving", "inactive"], after_ms


def test_spec_3_11_the_last_node_leaves_while_another_is_being_forced_out() -> None:
    steps = """6000 hang N0 dlm
               6000 kill N1
               8000 leave N0
               12000 unhang N0 dlm
               14000 boot N1"""
    run = Rehearsed(scenario(2, steps))
    run.check_end("N1")
    gone = run.when_node("N1", "inactive", run.when_node("N1", "forced-leaving"))
    assert gone < run.when_node("N0", "inactive", run.when_node("N0", "leaving"))


def test_spec_3_3_without_an_event_manager_s_level_every_level_registers_before_the_node_joins() -> None:
    run = Rehearsed(scenario(2, "6000 kill N1", 'levels = { a = 5, b = 50 }\nwork = { a = "0ms", b = "1.5s" }'))
    run.check_end("N0")
    booted = run.frames[run.when_said("a on N0 registers")]
    assert booted.levels["b"]["N0"]["N0"] == "inactive"
    assert run.history("b", "N0", "N1")[1:] == ["inactive", "joining", "joined", "forced-leaving", "inactive"]


def random_scenario(random: Random) -> str:
    """Two to five nodes booted together or apart, then failures, leaves and hangs that are mended again."""
    nodes = random.randint(2, 5)
    work = ", ".join(f'{level} = "{random.choice((5, 20, 50, 200))}ms"' for level in ("dlm", "vdm", "sfs", "em"))
    barriers = f"dlm = {{ joining = {random.randint(1, 3)} }}, sfs = {{ leaving = {random.randint(1, 2)} }}"
    gap_ms = random.choice((0, 10, 60, 2000))
    steps = [(gap_ms * node, f"boot N{node}") for node in range(nodes)]
    now_ms = gap_ms * nodes + random.choice((100, 400, 3000))
    for _ in range(random.randint(1, 5)):
        node = f"N{random.randrange(nodes)}"
        verb, remedy = random.choice(
            (("leave", ""), ("kill", "boot"), ("pause", "resume"), ("isolate", "heal"), ("blind", "heal"))
            + (("hang", "unhang"),) * 2
        )
        level = f" {random.choice(('dlm', 'vdm', 'sfs', 'em'))}" if verb == "hang" else ""
        steps.append((now_ms, f"{verb} {node}{level}"))
        if remedy:
            steps.append((now_ms + random.choice((50, 300, 4000)), f"{remedy} {node}{level}"))
        now_ms += random.choice((0, 10, 60, 150, 1000, 3000))
    lines = "\n".join(f"{at_ms} {deed}" for at_ms, deed in steps)
    return scenario(nodes, lines, f"work = {{ {work} }}\nbarriers = {{ {barriers} }}", booted=0)


@pytest.mark.parametrize("seed", range(30))
def test_spec_3_1_every_script_ends_with_all_subsystems_of_one_mind(seed: int) -> None:
    run = Rehearsed(random_scenario(Random(seed)), seed)
    run.check_table_1()
    assert run.verdict.settled, run.verdict.missing
    for level, holders in run.last.levels.items():
        for node, held in holders.items():
            assert held in (run.last.nodes, dict.fromkeys(held, NOT_REGISTERED)), (level, node)
            if run.last.master is not None:
                assert (held == run.last.nodes) == (run.last.nodes[node] == "joined"), (level, node)


def test_the_same_seed_gives_the_same_run_and_another_one_another() -> None:
    text = scenario(3, "7000 kill N1")
    first, again, other = (Rehearsed(text, seed).frames for seed in (5, 5, 6))
    assert first == again
    assert [frame.at_us for frame in first] != [frame.at_us for frame in other]


# ---- the scenario file -----------------------------------------------------------------------------------------------

GOOD = """title = "good"
[cluster]
nodes = ["a", "b"]
levels = { low = 1, high = 2 }
work = { low = "1.5s" }
[[step]]
at = "2m"
do = "hang b low"
[[step]]
at = "60s"
do = "boot a"
"""


def test_a_scenario_is_read_with_its_steps_in_the_order_of_their_times() -> None:
    found = parse(GOOD, "good.toml")
    assert (found.title, found.nodes) == ("good", ("a", "b"))
    assert [(level.name, level.number, level.work_us) for level in found.levels] == [
        ("low", 1, 1_500_000),
        ("high", 2, 10_000),
    ]
    assert found.steps == (
        ScriptStep(60_000_000, "boot", "a", "", 11),
        ScriptStep(120_000_000, "hang", "b", "low", 8),
    )


def test_the_levels_are_those_of_the_specification_where_none_are_given() -> None:
    found = parse('[cluster]\nnodes = ["a"]\n[[step]]\nat = "1s"\ndo = "boot a"', "short.toml")
    assert [(level.name, level.number) for level in found.levels] == [("dlm", 10), ("vdm", 20), ("sfs", 30), ("em", 40)]


BAD = [
    ('do = "boot a"', 'do = "reboot a"', 11, "unknown verb 'reboot'"),
    ('do = "boot a"', 'do = "boot c"', 11, "unknown node 'c'"),
    ('do = "boot a"', 'do = "boot"', 11, "write boot NODE"),
    ('do = "boot a"', 'do = "boot a b"', 11, "write boot NODE"),
    ('do = "boot a"', 'do = " "', 11, "do is empty"),
    ('do = "boot a"', "do = 3", 11, "do is 3"),
    ('do = "boot a"', 'do = "hang a middle"', 11, "unknown level 'middle'"),
    ('do = "boot a"', 'do = "hang a"', 11, "write hang NODE LEVEL"),
    ('do = "boot a"', 'do = "boot a"\nwhy = "so"', 12, "unknown key 'why'"),
    ('do = "boot a"', "", 9, "does not say what to do"),
    ('at = "60s"', 'at = "60"', 10, "at is '60'"),
    ('at = "60s"', "at = 60", 10, "at is 60"),
    ('at = "60s"', 'at = "2h"', 10, "at most 1h"),
    ('at = "60s"', "", 9, "does not say when"),
    ('title = "good"', "title = 5", 1, "is 5"),
    ('title = "good"', 'titel = "good"', 1, "did you mean 'title'?"),
    ('nodes = ["a", "b"]', 'nodes = "a"', 3, "is 'a'"),
    ('nodes = ["a", "b"]', 'nodes = ["a", "b", 5]', 3, "a list of names"),
    ('nodes = ["a", "b"]', 'nodes = ["a", "b", "a"]', 3, "names 'a' twice"),
    ('nodes = ["a", "b"]', 'nodes = ["a", "b", "c d"]', 3, "a name has"),
    ('nodes = ["a", "b"]', f"nodes = {json.dumps(['a', 'b', *map(str, range(39))])}", 3, "names 41 nodes"),
    ('nodes = ["a", "b"]', "", 2, "has no nodes"),
    ("[cluster]", "[cluster]\nnode = 1", 3, "did you mean 'nodes'?"),
    ("levels = { low = 1, high = 2 }", "levels = { low = 1, high = 1 }", 4, "is 1, as is 'low'"),
    ("levels = { low = 1, high = 2 }", "levels = { low = 0 }", 4, "is 0"),
    ("levels = { low = 1, high = 2 }", "levels = { low = true }", 4, "is true"),
    ("levels = { low = 1, high = 2 }", 'levels = { low = 1, "a b" = 2 }', 4, "names 'a b'"),
    ("levels = { low = 1, high = 2 }", "levels = 3", 4, "is 3"),
    ("levels = { low = 1, high = 2 }", "levels = { }", 4, "has 0 levels"),
    ('work = { low = "1.5s" }', 'work = { mid = "1s" }', 5, "unknown level 'mid'"),
    ('work = { low = "1.5s" }', "work = { low = 3 }", 5, "is 3"),
    ('work = { low = "1.5s" }', 'work = { low = "61m" }', 5, "at most 1h"),
    ('work = { low = "1.5s" }', "work = 1", 5, "is 1"),
    ('work = { low = "1.5s" }', "barriers = { mid = { joining = 2 } }", 5, "unknown level 'mid'"),
    ('work = { low = "1.5s" }', "barriers = { low = { join = 2 } }", 5, "unknown transition 'join'"),
    ('work = { low = "1.5s" }', "barriers = { low = { joining = 0 } }", 5, "has 0 for joining"),
    ('work = { low = "1.5s" }', "barriers = { low = 2 }", 5, "is 2"),
    ('work = { low = "1.5s" }', "barriers = { low = { forced-leaving = 1, forced_leaving = 1 } }", 5, "twice"),
    ("[cluster]", "[cluster", 2, "TOML"),
]


@pytest.mark.parametrize(("right", "wrong", "line", "words"), BAD)
def test_spec_7_8_what_is_wrong_in_a_scenario_is_named_with_its_line(
    right: str, wrong: str, line: int, words: str
) -> None:
    assert GOOD.count(right) == 1
    with pytest.raises(ScenarioError) as raised:
        parse(GOOD.replace(right, wrong), "bad.toml")
    first = str(raised.value.problems[0])
    assert first.startswith(f"bad.toml:{line}: "), raised.value
    assert words in first


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cluster: is missing"),
        ('[cluster]\nnodes = ["a"]', "has no steps"),
        ('step = 1\n[cluster]\nnodes = ["a"]', "begin each step with a line [[step]]"),
        ("cluster = 3", "cluster: is missing"),
    ],
)
def test_spec_7_8_a_scenario_without_its_parts_is_refused(text: str, words: str) -> None:
    with pytest.raises(ScenarioError, match=words.replace("[", r"\[")):
        parse(text, "bad.toml")


def test_spec_7_8_every_problem_of_a_scenario_is_named_at_once() -> None:
    with pytest.raises(ScenarioError) as raised:
        parse(GOOD.replace("boot a", "fly a").replace("hang b", "hang z").replace("high = 2", "high = -2"), "bad.toml")
    assert [problem.line for problem in raised.value.problems] == [4, 8, 11]


def test_spec_7_8_a_scenario_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    garbage, large = tmp_path / "garbage.toml", tmp_path / "large.toml"
    garbage.write_bytes(b"title = 1\n\xff\xfe")
    large.write_bytes(b"#" * (scenarios.MAXIMUM_FILE_BYTES + 1))
    for path, words in (
        (garbage, "garbage.toml:2: .*UTF-8"),
        (large, "larger than"),
        (tmp_path / "missing.toml", "or a shipped scenario: fig-11-12"),
        (tmp_path, "cannot be read"),
        (Path("a\0b"), "cannot be read"),
    ):
        with pytest.raises(ScenarioError, match=words):
            scenarios.read(path)


def test_the_figures_are_shipped() -> None:
    assert set(FIGURES) <= set(shipped())
    for name in shipped():
        assert find(name).title


def test_every_verb_can_be_rehearsed() -> None:
    verbs = [verb for verb, words in VERBS.items() if "SERVICE" not in words]  # see test_rehearsed_services.py
    given = {"NODE": "N0", "LEVEL": "dlm", "PROCESS": "guard", "STORE": "itself"}
    done = [" ".join((verb, *(given[what] for what in VERBS[verb]))) for verb in verbs]
    lines = [f"{5000 + 10 * n} {what}" for n, what in enumerate(done)]
    run = Rehearsed(scenario(2, "\n".join((*lines, "9000 heal N0", "12000 boot N0", "12000 boot N1"))))
    run.check_end("N0 N1")


# ---- the command -----------------------------------------------------------------------------------------------------


def test_spec_8_4_the_command_prints_one_object_a_line_and_the_verdict_last(muster: CommandLine) -> None:
    lines = [json.loads(line) for line in muster.succeed("rehearse", "fig-3-7", "--json").splitlines()]
    *frames, last = lines
    assert last == {"settled": True, "violations": []}
    for frame in frames:
        assert list(frame) == ["t", "event", "nodes", "master", "term", "levels", "services"]
    assert [frame["t"] for frame in frames] == sorted(frame["t"] for frame in frames)
    assert frames[0]["event"] == "boot N0"
    assert frames[-1]["nodes"] == {"N0": "joined", "N1": "inactive"}
    assert frames[-1]["levels"]["em"] == {
        "N0": {"N0": "joined", "N1": "inactive"},
        "N1": {"N0": NOT_REGISTERED, "N1": NOT_REGISTERED},
    }


def test_spec_8_4_the_same_command_prints_the_same_and_another_seed_another(muster: CommandLine) -> None:
    first = muster.succeed("rehearse", "fig-8-10", "--json")
    assert muster.succeed("rehearse", "fig-8-10", "--json", "--seed", "1") == first
    assert muster.succeed("rehearse", "fig-8-10", "--json", "--seed", "2") != first


def test_spec_8_4_without_json_the_command_prints_a_table_in_words(muster: CommandLine, tmp_path: Path) -> None:
    output = muster.succeed("rehearse", "fig-13-15")
    assert "Figs. 13-15" in output
    assert "-- .J  -- .J  -- fJ  -- .J  sfs on N1 is told: N0 forced-leaving" in output
    assert output.splitlines()[-1] == "the checkers found nothing"
    many = tmp_path / "many.toml"
    many.write_text(scenario(7, ""), encoding="utf-8")
    assert "settled at" in muster.succeed("rehearse", str(many))


def test_spec_7_8_the_command_names_the_lines_of_a_bad_scenario(muster: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(GOOD.replace("boot a", "boot nowhere").replace("2m", "soon"), encoding="utf-8")
    ended = muster.run("rehearse", str(path))
    assert ended.returncode == 2
    assert "2 problems; nothing was rehearsed" in ended.stderr
    assert f"{path}:7: step 1: at is 'soon'" in ended.stderr
    assert f"{path}:11: step 2: unknown node 'nowhere'" in ended.stderr
    assert not ended.stdout
