"""Latency profiles: derived timelines, bounds, overrides (SPEC 7.6)."""

import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bad_input import SMALL, clear, refused
from bad_input import musterd as start_daemon
from dev_cluster import CommandLine, DevCluster
from muster.core.links.links import NEWER_VIEWS
from muster.dev.development_cluster import free_addresses
from muster.drivers.store.disk.inspection import newest_database
from muster.records import profiles as derived
from muster.records.profiles import (
    eviction_ms,
    host_outages,
    host_timeline,
    outages,
    profile_with,
    takeover_ms,
    timeline,
)
from muster.records.timing import FAST, PROFILES, STANDARD, InconsistentProfile, Profile, check
from muster.ui.commands.profile import picture

NOWHERE = ("--socket", "/nowhere/control.sock")


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_the_timeline_is_in_order_and_its_ends_are_the_bounds(profile: Profile) -> None:
    moments = timeline(profile, 3)
    assert all(moment.from_ms <= moment.to_ms for moment in moments)
    deaths = [moment for moment in moments if "silent" not in moment.what]
    assert [moment.to_ms for moment in deaths] == sorted(moment.to_ms for moment in deaths)
    bounds = {outage.fault: outage.bound_ms for outage in outages(profile, 3)}
    own = bool(profile.mastership_ms)  # the mastership has a lease of its own: nobody waits for the proof (P2.15)
    (proof,) = [moment for moment in moments if moment.what.startswith("proof of death")]
    assert bounds["power cut"] == profile.proof_ms() == proof.to_ms
    assert bounds["power cut, master"] == moments[-1].to_ms == profile.proof_ms() + (0 if own else takeover_ms(profile))
    assert bounds["daemon crash"] is None
    (panic,) = [moment for moment in moments if moment.what.startswith("panic bound")]
    assert panic.to_ms == profile.lease_ms  # nothing of it runs before anybody may count it dead
    assert proof.from_ms > profile.lease_ms


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_p7_12_in_scope_host_what_hangs_ends_as_soon_as_before_and_no_stall_of_5_s_ends_a_node(
    profile: Profile,
) -> None:
    leased = profile.leased(one_machine=True)
    assert profile.leased(one_machine=False) == profile
    assert leased.loop_ms - min(profile.renew_ms, profile.panic_bound_ms) - 2 * profile.renew_ms >= 5000
    moments = host_timeline(profile, 3)
    assert [moment.from_ms for moment in moments[2:4]] == [profile.lease_ms - profile.panic_bound_ms] * 2
    assert moments[3].to_ms == profile.lease_ms
    bounds = {outage.fault: outage.bound_ms for outage in host_outages(profile, 3)}
    assert bounds["node hangs"] == profile.lease_ms
    assert bounds["store hangs"] is None


def test_a_cut_link_is_decided_from_as_many_newer_views_as_the_rules_want() -> None:
    assert derived._VIEWS == NEWER_VIEWS
    assert eviction_ms(FAST, 40) > eviction_ms(FAST, 3)  # more nodes: fewer heartbeats on each link


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ((("renew_ms", 400),), "3 * renew_ms <= lease_ms - panic_bound_ms"),
        ((("gap_ms", 10),), "read_ms * 2 <= gap_ms"),
        ((("gap_ms", 700),), "gap_ms < lease_ms"),
        ((("pulse_loss_ms", 60),), "pulse_ms * 5 <= pulse_loss_ms"),
        ((("restart_ms", 500),), "pulse_loss_ms <= restart_ms"),
        ((("link_loss_beats", 1),), "2 <= link_loss_beats"),
        ((("view_ms", 601),), "view_ms <= lease_ms"),
        ((("claim_stagger_ms", 20),), "2 * read_ms <= claim_stagger_ms"),
        ((("heartbeats_per_second", 0),), "0 < heartbeats_per_second"),
        ((("read_ms", -1),), "0 < read_ms"),
        ((("lease_ms", 10**9),), "lease_ms <= 3600000"),
        ((("colour", 1),), "there is no timer 'colour'"),
        ((("name", 1),), "there is no timer 'name'"),
    ],
)
def test_an_override_is_refused_with_the_inequality_that_it_breaks(
    muster: CommandLine, tmp_path: Path, overrides: tuple[tuple[str, int], ...], words: str
) -> None:
    with pytest.raises(InconsistentProfile) as error:
        profile_with(FAST, overrides)
    assert words in str(error.value)
    given_words = [word for key, value in overrides for word in ("--set", f"{key}={value}")]
    shown = clear(muster.run("profile", "show", "fast", *given_words), 2)
    arguments = ("init", str(tmp_path / "store"), "--name", "c", "--nodes", "n0=127.0.0.1:7700", *SMALL)
    made = clear(muster.run(*arguments, *given_words, "--keys", str(tmp_path / "keys")), 2)
    assert words in shown
    assert words in made
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("word", ["renew_ms", "renew_ms=", "renew_ms=soon", "=5", "renew_ms=1.5", "renew_ms=1e3"])
def test_what_sets_nothing_is_refused(muster: CommandLine, word: str) -> None:
    assert "--set" in clear(muster.run("profile", "show", "fast", "--set", word), 2)


def test_an_unknown_profile_is_refused_with_those_there_are(muster: CommandLine) -> None:
    assert "fast, standard, virtualised" in clear(muster.run("profile", "show", "slow"), 2)
    assert "set twice" in clear(muster.run("profile", "show", "--set", "read_ms=5", "--set", "read_ms=6"), 2)


@given(st.lists(st.tuples(st.sampled_from(FAST._fields[1:]), st.integers(-5, 20_000)), max_size=4))
def test_whatever_is_set_the_profile_is_consistent_or_refused(overrides: list[tuple[str, int]]) -> None:
    try:
        found = profile_with(FAST, tuple(overrides))
    except InconsistentProfile:
        return
    assert check(found) == found
    for nodes in (1, 3, 40):
        assert all(outage.bound_ms is None or outage.bound_ms > 0 for outage in outages(found, nodes))
        for moments in (timeline(found, nodes), host_timeline(found, nodes)):
            assert all(len(line) < 140 for line in picture(moments))


def test_the_picture_is_to_scale() -> None:
    lines = picture(timeline(STANDARD, 3))
    end_ms = timeline(STANDARD, 3)[-1].to_ms
    ruler = lines[1][2:]
    for tick in re.findall(r"'\d+", ruler):
        assert ruler.index(f"{tick} " if f"{tick} " in ruler else tick) == int(tick[1:]) * 56 // end_ms
    begin_ms = STANDARD.lease_ms - STANDARD.panic_bound_ms
    (lease,) = [line for line in lines if line.endswith(f" {begin_ms}..{STANDARD.lease_ms}")]
    assert lease.index("|") - 2 == begin_ms * 56 // end_ms
    assert lease.rindex("|") - 2 == STANDARD.lease_ms * 56 // end_ms


def test_profiles_are_shown_for_people_and_programs_with_or_without_a_cluster(muster: CommandLine) -> None:
    text = muster.succeed("profile", "show", "virtualised", "--nodes", "5")
    assert all(outage.fault in text for outage in outages(PROFILES["virtualised"], 5))
    assert "renew_ms=1000" in text
    answer = muster.json("profile", "show", *NOWHERE)
    assert (answer["profile"], answer["nodes"]) == ("standard", 3)
    assert answer["timers"]["lease_ms"] == STANDARD.lease_ms
    tried = muster.json("profile", "show", "fast", "--set", "lease_ms=1200")
    assert tried["overrides"] == {"lease_ms": 1200}
    assert "no node answers" in muster.succeed("profile", "show", *NOWHERE)


def test_timers_set_at_init_are_in_the_store_and_at_work(muster: CommandLine, dev_cluster: DevCluster) -> None:
    (address,) = free_addresses(1)
    arguments = ("--nodes", f"n0={address}", *SMALL, "--set", "lease_ms=1200", "--set", "panic_bound_ms=240")
    base = dev_cluster.directory
    base.mkdir()
    muster.succeed("init", str(base / "store"), "--name", "c", *arguments, "--keys", str(base / "keys"))
    assert newest_database(str(base / "store")).cluster.timers == (("lease_ms", 1200), ("panic_bound_ms", 240))
    (base / "nodes").mkdir()
    shutil.copytree(base / "keys" / "n0", base / "nodes" / "n0")
    cluster = {"name": "c", "profile": "fast", "nodes": [{"name": "n0", "address": address}]}
    (base / "cluster.json").write_text(json.dumps(cluster))
    ended = start_daemon(base / "store", "n9", base / "nodes" / "n0")
    assert "n9" in refused(ended)
    try:
        dev_cluster.succeed("dev", "boot", "n0")
        answer = dev_cluster.json("profile", "show")
        assert (answer["timers"]["lease_ms"], answer["nodes"], answer["scope"]) == (1200, 1, "host")
        page = dev_cluster.succeed("profile", "show")  # of this very cluster, and of nothing that it is not
        assert "scope host" in page and "scope shared" not in page
    finally:
        dev_cluster.run("dev", "down")
