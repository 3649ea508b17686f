"""Deliberate errors, one small function of the core each: the tests of the checkers and of the faults (STYLE: VOPR).

A mutant is in force for the duration of one run, in the process that runs it. If a campaign does not find it, the
faults are too kind or a checker sleeps.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

from msgspec.structs import replace

from muster.core import draft
from muster.core.decisions import decider
from muster.core.draft import Draft, Facts, counts, is_silent
from muster.core.effects import RunCommand, WatchLife
from muster.core.events import manager as events
from muster.core.fencing import asker
from muster.core.launching import ledger
from muster.core.leases import lease, observer, watchdog
from muster.core.mastership import machine as mastership
from muster.core.mastership.machine import Action, Decided, IsOut, Mastership, Phase
from muster.core.membership import membership
from muster.core.operations import identities
from muster.core.services import (
    commands as executor,
)
from muster.core.services import (
    conditions,
    placement,
)
from muster.core.services import (
    requests as service_operations,
)
from muster.core.services import (
    table as service,
)
from muster.core.services.round import Round
from muster.core.transitions import objections as veto
from muster.core.transitions import subsystems, transition
from muster.records import timing
from muster.records.deciders import SERVICES, Decider, Grant
from muster.records.fencing import FencePhase
from muster.records.levels import Level, NodeState
from muster.records.members import Member, Proof
from muster.records.messages import Verdict
from muster.records.registers import NO_MARK, Armed, Claim, ClaimFlag, Lease, Mark, Owed, ProofKind, Strip
from muster.records.registers import Life as Named
from muster.records.services import Definition, FailService, Service, ServiceState, Unclean
from muster.records.terms import NO_TERM, Stamp, Term
from muster.records.transitions import Transition
from muster.sim.world import bare_machine, guard


class Mutant(NamedTuple):
    """An error: `replace(original)` gives what takes the place of `module.function`, a function or a table of them."""

    sentence: str
    caught_by: tuple[str, ...]  # the checkers whose rule it breaks
    module: ModuleType | type
    function: str
    replace: Callable[[Any], Any]


def _skip_proof(original: Callable[..., Proof | None]) -> Callable[..., Proof | None]:
    def proof_of_death(member: Member, facts: Facts) -> Proof | None:
        if member.node in facts.unreachable:
            return Proof(ProofKind.LEASE_EXPIRED, member.node, member.incarnation, "nobody hears it")
        return original(member, facts)

    return proof_of_death


def _expiry_proves(_original: Callable[..., bool]) -> Callable[..., bool]:
    return lambda _watch, _lease: True


def _counts_anywhere(_original: Callable[[int, Named], bool]) -> Callable[[int, Named], bool]:
    return lambda _namespace, _named: True


def _silence_is_word(_original: Callable[..., None]) -> Callable[..., None]:
    def request(asking: guard.Guard, asked: WatchLife, _pause_us: int) -> None:
        asking._tell(asked, given=True)  # noqa: SLF001

    return request


def _short_lease(_original: Callable[[int], int]) -> Callable[[int], int]:
    def with_drift_ms(duration_ms: int) -> int:
        return duration_ms // 2

    return with_drift_ms


def _ignore_dead_term(
    original: Callable[..., tuple[Mastership, Action]],
) -> Callable[..., tuple[Mastership, Action]]:
    def read(state: Mastership, strip: Strip, is_out: IsOut, **given: bool) -> tuple[Mastership, Action]:
        def forget(claim: Claim | None) -> Claim | None:
            if claim is None or claim.stamp.owner == state.node:
                return claim
            dead = is_out(claim.stamp.owner, claim.stamp.incarnation)
            return claim._replace(stamp=claim.stamp._replace(term=NO_TERM)) if dead else claim

        return original(state, strip._replace(claims=tuple(forget(claim) for claim in strip.claims)), is_out, **given)

    return read


def _ignore_withdrawn_term(_original: Callable[..., bool]) -> Callable[..., bool]:
    def higher_term(state: Mastership, strip: Strip) -> bool:
        return any(
            seen is not None and seen.flag is not ClaimFlag.WITHDRAWN and seen.stamp.term > state.term
            for seen in strip.claims
        )

    return higher_term


def _lower_term(_original: Callable[..., Term]) -> Callable[..., Term]:
    def withdrawn_term(state: Mastership) -> Term:
        return min(state.term, state.claim.mark.term)

    return withdrawn_term


def _adopt_oldest(_original: Callable[..., tuple[int, Mark]]) -> Callable[..., tuple[int, Mark]]:
    def newest_mark(strip: Strip) -> tuple[int, Mark]:
        written = [claim for claim in strip.claims if claim is not None and claim.mark.term > NO_TERM]
        chosen = min(written, key=lambda claim: (claim.mark.term, claim.mark.generation))
        return chosen.stamp.owner, chosen.mark

    return newest_mark


def _nothing_left(_original: Callable[..., Unclean | None]) -> Callable[..., Unclean | None]:
    def left_behind(service_: Service, _round: Round) -> Unclean | None:
        return service_.unclean

    return left_behind


def _clean_without_a_word(original: Callable[..., str]) -> Callable[..., str]:
    def unclean(self: observer.Observer, node: int, incarnation: int, uid: int) -> str:
        record = self.strip.leases[node]
        silent = record is not None and record.stamp.incarnation == incarnation and record.owed is None
        return "" if silent else original(self, node, incarnation, uid)

    return unclean


def _failed_unsaid(original: Callable[[Lease, Owed, str], Lease]) -> Callable[[Lease, Owed, str], Lease]:
    def statement(own: Lease, owed: Owed, cause: str) -> Lease:
        return original(own, owed._replace(failed=()), cause)

    return statement


def _cleanup_of_today(_original: Callable[..., tuple[str, ...]]) -> Callable[..., tuple[str, ...]]:
    def cleanup_of(command: RunCommand, _kept: tuple[str, ...] | None) -> tuple[str, ...]:
        return command.command

    return cleanup_of


def _joins_unclean(_original: Callable[..., str]) -> Callable[..., str]:
    def why_unclean(_draft: Draft, _facts: Facts, _member: Member, _incarnation: int) -> str:
        return ""

    return why_unclean


def _stale_start(_original: Callable[[int, int], bool]) -> Callable[[int, int], bool]:
    def is_newer(_generation: int, _highest: int) -> bool:
        return True

    return is_newer


def _early_level(_original: Callable[..., bool]) -> Callable[..., bool]:
    def all_acknowledged(transition_: Transition, draft: Draft, facts: Facts) -> bool:
        """One acknowledgement is enough."""
        for node in transition_.participants:
            report = facts.report(draft.member(node))
            step = (transition_.identity, transition_.level, transition_.barrier)
            for done in report.acknowledgements if report is not None else ():
                if (done.transition, done.level, done.barrier) == step:
                    return True
        return not transition_.participants

    return all_acknowledged


def _lost_when_condemned(original: Callable[..., bool]) -> Callable[..., bool]:
    def is_lost(service_: Service, draft: Draft) -> bool:
        condemned = service_.node >= 0 and draft.member(service_.node).eviction is not None
        return condemned or original(service_, draft)

    return is_lost


def _unknown_is_empty(
    original: Callable[..., tuple[Mastership, Action]],
) -> Callable[..., tuple[Mastership, Action]]:
    def read(state: Mastership, strip: Strip, is_out: IsOut, **given: bool) -> tuple[Mastership, Action]:
        claims = tuple(
            claim if claim is not None else Claim(Stamp(owner, 0, NO_TERM, 0), ClaimFlag.WITHDRAWN, NO_MARK)
            for owner, claim in enumerate(strip.claims)
        )
        return original(state, strip._replace(claims=claims), is_out, **given)

    return read


def _tell_early(_original: Callable[..., tuple[Mastership, Action]]) -> Callable[..., tuple[Mastership, Action]]:
    def append(state: Mastership) -> tuple[Mastership, Action]:
        return state._replace(phase=Phase.MASTER, frame=b""), Decided(state.frame)

    return append


def _mistaken_registration(_original: Callable[..., bool]) -> Callable[..., bool]:
    def is_present(levels: Mapping[int, Level], counted: Level) -> bool:
        return counted.number in levels

    return is_present


def _forget_exits(original: Callable[..., Any]) -> Callable[..., Any]:
    def place_of(active: events.Active, out: events.Values) -> events.Place | None:
        """What has ended before it was watched for is known already."""
        place = original(active, out)
        return place and (0, "")

    return place_of


def _watch_early(_original: Callable[..., bool]) -> Callable[..., bool]:
    def is_registered_here(manager: Any, name: str) -> bool:
        service_ = manager._database.services.get(name)  # noqa: SLF001  # in the place of its own method
        return service_ is not None and service_.state in (ServiceState.STARTING, ServiceState.REGISTERED)

    return is_registered_here


def _fail_whatever_runs(original: Callable[..., Any]) -> Callable[..., Any]:
    def operation_of(words: tuple[str, ...]) -> Any:
        operation = original(words)
        return replace(operation, generation=0) if isinstance(operation, FailService) else operation

    return operation_of


def _count_each_sight(_original: Callable[[Service], bool]) -> Callable[[Service], bool]:
    return lambda _service: False


def _restart_for_ever(original: dict[Any, service.Row]) -> dict[Any, service.Row]:
    broken = (ServiceState.REGISTERED, service.Event.BROKEN)

    def failed_in_service(service_: Service, round_: Round, detail: str) -> None:
        forgetful = replace(service_, failures=service_.failures[-1:])
        original[broken].rule(forgetful, round_, detail)

    return original | {broken: original[broken]._replace(rule=failed_in_service)}


def _nothing_is_wrong(_original: Callable[..., str]) -> Callable[..., str]:
    return lambda *_given: ""


def _remember_nothing(_original: Callable[..., None]) -> Callable[..., None]:
    return lambda *_given: None


Marks = Callable[[dict[int, Member]], tuple[tuple[int, int], ...]]
HISTORY = ("OneHistory", "NothingGoesBack", "NothingLost")
PROOF = ("ProofFirst", "OneNodeAtATime")


def _forget_children(_original: Callable[..., list[Service]]) -> Callable[..., list[Service]]:
    return lambda _service, _round: []


def _notify_anybody(_original: Callable[..., bool]) -> Callable[..., bool]:
    return lambda _definition, _name: True


def _skip_recovery(original: dict[Any, service.Row]) -> dict[Any, service.Row]:
    """What was registered on a lost node counts as a start that was lost."""
    lost_while_starting = original[ServiceState.STARTING, service.Event.LOST]
    return original | {(ServiceState.REGISTERED, service.Event.LOST): lost_while_starting}


def _forget_takeovers(original: Callable[..., int | None]) -> Callable[..., int | None]:
    def preferred_node(service_: Service, round_: Round) -> int | None:
        return original(replace(service_, takeovers=()), round_)

    return preferred_node


def _place_anywhere(_original: Callable[..., None]) -> Callable[..., None]:
    return lambda _definition, _name: None


def _prefer_the_last(original: Callable[..., tuple[int, int]]) -> Callable[..., tuple[int, int]]:
    def rank(definition: Definition, name: str) -> tuple[int, int]:
        first, second = original(definition, name)
        return -first, -second

    return rank


def _mark_who_leaves(original: Marks) -> Marks:
    def condemned(members: dict[int, Member]) -> tuple[tuple[int, int], ...]:
        leaving = ((each.node, each.incarnation) for each in members.values() if each.state is NodeState.LEAVING)
        return tuple(sorted({*original(members), *leaving}))

    return condemned


def _prove_by_silence(original: Callable[..., Proof | None]) -> Callable[..., Proof | None]:
    def proof_of_death(member: Member, facts: Facts) -> Proof | None:
        if facts.silent(member.node, member.incarnation):
            return Proof(ProofKind.LEASE_EXPIRED, member.node, member.incarnation, "its lease has run out")
        return original(member, facts)

    return proof_of_death


def _release_on_silence(original: Callable[..., Any]) -> Callable[..., Any]:
    def what_happens(service_: Service, round_: Round) -> Any:
        silent = service_.node >= 0 and is_silent(round_.draft.member(service_.node))
        return (service.Event.LOST, "its node is silent") if silent else original(service_, round_)

    return what_happens


def _lose_objections(original: Callable[..., None]) -> Callable[..., None]:
    def answered(self: veto.Polls, node: int, verdict: Verdict) -> None:
        original(self, node, Verdict(verdict.identity, ()))

    return answered


def _without_status(original: Callable[..., list[asker.Call]]) -> Callable[..., list[asker.Call]]:
    return lambda *given: [call for call in original(*given) if call.action != "status"]


def _asked_of_anybody(_original: Callable[..., bool]) -> Callable[..., bool]:
    return lambda record, _me: record.phase is not FencePhase.IDLE


def _feeds_on(original: Callable[..., Any]) -> Callable[..., Any]:
    def turn(feeding: watchdog.Feeding, now_us: int, _deadline_us: int) -> watchdog.Turn:
        found: watchdog.Turn = original(feeding, now_us, 1 << 60)
        return found

    return turn


def _shortened_last(retiming: watchdog.Retiming) -> int:
    old, new = retiming._old, retiming._new  # noqa: SLF001
    return new.watchdog_ms if retiming.order in (watchdog.Order.EXTEND, watchdog.Order.DONE) else old.watchdog_ms


def _named_before_armed(_original: Callable[..., Armed | None]) -> Callable[..., Armed | None]:
    return lambda watch: watch._armed  # noqa: SLF001


def _any_holder(_original: Callable[..., Decider | None]) -> Callable[..., Decider | None]:
    def newest(draft_: Draft, facts: Facts, _above: Grant) -> Decider | None:
        for member in draft_.members.values():
            report = facts.report(member)
            if report is not None and report.grant is not None:
                return Decider(SERVICES, member.node, member.incarnation, report.grant, draft_.index)
        return None

    return newest


MUTANTS: dict[str, Mutant] = {
    "feed-after-the-deadline": Mutant(
        "a watchdog is fed whatever its deadline is (against P7.32)",
        ("NothingAfterExpiry", "ProofFirst"), watchdog.Feeding, "turn", _feeds_on,
    ),
    "shorten-after-the-record": Mutant(
        "the watchdog gets its smaller timeout after the record that promises it (against P7.35)",
        ("NothingAfterExpiry", "ProofFirst"), watchdog.Retiming, "timeout_ms",
        lambda _original: property(_shortened_last),
    ),
    "lease-without-granularity": Mutant(
        "the lease is over as soon as the watchdog's timeout is, whatever its timer and its reset take (against P7.31)",
        ("NothingAfterExpiry", "ProofFirst"), timing.WatchdogTimes, "bound_ms",
        lambda _original: property(lambda times: times.timeout_ms),
    ),
    "no-late-feeding": Mutant(
        "no feeding is taken for late, though a management board may land one (against P7.31)",
        ("NothingAfterExpiry", "ProofFirst"), timing.WatchdogTimes, "bound_ms",
        lambda _original: property(lambda times: times.timeout_ms + times.granularity_ms + times.reset_ms),
    ),
    "record-before-armed": Mutant(
        "the lease names a watchdog that is not armed yet (against P7.33)",
        ("NothingAfterExpiry", "ProofFirst"), watchdog.WatchdogState, "recorded", _named_before_armed,
    ),
    "decide-from-any-index": Mutant(
        "a decision from an older snapshot is committed (against SPEC 2.7)",
        ("DecidedByHolder",), decider, "is_overtaken", lambda _original: lambda *_: False,
    ),
    "record-any-grant": Mutant(
        "whoever says that it has the lock is recorded, by a lower grant, too (against P6.42)",
        ("DecidedByHolder",), decider, "_newest", _any_holder,
    ),
    "decide-beside": Mutant(
        "the master decides on services beside the decider (against P6.42)",
        ("DecidedByHolder",), decider, "is_the_masters", lambda _original: lambda *_: True,
    ),
    "recover-before-the-status": Mutant(
        "a node counts as off once its agent has done what it was asked (against P7.24)",
        ("ProvenByStatus",), asker, "calls_of", _without_status,
    ),
    "fence-the-next-life": Mutant(
        "an agent is called though a later incarnation of the node runs (against P7.23)",
        ("FencedByRequest",), asker, "why_not", lambda _original: lambda *_: "",
    ),
    "call-unasked": Mutant(
        "a member calls an agent that it was not asked to call (against P7.22)",
        ("FencedByRequest",), asker, "is_asked_of", _asked_of_anybody,
    ),
    "lose-objections": Mutant(
        "what a member objects counts for nothing (against SPEC 3.4, 6.8)",
        ("ObjectionsHold",), veto.Polls, "answered", _lose_objections,
    ),
    "ask-whatever-is-asked": Mutant(
        "what follows from a failure is put to those who may object (against P4.5)",
        ("ObjectionsHold",), veto, "may_be_vetoed", lambda _original: lambda _request, _version: True,
    ),
    "suspect-the-heard": Mutant(
        "a member is suspected though a frame of it has just come (against P4.13)",
        ("OnlyTheSilent",), observer.Observer, "_is_heard", lambda _original: lambda *_: False,
    ),
    "suspect-the-seen": Mutant(
        "a member is suspected though its lease has just been renewed (against P4.13)",
        ("OnlyTheSilent",), lease.LeaseWatch, "is_suspect", lambda _original: lambda *_: True,
    ),
    "recover-on-silence": Mutant(
        "a member whose lease has run out counts as stopped, wherever it runs (against SPEC 7.1)",
        PROOF, membership, "proof_of_death", _prove_by_silence,
    ),
    "wait-for-the-silent": Mutant(
        "transitions of others wait for a silent member (against SPEC 2.6)",
        ("NobodyWaits",), draft, "takes_part", lambda _original: counts,
    ),
    "silence-is-no-freeze": Mutant(
        "what a silent member held is given up before its death is proven (against SPEC 2.6)",
        ("FrozenUntilProof", "OneNodeAtATime"), service, "_what_happens", _release_on_silence,
    ),
    "forget-children": Mutant(
        "a parent stops while its children run (against SPEC 6.5)",
        ("GroupOrder",), service, "working_children", _forget_children,
    ),
    "notify-anybody": Mutant(
        "a node that may not run a service is notified of it (against SPEC 6.6)",
        ("NotifyElsewhere",), executor, "is_allowable", _notify_anybody,
    ),
    "skip-recovery": Mutant(
        "what was registered on a lost node is registered again without its recovery (against SPEC 6.6)",
        ("RecoveryBeforeRestart",), service, "RULES", _skip_recovery,
    ),
    "forget-takeovers": Mutant(
        "a preferred node takes a service over as often as it can (against SPEC 6.8)",
        ("NoFlapping",), service, "preferred_node", _forget_takeovers,
    ),
    "take-over-downwards": Mutant(
        "a less preferred node takes a service over (against SPEC 6.8)",
        ("NoFlapping",), conditions, "rank", _prefer_the_last,
    ),
    "place-anywhere": Mutant(
        "a service goes to a node that its definition forbids (against SPEC 6.2)",
        ("ServiceRules",), placement, "_forbidden", _place_anywhere,
    ),
    "mark-who-leaves": Mutant(
        "a node that leaves is marked to be forced out, which nobody has decided (against SPEC 7.2)",
        ("MarkAfterCommit",), membership, "condemned", _mark_who_leaves,
    ),
    "forget-exits": Mutant(
        "the end of a supervised program leads to nothing (against SPEC 5.4)",
        ("Soundness",), events, "_place_of", _forget_exits,
    ),
    "watch-early": Mutant(
        "a service is watched before it is registered, on every node (against SPEC 5.4)",
        ("WatchedWhereRegistered",), events.EventManager, "_is_registered_here", _watch_early,
    ),
    "fail-whatever-runs": Mutant(
        "a failure is taken for that of a later generation (against SPEC 5.4)",
        ("ActedOnOnce",), events, "operation_of", _fail_whatever_runs,
    ),
    "count-each-sight": Mutant(
        "a failure that is seen twice counts twice (against SPEC 5.4)",
        ("ActedOnOnce",), service_operations, "_has_failed", _count_each_sight,
    ),
    "restart-for-ever": Mutant(
        "what fails is restarted in place for ever (against SPEC 5.4)",
        ("FailurePolicy",), service, "RULES", _restart_for_ever,
    ),
    "skip-proof": Mutant(
        "a node that nobody hears counts as stopped (against SPEC 7.1)",
        PROOF, membership, "proof_of_death", _skip_proof,
    ),
    "expiry-proves": Mutant(
        "where the kernel can be asked, a lease that has run out is taken for proof (against P7.3, P7.13)",
        PROOF, lease.LeaseWatch, "_expiry_proves", _expiry_proves,
    ),
    "absence-elsewhere": Mutant(
        "a pid that is not there in another PID namespace is taken for gone (against P7.14)",
        PROOF, guard, "counts_in", _counts_anywhere,
    ),
    "silence-is-word": Mutant(
        "that nobody hands over a descriptor is taken for the end (against P7.20)",
        PROOF, guard.Guard, "_request", _silence_is_word,
    ),
    "short-lease": Mutant(
        "an observer counts half the lease (against SPEC 7.1)", PROOF, lease, "with_drift_ms", _short_lease
    ),
    "lost-when-condemned": Mutant(
        "the services of a condemned node are started elsewhere at once (against SPEC 7.1)",
        PROOF, service, "is_lost", _lost_when_condemned,
    ),
    "ignore-dead-term": Mutant(
        "a higher term of a dead node is ignored (against SPEC 2.6)", HISTORY, mastership, "read", _ignore_dead_term
    ),
    "ignore-withdrawn-term": Mutant(
        "flags are compared instead of terms (against SPEC 2.6)",
        HISTORY, mastership, "_higher_term", _ignore_withdrawn_term,
    ),
    "lower-term": Mutant(
        "a withdrawal lowers the term in the register (against SPEC 2.6)",
        HISTORY, mastership, "withdrawn_term", _lower_term,
    ),
    "adopt-oldest": Mutant(
        "the oldest journal is adopted (against SPEC 2.6)", HISTORY, mastership, "newest_mark", _adopt_oldest
    ),
    "unknown-is-empty": Mutant(
        "a claim that cannot be read counts as none (against SPEC 1.5)",
        HISTORY, mastership, "read", _unknown_is_empty,
    ),
    "tell-early": Mutant(
        "a change is told before it is durable (against SPEC 2.6)", HISTORY, mastership, "_append", _tell_early
    ),
    "boot-on-an-older-store": Mutant(
        "a node boots on a store that shows less than its home remembers (against P11.2)",
        (*HISTORY, "NewerCommandsOnly"), bare_machine, "problem", _nothing_is_wrong,
    ),
    "remember-nothing": Mutant(
        "the identity of what was carried out is not recorded (against SPEC 9.1)",
        ("NothingLost",), identities, "remember", _remember_nothing,
    ),
    "stopped-is-clean": Mutant(
        "what was lost goes on elsewhere once its node has stopped (against P6.32)",
        ("CleanBeforeElsewhere",), service, "_left_behind", _nothing_left,
    ),
    "clean-before-it-says-so": Mutant(
        "a machine counts as clean before its last record says so (against P6.33)",
        ("CleanBeforeElsewhere",), observer.Observer, "unclean", _clean_without_a_word,
    ),
    "failed-is-clean": Mutant(
        "the last record says nothing of a cleanup that failed (against P6.33)",
        ("CleanBeforeElsewhere",), lease, "statement", _failed_unsaid,
    ),
    "cleanup-of-today": Mutant(
        "a stop clears as is defined now, not as at the start (against P6.34)",
        ("CleanBeforeElsewhere",), executor, "cleanup_of", _cleanup_of_today,
    ),
    "joins-unclean": Mutant(
        "a node joins though its machine still owes a cleanup (against P6.33)",
        ("CleanBeforeElsewhere",), membership, "why_unclean", _joins_unclean,
    ),
    "stale-start": Mutant(
        "node and runner accept a generation that is not newer (against SPEC 7.7)",
        ("NewerCommandsOnly", "OneNodeAtATime"), ledger, "is_newer", _stale_start,
    ),
    "join-without": Mutant(
        "a join is opened without the levels that the operator requires (against SPEC 3.10)",
        ("RequiredLevels",), membership, "waits_of", lambda _original: lambda *_: None,
    ),
    "early-level": Mutant(
        "the first acknowledgement of a level is enough (against SPEC 3.4)",
        ("LevelsInOrder",), transition, "all_acknowledged", _early_level,
    ),
    "mistaken-registration": Mutant(
        "a program is told what its predecessor was still counted with for (against SPEC 3.10)",
        ("ToldFromTheStart", "Soundness"), subsystems, "is_present", _mistaken_registration,
    ),
}  # fmt: skip


BY_SCENARIO = frozenset({"no-late-feeding", "record-before-armed", "shorten-after-the-record"})
"""Those that show at one moment only: a scenario of their own finds them (tests/sim/test_simulated_watchdogs.py)."""


@contextmanager
def mutated(name: str | None) -> Iterator[None]:
    """Put the mutant `name` in force; none for `None`. Raises `KeyError` for an unknown one."""
    if name is None:
        yield
        return
    mutant = MUTANTS[name]
    original = getattr(mutant.module, mutant.function)
    setattr(mutant.module, mutant.function, mutant.replace(original))
    try:
        yield
    finally:
        setattr(mutant.module, mutant.function, original)
