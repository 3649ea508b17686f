"""Deliberate errors in the core are found: the tests of the simulator's faults and checkers."""

import pytest

from muster.core.launching import ledger
from muster.core.mastership import machine as mastership
from muster.core.membership import membership
from muster.sim.faults import campaign
from muster.sim.faults.mutants import BY_SCENARIO, MUTANTS, mutated

SEEDS = 200
# Of an error that shows in few runs: where to begin, so that one that shows it comes soon.
BEGIN = {
    "skip-proof": 200,
    "lease-without-granularity": 200,
    "feed-after-the-deadline": 600,
    "fail-whatever-runs": 760,
    "stopped-is-clean": 3,
    "clean-before-it-says-so": 34,
    "joins-unclean": 34,
    "cleanup-of-today": 3,
    "failed-is-clean": 3,
    "short-lease": 227,
    "restart-for-ever": 76,
    "silence-is-no-freeze": 34,
    "forget-takeovers": 17,
    "unknown-is-empty": 23,
    "boot-on-an-older-store": 44,
    "forget-exits": 9,
    "ask-whatever-is-asked": 18,
    "lose-objections": 20,
    "absence-elsewhere": 9,
    "silence-is-word": 9,
    "ignore-withdrawn-term": 38,
    "remember-nothing": 9,
    "fence-the-next-life": 860,
}


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in MUTANTS if name not in BY_SCENARIO])
def test_each_mutant_is_caught_within_200_seeds(name: str) -> None:
    """By a checker of the very rule that it breaks."""
    expected = set(MUTANTS[name].caught_by)
    begin = BEGIN.get(name, 0)
    for seed in range(begin, begin + SEEDS):
        result, _ = campaign.run_seed(seed, name)
        if expected & {violation.rule for violation in result.violations}:
            return
    pytest.fail(f"{SEEDS} seeds did not find that {MUTANTS[name].sentence}")


def test_a_mutant_is_gone_after_its_run() -> None:
    """Patches last as long as the run, also when it fails."""
    originals = (membership.proof_of_death, mastership.withdrawn_term, ledger.is_newer)
    with pytest.raises(RuntimeError, match="in the middle"):
        _fail_as_a_mutant()
    for name in MUTANTS:
        with mutated(name):
            pass
    assert originals == (membership.proof_of_death, mastership.withdrawn_term, ledger.is_newer)
    assert not ledger.is_newer(1, 2)


def _fail_as_a_mutant() -> None:
    with mutated("stale-start"):
        assert ledger.is_newer(1, 2)
        raise RuntimeError("in the middle")
