"""Which release this is, and whether it can take part (P10.1, P10.10)."""

from muster import __version__
from muster.records.database import Database
from muster.records.versions import HIGHEST, LOWEST


def release() -> str:
    """The release of the code that runs, whatever has been installed since it began, as `0.1.0` (P10.10)."""
    return __version__


def version_problem(database: Database) -> str:
    """Why this release cannot take part in the cluster, in words; empty where it can (SPEC 9.2, P10.1)."""
    active = database.cluster.active_version
    if LOWEST <= active <= HIGHEST:
        return ""
    return (
        f"version {active} is active in cluster {database.cluster.name}, and this release knows versions {LOWEST} to "
        f"{HIGHEST}; install a release on this machine that knows version {active}"
    )
