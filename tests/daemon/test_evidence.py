"""A paused node, a cut link, a lost store and a dead node are told apart by their evidence (SPEC 7.4, 7.5)."""

import itertools
import subprocess
import sys
from contextlib import closing
from typing import Any

import pytest

from dev_cluster import DevCluster
from muster.core.inputs import OwnLinksChanged
from muster.core.leases.diagnosis import CONDITIONS, Signs, diagnose
from muster.core.links.links import Links
from muster.drivers.machine.own_links import OwnLinks, addresses_of
from muster.records.registers import RegisterKind, View, decode_register, encode_register
from muster.records.terms import Stamp, Term
from muster.records.timing import FAST, PROFILES, Profile
from muster.ui.commands.links import page

WELL = Signs("live", 0, 0, 0, connected=True, acknowledges=True, cut_off=False, heard_by=("n1",), store_lost_ms=0,
             own_store_lost_ms=0)  # fmt: skip
LATE = 5000


@pytest.mark.parametrize(
    ("signs", "condition", "words"),
    [
        (WELL, "well", ""),
        (WELL._replace(frame_silent_ms=LATE), "cut link", "its lease and its view in the store advance"),
        (WELL._replace(frame_silent_ms=LATE, connected=False), "cut link", "n1 hears it"),
        (WELL._replace(frame_silent_ms=LATE, heard_by=("n1", "n2")), "cut link", "n1, n2 hear it"),
        (WELL._replace(connected=False), "silent", "to tell a cut link from a node that has stopped"),
        (WELL._replace(frame_silent_ms=LATE, cut_off=True), "own links down", "its links are down"),
        (WELL._replace(lease_silent_ms=LATE, view_silent_ms=LATE), "store lost", "heard on the interconnect"),
        (
            WELL._replace(lease_silent_ms=LATE, view_silent_ms=LATE, store_lost_ms=4000),
            "store lost",
            "it says so itself, for 4000 ms",
        ),
        (WELL._replace(view_silent_ms=LATE), "store lost", "its daemon is heard, but that writes nothing"),
        (WELL._replace(view_silent_ms=LATE, frame_silent_ms=LATE), "daemon silent", "its guard renews the lease"),
        (
            WELL._replace(lease_silent_ms=LATE, view_silent_ms=LATE, frame_silent_ms=LATE),
            "paused",
            "its kernel acknowledges what is sent",
        ),
        (
            WELL._replace(lease_silent_ms=LATE, view_silent_ms=LATE, frame_silent_ms=LATE, acknowledges=False),
            "silent",
            "nothing acknowledges what is sent to it",
        ),
        (
            WELL._replace(lease_silent_ms=LATE, view_silent_ms=LATE, connected=False, acknowledges=None),
            "silent",
            "its connection has ended",
        ),
        (
            WELL._replace(
                lease_silent_ms=LATE, view_silent_ms=LATE, connected=False, gone="lease expired", member=False
            ),
            "dead",
            "lease expired",
        ),
        (WELL._replace(lease="clean", connected=False), "left", "tombstone"),
        (WELL._replace(lease="panicked", connected=False, gone="panic: its disk"), "dead", "panic: its disk"),
        (WELL._replace(lease="never", connected=False), "never ran", "no incarnation"),
        (WELL._replace(own_store_lost_ms=900), "well", "this node has not been able to read the store"),
        (WELL._replace(own_store_lost_ms=900, store_lost_ms=800), "store lost", "it says the same of itself"),
        (WELL._replace(own_store_lost_ms=900, connected=False), "unknown", "hears nothing from it"),
    ],
)
def test_each_condition_has_its_own_signs(signs: Signs, condition: str, words: str) -> None:
    found = diagnose(signs, FAST, 3)
    assert found.condition == condition
    assert words in found.evidence


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_a_node_that_stops_as_a_whole_is_at_no_moment_taken_for_one_whose_link_is_cut(profile: Profile) -> None:
    """SPEC 7.4: paused or killed, it sends, renews and writes until then, and each sign is of a different age."""
    interval_ms = profile.heartbeat_interval_ms(3)
    ages = itertools.product((0, profile.renew_ms), (0, interval_ms), (0, profile.view_ms), (0, profile.read_ms))
    for renewed_ms, spoke_ms, wrote_ms, read_ms in ages:
        for stopped_ms in range(0, profile.lease_ms, 10):
            signs = WELL._replace(
                lease_silent_ms=max(0, stopped_ms + renewed_ms - read_ms), frame_silent_ms=stopped_ms + spoke_ms,
                view_silent_ms=max(0, stopped_ms + wrote_ms - read_ms),
            )  # fmt: skip
            for connected in (True, False):
                found = diagnose(signs._replace(connected=connected), profile, 3)
                assert found.condition in {"well", "silent", "paused"}, (signs, found)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_a_cut_link_is_told_within_what_renewals_and_heartbeats_take(profile: Profile) -> None:
    soon_ms = 2 * profile.heartbeat_interval_ms(3) + profile.renew_ms + 3 * profile.read_ms
    for renewed_ms in (0, profile.renew_ms):
        cut = WELL._replace(frame_silent_ms=soon_ms, lease_silent_ms=renewed_ms + profile.read_ms, connected=False)
        assert diagnose(cut, profile, 3).condition == "cut link"


def test_whatever_the_signs_there_is_one_condition_and_all_but_the_well_have_evidence() -> None:
    seen = set()
    truths = (False, True)
    ages = (0, LATE)
    every: Any = itertools.product(
        ("live", "clean", "panicked", "never"), ages, ages, ages, truths, (None, *truths), truths, [()], ages, ages,
        ("", "proof"), truths,
    )  # fmt: skip
    for each in every:
        signs = Signs(*each)
        found = diagnose(signs, FAST, 3)
        assert found.condition in CONDITIONS
        assert found.evidence or found.condition == "well"
        seen.add(found.condition)
    assert seen == set(CONDITIONS)


def test_a_view_says_that_the_own_links_are_down_and_is_as_before_where_they_are_not() -> None:
    stamp = Stamp(3, 5, Term(2, 1), 9)
    whole = View(stamp, frozenset({0, 2}))
    for view in (whole, whole._replace(cut_off=True), View(stamp, frozenset(), cut_off=True)):
        assert decode_register(RegisterKind.VIEW, stamp, encode_register(view)) == view
    assert len(encode_register(whole)) == 8  # what the releases before could read


def test_p4_4_a_view_is_written_at_once_when_the_own_links_change() -> None:
    links = Links(0, FAST, 0, 0)
    assert links.view_due(1, [0], 1) == frozenset()
    links.view_written(frozenset(), 1)
    assert links.view_due(1, [0], 2) is None
    links.cut_off = OwnLinksChanged(cut_off=True).cut_off
    assert links.view_due(1, [0], 3) == frozenset()
    links.view_written(frozenset(), 3)
    assert links.view_due(1, [0], 4) is None


def test_an_address_that_no_interface_holds_decides_nothing() -> None:
    for hosts in (("127.0.0.1",), ("203.0.113.7",), ("no-such-host.invalid",), ("127.0.0.1", "203.0.113.7")):
        with closing(OwnLinks(addresses_of(hosts))) as links:
            assert not links.cut_off(), hosts


def test_an_interface_that_goes_down_is_seen_in_the_processs_own_network_namespace() -> None:
    program = """
import ctypes, fcntl, os, select, socket, struct
if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):
    raise SystemExit(77)
from muster.drivers.machine.own_links import OwnLinks
handle = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
def put(flags):
    fcntl.ioctl(handle, 0x8914, struct.pack("16sH22x", b"lo", flags))
put(1)
links, both = OwnLinks(("127.0.0.1",)), OwnLinks(("127.0.0.1", "::1"))
def told():
    return bool(select.select([links.changes], [], [], 0 if quiet else 30)[0])
assert not links.cut_off() and not both.cut_off()
quiet = True
links.drain()
assert not told()
quiet = False
put(0)
assert told() and links.cut_off() and both.cut_off()
links.drain()
put(1)
assert told() and not links.cut_off() and not both.cut_off()
links.close()
links.close()
both.close()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    if ended.returncode == 77:
        pytest.skip("not applicable: this user may not make a network namespace")
    assert ended.returncode == 0, ended.stderr


def test_the_matrix_shows_every_direction_and_the_reasons() -> None:
    row: dict[str, Any] = {"own_links": "up", "view_age_ms": 100, "live": True, "member": True, "counted": True}
    answer = {
        "cluster": "c",
        "node": "n0",
        "matrix": {
            "n0": {**row, "hears": ["n1", "n2"]},
            "n1": {**row, "hears": ["n0"]},
            "n2": {**row, "hears": [], "own_links": "down"},
        },
        "broken": [["n0", "n2"], ["n1", "n2"]],
        "surviving": ["n0", "n1"],
        "outside": [{"node": "n2", "reason": "its own interfaces have no link"}],
    }
    lines = page(answer)
    assert [line.split() for line in lines[3:6]] == [
        ["n0", ".", "yes", "yes", "up", "0.1", "s"],
        ["n1", "yes", ".", "NO", "up", "0.1", "s"],
        ["n2", "NO", "NO", ".", "down", "0.1", "s"],
    ]
    assert "  n2 is outside: its own interfaces have no link" in lines


def test_a_hung_node_and_one_whose_power_was_cut_are_told_apart_on_real_daemons(dev_cluster: DevCluster) -> None:
    # with slow timers a look at the hung node comes in time, however busy this machine is
    dev_cluster.up(3)
    well = dev_cluster.wait_for(
        "all to be well", lambda status: all(node["condition"] == "well" for node in status["nodes"].values())
    )
    assert well["nodes"]["n1"]["evidence"] == ""
    links = dev_cluster.json("links")
    assert links["broken"] == []
    assert set(links["surviving"]) == {"n0", "n1", "n2"}
    assert sorted(links["matrix"]["n1"]["hears"]) == ["n0", "n2"]
    dev_cluster.succeed("dev", "hang", "n2")
    hung = dev_cluster.wait_for("n2 to be dead", lambda status: status["nodes"]["n2"]["condition"] == "dead", node="n0")
    evidence = hung["nodes"]["n2"]["evidence"]
    assert "the kernel's word" in evidence
    assert "before that paused" in evidence
    dev_cluster.succeed("dev", "kill", "n1")
    cut = dev_cluster.wait_for("n1 to be dead", lambda status: status["nodes"]["n1"]["condition"] == "dead", node="n0")
    assert "the kernel's word" in cut["nodes"]["n1"]["evidence"]
    assert "before that paused" not in cut["nodes"]["n1"]["evidence"]
    assert "dead: the kernel's word" in dev_cluster.succeed("status", "--node", "n0").replace("\n", " ")
    assert "nobody is outside" in dev_cluster.succeed("links", "--node", "n0")


def test_a_node_is_cut_off_only_where_every_interface_of_all_its_addresses_is_known_and_without_a_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ipv4, ipv6, running = {"10.0.0.1": "eth0"}, {"fd00::1": "eth1"}, {"eth0", "eth1"}
    monkeypatch.setattr("muster.drivers.machine.own_links._ipv4_interfaces", lambda _handle: ipv4)
    monkeypatch.setattr("muster.drivers.machine.own_links._ipv6_interfaces", lambda: ipv6)
    monkeypatch.setattr("muster.drivers.machine.own_links._is_running", lambda _handle, interface: interface in running)
    with closing(OwnLinks(("10.0.0.1", "fd00::1"))) as links:
        assert not links.cut_off()
        running.discard("eth0")
        assert not links.cut_off()  # one link is enough
        running.clear()
        assert links.cut_off()
        ipv6.clear()
        assert links.cut_off()  # it goes with its link: what held it last stands for it
        running.add("eth1")
        assert not links.cut_off()
        running.clear()
        links.watch({"10.0.0.1", "10.0.0.9"})
        assert not links.cut_off()  # of one nothing is known
        links.watch(set())
        assert not links.cut_off()
        links.watch({"10.0.0.1"})
        assert links.cut_off()

        def fail(_handle: object) -> dict[str, str]:
            raise OSError("no descriptors")

        monkeypatch.setattr("muster.drivers.machine.own_links._ipv4_interfaces", fail)
        assert not links.cut_off()  # what cannot be known decides nothing
