"""The versions of records and messages, and what each one added (SPEC 9.2, P10.1).

One number counts for both: whatever a node sends or writes. A release understands a range of them. What is *active* is
a committed setting of the cluster (`Cluster.active_version`); nothing that a version added is sent or written while a
lower one is active, so a node that does not know it never meets it. A new field at the end of a record, with a default,
is no new version: older releases pass over it. A new kind of record, message or operation is.

    1   the first
    2   who did it: audit and configuration history; restarts of daemons; settings; and all kinds of record and
        operation that were added with them
    3   nothing runs twice, nothing jams: the kernel's word of a stop, silent members, cleanups of services, and what
        goes with them
    4   services behave as their owners expect: more keys of a service (`services.ADDED_BY_VERSION`), an operator's word
        that one has stopped
    5   a silent node is proven dead without a person: fence devices, methods, requests to fence
    6   each owner of a service has a token of its own; a restored store says which lives nobody asked; a lease may have
        a watchdog behind it, so that its expiry is proof between machines; each
        node's kernel may be driven as a lock manager; whoever has the decision lock decides on services
"""

from msgspec import Struct

LOWEST, HIGHEST = 1, 6
VERSIONS = (LOWEST, HIGHEST)
KEEPS_HISTORY = 2  # records `Audit` and `Revision`, operations that name a version, restarts of daemons
KERNELS_WORD = 3  # proof by the kernel, silent members; whatever kind or field is gated together with them
OWNERS_KEYS = 4  # keys of services, and operations on them, that were added together
FENCING = 5  # fence agents (P7.22)
TOKENS = 6  # tokens of services (P6.41)
KERNEL_LOCKS = 6  # the setting `kernel_locks` (P12.33)
RESTORED = 6  # what a restored store says of lives that nobody asked (P11.8)
PROBES = 6  # the key `probe_command` of a service (P7.45)
WATCHDOGS = 6  # watchdogs in lease records, and their settings (P7.30)
DECIDERS = 6  # records of who decides, and what is proposed (P6.42)


class Software(Struct, frozen=True, array_like=True):
    """What a node runs. Defaults: of a release before there was a second version, or never seen."""

    lowest: int = 0
    highest: int = 0
    release: str = ""
    image: int = 0  # of guard, init and runner, which only a new boot of the node replaces
    started_index: int = 0  # commit index that the daemon found at its start

    @property
    def is_known(self) -> bool:
        """Whether the node has ever said."""
        return self.highest > 0
