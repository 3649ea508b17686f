"""When a node asks for its next certificate, and whom a member enrols (P1.4, P1.6): the daemon's halves alone."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from muster.core.effects import Reply
from muster.daemon.trust import enrolment, renewal
from muster.daemon.trust.enrolment import EnrolmentRefused, Enrolments, Visit, issuing_authority, verifier_of
from muster.daemon.trust.renewal import LONGEST_PAUSE_S, Certification
from muster.records.database import Database
from muster.records.levels import NodeState
from muster.records.members import Member
from muster.records.nodes import Cluster, Enrolment, EnrolNode, NodeConfig, Rotation, fingerprint
from muster.records.terms import Term

DAY_S = 86_400
IDENTITY = "0" * 32
TOKEN = "a token"


def database(**cluster: Any) -> Database:
    config = NodeConfig(0, "n0", (), "own")
    shared = Cluster("test", IDENTITY, "fast", "authority", **cluster)
    return Database(shared, 1, Term(1, 0), nodes={0: config}, members={0: Member(0, NodeState.JOINED, 7)})


class Trial:
    """A node whose certificate of 30 days has `left_s` left; `asked` counts what it asks for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left_s: float, *, refused: bool = False) -> None:
        self.asked = 0
        self.refused = refused
        now_s = time.time()
        monkeypatch.setattr(renewal, "expected_end_s", lambda _certificate: now_s + left_s)
        monkeypatch.setattr(renewal, "authority_end_s", lambda _authority: now_s + 3650 * DAY_S)
        monkeypatch.setattr(renewal, "issuing_authority", lambda _cluster: "authority")
        found = database(certificate_lifetime_s=30 * DAY_S)
        node = SimpleNamespace(database=found, me=0, incarnation=7, is_master=True, links=SimpleNamespace(connected={}))
        keys = SimpleNamespace(holds=lambda _authority: True)
        self.certification = Certification(*cast("Any", (node, keys, None, None, None, None)))
        monkeypatch.setattr(self.certification, "_reissue", self.reissue)

    async def reissue(self, *_arguments: object) -> bool:
        """In the place of what signs and commits."""
        self.asked += 1
        return not self.refused

    def pause_s(self) -> float:
        """One look; how long until the next."""
        return asyncio.run(self.certification._renew())


def test_p1_6_a_certificate_is_renewed_when_a_third_of_its_lifetime_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    for left_s, asked in ((30 * DAY_S, 0), (10.1 * DAY_S, 0), (9.9 * DAY_S, 1), (60.0, 1), (-60.0, 1)):
        trial = Trial(monkeypatch, left_s)
        assert trial.pause_s() <= LONGEST_PAUSE_S
        assert trial.asked == asked, left_s


def test_p1_6_a_renewal_that_failed_is_tried_again_long_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    found = database(certificate_lifetime_s=3600)
    trial = Trial(monkeypatch, 600.0, refused=True)
    cast("Any", trial.certification._node).database = found
    assert trial.pause_s() <= 600.0
    assert trial.asked == 1


# ---- whom a member enrols ------------------------------------------------------------------------------------------


def member(*, state: NodeState = NodeState.JOINED, expires_s: float = DAY_S) -> Enrolments:
    found = database()
    found.members[0] = Member(0, state, 7)
    found.nodes[1] = NodeConfig(1, "n1", (), "", 3, Enrolment(verifier_of(TOKEN), int(time.time() + expires_s)))
    node = SimpleNamespace(database=found, me=0, incarnation=7)
    return Enrolments(*cast("Any", (node, None, None, lambda _event, _text: None)))


def test_p1_4_a_member_enrols_the_machine_that_shows_the_open_token() -> None:
    assert member()._checked(Visit(IDENTITY, "n1", TOKEN, "")).node == 1


@pytest.mark.parametrize(
    ("enrolments", "visit", "words"),
    [
        (member(), Visit("1" * 32, "n1", TOKEN, ""), "this is another cluster"),
        (member(), Visit(IDENTITY, "n2", TOKEN, ""), "there is no node"),
        (member(), Visit(IDENTITY, "n0", TOKEN, ""), "no token is open"),
        (member(), Visit(IDENTITY, "n1", "another token", ""), "this is not the token"),
        (member(expires_s=-1.0), Visit(IDENTITY, "n1", TOKEN, ""), "has expired"),
        (member(state=NodeState.JOINING), Visit(IDENTITY, "n1", TOKEN, ""), "no member at present"),
        (member(state=NodeState.LEAVING), Visit(IDENTITY, "n1", TOKEN, ""), "no member at present"),
    ],
)
def test_p1_4_any_other_machine_is_refused(enrolments: Enrolments, visit: Visit, words: str) -> None:
    with pytest.raises(EnrolmentRefused, match=words):
        enrolments._checked(visit)


def test_p1_4_visits_are_bounded() -> None:
    enrolments, aborted = member(), []
    enrolments._visits["another"] = enrolment.MAXIMUM_VISITS
    transport = SimpleNamespace(abort=lambda: aborted.append(True), get_extra_info=lambda _name: ("::1", 1))
    enrolments.visit(cast("Any", transport), b"", cast("Any", None))
    assert aborted


PEM = "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n"


def test_p1_7_who_issues_is_said_by_how_far_the_replacement_has_come() -> None:
    old, new = PEM.format("old"), PEM.format("new")
    cluster = Cluster("test", IDENTITY, "fast", old)
    assert issuing_authority(cluster) == old
    for rotation in (Rotation.CERTIFYING, Rotation.SETTLING):
        assert issuing_authority(replace(cluster, incoming=new, rotation=rotation)) == new
    assert issuing_authority(replace(cluster, authority=old + new)) == ""  # nobody can tell which of them


class Signed:
    """An enrolment whose certificate is signed, and what the master answers to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, reply: Reply | None, *, holds: bool = True) -> None:
        self.asked: list[EnrolNode] = []
        self._reply = reply

        async def sign(_request: object) -> object:
            return SimpleNamespace(certificates=("certificate",))

        monkeypatch.setattr(enrolment, "sign", sign)
        monkeypatch.setattr(enrolment, "issuing_authority", lambda _cluster: "authority")
        made = member()
        keys = SimpleNamespace(holds=lambda _authority: holds, path=lambda _authority: "key")
        self.enrolments = Enrolments(*cast("Any", (made._node, keys, self._operate, lambda _event, _text: None)))

    async def _operate(self, _identity: str, operation: EnrolNode, *_more: object) -> Reply | None:
        self.asked.append(operation)
        return self._reply

    def enrol(self) -> str:
        """The machine that shows the open token."""
        return asyncio.run(self.enrolments._enrol(Visit(IDENTITY, "n1", TOKEN, "request")))


def test_p1_4_a_machine_is_enrolled_only_once_the_master_has_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Signed(monkeypatch, Reply("x", False, "n1 is enrolled", 9))
    assert trial.enrol() == "n1 is enrolled"
    assert trial.asked == [EnrolNode(1, 3, verifier_of(TOKEN), "certificate", fingerprint("authority"))]
    for reply, words, final in (
        (Reply("x", True, "its token was used", 9), "its token was used", True),
        (None, "no master has decided it in time", False),
    ):
        with pytest.raises(EnrolmentRefused, match=words) as refused:
            Signed(monkeypatch, reply).enrol()
        assert refused.value.final is final
    without = Signed(monkeypatch, None, holds=False)
    with pytest.raises(EnrolmentRefused, match="has not got the authority's key yet"):
        without.enrol()
    assert without.asked == []


class Rotating:
    """A node of a cluster whose authority is being replaced; `issued` are the names of whom it has certified."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, is_master: bool = True, holds: bool = True, incarnation: int = 7,
        rotation: Rotation = Rotation.CERTIFYING,
    ) -> None:  # fmt: skip
        self.issued: list[str] = []
        self.renewed = 0
        found = database(incoming="incoming", rotation=rotation)
        done = fingerprint("incoming")
        for number, issuer in ((0, "old"), (1, done), (2, "old"), (3, "")):
            found.nodes[number] = NodeConfig(number, f"n{number}", (), "own" if number < 3 else "", issuer=issuer)
        node = SimpleNamespace(
            database=found, me=0, incarnation=incarnation, is_master=is_master, links=SimpleNamespace(connected={}),
            account=SimpleNamespace(holder=lambda: Term(1, 0)), observer=SimpleNamespace(leads=lambda _node: True),
        )  # fmt: skip
        keys = SimpleNamespace(holds=lambda authority: holds and authority == "incoming")
        self.certification = Certification(*cast("Any", (node, keys, None, None, None, None)))
        monkeypatch.setattr(self.certification, "_reissue", self._reissue)
        monkeypatch.setattr(self.certification, "_renew", self._renew)
        monkeypatch.setattr(self.certification, "_look_for_keys", lambda: 60.0)

    async def _reissue(self, authority: str, configs: list[NodeConfig], lifetime_s: int | None) -> bool:
        assert (authority, lifetime_s) == ("incoming", None)  # their validity stays as it was
        self.issued += [config.name for config in configs]
        return True

    async def _renew(self) -> float:
        self.renewed += 1
        return 60.0

    def work(self) -> list[str]:
        """One look; whom it has certified."""
        asyncio.run(self.certification._work())
        return self.issued


def test_p1_7_the_master_certifies_whom_the_incoming_authority_has_not_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Rotating(monkeypatch).work() == ["n0", "n2"]
    assert Rotating(monkeypatch, is_master=False).work() == []
    assert Rotating(monkeypatch, holds=False).work() == []
    assert Rotating(monkeypatch, rotation=Rotation.TRUSTING).work() == []


def test_p1_6_a_daemon_whose_node_has_gone_on_without_it_renews_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for incarnation, renews in ((7, 1), (6, 0)):
        trial = Rotating(monkeypatch, incarnation=incarnation)
        trial.work()
        assert trial.renewed == renews
