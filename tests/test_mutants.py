"""Deliberate errors in the core are found: the tests of the simulator's faults and checkers (issue 2, item 11)."""

import pytest

from muster.core import executor, mastership, membership
from muster.sim import campaign
from muster.sim.mutants import MUTANTS, mutated

SEEDS = 200
# Of an error that shows in one run of some hundreds: where to begin, so that a run that shows it is among the seeds.
BEGIN = {"fail-whatever-runs": 600}


@pytest.mark.parametrize("name", MUTANTS)
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
    originals = (membership.proof_of_death, mastership.withdrawn_term, executor.is_newer)
    with pytest.raises(RuntimeError, match="in the middle"):
        _fail_as_a_mutant()
    for name in MUTANTS:
        with mutated(name):
            pass
    assert originals == (membership.proof_of_death, mastership.withdrawn_term, executor.is_newer)
    assert not executor.is_newer(1, 2)


def _fail_as_a_mutant() -> None:
    with mutated("stale-start"):
        assert executor.is_newer(1, 2)
        raise RuntimeError("in the middle")
