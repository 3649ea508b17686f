"""The authority's private key in this node's home, and the other members' (P1.5).

Each key is a file HOME/authority-keys/FINGERPRINT.pem, named after the authority's certificate in the store. A key that
is missing is asked of the others; one that no record names any more is deleted.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from muster.drivers.certificates.certificates import CertificateRefused, check_pair
from muster.drivers.certificates.fields import split
from muster.drivers.certificates.private_files import write_private
from muster.records.messages import KeyAnswer, KeyRequest, Message
from muster.records.nodes import Cluster, fingerprint

FOLDER = "authority-keys"
MAXIMUM_KEY_BYTES = 16 * 1024


class AuthorityKeys:
    """The keys of one node. `send` sends to a node; `note` records an event; `arrived` is called after a key came."""

    def __init__(
        self,
        home: Path,
        send: Callable[[int, Message], None],
        note: Callable[[str, str], None],
        arrived: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder = home / FOLDER
        self._send, self._note, self._arrived = send, note, arrived
        self.kept = 0  # how many keys have been kept since this daemon began
        self._wanted: dict[str, str] = {}  # fingerprint -> certificate, of keys that this node has asked for
        self._fresh: set[str] = set()  # fingerprints of authorities that this node has made and is about to propose

    def path(self, authority: str) -> str:
        """Where the key of an authority (PEM) is or would be."""
        return str(self._folder / f"{fingerprint(authority)}.pem")

    def holds(self, authority: str) -> bool:
        """Whether this node has the key of an authority (PEM)."""
        return bool(authority) and os.path.exists(self.path(authority))

    def holds_all(self, cluster: Cluster) -> bool:
        """Whether this node has the keys of the authorities that issue, or are about to."""
        return all(self.holds(each) for each in _issuing(cluster))

    def held(self, cluster: Cluster) -> tuple[str, ...]:
        """Fingerprints of those authorities whose keys it has."""
        return tuple(fingerprint(each) for each in _issuing(cluster) if self.holds(each))

    def keep(self, authority: str, key_pem: str) -> None:
        """Keep a key, if it is that authority's. Raises `CertificateRefused`, `OSError`."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        draft = self._folder / "arriving.pem"
        write_private(draft, key_pem)
        try:
            check_pair(authority, str(draft))
            os.replace(draft, self.path(authority))
        finally:
            with contextlib.suppress(FileNotFoundError):
                draft.unlink()
        self._wanted.pop(fingerprint(authority), None)
        self.kept += 1

    def keep_fresh(self, authority: str, key_pem: str) -> None:
        """Keep the key of an authority that no record names yet. Raises as `keep`."""
        self._fresh.add(fingerprint(authority))
        self.keep(authority, key_pem)

    def proposed(self, authority: str) -> None:
        """What became of it is in the record: the key is kept only if it is named there."""
        self._fresh.discard(fingerprint(authority))

    def follow(self, cluster: Cluster, peers: tuple[int, ...]) -> None:
        """Ask the `peers` for the keys that this node lacks, and delete those that nobody needs any more."""
        known = _issuing(cluster)
        self._wanted = {fingerprint(each): each for each in known if not self.holds(each)}
        for wanted in tuple(self._wanted):
            for node in peers:
                self._send(node, KeyRequest(wanted))
        needed = {f"{name}.pem" for name in (*map(fingerprint, known), *self._fresh)}
        with contextlib.suppress(OSError):
            for name in os.listdir(self._folder):
                if name not in needed and not cluster.incoming:
                    (self._folder / name).unlink()
                    self._note("authority's key deleted", f"{name.removesuffix('.pem')} is no longer in use")

    def takes(self, sender: int, message: Message) -> bool:
        """Take in a message about keys; false for any other."""
        match message:
            case KeyRequest(authority=wanted):
                self._tell(sender, wanted)
            case KeyAnswer(authority=name, key_pem=key_pem):
                self._learn(name, key_pem)
            case _:
                return False
        return True

    def _tell(self, asker: int, wanted: str) -> None:
        path = self._folder / f"{wanted}.pem"
        if not wanted.isalnum() or len(wanted) > 64:
            return
        with contextlib.suppress(OSError):
            self._send(asker, KeyAnswer(wanted, path.read_text()))

    def _learn(self, name: str, key_pem: str) -> None:
        authority = self._wanted.get(name)
        if authority is None or len(key_pem) > MAXIMUM_KEY_BYTES:
            return
        try:
            self.keep(authority, key_pem)
        except (CertificateRefused, OSError) as error:
            self._note("authority's key refused", str(error))
        else:
            self._note("authority's key received", f"of authority {name}")
            self._arrived()


def _issuing(cluster: Cluster) -> list[str]:
    """Not one that is only trusted still, beside another, because a rotation was begun again."""
    present = split(cluster.authority)
    return [*(present if len(present) == 1 else []), *split(cluster.incoming)]
