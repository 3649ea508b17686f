"""Rehearsals of services: SPEC tables 2 and 3 through the true core, and variants of them (SPEC 6, 8.4)."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from muster.sim.rehearsal import rehearsal
from muster.sim.rehearsal.scenario import ScenarioError, find, parse
from muster.ui.commands.rehearsal import rehearse

UP = ("joined", "leaving")


class Row(NamedTuple):
    """What a table shows: the service's state and flags, and each node's own state, `up` or `down`."""

    state: str
    flags: str
    nodes: tuple[str, ...]


def rows_of(lines: list[dict[str, Any]], name: str = "service") -> list[Row]:
    """The rows of a run's `--json` lines, one for each change."""
    rows: list[Row] = []
    for line in lines:
        service = line["services"][name]
        cells = [service["nodes"][node] or "up" if state in UP else "down" for node, state in line["nodes"].items()]
        row = Row(service["state"], "".join(service["flags"]), tuple(cells))
        if not rows or rows[-1] != row:
            rows.append(row)
    return rows


def lines_of(scenario: str) -> list[dict[str, Any]]:
    """The `--json` lines of a shipped scenario but the last, which must say that it settled without a violation."""
    result = CliRunner().invoke(rehearse, [scenario, "--json"])
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.output.splitlines()]
    assert lines[-1] == {"settled": True, "violations": []}
    return lines[:-1]


def play(text: str, seed: int = 1) -> tuple[list[rehearsal.Frame], rehearsal.Verdict]:
    """The frames and the verdict of a scenario of one's own."""
    *frames, verdict = rehearsal.rehearse(parse(text, "test.toml"), seed)
    assert isinstance(verdict, rehearsal.Verdict)
    assert not verdict.violations
    assert verdict.settled, verdict.missing
    return [frame for frame in frames if isinstance(frame, rehearsal.Frame)], verdict


def states_of(frames: list[rehearsal.Frame], name: str) -> list[tuple[str, str, str]]:
    """(state, flags, where) of a service, one for each change."""
    found: list[tuple[str, str, str]] = []
    for frame in frames:
        service = frame.services[name]
        at = [node for node, state in service["nodes"].items() if state not in (None, "notified")]
        seen = (service["state"], "".join(service["flags"]), ",".join(at))
        if not found or found[-1] != seen:
            found.append(seen)
    return found


# SPEC table 2, from "N2 boots" on: what the document says, not what the code makes.
TABLE_2 = [
    Row("de-registered", "", ("down", "down", "down")),
    Row("de-registered", "", ("down", "down", "up")),
    Row("de-registered", "M", ("up", "down", "up")),
    Row("starting", "", ("starting", "down", "up")),
    Row("registered", "", ("registered", "down", "up")),
    Row("registered", "", ("registered", "up", "up")),
    Row("registered", "", ("registered", "up", "down")),
    Row("stopping", "T", ("stopping", "up", "down")),
    Row("de-registered", "T", ("up", "up", "down")),
    Row("starting", "T", ("up", "starting", "down")),
    Row("registered", "", ("up", "registered", "down")),
    Row("registered", "", ("down", "registered", "down")),
    Row("stopping", "T", ("down", "stopping", "down")),
    Row("de-registered", "", ("down", "up", "down")),
    Row("de-registered", "", ("down", "down", "down")),
]
TABLE_3 = [
    Row("de-registered", "N", ("down", "down", "down")),
    Row("starting", "N", ("starting", "down", "down")),
    Row("registered", "N", ("registered", "down", "down")),
    Row("registered", "N", ("registered", "up", "down")),
    Row("registered", "N", ("registered", "notified", "down")),
    Row("stopping", "TN", ("stopping", "notified", "down")),
    Row("de-registered", "TN", ("up", "notified", "down")),
    Row("starting", "TN", ("up", "starting", "down")),
    Row("registered", "N", ("up", "registered", "down")),
    Row("registered", "N", ("down", "registered", "down")),
    Row("registered", "N", ("down", "registered", "up")),
    Row("registered", "N", ("down", "registered", "notified")),
    Row("registered", "N", ("up", "registered", "notified")),
    Row("registered", "N", ("notified", "registered", "notified")),
    Row("stopping", "TN", ("notified", "stopping", "notified")),
    Row("de-registered", "TN", ("notified", "up", "notified")),
    Row("starting", "TN", ("starting", "up", "up")),
    Row("registered", "N", ("registered", "up", "up")),
]


def test_table_2_is_reproduced_by_the_true_core() -> None:
    assert rows_of(lines_of("table-2")) == TABLE_2


def test_table_3_is_reproduced_by_the_true_core() -> None:
    rows = rows_of(lines_of("table-3"))
    assert rows[: len(TABLE_3)] == TABLE_3
    assert rows[-1] == Row("registered", "N", ("registered", "notified", "notified"))


def test_table_2_waits_its_five_minutes_from_the_first_allowable_node_on() -> None:
    lines = lines_of("table-2")
    began = next(line["t"] for line in lines if line["services"]["service"]["flags"] == ["M"])
    started = next(line["t"] for line in lines if line["services"]["service"]["state"] == "starting")
    assert 300 <= started - began < 301


def test_the_readable_table_has_the_columns_and_rows_of_the_document() -> None:
    output = CliRunner().invoke(rehearse, ["table-2"]).output
    assert "N0, I" in output
    assert "N2, I" not in output
    assert len(re.findall(r"^t\d+ ", output, re.MULTILINE)) == len(TABLE_2)


BASE = """
[cluster]
nodes = ["N0", "N1", "N2"]
{services}
[[step]]
at = "1s"
do = "boot N0"
[[step]]
at = "2s"
do = "boot N1"
[[step]]
at = "3s"
do = "boot N2"
{steps}
"""


def scenario(services: str, *steps: tuple[str, str]) -> str:
    return BASE.format(
        services=services, steps="".join(f'[[step]]\nat = "{at}"\ndo = "{deed}"\n' for at, deed in steps)
    )


WEB = """
[[service]]
name = "web"
node_preferences = {ordered = ["N0", "N1", "N2"]}
start_command = "/bin/web start"
stop_command = "/bin/web stop"
"""


def test_a_start_that_fails_goes_on_on_the_next_node() -> None:
    frames, _ = play(scenario(WEB + 'rehearsal = {start = {N0 = "fail", default = "2s"}}'))
    assert states_of(frames, "web")[-1] == ("registered", "", "N1")
    assert ("starting", "", "N0") in states_of(frames, "web")


def test_a_recovery_runs_after_a_loss_and_before_the_next_start() -> None:
    text = scenario(WEB + 'recovery_command = "/bin/recover"\nrehearsal = {recovery = "5s"}', ("20s", "kill N0"))
    frames, _ = play(text)
    assert [state for state, _, _ in states_of(frames, "web")][-4:] == [
        "recovering", "de-registered", "starting", "registered",
    ]  # fmt: skip
    assert states_of(frames, "web")[-1][2] == "N1"


def test_a_stop_that_fails_blocks_the_leave_with_a_cause() -> None:
    text = scenario(WEB + 'rehearsal = {stop = "fail"}', ("20s", "leave N0"))
    *frames, verdict = rehearsal.rehearse(parse(text, "test.toml"), 1)
    assert isinstance(verdict, rehearsal.Verdict)
    assert not verdict.violations
    assert not verdict.settled
    assert "N0" in verdict.missing
    last = frames[-1]
    assert isinstance(last, rehearsal.Frame)
    assert last.services["web"]["state"] == "stopping"


def test_operators_register_deregister_and_transfer() -> None:
    text = scenario(
        WEB + 'auto_register = "manual"', ("10s", "register web"), ("20s", "transfer web N2"), ("30s", "deregister web")
    )
    states = states_of(play(text)[0], "web")
    assert states[0] == ("de-registered", "", "")
    assert ("registered", "", "N0") in states
    assert ("stopping", "T", "N0") in states
    assert ("registered", "", "N2") in states
    assert states[-2:] == [("stopping", "", "N2"), ("de-registered", "", "")]


def test_a_process_that_dies_is_restarted_in_place_then_moved() -> None:
    steps = [(f"{20 + 5 * number}s", "fail web N0") for number in range(2)]
    states = states_of(play(scenario(WEB + "restarts = 1", *steps))[0], "web")
    assert states[-1] == ("registered", "", "N1")
    assert states.count(("registered", "", "N0")) == 2


GROUP = """
[[service]]
name = "disk"
start_command = "/bin/disk"
stop_command = "/bin/disk stop"
[[service]]
name = "web"
parent = "disk"
start_command = "/bin/web"
stop_command = "/bin/web stop"
rehearsal = {stop = "3s"}
"""


@pytest.mark.parametrize("deed", ["leave N0", "kill N0", "transfer disk N2"])
def test_a_group_moves_as_one(deed: str) -> None:
    frames, _ = play(scenario(GROUP, ("20s", deed)))
    disk, web = states_of(frames, "disk"), states_of(frames, "web")
    assert disk[-1][0] == web[-1][0] == "registered"
    assert disk[-1][2] == web[-1][2] != "N0"
    for frame in frames:
        if frame.services["web"]["state"] in ("starting", "registered"):
            assert frame.services["disk"]["state"] in ("registered", "starting", "de-registered")
        if frame.services["web"]["state"] == "starting":
            assert frame.services["disk"]["state"] == "registered"


@pytest.mark.parametrize("second", ["kill N0", "kill N1", "leave N1"])
@pytest.mark.parametrize("moment", ["20.5s", "22s", "24s", "27s"])
def test_a_transfer_cut_by_the_loss_of_either_node_or_the_master_ends_with_one_running(
    second: str, moment: str
) -> None:
    timed = WEB + 'rehearsal = {start = "3s", stop = "3s"}'
    frames, _ = play(scenario(timed, ("20s", "transfer web N1"), (moment, second)))
    assert states_of(frames, "web")[-1][:2] == ("registered", "")


def test_a_wait_for_maturity_survives_a_change_of_master() -> None:
    service = WEB.replace("node_preferences", 'allowable_nodes = ["N0", "N1"]\nmaturity_count = 2\n#')
    boots = "".join(f'[[step]]\nat = "{at}s"\ndo = "boot {node}"\n' for at, node in ((1, "N2"), (2, "N3"), (3, "N0")))
    cluster = '[cluster]\nnodes = ["N0", "N1", "N2", "N3"]\n'
    frames, _ = play(cluster + service + 'maturity_time = "1m"\n' + boots + '[[step]]\nat = "30s"\ndo = "kill N2"\n')
    began = next(frame.at_us for frame in frames if "M" in frame.services["web"]["flags"])
    started = next(frame.at_us for frame in frames if frame.services["web"]["state"] == "starting")
    assert 60_000_000 <= started - began < 62_000_000
    assert {frame.master for frame in frames if frame.at_us < 30_000_000} == {None, "N2"}


WRONG = {
    'do = "register wev"': ("unknown service 'wev'", "did you mean 'web'?"),
    'do = "transfer web"': ("do is 'transfer web'", "write transfer SERVICE NODE"),
    'do = "fail web N7"': ("unknown node 'N7'", "there are N0, N1, N2"),
}


@pytest.mark.parametrize("line", WRONG)
def test_what_a_step_names_wrongly_is_said_with_its_line(line: str) -> None:
    text = scenario(WEB) + f'[[step]]\nat = "9s"\n{line}\n'
    with pytest.raises(ScenarioError) as caught:
        parse(text, "test.toml")
    (problem,) = caught.value.problems
    assert text.splitlines()[problem.line - 1] == line
    assert (problem.what, problem.allowed) == WRONG[line]


@pytest.mark.parametrize(
    "line",
    [
        'rehearsal = {strat = "1s"}',
        'rehearsal = {start = "soon"}',
        'rehearsal = {start = {N9 = "1s"}}',
        "rehersal = {}",
    ],
)
def test_what_a_rehearsal_key_says_wrongly_is_said_with_its_line(line: str) -> None:
    text = scenario(WEB + line)
    with pytest.raises(ScenarioError) as caught:
        parse(text, "test.toml")
    assert text.splitlines()[caught.value.problems[0].line - 1] == line


def test_the_shipped_tables_are_found_by_name() -> None:
    assert {service.definition.name for service in find("table-3").services} == {"service"}


# ---- what has ended leaves nothing behind ----------------------------------------------------------------------------


def words_of(frames: list[rehearsal.Frame], start: str) -> list[str]:
    """What happened, of that which begins so."""
    return [event for frame in frames for event in frame.events if event.startswith(start)]


def test_a_registration_after_a_de_registration_says_and_keeps_nothing_of_the_past() -> None:
    steps = [("10s", "transfer web N2"), ("11s", "deregister web"), ("20s", "register web")]
    frames, _ = play(scenario(WEB + 'rehearsal = {stop = "3s"}', *steps))
    starts = words_of(frames, "web: starting")
    assert starts[-1] == "web: starting on N0 (registered)"  # preferred: the move has left no wish behind
    assert not [words for words in starts if "de-registered by an operator" in words]


def test_a_transfer_in_vain_goes_back_to_the_preferred_node() -> None:
    steps = [("10s", "transfer web N2")]
    frames, _ = play(scenario(WEB + 'rehearsal = {start = {N2 = "fail", default = "1s"}}', *steps))
    assert [(state, where) for state, _, where in states_of(frames, "web")[-6:]] == [
        ("stopping", "N0"), ("de-registered", ""), ("starting", "N2"), ("de-registered", ""), ("starting", "N0"),
        ("registered", "N0"),
    ]  # fmt: skip
    assert [flags for _, flags, _ in states_of(frames, "web")[-6:]] == ["T", "T", "T", "T", "T", ""]


def test_no_free_transfer_to_a_node_on_which_the_service_could_not_be_started() -> None:
    free = WEB + 'transfer_cost = "free"\nrehearsal = {start = {N0 = "fail", default = "1s"}}'
    frames, _ = play(scenario(free))
    assert states_of(frames, "web")[-1] == ("registered", "", "N1")
    assert states_of(frames, "web").count(("registered", "", "N1")) == 1


def test_a_child_that_keeps_failing_is_not_restarted_for_ever() -> None:
    child = '\n[[service]]\nname = "child"\nparent = "web"\nstart_command = "/bin/child"\nrestarts = 1\n'
    frames, _ = play(scenario(WEB + child, ("10s", "fail child N0"), ("20s", "fail child N0")))
    starts = [words for words in words_of(frames, "child: ") if words.startswith("child: starting")]
    assert len(starts) == 2
    assert states_of(frames, "child")[-1] == ("de-registered", "", "")
    assert states_of(frames, "web")[-1] == ("registered", "", "N0")


def test_a_node_that_is_down_has_no_state_of_its_own() -> None:
    notifying = WEB + 'notify_command = "/bin/tell"\nrehearsal = {notify = "1s"}'
    frames, _ = play(scenario(notifying, ("10s", "leave N1"), ("20s", "leave N2"), ("30s", "kill N0")))
    assert any(frame.services["web"]["nodes"]["N1"] == "notified" for frame in frames)
    for frame in frames:
        down = {node for node, state in frame.nodes.items() if state == "inactive"}
        assert {frame.services["web"]["nodes"][node] for node in down} <= {None}


# ---- what runs on every node -----------------------------------------------------------------------------------------

EVERYWHERE = """
[[service]]
name = "cache"
placement_policy = "register_on_all"
disallowable_nodes = ["N2"]
start_command = "/bin/cache"
stop_command = "/bin/cache stop"
rehearsal = {start = "2s", stop = "2s"}
[[service]]
name = "fill"
parent = "cache"
"""


def test_a_service_of_all_nodes_is_shown_as_one_with_the_state_of_each_node() -> None:
    frames, _ = play(scenario(EVERYWHERE, ("20s", "fail cache N1"), ("30s", "leave N0")))
    assert {name for frame in frames for name in frame.services} == {"cache", "fill"}
    both = {"N0": "registered", "N1": "registered", "N2": None}
    at_rest = next(frame for frame in frames if frame.services["fill"]["nodes"] == both)
    assert at_rest.services["cache"] == {"state": "registered", "flags": [], "nodes": both}
    failed = next(frame for frame in frames if frame.services["cache"]["nodes"]["N1"] == "stopping")
    assert failed.services["cache"]["nodes"]["N0"] == "registered"
    assert failed.services["fill"]["nodes"] == {"N0": "registered", "N1": None, "N2": None}
    left = next(frame for frame in frames if frame.services["cache"]["nodes"]["N0"] == "stopping")
    assert (left.services["cache"]["state"], left.services["cache"]["flags"]) == ("registered", ["T"])
    assert frames[-1].services["cache"]["nodes"] == {"N0": None, "N1": "registered", "N2": None}


# ---- commands --------------------------------------------------------------------------------------------------------


def test_a_start_that_takes_too_long_fails_after_all_its_tries() -> None:
    retried = 'start_timeout = "1s"\nstart_retries = 2\nretry_pause = "500ms"\nrehearsal = {start = {N0 = "3s"}}'
    frames, _ = play(scenario(WEB + retried))
    began = next(frame.at_us for frame in frames if frame.services["web"]["state"] == "starting")
    ended = next(frame.at_us for frame in frames if "web: start failed on N0" in frame.events)
    assert ended - began == pytest.approx(4_000_000, abs=10_000)
    assert states_of(frames, "web")[-1] == ("registered", "", "N1")


BARE = '\n[[service]]\nname = "web"\n'


def test_a_command_that_does_not_exist_is_not_made_up() -> None:
    table = BARE + 'start_command = "/bin/web"\nrehearsal = {start = "1s", notify = "1s", recovery = "1s"}'
    frames, _ = play(scenario(table, ("10s", "kill N0")))
    assert {flag for _, flags, _ in states_of(frames, "web") for flag in flags} == {"T"}
    assert "recovering" not in {state for state, _, _ in states_of(frames, "web")}
    bare = BARE + 'rehearsal = {start = "1s", notify = "1s"}'  # none is named: these are meant
    assert ("starting", "N", "N0") in states_of(play(scenario(bare))[0], "web")


def test_a_leave_that_waits_for_a_service_says_so() -> None:
    text = scenario(WEB + 'rehearsal = {stop = "fail"}', ("20s", "leave N0"))
    *_, verdict = rehearsal.rehearse(parse(text, "test.toml"), 1)
    assert isinstance(verdict, rehearsal.Verdict)
    assert "waits for web is stopping: stop failed on N0" in verdict.missing


def test_the_readable_table_tells_what_was_asked_for_in_vain(tmp_path: Path) -> None:
    path = tmp_path / "vain.toml"
    path.write_text(
        scenario(
            WEB, ("10s", "fail web N1"), ("11s", "transfer web N0"), ("12s", "leave N1"), ("20s", "transfer web N1")
        )
    )
    output = CliRunner().invoke(rehearse, [str(path)]).output
    assert "fail web N1: it does not run there" in output
    assert "transfer web N1 refused: web stays on N0: N1 is inactive" in output


WITHOUT_STOP = """
title = "a start command and nothing to stop it with"
[cluster]
nodes = ["N0", "N1"]
[[service]]
name = "address"
node_preferences = {ordered = ["N0", "N1"]}
start_command = "/bin/add"
rehearsal = {start = "2s"}
[[step]]
at = "0s"
do = "boot N0"
[[step]]
at = "0s"
do = "boot N1"
[[step]]
at = "20s"
do = "transfer address N1"
[[step]]
at = "30s"
do = "fail address N1"
[[step]]
at = "40s"
do = "leave N1"
[[step]]
at = "50s"
do = "deregister address"
"""


def test_stopping_is_skipped_where_its_command_does_not_exist() -> None:
    """SPEC 6.7."""
    frames, _ = play(WITHOUT_STOP)
    assert states_of(frames, "address") == [
        ("de-registered", "", ""),
        ("starting", "", "N0"),
        ("registered", "", "N0"),
        ("de-registered", "T", ""),
        ("starting", "T", "N1"),
        ("registered", "", "N1"),
        ("de-registered", "", ""),  # it has failed
        ("starting", "", "N1"),
        ("registered", "", "N1"),
        ("de-registered", "T", ""),
        ("starting", "T", "N0"),
        ("registered", "", "N0"),
        ("de-registered", "", ""),
    ]
