"""Gathering one file for a bug report: what the nodes say, their logs, what the store holds, versions (SPEC 9.4).

Every piece is gathered by itself: what cannot be had is named in CONTENTS.txt with the reason, and the rest is there.
Nothing is read that holds a key, a token or an environment; what else may hold a secret goes through `redaction.py`.
"""

import io
import json
import os
import platform
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable
from enum import Enum
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from muster import __version__
from muster.client.errors import ClientError, Unreachable
from muster.setup import redaction
from muster.setup.log_end import end_of
from muster.setup.nodes import Connection, Document

LOG_BYTES = 4 << 20  # of each log file, from its end
MAXIMUM_ACCOUNTS = 25  # transitions whose merged account is asked for
_OLDER_LOGS = ("", ".1")
_QUERIES = {
    "status": "the cluster as this node sees it",
    "nodes": "the nodes in full: addresses, levels, proofs of death",
    "services": "the services: states and definitions",
    "transitions": "transitions in progress, and who holds them up",
    "links": "who hears whom, and which set survives for what reason",
    "config_history": "versions of the configuration: who changed what, when, from where",
    "upgrade": "which release and versions each node runs",
    "events": "event groups: where they are enabled, who watches",
    "diagnostics": "this node's release, timing, counters and durations",
    "timeline": "this node's flight recorder",
}


class BundleFile(NamedTuple):
    """One file of a bundle, or why there is none: then `data` is None and `about` the reason."""

    path: str
    about: str
    data: bytes | None


class Bundle:
    """Gathers members; nothing raises because of one."""

    def __init__(self) -> None:
        self.members: list[BundleFile] = []
        self.node_answers = 0

    def add_document(self, path: str, about: str, make: Callable[[], Any]) -> Any:
        """A JSON document; what `make` returned, or None."""
        try:
            document = make()
        except (ClientError, OSError, ValueError, subprocess.SubprocessError) as error:
            self.members.append(BundleFile(path, str(error), None))
            return None
        text = json.dumps(redaction.clean(document), indent=1, ensure_ascii=False, default=str)
        self.members.append(BundleFile(path, about, text.encode(errors="replace")))
        return document

    def add_text(self, path: str, about: str, make: Callable[[], str]) -> None:
        """A text, as a log is."""
        try:
            text = redaction.clean_log(make())
        except (OSError, subprocess.SubprocessError) as error:
            self.members.append(BundleFile(path, str(error), None))
            return
        self.members.append(BundleFile(path, about, text.encode(errors="replace")))

    def contents(self, cluster: str) -> str:
        """CONTENTS.txt: what is here, what is not and why, and what was left out."""
        made = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        lines = [f"Muster debug bundle of cluster {cluster}, made {made}", ""]
        lines += [f"{m.path:<44} {len(m.data):>9}  {m.about}" for m in self.members if m.data is not None]
        if missing := [m for m in self.members if m.data is None]:
            lines += ["", "Not here:"] + [f"  {m.path}: {' '.join(m.about.split())}" for m in missing]
        lines += [
            "",
            "Left out: private keys, tokens, passwords, and the values of environment variables. What a program of",
            "yours calls its secrets nobody can know: look through the commands and the logs before you send it.",
            "Times: each node's own clock; CLOCK_BOOTTIME (`at`, `at_us`) orders the events of one machine only.",
        ]
        return "\n".join(lines) + "\n"

    def write(self, path: Path, cluster: str) -> int:
        """Write the bundle, readable by its owner only; its size in bytes. Raises `OSError`, also where it exists."""
        root = path.name.removesuffix(".gz").removesuffix(".tar").removesuffix(".tgz")
        listing = BundleFile("CONTENTS.txt", "", self.contents(cluster).encode(errors="replace"))
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
                for member in (listing, *self.members):
                    if member.data is not None:
                        found = tarfile.TarInfo(f"{root}/{member.path}")
                        found.size, found.mtime, found.mode = len(member.data), int(time.time()), 0o600
                        archive.addfile(found, io.BytesIO(member.data))
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path.stat().st_size


def gather_node(bundle: Bundle, label: str, socket: Path, timeout_s: float) -> Document | None:
    """All that one node answers; its diagnostics, or None where it does not answer."""
    connection = Connection({label: socket}, timeout_s)
    try:
        name = str(connection.query("status")["node"])
    except Unreachable as error:
        bundle.members.append(BundleFile(f"nodes/{label}/", f"{error.what} ({error.where})", None))
        return None
    except ClientError as error:
        bundle.members.append(BundleFile(f"nodes/{label}/", str(error), None))
        return None
    bundle.node_answers += 1
    found: Document | None = None
    for query, about in _QUERIES.items():
        arguments = {"since": 0} if query == "timeline" else {}
        answer = bundle.add_document(f"nodes/{name}/{query}.json", about, partial(connection.query, query, **arguments))
        found = answer if query == "diagnostics" else found
    return found


def gather_histories(bundle: Bundle, connection: Connection) -> None:
    """The recent transitions, each with its account merged from all nodes."""
    path = "transitions/recent.json"
    known = bundle.add_document(path, "recent transitions", lambda: connection.query("transition_history"))
    for each in (known or {}).get("history", [])[:MAXIMUM_ACCOUNTS]:
        about = f"{each['node']} {each['kind']}: what happened on every node"
        bundle.add_document(
            f"transitions/{each['id']}.json", about, partial(connection.query, "transition_history", id=each["id"])
        )


def gather_log(bundle: Bundle, name: str, path: Path) -> None:
    """The end of a node's log file, and of the one before it."""
    for suffix in _OLDER_LOGS:
        file = path.with_name(path.name + suffix)
        if suffix == "" or file.exists():
            about = f"the end of {name}'s log {file}"
            bundle.add_text(f"logs/{name}.log{suffix}", about, partial(end_of, file, LOG_BYTES))


def gather_journal(bundle: Bundle) -> None:
    """The log of this machine's node where systemd keeps it."""
    if shutil.which("journalctl") is None or not Path("/run/systemd/system").is_dir():
        bundle.members.append(BundleFile("logs/journal.log", "no log file is known, and no systemd runs here", None))
        return
    command = ["journalctl", "--unit", "musterd*", "--no-pager", "--output", "short-iso-precise", "--lines", "20000"]
    bundle.add_text(
        "logs/journal.log",
        "systemd's log of musterd",
        lambda: subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout[-LOG_BYTES:],
    )


def gather_store(bundle: Bundle, path: Path) -> None:
    """What the store holds: registers, damage, and the newest database, which is the configuration."""
    from muster.drivers.store.disk.inspection import check, describe, newest_database
    from muster.drivers.store.failures import StoreFailed

    def guarded(look: Callable[[str], Any]) -> Callable[[], Any]:
        def make() -> Any:
            try:
                return named(look(str(path)))
            except StoreFailed as error:
                raise ClientError(str(error), str(path), "see `muster store check`") from error

        return make

    bundle.add_document("store/report.json", f"the registers and the newest journal of {path}", guarded(describe))
    bundle.add_document("store/findings.json", "damage, if any", guarded(check))
    about = "nodes, members, services and operations as the newest journal has them"
    bundle.add_document("store/database.json", about, guarded(newest_database))


def named(record: Any) -> Any:
    """A record for JSON with the names of its fields, which its encoded form leaves out."""
    import msgspec

    if isinstance(record, msgspec.Struct):
        return {name: named(getattr(record, name)) for name in record.__struct_fields__}
    if isinstance(record, Enum):
        return record.name.lower()
    if isinstance(record, tuple) and hasattr(record, "_asdict"):
        return {name: named(value) for name, value in record._asdict().items()}
    if isinstance(record, dict):
        return {str(key): named(value) for key, value in record.items()}
    if isinstance(record, (list, tuple, set, frozenset)):
        return [named(value) for value in record]
    return record.hex() if isinstance(record, bytes) else record


def gather_surroundings(bundle: Bundle) -> None:
    """This machine: releases and sizes."""

    def make() -> Document:
        names = ("click", "cryptography", "msgspec", "prometheus-client", "psutil", "rich")
        return {
            "releases": {"muster": __version__, **{name: _release(name) for name in names}},
            "python": platform.python_version(),
            "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
            "system": platform.freedesktop_os_release().get("PRETTY_NAME", "")
            if Path("/etc/os-release").exists()
            else "",
            "processors": os.cpu_count(),
            "memory": Path("/proc/meminfo").read_text().splitlines()[:3],
            "load": os.getloadavg(),
            "watchdogs": sorted(str(path) for path in Path("/dev").glob("watchdog*")),
        }

    bundle.add_document("machine.json", "this machine: releases, kernel, memory, load", make)


def _release(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
