"""The store engines: one row each, chosen by the scheme of a store's name, as in `etcd://HOST/`; a path is a disk's.

A row names its parts as text, so that each process of a node loads only the part that it needs, of the one engine that
it runs on: the guard takes no more than the lease.
"""

from importlib import import_module
from typing import Any, NamedTuple

from muster.drivers.store.failures import StoreFailed

_SCHEME = "://"


class Engine(NamedTuple):
    """Where the parts of an engine are, each as `module:name`."""

    store: str  # (store, node) -> `engine.Opened`: for the daemon
    lease_store: str  # (store, node) -> `lease_store.LeaseStore`: for the guard and its writers
    newest_record: str  # (store) -> `record.StoreRecord`: what it holds, for the boot


ENGINES: dict[str, Engine] = {
    "disk": Engine(
        "muster.drivers.store.disk.store:DiskStore",
        "muster.drivers.store.disk.lease_store:GuardStore",
        "muster.drivers.store.disk.inspection:newest_record",
    ),
}


def engine_of(store: str) -> Engine:
    """The row of a store. Raises `StoreFailed` for a scheme that has none."""
    scheme, found, _ = store.partition(_SCHEME)
    name = scheme if found else "disk"
    if name not in ENGINES:
        known = ", ".join(sorted(ENGINES))
        raise StoreFailed(f"store {store}: there is no store engine {name!r}; give a path, or one of: {known}")
    return ENGINES[name]


def part(named: str) -> Any:
    """What a row names."""
    module, _, name = named.partition(":")
    return getattr(import_module(module), name)
